//! Nodes: whether they live, what that means for their pods, and their pod networks.

mod ipam;
mod lifecycle;
pub(crate) mod plan;

pub use ipam::run as run_ipam;
pub use lifecycle::run as run_lifecycle;
