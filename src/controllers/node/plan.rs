//! The taints a node should have, and when its pods must go. Pure.

use std::collections::BTreeMap;

use client::fit::tolerates;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use crate::pod;

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

/// Names that labels had before v1.14; manifests still select by them.
const OLD_LABELS: [(&str, &str); 2] = [
    ("kubernetes.io/os", "beta.kubernetes.io/os"),
    ("kubernetes.io/arch", "beta.kubernetes.io/arch"),
];

/// Labels of old names that do not say what those of today do.
pub fn old_labels(node: &Node) -> BTreeMap<&'static str, &str> {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let wrong = OLD_LABELS.into_iter().filter_map(|(key, old)| {
        let value = label(key)?;
        (label(old) != Some(value)).then_some((old, value.as_str()))
    });
    wrong.collect()
}

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

/// Taints that throw pods out, each with the seconds it had been there when it was first seen,
/// and when that was. From then on the clock that is never set counts.
#[derive(Debug, Default)]
pub struct Seen(Vec<(Taint, i64, Instant)>);

impl Seen {
    /// The taints as they are now, and the age of each in seconds. A time that lies ahead was
    /// written before the clock was set back: how long the taint is there nobody knows.
    pub fn look(&mut self, taints: &[Taint], now: Timestamp) -> Vec<(Taint, i64)> {
        let executes = |taint: &&Taint| taint.effect == "NoExecute";
        self.0.retain(|(held, ..)| taints.contains(held));
        for taint in taints.iter().filter(executes) {
            if !self.0.iter().any(|(held, ..)| held == taint) {
                let since = taint.time_added.as_ref().map_or(now, |time| time.0);
                let age = now.as_second().saturating_sub(since.as_second()).max(0);
                self.0.push((taint.clone(), age, Instant::now()));
            }
        }
        let age = |(taint, before, seen): &(Taint, i64, Instant)| {
            let since = i64::try_from(seen.elapsed().as_secs()).unwrap_or(i64::MAX);
            (taint.clone(), before.saturating_add(since))
        };
        self.0.iter().map(age).collect()
    }
}

/// Whether and when a pod must leave a node with these taints.
#[derive(Debug, PartialEq, Eq)]
pub enum Stay {
    Forever,
    Seconds(i64),
    Leave,
}

/// Seconds since the pod was bound to its node; None where nobody knows, as after the clock
/// was set back.
fn bound_for(pod: &Pod, now: Timestamp) -> Option<i64> {
    let bound = pod::condition(pod, "PodScheduled").filter(|c| c.status == "True")?;
    let since = bound.last_transition_time.as_ref()?.0;
    Some(now.as_second() - since.as_second()).filter(|seconds| *seconds >= 0)
}

/// `taints`: those that throw pods out, and the seconds since they came. Whoever came after a
/// taint bears it since then. Of several tolerations of a taint the first counts.
pub fn stay(pod: &Pod, taints: &[(Taint, i64)], now: Timestamp) -> Stay {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let bound = bound_for(pod, now).unwrap_or(i64::MAX);
    let mut out: Option<i64> = None;
    for (taint, age) in taints {
        let Some(bears) = tolerations.iter().find(|toleration| tolerates(toleration, taint)) else {
            return Stay::Leave;
        };
        if let Some(seconds) = bears.toleration_seconds {
            let left = seconds.max(0).saturating_sub((*age).min(bound));
            out = Some(out.map_or(left, |other| other.min(left)));
        }
    }
    match out {
        None => Stay::Forever,
        Some(..=0) => Stay::Leave,
        Some(left) => Stay::Seconds(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_taint_ages_by_the_clock_that_is_never_set() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut taint = Taint { effect: "NoExecute".into(), ..Taint::default() };
        taint.time_added = Some(Time(at(1_000_000)));
        let taints = [taint];
        let mut seen = Seen::default();
        let mut age = |now: i64| seen.look(&taints, at(now))[0].1;
        assert_eq!(age(1_000_100), 100, "it was there before us");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(age(1_000_110), 110);
        // A day ahead, and a day back.
        assert_eq!(age(1_086_510), 110);
        assert_eq!(age(913_710), 110);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(age(913_720), 120);
        let mut late = Seen::default();
        assert_eq!(late.look(&taints, at(913_720))[0].1, 0, "it says that it comes tomorrow");
        assert!(late.look(&[], at(913_720)).is_empty());
    }
}
