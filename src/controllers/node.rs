//! Nodes: whether they live, what that means for their pods, and their pod networks.

#[cfg(test)]
pub(crate) mod cases;
mod eviction;
mod ipam;
mod lifecycle;
pub(crate) mod plan;
mod ttl;
mod zone;

pub use eviction::run as run_eviction;
pub use ipam::{Range, run as run_ipam};
pub use lifecycle::run as run_lifecycle;
pub use ttl::run as run_ttl;
