//! The kubelet with the real runtime: real containers, against an API server in memory.

mod apiserver;
mod pods;
mod server;
mod world;
