//! The pods of the measures, and how they come to be.

use client::Client;
use futures::{StreamExt, stream};
use http::Request;
use serde_json::{Value, json};

/// Requests under way at a time.
const AT_ONCE: usize = 32;
/// Pods of one group keep apart from each other.
const APART: usize = 100;

/// What pods ask of the scheduler, beyond room.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Plain,
    /// Evenly over the zones, and it must be so.
    Spread,
    /// In one zone with others of its label.
    Affinity,
    /// On no node with another of its group.
    Anti,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Plain, Self::Spread, Self::Affinity, Self::Anti];

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Spread => "spread",
            Self::Affinity => "affinity",
            Self::Anti => "anti-affinity",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub fn pod(self, number: usize) -> Value {
        let group = match self {
            Self::Anti => number / APART,
            Self::Plain | Self::Spread | Self::Affinity => 0,
        };
        let group = format!("g{group}");
        let mut spec = spec();
        let terms = |key: &str| {
            json!({"requiredDuringSchedulingIgnoredDuringExecution": [{
                "topologyKey": key, "labelSelector": {"matchLabels": {"group": group}}}]})
        };
        match self {
            Self::Plain => {}
            Self::Spread => {
                spec["topologySpreadConstraints"] = json!([{
                    "maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone",
                    "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": {"matchLabels": {"group": group}}}]);
            }
            Self::Affinity => {
                let key = "topology.kubernetes.io/zone";
                spec["affinity"] = json!({"podAffinity": terms(key)});
            }
            Self::Anti => {
                let key = "kubernetes.io/hostname";
                spec["affinity"] = json!({"podAntiAffinity": terms(key)});
            }
        }
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("p{number}"), "labels": {"group": group}}, "spec": spec})
    }
}

pub fn spec() -> Value {
    json!({"containers": [{"name": "c", "image": "registry.example.com/pause:3.10",
        "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}]})
}

pub fn deployment(name: &str, replicas: usize, spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec}}})
}

/// Sends requests with bodies, many at once.
pub async fn send(
    client: &Client,
    method: http::Method,
    all: impl Iterator<Item = (String, Value)>,
) {
    let kind = match method {
        http::Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    stream::iter(all)
        .for_each_concurrent(AT_ONCE, |(path, body)| {
            let request = Request::builder()
                .method(method.clone())
                .uri(&path)
                .header("content-type", kind)
                .body(body.to_string().into())
                .unwrap();
            async move {
                if let Err(error) = client.request(request).await {
                    panic!("{path}: {error}");
                }
            }
        })
        .await;
}
