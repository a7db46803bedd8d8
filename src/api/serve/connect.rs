//! Whether admission lets somebody connect (to a pod's streams, or through a proxy), or do
//! what leaves no object of its own behind.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Shared;
use super::chain::Call;
use crate::admission::policy::evaluate::own_kind;
use crate::admission::{Attributes, Notes, Operation};
use crate::error::Result;
use crate::registry::Target;

/// Whether the connection may be made; reading a log is none.
///
/// # Errors
/// The refusal of a policy or a webhook.
pub async fn admit(server: &Shared, call: &Call, target: &Target) -> Result<()> {
    if target.subresource == "log" {
        return Ok(());
    }
    judge(server, call, target, (Operation::Connect, false), None).await
}

/// Whether an object may be made that is done rather than stored, such as an eviction.
///
/// # Errors
/// The refusal of a policy or a webhook.
pub async fn admit_object(
    server: &Shared,
    call: &Call,
    target: &Target,
    dry_run: bool,
    object: &Value,
) -> Result<()> {
    judge(server, call, target, (Operation::Create, dry_run), Some(object)).await
}

async fn judge(
    server: &Shared,
    call: &Call,
    target: &Target,
    (operation, dry_run): (Operation, bool),
    object: Option<&Value>,
) -> Result<()> {
    let notes = call.request.extensions().get::<Arc<Notes>>().cloned().unwrap_or_default();
    let attributes = Attributes {
        operation,
        resource: &target.resource,
        version: &target.version,
        namespace: &target.namespace,
        name: &target.name,
        subresource: &target.subresource,
        user: &call.user,
        dry_run,
        old: None,
        notes: &notes,
    };
    let options = match object {
        Some(object) => object.clone(),
        None => {
            let kind = own_kind(&attributes).map_or("", |(_, _, kind)| kind);
            connect_options(call, target, kind)
        }
    };
    server.registry.admission.judge(&server.registry, &attributes, &options).await
}

/// The options of a connection as an object, from its query and path.
fn connect_options(call: &Call, target: &Target, kind: &str) -> Value {
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    for name in ["stdin", "stdout", "stderr", "tty"] {
        if call.query.flag(name) {
            options[name] = true.into();
        }
    }
    if let Some(container) = call.query.set("container") {
        options["container"] = container.into();
    }
    let all = |name: &str| call.query.all(name).map(str::to_owned).collect::<Vec<_>>();
    match target.subresource.as_str() {
        "exec" => options["command"] = all("command").into(),
        "portforward" => {
            let ports = all("ports");
            let ports = ports.iter().flat_map(|list| list.split(','));
            options["ports"] = ports.filter_map(|port| port.parse::<u16>().ok()).collect();
        }
        "proxy" => options["path"] = call.info.rest.as_str().into(),
        _ => {}
    }
    options
}
