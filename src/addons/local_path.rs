//! Volumes that are directories of a node: class `local-path`, the default one.
//!
//! Two halves that meet only in PersistentVolumes. The provisioner (one in the cluster)
//! makes a volume for a claim whose first consumer has a node, and asks for its end. The
//! keeper (one on each node) makes the directory, limits its size, and removes the data. It
//! tells of its disk; of that the provisioner makes the room that the scheduler looks for.
//! A node can neither make volumes nor change what one is.

mod disk;
pub mod keeper;
mod plan;
pub mod provisioner;
mod room;

use k8s_openapi::api::core::v1::PersistentVolume;

pub const PROVISIONER: &str = "coracle.io/local-path";
/// Holds a volume until its node has removed the data.
const FINALIZER: &str = "coracle.io/local-path";
/// On a node: the folder that its volumes lie in.
const FOLDER: &str = "coracle.io/local-path";
/// On a node: what its volumes are bound to.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// On a node: how large the disk of its volumes is, and what is left of it (`disk.rs`).
const DISK: &str = "coracle.io/local-path-disk";
/// On a volume, and on what is told of a node's room: the node that holds it.
const NODE: &str = "coracle.io/local-path-node";

fn policy(volume: &PersistentVolume) -> &str {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    policy.unwrap_or("Retain")
}

fn has_finalizer(volume: &PersistentVolume, finalizer: &str) -> bool {
    volume.metadata.finalizers.iter().flatten().any(|held| held == finalizer)
}

/// The finalizers without ours.
fn released(volume: &PersistentVolume) -> serde_json::Value {
    let others = volume.metadata.finalizers.iter().flatten().filter(|held| *held != FINALIZER);
    let others: Vec<&String> = others.collect();
    serde_json::json!({"metadata": {"finalizers": others,
        "resourceVersion": volume.metadata.resource_version}})
}
