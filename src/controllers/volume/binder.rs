//! Binds claims and volumes to each other, and follows volumes whose claims go
//! (upstream, `persistentvolume-binder-controller`).
//!
//! Wakes where upstream looks again every few seconds: a volume that comes free wakes the
//! claims of its class, a class those that name it, a pod the claims it waits for.

mod rounds;

use std::sync::Arc;

use client::cache::{Key, key_of};
use client::recorder::reference;
use client::volumes;
use client::{Cache, Queue};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;

use super::claim::{self, World};
use super::reclaim;
use super::{PODS_BY_CLAIM, claims_of, write};
use crate::harness::{Context, Doing, Outcome, Settled};
use crate::owner::{name, namespace, uid};
use crate::pod;
use rounds::Rounds;

const WORKERS: usize = 4;
/// Index of claims that are not bound yet by their class; those without one under `""`.
const OPEN: &str = "open";
/// Index of volumes by their class.
const BY_CLASS: &str = "class";
/// Index of volumes by the claim they refer to, as `namespace/name`.
const BY_CLAIM: &str = "claim";
/// Index of claims by the volume they name.
const BY_VOLUME: &str = "volume";

#[derive(Clone)]
struct Binder {
    context: Context,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    classes: Cache<StorageClass>,
    pods: Cache<Pod>,
    claim_keys: Queue<Key>,
    volume_keys: Queue<Key>,
    recycled: Arc<Rounds>,
}

fn open_class(claim: &PersistentVolumeClaim) -> Vec<String> {
    let class = claim::is_open(claim).then(|| volumes::class_of_claim(claim).unwrap_or_default());
    class.map(str::to_owned).into_iter().collect()
}

fn volume_class(volume: &PersistentVolume) -> Vec<String> {
    vec![volumes::class_of_volume(volume).to_owned()]
}

fn claim_key(volume: &PersistentVolume) -> Option<Key> {
    let reference = volumes::claim_ref(volume)?;
    Some((reference.namespace.clone()?, reference.name.clone()?))
}

pub async fn run(context: Context) {
    let me = Binder {
        claims: context.shared.cache(),
        volumes: context.shared.cache(),
        classes: context.shared.cache(),
        pods: context.shared.cache(),
        claim_keys: Queue::named("claims"),
        volume_keys: Queue::named("volumes"),
        recycled: Arc::default(),
        context,
    };
    me.claims.add_index(OPEN, open_class);
    me.claims.add_index(BY_VOLUME, |claim| {
        volumes::volume_name(claim).map(str::to_owned).into_iter().collect()
    });
    me.volumes.add_index(BY_CLASS, volume_class);
    me.volumes.add_index(BY_CLAIM, |volume| {
        claim_key(volume).map(|(ns, name)| format!("{ns}/{name}")).into_iter().collect()
    });
    me.pods.add_index(PODS_BY_CLAIM, claims_of);
    let synced = async {
        me.claims.synced().await;
        me.volumes.synced().await;
        me.classes.synced().await;
        me.pods.synced().await;
    };
    if me.context.drain.until(synced).await.is_none() {
        return;
    }
    me.listen();
    let claims = me.context.work(&me.claim_keys, WORKERS, |key| me.sync_claim(key));
    let volumes = me.context.work(&me.volume_keys, WORKERS, |key| me.sync_volume(key));
    tokio::join!(claims, volumes);
}

impl Binder {
    fn listen(&self) {
        let me = self.clone();
        self.claims.on_change(move |old, new| {
            let Some(claim) = new.or(old) else { return };
            me.claim_keys.add(key_of(&**claim));
            let key = format!("{}/{}", namespace(&claim.metadata), name(&claim.metadata));
            for volume in me.volumes.indexed(BY_CLAIM, &key) {
                me.volume_keys.add(key_of(&*volume));
            }
        });
        let me = self.clone();
        self.volumes.on_change(move |old, new| {
            let Some(volume) = new.or(old) else { return };
            me.volume_keys.add(key_of(&**volume));
            if let Some(claim) = claim_key(volume) {
                me.claim_keys.add(claim);
            }
            for claim in me.claims.indexed(BY_VOLUME, name(&volume.metadata)) {
                me.claim_keys.add(key_of(&*claim));
            }
            if let Some(free) = new.filter(|volume| volumes::claim_ref(volume).is_none()) {
                me.wake_class(volumes::class_of_volume(free));
            }
        });
        let me = self.clone();
        self.classes.on_change(move |_, new| {
            let Some(class) = new else { return };
            me.wake_class(name(&class.metadata));
            if volumes::is_default_class(class) {
                me.wake_class("");
            }
        });
        let me = self.clone();
        self.pods.on_change(move |old, new| me.wake_recycled(old, new));
        let me = self.clone();
        self.pods.on_change(move |old, new| {
            let Some(pod) = new.filter(|_| old.is_none()) else { return };
            for claim in claims_of(pod) {
                let Some((namespace, name)) = claim.split_once('/') else { continue };
                if me.claims.get(namespace, name).is_some_and(|claim| claim::is_open(&claim)) {
                    me.claim_keys.add((namespace.to_owned(), name.to_owned()));
                }
            }
        });
    }

    fn wake_class(&self, class: &str) {
        for claim in self.claims.indexed(OPEN, class) {
            self.claim_keys.add(key_of(&*claim));
        }
    }

    fn world<'a>(&self, claim: &'a PersistentVolumeClaim) -> World<'a> {
        let class = volumes::class_of_claim(claim);
        let key = format!("{}/{}", namespace(&claim.metadata), name(&claim.metadata));
        let mut candidates = Vec::new();
        if volumes::volume_name(claim).is_none() {
            candidates = self.volumes.indexed(BY_CLAIM, &key);
            candidates.extend(self.volumes.indexed(BY_CLASS, class.unwrap_or_default()));
        }
        let pods = self.pods.indexed(PODS_BY_CLAIM, &key);
        let waits = |pod: &&Arc<Pod>| pod::node(pod).is_empty() && pod::is_active(pod);
        World {
            claim,
            named: volumes::volume_name(claim).and_then(|name| self.volumes.get("", name)),
            candidates,
            class: class.and_then(|class| self.classes.get("", class)),
            default_class: volumes::default_class(&self.classes.list())
                .and_then(|class| class.metadata.name.clone()),
            waiting_pods: pods
                .iter()
                .filter(waits)
                .map(|pod| name(&pod.metadata).to_owned())
                .collect(),
        }
    }

    async fn sync_claim(&self, (namespace, name): Key) -> Outcome {
        let context = &self.context;
        let Some(claim) = self.claims.get(&namespace, &name) else { return Ok(()) };
        let claim = &*claim;
        let mut world = self.world(claim);
        if let (Some(volume), None) = (volumes::volume_name(claim), &world.named)
            && volumes::is_bind_completed(claim)
        {
            // Before a claim is called lost, whoever knows for sure is asked.
            let live = context.client.all::<PersistentVolume>().get_opt(volume).await;
            world.named = live.doing(|| format!("read volume {volume}"))?.map(Arc::new);
        }
        match claim::plan(&world) {
            claim::Step::Bind(volume) => write::bind(context, &volume, claim).await,
            claim::Step::Wait(say) => {
                let told = write::claim_phase(context, claim, "Pending").await?;
                // The write comes back as a change; the event belongs to what stays.
                if let Some(say) = say.filter(|_| !told) {
                    say.to(&context.recorder, &reference(claim));
                }
                Ok(())
            }
            claim::Step::Lost(say) => {
                if write::claim_phase(context, claim, "Lost").await? {
                    say.to(&context.recorder, &reference(claim));
                }
                Ok(())
            }
            claim::Step::Provision { provisioner, say } => {
                write::ask_provisioner(context, claim, &provisioner, &say).await
            }
            claim::Step::UseClass(class) => write::use_class(context, claim, &class).await,
        }
    }

    async fn sync_volume(&self, (_, name): Key) -> Outcome {
        let context = &self.context;
        let Some(volume) = self.volumes.get("", &name) else {
            self.recycled.forget(&name);
            return Ok(());
        };
        let claim = self.claim_of(&volume).await?;
        match reclaim::plan(&volume, claim.as_deref()) {
            reclaim::Step::Nothing => Ok(()),
            reclaim::Step::Phase(phase) => {
                write::phase(context, (*volume).clone(), phase, "").await.or_gone()
            }
            reclaim::Step::LookAtClaim => {
                if let Some(key) = claim_key(&volume) {
                    self.claim_keys.add(key);
                }
                Ok(())
            }
            reclaim::Step::Unbind { forget } => write::unbind(context, &volume, forget).await,
            reclaim::Step::Recycle => self.recycle(&volume).await,
            reclaim::Step::Fail(say) => {
                say.to(&context.recorder, &reference(&*volume));
                let failed = (*volume).clone();
                write::phase(context, failed, "Failed", &say.text).await.or_gone()
            }
        }
    }

    /// The claim with the uid that a volume refers to. A cache that lags must not make a
    /// volume lose its claim, so absence is asked for.
    async fn claim_of(
        &self,
        volume: &PersistentVolume,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, crate::harness::Failed> {
        let Some((namespace, claim)) = claim_key(volume) else { return Ok(None) };
        let wanted = volumes::claim_ref(volume).and_then(|r| r.uid.as_deref()).unwrap_or_default();
        let is_it = |claim: &Arc<PersistentVolumeClaim>| uid(&claim.metadata) == wanted;
        if let Some(held) = self.claims.get(&namespace, &claim).filter(is_it) {
            return Ok(Some(held));
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        let live = self.context.client.api::<PersistentVolumeClaim>(Some(&namespace));
        let live = live.get_opt(&claim).await.doing(|| format!("read claim {claim}"))?;
        Ok(live.map(Arc::new).filter(is_it))
    }
}
