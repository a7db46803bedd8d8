//! What the API server knows about kinds: their fields, and the documents that describe them.
//!
//! `schema` is the table of types, `shape` checks and normalises objects with it, `discovery`
//! and `openapi` write what clients read. Nothing here knows requests or storage.

pub mod discovery;
mod enums;
mod go_time;
pub mod openapi;
pub mod openapi_proto;
pub mod schema;
pub mod shape;
pub mod words;

pub use schema::{Class, Field, List, ListKind, Object, Schema, Type, TypeId, Typed};
