//! Claims of devices: who may have devices that are somebody else's, and who may say what of a
//! claim's status.
//!
//! Claims with `adminAccess` are for namespaces that are labelled for it (KEP-5018). Whoever may
//! write a claim's status needs more: the allocation and the users are for those who schedule,
//! and of devices each driver tells of its own (DRAResourceClaimGranularStatusAuthorization).

use std::collections::BTreeSet;

use kinds::meta::FieldError;
use serde_json::Value;

use super::{Attributes, Operation};
use crate::authz::{Action, Decision};
use crate::cache::prefix::NAMESPACES;
use crate::error::{ApiError, Result};
use crate::registry::{Registry, causes};

const GROUP: &str = "resource.k8s.io";
/// What a token says of the node that its holder runs on.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const LABEL: &str = "resource.kubernetes.io/admin-access";

fn any(list: &Value, is: impl Fn(&Value) -> bool) -> bool {
    list.as_array().is_some_and(|all| all.iter().any(is))
}

/// Whether a claim, its template or its status newly speaks of such devices.
fn asks(request: &Attributes<'_>, object: &Value) -> bool {
    let requests = match request.resource.kind.as_str() {
        "ResourceClaim" => &object["spec"]["devices"]["requests"],
        "ResourceClaimTemplate" => &object["spec"]["spec"]["devices"]["requests"],
        _ => return false,
    };
    let allocated = |object: &Value| {
        let results = &object["status"]["allocation"]["devices"]["results"];
        any(results, |it| it["adminAccess"] == true)
    };
    match (request.operation, request.subresource) {
        // What is asked for never changes.
        (Operation::Create, "") => any(requests, |it| it["exactly"]["adminAccess"] == true),
        (Operation::Update, "status") => allocated(object) && !request.old.is_some_and(allocated),
        _ => false,
    }
}

/// # Errors
/// 422 where the namespace is not for administrators.
pub fn validate(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    if request.resource.group != GROUP {
        return Ok(());
    }
    if request.resource.kind == "ResourceClaim" && request.subresource == "status" {
        status(registry, request, object)?;
    }
    if !asks(request, object) {
        return Ok(());
    }
    let key = format!("{NAMESPACES}{}", request.namespace);
    let namespace = registry.cache.get(NAMESPACES, &key);
    if namespace.is_some_and(|it| it.value()["metadata"]["labels"][LABEL] == "true") {
        return Ok(());
    }
    let why = format!(
        "admin access to devices requires the `{LABEL}: true` label on the containing namespace"
    );
    let errors = causes(vec![FieldError::forbidden("", &why)]);
    Err(ApiError::invalid(request.resource, request.name, &errors))
}

/// Whether the user may, by one of the verbs by which a status is written.
fn may(registry: &Registry, request: &Attributes<'_>, whose: &str, part: &str, name: &str) -> bool {
    ["update", "patch"].into_iter().any(|verb| {
        let action = Action {
            verb: format!("{whose}{verb}"),
            is_resource: true,
            group: GROUP.into(),
            version: request.version.into(),
            resource: "resourceclaims".into(),
            subresource: part.into(),
            namespace: request.namespace.into(),
            name: name.into(),
            ..Action::default()
        };
        matches!(registry.authorizer.decide_here(request.user, &action), Decision::Allow(_))
    })
}

/// Drivers of whose devices something else is told. That nothing is told any more is no change
/// where the allocation is another: it goes with the devices.
fn changed_drivers(new: &Value, old: &Value) -> BTreeSet<String> {
    let is_same = new["status"]["allocation"] == old["status"]["allocation"];
    let of = |object: &Value| object["status"]["devices"].as_array().cloned().unwrap_or_default();
    let (new, old) = (of(new), of(old));
    let changed = new.iter().filter(|it| !old.contains(it));
    let gone = old.iter().filter(|it| is_same && !new.contains(it));
    let driver = |it: &Value| it["driver"].as_str().unwrap_or_default().to_owned();
    changed.chain(gone).map(driver).collect()
}

/// The node that a claim's devices can be used from, where there is only one.
fn node_of(claim: &Value) -> Option<&str> {
    let terms = claim["status"]["allocation"]["nodeSelector"]["nodeSelectorTerms"].as_array()?;
    let [term] = terms.as_slice() else { return None };
    let fields = term["matchFields"].as_array()?;
    let field = fields.iter().find(|it| it["key"] == "metadata.name" && it["operator"] == "In")?;
    match field["values"].as_array()?.as_slice() {
        [node] => node.as_str(),
        _ => None,
    }
}

/// # Errors
/// 403 where the user may not write what is new in the status.
fn status(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    let Some(old) = request.old.filter(|_| request.operation == Operation::Update) else {
        return Ok(());
    };
    let is_other = |field: &str| object["status"][field] != old["status"][field];
    if (is_other("allocation") || is_other("reservedFor"))
        && !may(registry, request, "", "binding", request.name)
    {
        return Err(request.forbidden(
            "changing status.allocation or status.reservedFor requires permission to update or \
             patch resourceclaims/binding",
        ));
    }
    let own_node = request.user.extra.get(NODE_NAME).and_then(|names| names.first());
    let is_local = own_node.is_some() && own_node.map(String::as_str) == node_of(old);
    for driver in changed_drivers(object, old) {
        let whose = |whose: &str| may(registry, request, whose, "driver", &driver);
        if !(whose("arbitrary-node:") || (is_local && whose("associated-node:"))) {
            return Err(request.forbidden(format!(
                "changing status.devices of driver {driver} requires permission to update or \
                 patch resourceclaims/driver, on its own node or on any"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn drivers_are_those_of_whose_devices_something_else_is_told() {
        let claim = |devices: Value| json!({"status": {"devices": devices}});
        let of = |driver: &str, ready: bool| json!({"driver": driver, "ready": ready});
        let (a, b) = (of("a", true), of("b", true));
        for (new, old, want) in [
            (json!([a, b]), json!([a, b]), vec![]),
            (json!([b, a]), json!([a, b]), vec![]),
            (json!([a, of("b", false)]), json!([a, b]), vec!["b"]),
            (json!([a]), json!(null), vec!["a"]),
            (json!(null), json!([a, b]), vec!["a", "b"]),
        ] {
            let found = changed_drivers(&claim(new), &claim(old));
            assert_eq!(Vec::from_iter(&found), want);
        }
    }
}
