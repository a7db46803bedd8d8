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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use store::backend::sqlite::Sqlite;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_servers_own_node_is_labelled_and_no_other_and_again_when_it_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let key = pki::files::signing_key(&dir.path().join("key")).unwrap();
        let store = Arc::new(Sqlite::open(&dir.path().join("db")).unwrap());
        let server = api::build(api::Config::new(store, &key).unwrap()).await.unwrap();
        let (_trigger, drain) = base::drain::channel();
        let admin = component(&server, "admin", &[api::authn::MASTERS], "suite");
        let shared = Shared::new(admin.clone(), drain.clone());
        base::task::spawn(run(server, shared, "own".into(), drain));
        let nodes = admin.all::<Node>();
        let make = async |name: &str| {
            let node = json!({"metadata": {"name": name}});
            nodes.create(&serde_json::from_value(node).unwrap()).await.unwrap();
        };
        let until_labelled = async || {
            let begun = Instant::now();
            while !is_labelled(&nodes.get("own").await.unwrap()) {
                assert!(begun.elapsed() < Duration::from_secs(10), "never labelled");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        make("other").await;
        make("own").await;
        until_labelled().await;
        nodes.delete("own", &client::DeleteParams::default()).await.unwrap();
        make("own").await;
        until_labelled().await;
        assert!(!is_labelled(&nodes.get("other").await.unwrap()));
    }
}
