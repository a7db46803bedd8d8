//! `metrics.k8s.io/v1beta1`: what nodes and pods use, as metrics-server tells it.
//!
//! Fed on demand: the kubelets are asked when somebody asks, and what they said serves
//! others for a while. Nobody asks, nothing wakes.

mod object;
mod openapi;
mod sample;
mod server;

pub use openapi::document;
pub use server::MetricsServer;

use serde_json::{Value, json};

pub const GROUP: &str = "metrics.k8s.io";
pub const VERSION: &str = "v1beta1";
/// The service account that asks the kubelets, in `kube-system`.
pub const ACCOUNT: &str = "metrics-server";

/// The group's entry of aggregated discovery.
pub fn discovery() -> Value {
    let resource = |plural: &str, kind: &str, scope: &str| {
        json!({
            "resource": plural, "singularResource": "", "scope": scope, "verbs": ["get", "list"],
            "responseKind": {"group": "", "version": "", "kind": kind},
        })
    };
    json!({"version": VERSION, "resources": [
        resource("nodes", "NodeMetrics", "Cluster"),
        resource("pods", "PodMetrics", "Namespaced"),
    ]})
}
