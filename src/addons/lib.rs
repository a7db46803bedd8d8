//! What a cluster is expected to come with, in this process: manifests that are kept in
//! step with a folder, disks of the node's own, and the resource metrics API.
//!
//! Each part is off with `--disable`; none is needed by another.

pub mod local_path;
pub mod manifests;
pub mod metrics;
