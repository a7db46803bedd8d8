//! How long reads wait until the watch cache has seen the newest write, under upstream's names.

use std::sync::LazyLock;
use std::time::Duration;

use base::metrics::{HistogramFamily, histograms, register};
use kinds::resources::Resource;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

const WAIT_SECONDS: [f64; 11] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    group: String,
    resource: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Read {
    fallback: bool,
    group: String,
    resource: String,
    success: bool,
}

struct Metrics {
    waits: HistogramFamily<Of>,
    reads: Family<Read, Counter>,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    waits: register(
        "apiserver_watch_cache_read_wait_seconds",
        "How long a read waited for the watch cache to become fresh",
        histograms(&WAIT_SECONDS),
    ),
    reads: register(
        "apiserver_watch_cache_consistent_read",
        "Consistent reads from the watch cache by success and fallback to the store",
        Family::default(),
    ),
});

/// A consistent list; there is no other place to read than the cache.
pub fn consistent(resource: &Resource, waited: Duration, success: bool) {
    let (group, resource) = (resource.group.clone(), resource.plural.clone());
    let of = Of { group: group.clone(), resource: resource.clone() };
    METRICS.waits.get_or_create(&of).observe(waited.as_secs_f64());
    let read = Read { fallback: false, group, resource, success };
    METRICS.reads.get_or_create(&read).inc();
}
