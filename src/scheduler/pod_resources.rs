//! What each pod asks for and may use at most, as kube-scheduler tells it at
//! `/metrics/resources`. Pure.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use base::metrics::Format;
use k8s_openapi::api::core::v1::Pod;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::resources::{Resources, limits_of, requests_of};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    namespace: String,
    pod: String,
    node: String,
    scheduler: String,
    priority: String,
    resource: String,
    unit: &'static str,
}

type Amounts = Family<Labels, Gauge<f64, AtomicU64>>;

/// Pods that have finished on their node are left out, and so is what is nothing.
pub fn render(pods: &[Arc<Pod>], format: Format) -> String {
    let (requests, limits) = (Amounts::default(), Amounts::default());
    for pod in pods {
        let spec = pod.spec.as_ref();
        let node = spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if !node.is_empty() && matches!(phase, Some("Succeeded" | "Failed")) {
            continue;
        }
        note(&requests, pod, node, &requests_of(pod).asked);
        note(&limits, pod, node, &limits_of(pod));
    }
    let mut registry = Registry::default();
    let about = "broken down by pod. This shows the resource usage the scheduler and kubelet \
                 expect per pod for resources along with the unit for the resource if any";
    registry.register(
        "kube_pod_resource_request",
        format!("Resources requested by workloads on the cluster, {about}"),
        requests,
    );
    registry.register(
        "kube_pod_resource_limit",
        format!("Resources limit for workloads on the cluster, {about}"),
        limits,
    );
    base::metrics::render_of(&registry, format)
}

fn note(to: &Amounts, pod: &Pod, node: &str, amounts: &Resources) {
    let spec = pod.spec.as_ref();
    let named = [
        ("cpu", amounts.cpu as f64 / 1_000.0),
        ("memory", amounts.memory as f64),
        ("ephemeral-storage", amounts.storage as f64),
    ];
    let others = amounts.other.iter().map(|(name, amount)| (name.as_str(), *amount as f64));
    for (resource, amount) in named.into_iter().chain(others).filter(|(_, it)| *it != 0.0) {
        let labels = Labels {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
            node: node.to_owned(),
            scheduler: spec.and_then(|spec| spec.scheduler_name.clone()).unwrap_or_default(),
            priority: spec
                .and_then(|spec| spec.priority)
                .map(|it| it.to_string())
                .unwrap_or_default(),
            resource: resource.to_owned(),
            unit: unit(resource),
        };
        to.get_or_create_owned(&labels).set(amount);
    }
}

fn unit(resource: &str) -> &'static str {
    match resource {
        "cpu" => "cores",
        "memory" | "storage" | "ephemeral-storage" => "bytes",
        _ if resource.starts_with("hugepages-") => "bytes",
        _ if resource.starts_with("attachable-volumes-") => "integer",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn lines(pod: &Value) -> Vec<String> {
        let pod = Arc::new(serde_json::from_value(pod.clone()).unwrap());
        let text = render(&[pod], Format::Prometheus);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let short = |line: &str| line.replace("kube_pod_resource_", "");
        lines.map(short).collect()
    }

    #[test]
    fn each_resource_of_a_pod_is_told_with_its_unit() {
        let pod = |node: &str, phase: &str| {
            json!({
                "metadata": {"name": "web", "namespace": "shop"},
                "spec": {
                    "nodeName": node, "schedulerName": "default-scheduler", "priority": 7,
                    "overhead": {"cpu": "100m", "memory": "1Ki"},
                    "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}}}],
                    "containers": [
                        {"name": "a", "resources": {
                            "requests": {"cpu": "500m", "example.com/gpu": "2"},
                            "limits": {"memory": "1Mi", "example.com/gpu": "2"}}},
                        {"name": "b", "resources": {"limits": {"memory": "1Mi"}}},
                    ],
                },
                "status": {"phase": phase},
            })
        };
        let labels = |node: &str, resource: &str, unit: &str| {
            format!(
                "{{namespace=\"shop\",pod=\"web\",node=\"{node}\",scheduler=\"default-scheduler\",\
                 priority=\"7\",resource=\"{resource}\",unit=\"{unit}\"}}"
            )
        };
        let mut found = lines(&pod("n1", "Running"));
        found.sort();
        let mut want = vec![
            // Overhead is added to limits that there are.
            format!("limit{} 2098176.0", labels("n1", "memory", "bytes")),
            format!("limit{} 2.0", labels("n1", "example.com/gpu", "")),
            format!("request{} 1.1", labels("n1", "cpu", "cores")),
            format!("request{} 1024.0", labels("n1", "memory", "bytes")),
            format!("request{} 2.0", labels("n1", "example.com/gpu", "")),
        ];
        want.sort();
        assert_eq!(found, want);
        assert!(lines(&pod("n1", "Succeeded")).is_empty(), "who has finished uses nothing");
        assert_eq!(lines(&pod("", "Pending")).len(), 5);
    }
}
