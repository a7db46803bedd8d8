//! The controllers against an API server in this process: what they make of the objects
//! that clients write.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod aggregated;
mod attachments;
mod autoscalers;
mod balancers;
mod canned;
mod certificates;
mod chosen;
mod cluster_roles;
mod crash_loops;
mod cronjobs;
mod crowd;
mod daemonsets;
mod disruptions;
mod elections;
mod endpoints;
mod garbage;
mod jobs;
mod mirrors;
mod namespaces;
mod nodes;
mod quotas;
mod replicasets;
mod resource_claims;
mod service_cidrs;
mod statefulsets;
mod support;
mod token_secrets;
mod tokens;
mod volumes;
