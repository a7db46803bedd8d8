//! What the pods of a Job have come to. Pure.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;

use super::plan::{BURST, End, Plan, completions, is_indexed, number};
use super::policy::{self, Verdict};
use super::template::index_of;
use super::{indexes, is_tracked};
use crate::owner::{created, uid};
use crate::pod;

/// What the pods say, beside the numbers in the status.
pub struct Count {
    pub active: Vec<Arc<Pod>>,
    pub ready: i32,
    pub terminating: i32,
    /// Indexes of active pods.
    pub busy: HashSet<u32>,
    /// Indexes of pods that are terminating.
    pub leaving: HashSet<u32>,
    pub completed: BTreeSet<u32>,
    /// Indexes that failed for good.
    pub lost: BTreeSet<u32>,
    pub succeeded: i32,
    pub failed: i32,
}

impl Count {
    /// Whether an index has come to no end, and nobody works on it.
    pub fn is_open(&self, index: u32) -> bool {
        let settled = self.completed.contains(&index) || self.lost.contains(&index);
        !settled && !self.busy.contains(&index)
    }
}

/// Uids whose pods are tracked no more become numbers.
pub fn settle_uncounted(status: &mut JobStatus, held: &HashSet<&str>) {
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

/// Counts, and notes newly ended pods in the plan. Where the Job comes to its `end`, pods that
/// are taken away end now.
pub fn count(spec: &JobSpec, pods: &[Arc<Pod>], out: &mut Plan, end: Option<&End>) -> Count {
    let mut count = look(spec, pods, &out.status, end.is_some());
    let mut ended: Vec<(i64, bool)> = Vec::new();
    let keep: HashSet<&str> = match end {
        Some(_) => HashSet::new(),
        None => {
            let last = policy::last_failed(spec, pods, |index| count.is_open(index));
            last.values().map(|pod| uid(&pod.metadata)).collect()
        }
    };
    let mut waiting = 0;
    let uncounted = out.status.uncounted_terminated_pods.get_or_insert_default();
    let mut free: Vec<Arc<Pod>> = Vec::new();
    for pod in pods.iter().filter(|pod| is_tracked(pod)) {
        let leaves = pod.metadata.deletion_timestamp.is_some();
        let succeeded = pod::phase(pod) == "Succeeded";
        if !(succeeded || policy::is_failed(spec, pod) || (end.is_some() && leaves)) {
            continue;
        }
        // What is taken away because enough has succeeded has not failed.
        let spared = end.is_some_and(End::is_success) && pod::phase(pod) != "Failed";
        let counts = succeeded || !(spared || policy::judge(spec, pod) == Verdict::Ignored);
        if keep.contains(uid(&pod.metadata)) {
            waiting += i32::from(counts);
            continue;
        }
        if free.len() >= BURST {
            continue;
        }
        free.push(pod.clone());
        let index = index_of(pod).filter(|index| *index < completions(spec));
        if is_indexed(spec) && index.is_none() {
            continue;
        }
        let is_new = match (succeeded, index) {
            (true, Some(index)) if is_indexed(spec) => count.completed.insert(index),
            _ if counts => {
                let list = if succeeded { &mut uncounted.succeeded } else { &mut uncounted.failed };
                let list = list.get_or_insert_default();
                let uid = uid(&pod.metadata);
                let is_new = !list.iter().any(|held| held == uid);
                if is_new {
                    list.push(uid.to_string());
                }
                is_new
            }
            _ => !spared,
        };
        if is_new {
            ended.push((finished_at(pod), succeeded));
        }
    }
    ended.sort_unstable();
    for (at, succeeded) in ended {
        out.backoff = out.backoff.after(succeeded, at);
    }
    if is_indexed(spec) {
        out.status.succeeded = number(count.completed.len());
        let text = indexes::print(&count.completed);
        out.status.completed_indexes = (!text.is_empty()).then_some(text);
        out.status.failed_indexes = policy::is_per_index(spec).then(|| indexes::print(&count.lost));
    }
    out.free = free;
    let uncounted = out.status.uncounted_terminated_pods.clone().unwrap_or_default();
    let with = |number: Option<i32>, list: &Option<Vec<String>>| {
        number.unwrap_or(0) + list.as_ref().map_or(0, Vec::len) as i32
    };
    count.succeeded = with(out.status.succeeded, &uncounted.succeeded);
    count.failed = with(out.status.failed, &uncounted.failed) + waiting;
    count
}

/// What runs and what indexes have come to, before anything new is counted; in the `end`
/// nothing more is lost.
fn look(spec: &JobSpec, pods: &[Arc<Pod>], status: &JobStatus, ends: bool) -> Count {
    let end = completions(spec);
    let read = |text: &Option<String>| indexes::parse(text.as_deref().unwrap_or_default(), end);
    let mut count = Count {
        active: Vec::new(),
        ready: 0,
        terminating: 0,
        busy: HashSet::new(),
        leaving: HashSet::new(),
        completed: read(&status.completed_indexes),
        lost: read(&status.failed_indexes),
        succeeded: 0,
        failed: 0,
    };
    for pod in pods {
        let leaves = pod.metadata.deletion_timestamp.is_some();
        if pod::is_active(pod) {
            count.ready += i32::from(pod::is_ready(pod));
            count.active.push(pod.clone());
            count.busy.extend(index_of(pod));
        } else if leaves && !pod::is_finished(pod) {
            count.terminating += 1;
            count.leaving.extend(index_of(pod));
        }
        if !ends && is_tracked(pod) && policy::fails_index(spec, pod) {
            let index = index_of(pod).filter(|index| *index < end);
            count.lost.extend(index.filter(|index| !count.completed.contains(index)));
        }
    }
    count
}

/// When the last container ended; of pods that say nothing, when they were to go.
pub fn finished_at(pod: &Pod) -> i64 {
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
