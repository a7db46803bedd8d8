//! Tells nodes how long they may keep secrets and config maps: the larger the cluster, the
//! longer, as an annotation (upstream's TTL controller).

use std::sync::Arc;

use client::cache::{Cache, Key};
use client::{Patch, Queue};
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use crate::harness::{Context, Doing, Settled};
use crate::owner::{annotation, name};

const TTL: &str = "node.alpha.kubernetes.io/ttl";
const WORKERS: usize = 2;

/// From how many nodes on, down to how many, and the seconds. They overlap, so that a node
/// that comes and goes changes nothing.
const STEPS: [(usize, usize, u32); 5] =
    [(100, 0, 0), (500, 90, 15), (1_000, 450, 30), (2_000, 900, 60), (10_000, 1_800, 300)];

/// The step for so many nodes, from the one there was.
fn step(mut at: usize, nodes: usize) -> usize {
    while at > 0 && nodes < STEPS[at].1 {
        at -= 1;
    }
    while at + 1 < STEPS.len() && nodes > STEPS[at].0 {
        at += 1;
    }
    at
}

pub async fn run(context: Context) {
    let nodes: Cache<Node> = context.shared.cache();
    if context.drain.until(nodes.synced()).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("ttlcontroller");
    let now = Arc::new(Mutex::new(step(0, nodes.len())));
    let (again, all, held) = (queue.clone(), nodes.clone(), now.clone());
    nodes.on_change(move |old, new| {
        if let Some(node) = new {
            again.add((String::new(), name(&node.metadata).to_string()));
        }
        if old.is_some() && new.is_some() {
            return;
        }
        let mut at = held.lock();
        let next = step(*at, all.len());
        if std::mem::replace(&mut *at, next) != next {
            for node in all.list() {
                again.add((String::new(), name(&node.metadata).to_string()));
            }
        }
    });
    let sync = |(_, node): Key| {
        let (context, nodes, now) = (&context, &nodes, &now);
        async move {
            let Some(node) = nodes.get("", &node) else { return Ok(()) };
            let seconds = STEPS[*now.lock()].2.to_string();
            if annotation(&node.metadata, TTL) == Some(&seconds) {
                return Ok(());
            }
            let patch = json!({"metadata": {"uid": node.metadata.uid,
                "annotations": {TTL: seconds}}});
            let api = context.client.all::<Node>();
            let answer = api.patch(name(&node.metadata), &Patch::Strategic(patch)).await;
            answer.doing(|| "annotate the node".into()).or_gone()
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_overlap() {
        for (from, nodes, expected) in [
            (0, 1, 0),
            (0, 100, 0),
            (0, 101, 1),
            (1, 95, 1),
            (1, 89, 0),
            (0, 5_000, 4),
            (4, 1_800, 4),
            (4, 10, 0),
            (4, 100_000, 4),
        ] {
            assert_eq!(step(from, nodes), expected, "{nodes} nodes from step {from}");
        }
    }
}
