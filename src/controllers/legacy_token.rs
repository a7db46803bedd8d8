//! Tokens in secrets that were made by themselves, as clusters before v1.24 did, and that
//! nobody uses any more: they are marked as invalid, and go when that hurt nobody
//! (documentation, "Legacy ServiceAccount token cleaner").
//!
//! Whoever wants such a token back takes the mark away. A secret that somebody made is never
//! touched: only those that their account lists are.

#[cfg(test)]
pub(crate) mod cases;

use std::time::Duration;

use client::api::ListParams;
use client::cache::{Cache, Key, key_of};
use client::{DeleteParams, Patch, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use serde_json::json;

use crate::harness::{Context, Doing, Outcome, Settled};
use crate::owner::{annotation, created, name, namespace, uid};
use crate::token_secret::{ACCOUNT_NAME, TYPE};

const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Says since when uses are noted; the API server writes it.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
/// A token is unused after so many days, and goes after as many more
/// (`legacy-service-account-token-clean-up-period`).
const KEEP_DAYS: i64 = 365;
/// Labels tell days.
const LOOK_AGAIN: Duration = Duration::from_secs(24 * 3_600);
/// Index of pods by the secrets that they mount, as `namespace/name`.
const BY_SECRET: &str = "secret";
const WORKERS: usize = 1;

fn mounted(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let secrets = volumes.filter_map(|volume| volume.secret.as_ref()?.secret_name.clone());
    secrets.map(|secret| format!("{}/{secret}", namespace(&pod.metadata))).collect()
}

pub async fn run(context: Context) {
    let only = ListParams::fields(format!("type={TYPE}"));
    let secrets: Cache<Secret> = context.shared.cache_where(None, only);
    let accounts: Cache<ServiceAccount> = context.shared.cache();
    let pods: Cache<Pod> = context.shared.cache();
    pods.add_index(BY_SECRET, mounted);
    let synced = async {
        secrets.synced().await;
        accounts.synced().await;
        pods.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("legacy_service_account_token_cleaner");
    let new_ones = queue.clone();
    secrets.on_change(move |old, new| {
        if let (None, Some(secret)) = (old, new) {
            new_ones.add(key_of(&**secret));
        }
    });
    let sync = |key: Key| {
        let (context, secrets, accounts, pods) = (&context, &secrets, &accounts, &pods);
        let queue = &queue;
        async move {
            let Some(secret) = secrets.get(&key.0, &key.1) else { return Ok(()) };
            queue.add_after(key.clone(), LOOK_AGAIN);
            let account = annotation(&secret.metadata, ACCOUNT_NAME);
            let account = account.and_then(|account| accounts.get(&key.0, account));
            let is_mounted = !pods.indexed(BY_SECRET, &format!("{}/{}", key.0, key.1)).is_empty();
            let now = base::time::now();
            if is_mounted || plan(&secret, account.as_deref(), now) == Step::Keep {
                return Ok(());
            }
            let maps = context.client.api::<ConfigMap>(Some("kube-system"));
            let tracking = maps.get_opt(TRACKING).await;
            let tracking = tracking.doing(|| "read since when uses are noted".into())?;
            let since = tracking.as_ref().and_then(|map| map.data.as_ref()?.get("since"));
            if !since.is_some_and(|since| is_long_ago(since, now)) {
                return Ok(());
            }
            apply(context, &secret, plan(&secret, account.as_deref(), now), now).await
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

/// Days since 1970; None for what is no day.
fn day(text: &str) -> Option<i64> {
    let midnight = base::time::parse(&format!("{text}T00:00:00Z"))?;
    Some(midnight.as_second().div_euclid(86_400))
}

/// Whether a day is so long ago that what was not used since is not used.
fn is_long_ago(text: &str, now: Timestamp) -> bool {
    day(text).is_some_and(|day| now.as_second().div_euclid(86_400) - day > KEEP_DAYS)
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Keep,
    Invalidate,
    Delete,
}

/// What becomes of a token that no pod mounts.
fn plan(secret: &Secret, account: Option<&ServiceAccount>, now: Timestamp) -> Step {
    let meta = &secret.metadata;
    let listed = account.and_then(|account| account.secrets.as_ref()).into_iter().flatten();
    let is_listed = listed.into_iter().any(|one| one.name.as_deref() == Some(name(meta)));
    let age = now.as_second().saturating_sub(created(meta)) / 86_400;
    if !is_listed || meta.deletion_timestamp.is_some() || age <= KEEP_DAYS {
        return Step::Keep;
    }
    let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key));
    // A use that cannot be read is as good as one today.
    if label(LAST_USED).is_some_and(|last| !is_long_ago(last, now)) {
        return Step::Keep;
    }
    match label(INVALID_SINCE) {
        Some(since) if day(since).is_some() && is_long_ago(since, now) => Step::Delete,
        Some(since) if day(since).is_some() => Step::Keep,
        Some(_) | None => Step::Invalidate,
    }
}

async fn apply(context: &Context, secret: &Secret, step: Step, now: Timestamp) -> Outcome {
    let meta = &secret.metadata;
    let api = context.client.api::<Secret>(Some(namespace(meta)));
    match step {
        Step::Keep => Ok(()),
        Step::Invalidate => {
            let today = now.strftime("%Y-%m-%d").to_string();
            let patch = json!({"metadata": {"uid": meta.uid,
                "resourceVersion": meta.resource_version, "labels": {INVALID_SINCE: today}}});
            let answer = api.patch(name(meta), &Patch::Merge(patch)).await;
            answer.doing(|| "mark an unused token as invalid".into()).or_gone()
        }
        Step::Delete => {
            let params = DeleteParams {
                resource_version: meta.resource_version.clone(),
                ..DeleteParams::uid(uid(meta))
            };
            let answer = api.delete(name(meta), &params).await;
            answer.doing(|| "delete an unused token".into()).or_gone()
        }
    }
}
