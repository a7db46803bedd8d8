//! NamespaceLifecycle: nothing is created where there is no namespace, or one that goes; and
//! the plugins that look closer, or make namespaces.

use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::cache::prefix::NAMESPACES;
use crate::error::{ApiError, Cause, Result};
use crate::registry::{Registry, Target, metadata_str};

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub fn lifecycle(registry: &Registry, request: &Attributes<'_>, _: &Value) -> Result<()> {
    if request.is("", "namespaces") {
        if request.operation == Operation::Delete && IMMORTAL.contains(&request.name) {
            return Err(request.forbidden("this namespace may not be deleted"));
        }
        return Ok(());
    }
    if request.operation != Operation::Create
        || request.namespace.is_empty()
        || !request.resource.namespaced
    {
        return Ok(());
    }
    let key = format!("{NAMESPACES}{}", request.namespace);
    let Some(namespace) = registry.cache.get(NAMESPACES, &key) else {
        let namespaces = registry.resource("", "namespaces");
        return Err(match namespaces {
            Some(resource) => ApiError::not_found(&resource, request.namespace),
            None => ApiError::no_such_resource(),
        });
    };
    // Asked for everything that is created: most namespaces need not be read for it.
    if !namespace.mentions("deletionTimestamp") && !namespace.mentions("Terminating") {
        return Ok(());
    }
    let namespace = namespace.value();
    let deleted = metadata_str(&namespace, "deletionTimestamp");
    if deleted.is_empty() && namespace["status"]["phase"] != "Terminating" {
        return Ok(());
    }
    let why = format!(
        "unable to create new content in namespace {} because it is being terminated",
        request.namespace
    );
    let cause = Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {} is being terminated", request.namespace),
        field: "metadata.namespace".into(),
    };
    let mut error = request.forbidden(why);
    error.details.get_or_insert_with(|| Box::new(json!({})));
    Err(error.with_causes(&[cause]))
}

/// NamespaceExists: what is in a namespace is not touched without it.
///
/// # Errors
/// 404 for the namespace.
pub fn exists(registry: &Registry, request: &Attributes<'_>, _: &Value) -> Result<()> {
    if request.namespace.is_empty() || request.is("", "namespaces") || !request.resource.namespaced
    {
        return Ok(());
    }
    let key = format!("{NAMESPACES}{}", request.namespace);
    match (registry.cache.get(NAMESPACES, &key), registry.resource("", "namespaces")) {
        (None, Some(namespaces)) => Err(ApiError::not_found(&namespaces, request.namespace)),
        _ => Ok(()),
    }
}

/// AlwaysDeny; the server itself makes what it needs to start.
///
/// # Errors
/// 403.
pub fn deny(_: &Registry, request: &Attributes<'_>, _: &Value) -> Result<()> {
    if request.user.name == crate::bootstrap::USER {
        return Ok(());
    }
    Err(request.forbidden("admission control is denying all modifications"))
}

/// NamespaceAutoProvision: the namespace of something new is made, if it is not there.
///
/// # Errors
/// Why it cannot be made.
pub async fn provide(registry: &Registry, request: &Attributes<'_>) -> Result<()> {
    if request.operation != Operation::Create
        || request.dry_run
        || request.namespace.is_empty()
        || !request.resource.namespaced
    {
        return Ok(());
    }
    let key = format!("{NAMESPACES}{}", request.namespace);
    let Some(resource) = registry.resource("", "namespaces") else { return Ok(()) };
    if registry.cache.get(NAMESPACES, &key).is_some() {
        return Ok(());
    }
    let target = Target {
        resource,
        version: "v1".into(),
        namespace: String::new(),
        name: request.namespace.to_string(),
        subresource: String::new(),
    };
    let mut namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": request.namespace},
    });
    target.normalise(&mut namespace);
    // Making a namespace asks admission again, which needs no namespace then.
    let options = crate::bootstrap::options();
    let made = Box::pin(registry.create(&target, namespace, &options)).await;
    match made {
        Err(error) if error.reason != "AlreadyExists" => Err(error),
        Ok(_) | Err(_) => registry.cache.fresh().await.map(drop),
    }
}
