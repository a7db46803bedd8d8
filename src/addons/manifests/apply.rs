//! Applies objects and takes them away again.
//!
//! Safe to repeat. A kind that nobody knows yet may come with the manifest itself.

use std::time::Duration;

use base::error::chain;
use client::api::ResourceRef;
use client::{Client, DeleteParams, Error, Patch, Propagation, discovery};
use serde_json::Value;
use tracing::{debug, warn};

use super::MANAGER;
use super::plan::{Named, named};

/// Rounds over what could not be applied: definitions become kinds a moment after them.
const ROUNDS: usize = 6;
const ROUND_PAUSE: Duration = Duration::from_millis(250);

/// What came of applying a manifest.
pub struct Done {
    /// All that may be there now.
    pub objects: Vec<Named>,
    /// Why the first that failed did.
    pub failed: Option<String>,
}

/// Applies all objects in their order; those that fail come again after the others.
pub async fn all(client: &Client, documents: &[Value]) -> Done {
    let mut objects: Vec<Option<Named>> = vec![None; documents.len()];
    let mut todo: Vec<usize> = (0..documents.len()).collect();
    let mut failed = None;
    for round in 0..ROUNDS {
        if round > 0 {
            tokio::time::sleep(ROUND_PAUSE).await;
        }
        failed = None;
        let mut later = Vec::new();
        for at in todo {
            let Some(document) = documents.get(at) else { continue };
            match one(client, document, &mut objects[at]).await {
                Ok(()) => {}
                Err(why) => {
                    debug!(error = why, "not applied");
                    later.push(at);
                    failed.get_or_insert(why);
                }
            }
        }
        todo = later;
        if todo.is_empty() {
            break;
        }
    }
    Done { objects: objects.into_iter().flatten().collect(), failed }
}

/// Applies one object. `known` is what it is, as soon as that is known.
async fn one(client: &Client, object: &Value, known: &mut Option<Named>) -> Result<(), String> {
    let bare = named(object, "");
    let said = |err: Error| format!("{bare}: {}", chain(&err));
    let resource = discovery::of_kind(client, &bare.api_version, &bare.kind).await;
    let Some((resource, _)) = resource.map_err(said)? else {
        return Err(format!(
            "no matches for kind {:?} in version {:?}",
            bare.kind, bare.api_version
        ));
    };
    let said = |err: Error| format!("{bare}: {}", chain(&err));
    let given = object["metadata"]["namespace"].as_str().filter(|name| !name.is_empty());
    let namespace = resource.namespaced.then(|| given.unwrap_or("default"));
    let name = named(object, namespace.unwrap_or_default());
    *known = Some(name.clone());
    let mut object = object.clone();
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = namespace.into();
    }
    let patch = Patch::Apply { object, manager: MANAGER.into(), force: true };
    client.dynamic(resource, namespace).patch(&name.name, &patch).await.map(drop).map_err(said)
}

/// Takes objects away. False where one has to be tried again.
pub async fn prune(client: &Client, objects: &[Named]) -> bool {
    let mut good = true;
    for object in objects {
        if let Err(err) = remove(client, object).await {
            warn!(object = %object, error = %chain(&err), "not pruned");
            good = false;
        }
    }
    good
}

async fn remove(client: &Client, object: &Named) -> Result<(), Error> {
    let resource = discovery::of_kind(client, &object.api_version, &object.kind).await?;
    // With a kind go all its objects.
    let Some((resource, _)) = resource else { return Ok(()) };
    let ResourceRef { namespaced, .. } = resource;
    let namespace = namespaced.then_some(object.namespace.as_str());
    let params = DeleteParams::default().propagation(Propagation::Background);
    match client.dynamic(resource, namespace).delete(&object.name, &params).await {
        Err(err) if !err.is_not_found() => Err(err),
        Ok(()) | Err(_) => Ok(()),
    }
}
