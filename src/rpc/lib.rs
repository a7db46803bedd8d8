//! gRPC over Unix sockets, both sides: how the node speaks with drivers, plugins and
//! container runtimes.
//!
//! Calls with one request and one answer, and calls that answer with a stream. Messages are
//! structures that derive `prost::Message`, with the field numbers of their specification;
//! nothing here knows any of them. No TLS, no name resolution, no load balancing.
//!
//! It is the framing of <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
//! over the HTTP/2 that the process speaks anyway.

mod authority;
mod client;
mod deadline;
mod frame;
mod seats;
mod server;
mod status;

pub use client::{Channel, Replies};
pub use server::{Answers, Call, Routes, bind, serve};
pub use status::{Code, Status};

/// Bytes of a message that are read unless the side says otherwise; gRPC's own default.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
