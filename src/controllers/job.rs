//! Runs the pods of a Job until enough have succeeded or too many have failed.
//!
//! `plan.rs` decides. Each pod carries a finalizer until it is counted in the status, so
//! that a pod that vanishes still counts, and counts once: its uid is written to the
//! status, then the finalizer goes, then the uid becomes a number. `policy.rs` judges pods
//! that failed, `count.rs` counts.

#[cfg(test)]
pub(crate) mod cases;
mod count;
mod indexes;
mod plan;
mod policy;
mod template;
mod ttl;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use client::{DeleteParams, Patch, Queue};
use futures::future::join_all;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::expect::Expectations;
use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{self, controller_of, name, namespace, uid};
use crate::pace::Pace;
use crate::pod;
use plan::{Backoff, New, Plan, plan};
#[cfg(test)]
pub(crate) use ttl::cases as ttl_cases;
pub use ttl::run as run_ttl;

/// Keeps a pod until its Job has counted it.
const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const OURSELVES: &str = "kubernetes.io/job-controller";
/// Index of pods with the finalizer, by the namespace and name of their Job.
const TRACKED: &str = "job";
/// Jobs worked on at a time.
const WORKERS: usize = 5;

pub async fn run(context: Context) {
    let pods = context.shared.cache::<Pod>();
    pods.add_index(owner::BY_CONTROLLER, owner::by_controller);
    pods.add_index(owner::ORPHANS, owner::orphans);
    pods.add_index(TRACKED, tracked);
    let jobs = context.shared.cache::<Job>();
    let controller = Arc::new(Controller {
        queue: Queue::named("job"),
        jobs,
        pods,
        expected: Expectations::default(),
        pace: Pace::default(),
        memories: Mutex::default(),
        context,
    });
    controller.run().await;
}

struct Controller {
    context: Context,
    queue: Queue<Key>,
    jobs: Cache<Job>,
    pods: Cache<Pod>,
    expected: Expectations,
    pace: Pace,
    /// By the uid of Jobs that were written to; dropped with the Job.
    memories: Mutex<HashMap<String, Memory>>,
}

#[derive(Clone, Copy, Default)]
struct Memory {
    backoff: Backoff,
    /// Version of the status last written: an older one in the cache would have pods
    /// made anew that are counted already.
    written: u64,
}

fn version(job: &Job) -> u64 {
    job.metadata.resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl Controller {
    async fn run(self: Arc<Self>) {
        let synced = async {
            self.jobs.synced().await;
            self.pods.synced().await;
        };
        if self.context.drain.until(synced).await.is_none() {
            return;
        }
        let me = self.clone();
        self.jobs.on_change(move |old, new| {
            if let Some(old) = old
                && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
            {
                me.memories.lock().remove(uid(&old.metadata));
            }
            for job in [old, new].into_iter().flatten() {
                me.queue.add(key_of(&**job));
            }
        });
        let me = self.clone();
        self.pods.on_change(move |old, new| me.pod_changed(old, new));
        self.context.work(&self.queue, WORKERS, |key| self.sync(key)).await;
    }

    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        let was_last = new.is_some_and(|new| self.expected.saw(uid(&new.metadata)));
        if let Some(old) = old
            && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
        {
            self.expected.gone(uid(&old.metadata));
        }
        for key in [old, new].into_iter().flatten().filter_map(|pod| job_key(pod)) {
            match was_last {
                true => self.queue.add(key),
                false => self.pace.add(&self.queue, key),
            }
        }
        let Some(pod) = new else { return };
        let relabelled = old.is_none_or(|old| old.metadata.labels != pod.metadata.labels);
        if controller_of(&pod.metadata).is_none() && relabelled {
            for job in self.jobs.list_in(namespace(&pod.metadata)) {
                if selector(&job).matches_map(pod.metadata.labels.as_ref()) {
                    self.queue.add(key_of(&*job));
                }
            }
        }
    }

    async fn sync(&self, key: Key) -> Outcome {
        let job = self.jobs.get(&key.0, &key.1);
        self.free_strangers(&key, job.as_deref()).await?;
        let Some(job) = job else {
            self.pace.looked(&key, 0);
            return Ok(());
        };
        let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
        if manager.is_some_and(|manager| manager != OURSELVES) {
            return Ok(());
        }
        let memory = self.memories.lock().get(uid(&job.metadata)).copied().unwrap_or_default();
        if version(&job) < memory.written {
            // Its event will wake us.
            return Ok(());
        }
        let pods = self.claim(&job).await?;
        self.pace.looked(&key, pods.len());
        let now = base::time::now();
        let mut plan = plan(&job, &pods, memory.backoff, now);
        if let Some(after) = plan.look_again_in {
            self.queue.add_after(key.clone(), after.max(Duration::from_millis(10)));
        }
        let mut outcome = self.delete(&job, &plan).await;
        if !plan.create.is_empty() && self.expected.are_met(&key, &self.queue) {
            let (made, created) = self.create(&job, &key, &plan.create).await;
            let active = plan.status.active.unwrap_or(0) + made;
            plan.status.active = (active > 0).then_some(active);
            outcome = outcome.and(created);
            let is_capped = plan.create.len() >= plan::BURST && outcome.is_ok();
            if is_capped && self.expected.are_met(&key, &self.queue) {
                // All of this turn was seen by now: nobody else would hurry for the next.
                self.queue.add(key.clone());
            }
        }
        if let Some(written) = self.write_status(&job, &plan.status).await? {
            let memory = Memory { backoff: plan.backoff, written };
            self.memories.lock().insert(uid(&job.metadata).to_string(), memory);
        }
        let about = reference(&*job);
        for (kind, reason, text) in &plan.events {
            self.context.recorder.event(&about, kind, reason, text.clone());
        }
        for answer in join_all(plan.free.iter().map(|pod| self.free(pod))).await {
            outcome = outcome.and(answer);
        }
        outcome
    }

    /// Pods whose Job is gone count for nobody.
    async fn free_strangers(&self, key: &Key, job: Option<&Job>) -> Outcome {
        let of_name = self.pods.indexed(TRACKED, &format!("{}/{}", key.0, key.1));
        let own = job.and_then(|job| job.metadata.uid.as_deref());
        let is_stranger = |pod: &&Arc<Pod>| {
            controller_of(&pod.metadata).is_some_and(|owner| Some(owner.uid.as_str()) != own)
        };
        let strangers: Vec<_> = of_name.iter().filter(is_stranger).collect();
        if strangers.is_empty() {
            return Ok(());
        }
        // The cache may lag behind a Job that is there.
        let api = self.context.client.api::<Job>(Some(&key.0));
        let live = api.get_opt(&key.1).await.doing(|| "look for the job of a pod".into())?;
        let live = live.and_then(|job| job.metadata.uid);
        for pod in strangers {
            if controller_of(&pod.metadata).map(|owner| &owner.uid) != live.as_ref() {
                self.free(pod).await?;
            }
        }
        Ok(())
    }

    /// The Job's pods: adopts those that match and have no controller, releases those
    /// that match no more.
    async fn claim(&self, job: &Job) -> Result<Vec<Arc<Pod>>, Failed> {
        let selector = selector(job);
        let meta = &job.metadata;
        let leaves = meta.deletion_timestamp.is_some();
        let mut mine = Vec::new();
        for pod in self.pods.indexed(owner::BY_CONTROLLER, uid(meta)) {
            if leaves || selector.matches_map(pod.metadata.labels.as_ref()) {
                mine.push(pod);
            } else {
                let patch = json!({"metadata": {"uid": pod.metadata.uid,
                    "$deleteFromPrimitiveList/finalizers": [FINALIZER],
                    "ownerReferences": [{"$patch": "delete", "uid": meta.uid}]}});
                self.patch(&pod, patch, "release").await.or_gone()?;
            }
        }
        if leaves || plan::is_over(job) || selector.is_everything() {
            return Ok(mine);
        }
        let orphans = self.pods.indexed(owner::ORPHANS, namespace(meta)).into_iter();
        let orphans: Vec<_> = orphans
            .filter(|pod| selector.matches_map(pod.metadata.labels.as_ref()) && pod::is_active(pod))
            .collect();
        if orphans.is_empty() {
            return Ok(mine);
        }
        let api = self.context.client.api::<Job>(Some(namespace(meta)));
        let live = api.get_opt(name(meta)).await.doing(|| "look whether it may adopt".into())?;
        let may_adopt = live.is_some_and(|live| {
            live.metadata.uid == meta.uid && live.metadata.deletion_timestamp.is_none()
        });
        for pod in orphans.into_iter().filter(|_| may_adopt) {
            let patch = json!({"metadata": {"uid": pod.metadata.uid, "finalizers": [FINALIZER],
                "ownerReferences": [owner::reference_to(job)]}});
            match self.patch(&pod, patch, "adopt").await {
                // It comes back as ours with its change.
                Ok(()) => {}
                Err(err) if err.source.is_not_found() || err.source.code() == 422 => {}
                Err(err) => return Err(err),
            }
        }
        Ok(mine)
    }

    async fn free(&self, pod: &Pod) -> Outcome {
        let patch = json!({"metadata": {"uid": pod.metadata.uid,
            "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        match self.patch(pod, patch, "stop tracking").await {
            // Another pod has the name by now.
            Err(err) if err.source.code() == 409 => Ok(()),
            answer => answer.or_gone(),
        }
    }

    async fn patch(&self, pod: &Pod, patch: Value, verb: &str) -> Outcome {
        let api = self.context.client.api::<Pod>(pod.metadata.namespace.as_deref());
        let name = name(&pod.metadata);
        let answer = api.patch(name, &Patch::Strategic(patch)).await;
        answer.map(drop).doing(|| format!("{verb} pod {name}"))
    }

    /// Creates in batches of 1, 2, 4 and so on, so that a quota or a broken template
    /// costs few requests. Says how many were made.
    async fn create(&self, job: &Job, key: &Key, wanted: &[New]) -> (i32, Outcome) {
        let api = self.context.client.api::<Pod>(Some(&key.0));
        let about = reference(job);
        let (mut done, mut batch, mut count) = (0, 1, 0);
        while done < wanted.len() {
            let part = &wanted[done..wanted.len().min(done + batch)];
            let creating = self.expected.creating(key);
            let new: Vec<Pod> = part.iter().map(|new| template::new_pod(job, *new)).collect();
            let answers = join_all(new.iter().map(|pod| api.create(pod))).await;
            let mut failure = None;
            for answer in answers {
                match answer {
                    Ok(made) => {
                        count += 1;
                        creating.made(uid(&made.metadata));
                        let text = format!("Created pod: {}", name(&made.metadata));
                        self.context.recorder.normal(&about, "SuccessfulCreate", text);
                    }
                    Err(err) => failure = Some(err),
                }
            }
            drop(creating);
            if let Some(err) = failure {
                if !err.is_namespace_terminating() {
                    let text = format!("Error creating: {err}");
                    self.context.recorder.warning(&about, "FailedCreate", text);
                }
                return (count, Err(err).doing(|| "create a pod".into()));
            }
            done += part.len();
            batch *= 2;
        }
        (count, Ok(()))
    }

    async fn delete(&self, job: &Job, plan: &Plan) -> Outcome {
        let about = reference(job);
        let one = |pod: Arc<Pod>| {
            let about = &about;
            async move {
                let meta = &pod.metadata;
                if self.expected.deleted(uid(meta)) {
                    return Ok(());
                }
                if !plan.deleted_count {
                    self.free(&pod).await?;
                }
                let api = self.context.client.api::<Pod>(meta.namespace.as_deref());
                self.expected.deleting(uid(meta));
                match api.delete(name(meta), &DeleteParams::uid(uid(meta))).await {
                    Ok(()) => {
                        let text = format!("Deleted pod: {}", name(meta));
                        self.context.recorder.normal(about, "SuccessfulDelete", text);
                        Ok(())
                    }
                    // It is gone, or another one has its name.
                    Err(err) if err.is_not_found() || err.code() == 409 => Ok(()),
                    Err(err) => {
                        self.expected.gone(uid(meta));
                        let text = format!("Error deleting: {err}");
                        self.context.recorder.warning(about, "FailedDelete", text);
                        Err(err).doing(|| format!("delete pod {}", name(meta)))
                    }
                }
            }
        };
        let answers = join_all(plan.delete.iter().cloned().map(one)).await;
        answers.into_iter().fold(Ok(()), Outcome::and)
    }

    /// On the version that was planned with: uids become numbers once only. Gives the
    /// version written.
    async fn write_status(&self, job: &Job, status: &JobStatus) -> Result<Option<u64>, Failed> {
        if job.status.as_ref() == Some(status) {
            return Ok(None);
        }
        let next = Job { status: Some(status.clone()), ..job.clone() };
        let api = self.context.client.api::<Job>(Some(namespace(&job.metadata)));
        let answer = api.replace_status(name(&job.metadata), &next).await;
        answer.map(|job| Some(version(&job))).doing(|| "write the status".into())
    }
}

fn selector(job: &Job) -> kinds::meta::LabelSelector {
    client::labels::selector(job.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
}

fn job_key(pod: &Pod) -> Option<Key> {
    let owner = controller_of(&pod.metadata)?;
    let ours = owner.kind == "Job" && owner.api_version == "batch/v1";
    ours.then(|| (namespace(&pod.metadata).to_string(), owner.name.clone()))
}

fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

fn tracked(pod: &Pod) -> Vec<String> {
    let key = job_key(pod).filter(|_| is_tracked(pod));
    key.map(|(namespace, name)| format!("{namespace}/{name}")).into_iter().collect()
}
