//! Starts the Jobs of CronJobs when their time comes, and removes old ones.
//!
//! `plan.rs` decides. Nothing polls: a key sleeps until its next time, and when the wall
//! clock is set all look again.

#[cfg(test)]
pub(crate) mod cases;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use base::error::chain;
use client::api::Propagation;
use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use client::{DeleteParams, Queue};
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use parking_lot::Mutex;
use tracing::warn;

use crate::expect::Expectations;
use crate::harness::{Context, Doing, Failed, Outcome};
use crate::owner::{self, controller_of, name, namespace, uid};
use plan::{Plan, World, plan};

/// CronJobs worked on at a time.
const WORKERS: usize = 5;

pub async fn run(context: Context) {
    let jobs = context.shared.cache::<Job>();
    jobs.add_index(owner::BY_CONTROLLER, owner::by_controller);
    let me = Arc::new(Controller {
        queue: Queue::named("cronjob"),
        crons: context.shared.cache(),
        jobs,
        expected: Expectations::default(),
        written: Mutex::default(),
        context,
    });
    me.run().await;
}

struct Controller {
    context: Context,
    queue: Queue<Key>,
    crons: Cache<CronJob>,
    jobs: Cache<Job>,
    /// Of deletions only: a Job that is made twice is refused by its name.
    expected: Expectations,
    /// Versions of statuses last written, by uid; dropped with the CronJob. An older one in
    /// the cache would not know what was started.
    written: Mutex<HashMap<String, u64>>,
}

fn version(cron: &CronJob) -> u64 {
    cron.metadata.resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl Controller {
    async fn run(self: Arc<Self>) {
        let synced = async {
            self.crons.synced().await;
            self.jobs.synced().await;
        };
        if self.context.drain.until(synced).await.is_none() {
            return;
        }
        let me = self.clone();
        self.crons.on_change(move |old, new| {
            if let Some(old) = old
                && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
            {
                me.written.lock().remove(uid(&old.metadata));
            }
            if let Some(cron) = new {
                me.queue.add(key_of(&**cron));
            }
        });
        let me = self.clone();
        self.jobs.on_change(move |old, new| {
            if let Some(old) = old
                && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
            {
                me.expected.gone(uid(&old.metadata));
            }
            for job in [old, new].into_iter().flatten() {
                let owner = controller_of(&job.metadata).filter(|o| o.kind == "CronJob");
                if let Some(owner) = owner {
                    me.queue.add((namespace(&job.metadata).into(), owner.name.clone()));
                }
            }
        });
        tokio::join!(
            self.context.work(&self.queue, WORKERS, |key| self.sync(key)),
            self.context.drain.until(self.follow_clock()),
        );
    }

    /// Timers count what passes, not what the wall clock says.
    async fn follow_clock(&self) {
        let follow = async {
            let jumps = base::clock::Jumps::watch()?;
            loop {
                jumps.next().await?;
                for cron in self.crons.list() {
                    self.queue.add(key_of(&*cron));
                }
            }
        };
        let end: std::io::Result<()> = follow.await;
        if let Err(err) = end {
            warn!(error = %chain(&err), "changes of the wall clock go unnoticed");
        }
    }

    async fn sync(&self, key: Key) -> Outcome {
        let Some(cron) = self.crons.get(&key.0, &key.1) else { return Ok(()) };
        let written = self.written.lock().get(uid(&cron.metadata)).copied().unwrap_or(0);
        if version(&cron) < written {
            // Its event will wake us.
            return Ok(());
        }
        let mut jobs = self.jobs.indexed(owner::BY_CONTROLLER, uid(&cron.metadata));
        jobs.retain(|job| !self.expected.deleted(uid(&job.metadata)));
        let gone = self.gone(&cron, &jobs).await?;
        let mut plan = plan(&World {
            cron: &cron,
            jobs: &jobs,
            gone: &gone,
            now: base::time::now(),
            local: &TimeZone::system(),
        });
        if let Some(after) = plan.look_again_in {
            self.queue.add_after(key, after);
        }
        let about = reference(&*cron);
        for (kind, reason, text) in std::mem::take(&mut plan.events) {
            self.context.recorder.event(&about, kind, reason, text);
        }
        let done = self.apply(&cron, &mut plan).await;
        self.write_status(&cron, plan.status).await?;
        done
    }

    /// Jobs of the status that are not there, whatever the cache says.
    async fn gone(&self, cron: &CronJob, jobs: &[Arc<Job>]) -> Result<Vec<String>, Failed> {
        let mut gone = Vec::new();
        let api = self.context.client.api::<Job>(Some(namespace(&cron.metadata)));
        for one in cron.status.iter().flat_map(|s| s.active.iter().flatten()) {
            if jobs.iter().any(|job| job.metadata.uid == one.uid) {
                continue;
            }
            let live = api.get_opt(one.name.as_deref().unwrap_or_default()).await;
            let live = live.doing(|| "look for a job in the status".into())?;
            if live.is_none_or(|live| live.metadata.uid != one.uid) {
                gone.extend(one.uid.clone());
            }
        }
        Ok(gone)
    }

    async fn apply(&self, cron: &CronJob, plan: &mut Plan) -> Outcome {
        for job in std::mem::take(&mut plan.delete) {
            self.delete(cron, &job).await?;
            plan.deleted(&job);
        }
        let Some(job) = plan.create.take() else { return Ok(()) };
        let api = self.context.client.api::<Job>(Some(namespace(&cron.metadata)));
        let about = reference(cron);
        match api.create(&job).await {
            Ok(made) => {
                let text = format!("Created job {}", name(&made.metadata));
                self.context.recorder.normal(&about, "SuccessfulCreate", text);
                plan.started(&made);
                Ok(())
            }
            Err(err) if err.is_already_exists() => {
                // We made it and could not say so; or somebody else did, who says so himself.
                let live = api.get_opt(name(&job.metadata)).await;
                let live = live.doing(|| "read a job of this time".into())?;
                let ours = |job: &Job| {
                    controller_of(&job.metadata).is_some_and(|o| o.uid == uid(&cron.metadata))
                };
                if let Some(live) = live.filter(ours) {
                    plan.started(&live);
                }
                Ok(())
            }
            Err(err) => {
                if !err.is_namespace_terminating() {
                    let text = format!("Error creating job: {err}");
                    self.context.recorder.warning(&about, "FailedCreate", text);
                }
                Err(err).doing(|| "create a job".into())
            }
        }
    }

    async fn delete(&self, cron: &CronJob, job: &Job) -> Outcome {
        let meta = &job.metadata;
        let api = self.context.client.api::<Job>(meta.namespace.as_deref());
        let params = DeleteParams::uid(uid(meta)).propagation(Propagation::Background);
        self.expected.deleting(uid(meta));
        let answer = api.delete(name(meta), &params).await;
        let about = reference(cron);
        match answer {
            Ok(()) => {
                let text = format!("Deleted job {}", name(meta));
                self.context.recorder.normal(&about, "SuccessfulDelete", text);
                Ok(())
            }
            // It is gone, or another one has its name.
            Err(err) if err.is_not_found() || err.code() == 409 => Ok(()),
            Err(err) => {
                self.expected.gone(uid(meta));
                let text = format!("Deleted job: {err}");
                self.context.recorder.warning(&about, "FailedDelete", text);
                Err(err).doing(|| format!("delete job {}", name(meta)))
            }
        }
    }

    async fn write_status(&self, cron: &CronJob, status: CronJobStatus) -> Outcome {
        if cron.status.as_ref().unwrap_or(&CronJobStatus::default()) == &status {
            return Ok(());
        }
        let next = CronJob { status: Some(status), ..cron.clone() };
        let api = self.context.client.api::<CronJob>(cron.metadata.namespace.as_deref());
        let answer = api.replace_status(name(&cron.metadata), &next).await;
        let made = answer.doing(|| "write the status".into())?;
        self.written.lock().insert(uid(&cron.metadata).to_string(), version(&made));
        Ok(())
    }
}
