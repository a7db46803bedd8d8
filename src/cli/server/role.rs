//! Says of this server's node that it runs a control plane. The node may not say that itself:
//! whoever could would draw to it what is meant for control planes.

use api::serve::Shared as ApiServer;
use base::drain::Drain;
use base::error::chain;
use client::cache::{Key, key_of};
use client::{Client, Patch, Queue, Shared};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::credentials::component;

const LABEL: &str = "node-role.kubernetes.io/control-plane";

/// Labels the node whenever it is there without.
pub async fn run(server: ApiServer, shared: Shared, node: String, drain: Drain) {
    let client = component(&server, "system:coracle:node-role", &[api::authn::MASTERS], "coracle");
    let (nodes, queue) = (shared.cache::<Node>(), Queue::<Key>::new());
    let changed = queue.clone();
    nodes.on_change(move |_, new| {
        let Some(new) = new.filter(|new| new.metadata.name.as_ref() == Some(&node)) else { return };
        if !is_labelled(new) {
            changed.add(key_of(&**new));
        }
    });
    queue.run(1, drain, |(_, name)| label(client.clone(), name)).await;
}

fn is_labelled(node: &Node) -> bool {
    node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL))
}

async fn label(client: Client, name: String) -> Result<(), client::Error> {
    let label = Patch::Merge(json!({"metadata": {"labels": {LABEL: "true"}}}));
    match client.all::<Node>().patch(&name, &label).await {
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => {
            tracing::warn!(node = name, error = %chain(&error), "the node is not labelled yet");
            Err(error)
        }
        Ok(_) => Ok(()),
    }
}
