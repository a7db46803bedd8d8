//! Follows validating policies and writes into their status what checking their expressions
//! found (kube-controller-manager's `validatingadmissionpolicy-status` controller).
//!
//! It is here because only the API server knows the types. A policy is looked at once per
//! generation; nothing wakes while none changes.

use std::sync::{Arc, Weak};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::warn;

use super::{VALIDATING, type_check};
use crate::bootstrap::options;
use crate::cache::{Change as Changed, Event};
use crate::error::Result;
use crate::registry::update::Change;
use crate::registry::{Registry, Target, WriteOptions, metadata_str};
use crate::serve::{Server, Shared};

const MANAGER: &str = "validatingadmissionpolicy-status";

/// Follows the policies until the server is gone.
///
/// # Errors
/// When there is no place for them.
pub fn start(server: &Shared) -> Result<()> {
    let (policies, live) = read(server)?;
    base::task::spawn(follow(Arc::downgrade(server), policies, live));
    Ok(())
}

type Live = mpsc::Receiver<Arc<Event>>;

fn read(server: &Shared) -> Result<(Vec<Value>, Live)> {
    let prefix = VALIDATING[0];
    let (objects, subscription) = server.registry.cache.list_and_subscribe(prefix, prefix)?;
    Ok((objects.iter().map(|object| object.value()).collect(), subscription.live))
}

async fn follow(server: Weak<Server>, mut policies: Vec<Value>, mut live: Live) {
    loop {
        for policy in policies.drain(..) {
            let Some(server) = server.upgrade() else { return };
            if let Err(error) = judge(&server, &policy).await {
                let policy = metadata_str(&policy, "name");
                warn!(policy, error = error.message, "type checks are not told");
            }
        }
        match live.recv().await {
            Some(event) if event.change == Changed::Deleted => {}
            Some(event) => policies.push(event.object.value()),
            // The cache ended us: we were too slow. Look at everything again.
            None => {
                let Some(server) = server.upgrade() else { return };
                match read(&server) {
                    Ok((all, again)) => (policies, live) = (all, again),
                    Err(_) => return,
                }
            }
        }
    }
}

/// Checks a policy whose generation was not looked at, and writes what was found.
async fn judge(server: &Shared, policy: &Value) -> Result<()> {
    let generation = policy["metadata"]["generation"].as_i64().unwrap_or(0);
    if generation <= policy["status"]["observedGeneration"].as_i64().unwrap_or(0) {
        return Ok(());
    }
    let (spec, catalog) = (policy["spec"].clone(), server.registry.catalog());
    // The types of kinds are large: others are served meanwhile.
    let checked = base::task::spawn_blocking(move || type_check::warnings(&spec, &catalog)).await;
    let Ok(warnings) = checked else { return Ok(()) };
    let mut checking = json!({});
    if !warnings.is_empty() {
        checking["expressionWarnings"] = Value::Array(warnings);
    }
    let status = json!({"observedGeneration": generation, "typeChecking": checking});
    write(&server.registry, metadata_str(policy, "name"), status).await
}

async fn write(registry: &Registry, name: &str, status: Value) -> Result<()> {
    let group = "admissionregistration.k8s.io";
    let Some(resource) = registry.resource(group, "validatingadmissionpolicies") else {
        return Ok(());
    };
    let version = resource.versions[0].clone();
    let applied = json!({
        "apiVersion": format!("{group}/{version}"), "kind": resource.kind,
        "metadata": {"name": name}, "status": status,
    });
    let target = Target {
        version,
        resource,
        namespace: String::new(),
        name: name.into(),
        subresource: "status".into(),
    };
    let options = WriteOptions { manager: MANAGER.into(), force: true, ..options() };
    match registry.update(&target, Change::Apply(applied), &options).await {
        Err(error) if error.code != 404 => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}
