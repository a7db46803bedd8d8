//! The tests of the runtime against this kernel and a real registry, as one program.
#![allow(clippy::unwrap_used, reason = "tests may")]

mod adoption;
mod children;
mod containerd;
mod containers;
mod features;
mod forms;
mod handlers;
mod hardship;
mod hooks;
mod hostile;
mod images;
mod layers;
mod pulls;
#[path = "../host/registry.rs"]
mod registry;
mod socket;
mod unruly;
mod volumes;
mod ways;
mod world;
