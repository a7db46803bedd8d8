//! The taints a node should have, and when its pods must go. Pure.

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Condition, the status that is bad, and its taint.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind).map(|c| c.status.as_str())
}

pub fn taints_of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// Whether a node that is down may evict its pods now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evict {
    Now,
    /// If it does already.
    Wait,
    Never,
}

/// What the node lost: it said once that it is ready, or not, and is not now.
pub fn is_down(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|status| status != "True")
}

pub fn evicts(node: &Node) -> bool {
    let executes =
        |t: &Taint| (t.key == NOT_READY || t.key == UNREACHABLE) && t.effect == "NoExecute";
    taints_of(node).iter().any(executes)
}

/// All taints the node should have, None where it has them.
pub fn taints(node: &Node, evict: Evict, now: Timestamp) -> Option<Vec<Taint>> {
    let evict = match evict {
        Evict::Now => true,
        Evict::Wait => evicts(node),
        Evict::Never => false,
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, bad, key) in BY_CONDITION {
        // A node that has never said anything is as good as not ready.
        let status = condition(node, kind).or((kind == "Ready").then_some("False"));
        if status == Some(bad) {
            wanted.push((key, "NoSchedule"));
            if kind == "Ready" && evict && is_down(node) {
                wanted.push((key, "NoExecute"));
            }
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |taint: &Taint| {
        let known =
            BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key) || taint.key == UNSCHEDULABLE;
        let executes = taint.key == NOT_READY || taint.key == UNREACHABLE;
        known && (taint.effect == "NoSchedule" || (taint.effect == "NoExecute" && executes))
    };
    let held = taints_of(node);
    let matches =
        |taint: &Taint, (key, effect): &(&str, &str)| taint.key == *key && taint.effect == *effect;
    let stays = |taint: &&Taint| !ours(taint) || wanted.iter().any(|want| matches(taint, want));
    let mut out: Vec<Taint> = held.iter().filter(stays).cloned().collect();
    for want in &wanted {
        if !out.iter().any(|taint| matches(taint, want)) {
            out.push(Taint {
                key: want.0.into(),
                effect: want.1.into(),
                time_added: Some(Time(Timestamp::from_second(now.as_second()).unwrap_or(now))),
                value: None,
            });
        }
    }
    (out.as_slice() != held).then_some(out)
}

/// Whether and when a pod must leave a node with these taints.
#[derive(Debug, PartialEq, Eq)]
pub enum Stay {
    Forever,
    Seconds(i64),
    Leave,
}

/// `seen` is when the pod was first found to have to go, for taints that do not say when
/// they came.
pub fn stay(pod: &Pod, taints: &[Taint], seen: i64, now: i64) -> Stay {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut out: Option<i64> = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let fitting: Vec<&Toleration> =
            tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        if fitting.is_empty() {
            return Stay::Leave;
        }
        let since = taint.time_added.as_ref().map_or(seen, |time| time.0.as_second());
        let limits = fitting.iter().filter_map(|toleration| toleration.toleration_seconds);
        if let Some(seconds) = limits.min() {
            let left = since.saturating_add(seconds.max(0)).saturating_sub(now);
            out = Some(out.map_or(left, |other| other.min(left)));
        }
    }
    match out {
        None => Stay::Forever,
        Some(..=0) => Stay::Leave,
        Some(left) => Stay::Seconds(left),
    }
}

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (given(&toleration.effect), given(&toleration.key));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref().unwrap_or("Equal") {
            "Exists" => true,
            "Equal" | "" => !key.is_empty() && given(&toleration.value) == given(&taint.value),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(ready: &str, taints: serde_json::Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
        .expect("a node")
    }

    fn check(ready: &str, held: serde_json::Value, want: Option<&[(&str, &str)]>) {
        check_with(ready, Evict::Now, held, want);
    }

    #[track_caller]
    fn check_with(
        ready: &str,
        evict: Evict,
        held: serde_json::Value,
        want: Option<&[(&str, &str)]>,
    ) {
        let now = base::time::parse("2026-01-01T00:00:00Z").expect("a time");
        let taints = taints(&node(ready, held), evict, now);
        let seen: Option<Vec<(&str, &str)>> =
            taints.as_ref().map(|t| t.iter().map(|t| (&*t.key, &*t.effect)).collect());
        assert_eq!(seen.as_deref(), want, "{ready}");
    }

    #[test]
    fn taints_follow_conditions() {
        check("True", json!([]), None);
        let both: &[_] = &[(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")];
        check("Unknown", json!([]), Some(both));
        let both: &[_] = &[(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")];
        check("False", json!([{"key": UNREACHABLE, "effect": "NoExecute"}]), Some(both));
        let mine = json!([{"key": "a", "effect": "NoExecute"},
            {"key": NOT_READY, "effect": "NoSchedule"}]);
        check("True", mine, Some(&[("a", "NoExecute")]));
        // Pods are evicted when it is the node's turn; a node that began goes on.
        let only: &[_] = &[(UNREACHABLE, "NoSchedule")];
        check_with("Unknown", Evict::Wait, json!([]), Some(only));
        let not_ready = json!([{"key": NOT_READY, "effect": "NoExecute"}]);
        let both: &[_] = &[(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")];
        check_with("Unknown", Evict::Wait, not_ready.clone(), Some(both));
        check_with("Unknown", Evict::Never, not_ready, Some(only));
    }

    #[test]
    fn pods_stay_as_long_as_they_tolerate() {
        let pod = |tolerations: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [],
                "tolerations": tolerations}}))
            .expect("a pod")
        };
        let taint = [Taint {
            key: NOT_READY.into(),
            effect: "NoExecute".into(),
            time_added: Some(Time(Timestamp::from_second(1000).unwrap())),
            value: None,
        }];
        assert_eq!(stay(&pod(json!([])), &taint, 1000, 1000), Stay::Leave);
        assert_eq!(stay(&pod(json!([{"operator": "Exists"}])), &taint, 1000, 1000), Stay::Forever);
        let some = json!([{"key": NOT_READY, "operator": "Exists", "tolerationSeconds": 300}]);
        assert_eq!(stay(&pod(some.clone()), &taint, 1100, 1100), Stay::Seconds(200));
        assert_eq!(stay(&pod(some.clone()), &taint, 1300, 1300), Stay::Leave);
        // Whoever taints a node by hand does not say when.
        let mut by_hand = taint.clone();
        by_hand[0].time_added = None;
        assert_eq!(stay(&pod(some.clone()), &by_hand, 1000, 1100), Stay::Seconds(200));
        assert_eq!(stay(&pod(some), &by_hand, 1000, 1300), Stay::Leave);
    }
}
