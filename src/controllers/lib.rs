//! The loops that make the cluster what its objects say.
//!
//! Each controller observes shared caches, plans purely and applies steps that may be
//! repeated. They meet only through API objects.

mod aggregation;
mod attach;
mod bootstrap_signer;
#[cfg(test)]
mod cases;
mod certificates;
mod claim;
mod config;
mod cronjob;
mod daemonset;
mod deployment;
mod device_taint;
mod disruption;
mod endpoints;
mod evict;
mod expect;
mod garbage;
mod harness;
mod history;
mod hpa;
mod job;
mod legacy_token;
mod namespace;
mod node;
mod owner;
mod pace;
mod pod;
mod pod_certificate;
mod pod_collector;
mod quota;
mod replicaset;
mod resource_claim;
mod root_ca;
mod roster;
mod service_account;
mod service_cidr;
mod service_lb;
mod statefulset;
mod token_cleaner;
mod token_secret;
mod trust_bundle;
mod volume;

pub use config::{Autoscaling, Batches, Config, Eviction};
pub use roster::{Chosen, Controllers, GARBAGE_COLLECTOR, NAMES};
pub use volume::{Recycler, Recycling};

/// Whether networks of nodes can be cut from it: `10.42.0.0/16`.
pub fn is_network(text: &str) -> bool {
    node::Range::parse(text).is_some()
}
