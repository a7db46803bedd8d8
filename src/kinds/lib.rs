//! The built-in kinds as data: which resources there are and the rules of each kind.
//!
//! Everything here is pure: no IO, no clock of its own, no knowledge of requests.

pub mod apps;
pub mod core;
pub mod features;
pub mod meta;
pub mod policy;
pub mod quota;
pub mod resources;
pub mod rules;
pub mod table;
pub mod validate;
pub(crate) mod value;
pub mod warnings;
