//! Keeps claims that pods use and volumes that claims use from going
//! (upstream, `pvc-protection-controller` and `pv-protection-controller`).
//!
//! A finalizer holds them; it is taken away when nobody uses them any more.

use client::api::ListParams;
use client::cache::{Key, key_of};
use client::{Cache, Queue};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{PODS_BY_CLAIM, claims_of};
use crate::harness::{Context, Doing, Outcome, Settled};
use crate::pod;

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const WORKERS: usize = 2;

#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Nothing,
    Add,
    Remove,
}

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|held| held == finalizer)
}

pub(super) fn plan(meta: &ObjectMeta, finalizer: &str, used: bool) -> Step {
    match (meta.deletion_timestamp.is_some(), has(meta, finalizer)) {
        (true, true) if !used => Step::Remove,
        (false, false) => Step::Add,
        _ => Step::Nothing,
    }
}

pub(super) fn apply(meta: &mut ObjectMeta, finalizer: &str, step: &Step) {
    let list = meta.finalizers.get_or_insert_default();
    match step {
        Step::Nothing => {}
        Step::Add => list.push(finalizer.to_owned()),
        Step::Remove => list.retain(|held| held != finalizer),
    }
}

/// A pod uses its claims from when it has a node until its object goes; those that are its own,
/// until its node is done with it: its object may wait for them to go first.
fn uses(pod: &Pod, claim: &str) -> bool {
    let is_own = || own_claims_of(pod).any(|used| used == claim);
    !pod::node(pod).is_empty()
        && claims_of(pod).iter().any(|used| used == claim)
        && !(is_shut_down(pod) && is_own())
}

/// The node is done with the pod, or it was deleted by force.
fn is_shut_down(pod: &Pod) -> bool {
    let meta = &pod.metadata;
    meta.deletion_timestamp.is_some() && meta.deletion_grace_period_seconds == Some(0)
}

/// The claims of the pod's ephemeral volumes.
fn own_claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    let meta = &pod.metadata;
    let (namespace, of) = (crate::owner::namespace(meta), crate::owner::name(meta));
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let own = volumes.filter(|volume| volume.ephemeral.is_some());
    own.map(move |volume| format!("{namespace}/{of}-{}", volume.name))
}

pub async fn run_claims(context: Context) {
    let claims: Cache<PersistentVolumeClaim> = context.shared.cache();
    let pods: Cache<Pod> = context.shared.cache();
    pods.add_index(PODS_BY_CLAIM, claims_of);
    let synced = async {
        claims.synced().await;
        pods.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("pvcprotection");
    let changed = queue.clone();
    claims.on_change(move |_, new| {
        if let Some(claim) = new {
            changed.add(key_of(&**claim));
        }
    });
    let again = queue.clone();
    pods.on_change(move |old, new| {
        let freed = match (old, new) {
            (Some(gone), None) => claims_of(gone),
            (old, Some(pod)) if is_shut_down(pod) && !old.is_some_and(|old| is_shut_down(old)) => {
                own_claims_of(pod).collect()
            }
            _ => return,
        };
        for (namespace, name) in freed.iter().filter_map(|key| key.split_once('/')) {
            again.add((namespace.to_owned(), name.to_owned()));
        }
    });
    let sync = |(namespace, name): Key| {
        let (context, claims, pods) = (&context, &claims, &pods);
        async move {
            let Some(claim) = claims.get(&namespace, &name) else { return Ok(()) };
            let key = format!("{namespace}/{name}");
            let mut used = pods.indexed(PODS_BY_CLAIM, &key).iter().any(|pod| uses(pod, &key));
            if plan(&claim.metadata, CLAIM, used) == Step::Remove {
                // The cache may not have seen the pod yet that uses it.
                let live = context.client.api::<Pod>(Some(&namespace));
                let live = live.list(&ListParams::default()).await;
                let live = live.doing(|| "list the pods that may use a claim".into())?;
                used = live.items.iter().any(|pod| uses(pod, &key));
            }
            let step = plan(&claim.metadata, CLAIM, used);
            if step == Step::Nothing {
                return Ok(());
            }
            let mut changed = (*claim).clone();
            apply(&mut changed.metadata, CLAIM, &step);
            let api = context.client.api::<PersistentVolumeClaim>(Some(&namespace));
            let written = api.replace(&name, &changed).await;
            written.doing(|| format!("{step:?} the finalizer of claim {key}")).or_gone()
        }
    };
    context.work(&queue, WORKERS, sync).await;
}

pub async fn run_volumes(context: Context) {
    let volumes: Cache<PersistentVolume> = context.shared.cache();
    if context.drain.until(volumes.synced()).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("pvprotection");
    let changed = queue.clone();
    volumes.on_change(move |_, new| {
        if let Some(volume) = new {
            changed.add(key_of(&**volume));
        }
    });
    let sync = |(_, name): Key| {
        let (context, volumes) = (&context, &volumes);
        async move { protect_volume(context, volumes, &name).await }
    };
    context.work(&queue, WORKERS, sync).await;
}

async fn protect_volume(context: &Context, volumes: &Cache<PersistentVolume>, of: &str) -> Outcome {
    let Some(volume) = volumes.get("", of) else { return Ok(()) };
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let step = plan(&volume.metadata, VOLUME, phase == Some("Bound"));
    if step == Step::Nothing {
        return Ok(());
    }
    let mut changed = (*volume).clone();
    apply(&mut changed.metadata, VOLUME, &step);
    let written = context.client.all::<PersistentVolume>().replace(of, &changed).await;
    written.doing(|| format!("{step:?} the finalizer of volume {of}")).or_gone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_finalizer_goes_when_the_object_should_and_nobody_uses_it() {
        let meta = |finalizers: Value, going: bool| -> ObjectMeta {
            let at = going.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({"finalizers": finalizers, "deletionTimestamp": at}))
                .unwrap()
        };
        for (finalizers, going, used, want) in [
            (json!([]), false, false, Step::Add),
            (json!(["x", CLAIM]), false, true, Step::Nothing),
            (json!([CLAIM]), true, true, Step::Nothing),
            (json!([CLAIM]), true, false, Step::Remove),
            (json!(["x"]), true, false, Step::Nothing),
        ] {
            assert_eq!(plan(&meta(finalizers, going), CLAIM, used), want);
        }
        let mut held = meta(json!(["x", CLAIM]), true);
        apply(&mut held, CLAIM, &Step::Remove);
        assert_eq!(held.finalizers, Some(vec!["x".to_owned()]));
    }

    #[test]
    fn a_pod_uses_its_claims_from_when_it_has_a_node() {
        let mut pod = json!({"metadata": {"namespace": "n", "name": "p"}, "spec": {"containers": [],
            "volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "c"}},
                {"name": "b", "ephemeral": {}}]}});
        let read = |pod: &Value| serde_json::from_value::<Pod>(pod.clone()).unwrap();
        assert_eq!(claims_of(&read(&pod)), ["n/c", "n/p-b"]);
        assert!(!uses(&read(&pod), "n/c"));
        pod["spec"]["nodeName"] = "m".into();
        assert!(uses(&read(&pod), "n/c") && uses(&read(&pod), "n/p-b"));
        assert!(!uses(&read(&pod), "n/d"));
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        assert!(uses(&read(&pod), "n/c") && uses(&read(&pod), "n/p-b"));
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        assert!(uses(&read(&pod), "n/c") && !uses(&read(&pod), "n/p-b"), "its own may go");
    }
}
