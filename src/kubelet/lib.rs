//! The kubelet room: the pods of one node.

mod backoff;
mod config;
mod container_config;
mod env;
mod objects;
mod observed;
mod plan;
mod pod;
mod quantity;
mod resources;
mod sandbox;
mod status;
mod tokens;
mod volumes;
