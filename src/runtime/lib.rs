//! The runtime room: containers and images on this node.
//!
//! `cri` is the contract; `oci` and `images` are the built-in runtime behind it, which
//! `offer` shows on a socket; `remote` is the client of somebody else's. `wire` has the
//! messages of both, `translate` what they mean, `streaming` the connections of exec, attach
//! and port-forward. Knows nothing of pods as API objects and never speaks to the API server.

pub mod cri;
pub mod figures;
pub mod images;
pub mod oci;
pub mod offer;
pub mod remote;
pub mod streaming;
mod translate;
pub mod wire;

pub use oci::shim::shim_main;
pub use oci::{Runtime, RuntimeConfig};
