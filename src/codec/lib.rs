//! Encodings, and what Go's decoders say of what they cannot read.

pub mod go_json;
pub mod owners;
pub mod protobuf;
pub mod scan;
pub mod yaml;
