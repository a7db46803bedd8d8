//! Keeps VolumeAttributesClasses that claims or volumes name from going (upstream,
//! `volumeattributesclass-protection-controller`).

use client::cache::Key;
use client::{Cache, Queue};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;

use super::protect::{Step, apply, plan};
use crate::harness::{Context, Doing, Settled};
use crate::owner::name;

const FINALIZER: &str = "kubernetes.io/vac-protection";
const BY_CLASS: &str = "attributes class";
const WORKERS: usize = 1;

/// The classes of a claim: the one it wants, the one it has and the one it moves to.
fn of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    let status = claim.status.as_ref();
    let has = status.and_then(|status| status.current_volume_attributes_class_name.clone());
    let moving = status.and_then(|status| status.modify_volume_status.as_ref());
    let next = moving.and_then(|moving| moving.target_volume_attributes_class_name.clone());
    let mut all: Vec<String> =
        [wanted, has, next].into_iter().flatten().filter(|name| !name.is_empty()).collect();
    all.sort();
    all.dedup();
    all
}

fn of_volume(volume: &PersistentVolume) -> Vec<String> {
    let class = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    class.filter(|name| !name.is_empty()).into_iter().collect()
}

pub async fn run(context: Context) {
    let classes: Cache<VolumeAttributesClass> = context.shared.cache();
    let claims: Cache<PersistentVolumeClaim> = context.shared.cache();
    let volumes: Cache<PersistentVolume> = context.shared.cache();
    claims.add_index(BY_CLASS, of_claim);
    volumes.add_index(BY_CLASS, of_volume);
    let synced = async {
        classes.synced().await;
        claims.synced().await;
        volumes.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("vacprotection");
    let changed = queue.clone();
    classes.on_change(move |_, new| {
        if let Some(class) = new {
            changed.add((String::new(), name(&class.metadata).to_owned()));
        }
    });
    // A class may go when one that named it names it no more.
    let left = |queue: &Queue<Key>, before: Vec<String>, now: Vec<String>| {
        for class in before.into_iter().filter(|class| !now.contains(class)) {
            queue.add((String::new(), class));
        }
    };
    let again = queue.clone();
    claims.on_change(move |old, new| {
        let of = |claim: Option<&std::sync::Arc<PersistentVolumeClaim>>| {
            claim.map(|claim| of_claim(claim)).unwrap_or_default()
        };
        left(&again, of(old), of(new));
    });
    let again = queue.clone();
    volumes.on_change(move |old, new| {
        let of = |volume: Option<&std::sync::Arc<PersistentVolume>>| {
            volume.map(|volume| of_volume(volume)).unwrap_or_default()
        };
        left(&again, of(old), of(new));
    });
    let sync = |(_, name): Key| {
        let (context, classes, claims, volumes) = (&context, &classes, &claims, &volumes);
        async move {
            let Some(class) = classes.get("", &name) else { return Ok(()) };
            let mut used = !claims.indexed(BY_CLASS, &name).is_empty()
                || !volumes.indexed(BY_CLASS, &name).is_empty();
            if plan(&class.metadata, FINALIZER, used) == Step::Remove {
                // The caches may not have seen yet who names it.
                let api = context.client.all::<PersistentVolumeClaim>();
                let live = api.list(&Default::default()).await;
                let live = live.doing(|| "list the claims that may name a class".into())?;
                let api = context.client.all::<PersistentVolume>();
                let volumes = api.list(&Default::default()).await;
                let volumes = volumes.doing(|| "list the volumes that may name a class".into())?;
                used = live.items.iter().any(|claim| of_claim(claim).contains(&name))
                    || volumes.items.iter().any(|volume| of_volume(volume).contains(&name));
            }
            let step = plan(&class.metadata, FINALIZER, used);
            if step == Step::Nothing {
                return Ok(());
            }
            let mut changed = (*class).clone();
            apply(&mut changed.metadata, FINALIZER, &step);
            let api = context.client.all::<VolumeAttributesClass>();
            let written = api.replace(&name, &changed).await;
            written.doing(|| format!("{step:?} the finalizer of class {name}")).or_gone()
        }
    };
    context.work(&queue, WORKERS, sync).await;
}
