//! The kubelet room: the pods of one node.

mod admission;
mod backoff;
mod config;
mod container_config;
mod env;
mod hooks;
mod images;
mod logs;
mod machine;
mod node;
mod objects;
mod observed;
mod plan;
mod pod;
mod pods;
mod probes;
mod quantity;
mod resources;
mod sandbox;
mod start;
mod status;
mod status_writer;
mod stop;
mod tokens;
mod volumes;
mod worker;
