//! The api room.

pub mod change;
pub mod scheme;
