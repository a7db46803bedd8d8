//! Custom resources: definitions are judged, and what they define is served by the same
//! registry as everything built in.
//!
//! A definition becomes a [`version::Custom`], which hangs on the catalog's resource; every
//! step of a request that depends on the kind asks it. Adding a kind adds no handler.

pub mod accept;
pub mod columns;
pub mod controller;
pub mod convert;
pub mod definition;
pub mod formats;
mod go_json;
pub mod hook;
pub mod instance;
pub mod jsonpath;
pub mod names;
pub mod openapi;
pub mod pattern;
pub mod rules;
pub mod scale;
pub mod schema;
mod schema_rules;
pub mod shape;
pub mod structural;
pub mod typed;
pub mod value;
pub mod version;

pub use version::{Custom, Version, of};
