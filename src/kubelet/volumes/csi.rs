//! Volumes of storage drivers: waits until they are attached, has the driver stage and
//! publish them, and has it take all that back.
//!
//! Safe to repeat. Mounts and unmounts nothing itself: what a driver has published only
//! the driver takes away.

mod calls;
mod expand;
mod held;
mod source;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Backoff;
use base::drain::Drain;
use client::{Client, Recorder};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::{CSIDriverSpec, VolumeAttachment};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::persistent::Place;
use super::selinux::Labels;
use super::waits::PATIENCE;
use super::{Failure, blocking, mounts, says};
use crate::config::KubeletConfig;
use crate::csi::driver::Driver;
use crate::csi::messages::{self, Ability, Nothing, UnpublishRequest, UnstageRequest};
use crate::csi::{Drivers, limits};
use crate::pod;
use crate::tokens::Tokens;
pub use calls::Measured;
use expand::Room;
use held::Held;
pub use source::Source;
use source::{Record, pod_dir};

/// The pod is refused for this: its volume is one too many for the node.
pub const LIMIT_EXCEEDED: &str = "VolumeAttachmentLimitExceeded";
/// How often a volume that waits is asked whether it is one too many: nobody tells the node.
const FULL_LOOK: Duration = Duration::from_secs(1);
/// `ResourceExhausted`, as VolumeError carries it.
const EXHAUSTED: i32 = 8;
/// First and longest wait before a driver is asked again to take something back.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(122));

/// A volume that this process has found or made.
struct Published {
    place: Place,
    source: Source,
    at: Timestamp,
    room: Room,
    measured: Option<(Timestamp, Measured)>,
}

pub struct CsiVolumes {
    pub drivers: Drivers,
    client: Client,
    recorder: Recorder,
    node: String,
    root: PathBuf,
    /// The root directory as drivers know it.
    told_root: PathBuf,
    sync_period: SignedDuration,
    held: Mutex<BTreeMap<String, Held>>,
    /// Of other volumes too.
    pub labels: Labels,
    /// By uid and volume name.
    published: Mutex<HashMap<(String, String), Published>>,
    /// A volume was published where none was.
    first_published: Notify,
    /// Turns when there is something new that a volume may have waited for.
    news: watch::Sender<u64>,
    /// The node's status is to tell other volumes in use.
    pub in_use_changed: Notify,
    drain: Drain,
}

/// What a volume is made with.
struct Work<'a> {
    pod: &'a Pod,
    source: &'a Source,
    record: Record,
    described: Option<CSIDriverSpec>,
    /// What the attaching side gave for the node.
    context: HashMap<String, String>,
    group: Option<u32>,
}

#[derive(Clone, Copy)]
enum Step {
    Attach,
    Stage,
    Publish,
}

impl Step {
    fn failed(self, source: &Source, why: impl std::fmt::Display) -> Failure {
        let (reason, step) = match (source.is_block, self) {
            (false, Self::Attach) => ("FailedMount", "MountVolume.WaitForAttach"),
            (false, Self::Stage) => ("FailedMount", "MountVolume.MountDevice"),
            (false, Self::Publish) => ("FailedMount", "MountVolume.SetUp"),
            (true, Self::Attach) => ("FailedMapVolume", "MapVolume.WaitForAttach"),
            (true, Self::Stage) => ("FailedMapVolume", "MapVolume.SetUpDevice"),
            (true, Self::Publish) => ("FailedMapVolume", "MapVolume.MapPodDevice"),
        };
        let message = format!("{step} failed for volume \"{}\" : {why}", source.name);
        Failure::new(reason, message)
    }
}

/// Whether the directory of a pod's volume has a record that can be read.
pub fn is_recorded(dir: &Path) -> bool {
    held::read(dir).is_some()
}

impl CsiVolumes {
    /// Reads what earlier processes left.
    pub fn new(
        drivers: Drivers,
        client: Client,
        recorder: Recorder,
        config: &KubeletConfig,
        drain: Drain,
    ) -> Arc<Self> {
        let root = config.root_dir.clone();
        let told_root = config.root_as_plugins_know_it();
        let held = held::load(&root);
        let node = drivers.node().to_owned();
        let this = Arc::new(Self {
            drivers,
            client,
            recorder,
            node,
            root,
            told_root,
            sync_period: SignedDuration::try_from(config.sync_period)
                .unwrap_or(SignedDuration::MAX),
            held: Mutex::new(held),
            labels: Labels::default(),
            published: Mutex::default(),
            first_published: Notify::new(),
            news: watch::Sender::new(0),
            in_use_changed: Notify::new(),
            drain,
        });
        let weak = Arc::downgrade(&this);
        this.drivers.own_node.on_change(move |_, _| {
            if let Some(this) = weak.upgrade() {
                this.tell_news();
            }
        });
        let weak = Arc::downgrade(&this);
        // It may say now that nothing is attached.
        this.drivers.objects.on_change(move |_, _| {
            if let Some(this) = weak.upgrade() {
                this.tell_news();
                this.in_use_changed.notify_one();
            }
        });
        this
    }

    /// Something came that volumes may wait for: a driver, or word of an attachment.
    pub fn tell_news(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// The volumes that must stay attached to this node.
    pub fn in_use(&self) -> Vec<String> {
        let held = self.held.lock();
        let is_attached =
            |it: &Record| it.attach_required && self.drivers.attaches(&it.driver_name);
        held.iter().filter(|(_, it)| is_attached(&it.record)).map(|(k, _)| k.clone()).collect()
    }

    /// When what was looked at then is looked at again.
    fn later(&self, at: Timestamp) -> Timestamp {
        at.checked_add(self.sync_period).unwrap_or(at)
    }

    fn told(&self, path: &Path) -> String {
        self.told_root.join(path).display().to_string()
    }

    /// Where the driver has staged the volume; empty where it stages nothing.
    fn staged_at(&self, source: &Source, driver: &Driver, record: &Record) -> String {
        if source.is_ephemeral || !driver.can(Ability::StageUnstageVolume) {
            return String::new();
        }
        self.told(&record.staging())
    }

    /// Has the volume published for the pod. Says where it is, and when to look again.
    ///
    /// # Errors
    /// The event that tells why it is not there.
    pub async fn make(
        &self,
        pod: &Pod,
        volume: &str,
        mut source: Source,
        tokens: &Tokens,
        group: Option<u32>,
        now: Timestamp,
    ) -> Result<(Place, Option<Timestamp>), Failure> {
        let uid = pod::uid(pod);
        let key = (uid.to_owned(), volume.to_owned());
        let known = self.published.lock().get(&key).map(|it| {
            // What no container could use yet is as good as made by this call.
            let is_fresh = it.place.is_fresh && it.room == Room::Unknown;
            (Place { is_fresh, ..it.place.clone() }, it.at)
        });
        if let Some((place, at)) = known {
            let described = self.drivers.objects.get("", &source.driver);
            source
                .set_label(pod, volume, described.as_ref().map(|it| &it.spec), &self.labels)
                .map_err(Failure::unprocessed)?;
            return self.keep(pod, &key, &source, tokens, (place, at), group, now).await;
        }
        if let Some(place) = self.found(uid, &mut source).await? {
            self.note(key, source, place.clone(), Room::Looked { at: now, bytes: None }, now);
            return Ok((place, Some(self.later(now))));
        }
        let described = tokio::time::timeout(PATIENCE, self.described(&source.driver))
            .await
            .map_err(|_| Failure::late())?;
        source::check_mode(&source, described.as_ref()).map_err(|why| {
            format!(
                "MountVolume.NewMounter initialization failed for volume \"{}\" : {why}",
                source.name
            )
        })?;
        let needs_attachment = !source.is_ephemeral
            && described.as_ref().and_then(|it| it.attach_required) != Some(false);
        source
            .set_label(pod, volume, described.as_ref(), &self.labels)
            .map_err(Failure::unprocessed)?;
        let record = source.record(&self.node, needs_attachment);
        let mut context = HashMap::new();
        if !source.is_ephemeral {
            self.hold(&record, uid);
        }
        if needs_attachment {
            let asks = described.as_ref().is_some_and(|it| limits::period(it).is_some());
            let is_attached = tokio::select! {
                attached = self.until_attached(&record) => attached?,
                () = self.until_full(&record), if asks => return Err(full()),
            };
            if is_attached {
                context = self
                    .publish_context(&record)
                    .await
                    .map_err(|why| Step::Attach.failed(&source, why))?;
            }
        }
        let work = Work { pod, source: &source, record, described, context, group };
        let place = self.stage_and_publish(&work, tokens, now).await?;
        self.note(key.clone(), source.clone(), place.clone(), Room::Unknown, now);
        self.make_room(pod, &key, &source, now).await?;
        Ok((place, Some(self.later(now))))
    }

    async fn described(&self, driver: &str) -> Option<CSIDriverSpec> {
        self.drivers.described(driver).await
    }

    fn note(
        &self,
        key: (String, String),
        source: Source,
        place: Place,
        room: Room,
        now: Timestamp,
    ) {
        let published = Published { place, source, at: now, room, measured: None };
        let mut all = self.published.lock();
        if all.is_empty() {
            self.first_published.notify_one();
        }
        all.insert(key, published);
    }

    /// What an earlier process had published is taken over as it is.
    async fn found(&self, uid: &str, source: &mut Source) -> Result<Option<Place>, Failure> {
        let dir = self.root.join(pod_dir(uid, &source.name));
        let root = self.root.clone();
        let (uid, wanted) = (uid.to_owned(), source.clone());
        let look = move || {
            let Some(record) = held::read(&dir) else { return Ok(None) };
            if record.driver_name != wanted.driver || record.volume_handle != wanted.handle {
                return Ok(None);
            }
            let target = root.join(record.target(&uid));
            match mounts::is_mounted(&target) {
                Ok(true) => Ok(Some((target, record.se_linux_mount_context))),
                Ok(false) => Ok(None),
                // The program behind it has died: the driver is asked to publish it anew.
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()) =>
                {
                    sys::mount::unmount_detach(&target)
                        .map_err(|e| says("unmount", &target, &e))?;
                    Ok(None)
                }
                Err(error) => Err(says("look at", &target, &error)),
            }
        };
        let found = blocking(look).await.map_err(|why| Step::Publish.failed(source, why))?;
        let Some((target, label)) = found else { return Ok(None) };
        source.label = Some(label).filter(|label| !label.is_empty());
        let policy = self.drivers.objects.get("", &source.driver);
        let policy = policy.as_ref().and_then(|it| it.spec.fs_group_policy.as_deref());
        Ok(Some(place(target, source, source.takes_group(policy), false)))
    }

    /// A volume that is published stays so; some drivers want to be asked again.
    #[allow(clippy::too_many_arguments, reason = "all of it is the volume's")]
    async fn keep(
        &self,
        pod: &Pod,
        key: &(String, String),
        source: &Source,
        tokens: &Tokens,
        (place, at): (Place, Timestamp),
        group: Option<u32>,
        now: Timestamp,
    ) -> Result<(Place, Option<Timestamp>), Failure> {
        let mut again = None;
        let described = self.drivers.objects.get("", &source.driver).map(|it| it.spec.clone());
        if described.as_ref().and_then(|it| it.requires_republish) == Some(true) {
            let mut due = self.later(at);
            if due <= now {
                let attach = described.as_ref().and_then(|it| it.attach_required) != Some(false);
                let record = source.record(&self.node, attach && !source.is_ephemeral);
                let context = if record.attach_required {
                    self.publish_context(&record)
                        .await
                        .map_err(|why| Step::Publish.failed(source, why))?
                } else {
                    HashMap::new()
                };
                let work = Work { pod, source, record, described, context, group };
                let driver = self.driver(source, Step::Publish)?;
                self.publish(&work, &driver, tokens, now)
                    .await
                    .map_err(|why| Step::Publish.failed(source, why))?;
                if let Some(published) = self.published.lock().get_mut(key) {
                    published.at = now;
                }
                due = self.later(now);
            }
            again = Some(due);
        }
        if let Some(due) = self.make_room(pod, key, source, now).await? {
            again = Some(again.map_or(due, |at| at.min(due)));
        }
        Ok((place, again))
    }

    fn driver(&self, source: &Source, step: Step) -> Result<Arc<Driver>, Failure> {
        self.drivers.get(&source.driver).map_err(|why| {
            let what = match (source.is_block, step) {
                (false, Step::Publish) => "mounter.SetUpAt failed to get CSI client",
                (false, _) => "attacher.MountDevice failed to create newCsiDriverClient",
                (true, _) => "blockMapper.SetUpDevice failed to get CSI client",
            };
            step.failed(source, format!("kubernetes.io/csi: {what}: {why}"))
        })
    }

    async fn stage_and_publish(
        &self,
        work: &Work<'_>,
        tokens: &Tokens,
        now: Timestamp,
    ) -> Result<Place, Failure> {
        let source = work.source;
        let step = if source.is_ephemeral { Step::Publish } else { Step::Stage };
        let driver = self.driver(source, step)?;
        if !source.is_ephemeral {
            self.stage(work, &driver).await.map_err(|why| Step::Stage.failed(source, why))?;
        }
        self.publish(work, &driver, tokens, now)
            .await
            .map_err(|why| Step::Publish.failed(source, why))?;
        let policy = work.described.as_ref().and_then(|it| it.fs_group_policy.as_deref());
        let takes_group = source.takes_group(policy) && !driver.can(Ability::VolumeMountGroup);
        let target = self.root.join(work.record.target(pod::uid(work.pod)));
        info!(pod = %pod::display(work.pod), volume = source.name, driver = source.driver, "volume published");
        Ok(place(target, source, takes_group, true))
    }

    /// The pod wants the volume, from now on until it is gone.
    fn hold(&self, record: &Record, uid: &str) {
        let mut all = self.held.lock();
        let held = all.entry(record.unique_name()).or_insert_with(|| Held::new(record.clone()));
        held.users.insert(uid.to_owned());
        held.record.attach_required |= record.attach_required;
        self.in_use_changed.notify_one();
    }

    /// Waits for the node's word that the volume is attached, and that everybody knows it
    /// to be in use: nobody detaches it then. False where its driver turns out to attach
    /// nothing.
    async fn until_attached(&self, record: &Record) -> Result<bool, Failure> {
        let name = record.unique_name();
        let mut news = self.news.subscribe();
        let waiting = async {
            loop {
                news.borrow_and_update();
                if !self.drivers.attaches(&record.driver_name) {
                    return false;
                }
                if self.is_attached(&name) {
                    return true;
                }
                // The sender lives in self.
                let _ = news.changed().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.map_err(|_| Failure::late())
    }

    /// Whether somebody is to attach the volume, and has not told that it is.
    pub fn lacks_attachment(&self, source: &Source) -> bool {
        let name = source.record(&self.node, true).unique_name();
        !source.is_ephemeral && self.drivers.attaches(&source.driver) && !self.is_attached(&name)
    }

    fn is_attached(&self, name: &str) -> bool {
        let Some(node) = self.drivers.own_node.get("", &self.node) else { return false };
        let Some(status) = &node.status else { return false };
        status.volumes_in_use.iter().flatten().any(|it| it == name)
            && status.volumes_attached.iter().flatten().any(|it| it.name == name)
    }

    /// Returns when the node turns out to hold as many volumes as it can.
    async fn until_full(&self, record: &Record) {
        loop {
            tokio::time::sleep(FULL_LOOK).await;
            let id = &record.attachment_id;
            let Ok(attachment) = self.client.all::<VolumeAttachment>().get(id).await else {
                continue;
            };
            let error = attachment.status.and_then(|status| status.attach_error);
            if error.and_then(|error| error.error_code) == Some(EXHAUSTED) {
                // So that the next pod is not sent here.
                self.drivers.refresh(&record.driver_name).await;
                return;
            }
        }
    }

    async fn publish_context(&self, record: &Record) -> Result<HashMap<String, String>, String> {
        let (handle, id) = (&record.volume_handle, &record.attachment_id);
        let attachment = self.client.all::<VolumeAttachment>().get(id).await.map_err(|error| {
            format!("volume {handle} has GET error for volume attachment {id}: {error}")
        })?;
        let status = attachment.status.unwrap_or_default();
        if let Some(error) = status.attach_error {
            return Err(error.message.unwrap_or_default());
        }
        if !status.attached {
            return Err(format!("volume {handle} is not attached by {id}"));
        }
        Ok(status.attachment_metadata.into_iter().flatten().collect())
    }

    /// Has everything of the pod taken back.
    ///
    /// # Errors
    /// What the driver says, or that there is none; to be tried again.
    pub async fn remove(self: &Arc<Self>, uid: &str) -> Result<(), String> {
        for (dir, record) in held::of_pod(&self.root, uid) {
            self.unpublish(uid, &dir, &record).await?;
        }
        self.published.lock().retain(|(of, _), _| of != uid);
        let mut unused = Vec::new();
        for (name, held) in self.held.lock().iter_mut() {
            if held.users.remove(uid) && held.users.is_empty() {
                unused.push(name.clone());
            }
        }
        unused.into_iter().for_each(|name| self.begin_unstage(name));
        Ok(())
    }

    async fn unpublish(&self, uid: &str, dir: &Path, record: &Record) -> Result<(), String> {
        let driver = self.drivers.get(&record.driver_name).map_err(|why| {
            format!("kubernetes.io/csi: Unmounter.TearDownAt failed to get CSI client: {why}")
        })?;
        let request = UnpublishRequest {
            volume_id: record.volume_handle.clone(),
            target_path: self.told(&record.target(uid)),
        };
        driver
            .call::<Nothing>(messages::NODE_UNPUBLISH, &request)
            .await
            .map_err(|error| format!("kubernetes.io/csi: Unmounter.TearDownAt failed: {error}"))?;
        let (dir, target) = (dir.to_path_buf(), self.root.join(record.target(uid)));
        let shared = record.is_block.then(|| target.parent().map(Path::to_path_buf)).flatten();
        blocking(move || {
            held::remove_target(&target).map_err(|e| says("remove", &target, &e))?;
            held::remove(&dir).map_err(|e| says("remove", &dir, &e))?;
            // Other pods may have theirs in it.
            let _ = shared.map(std::fs::remove_dir);
            Ok(())
        })
        .await
    }

    /// Unstages every volume that no pod of this node wants.
    pub fn unstage_unused(self: &Arc<Self>) {
        let held = self.held.lock();
        let unused: Vec<String> =
            held.iter().filter(|(_, it)| it.users.is_empty()).map(|(k, _)| k.clone()).collect();
        drop(held);
        unused.into_iter().for_each(|name| self.begin_unstage(name));
    }

    fn begin_unstage(self: &Arc<Self>, name: String) {
        let this = self.clone();
        base::task::spawn(async move {
            let work = async {
                let mut backoff = Backoff::new(RETRY.0, RETRY.1);
                let mut news = this.news.subscribe();
                while let Err(error) = this.unstage(&name).await {
                    warn!(volume = name, error, "volume not unstaged");
                    tokio::select! {
                        () = tokio::time::sleep(backoff.next_delay()) => {}
                        _ = news.changed() => tokio::time::sleep(RETRY.0).await,
                    }
                }
            };
            this.drain.until(work).await;
        });
    }

    /// Has the driver take back what it has staged. The caller holds the volume's gate.
    async fn unstage_now(&self, record: &Record) -> Result<(), String> {
        let dir = self.root.join(record.global_dir());
        // Without a record nobody was asked to stage it.
        if held::read(&dir).is_some() {
            let driver = self.drivers.get(&record.driver_name).map_err(|why| {
                format!("kubernetes.io/csi: attacher.UnmountDevice failed to create newCsiDriverClient: {why}")
            })?;
            if driver.can(Ability::StageUnstageVolume) {
                let request = UnstageRequest {
                    volume_id: record.volume_handle.clone(),
                    staging_target_path: self.told(&record.staging()),
                };
                driver
                    .call::<Nothing>(messages::NODE_UNSTAGE, &request)
                    .await
                    .map_err(|error| error.to_string())?;
            }
            let staging = self.root.join(record.staging());
            blocking(move || {
                held::remove_target(&staging).map_err(|e| says("remove", &staging, &e))?;
                held::remove(&dir).map_err(|e| says("remove", &dir, &e))
            })
            .await?;
        }
        Ok(())
    }

    async fn unstage(&self, name: &str) -> Result<(), String> {
        let unused = || {
            let held = self.held.lock();
            let held = held.get(name).filter(|held| held.users.is_empty())?;
            Some((held.gate.clone(), held.record.clone()))
        };
        let Some((gate, _)) = unused() else { return Ok(()) };
        let _alone = gate.lock().await;
        // A pod may have come while we waited.
        let Some((_, record)) = unused() else { return Ok(()) };
        if let Some(held) = self.held.lock().get_mut(name) {
            // From here on it may or may not be: a pod that comes has it staged anew.
            held.is_staged = false;
        }
        self.unstage_now(&record).await?;
        let mut all = self.held.lock();
        if all.get(name).is_some_and(|held| held.users.is_empty()) {
            all.remove(name);
        }
        drop(all);
        self.in_use_changed.notify_one();
        Ok(())
    }
}

fn place(path: PathBuf, source: &Source, takes_group: bool, is_fresh: bool) -> Place {
    let (is_block, read_only) = (source.is_block, source.read_only);
    let relabel = !is_block && !read_only && source.label.is_none();
    Place { path, is_block, read_only, takes_group, relabel, is_fresh }
}

/// What upstream says when a node turns out to be full.
fn full() -> Failure {
    let message = "Node has reached its volume attachment limit, rejecting pod";
    Failure::new(LIMIT_EXCEEDED, message.to_owned())
}

#[cfg(test)]
pub mod samples {
    use super::*;
    use client::Cache;

    struct Nobody;

    #[async_trait::async_trait]
    impl client::Transport for Nobody {
        async fn send(
            &self,
            _: http::Request<bytes::Bytes>,
        ) -> client::error::Result<http::Response<client::Body>> {
            std::future::pending().await
        }
    }

    /// A client without a server.
    pub fn client() -> Client {
        Client::new(Arc::new(Nobody), "kubelet")
    }

    /// The volumes of a node without drivers and without a server.
    pub fn none(config: &KubeletConfig) -> Arc<CsiVolumes> {
        let client = client();
        let drivers = Drivers::new(client.clone(), "n1", Cache::new(), Cache::new());
        let (trigger, drain) = base::drain::channel();
        drop(trigger);
        // No name for plugins on the host that runs the tests.
        let plugin_root_dir = config.root_dir.clone();
        let config = KubeletConfig { plugin_root_dir, ..config.clone() };
        CsiVolumes::new(drivers, client, client::recorder::silent(), &config, drain)
    }
}
