//! How many volumes there are and should be, and how long it takes to make them.

use std::sync::LazyLock;
use std::time::Duration;

use base::metrics::{HistogramFamily, histograms, register};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

const SECONDS: [f64; 13] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    plugin_name: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    migrated: &'static str,
    operation_name: &'static str,
    status: &'static str,
    volume_plugin: String,
}

static COUNT: LazyLock<Family<Kind, Gauge>> = LazyLock::new(|| {
    let help = "Volumes of pods that there should be, and those that there are";
    register("volume_manager_total_volumes", help, Family::default())
});

static TOOK: LazyLock<HistogramFamily<Operation>> = LazyLock::new(|| {
    let help = "How long it takes to make volumes and to take them away";
    register("storage_operation_duration_seconds", help, histograms(&SECONDS))
});

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    driver_name: String,
    grpc_status_code: String,
    method_name: String,
    migrated: &'static str,
}

static ASKED: LazyLock<HistogramFamily<Call>> = LazyLock::new(|| {
    let help = "How long drivers take for what they are asked, with the code of their answer";
    register("csi_operations_seconds", help, histograms(&SECONDS))
});

/// A driver has answered, or not in time; `outcome` is why it failed.
pub fn asked(driver: &str, method: &str, took: Duration, outcome: Option<&rpc::Status>) {
    let labels = Call {
        driver_name: driver.to_owned(),
        grpc_status_code: super::code_of(outcome),
        method_name: method.to_owned(),
        migrated: "false",
    };
    ASKED.get_or_create(&labels).observe(took.as_secs_f64());
}

/// Volumes that an earlier process left, and those of them that could not be read.
static FOUND: LazyLock<[Counter; 2]> = LazyLock::new(|| {
    [
        register(
            "reconstruct_volume_operations",
            "Volumes of before the kubelet's start that were looked for",
            Counter::default(),
        ),
        register(
            "reconstruct_volume_operations_errors",
            "Volumes of before the kubelet's start that could not be read",
            Counter::default(),
        ),
    ]
});

/// So many volumes lay in the directories of pods when the kubelet began.
pub fn found(all: u64, unreadable: u64) {
    FOUND[0].inc_by(all);
    FOUND[1].inc_by(unreadable);
}

fn count(plugin: &str, state: &'static str) -> Gauge {
    COUNT.get_or_create(&Kind { plugin_name: plugin.to_owned(), state }).clone()
}

/// Volumes that pods want, `more` or less of them.
pub fn wanted(plugin: &str, more: i64) {
    count(plugin, "desired_state_of_world").inc_by(more);
}

/// Volumes that are there.
pub fn there(plugin: &str, more: i64) {
    count(plugin, "actual_state_of_world").inc_by(more);
}

/// `operation_name` is `volume_mount`, `map_volume` or `volume_unmount`.
pub fn done(plugin: &str, operation_name: &'static str, took: Duration, failed: bool) {
    let labels = Operation {
        migrated: "false",
        operation_name,
        status: if failed { "fail-unknown" } else { "success" },
        volume_plugin: plugin.to_owned(),
    };
    TOOK.get_or_create(&labels).observe(took.as_secs_f64());
}
