//! What the kubelet measures of its own work, under upstream's names.
//!
//! Counted where it happens; shown with the process' other metrics under `/metrics`.

use std::sync::LazyLock;
use std::time::Duration;

use base::metrics::{HistogramFamily, histograms, register};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

pub mod certificates;
pub mod node;
pub mod operations;
pub mod pods;
pub mod requests;
pub mod resizes;
pub mod selinux;
pub mod standing;
pub mod volumes;

use pods::truth;

/// Prometheus' usual ones.
const SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const PULL_SECONDS: [f64; 15] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0,
    3600.0,
];
/// From a tenth of a second to the longest that a driver may take, each the same factor longer.
const CLAIM_SECONDS: [f64; 15] =
    [0.1, 0.171, 0.294, 0.504, 0.864, 1.48, 2.54, 4.36, 7.47, 12.8, 22.0, 37.7, 64.6, 110.8, 190.0];

const MB: u64 = 1 << 20;
const GB: u64 = 1 << 30;
/// Sizes from which on an image has the name.
const IMAGE_SIZES: [(u64, &str); 12] = [
    (0, "0-10MB"),
    (10 * MB, "10MB-100MB"),
    (100 * MB, "100MB-500MB"),
    (500 * MB, "500MB-1GB"),
    (GB, "1GB-5GB"),
    (5 * GB, "5GB-10GB"),
    (10 * GB, "10GB-20GB"),
    (20 * GB, "20GB-30GB"),
    (30 * GB, "30GB-40GB"),
    (40 * GB, "40GB-60GB"),
    (60 * GB, "60GB-100GB"),
    (100 * GB, "GT100GB"),
];
/// The driver that stands for all of them.
const ANY_DRIVER: &str = "<any>";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSize {
    image_size_in_bytes: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPlugin {
    plugin_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfHash {
    hash: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResource {
    resource_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation_name: &'static str,
    is_error: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    driver_name: String,
    method_name: String,
    grpc_status_code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDriver {
    driver_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Socket {
    socket_path: String,
    state: &'static str,
}

struct All {
    pulls: HistogramFamily<OfSize>,
    provider_seconds: HistogramFamily<OfPlugin>,
    /// A counter whose name has no `_total`.
    provider_errors: Family<OfPlugin, Gauge>,
    provider_config: Family<OfHash, Gauge>,
    registrations: Family<OfResource, Counter>,
    allocations: HistogramFamily<OfResource>,
    operations: HistogramFamily<Operation>,
    calls: HistogramFamily<Call>,
    claims: Family<OfDriver, Gauge>,
    sockets: Family<Socket, Gauge>,
}

static ALL: LazyLock<All> = LazyLock::new(|| All {
    pulls: register(
        "kubelet_image_pull_duration_seconds",
        "How long pulls of images take, by the image's size",
        histograms(&PULL_SECONDS),
    ),
    provider_seconds: register(
        "kubelet_credential_provider_plugin_duration",
        "Seconds that a credential provider plugin takes",
        histograms(&SECONDS),
    ),
    provider_errors: register(
        "kubelet_credential_provider_plugin_errors",
        "Calls of a credential provider plugin that failed",
        Family::default(),
    ),
    provider_config: register(
        "kubelet_credential_provider_config_info",
        "The configuration of credential providers that was read last",
        Family::default(),
    ),
    registrations: register(
        "kubelet_device_plugin_registration",
        "Registrations of device plugins, by resource",
        Family::default(),
    ),
    allocations: register(
        "kubelet_device_plugin_alloc_duration_seconds",
        "How long a device plugin takes to allocate, by resource",
        histograms(&SECONDS),
    ),
    operations: register(
        "dra_operations_duration_seconds",
        "How long it takes to prepare or unprepare all claims of a pod",
        histograms(&CLAIM_SECONDS),
    ),
    calls: register(
        "dra_grpc_operations_duration_seconds",
        "How long drivers of dynamic resources take, by method and outcome",
        histograms(&CLAIM_SECONDS),
    ),
    claims: register(
        "dra_resource_claims_in_use",
        "Claims that pods of this node use, by driver",
        Family::default(),
    ),
    sockets: register(
        "plugin_manager_total_plugins",
        "Sockets of plugins that are there, and those that are registered",
        Family::default(),
    ),
});

fn size_of(bytes: u64) -> &'static str {
    if bytes == 0 {
        return "N/A";
    }
    let fitting = IMAGE_SIZES.iter().rev().find(|(from, _)| bytes > *from);
    fitting.map_or(IMAGE_SIZES[0].1, |(_, name)| name)
}

pub fn image_pulled(bytes: u64, took: Duration) {
    let labels = OfSize { image_size_in_bytes: size_of(bytes) };
    ALL.pulls.get_or_create(&labels).observe(took.as_secs_f64());
}

pub fn provider_called(plugin: &str, took: Duration, failed: bool) {
    let labels = OfPlugin { plugin_name: plugin.to_owned() };
    ALL.provider_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    let errors = ALL.provider_errors.get_or_create(&labels);
    errors.inc_by(i64::from(failed));
}

/// A configuration of credential providers was read; `hash` is of all its files.
pub fn providers_read(hash: &str) {
    ALL.provider_config.clear();
    ALL.provider_config.get_or_create(&OfHash { hash: hash.to_owned() }).set(1);
}

pub fn device_plugin_registered(resource: &str) {
    let labels = OfResource { resource_name: resource.to_owned() };
    ALL.registrations.get_or_create(&labels).inc();
}

pub fn devices_allocated(resource: &str, took: Duration) {
    let labels = OfResource { resource_name: resource.to_owned() };
    ALL.allocations.get_or_create(&labels).observe(took.as_secs_f64());
}

/// `PrepareResources` or `UnprepareResources` of a pod's claims.
pub fn claims_handled(operation_name: &'static str, took: Duration, failed: bool) {
    let labels = Operation { operation_name, is_error: truth(failed) };
    ALL.operations.get_or_create(&labels).observe(took.as_secs_f64());
}

/// The code that means success is written in capitals, as Go does.
fn code_of(outcome: Option<&rpc::Status>) -> String {
    outcome.map_or("OK".to_owned(), |status| format!("{:?}", status.code))
}

/// `method` is `/SERVICE/METHOD`.
pub fn driver_called(driver: &str, method: &str, took: Duration, outcome: Option<&rpc::Status>) {
    let labels = Call {
        driver_name: driver.to_owned(),
        method_name: method.to_owned(),
        grpc_status_code: code_of(outcome),
    };
    ALL.calls.get_or_create(&labels).observe(took.as_secs_f64());
}

/// How many claims are in use, and how many of them each driver has a part in.
pub fn claims_in_use<'a>(count: usize, drivers: impl Iterator<Item = (&'a str, usize)>) {
    let set = |name: &str, count: usize| {
        let labels = OfDriver { driver_name: name.to_owned() };
        ALL.claims.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    };
    ALL.claims.clear();
    set(ANY_DRIVER, count);
    drivers.for_each(|(name, count)| set(name, count));
}

/// What is known of a socket in the directory of plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketState {
    Gone,
    There,
    Registered,
}

pub fn plugin_socket(path: &std::path::Path, now: SocketState) {
    for (state, holds) in [
        ("desired_state_of_world", now != SocketState::Gone),
        ("actual_state_of_world", now == SocketState::Registered),
    ] {
        let labels = Socket { socket_path: path.display().to_string(), state };
        if holds {
            ALL.sockets.get_or_create(&labels).set(1);
        } else {
            ALL.sockets.remove(&labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_the_sizes_of_upstream() {
        for (bytes, want) in [
            (0, "N/A"),
            (1, "0-10MB"),
            (10 * MB, "0-10MB"),
            (10 * MB + 1, "10MB-100MB"),
            (3 * GB, "1GB-5GB"),
            (200 * GB, "GT100GB"),
        ] {
            assert_eq!(size_of(bytes), want, "{bytes}");
        }
    }
}
