//! The runtime room: containers and images on this node.

pub mod cri;
