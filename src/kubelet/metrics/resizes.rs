//! Changes of running pods' resources: what is asked for, and what becomes of it.

use std::sync::LazyLock;
use std::time::Duration;

use base::metrics::{HistogramFamily, histograms, register};
use k8s_openapi::api::core::v1::ResourceRequirements;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::pods::truth;
use crate::quantity;
use crate::resize::Allocation;

/// From ten milliseconds on, each the double.
const MILLISECONDS: [f64; 15] = [
    10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0, 5120.0, 10_240.0, 20_480.0,
    40_960.0, 81_920.0, 163_840.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    operation: &'static str,
    requirement: &'static str,
    resource: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason_detail: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Accepted {
    retry_trigger: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Done {
    success: &'static str,
}

struct Resizes {
    asked: Family<Asked, Counter>,
    infeasible: Family<Refused, Counter>,
    accepted: Family<Accepted, Counter>,
    in_progress: Gauge,
    took: HistogramFamily<Done>,
}

static RESIZES: LazyLock<Resizes> = LazyLock::new(|| Resizes {
    asked: register(
        "kubelet_container_requested_resizes",
        "Changes of containers' resources that were asked for",
        Family::default(),
    ),
    infeasible: register(
        "kubelet_pod_infeasible_resizes",
        "Changes of pods' resources that are never granted here",
        Family::default(),
    ),
    accepted: register(
        "kubelet_pod_deferred_accepted_resizes",
        "Changes of pods' resources that were granted after they had to wait, by what for",
        Family::default(),
    ),
    in_progress: register(
        "kubelet_pod_in_progress_resizes",
        "Changes of pods' resources that are granted and not done",
        Gauge::default(),
    ),
    took: register(
        "kubelet_pod_resize_duration_milliseconds",
        "How long changes of pods' resources take once they are granted",
        histograms(&MILLISECONDS),
    ),
});

/// Shows what has not happened yet as none.
pub fn begin() {
    LazyLock::force(&RESIZES);
}

/// What is asked for instead of what was granted.
pub fn asked(before: &Allocation, wanted: &Allocation) {
    for (name, wanted) in wanted {
        let none = ResourceRequirements::default();
        for labels in changes(before.get(name).unwrap_or(&none), wanted) {
            RESIZES.asked.get_or_create(&labels).inc();
        }
    }
}

fn changes(before: &ResourceRequirements, wanted: &ResourceRequirements) -> Vec<Asked> {
    let lists = [
        ("requests", &before.requests, &wanted.requests),
        ("limits", &before.limits, &wanted.limits),
    ];
    let mut out = Vec::new();
    for (requirement, before, wanted) in lists {
        for resource in ["cpu", "memory"] {
            let of = |list: &Option<quantity::ResourceList>| {
                let is_there = list.as_ref().is_some_and(|list| list.contains_key(resource));
                is_there.then(|| quantity::milli_of(list.as_ref(), resource))
            };
            let operation = match (of(before), of(wanted)) {
                (None, Some(_)) => "add",
                (Some(_), None) => "remove",
                (Some(before), Some(wanted)) if wanted > before => "increase",
                (Some(before), Some(wanted)) if wanted < before => "decrease",
                _ => continue,
            };
            out.push(Asked { operation, requirement, resource });
        }
    }
    out
}

/// `detail` in upstream's words.
pub fn is_infeasible(detail: &'static str) {
    RESIZES.infeasible.get_or_create(&Refused { reason_detail: detail }).inc();
}

/// `trigger` in upstream's words: what had the pod asked again.
pub fn accepted_after_all(trigger: &'static str) {
    RESIZES.accepted.get_or_create(&Accepted { retry_trigger: trigger }).inc();
}

/// A change that is granted and not done, until it is dropped.
#[derive(Debug)]
pub struct UnderWay(());

pub fn begun() -> UnderWay {
    RESIZES.in_progress.inc();
    UnderWay(())
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        RESIZES.in_progress.dec();
    }
}

pub fn actuated(took: Duration, succeeded: bool) {
    let labels = Done { success: truth(succeeded) };
    RESIZES.took.get_or_create(&labels).observe(took.as_secs_f64() * 1e3);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_resource_is_counted_by_what_becomes_of_it() {
        let of = |text: serde_json::Value| serde_json::from_value(text).unwrap();
        let before =
            of(json!({"requests": {"cpu": "100m", "memory": "1Mi"}, "limits": {"memory": "2Mi"}}));
        let wanted =
            of(json!({"requests": {"cpu": "0.2"}, "limits": {"cpu": "1", "memory": "1Mi"}}));
        let got: Vec<_> = changes(&before, &wanted)
            .into_iter()
            .map(|it| (it.operation, it.requirement, it.resource))
            .collect();
        let want = [
            ("increase", "requests", "cpu"),
            ("remove", "requests", "memory"),
            ("add", "limits", "cpu"),
            ("decrease", "limits", "memory"),
        ];
        assert_eq!(got, want);
        assert!(changes(&before, &before).is_empty());
    }
}
