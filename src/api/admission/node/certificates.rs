//! A node asks for certificates of the pods that it runs, as what they are.

use kinds::resources::Catalog;
use serde_json::Value;

use super::MIRROR;
use crate::admission::{Attributes, Operation};
use crate::cache::prefix::{NODES, PODS};
use crate::error::{ApiError, Result};
use crate::registry::Registry;

const ACCOUNTS: &str = "/registry/serviceaccounts/";

pub fn restriction(
    registry: &Registry,
    request: &Attributes<'_>,
    node: &str,
    object: &Value,
) -> Result<()> {
    if request.operation != Operation::Create {
        return Err(request.forbidden("unexpected operation"));
    }
    if !request.subresource.is_empty() {
        return Err(request.forbidden(format!("unexpected subresource {}", request.subresource)));
    }
    let spec = &object["spec"];
    let text = |field: &str| spec[field].as_str().unwrap_or_default();
    if text("nodeName") != node {
        return Err(request.forbidden(format!(
            "PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {node:?}",
            text("nodeName")
        )));
    }
    let find = |prefix: &str, plural: &str, name: &str| {
        let key = match plural {
            "nodes" => format!("{prefix}{name}"),
            _ => format!("{prefix}{}/{name}", request.namespace),
        };
        registry.cache.get(prefix, &key).map(|it| it.value()).ok_or_else(|| {
            let kind = Catalog::built_in().any_version("", plural);
            let kind = kind.expect("these are among the built-in kinds");
            ApiError::not_found(kind, name)
        })
    };
    let of_request = format!("{}/{}", request.namespace, text("podName"));
    // What is stale may be right when it is tried again.
    let is_same = |what: &str, field: &str, live: &Value| match live["metadata"]["uid"]
        == spec[field]
    {
        true => Ok(()),
        false => Err(ApiError::internal(format!(
            "PodCertificateRequest for pod {of_request:?} names {what} UID {:?}, which differs from \
             the running {what} ({})",
            text(field),
            live["metadata"]["uid"]
        ))),
    };
    is_same("node", "nodeUID", &find(NODES, "nodes", node)?)?;
    let pod = find(PODS, "pods", text("podName"))?;
    is_same("pod", "podUID", &pod)?;
    if pod["spec"]["nodeName"] != node {
        return Err(request.forbidden(format!(
            "pod {of_request:?} is not running on node {node:?} named in the PodCertificateRequest"
        )));
    }
    if pod["metadata"]["annotations"].get(MIRROR).is_some() {
        return Err(request.forbidden(format!("pod {of_request:?} is a mirror pod")));
    }
    let account = &pod["spec"]["serviceAccountName"];
    if *account != spec["serviceAccountName"] {
        return Err(request.forbidden(format!(
            "PodCertificateRequest for pod {of_request:?} contains serviceAccountName ({:?}) that \
             differs from running pod ({account})",
            text("serviceAccountName")
        )));
    }
    let account = find(ACCOUNTS, "serviceaccounts", text("serviceAccountName"))?;
    is_same("service account", "serviceAccountUID", &account)
}
