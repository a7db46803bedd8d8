//! The whole product as its users meet it: the real executable, the real kubectl, real
//! containers, on machines that the tests make themselves.
#![allow(clippy::unwrap_used, reason = "tests may")]

mod agent;
mod apart;
mod bad_days;
mod boot;
mod clients;
mod cluster;
mod containerd;
mod crowd;
mod disks;
mod explain;
#[cfg(debug_assertions)]
mod failpoints;
mod figures;
mod hollow;
mod identity;
mod images;
mod install;
mod labs;
mod machine;
mod restart;
mod rust_client;
mod story;
mod syllabus;
mod trust;
