//! What a Job's policies say of its pods: which failures count, for how much, and which
//! successes are enough. Pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::Pod;

use super::indexes;
use super::template::index_of;
use crate::owner::{annotation, name, namespace};
use crate::pod;

/// On a pod of a Job with a limit for each index: how often pods of its index failed before.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// The same of failures that the policy ignores.
pub const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// What is made of a pod that failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As if it had not failed; it is made up for.
    Ignored,
    Counts,
    FailsIndex,
    /// With the reason why.
    FailsJob(String),
}

/// How often pods of an index failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failures {
    pub counted: u32,
    pub ignored: u32,
}

impl Failures {
    /// Of the pods before this one.
    pub fn before(pod: &Pod) -> Self {
        let read = |key| annotation(&pod.metadata, key).and_then(|text| text.parse().ok());
        Self { counted: read(FAILURES).unwrap_or(0), ignored: read(IGNORED).unwrap_or(0) }
    }

    /// With this one, which failed.
    pub fn with(spec: &JobSpec, pod: &Pod) -> Self {
        let Self { counted, ignored } = Self::before(pod);
        match judge(spec, pod) {
            Verdict::Ignored => Self { counted, ignored: ignored.saturating_add(1) },
            Verdict::Counts | Verdict::FailsIndex | Verdict::FailsJob(_) => {
                Self { counted: counted.saturating_add(1), ignored }
            }
        }
    }

    pub fn all(self) -> u32 {
        self.counted.saturating_add(self.ignored)
    }
}

/// Whether indexes fail each for themselves.
pub fn is_per_index(spec: &JobSpec) -> bool {
    spec.backoff_limit_per_index.is_some()
}

/// Whether only pods that have ended are made up for, not those that are about to.
pub fn replaces_failed_only(spec: &JobSpec) -> bool {
    match spec.pod_replacement_policy.as_deref() {
        Some(policy) => policy == "Failed",
        None => spec.pod_failure_policy.is_some(),
    }
}

/// Whether a pod is held for failed: it says so, or it is taken away and may never say.
pub fn is_failed(spec: &JobSpec, pod: &Pod) -> bool {
    let leaves = pod.metadata.deletion_timestamp.is_some() && pod::phase(pod) != "Succeeded";
    pod::phase(pod) == "Failed" || (leaves && !replaces_failed_only(spec))
}

/// By the first rule that matches (batch/v1 PodFailurePolicy).
pub fn judge(spec: &JobSpec, pod: &Pod) -> Verdict {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    let matched = rules.enumerate().find_map(|(at, rule)| Some((at, rule, matches(rule, pod)?)));
    let Some((at, rule, why)) = matched else { return Verdict::Counts };
    match rule.action.as_str() {
        "Ignore" => Verdict::Ignored,
        "FailIndex" => Verdict::FailsIndex,
        "FailJob" => Verdict::FailsJob(format!("{why} matching FailJob rule at index {at}")),
        // Count, and what this version does not know.
        _ => Verdict::Counts,
    }
}

/// What of the pod a rule is about.
fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let (space, own) = (namespace(&pod.metadata), name(&pod.metadata));
    let status = pod.status.as_ref()?;
    if let Some(codes) = &rule.on_exit_codes {
        let lists = [&status.init_container_statuses, &status.container_statuses];
        let mut ends = lists.into_iter().flatten().flatten().filter_map(|container| {
            let wanted = codes.container_name.as_ref();
            let ended = container.state.as_ref()?.terminated.as_ref()?;
            wanted.is_none_or(|name| *name == container.name).then_some((container, ended))
        });
        let (container, ended) = ends.find(|(_, ended)| {
            let listed = codes.values.contains(&ended.exit_code);
            ended.exit_code != 0 && (codes.operator == "In") == listed
        })?;
        let (container, code) = (&container.name, ended.exit_code);
        return Some(format!(
            "Container {container} for pod {space}/{own} failed with exit code {code}"
        ));
    }
    let mut patterns = rule.on_pod_conditions.iter().flatten();
    let found = patterns.find(|pattern| {
        // Defaulted by the API.
        let wanted = pattern.status.as_deref().unwrap_or("True");
        pod::condition(pod, &pattern.type_).is_some_and(|held| held.status == wanted)
    })?;
    Some(format!("Pod {space}/{own} has condition {}", found.type_))
}

/// The reason why a pod's failure is the Job's.
pub fn fails_job<'a>(spec: &JobSpec, pods: impl Iterator<Item = &'a Pod>) -> Option<String> {
    spec.pod_failure_policy.as_ref()?;
    let mut failed = pods.filter(|pod| is_failed(spec, pod));
    failed.find_map(|pod| match judge(spec, pod) {
        Verdict::FailsJob(why) => Some(why),
        Verdict::Ignored | Verdict::Counts | Verdict::FailsIndex => None,
    })
}

/// Whether a pod's failure is its index' last.
pub fn fails_index(spec: &JobSpec, pod: &Pod) -> bool {
    let limit = spec.backoff_limit_per_index.and_then(|limit| u32::try_from(limit).ok());
    let Some(limit) = limit.filter(|_| is_failed(spec, pod)) else { return false };
    match judge(spec, pod) {
        Verdict::FailsIndex => true,
        Verdict::Counts | Verdict::FailsJob(_) => Failures::before(pod).counted >= limit,
        Verdict::Ignored => false,
    }
}

/// The first rule of the success policy that these indexes are enough for.
pub fn is_enough(spec: &JobSpec, completed: &BTreeSet<u32>, end: u32) -> Option<usize> {
    let rules = &spec.success_policy.as_ref()?.rules;
    rules.iter().position(|rule| {
        let count = rule.succeeded_count.and_then(|count| usize::try_from(count).ok());
        let Some(text) = &rule.succeeded_indexes else {
            return count.is_some_and(|count| completed.len() >= count);
        };
        let wanted = indexes::parse(text, end);
        let have = wanted.intersection(completed).count();
        have >= count.unwrap_or(wanted.len())
    })
}

/// Of each index that needs another pod: the one that failed last. It stays until the next
/// one is there, for that one inherits the number of failures.
pub fn last_failed<'a>(
    spec: &JobSpec,
    pods: &'a [Arc<Pod>],
    is_open: impl Fn(u32) -> bool,
) -> HashMap<u32, &'a Pod> {
    let mut last = HashMap::new();
    if !is_per_index(spec) {
        return last;
    }
    for pod in pods.iter().filter(|pod| super::is_tracked(pod) && is_failed(spec, pod)) {
        let Some(index) = index_of(pod).filter(|index| is_open(*index)) else { continue };
        let pod: &Pod = pod;
        let held = last.entry(index).or_insert(pod);
        if Failures::before(held).all() < Failures::before(pod).all() {
            *held = pod;
        }
    }
    last
}
