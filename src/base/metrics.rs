//! One metric registry for the process, rendered in the OpenMetrics text format.
//!
//! Rooms register what they measure once, at start; reading is on demand.

use std::sync::OnceLock;

use parking_lot::Mutex;
use prometheus_client::registry::{Metric, Registry};

fn registry() -> &'static Mutex<Registry> {
    static REGISTRY: OnceLock<Mutex<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(|| Mutex::new(Registry::default()))
}

/// Adds `metric` under `name` and hands it back. Registering a name twice shows both.
pub fn register<M: Metric + Clone>(name: &str, help: &str, metric: M) -> M {
    registry().lock().register(name, help, metric.clone());
    metric
}

/// All metrics as text.
pub fn render() -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut out, &registry().lock());
    out
}
