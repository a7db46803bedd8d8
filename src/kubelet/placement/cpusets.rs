//! Keeps the CPUs of running containers as they were given: those that share get what is
//! left whenever somebody takes CPUs for himself or gives them back.

use std::sync::Arc;

use base::drain::Drain;
use runtime::cri::{ContainerState, LinuxResources};
use tracing::warn;

use super::Given;
use crate::node::Node;
use crate::observed::{LABEL_CONTAINER_NAME, LABEL_POD_UID};

/// Puts what was given into a container's limits.
pub fn put(given: &Given, resources: &mut LinuxResources) {
    if let Some(cpus) = &given.cpus {
        resources.cpuset_cpus = cpus.to_string();
    }
    if let Some(nodes) = given.memory {
        let nodes: Vec<String> = nodes.iter().map(|node| node.to_string()).collect();
        resources.cpuset_mems = nodes.join(",");
    }
}

/// Until the drain begins.
pub async fn run(node: Arc<Node>, mut drain: Drain) {
    loop {
        tokio::select! {
            () = drain.begun() => return,
            () = node.placements.changed.notified() => {}
        }
        for container in node.observed.containers() {
            if container.state != ContainerState::Running {
                continue;
            }
            let label = |name: &str| container.labels.get(name).map_or("", String::as_str);
            let given = node.placements.of(label(LABEL_POD_UID), label(LABEL_CONTAINER_NAME));
            let mut wanted = container.resources.clone();
            put(&given, &mut wanted);
            if wanted.cpuset_cpus.is_empty() || wanted == container.resources {
                continue;
            }
            if let Err(error) = node.runtime.update_container_resources(&container.id, wanted).await
            {
                // It may have ended meanwhile.
                warn!(container = container.id, %error, "CPUs not changed");
                continue;
            }
            if let Err(error) = node.observed.refresh_container(&container.id).await {
                warn!(container = container.id, %error, "container not read");
            }
        }
    }
}
