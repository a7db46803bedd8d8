//! Gives every pending pod a node.
//!
//! Observes nodes and pods through shared caches, plans purely (filter, score, pick) and
//! applies one binding per pod. Talks to nothing but the API server; starts nothing.

mod bind;
#[cfg(test)]
mod cases;
mod classes;
mod config;
mod cycle;
mod devices;
mod extend;
mod facts;
mod filter;
mod keys;
mod line;
mod look;
mod metrics;
mod plan;
mod pod;
mod pod_resources;
mod preempt;
mod profile;
mod resources;
mod run;
mod score;
mod snapshot;
mod state;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use config::{CONTENT_TYPES, Config, Connection};
pub use cycle::{Decision, Outcome};
pub use facts::Caches;
pub use run::Scheduler;
pub use state::State;
