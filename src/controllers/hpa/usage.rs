//! How many replicas a metric asks for. Pure.
//!
//! The rules are those of `Horizontal Pod Autoscaling`, `Algorithm details`: unready pods and
//! pods without a metric are taken for what makes the change smaller.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kinds::meta::quantity::Quantity;

use crate::owner::name;
use crate::pod;

/// How long a pod is taken for one that starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmUp {
    pub cpu_initialization: SignedDuration,
    pub initial_readiness: SignedDuration,
}

const NO_PODS: &str = "no pods returned by selector while calculating replica count";

/// What a pod uses, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub milli: i64,
    pub at: Timestamp,
    pub window: SignedDuration,
}

pub type Samples = BTreeMap<String, Sample>;

/// Changes of the ratio that are too small to follow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    pub up: f64,
    pub down: f64,
}

impl Tolerance {
    pub fn covers(&self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What a metric is to be, on the average of the pods.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target<'a> {
    /// Percent of what the pods request, which is given in thousandths by pod.
    Utilization { percent: i32, requests: &'a BTreeMap<String, i64> },
    /// Thousandths.
    Average(i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proposal {
    pub replicas: i32,
    /// Percent, where that is the target.
    pub utilization: Option<i32>,
    /// Thousandths; the average, or the value of a metric of another object.
    pub usage: i64,
}

struct Groups {
    ready: i32,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn group(pods: &[Arc<Pod>], samples: &Samples, cpu: Option<WarmUp>, now: Timestamp) -> Groups {
    let mut out = Groups {
        ready: 0,
        unready: BTreeSet::new(),
        missing: BTreeSet::new(),
        ignored: BTreeSet::new(),
    };
    for pod in pods {
        let own_name = name(&pod.metadata).to_string();
        if pod.metadata.deletion_timestamp.is_some() || pod::phase(pod) == "Failed" {
            out.ignored.insert(own_name);
        } else if pod::phase(pod) == "Pending" {
            out.unready.insert(own_name);
        } else if let Some(sample) = samples.get(&own_name) {
            if cpu.is_some_and(|times| is_warming_up(pod, sample, times, now)) {
                out.unready.insert(own_name);
            } else {
                out.ready += 1;
            }
        } else {
            out.missing.insert(own_name);
        }
    }
    out
}

/// What a pod uses while it starts says nothing of its load.
fn is_warming_up(pod: &Pod, sample: &Sample, times: WarmUp, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    let (Some(condition), Some(started)) = (pod::condition(pod, "Ready"), started) else {
        return true;
    };
    let changed = condition.last_transition_time.as_ref().map_or(started.0, |time| time.0);
    let unready = condition.status == "False";
    let age = now.duration_since(started.0);
    // A start that is further ahead was before the clock was set back.
    let WarmUp { cpu_initialization, initial_readiness } = times;
    if (-cpu_initialization..cpu_initialization).contains(&age) {
        unready || sample.at.duration_since(changed) < sample.window
    } else {
        unready && changed.duration_since(started.0) < initial_readiness
    }
}

/// Average over the samples: the ratio to the target, percent, thousandths.
fn ratio(samples: &Samples, target: Target<'_>) -> Result<(f64, Option<i32>, i64), String> {
    let sum = |values: &mut dyn Iterator<Item = i64>| values.fold(0_i64, i64::saturating_add);
    match target {
        Target::Average(wanted) => {
            let all = sum(&mut samples.values().map(|sample| sample.milli));
            let usage = all / i64::try_from(samples.len().max(1)).unwrap_or(i64::MAX);
            Ok((usage as f64 / wanted.max(1) as f64, None, usage))
        }
        Target::Utilization { percent, requests } => {
            let known =
                || samples.iter().filter_map(|(pod, s)| Some((s.milli, requests.get(pod)?)));
            let requested = sum(&mut known().map(|(_, request)| *request));
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let all = sum(&mut known().map(|(usage, _)| usage));
            let count = i64::try_from(known().count().max(1)).unwrap_or(i64::MAX);
            let utilization = i128::from(all) * 100 / i128::from(requested);
            let utilization = i32::try_from(utilization).unwrap_or(i32::MAX);
            let ratio = f64::from(utilization) / f64::from(percent.max(1));
            Ok((ratio, Some(utilization), all / count))
        }
    }
}

fn scaled(ratio: f64, count: usize) -> i32 {
    // Casts from floats end at the type's limits.
    (ratio * count as f64).ceil() as i32
}

/// # Errors
/// Where nothing can be said, in upstream's words.
pub fn of_pods(
    current: i32,
    pods: &[Arc<Pod>],
    mut samples: Samples,
    target: Target<'_>,
    tolerance: Tolerance,
    cpu: Option<WarmUp>,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err(NO_PODS.into());
    }
    let groups = group(pods, &samples, cpu, now);
    samples.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
    if samples.is_empty() {
        let text = "did not receive metrics for targeted pods (pods might be unready)";
        return Err(text.into());
    }
    let (first, utilization, usage) = ratio(&samples, target)?;
    let stay = Proposal { replicas: current, utilization, usage };
    let unready_count = !groups.unready.is_empty() && first > 1.0;
    if !unready_count && groups.missing.is_empty() {
        if tolerance.covers(first) {
            return Ok(stay);
        }
        let replicas = scaled(first, usize::try_from(groups.ready).unwrap_or(0));
        return Ok(Proposal { replicas, ..stay });
    }
    for pod in &groups.missing {
        let milli = match target {
            _ if first > 1.0 => 0,
            Target::Average(wanted) => wanted,
            Target::Utilization { percent, requests } => {
                requests.get(pod).copied().unwrap_or(0) * i64::from(percent.max(100)) / 100
            }
        };
        if first != 1.0 {
            samples.insert(pod.clone(), idle(milli, now));
        }
    }
    if unready_count {
        samples.extend(groups.unready.into_iter().map(|pod| (pod, idle(0, now))));
    }
    let (second, ..) = ratio(&samples, target)?;
    let replicas = scaled(second, samples.len());
    let turned = (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0);
    let against = (second < 1.0 && replicas > current) || (second > 1.0 && replicas < current);
    if tolerance.covers(second) || turned || against {
        return Ok(stay);
    }
    Ok(Proposal { replicas, ..stay })
}

fn idle(milli: i64, at: Timestamp) -> Sample {
    Sample { milli, at, window: SignedDuration::ZERO }
}

/// For a metric of something else than the pods; `usage` and `target` in thousandths.
///
/// # Errors
/// Where there are no pods to share it, in upstream's words.
pub fn of_value(
    current: i32,
    pods: &[Arc<Pod>],
    usage: i64,
    target: i64,
    tolerance: Tolerance,
) -> Result<Proposal, String> {
    let ratio = usage as f64 / target.max(1) as f64;
    let replicas = if current == 0 {
        ratio.ceil() as i32
    } else if tolerance.covers(ratio) {
        current
    } else {
        if pods.is_empty() {
            return Err(format!("unable to calculate ready pods: {NO_PODS}"));
        }
        let ready = |pod: &&Arc<Pod>| pod::phase(pod) == "Running" && pod::is_ready(pod);
        scaled(ratio, pods.iter().filter(ready).count())
    };
    Ok(Proposal { replicas, utilization: None, usage })
}

/// The same, where the target is a share for each replica.
pub fn of_share(replicas: i32, usage: i64, target: i64, tolerance: Tolerance) -> Proposal {
    let target = target.max(1);
    let ratio = usage as f64 / (target as f64 * f64::from(replicas));
    let wanted = if tolerance.covers(ratio) {
        replicas
    } else {
        (usage as f64 / target as f64).ceil() as i32
    };
    let share = (usage as f64 / f64::from(replicas.max(1))).ceil() as i64;
    Proposal { replicas: wanted, utilization: None, usage: share }
}

/// What each pod, or one container of it, requests of a resource, in thousandths.
///
/// # Errors
/// Where nothing is requested, or the container is not there, in upstream's words.
pub fn requests(
    pods: &[Arc<Pod>],
    container: Option<&str>,
    resource: &str,
) -> Result<BTreeMap<String, i64>, String> {
    let mut out = BTreeMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let own_name = name(&pod.metadata);
        let request = match container {
            None if asks_as_a_whole(spec) => of_whole(spec, resource).ok_or_else(|| {
                format!("missing pod-level request for {resource} in Pod {own_name}")
            })?,
            _ => of_containers(spec, container, resource, own_name)?,
        };
        out.insert(own_name.to_string(), request);
    }
    Ok(out)
}

fn asked(list: Option<&BTreeMap<String, Text>>, resource: &str) -> Option<i64> {
    Some(list?.get(resource)?.0.parse::<Quantity>().ok()?.millis())
}

fn of_container(container: &Container, resource: &str) -> Option<i64> {
    asked(container.resources.as_ref().and_then(|it| it.requests.as_ref()), resource)
}

fn is_sidecar(container: &&Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn of_containers(
    spec: &PodSpec,
    container: Option<&str>,
    resource: &str,
    pod: &str,
) -> Result<i64, String> {
    let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
    let all = spec.containers.iter().chain(sidecars);
    let meant: Vec<&Container> =
        all.filter(|one| container.is_none_or(|wanted| wanted == one.name)).collect();
    if let Some(container) = container.filter(|_| meant.is_empty()) {
        return Err(format!("container {container} not found in Pod {pod}"));
    }
    meant.into_iter().try_fold(0_i64, |sum, one| {
        let request = of_container(one, resource).ok_or_else(|| {
            format!("missing request for {resource} in container {} of Pod {pod}", one.name)
        })?;
        Ok(sum.saturating_add(request))
    })
}

/// Whether the pod requests something itself (KEP-2837).
fn asks_as_a_whole(spec: &PodSpec) -> bool {
    let whole = spec.resources.as_ref().and_then(|it| it.requests.as_ref());
    let counts =
        |name: &String| name == "cpu" || name == "memory" || name.starts_with("hugepages-");
    whole.is_some_and(|whole| whole.keys().any(counts))
}

/// What it requests itself, or else all of its containers, and what running it takes.
fn of_whole(spec: &PodSpec, resource: &str) -> Option<i64> {
    let said = asked(spec.resources.as_ref().and_then(|it| it.requests.as_ref()), resource);
    let sum = |all: &mut dyn Iterator<Item = &Container>| {
        all.filter_map(|one| of_container(one, resource)).reduce(i64::saturating_add)
    };
    let of_containers = || {
        let first = || spec.init_containers.iter().flatten();
        let running = sum(&mut spec.containers.iter().chain(first().filter(is_sidecar)));
        let starting = first().filter(|one| !is_sidecar(one));
        let starting = starting.filter_map(|one| of_container(one, resource)).max();
        running.max(starting)
    };
    let overhead = asked(spec.overhead.as_ref(), resource);
    let whole = said.or_else(of_containers);
    match (whole, overhead) {
        (None, None) => None,
        (whole, overhead) => Some(whole.unwrap_or(0).saturating_add(overhead.unwrap_or(0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_that_requests_nothing_is_told() {
        let pod = json!({"metadata": {"name": "p0"}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
        let pods = [Arc::new(serde_json::from_value(pod).unwrap())];
        assert_eq!(
            requests(&pods, None, "memory").unwrap_err(),
            "missing request for memory in container c of Pod p0"
        );
        assert_eq!(requests(&pods, Some("c"), "cpu").unwrap()["p0"], 1000);
        assert_eq!(
            requests(&pods, Some("d"), "cpu").unwrap_err(),
            "container d not found in Pod p0"
        );
    }

    /// Upstream's, of requests of pods (TestCalculateRequests).
    #[test]
    fn what_a_pod_requests_as_a_whole_goes_before_its_containers() {
        let check = |whole: serde_json::Value, container: Option<&str>, resource: &str| {
            let pod = json!({"metadata": {"name": "p"}, "spec": {"resources": {"requests": whole},
                "initContainers": [{"name": "i", "resources": {"requests": {"memory": "9"}}}],
                "overhead": {"cpu": "10m"},
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}},
                    {"name": "d", "resources": {"requests": {"cpu": "1", "memory": "1"}}}]}});
            let pods = [Arc::new(serde_json::from_value(pod).unwrap())];
            requests(&pods, container, resource).map(|all| all["p"])
        };
        assert_eq!(check(json!({"cpu": "3"}), None, "cpu"), Ok(3_010));
        assert_eq!(check(json!({"cpu": "3"}), Some("c"), "cpu"), Ok(1_000));
        assert_eq!(check(json!({"memory": "12"}), None, "cpu"), Ok(2_010));
        assert_eq!(check(json!({"cpu": "3"}), None, "memory"), Ok(9_000));
        assert_eq!(check(json!({}), None, "cpu"), Ok(2_000));
        let none = "missing pod-level request for example.com/gpu in Pod p";
        assert_eq!(check(json!({"cpu": "3"}), None, "example.com/gpu"), Err(none.into()));
    }
}
