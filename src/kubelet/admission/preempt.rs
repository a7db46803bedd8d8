//! Which pods make room for one that the node cannot do without (documentation, "Guaranteed
//! Scheduling For Critical Add-On Pods"). Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::{Shortage, asked_milli};
use crate::eviction::rank::is_critical;
use crate::pod;
use crate::resources::{self, Qos};

pub const REASON: &str = "Preempting";
pub const MESSAGE: &str = "Preempted in order to admit critical pod";

/// What is still missing, and of what.
type Missing = Vec<(String, i64)>;

/// The pods that have to end, as few and as unimportant ones as possible. None where even all
/// of them would not do.
pub fn choose(admit: &Pod, running: &[Arc<Pod>], short: &[Shortage]) -> Option<Vec<Arc<Pod>>> {
    let missing: Missing = short.iter().map(|it| (it.resource.clone(), it.missing())).collect();
    let of = |class: Qos| -> Vec<&Arc<Pod>> {
        let lesser = running.iter().filter(|it| gives_way(it, admit));
        lesser.filter(|it| resources::qos(it) == class).collect()
    };
    let (best, burst, sure) = (of(Qos::BestEffort), of(Qos::Burstable), of(Qos::Guaranteed));
    let all: Vec<&Arc<Pod>> = best.iter().chain(&burst).chain(&sure).copied().collect();
    if !without(&missing, &all).is_empty() {
        return None;
    }
    // Of a better class go only those without whom the lesser ones would not suffice.
    let lesser: Vec<&Arc<Pod>> = best.iter().chain(&burst).copied().collect();
    let mut out = nearest(&sure, without(&missing, &lesser));
    let with = |some: &[&Arc<Pod>], out: &[&Arc<Pod>]| -> Missing {
        without(&missing, &some.iter().chain(out).copied().collect::<Vec<_>>())
    };
    out.extend(nearest(&burst, with(&best, &out)));
    out.extend(nearest(&best, with(&[], &out)));
    Some(out.into_iter().cloned().collect())
}

fn gives_way(pod: &Pod, admit: &Pod) -> bool {
    let priority = |pod: &Pod| pod::spec(pod).priority;
    (is_critical(admit) && !is_critical(pod))
        || priority(admit).zip(priority(pod)).is_some_and(|(admit, pod)| admit > pod)
}

/// What is missing once the pods are gone.
fn without(missing: &Missing, pods: &[&Arc<Pod>]) -> Missing {
    let left = missing.iter().map(|(name, amount)| {
        let freed = pods.iter().map(|pod| asked_milli(pod, name)).fold(0, i64::saturating_add);
        (name.clone(), amount.saturating_sub(freed))
    });
    left.filter(|(_, amount)| *amount > 0).collect()
}

/// Takes pods until nothing is missing: always the one that leaves least, and of equal ones
/// the one that has least.
fn nearest<'a>(pods: &[&'a Arc<Pod>], mut missing: Missing) -> Vec<&'a Arc<Pod>> {
    let mut left = pods.to_vec();
    let mut out = Vec::new();
    while !missing.is_empty() && !left.is_empty() {
        let cost = |pod: &Arc<Pod>| {
            let distance: f64 = missing
                .iter()
                .map(|(name, amount)| {
                    let left = amount.saturating_sub(asked_milli(pod, name)).max(0);
                    (left as f64 / *amount as f64).powi(2)
                })
                .sum();
            let asks = ["memory", "cpu"].map(|name| asked_milli(pod, name));
            // Floats have no order; a billionth of a resource makes no difference.
            ((distance * 1e9) as i64, asks)
        };
        let Some(at) = (0..left.len()).min_by_key(|at| cost(left[*at])) else { break };
        let taken = left.remove(at);
        missing = without(&missing, &[taken]);
        out.push(taken);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::json;

    fn one(name: &str, class: Qos, cpu: &str) -> Arc<Pod> {
        let resources = match class {
            Qos::BestEffort => json!({}),
            Qos::Burstable => json!({"requests": {"cpu": cpu}}),
            Qos::Guaranteed => json!({"requests": {"cpu": cpu, "memory": "1Mi"},
                "limits": {"cpu": cpu, "memory": "1Mi"}}),
        };
        let mut out = pod(json!({"containers": [{"name": "a", "resources": resources}]}));
        out.metadata.name = Some(name.into());
        out.metadata.uid = Some(name.into());
        Arc::new(out)
    }

    fn cpu(missing: i64) -> Vec<Shortage> {
        vec![Shortage { resource: "cpu".into(), wanted: missing, used: 0, there: 0 }]
    }

    fn check(running: &[Arc<Pod>], short: &[Shortage], want: Option<&[&str]>) {
        let admit = pod(json!({"priority": 2_000_001_000, "containers": []}));
        let chosen = choose(&admit, running, short);
        let names = chosen.as_ref().map(|all| {
            all.iter().map(|it| it.metadata.name.as_deref().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(names.as_deref(), want);
    }

    #[test]
    fn as_few_and_as_unimportant_pods_as_possible_go() {
        let running = [
            one("sure", Qos::Guaranteed, "1"),
            one("burst-small", Qos::Burstable, "200m"),
            one("burst", Qos::Burstable, "600m"),
            one("best", Qos::BestEffort, ""),
        ];
        check(&running, &cpu(150), Some(&["burst-small"]));
        check(&running, &cpu(500), Some(&["burst"]));
        check(&running, &cpu(700), Some(&["burst", "burst-small"]));
        check(&running, &cpu(900), Some(&["sure"]));
        check(&running, &cpu(1700), Some(&["sure", "burst", "burst-small"]));
        check(&running, &cpu(1900), None);
        let slots = [Shortage { resource: "pods".into(), wanted: 1000, used: 9000, there: 9000 }];
        check(&running, &slots, Some(&["best"]));
    }

    #[test]
    fn critical_pods_stay() {
        let mut critical = (*one("critical", Qos::Burstable, "1")).clone();
        critical.spec.as_mut().unwrap().priority = Some(2_000_001_000);
        check(&[Arc::new(critical)], &cpu(1), None);
    }
}
