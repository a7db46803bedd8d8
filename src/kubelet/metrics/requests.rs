//! The requests that the kubelet's server is sent.

use std::sync::LazyLock;
use std::time::Instant;

use base::metrics::{HistogramFamily, histograms, register};
use http::Method;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::SECONDS;
use super::pods::truth;

/// The first part of paths there are; all others are one.
const PATHS: [&str; 16] = [
    "attach",
    "checkpoint",
    "configz",
    "containerLogs",
    "debug",
    "exec",
    "flagz",
    "healthz",
    "logs",
    "metrics",
    "pods",
    "portForward",
    "run",
    "runningpods",
    "stats",
    "statusz",
];
const LONG: [&str; 4] = ["attach", "debug", "exec", "portForward"];
const OTHER: &str = "other";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    method: &'static str,
    path: &'static str,
    server_type: &'static str,
    long_running: &'static str,
}

struct Requests {
    count: Family<Kind, Counter>,
    took: HistogramFamily<Kind>,
    now: Family<Kind, Gauge>,
}

static REQUESTS: LazyLock<Requests> = LazyLock::new(|| Requests {
    count: register("kubelet_http_requests", "Requests to the kubelet's server", Family::default()),
    took: register(
        "kubelet_http_requests_duration_seconds",
        "How long requests to the kubelet's server take",
        histograms(&SECONDS),
    ),
    now: register(
        "kubelet_http_inflight_requests",
        "Requests to the kubelet's server that are being answered",
        Family::default(),
    ),
});

/// A request that is being answered, until it is dropped.
pub struct Answering {
    kind: Kind,
    begun: Instant,
}

fn kind(method: &Method, path: &str) -> Kind {
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let method = methods.into_iter().find(|it| method.as_str() == *it).unwrap_or(OTHER);
    let mut parts = path.trim_start_matches('/').split('/');
    let first = parts.next().unwrap_or_default();
    let of_metrics = [
        ("cadvisor", "metrics/cadvisor"),
        ("probes", "metrics/probes"),
        ("resource", "metrics/resource"),
    ];
    let path = match (first, parts.next()) {
        ("metrics", Some(below)) => {
            of_metrics.into_iter().find(|it| it.0 == below).map_or(OTHER, |it| it.1)
        }
        _ => PATHS.into_iter().find(|it| *it == first).unwrap_or(OTHER),
    };
    let long_running = truth(LONG.contains(&path));
    Kind { method, path, server_type: "readwrite", long_running }
}

pub fn begin(method: &Method, path: &str) -> Answering {
    let kind = kind(method, path);
    REQUESTS.count.get_or_create(&kind).inc();
    REQUESTS.now.get_or_create(&kind).inc();
    Answering { kind, begun: Instant::now() }
}

impl Drop for Answering {
    fn drop(&mut self) {
        REQUESTS.now.get_or_create(&self.kind).dec();
        let took = self.begun.elapsed().as_secs_f64();
        REQUESTS.took.get_or_create(&self.kind).observe(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_can_make_up_kinds_of_requests() {
        for (method, path, want) in [
            ("GET", "/metrics/cadvisor", ("GET", "metrics/cadvisor", "false")),
            ("GET", "/metrics/x", ("GET", OTHER, "false")),
            ("POST", "/exec/ns/pod/c", ("POST", "exec", "true")),
            ("BREW", "/pot/1", (OTHER, OTHER, "false")),
            ("GET", "/", ("GET", OTHER, "false")),
        ] {
            let kind = kind(&method.parse().unwrap(), path);
            assert_eq!((kind.method, kind.path, kind.long_running), want, "{method} {path}");
        }
    }
}
