//! Which pods nobody else removes. Pure.

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::node::plan::{condition, taints_of};
use crate::pod;

/// A node that is shut down for good: nobody there says when a pod has ended
/// (documentation, "Non-graceful node shutdown handling").
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// Its node is not known: it goes if the node stays away.
    Homeless,
    /// It was deleted before it had a node, and whoever holds it has not let it go: it is said to
    /// have failed, after a while.
    Unplaced,
    Remove,
}

pub fn is_out_of_service(node: &Node) -> bool {
    let tainted = taints_of(node).iter().any(|taint| taint.key == OUT_OF_SERVICE);
    tainted && condition(node, "Ready") != Some("True")
}

/// Nobody waits for what an evicted pod has left: it goes before others that have finished.
pub fn is_evicted(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    pod::phase(pod) == "Failed" && status.and_then(|s| s.reason.as_deref()) == Some("Evicted")
}

/// `node` is the pod's, if it is there.
pub fn judge(pod: &Pod, node: Option<&Node>) -> Verdict {
    let leaves = pod.metadata.deletion_timestamp.is_some();
    match node {
        None if pod::node(pod).is_empty() && leaves => Verdict::Unplaced,
        None if pod::node(pod).is_empty() => Verdict::Keep,
        None => Verdict::Homeless,
        // Nobody there will say when it has ended.
        Some(node) if leaves && is_out_of_service(node) => Verdict::Remove,
        Some(_) => Verdict::Keep,
    }
}
