//! What every room needs and no room owns: time, chance, back-off, draining, error
//! chains, logs and the metric registry.
//!
//! Knows nothing of Kubernetes' kinds, of the network, or of the kernel but its clock.

pub mod backoff;
pub mod clock;
pub mod drain;
pub mod error;
pub mod failpoint;
pub mod log;
pub mod metrics;
pub mod rng;
pub mod task;
pub mod time;
