//! Removes finished Jobs after their `ttlSecondsAfterFinished`.

use std::time::Duration;

use client::Queue;
use client::api::{DeleteParams, Propagation};
use client::cache::{Cache, Key, key_of};
use k8s_openapi::api::batch::v1::Job;

use super::plan::ended;
use crate::harness::{Context, Doing, Settled};

pub async fn run(context: Context) {
    let jobs: Cache<Job> = context.shared.cache();
    if context.drain.until(jobs.synced()).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("ttl_jobs_to_delete");
    let again = queue.clone();
    jobs.on_change(move |_, new| {
        if let Some(job) = new
            && expires(job).is_some()
        {
            again.add(key_of(&**job));
        }
    });
    let sync = |key: Key| {
        let (context, jobs, queue) = (&context, &jobs, &queue);
        async move {
            let cached = jobs.get(&key.0, &key.1);
            let Some(expires) = cached.and_then(|job| expires(&job)) else { return Ok(()) };
            if let Some(left) = left(expires) {
                queue.add_after(key, left);
                return Ok(());
            }
            // The time to live may have grown meanwhile.
            let api = context.client.api::<Job>(Some(&key.0));
            let live = api.get_opt(&key.1).await.doing(|| "look for a job".into())?;
            let Some(live) =
                live.filter(|job| self::expires(job).is_some_and(|at| left(at).is_none()))
            else {
                return Ok(());
            };
            let params = DeleteParams {
                resource_version: live.metadata.resource_version,
                ..DeleteParams::uid(live.metadata.uid.unwrap_or_default())
            };
            let params = params.propagation(Propagation::Foreground);
            api.delete(&key.1, &params).await.doing(|| "remove a job".into()).or_gone()
        }
    };
    context.work(&queue, 2, sync).await;
}

/// Seconds since 1970.
fn expires(job: &Job) -> Option<i64> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let waits = job.metadata.deletion_timestamp.is_none();
    ended(job).filter(|_| waits).map(|at| at.saturating_add(i64::from(ttl)))
}

fn left(expires: i64) -> Option<Duration> {
    let left = u64::try_from(expires - base::time::now().as_second()).unwrap_or(0);
    (left > 0).then(|| Duration::from_secs(left))
}
