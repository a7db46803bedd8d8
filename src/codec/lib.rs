//! Encodings, and what Go's decoders say of what they cannot read.

pub mod fields;
pub mod go_json;
pub mod protobuf;
pub mod scan;
pub mod yaml;
