//! Who goes first when the node runs short, and what is said about it: pure.
//!
//! First those that use more than they asked for, then the less important, then those
//! that are furthest above their requests (upstream's ranking).

use std::cmp::Reverse;

use k8s_openapi::api::core::v1::Pod;

use super::thresholds::Signal;
use crate::pod;
use crate::quantity;
use crate::resources;
use crate::usage::PodUsage;

const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// A pod that could be evicted, and what it uses; None where nothing is known.
pub struct Candidate<'a> {
    pub pod: &'a Pod,
    pub usage: Option<&'a PodUsage>,
}

/// Critical pods are never evicted: the node would be worse off without them.
pub fn is_critical(pod: &Pod) -> bool {
    pod::is_static(pod)
        || pod::is_mirror(pod)
        || pod::spec(pod).priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL_PRIORITY)
}

/// What all of a pod uses of the signal's resource, in bytes or pieces.
fn used(usage: &PodUsage, signal: Signal) -> u64 {
    match signal {
        Signal::PidAvailable => usage.stats.usage.processes,
        _ => match signal.resource() {
            "memory" => usage.stats.usage.memory_working_set_bytes,
            "inodes" => usage.ephemeral_storage().inodes,
            _ => usage.ephemeral_storage().bytes,
        },
    }
}

fn requested(pod: &Pod, signal: Signal) -> u64 {
    let bytes = |name| u64::try_from(resources::pod_request_milli(pod, name) / 1000).unwrap_or(0);
    match signal.resource() {
        name @ ("memory" | "ephemeral-storage") => bytes(name),
        // Nobody asks for inodes or processes.
        _ => 0,
    }
}

/// Sorts the pods so that the first is to go first.
pub fn rank(candidates: &mut [Candidate<'_>], signal: Signal) {
    candidates.sort_by_key(|it| {
        let (used, asked) = (it.usage.map(|it| used(it, signal)), requested(it.pod, signal));
        let priority = pod::spec(it.pod).priority.unwrap_or(0);
        // What cannot be measured counts as the worst.
        let above = used.map_or(i128::MAX, |used| i128::from(used) - i128::from(asked));
        let exceeds = signal != Signal::PidAvailable && above > 0;
        (Reverse(exceeds), priority, Reverse(above))
    });
}

/// Bytes as upstream prints them: in Ki where they are a multiple.
pub fn binary(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["", "Ki", "Mi", "Gi", "Ti"];
    let (mut value, mut unit) = (bytes, 0);
    while value != 0 && value.is_multiple_of(1024) && unit + 1 < UNITS.len() {
        value /= 1024;
        unit += 1;
    }
    format!("{value}{}", UNITS[unit])
}

/// The message of the pod's status and of the event.
pub fn message(
    candidate: &Candidate<'_>,
    signal: Signal,
    threshold: &str,
    available: u64,
) -> String {
    let resource = signal.resource();
    let shown = |amount: u64| match resource {
        "memory" | "ephemeral-storage" => binary(amount),
        _ => amount.to_string(),
    };
    let mut out = format!(
        "The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {}. ",
        shown(available)
    );
    let Some(usage) = candidate.usage else { return out };
    for container in &usage.containers {
        let spec = pod::container(candidate.pod, &container.name).map(|(_, spec)| spec);
        let requests = spec.and_then(|spec| spec.resources).and_then(|it| it.requests);
        let used = match resource {
            "memory" => container.stats.usage.memory_working_set_bytes,
            "ephemeral-storage" => {
                let layer = container.stats.writable_layer.unwrap_or_default();
                layer.bytes + container.logs.unwrap_or_default().bytes
            }
            _ => continue,
        };
        let asked = u64::try_from(quantity::value_of(requests.as_ref(), resource)).unwrap_or(0);
        if used > asked {
            out.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
                container.name,
                binary(used),
                requests
                    .as_ref()
                    .and_then(|all| all.get(resource))
                    .map_or_else(|| "0".to_owned(), |it| it.0.clone()),
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::ContainerUsage;
    use runtime::cri::{ContainerStats, GroupUsage, SandboxStats};
    use serde_json::json;

    fn memory(bytes: u64) -> GroupUsage {
        GroupUsage {
            memory_working_set_bytes: bytes,
            processes: bytes >> 20,
            ..GroupUsage::default()
        }
    }

    fn usage(bytes: u64) -> PodUsage {
        PodUsage {
            name: "web".into(),
            namespace: "default".into(),
            uid: "uid-1".into(),
            created_at: 0,
            cpu_nano_cores: None,
            stats: SandboxStats { usage: memory(bytes), ..SandboxStats::default() },
            containers: vec![ContainerUsage {
                name: "a".into(),
                image: String::new(),
                started_at: 0,
                cpu_nano_cores: None,
                stats: ContainerStats { usage: memory(bytes), ..ContainerStats::default() },
                logs: None,
            }],
            volumes: vec![],
        }
    }

    fn asks(name: &str, request: &str, priority: i32) -> Pod {
        let mut pod = crate::pod::samples::pod(json!({"priority": priority, "containers": [
            {"name": "a", "resources": {"requests": {"memory": request}}}]}));
        pod.metadata.name = Some(name.into());
        pod
    }

    #[test]
    fn those_above_their_requests_go_first_then_the_less_important_then_the_largest() {
        let (small, large) = (usage(10 << 20), usage(100 << 20));
        let pods = [
            asks("within", "1Gi", 0),
            asks("important", "1Mi", 10),
            asks("little-above", "1Mi", 0),
            asks("far-above", "1Mi", 0),
            asks("unknown", "1Mi", 0),
        ];
        let of = [Some(&large), Some(&large), Some(&small), Some(&large), None];
        let mut candidates: Vec<Candidate<'_>> =
            pods.iter().zip(of).map(|(pod, usage)| Candidate { pod, usage }).collect();
        let order = |candidates: &[Candidate<'_>]| -> Vec<String> {
            candidates.iter().map(|it| pod::name(it.pod).to_owned()).collect()
        };
        rank(&mut candidates, Signal::MemoryAvailable);
        assert_eq!(
            order(&candidates),
            ["unknown", "far-above", "little-above", "important", "within"]
        );
        rank(&mut candidates, Signal::PidAvailable);
        assert_eq!(order(&candidates).last().unwrap(), "important");
    }

    #[test]
    fn the_message_names_what_was_used_and_asked_for() {
        let (pod, usage) = (asks("web", "1Mi", 0), usage(10 << 20));
        let candidate = Candidate { pod: &pod, usage: Some(&usage) };
        assert_eq!(
            message(&candidate, Signal::MemoryAvailable, "100Mi", 52_428_800),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container a was using 10Mi, request is 1Mi, has larger consumption of memory. "
        );
        assert_eq!([binary(0), binary(1536), binary(1 << 30)], ["0", "1536", "1Gi"]);
    }
}
