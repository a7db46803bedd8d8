//! The API server: from a request to the store and back, and what happened to whoever
//! watches.

pub mod admission;
pub mod aggregate;
pub mod assemble;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod cache;
pub mod change;
pub mod crd;
pub mod error;
mod expiring;
pub mod features;
pub mod flags;
pub mod flow;
pub mod identity_lease;
pub mod metrics;
mod outbound;
pub mod registry;
pub mod scheme;
pub mod serve;
mod webhook;

pub use assemble::{Config, build};
