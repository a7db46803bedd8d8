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
    Remove,
}

pub fn is_out_of_service(node: &Node) -> bool {
    let tainted = taints_of(node).iter().any(|taint| taint.key == OUT_OF_SERVICE);
    tainted && condition(node, "Ready") != Some("True")
}

/// `node` is the pod's, if it is there.
pub fn judge(pod: &Pod, node: Option<&Node>) -> Verdict {
    let leaves = pod.metadata.deletion_timestamp.is_some();
    match node {
        // It was deleted before it had a node, or nobody will say when it has ended.
        None if pod::node(pod).is_empty() && leaves => Verdict::Remove,
        None if pod::node(pod).is_empty() => Verdict::Keep,
        None => Verdict::Homeless,
        Some(node) if leaves && is_out_of_service(node) => Verdict::Remove,
        Some(_) => Verdict::Keep,
    }
}
