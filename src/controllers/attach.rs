//! Volumes of CSI drivers are attached to the nodes whose pods use them, and detached when
//! none does (upstream, `attachdetach-controller`).
//!
//! Only writes VolumeAttachments and what nodes have attached; drivers attach.

#[cfg(test)]
pub(crate) mod cases;
mod figures;
mod plan;
mod slow;
mod taken;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::cache::{Key, key_of};
use client::recorder::reference;
use client::{Cache, DeleteParams, Patch, Queue, volumes};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use parking_lot::Mutex;
use serde_json::json;

use crate::harness::{Context, Doing, Outcome, Settled};
use crate::owner::{name, uid};
use crate::pod;
use crate::volume::{PODS_BY_CLAIM, claims_of};
use plan::{Disk, Step};

const WORKERS: usize = 2;
/// Index of pods by their node.
const BY_NODE: &str = "node";
/// Index of attachments by their node.
const ATTACHED_TO: &str = "node";
/// Index of attachments by their volume.
const BY_VOLUME: &str = "volume";
/// How long a node that does not answer is waited for to unmount (upstream,
/// `maxWaitForUnmountDuration`).
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(6 * 60);

struct Attacher {
    context: Context,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    nodes: Cache<Node>,
    drivers: Cache<CSIDriver>,
    attachments: Cache<VolumeAttachment>,
    /// Since when attachments are unwanted and in use.
    lingering: Mutex<HashMap<String, Instant>>,
    taken: Mutex<taken::Taken>,
    slow: Mutex<slow::Slow>,
}

pub async fn run(context: Context) {
    let me = Arc::new(Attacher {
        pods: context.shared.cache(),
        claims: context.shared.cache(),
        volumes: context.shared.cache(),
        nodes: context.shared.cache(),
        drivers: context.shared.cache(),
        attachments: context.shared.cache(),
        lingering: Mutex::default(),
        taken: Mutex::default(),
        slow: Mutex::default(),
        context,
    });
    me.pods.add_index(PODS_BY_CLAIM, claims_of);
    me.pods.add_index(BY_NODE, |pod| vec![pod::node(pod).to_owned()]);
    me.attachments.add_index(ATTACHED_TO, |held| vec![held.spec.node_name.clone()]);
    me.attachments.add_index(BY_VOLUME, |held| {
        held.spec.source.persistent_volume_name.iter().cloned().collect()
    });
    let synced = async {
        me.pods.synced().await;
        me.claims.synced().await;
        me.volumes.synced().await;
        me.nodes.synced().await;
        me.drivers.synced().await;
        me.attachments.synced().await;
    };
    if me.context.drain.until(synced).await.is_none() {
        return;
    }
    figures::watch(&me);
    // The keys are nodes.
    let queue: Queue<Key> = Queue::named("attach_detach");
    me.listen(&queue);
    me.context.work(&queue, WORKERS, |(_, node)| me.sync(node, &queue)).await;
}

impl Attacher {
    fn listen(self: &Arc<Self>, queue: &Queue<Key>) {
        let add = {
            let queue = queue.clone();
            move |node: &str| {
                if !node.is_empty() {
                    queue.add((String::new(), node.to_owned()));
                }
            }
        };
        let changed = add.clone();
        self.pods.on_change(move |old, new| {
            let Some(pod) = new.or(old).filter(|pod| !claims_of(pod).is_empty()) else { return };
            let same = old.zip(new).is_some_and(|(old, new)| {
                pod::node(old) == pod::node(new) && pod::is_finished(old) == pod::is_finished(new)
            });
            if !same {
                changed(pod::node(pod));
            }
        });
        let (me, changed) = (Arc::downgrade(self), add.clone());
        self.claims.on_change(move |old, new| {
            let Some(claim) = new.or(old) else { return };
            let before = old.and_then(|old| volumes::volume_name(old));
            if before == new.and_then(|new| volumes::volume_name(new)) {
                return;
            }
            let Some(me) = me.upgrade() else { return };
            let (namespace, name) = key_of(&**claim);
            for pod in me.pods.indexed(PODS_BY_CLAIM, &format!("{namespace}/{name}")) {
                changed(pod::node(&pod));
            }
        });
        let (me, changed) = (Arc::downgrade(self), add.clone());
        self.attachments.on_change(move |old, new| {
            let Some(attachment) = new.or(old) else { return };
            changed(&attachment.spec.node_name);
            let Some(me) = me.upgrade() else { return };
            me.taken.lock().seen(name(&attachment.metadata));
            if new.is_none() {
                me.lingering.lock().remove(name(&attachment.metadata));
                me.slow.lock().forget(name(&attachment.metadata));
                me.nodes_that_wait_for(attachment).iter().for_each(|node| changed(node));
            }
        });
        let (me, changed) = (Arc::downgrade(self), add.clone());
        self.drivers.on_change(move |old, new| {
            let attaches = |driver: Option<&Arc<CSIDriver>>| {
                driver.is_none_or(|driver| driver.spec.attach_required != Some(false))
            };
            if attaches(old) == attaches(new) {
                return;
            }
            let Some(me) = me.upgrade() else { return };
            me.nodes.list().iter().for_each(|node| changed(name(&node.metadata)));
        });
        self.nodes.on_change(move |old, new| {
            let seen = |node: &Arc<Node>| {
                (node.status.as_ref().map(|s| s.volumes_in_use.clone()), plan::is_ready(node))
            };
            if let Some(node) = new.or(old)
                && old.map(seen) != new.map(seen)
            {
                add(name(&node.metadata));
            }
        });
    }

    /// What pods of a node use that has to be attached, by the attachment's name.
    fn wanted(&self, node: &str) -> BTreeMap<String, Disk> {
        let mut out = BTreeMap::new();
        for pod in self.pods.indexed(BY_NODE, node) {
            // A pod that ended lets go when the node has unmounted.
            if pod::is_finished(&pod) {
                continue;
            }
            for claim in claims_of(&pod) {
                let Some((namespace, claim)) = claim.split_once('/') else { continue };
                let Some(claim) = self.claims.get(namespace, claim) else { continue };
                let Some(volume) =
                    volumes::volume_name(&claim).and_then(|volume| self.volumes.get("", volume))
                else {
                    continue;
                };
                let Some(disk) = plan::disk(&volume, node) else { continue };
                let driver = self.drivers.get("", &disk.driver);
                if driver.is_some_and(|driver| driver.spec.attach_required == Some(false)) {
                    continue;
                }
                let disk: &mut Disk = out.entry(disk.attachment()).or_insert(disk);
                if !disk.pods.iter().any(|known| Arc::ptr_eq(known, &pod)) {
                    disk.pods.push(pod.clone());
                }
            }
        }
        out
    }

    async fn sync(&self, node: String, queue: &Queue<Key>) -> Outcome {
        let wanted = self.wanted(&node);
        self.taken.lock().keep(&node, &wanted);
        let held = self.attachments.indexed(ATTACHED_TO, &node);
        self.say_failed(&wanted, &held);
        if let Some(wait) = self.say_slow(&wanted, &held) {
            queue.add_after((String::new(), node.clone()), wait);
        }
        let object = self.nodes.get("", &node);
        let find = |volume: &str| self.volumes.get("", volume);
        let lingering = plan::lingering(&wanted, &held, object.as_deref(), &find);
        let (overdue, wait) = self.overdue(&lingering, &held, object.as_deref());
        if let Some(wait) = wait {
            queue.add_after((String::new(), node.clone()), wait);
        }
        for step in plan::plan(&wanted, &held, object.as_deref(), &overdue, &find) {
            let forced = match &step {
                Step::Detach(it) if overdue.contains(&name(&it.metadata)) => Some("timeout"),
                Step::Detach(it) if lingering.contains(&name(&it.metadata)) => {
                    Some("out-of-service")
                }
                Step::Attach(_) | Step::Detach(_) | Step::Tell(_) => None,
            };
            self.apply(&node, object.as_deref(), &wanted, step).await?;
            forced.into_iter().for_each(figures::forced);
        }
        Ok(())
    }

    /// Those of the lingering attachments that their node, which does not answer, had its
    /// time to let go, and how long it is until the next one is.
    fn overdue<'a>(
        &self,
        lingering: &[&'a str],
        held: &[Arc<VolumeAttachment>],
        node: Option<&Node>,
    ) -> (Vec<&'a str>, Option<Duration>) {
        let mut since = self.lingering.lock();
        for held in held.iter().map(|held| name(&held.metadata)) {
            if !lingering.contains(&held) {
                since.remove(held);
            }
        }
        let answers = node.is_some_and(plan::is_ready);
        let (mut overdue, mut wait) = (Vec::new(), None::<Duration>);
        for of in lingering {
            let begun = since.entry((*of).to_owned()).or_insert_with(Instant::now);
            let left = UNMOUNT_PATIENCE.saturating_sub(begun.elapsed());
            if answers || !self.context.config.force_detach {
                continue;
            }
            if left.is_zero() {
                overdue.push(*of);
            } else {
                wait = Some(wait.map_or(left, |wait| wait.min(left)));
            }
        }
        (overdue, wait)
    }

    async fn apply(
        &self,
        node: &str,
        object: Option<&Node>,
        wanted: &BTreeMap<String, Disk>,
        step: Step,
    ) -> Outcome {
        let api = self.context.client.all::<VolumeAttachment>();
        match step {
            Step::Attach(attachment) => {
                let Some(disk) = wanted.get(&attachment) else { return Ok(()) };
                let object = json!({"metadata": {"name": attachment}, "spec": {
                    "attacher": disk.driver, "nodeName": node,
                    "source": {"persistentVolumeName": disk.volume}}});
                // All fields are of that kind and type.
                let Ok(object) = client::api::typed(&object) else { return Ok(()) };
                if !self.take(disk) {
                    return Ok(());
                }
                match api.create(&object).await {
                    Err(err) if err.is_already_exists() => Ok(()),
                    made => {
                        if made.is_err() {
                            self.taken.lock().seen(&attachment);
                        }
                        made.map(drop).doing(|| format!("attach {} to {node}", disk.volume))
                    }
                }
            }
            Step::Detach(attachment) => {
                let only = DeleteParams::uid(uid(&attachment.metadata));
                let done = api.delete(name(&attachment.metadata), &only).await;
                done.doing(|| format!("detach {} from {node}", name(&attachment.metadata)))
                    .or_gone()
            }
            Step::Tell(attached) => {
                let patch = json!({"status": {"volumesAttached": attached}});
                let nodes = self.context.client.all::<Node>();
                let told = nodes.patch_status(node, &Patch::Merge(patch)).await;
                told.doing(|| format!("tell what is attached to {node}")).or_gone()?;
                self.say_attached(wanted, &plan::news(&attached, object));
                Ok(())
            }
        }
    }

    /// The pods that wait for a driver which says nothing hear of that. Says when to look again.
    fn say_slow(
        &self,
        wanted: &BTreeMap<String, Disk>,
        held: &[Arc<VolumeAttachment>],
    ) -> Option<Duration> {
        let waits = |it: &&Arc<VolumeAttachment>| {
            let status = it.status.as_ref();
            !status.is_some_and(|status| status.attached || status.attach_error.is_some())
        };
        let (mut told, mut wait) = (Vec::new(), None::<Duration>);
        {
            let (mut slow, now) = (self.slow.lock(), Instant::now());
            for attachment in held {
                let of = name(&attachment.metadata);
                let Some(disk) = wanted.get(of).filter(|_| waits(&attachment)) else {
                    slow.forget(of);
                    continue;
                };
                let (is_due, left) = slow.look(of, now);
                told.extend(is_due.then_some(disk));
                wait = Some(wait.map_or(left, |wait| wait.min(left)));
            }
        }
        for disk in told {
            let text = slow::text(&disk.volume, &disk.driver, &disk.handle);
            for pod in &disk.pods {
                let about = reference(&**pod);
                self.context.recorder.warning(&about, "FailedAttachVolume", text.clone());
            }
        }
        wait
    }

    /// The pods that wait hear why.
    fn say_failed(&self, wanted: &BTreeMap<String, Disk>, held: &[Arc<VolumeAttachment>]) {
        for attachment in held {
            let error = attachment.status.as_ref().and_then(|status| status.attach_error.as_ref());
            let disk = wanted.get(name(&attachment.metadata));
            let (Some(error), Some(disk)) = (error, disk) else { continue };
            let why = error.message.as_deref().unwrap_or_default();
            let text = format!("AttachVolume.Attach failed for volume {:?} : {why}", disk.volume);
            for pod in &disk.pods {
                let about = reference(&**pod);
                self.context.recorder.warning(&about, "FailedAttachVolume", text.clone());
            }
        }
    }

    /// The pods that waited hear of it, once.
    fn say_attached(&self, wanted: &BTreeMap<String, Disk>, news: &[&str]) {
        for disk in wanted.values() {
            if !news.contains(&disk.unique_name().as_str()) {
                continue;
            }
            let text = format!("AttachVolume.Attach succeeded for volume {:?} ", disk.volume);
            for pod in &disk.pods {
                let about = reference(&**pod);
                self.context.recorder.normal(&about, "SuccessfulAttachVolume", text.clone());
            }
        }
    }
}
