//! OwnerReferencesPermissionEnforcement: who makes an object go with another must be allowed
//! to delete it, and who makes it hold the other back, to do that.

use serde_json::Value;

use super::{Attributes, Operation};
use crate::authz::{Action, Decision};
use crate::error::Result;
use crate::registry::Registry;

fn references(object: &Value) -> Vec<Value> {
    object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default()
}

/// The references that newly hold their owner back.
fn newly_blocking(before: &[Value], after: &[Value]) -> Vec<Value> {
    let blocks = |reference: &&Value| reference["blockOwnerDeletion"] == true;
    let known = |wanted: &Value| {
        before.iter().filter(blocks).any(|reference| {
            ["apiVersion", "kind", "name", "uid"].iter().all(|f| reference[*f] == wanted[*f])
        })
    };
    after.iter().filter(blocks).filter(|reference| !known(reference)).cloned().collect()
}

/// # Errors
/// 403 where the user has no right to.
pub fn may_own(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    if !matches!(request.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    let before = request.old.map(references).unwrap_or_default();
    let after = references(object);
    if before == after {
        return Ok(());
    }
    // Who creates something may say to whom it belongs.
    if request.operation == Operation::Update || request.subresource == "status" {
        let action = Action {
            verb: "delete".into(),
            is_resource: true,
            group: request.resource.group.clone(),
            version: request.version.into(),
            resource: request.resource.plural.clone(),
            namespace: request.namespace.into(),
            name: request.name.into(),
            ..Action::default()
        };
        if let Some(why) = refused(registry, request, &action) {
            return Err(request.forbidden(format!(
                "cannot set an ownerRef on a resource you can't delete: {why}, <nil>"
            )));
        }
    }
    for reference in newly_blocking(&before, &after) {
        may_hold(registry, request, &reference)?;
    }
    Ok(())
}

/// Why the user may not; None where it may.
fn refused(registry: &Registry, request: &Attributes<'_>, action: &Action) -> Option<String> {
    match registry.authorizer.decide_here(request.user, action) {
        Decision::Allow(_) => None,
        Decision::Deny(why) | Decision::NoOpinion(why) => Some(why),
        Decision::Failed { error, .. } => Some(error),
    }
}

fn may_hold(registry: &Registry, request: &Attributes<'_>, reference: &Value) -> Result<()> {
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    let catalog = registry.catalog();
    let Some(owner) = catalog.by_kind(group, text("kind")) else {
        return Err(request.forbidden(format!(
            "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {} Kind {}: no matches for kind {:?} in version {:?}",
            text("apiVersion"),
            text("kind"),
            text("kind"),
            text("apiVersion")
        )));
    };
    let namespace = if owner.namespaced { request.namespace } else { "" };
    let action = Action {
        verb: "update".into(),
        is_resource: true,
        group: group.into(),
        version: version.into(),
        resource: owner.plural.clone(),
        subresource: "finalizers".into(),
        namespace: namespace.into(),
        name: text("name").into(),
        ..Action::default()
    };
    match refused(registry, request, &action) {
        None => Ok(()),
        Some(why) => Err(request.forbidden(format!(
            "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {why}, <nil>"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_newly_blocks_is_looked_at() {
        let reference = |uid: &str, blocks: bool| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "blockOwnerDeletion": blocks});
        let before = [reference("a", true), reference("b", false)];
        let after = [reference("a", true), reference("b", true), reference("c", false)];
        assert_eq!(newly_blocking(&before, &after), [reference("b", true)]);
    }
}
