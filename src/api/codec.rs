//! Encodings beside JSON.

pub mod protobuf;
