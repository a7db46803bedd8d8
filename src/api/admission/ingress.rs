//! Ingresses get the default class; services get no addresses that are not the cluster's.

use serde_json::Value;

use super::{Attributes, Operation};
use crate::error::Result;
use crate::registry::{Registry, metadata_str};

const CLASSES: &str = "/registry/ingressclasses/";
const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// How ingresses named their class before there were classes.
const OLD_CLASS: &str = "kubernetes.io/ingress.class";

/// DefaultIngressClass: the newest default class, by name where two are of one second.
pub fn default_class(
    registry: &Registry,
    request: &Attributes<'_>,
    ingress: &mut Value,
) -> Result<()> {
    if request.operation != Operation::Create
        || !request.is("networking.k8s.io", "ingresses")
        || ingress["spec"].get("ingressClassName").is_some_and(|name| !name.is_null())
        || ingress["metadata"]["annotations"].get(OLD_CLASS).is_some()
    {
        return Ok(());
    }
    let (classes, _) = registry.cache.list(CLASSES, CLASSES, None);
    let defaults = classes.iter().map(|class| class.value());
    let newest = defaults
        .filter(|class| class["metadata"]["annotations"][IS_DEFAULT] == "true")
        .max_by(|a, b| {
            let age = |class: &Value| metadata_str(class, "creationTimestamp").to_string();
            age(a).cmp(&age(b)).then_with(|| metadata_str(b, "name").cmp(metadata_str(a, "name")))
        });
    if let Some(class) = newest {
        ingress["spec"]["ingressClassName"] = class["metadata"]["name"].clone();
    }
    Ok(())
}

/// DenyServiceExternalIPs: addresses that a service has already stay.
///
/// # Errors
/// 403 for new ones.
pub fn external_addresses(_: &Registry, request: &Attributes<'_>, service: &Value) -> Result<()> {
    if !matches!(request.operation, Operation::Create | Operation::Update)
        || !request.is("", "services")
    {
        return Ok(());
    }
    let addresses = |service: &Value| -> Vec<Value> {
        service["spec"]["externalIPs"].as_array().cloned().unwrap_or_default()
    };
    let before = request.old.map(addresses).unwrap_or_default();
    if addresses(service).iter().all(|address| before.contains(address)) {
        return Ok(());
    }
    Err(request.forbidden("Use of external IPs is denied by admission control"))
}
