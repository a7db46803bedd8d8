//! The kubelet room: the pods of one node.

mod admission;
mod backoff;
mod chore;
mod config;
mod container_config;
mod env;
mod garbage;
mod hooks;
mod images;
mod kubelet;
mod logs;
mod machine;
mod node;
mod objects;
mod observed;
mod plan;
mod pod;
mod pods;
mod probes;
mod qos;
mod quantity;
mod register;
mod resources;
mod sandbox;
mod server;
mod start;
mod staticpods;
mod status;
mod status_writer;
mod stop;
mod tokens;
mod volumes;
mod worker;

pub use config::KubeletConfig;
pub use kubelet::{Error, Kubelet};
