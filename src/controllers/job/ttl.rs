//! Removes finished Jobs after their `ttlSecondsAfterFinished`.

use std::time::Duration;

use client::Queue;
use client::api::{DeleteParams, Propagation};
use client::cache::{Cache, Key, key_of};
use jiff::Timestamp;
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
            && next(job, base::time::now()) != Next::Stay
        {
            again.add(key_of(&**job));
        }
    });
    let sync = |key: Key| {
        let (context, jobs, queue) = (&context, &jobs, &queue);
        async move {
            let Some(cached) = jobs.get(&key.0, &key.1) else { return Ok(()) };
            match next(&cached, base::time::now()) {
                Next::Stay => return Ok(()),
                Next::Wait(left) => {
                    queue.add_after(key, left);
                    return Ok(());
                }
                Next::Go => {}
            }
            // The time to live may have grown meanwhile.
            let api = context.client.api::<Job>(Some(&key.0));
            let live = api.get_opt(&key.1).await.doing(|| "look for a job".into())?;
            let goes = |job: &Job| next(job, base::time::now()) == Next::Go;
            let Some(live) = live.filter(goes) else { return Ok(()) };
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

/// What becomes of a Job; by the wall clock, for the time of its end is the API's.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Stay,
    Wait(Duration),
    Go,
}

fn next(job: &Job, now: Timestamp) -> Next {
    let ttl = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished);
    let stays = job.metadata.deletion_timestamp.is_some();
    let (Some(ttl), Some(ended), false) = (ttl, ended(job), stays) else { return Next::Stay };
    let expires = ended.saturating_add(i64::from(ttl));
    match u64::try_from(expires.saturating_sub(now.as_second())) {
        Ok(left) if left > 0 => Next::Wait(Duration::from_secs(left)),
        Ok(_) | Err(_) => Next::Go,
    }
}

/// Reads the cases of finished Jobs: a `job`.
#[cfg(test)]
pub fn cases(world: &serde_json::Value) -> Vec<String> {
    match next(&crate::cases::object(&world["job"]), crate::cases::now()) {
        Next::Stay => Vec::new(),
        Next::Wait(left) => vec![format!("look again in {} s", left.as_secs())],
        Next::Go => vec!["remove".into()],
    }
}
