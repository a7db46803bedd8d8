//! Which pods a Job creates, deletes and counts, and what it reports.
//!
//! Pure.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::count::{Count, count, finished_at, settle_uncounted};
use super::is_tracked;
use super::policy::{self, Failures, replaces_failed_only};
use super::template::index_of;
use crate::owner::{created, uid};
use crate::pod;

/// Delay before the pod of a failed one is replaced; it doubles with each failure.
const BACKOFF_INITIAL: i64 = 10;
/// Upstream's code; its documentation says six minutes.
const BACKOFF_MAX: i64 = 600;
/// Pods created, deleted or newly counted by one sync; the rest follows in the next.
pub const BURST: usize = 500;

/// Failures in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    pub failures: u32,
    /// Of the last one, in seconds since 1970.
    pub last: i64,
}

impl Backoff {
    fn left(self, now: i64) -> i64 {
        match self.failures {
            0 => 0,
            failures => {
                let factor = 1_i64 << (failures - 1).min(16);
                let left = self.last + (BACKOFF_INITIAL * factor).min(BACKOFF_MAX) - now;
                // A failure that lies ahead was before the clock was set back.
                if left > 2 * BACKOFF_MAX { 0 } else { left }
            }
        }
    }

    /// With another pod that ended.
    pub fn after(self, succeeded: bool, at: i64) -> Self {
        let failures = if succeeded { 0 } else { self.failures.saturating_add(1) };
        Self { failures, last: at }
    }
}

/// A pod to make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct New {
    /// Its completion index in Indexed Jobs.
    pub index: Option<u32>,
    /// Where indexes fail each for themselves: how often this one did.
    pub failures: Option<Failures>,
}

#[derive(Debug, Default)]
pub struct Plan {
    pub create: Vec<New>,
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
pub struct End {
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

    pub fn is_success(&self) -> bool {
        self.last == "Complete"
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
    let mut end = End::decided(&out.status);
    let mut count = count(spec, pods, &mut out, end.as_ref());
    if end.is_none() {
        // First, because the deadline counts from the resumption.
        suspend_or_resume(&mut out, suspended, now);
        let failed = policy::fails_job(spec, pods.iter().map(|pod| &**pod));
        end = match failed {
            Some(why) => Some(End::failed("PodFailurePolicy", &why)),
            None => decide(spec, &count, &mut out, suspended, now),
        };
    }
    if let Some(end) = &end {
        // What still runs is ended, and counts as failed where the Job has failed.
        super::count::count(spec, pods, &mut out, Some(end));
        out.delete = count.active.drain(..).take(BURST).collect();
        count.terminating += i32::try_from(out.delete.len()).unwrap_or(i32::MAX);
        out.deleted_count = true;
        if condition(&out.status, end.target).is_none() {
            set(&mut out.status, end.target, true, &end.reason, &end.message, now);
        }
    } else {
        manage(spec, pods, &mut count, &mut out, suspended, now);
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
            if spec.completions.is_some_and(|wanted| count.succeeded > wanted) {
                let text = "Too many succeeded pods running after completion count reached";
                out.events.push(("Warning", "TooManySucceededPods".into(), text.into()));
            }
            out.events.push(("Normal", "Completed".into(), "Job completed".into()));
        } else {
            out.events.push(("Warning", end.reason, end.message));
        }
    }
    out
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
    if let Some(end) = indexes_decide(spec, count) {
        return Some(end);
    }
    let done = match spec.completions {
        None => count.succeeded > 0,
        Some(completions) => count.succeeded >= completions,
    };
    let message = "Reached expected number of succeeded pods";
    (done && count.active.is_empty()).then(|| End::complete("CompletionsReached", message))
}

/// What indexes that failed for good, or those that succeeded, mean for the Job.
fn indexes_decide(spec: &JobSpec, count: &Count) -> Option<End> {
    let (lost, all) = (count.lost.len(), completions(spec));
    let most = spec.max_failed_indexes.and_then(|most| usize::try_from(most).ok());
    if most.is_some_and(|most| lost > most) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return Some(End::failed("MaxFailedIndexesExceeded", message));
    }
    if lost > 0 && lost + count.completed.len() >= all as usize {
        return Some(End::failed("FailedIndexes", "Job has failed indexes"));
    }
    let rule = policy::is_enough(spec, &count.completed, all)?;
    Some(End::complete("SuccessPolicy", &format!("Matched rules at index {rule}")))
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

fn manage(
    spec: &JobSpec,
    pods: &[Arc<Pod>],
    count: &mut Count,
    out: &mut Plan,
    suspended: bool,
    now: Timestamp,
) {
    let parallelism = usize::try_from(spec.parallelism.unwrap_or(1)).unwrap_or(0);
    let wanted = match spec.completions {
        _ if suspended => 0,
        None if count.succeeded > 0 => parallelism.min(count.active.len()),
        None => parallelism,
        Some(completions) => {
            let left = usize::try_from(completions - count.succeeded).unwrap_or(0);
            left.saturating_sub(count.lost.len()).min(parallelism)
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
    if replaces_failed_only(spec) {
        room = room.saturating_sub(usize::try_from(count.terminating).unwrap_or(0));
    }
    if room == 0 {
        return;
    }
    let room = room.min(BURST);
    if policy::is_per_index(spec) {
        return create_independent(spec, pods, count, out, room, now);
    }
    let left = out.backoff.left(now.as_second());
    if left > 0 {
        look_again(out, left);
        return;
    }
    out.create = if is_indexed(spec) {
        let new = |index| New { index: Some(index), failures: None };
        open_indexes(spec, count).into_iter().take(room).map(new).collect()
    } else {
        vec![New::default(); room]
    };
}

/// Indexes that need a pod, the lowest first.
fn open_indexes(spec: &JobSpec, count: &Count) -> Vec<u32> {
    let waits = |index: &u32| replaces_failed_only(spec) && count.leaving.contains(index);
    (0..completions(spec)).filter(|index| count.is_open(*index) && !waits(index)).collect()
}

/// Each index waits for itself.
fn create_independent(
    spec: &JobSpec,
    pods: &[Arc<Pod>],
    count: &Count,
    out: &mut Plan,
    room: usize,
    now: Timestamp,
) {
    let last = policy::last_failed(spec, pods, |index| count.is_open(index));
    for index in open_indexes(spec, count).into_iter().take(room) {
        let failed = last.get(&index);
        let failures = failed.map(|pod| Failures::with(spec, pod)).unwrap_or_default();
        let last = failed.map_or(0, |pod| finished_at(pod));
        let left = Backoff { failures: failures.all(), last }.left(now.as_second());
        if left > 0 {
            look_again(out, left);
        } else {
            out.create.push(New { index: Some(index), failures: Some(failures) });
        }
    }
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
        status.failed_indexes = None;
    }
}

pub fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

pub fn completions(spec: &JobSpec) -> u32 {
    spec.completions.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

/// An absent number is 0.
pub fn number(count: usize) -> Option<i32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_wait_longer_and_longer_until_a_success() {
        let mut backoff = Backoff::default();
        let mut waits = Vec::new();
        for at in 0..9 {
            waits.push(backoff.left(at));
            backoff = backoff.after(false, at + 1);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(backoff.after(true, 9).left(9), 0);
    }
}
