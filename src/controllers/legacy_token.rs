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
use crate::token_secret::{ACCOUNT_NAME, ACCOUNT_UID, TYPE};

const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Says since when uses are noted; the API server writes it.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
/// Labels tell days.
const LOOK_AGAIN: Duration = Duration::from_secs(24 * 3_600);
/// Index of pods by the secrets that they name, as `namespace/name`.
const BY_SECRET: &str = "secret";
const WORKERS: usize = 1;

/// Every secret that a pod names, whatever for.
fn named(pod: &Pod) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let Some(spec) = &pod.spec else { return out };
    let pulls = spec.image_pull_secrets.iter().flatten();
    out.extend(pulls.map(|secret| secret.name.clone()));
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let all = container.env_from.iter().flatten();
        out.extend(all.filter_map(|from| Some(from.secret_ref.as_ref()?.name.clone())));
        let single = container.env.iter().flatten().filter_map(|env| env.value_from.as_ref());
        out.extend(single.filter_map(|from| Some(from.secret_key_ref.as_ref()?.name.clone())));
    }
    for volume in spec.volumes.iter().flatten() {
        out.extend(volume.secret.as_ref().and_then(|it| it.secret_name.clone()));
        let sources = volume.projected.iter().flat_map(|it| it.sources.iter().flatten());
        out.extend(sources.filter_map(|source| Some(source.secret.as_ref()?.name.clone())));
        let csi = volume.csi.as_ref().and_then(|it| it.node_publish_secret_ref.as_ref());
        let cephfs = volume.cephfs.as_ref().and_then(|it| it.secret_ref.as_ref());
        let rbd = volume.rbd.as_ref().and_then(|it| it.secret_ref.as_ref());
        let iscsi = volume.iscsi.as_ref().and_then(|it| it.secret_ref.as_ref());
        let flex = volume.flex_volume.as_ref().and_then(|it| it.secret_ref.as_ref());
        let references = [csi, cephfs, rbd, iscsi, flex].into_iter().flatten();
        out.extend(references.map(|secret| secret.name.clone()));
        out.extend(volume.azure_file.as_ref().map(|it| it.secret_name.clone()));
    }
    out.iter().map(|secret| format!("{}/{secret}", namespace(&pod.metadata))).collect()
}

pub async fn run(context: Context) {
    let only = ListParams::fields(format!("type={TYPE}"));
    let secrets: Cache<Secret> = context.shared.cache_where(None, only);
    let accounts: Cache<ServiceAccount> = context.shared.cache();
    let pods: Cache<Pod> = context.shared.cache();
    pods.add_index(BY_SECRET, named);
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
            let (now, days) = (base::time::now(), context.config.legacy_tokens_kept_days);
            if is_mounted || plan(&secret, account.as_deref(), days, now) == Step::Keep {
                return Ok(());
            }
            let maps = context.client.api::<ConfigMap>(Some("kube-system"));
            let tracking = maps.get_opt(TRACKING).await;
            let tracking = tracking.doing(|| "read since when uses are noted".into())?;
            let since = tracking.as_ref().and_then(|map| map.data.as_ref()?.get("since"));
            if !since.is_some_and(|since| is_long_ago(since, days, now)) {
                return Ok(());
            }
            apply(context, &secret, plan(&secret, account.as_deref(), days, now), now).await
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
fn is_long_ago(text: &str, days: i64, now: Timestamp) -> bool {
    day(text).is_some_and(|day| now.as_second().div_euclid(86_400) - day > days)
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Keep,
    Invalidate,
    Delete,
}

/// What becomes of a token that no pod names. It is unused after so many days, and goes after as
/// many more.
fn plan(secret: &Secret, account: Option<&ServiceAccount>, days: i64, now: Timestamp) -> Step {
    let meta = &secret.metadata;
    let listed = account.and_then(|account| account.secrets.as_ref()).into_iter().flatten();
    let of = annotation(meta, ACCOUNT_UID).filter(|of| !of.is_empty());
    // Of an account that has come again the token is not.
    let is_its = of.is_none_or(|of| account.is_some_and(|account| uid(&account.metadata) == of));
    let is_listed = is_its && listed.into_iter().any(|one| one.name.as_deref() == Some(name(meta)));
    let age = now.as_second().saturating_sub(created(meta)) / 86_400;
    if !is_listed || meta.deletion_timestamp.is_some() || age <= days {
        return Step::Keep;
    }
    let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key));
    // A use that cannot be read is as good as one today.
    if label(LAST_USED).is_some_and(|last| !is_long_ago(last, days, now)) {
        return Step::Keep;
    }
    match label(INVALID_SINCE) {
        Some(since) if day(since).is_some() && is_long_ago(since, days, now) => Step::Delete,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_names_a_secret_in_many_ways() {
        let pod = json!({"metadata": {"name": "p", "namespace": "x"}, "spec": {
        "imagePullSecrets": [{"name": "a"}],
        "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "b"}}]}],
        "containers": [{"name": "c", "env": [{"name": "E", "valueFrom":
            {"secretKeyRef": {"name": "c", "key": "k"}}}]}],
        "volumes": [
            {"name": "v", "secret": {"secretName": "d"}},
            {"name": "w", "projected": {"sources": [{"secret": {"name": "e"}}]}},
            {"name": "y", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "f"}}},
        ]}});
        let mut found = named(&serde_json::from_value(pod).unwrap());
        found.sort();
        assert_eq!(found, ["x/a", "x/b", "x/c", "x/d", "x/e", "x/f"]);
    }
}
