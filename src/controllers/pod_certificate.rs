//! Certificate requests of pods go when they have been answered, or should have been.
//!
//! Nobody reads them later: kubelets keep what was issued.

use std::time::Duration;

use client::cache::{Cache, Key, key_of};
use client::{DeleteParams, Queue};
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;

use crate::harness::{Context, Doing, Settled};
use crate::owner::{created, uid};

/// All is over sooner (kube-controller-manager's own figure).
const KEPT_SECONDS: i64 = 15 * 60;
const WORKERS: usize = 2;

pub async fn run(context: Context) {
    let requests: Cache<PodCertificateRequest> = context.shared.cache();
    if context.drain.until(requests.synced()).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("podcertificaterequest_cleaner");
    let new_ones = queue.clone();
    requests.on_change(move |old, new| {
        if let (None, Some(request)) = (old, new) {
            new_ones.add(key_of(&**request));
        }
    });
    let sync = |key: Key| {
        let (context, requests, queue) = (&context, &requests, &queue);
        async move {
            let Some(request) = requests.get(&key.0, &key.1) else { return Ok(()) };
            let left = left(created(&request.metadata), base::time::now().as_second());
            if !left.is_zero() {
                queue.add_after(key, left);
                return Ok(());
            }
            let api = context.client.api::<PodCertificateRequest>(Some(&key.0));
            let answer = api.delete(&key.1, &DeleteParams::uid(uid(&request.metadata))).await;
            answer.doing(|| "remove a certificate request of a pod".into()).or_gone()
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

/// For how long a request is kept yet.
fn left(created: i64, now: i64) -> Duration {
    let seconds = created.saturating_add(KEPT_SECONDS).saturating_sub(now);
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_kept_for_a_quarter_of_an_hour() {
        for (now, want) in [(0, 900), (899, 1), (900, 0), (5_000, 0)] {
            assert_eq!(left(1_000_000, 1_000_000 + now), Duration::from_secs(want), "{now}");
        }
    }
}
