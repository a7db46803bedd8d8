//! A node asks for tokens of the pods that it runs, for those whom their volumes name.

use kinds::resources::Catalog;
use serde_json::Value;

use crate::admission::Attributes;
use crate::authz::node::claims;
use crate::authz::{Action, Decision};
use crate::cache::Cache;
use crate::cache::prefix::{CLAIMS, PODS, VOLUMES};
use crate::error::{ApiError, Result};
use crate::registry::Registry;

const DRIVERS: &str = "/registry/csidrivers/";
const VERB: &str = "request-serviceaccounts-token-audience";

pub fn restriction(
    registry: &Registry,
    request: &Attributes<'_>,
    node: &str,
    object: &Value,
) -> Result<()> {
    let spec = &object["spec"];
    let bound = &spec["boundObjectRef"];
    let text = |field: &str| bound[field].as_str().unwrap_or_default();
    if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
        return Err(request.forbidden("node requested token not bound to a pod"));
    }
    if text("uid").is_empty() {
        return Err(request.forbidden("node requested token with a pod binding without a uid"));
    }
    let key = format!("{PODS}{}/{}", request.namespace, text("name"));
    let Some(pod) = registry.cache.get(PODS, &key) else {
        let pods = Catalog::built_in().any_version("", "pods");
        let pods = pods.expect("there are pods among the built-in kinds");
        return Err(ApiError::not_found(pods, text("name")));
    };
    let pod = pod.value();
    if pod["metadata"]["uid"] != bound["uid"] {
        return Err(request.forbidden(format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The \
             object might have been deleted and then recreated",
            text("uid")
        )));
    }
    if pod["spec"]["nodeName"] != node {
        let why = "node requested token bound to a pod scheduled on a different node";
        return Err(request.forbidden(why));
    }
    let audience = match spec["audiences"].as_array().map_or(&[][..], Vec::as_slice) {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return Err(request.forbidden("node may only request 0 or 1 audiences")),
    };
    if names(&registry.cache, &pod, audience) || may(registry, request, audience) {
        return Ok(());
    }
    Err(request.forbidden(format!(
        "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens \
         for this audience",
        request.user.name
    )))
}

/// Whether a volume of the pod needs a token for the audience: it projects one, or its driver
/// asks for one.
fn names(cache: &Cache, pod: &Value, audience: &str) -> bool {
    let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
    let is_it = |token: &Value| {
        token.is_object() && token["audience"].as_str().unwrap_or_default() == audience
    };
    let volumes = list(&pod["spec"]["volumes"]);
    let projects = |volume: &Value| {
        let sources = list(&volume["projected"]["sources"]);
        sources.iter().any(|source| is_it(&source["serviceAccountToken"]))
    };
    if volumes.iter().any(projects) {
        return true;
    }
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let of_claim = |claim: String| {
        let claim = cache.get(CLAIMS, &format!("{CLAIMS}{namespace}/{claim}"))?.value();
        let volume = claim["spec"]["volumeName"].as_str()?.to_owned();
        let volume = cache.get(VOLUMES, &format!("{VOLUMES}{volume}"))?.value();
        volume["spec"]["csi"]["driver"].as_str().map(str::to_owned)
    };
    let inline = volumes.iter().filter_map(|it| it["csi"]["driver"].as_str().map(str::to_owned));
    inline.chain(claims(pod).filter_map(of_claim)).any(|driver| {
        let driver = cache.get(DRIVERS, &format!("{DRIVERS}{driver}"));
        driver.is_some_and(|it| list(&it.value()["spec"]["tokenRequests"]).iter().any(is_it))
    })
}

/// Whether somebody lets the node ask for tokens for this audience, as plugins for registries'
/// credentials need them.
fn may(registry: &Registry, request: &Attributes<'_>, audience: &str) -> bool {
    let action = Action {
        verb: VERB.into(),
        is_resource: true,
        version: "v1".into(),
        resource: audience.into(),
        namespace: request.namespace.into(),
        name: request.name.into(),
        ..Action::default()
    };
    matches!(registry.authorizer.decide_here(request.user, &action), Decision::Allow(_))
}
