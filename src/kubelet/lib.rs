//! The kubelet room: the pods of one node.

mod backoff;
mod env;
mod observed;
mod plan;
mod pod;
mod quantity;
mod resources;
mod status;
