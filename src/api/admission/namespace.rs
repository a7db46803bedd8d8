//! NamespaceLifecycle: nothing is created where there is no namespace, or one that goes.

use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::error::{ApiError, Cause, Result};
use crate::registry::{Registry, metadata_str};

const NAMESPACES: &str = "/registry/namespaces/";
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
