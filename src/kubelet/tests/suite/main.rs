//! The kubelet with the real runtime: real containers, against an API server in memory.
#![allow(clippy::unwrap_used, reason = "tests may")]

mod admission;
mod apiserver;
mod classes;
mod containerd;
mod csi;
mod csi_driver;
mod device_plugin;
mod devices;
mod dra;
mod dra_driver;
mod eviction;
mod fields;
mod hooks;
#[path = "../../../runtime/tests/host/containerd.rs"]
mod host;
mod images;
mod metrics;
mod node;
mod placement;
mod pods;
#[path = "../../../runtime/tests/host/registry.rs"]
mod registry;
mod resize;
mod restart_all;
mod server;
mod serving;
mod settings;
mod shims;
mod shutdown;
mod trouble;
mod trust;
mod users;
mod volumes;
mod world;
