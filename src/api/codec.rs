//! Encodings beside JSON.

pub mod protobuf;
mod scan;
