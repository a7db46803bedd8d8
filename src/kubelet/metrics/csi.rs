//! Calls of CSI drivers.

use std::sync::LazyLock;
use std::time::Duration;

use base::metrics::{HistogramFamily, histograms, register};
use prometheus_client::encoding::EncodeLabelSet;

const SECONDS: [f64; 13] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    driver_name: String,
    method_name: String,
    grpc_status_code: String,
    migrated: &'static str,
}

static CALLS: LazyLock<HistogramFamily<Call>> = LazyLock::new(|| {
    let help = "How long calls of CSI drivers take, by how they end";
    register("csi_operations_seconds", help, histograms(&SECONDS))
});

/// `method` is `/SERVICE/METHOD`.
pub fn called(driver: &str, method: &str, took: Duration, outcome: Option<&rpc::Status>) {
    let labels = Call {
        driver_name: driver.to_owned(),
        method_name: method.to_owned(),
        grpc_status_code: super::code_of(outcome),
        migrated: "false",
    };
    CALLS.get_or_create(&labels).observe(took.as_secs_f64());
}
