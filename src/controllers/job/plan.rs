//! Which pods a Job creates, deletes and counts, and what it reports.
//!
//! Pure.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::template::index_of;
use super::{indexes, is_tracked};
use crate::owner::{created, uid};
use crate::pod;

/// Delay before the pod of a failed one is replaced; it doubles with each failure.
const BACKOFF_INITIAL: i64 = 10;
const BACKOFF_MAX: i64 = 360;
/// Pods created, deleted or newly counted by one sync; the rest follows in the next.
const BURST: usize = 500;

/// Failures in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    /// Of the last one, in seconds since 1970.
    last: i64,
}

impl Backoff {
    fn left(self, now: i64) -> i64 {
        match self.failures {
            0 => 0,
            failures => {
                let factor = 1_i64 << (failures - 1).min(16);
                self.last + (BACKOFF_INITIAL * factor).min(BACKOFF_MAX) - now
            }
        }
    }
}

#[derive(Debug, Default)]
pub struct Plan {
    /// One pod each, with its completion index in Indexed Jobs.
    pub create: Vec<Option<u32>>,
    pub delete: Vec<Arc<Pod>>,
    /// Whether deleted pods count as failed.
    pub deleted_count: bool,
    /// Pods to stop tracking, after the status is written.
    pub free: Vec<Arc<Pod>>,
    pub status: JobStatus,
    pub backoff: Backoff,
    pub look_again_in: Option<Duration>,
    pub events: Vec<(&'static str, String, String)>,
}

fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True")
}

pub fn is_over(job: &Job) -> bool {
    ended(job).is_some()
}

/// When it completed or failed, in seconds since 1970.
pub fn ended(job: &Job) -> Option<i64> {
    let status = job.status.as_ref()?;
    let over = condition(status, "Complete").or_else(|| condition(status, "Failed"))?;
    Some(over.last_transition_time.as_ref().map_or(0, |time| time.0.as_second()))
}

/// Why it ends: the two conditions' type, the reason and the message.
#[derive(Clone)]
struct End {
    target: &'static str,
    last: &'static str,
    reason: String,
    message: String,
}

impl End {
    fn failed(reason: &str, message: &str) -> Self {
        let (reason, message) = (reason.into(), message.into());
        Self { target: "FailureTarget", last: "Failed", reason, message }
    }

    fn complete(reason: &str, message: &str) -> Self {
        let (reason, message) = (reason.into(), message.into());
        Self { target: "SuccessCriteriaMet", last: "Complete", reason, message }
    }

    fn decided(status: &JobStatus) -> Option<Self> {
        let said = |c: &JobCondition| {
            (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default())
        };
        if let Some((reason, message)) = condition(status, "FailureTarget").map(said) {
            return Some(Self::failed(&reason, &message));
        }
        let (reason, message) = condition(status, "SuccessCriteriaMet").map(said)?;
        Some(Self::complete(&reason, &message))
    }
}

/// What the pods say, beside the numbers in the status.
struct Count {
    active: Vec<Arc<Pod>>,
    ready: i32,
    terminating: i32,
    /// Indexes of pods that are terminating.
    leaving: HashSet<u32>,
    completed: BTreeSet<u32>,
    succeeded: i32,
    failed: i32,
}

/// `pods` are all that the Job controls.
pub fn plan(job: &Job, pods: &[Arc<Pod>], backoff: Backoff, now: Timestamp) -> Plan {
    let mut out =
        Plan { status: job.status.clone().unwrap_or_default(), backoff, ..Plan::default() };
    let tracked = || pods.iter().filter(|pod| is_tracked(pod)).cloned();
    let Some(spec) = &job.spec else { return out };
    if is_over(job) || job.metadata.deletion_timestamp.is_some() {
        out.free = tracked().collect();
        return out;
    }
    let held: HashSet<&str> =
        pods.iter().filter(|pod| is_tracked(pod)).map(|pod| uid(&pod.metadata)).collect();
    settle_uncounted(&mut out.status, &held);

    let suspended = spec.suspend == Some(true);
    if out.status.start_time.is_none() && !suspended {
        out.status.start_time = Some(at(now));
    }
    let mut count = count(spec, pods, &mut out, false);
    let mut end = End::decided(&out.status);
    if end.is_none() {
        // First, because the deadline counts from the resumption.
        suspend_or_resume(&mut out, suspended, now);
        end = decide(spec, &count, &mut out, suspended, now);
    }
    if let Some(end) = &end {
        // What still runs is ended, and counts as failed.
        self::count(spec, pods, &mut out, true);
        out.delete = count.active.drain(..).take(BURST).collect();
        out.deleted_count = true;
        if condition(&out.status, end.target).is_none() {
            set(&mut out.status, end.target, true, &end.reason, &end.message, now);
        }
    } else {
        manage(spec, &mut count, &mut out, suspended, now);
    }
    report(&mut out.status, spec, &count);
    let uncounted = out.status.uncounted_terminated_pods.as_ref();
    let waits = uncounted.is_some_and(|u| *u != UncountedTerminatedPods::default());
    if let Some(end) = end
        && !waits
        && out.delete.is_empty()
        && out.free.is_empty()
        && count.terminating == 0
    {
        set(&mut out.status, end.last, true, &end.reason, &end.message, now);
        if end.last == "Complete" {
            out.status.completion_time = Some(at(now));
            out.events.push(("Normal", "Completed".into(), "Job completed".into()));
        } else {
            out.events.push(("Warning", end.reason, end.message));
        }
    }
    out
}

/// Uids whose pods are tracked no more become numbers.
fn settle_uncounted(status: &mut JobStatus, held: &HashSet<&str>) {
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let settle = |uids: &mut Option<Vec<String>>, number: &mut Option<i32>| {
        let Some(list) = uids else { return };
        let before = list.len();
        list.retain(|uid| held.contains(uid.as_str()));
        let gone = i32::try_from(before - list.len()).unwrap_or(i32::MAX);
        if gone > 0 {
            *number = Some(number.unwrap_or(0).saturating_add(gone));
        }
        if list.is_empty() {
            *uids = None;
        }
    };
    settle(&mut uncounted.succeeded, &mut status.succeeded);
    settle(&mut uncounted.failed, &mut status.failed);
}

/// Notes newly ended pods in the plan; with `all`, those that are not tracked as ended yet
/// end now.
fn count(spec: &JobSpec, pods: &[Arc<Pod>], out: &mut Plan, all: bool) -> Count {
    let indexed = is_indexed(spec);
    let end = completions(spec);
    let only_failed = replaces_failed_only(spec);
    let text = out.status.completed_indexes.clone().unwrap_or_default();
    let mut completed = indexes::parse(&text, end);
    let (mut active, mut ready, mut terminating) = (Vec::new(), 0, 0);
    let mut leaving = HashSet::new();
    let mut ended: Vec<(i64, bool)> = Vec::new();
    let uncounted = out.status.uncounted_terminated_pods.get_or_insert_default();
    let mut free: Vec<Arc<Pod>> = Vec::new();
    for pod in pods {
        let leaves = pod.metadata.deletion_timestamp.is_some();
        if pod::is_active(pod) {
            ready += i32::from(pod::is_ready(pod));
            active.push(pod.clone());
        } else if leaves && !pod::is_finished(pod) {
            terminating += 1;
            leaving.extend(index_of(pod));
        }
        let succeeded = pod::phase(pod) == "Succeeded";
        let failed = pod::phase(pod) == "Failed" || (leaves && !succeeded && !only_failed);
        if !is_tracked(pod) || !(succeeded || failed || (all && leaves)) || free.len() >= BURST {
            continue;
        }
        free.push(pod.clone());
        let index = index_of(pod).filter(|index| *index < end);
        if indexed && index.is_none() {
            continue;
        }
        let uid = uid(&pod.metadata).to_string();
        let is_new = match (succeeded, index) {
            (true, Some(index)) if indexed => completed.insert(index),
            (succeeded, _) => {
                let list = if succeeded { &mut uncounted.succeeded } else { &mut uncounted.failed };
                let list = list.get_or_insert_default();
                let is_new = !list.contains(&uid);
                if is_new {
                    list.push(uid);
                }
                is_new
            }
        };
        if is_new {
            ended.push((finished_at(pod), succeeded));
        }
    }
    ended.sort_unstable();
    for (at, succeeded) in ended {
        let failures = if succeeded { 0 } else { out.backoff.failures.saturating_add(1) };
        out.backoff = Backoff { failures, last: at };
    }
    if indexed {
        out.status.succeeded = number(completed.len());
        let text = indexes::print(&completed);
        out.status.completed_indexes = (!text.is_empty()).then_some(text);
    }
    out.free = free;
    let uncounted = out.status.uncounted_terminated_pods.clone().unwrap_or_default();
    let with = |number: Option<i32>, list: &Option<Vec<String>>| {
        number.unwrap_or(0) + list.as_ref().map_or(0, Vec::len) as i32
    };
    let succeeded = with(out.status.succeeded, &uncounted.succeeded);
    let failed = with(out.status.failed, &uncounted.failed);
    Count { active, ready, terminating, leaving, completed, succeeded, failed }
}

fn decide(
    spec: &JobSpec,
    count: &Count,
    out: &mut Plan,
    suspended: bool,
    now: Timestamp,
) -> Option<End> {
    let limit = spec.backoff_limit.unwrap_or(6);
    if count.failed > limit || restarts_exceed(spec, &count.active, limit) {
        let message = "Job has reached the specified backoff limit";
        return Some(End::failed("BackoffLimitExceeded", message));
    }
    if let (Some(seconds), Some(start), false) =
        (spec.active_deadline_seconds, &out.status.start_time, suspended)
    {
        let left = start.0.as_second().saturating_add(seconds) - now.as_second();
        if left <= 0 {
            let message = "Job was active longer than specified deadline";
            return Some(End::failed("DeadlineExceeded", message));
        }
        look_again(out, left);
    }
    let done = match spec.completions {
        None => count.succeeded > 0,
        Some(completions) => count.succeeded >= completions,
    };
    let message = "Reached expected number of succeeded pods";
    (done && count.active.is_empty()).then(|| End::complete("CompletionsReached", message))
}

/// Containers that restart in place count against the limit, too.
fn restarts_exceed(spec: &JobSpec, active: &[Arc<Pod>], limit: i32) -> bool {
    let policy = spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let restarts = active.iter().map(|pod| all_restarts(pod)).fold(0, i32::saturating_add);
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

fn all_restarts(pod: &Pod) -> i32 {
    let first = pod.status.as_ref().and_then(|s| s.init_container_statuses.as_ref());
    let first: i32 = first.into_iter().flatten().map(|status| status.restart_count).sum();
    first + pod::restarts(pod)
}

fn suspend_or_resume(out: &mut Plan, suspended: bool, now: Timestamp) {
    let was = condition(&out.status, "Suspended").is_some();
    let (reason, message, event) = match (was, suspended) {
        (false, true) => ("JobSuspended", "Job suspended", "Suspended"),
        (true, false) => ("JobResumed", "Job resumed", "Resumed"),
        _ => return,
    };
    set(&mut out.status, "Suspended", suspended, reason, message, now);
    out.events.push(("Normal", event.into(), message.into()));
    if !suspended {
        // Its deadline counts from here.
        out.status.start_time = Some(at(now));
    }
}

fn manage(spec: &JobSpec, count: &mut Count, out: &mut Plan, suspended: bool, now: Timestamp) {
    let parallelism = usize::try_from(spec.parallelism.unwrap_or(1)).unwrap_or(0);
    let wanted = match spec.completions {
        _ if suspended => 0,
        None if count.succeeded > 0 => parallelism.min(count.active.len()),
        None => parallelism,
        Some(completions) => {
            usize::try_from(completions - count.succeeded).unwrap_or(0).min(parallelism)
        }
    };
    let surplus = surplus(spec, count, wanted);
    if !surplus.is_empty() {
        count.active.retain(|pod| !surplus.iter().any(|gone| Arc::ptr_eq(pod, gone)));
        count.ready = count.active.iter().filter(|pod| pod::is_ready(pod)).count() as i32;
        count.terminating += surplus.len() as i32;
        out.delete = surplus;
        return;
    }
    let mut room = wanted.saturating_sub(count.active.len());
    let mut taken: HashSet<u32> = count.active.iter().filter_map(|pod| index_of(pod)).collect();
    if replaces_failed_only(spec) {
        taken.extend(&count.leaving);
        room = room.saturating_sub(usize::try_from(count.terminating).unwrap_or(0));
    }
    if room == 0 {
        return;
    }
    let left = out.backoff.left(now.as_second());
    if left > 0 {
        look_again(out, left);
        return;
    }
    let room = room.min(BURST);
    out.create = if is_indexed(spec) {
        (0..completions(spec))
            .filter(|index| !count.completed.contains(index) && !taken.contains(index))
            .take(room)
            .map(Some)
            .collect()
    } else {
        vec![None; room]
    };
}

/// Pods that are too many: of Indexed Jobs first those that have no index of their own.
fn surplus(spec: &JobSpec, count: &Count, wanted: usize) -> Vec<Arc<Pod>> {
    let mut pods = count.active.clone();
    pods.sort_by_key(|pod| {
        let runs = !matches!(pod::phase(pod), "Pending" | "");
        (
            !pod::node(pod).is_empty(),
            runs,
            pod::is_ready(pod),
            Reverse(pod::ready_since(pod).unwrap_or(0)),
            Reverse(created(&pod.metadata)),
        )
    });
    let mut out: Vec<Arc<Pod>> = Vec::new();
    if is_indexed(spec) {
        let mut taken = HashSet::new();
        // The most advanced pod of an index stays.
        let (own, others): (Vec<_>, Vec<_>) = pods.into_iter().rev().partition(|pod| {
            index_of(pod).is_some_and(|index| {
                index < completions(spec)
                    && !count.completed.contains(&index)
                    && taken.insert(index)
            })
        });
        out = others;
        pods = own.into_iter().rev().collect();
    }
    let more = pods.len().saturating_sub(wanted);
    out.extend(pods.into_iter().take(more));
    out.truncate(BURST);
    out
}

fn report(status: &mut JobStatus, spec: &JobSpec, count: &Count) {
    status.active = number(count.active.len());
    status.ready = Some(if count.active.is_empty() { 0 } else { count.ready });
    status.terminating = Some(count.terminating);
    status.succeeded = status.succeeded.filter(|n| *n > 0);
    status.failed = status.failed.filter(|n| *n > 0);
    if !is_indexed(spec) {
        status.completed_indexes = None;
    }
}

fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

fn replaces_failed_only(spec: &JobSpec) -> bool {
    match spec.pod_replacement_policy.as_deref() {
        Some(policy) => policy == "Failed",
        None => spec.pod_failure_policy.is_some(),
    }
}

fn completions(spec: &JobSpec) -> u32 {
    spec.completions.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

/// An absent number is 0.
fn number(count: usize) -> Option<i32> {
    i32::try_from(count).ok().filter(|count| *count > 0)
}

fn look_again(out: &mut Plan, seconds: i64) {
    let after = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    out.look_again_in = Some(out.look_again_in.map_or(after, |other| other.min(after)));
}

fn at(now: Timestamp) -> Time {
    // Whole seconds, as the API stores them.
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

fn set(status: &mut JobStatus, kind: &str, on: bool, reason: &str, message: &str, now: Timestamp) {
    let new = JobCondition {
        type_: kind.into(),
        status: if on { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(at(now)),
        last_transition_time: Some(at(now)),
    };
    let list = status.conditions.get_or_insert_default();
    match list.iter_mut().find(|c| c.type_ == kind) {
        Some(held) => *held = new,
        None => list.push(new),
    }
}

/// When the last container ended; of pods that say nothing, when they were to go.
fn finished_at(pod: &Pod) -> i64 {
    let status = pod.status.as_ref();
    let ends = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten();
    let ends = ends.filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    if let Some(last) = ends.map(|time| time.0.as_second()).max() {
        return last;
    }
    if let Some(deleted) = &pod.metadata.deletion_timestamp {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        let asked = deleted.0.checked_sub(SignedDuration::from_secs(grace));
        return asked.map_or(0, Timestamp::as_second);
    }
    let ready = pod::condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref());
    ready.map_or_else(|| created(&pod.metadata), |time| time.0.as_second())
}

#[cfg(test)]
mod tests;
