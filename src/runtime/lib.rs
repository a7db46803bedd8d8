//! The runtime room: containers and images on this node.
//!
//! `cri` is the contract; `oci` and `images` are the built-in runtime behind it. Knows
//! nothing of pods as API objects and never speaks to the API server.

pub mod cri;
pub mod images;
pub mod oci;

pub use oci::shim::shim_main;
pub use oci::{Runtime, RuntimeConfig};
