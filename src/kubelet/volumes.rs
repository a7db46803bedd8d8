//! Makes a pod's volumes on this node, keeps their files current, and takes them away.
//!
//! Safe to repeat: what is already as it should be is left alone. Never decides when.

pub mod atomic;
pub mod attached;
pub mod claims;
pub mod csi;
mod disk;
mod emptydir;
mod ensure;
mod exclusive;
mod failure;
mod found;
mod hostpath;
mod images;
mod iscsi;
mod made;
mod maps;
pub mod mounts;
mod ownership;
pub mod payload;
mod persistent;
mod pod_certificates;
pub mod readonly;
mod selinux;
mod shared;
mod tool;
mod troubles;
mod trust_bundles;
mod waits;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use client::Recorder;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Volume, VolumeMount};
use parking_lot::Mutex;
use runtime::cri::{self, MountPropagation};

use crate::config::KubeletConfig;
use crate::env::{self, Referred};
use crate::objects::Objects;
use crate::pod;
use crate::quantity::ResourceList;
use crate::tokens::Tokens;
use attached::Attached;
use claims::Bound;
use csi::{CsiVolumes, Source};
pub use ensure::{Ensured, Making};
use exclusive::Exclusive;
pub use failure::{Failure, FailureKind};
pub use images::images_of;
use made::Made;
use payload::Fetched;
use persistent::{NotPlaced, Place};
use pod_certificates::{Place as RequestPlace, PodCertificates, Source as CertificateSource};
use troubles::Troubles;
use waits::Waits;

/// Of a file that environment variables are taken from; a longer one is refused.
const ENV_FILE_BYTES_MAX: u64 = 1 << 20;
/// Size of the memory file systems that hold secrets and tokens.
const SECRET_BYTES_MAX: u64 = 64 << 20;

/// What a pod's claims stand for, so that a restart need not ask.
const CLAIMS_FILE: &str = "claims.json";

pub struct Volumes {
    /// Hash of what each volume of a pod shows, by uid and volume name.
    shown: Mutex<HashMap<(String, String), u64>>,
    /// What the claims of a pod stand for, by uid and volume name.
    bound: Mutex<HashMap<String, BTreeMap<String, Bound>>>,
    /// Where volumes are that do not lie in the pod's own directory.
    places: Mutex<HashMap<(String, String), Place>>,
    made: Made,
    troubles: Troubles,
    waits: Waits,
    exclusive: Exclusive,
    recorder: Recorder,
    /// What claims stand for is written by one at a time.
    writing_claims: tokio::sync::Mutex<()>,
    tokens: Tokens,
    pub certificates: PodCertificates,
    /// Disks that the node attaches itself.
    pub attached: Attached,
    /// Those that storage drivers make.
    pub csi: Arc<CsiVolumes>,
}

fn plugin(volume: &Volume) -> Option<&'static str> {
    if volume.config_map.is_some() {
        Some("kubernetes.io~configmap")
    } else if volume.secret.is_some() {
        Some("kubernetes.io~secret")
    } else if volume.downward_api.is_some() {
        Some("kubernetes.io~downward-api")
    } else if volume.projected.is_some() {
        Some("kubernetes.io~projected")
    } else if volume.empty_dir.is_some() {
        Some("kubernetes.io~empty-dir")
    } else {
        None
    }
}

/// What no container of the pod mounts or sees as a device is not made.
fn is_used(pod: &Pod, volume: &Volume) -> bool {
    pod::containers(pod).iter().any(|(_, container)| {
        let mounts = container.volume_mounts.iter().flatten().map(|it| &it.name);
        let devices = container.volume_devices.iter().flatten().map(|it| &it.name);
        mounts.chain(devices).any(|name| *name == volume.name)
    })
}

fn volume<'a>(pod: &'a Pod, name: &str) -> Option<&'a Volume> {
    pod::spec(pod).volumes.iter().flatten().find(|volume| volume.name == name)
}

/// Where a volume lies on the node.
fn host_path(config: &KubeletConfig, pod: &Pod, volume: &Volume) -> Option<PathBuf> {
    if let Some(source) = &volume.host_path {
        return Some(PathBuf::from(&source.path));
    }
    let dir = config.pod_dir(pod::uid(pod)).join("volumes");
    Some(dir.join(plugin(volume)?).join(&volume.name))
}

/// A volume whose files lie on this node.
pub struct OnDisk {
    pub name: String,
    /// Namespace and name of the claim it stands for.
    pub claim: Option<(String, String)>,
    pub path: PathBuf,
    /// Counts against the pod's share of the node's disk.
    pub is_ephemeral: bool,
}

impl Volumes {
    pub fn new(config: &KubeletConfig, csi: Arc<CsiVolumes>, recorder: Recorder) -> Self {
        let found = found::count(&config.root_dir.join("pods"));
        crate::metrics::volumes::found(found.all, found.unreadable);
        Self {
            attached: Attached::new(&config.root_dir),
            shown: Mutex::default(),
            bound: Mutex::default(),
            places: Mutex::default(),
            made: Made::default(),
            troubles: Troubles::default(),
            waits: Waits::default(),
            exclusive: Exclusive::found(&config.root_dir.join("pods")),
            writing_claims: tokio::sync::Mutex::default(),
            tokens: Tokens::default(),
            certificates: PodCertificates::new(recorder.clone()),
            recorder,
            csi,
        }
    }

    /// Says when to look again at the latest.
    async fn ensure_one(
        &self,
        making: Making<'_>,
        volume: &Volume,
    ) -> Result<Option<Timestamp>, Failure> {
        let Making { config, client, objects, pod, facts, now } = making;
        let name = &volume.name;
        let failed =
            |why: String| format!("MountVolume.SetUp failed for volume \"{name}\" : {why}");
        let bound = self.bound(config, client, pod, volume).await?;
        if let Some(source) = Source::of(pod, volume, bound.as_ref()) {
            let group = fs_group(pod);
            let made = self.csi.make(pod, name, source, &self.tokens, group, now).await;
            let (place, renew) = made?;
            self.keep(config, pod, volume, place).await.map_err(failed)?;
            return Ok(renew);
        }
        if let Some(bound) = bound {
            let placed = self.place(config, client, pod, volume, Some(&bound)).await;
            placed.map_err(|it| it.claimed(&bound))?;
            return Ok(None);
        }
        if volume.nfs.is_some() || volume.iscsi.is_some() {
            let placed = self.place(config, client, pod, volume, None).await;
            placed.map_err(|it| it.inline(name))?;
            return Ok(None);
        }
        let referred = referred_by(objects, pod, volume).await.map_err(failed)?;
        let fetched = self.fetch(config, client, objects, pod, volume, now).await;
        let (fetched, later) = fetched.map_err(failed)?;
        match payload::payload(pod, volume, &referred, &fetched, facts) {
            Some(files) => self.show(config, pod, volume, files.map_err(failed)?).await,
            None => {
                let (config, pod, volume) = (config.clone(), pod.clone(), volume.clone());
                let allocatable = facts.allocatable.cloned();
                blocking(move || make_plain(&config, &pod, &volume, allocatable.as_ref())).await
            }
        }
        .map_err(failed)?;
        Ok(later)
    }

    /// Tokens, trust anchors and certificates that a projected volume shows, as far as this
    /// kubelet has the features, and when to look again.
    async fn fetch(
        &self,
        config: &KubeletConfig,
        client: &client::Client,
        objects: &Objects,
        pod: &Pod,
        volume: &Volume,
        now: Timestamp,
    ) -> Result<(Fetched, Option<Timestamp>), String> {
        let (mut out, mut again) = (Fetched::default(), None);
        for (audience, seconds) in payload::wants_tokens(volume) {
            let held = self.tokens.get(client, pod, &audience, seconds, now).await?;
            again = sooner(again, Some(held.renew));
            out.tokens.insert((audience, seconds), held.token);
        }
        let sources = volume.projected.iter().flat_map(|it| it.sources.iter().flatten());
        for (index, source) in sources.enumerate() {
            if let Some(wants) = &source.cluster_trust_bundle
                && config.projects_trust_bundles
            {
                let bundles = objects.bundles(pod::uid(pod));
                out.anchors.insert(index, trust_bundles::anchors(&bundles, wants).await?);
            }
            if let Some(wants) = &source.pod_certificate
                && config.requests_pod_certificates
            {
                objects.watch_requests(pod::uid(pod), &config.node_name);
                let own = self.csi.drivers.own_node.get("", &config.node_name);
                let node_uid = own.as_ref().and_then(|own| own.metadata.uid.as_deref());
                let node_uid = node_uid.ok_or("while getting node object from local cache")?;
                let place = RequestPlace { client, node_name: &config.node_name, node_uid };
                let source = CertificateSource { pod, volume: &volume.name, index, wants };
                let (held, later) = self.certificates.get(&place, &source, now).await?;
                out.certificates.insert(index, held);
                again = sooner(again, Some(later));
            }
        }
        Ok((out, again))
    }

    /// What the volume's claim stands for; None if it has no claim. Asked once.
    async fn bound(
        &self,
        config: &KubeletConfig,
        client: &client::Client,
        pod: &Pod,
        volume: &Volume,
    ) -> Result<Option<Bound>, Failure> {
        if claims::claim_of(pod, volume).is_none() {
            return Ok(None);
        }
        let uid = pod::uid(pod);
        let file = config.pod_dir(uid).join(CLAIMS_FILE);
        {
            let mut held = self.bound.lock();
            let known = held.entry(uid.to_owned()).or_insert_with(|| {
                // A file that cannot be read is as good as none: the server is asked.
                let text = std::fs::read(&file).unwrap_or_default();
                serde_json::from_slice(&text).unwrap_or_default()
            });
            if let Some(bound) = known.get(&volume.name) {
                return Ok(Some(bound.clone()));
            }
        }
        let found = claims::resolve(client, pod, volume).await.map_err(Failure::unprocessed)?;
        let Some(bound) = found else { return Ok(None) };
        self.check_place(config, &bound)?;
        self.exclusive.take(&bound, uid)?;
        let _alone = self.writing_claims.lock().await;
        let text = {
            let mut held = self.bound.lock();
            let known = held.entry(uid.to_owned()).or_default();
            known.insert(volume.name.clone(), bound.clone());
            serde_json::to_vec(known).map_err(|error| Failure::unprocessed(error.to_string()))?
        };
        blocking(move || {
            let dir = file.parent().unwrap_or(&file);
            std::fs::create_dir_all(dir).map_err(|e| says("create", dir, &e))?;
            let fresh = file.with_extension("json.new");
            std::fs::write(&fresh, text)
                .and_then(|()| std::fs::rename(&fresh, &file))
                .map_err(|e| says("write", &file, &e))
        })
        .await
        .map_err(Failure::unprocessed)?;
        base::failpoint!("volume/claim-known");
        Ok(Some(bound))
    }

    /// A pod may have come past the scheduler.
    fn check_place(&self, config: &KubeletConfig, bound: &Bound) -> Result<(), Failure> {
        // The node's own object comes late only where no volume could be known either.
        let Some(own) = self.csi.drivers.own_node.get("", &config.node_name) else {
            return Ok(());
        };
        let labels = own.metadata.labels.clone().unwrap_or_default();
        if claims::is_reached_from(bound, &config.node_name, &labels) {
            return Ok(());
        }
        let (reason, step) = match bound.is_block() {
            true => ("FailedMapVolume", "MapVolume"),
            false => ("FailedMount", "MountVolume"),
        };
        let message = format!(
            "{step}.NodeAffinity check failed for volume \"{}\" : no matching NodeSelectorTerms",
            bound.name
        );
        Err(Failure::new(reason, message))
    }

    /// Mounts what does not lie in the pod's own directory, and gives it to its group.
    async fn place(
        &self,
        config: &KubeletConfig,
        client: &client::Client,
        pod: &Pod,
        volume: &Volume,
        bound: Option<&Bound>,
    ) -> Result<(), NotPlaced> {
        let key = (pod::uid(pod).to_owned(), volume.name.clone());
        if self.places.lock().get(&key).is_some_and(|place| place.is_block) {
            return Ok(());
        }
        let dir = config.pod_dir(pod::uid(pod));
        let labels = &self.csi.labels;
        let maker = persistent::Maker { attached: &self.attached, labels, client, pod, dir: &dir };
        let local = bound.filter(|it| it.spec.local.is_some()).map(|it| it.name.clone());
        let mut place = match bound {
            Some(bound) => maker.claimed(&volume.name, bound).await?,
            None => maker.inline(volume).await?,
        };
        if let (Some(name), Some(group)) = (local, fs_group(pod))
            && place.is_fresh
            && place.takes_group
            && let Some(held) = shared::group_of_others(&config.root_dir, &place.path)
        {
            // Those who have it now keep it.
            place.takes_group = false;
            if held != group {
                let about = client::recorder::reference(pod);
                let text = shared::warning(group, &name, held);
                self.recorder.warning(&about, "AlreadyMountedVolume", text);
            }
        }
        Ok(self.keep(config, pod, volume, place).await?)
    }

    /// Remembers where a volume is, after its files were given to the pod's group.
    async fn keep(
        &self,
        config: &KubeletConfig,
        pod: &Pod,
        volume: &Volume,
        place: Place,
    ) -> Result<(), String> {
        let key = (pod::uid(pod).to_owned(), volume.name.clone());
        let is_new = !self.places.lock().contains_key(&key);
        if let Some(group) = fs_group(pod)
            && is_new
            && place.takes_group
        {
            let policy = pod::spec(pod).security_context.as_ref();
            let policy = policy.and_then(|it| it.fs_group_change_policy.as_deref());
            // What was mounted before this process began has been walked, unless that was
            // cut off: then its root does not match.
            let only_on_mismatch = policy == Some("OnRootMismatch") || !place.is_fresh;
            let (path, read_only) = (place.path.clone(), place.read_only);
            blocking(move || {
                ownership::give(&path, group, read_only, only_on_mismatch)
                    .map_err(|e| says("applyFSGroup failed for", &path, &e))
            })
            .await?;
            base::failpoint!("volume/given-to-group");
        }
        if place.is_block && is_new {
            self.map(config, pod, volume, &place.path).await?;
        }
        self.places.lock().insert(key, place);
        Ok(())
    }

    /// Makes a device known below the pod's directory, as upstream does, and says so once.
    async fn map(
        &self,
        config: &KubeletConfig,
        pod: &Pod,
        volume: &Volume,
        device: &Path,
    ) -> Result<(), String> {
        let uid = pod::uid(pod);
        let bound = self.bound.lock().get(uid).and_then(|all| all.get(&volume.name)).cloned();
        let Some(bound) = bound else { return Ok(()) };
        let Some(maker) = client::volumes::maker(&bound.spec) else { return Ok(()) };
        let dir = config.pod_dir(uid).join("volumeDevices").join(format!("kubernetes.io~{maker}"));
        let (link, to) = (dir.join(&bound.name), device.to_path_buf());
        let is_new = blocking(move || {
            maps::link(&link, &to).map_err(|e| says("MapBlockVolume failed for", &link, &e))
        })
        .await?;
        if is_new {
            let about = client::recorder::reference(pod);
            let global = bound.spec.csi.is_some().then(|| device.parent()).flatten();
            for text in maps::told(&bound.name, global, &dir) {
                self.recorder.normal(&about, "SuccessfulMountVolume", text);
            }
        }
        base::failpoint!("volume/mapped");
        Ok(())
    }

    async fn show(
        &self,
        config: &KubeletConfig,
        pod: &Pod,
        volume: &Volume,
        files: atomic::Payload,
    ) -> Result<(), String> {
        let mut hasher = DefaultHasher::new();
        for (path, file) in &files {
            (path, &file.bytes, file.mode).hash(&mut hasher);
        }
        let hash = hasher.finish();
        let key = (pod::uid(pod).to_owned(), volume.name.clone());
        if self.shown.lock().get(&key) == Some(&hash) {
            return Ok(());
        }
        let dir = host_path(config, pod, volume).ok_or("the volume has no place")?;
        let in_memory = volume.config_map.is_none();
        let group = fs_group(pod);
        blocking(move || {
            std::fs::create_dir_all(&dir).map_err(|e| says("create the volume", &dir, &e))?;
            base::failpoint!("volume/directory");
            if in_memory {
                mounts::tmpfs(&dir, SECRET_BYTES_MAX).map_err(|e| says("mount", &dir, &e))?;
                base::failpoint!("volume/memory");
            }
            own(&dir, open_mode(in_memory, group.is_some()), group)
                .map_err(|e| says("open the volume", &dir, &e))?;
            base::failpoint!("volume/owned");
            atomic::write(&dir, &files, group).map_err(|e| says("write the volume", &dir, &e))?;
            Ok(())
        })
        .await?;
        self.shown.lock().insert(key, hash);
        Ok(())
    }

    /// Where a volume is on this node, and what containers may do with it.
    fn place_of(&self, config: &KubeletConfig, pod: &Pod, volume: &Volume) -> Option<Place> {
        if let Some(path) = host_path(config, pod, volume) {
            // Files of the node's own keep their labels.
            let relabel = volume.host_path.is_none();
            return Some(Place { path, relabel, ..Place::default() });
        }
        let key = (pod::uid(pod).to_owned(), volume.name.clone());
        self.places.lock().get(&key).cloned()
    }

    /// A file in an emptyDir of the pod, which links in it do not leave; None where there is
    /// none.
    ///
    /// # Errors
    /// A volume that is none of the pod's emptyDirs, and a file that cannot be read or is too long.
    pub fn text(
        &self,
        config: &KubeletConfig,
        pod: &Pod,
        name: &str,
        path: &str,
    ) -> Result<Option<String>, String> {
        // A file of the node's own is nobody's variables.
        let place = volume(pod, name)
            .filter(|volume| volume.empty_dir.is_some())
            .and_then(|volume| self.place_of(config, pod, volume))
            .ok_or_else(|| format!("cannot find the volume {name:?} referenced by FileKeyRef"))?;
        let read = sys::fs::Root::open(&place.path)
            .and_then(|root| root.read_to_string(Path::new(path), ENV_FILE_BYTES_MAX + 1));
        match read {
            Ok(text) if text.len() as u64 > ENV_FILE_BYTES_MAX => {
                Err(format!("env file {path:?} is longer than {ENV_FILE_BYTES_MAX} bytes"))
            }
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("couldn't read env file {path:?}: {error}")),
        }
    }

    /// The volumes whose use of disk is told: those that were made for the pod, and those
    /// that it claims.
    pub fn on_disk(&self, config: &KubeletConfig, pod: &Pod) -> Vec<OnDisk> {
        let mut out = Vec::new();
        for volume in pod::spec(pod).volumes.iter().flatten() {
            let claim = claims::claim_of(pod, volume);
            if plugin(volume).is_none() && claim.is_none() && volume.csi.is_none() {
                continue;
            }
            if !is_used(pod, volume) {
                continue;
            }
            let Some(Place { path, .. }) = self.place_of(config, pod, volume) else { continue };
            let in_memory = volume.empty_dir.as_ref().is_some_and(|source| {
                source.medium.as_deref().is_some_and(|medium| !medium.is_empty())
            });
            out.push(OnDisk {
                name: volume.name.clone(),
                claim: claim.map(|(name, ..)| (pod::namespace(pod).to_owned(), name)),
                path,
                is_ephemeral: volume.config_map.is_some()
                    || (volume.empty_dir.is_some() && !in_memory),
            });
        }
        out
    }

    /// Groups that the pod's volumes are for, which the pod itself does not name.
    pub fn groups(&self, pod: &Pod) -> Vec<i64> {
        let context = pod::spec(pod).security_context.as_ref();
        let own = context.and_then(|it| it.supplemental_groups.as_deref()).unwrap_or_default();
        let held = self.bound.lock();
        let volumes = held.get(pod::uid(pod)).into_iter().flat_map(BTreeMap::values);
        let groups: BTreeSet<i64> = volumes.filter_map(|it| it.group).collect();
        groups.into_iter().filter(|group| !own.contains(group)).collect()
    }

    /// The devices that a container sees of its pod's volumes.
    ///
    /// # Errors
    /// When a volume is not there or is no device.
    pub fn devices(&self, pod: &Pod, container: &Container) -> Result<Vec<cri::Device>, String> {
        let places = self.places.lock();
        container
            .volume_devices
            .iter()
            .flatten()
            .map(|device| {
                let key = (pod::uid(pod).to_owned(), device.name.clone());
                let place = places.get(&key).filter(|place| place.is_block).ok_or_else(|| {
                    format!("volume {} is no block device on this node", device.name)
                })?;
                Ok(cri::Device {
                    container_path: PathBuf::from(&device.device_path),
                    host_path: place.path.clone(),
                    permissions: if place.read_only { "r" } else { "mrw" }.to_owned(),
                })
            })
            .collect()
    }

    /// What a container mounts of its pod's volumes; `images` has the ids of the images of
    /// image volumes by volume name, `features` are those of the pod's runtime.
    pub fn mounts(
        &self,
        config: &KubeletConfig,
        pod: &Pod,
        container: &Container,
        variables: &[(String, String)],
        images: &HashMap<String, String>,
        features: cri::Features,
    ) -> Result<Vec<cri::Mount>, String> {
        let mut out = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let volume = volume(pod, &mount.name)
                .ok_or_else(|| format!("volume {} is not in the pod", mount.name))?;
            if volume.image.is_some() {
                let image = images
                    .get(&mount.name)
                    .ok_or_else(|| format!("the image of volume {} is not there", mount.name))?;
                out.push(images::mount(mount, image, sub_path(mount, variables)?));
                continue;
            }
            let place = self
                .place_of(config, pod, volume)
                .ok_or_else(|| format!("volume {} has no place on this node", mount.name))?;
            let sub_path = sub_path(mount, variables)?;
            let host_path = if sub_path.as_os_str().is_empty() {
                place.path
            } else {
                let target = config
                    .pod_dir(pod::uid(pod))
                    .join("volume-subpaths")
                    .join(&mount.name)
                    .join(&container.name)
                    .join(index.to_string());
                mounts::bind_sub_path(&place.path, &sub_path, &target).map_err(|error| {
                    format!(
                        "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {error}",
                        mount.name, container.name
                    )
                })?;
                target
            };
            // What the API server projects is never written to by a container.
            let projected = volume.config_map.is_some()
                || volume.secret.is_some()
                || volume.downward_api.is_some()
                || volume.projected.is_some();
            let recursive = readonly::is_recursive(mount, features.recursive_read_only_mounts)?;
            out.push(cri::Mount {
                container_path: Path::new("/").join(&mount.mount_path),
                host_path,
                readonly: mount.read_only == Some(true) || projected || place.read_only,
                selinux_relabel: place.relabel,
                image: None,
                recursive_readonly: recursive,
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => MountPropagation::HostToContainer,
                    Some("Bidirectional") => MountPropagation::Bidirectional,
                    _ => MountPropagation::Private,
                },
            });
        }
        Ok(out)
    }

    /// Unmounts and removes the pod's directory, and forgets its tokens.
    pub async fn remove(&self, config: &KubeletConfig, uid: &str) -> Result<(), String> {
        let begun = Instant::now();
        self.csi.remove(uid).await?;
        base::failpoint!("volume/drivers-done");
        self.tokens.release(uid);
        self.certificates.release(uid);
        self.troubles.release(uid);
        self.waits.end(uid);
        self.shown.lock().retain(|(of, _), _| of != uid);
        self.places.lock().retain(|(of, _), _| of != uid);
        self.bound.lock().remove(uid);
        let dir = config.pod_dir(uid);
        let below = dir.clone();
        blocking(move || mounts::unmount_tree(&below).map_err(|e| says("unmount", &below, &e)))
            .await?;
        self.attached.release(uid).await?;
        self.exclusive.release(uid);
        self.csi.labels.release(uid);
        self.made.release(uid, begun.elapsed());
        blocking(move || mounts::remove_tree(&dir).map_err(|e| says("remove", &dir, &e))).await
    }
}

fn sooner(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    match base::task::spawn_blocking(work).await {
        Ok(out) => out,
        Err(error) => Err(format!("the work on the volume was cut off: {error}")),
    }
}

fn says(what: &str, path: &Path, error: &io::Error) -> String {
    format!("{what} {}: {error}", path.display())
}

async fn referred_by(objects: &Objects, pod: &Pod, volume: &Volume) -> Result<Referred, String> {
    let (uid, namespace) = (pod::uid(pod), pod::namespace(pod));
    let (maps, secrets) = payload::refers_to(volume);
    let mut out = Referred::default();
    for name in maps {
        let map = objects.config_map(uid, namespace, name).await.map_err(|e| e.to_string())?;
        out.config_maps.insert(name.to_owned(), map);
    }
    for name in secrets {
        let secret = objects.secret(uid, namespace, name).await.map_err(|e| e.to_string())?;
        out.secrets.insert(name.to_owned(), secret);
    }
    Ok(out)
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod::spec(pod).security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// The mode of a volume that is open to everybody: what its group makes in it is the group's, and
/// in memory nobody removes what is another's, as upstream's users know it.
fn open_mode(in_memory: bool, has_group: bool) -> u32 {
    let sticky = if in_memory { 0o1000 } else { 0 };
    let setgid = if has_group { 0o2000 } else { 0 };
    0o777 | setgid | sticky
}

fn own(dir: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    if group.is_some() {
        std::os::unix::fs::chown(dir, None, group)?;
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
}

fn make_plain(
    config: &KubeletConfig,
    pod: &Pod,
    volume: &Volume,
    allocatable: Option<&ResourceList>,
) -> Result<(), String> {
    if let Some(source) = &volume.host_path {
        return hostpath::check(source);
    }
    let Some(source) = &volume.empty_dir else {
        return Err("no volume plugin matched: this kind of volume is not supported on this node"
            .to_owned());
    };
    let dir = host_path(config, pod, volume).ok_or("the volume has no place")?;
    emptydir::make(&dir, pod, source, allocatable).map_err(|error| says("create", &dir, &error))
}

fn sub_path(mount: &VolumeMount, variables: &[(String, String)]) -> Result<PathBuf, String> {
    let text = match (&mount.sub_path_expr, &mount.sub_path) {
        (Some(expression), _) if !expression.is_empty() => {
            env::expand_strict(expression, variables).map_err(|error| {
                format!("failed to expand subPath for volumeMount \"{}\": {error}", mount.name)
            })?
        }
        (_, Some(path)) => path.clone(),
        _ => String::new(),
    };
    let path = PathBuf::from(&text);
    if path.is_absolute() {
        return Err(format!("error SubPath `{text}` must not be an absolute path"));
    }
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(format!("unable to provision SubPath `{text}`: must not contain '..'"));
    }
    Ok(path.components().filter(|part| *part != std::path::Component::CurDir).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use crate::sandbox::samples::config;
    use serde_json::json;

    #[test]
    fn an_empty_dir_is_open_to_the_pods_group_and_mounts_say_where() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config();
        config.root_dir = dir.path().to_path_buf();
        let pod = pod(json!({"securityContext": {"fsGroup": 4242}, "containers": [{"name": "a",
            "volumeMounts": [
                {"name": "v", "mountPath": "/v", "readOnly": true},
                {"name": "v", "mountPath": "/w", "subPathExpr": "$(A)/x"}]}],
            "volumes": [{"name": "v", "emptyDir": {}},
                {"name": "m", "emptyDir": {"medium": "Memory"}}]}));
        for (name, mode) in [("v", 0o2777), ("m", 0o3777)] {
            make_plain(&config, &pod, volume(&pod, name).unwrap(), None).unwrap();
            let place = host_path(&config, &pod, volume(&pod, name).unwrap()).unwrap();
            let meta = std::fs::metadata(&place).unwrap();
            assert_eq!(meta.permissions().mode() & 0o7777, mode, "{name}");
            assert_eq!(std::os::unix::fs::MetadataExt::gid(&meta), 4242);
        }
        let place = host_path(&config, &pod, volume(&pod, "v").unwrap()).unwrap();
        let volumes =
            Volumes::new(&config, csi::samples::none(&config), client::recorder::silent());
        let container = &pod::spec(&pod).containers[0];
        let none = HashMap::new();
        let mounts = volumes
            .mounts(
                &config,
                &pod,
                container,
                &[("A".to_owned(), "sub".to_owned())],
                &none,
                cri::Features::default(),
            )
            .unwrap();
        assert_eq!(mounts[0].host_path, place);
        assert!(mounts[0].readonly && !mounts[1].readonly);
        assert!(mounts.iter().all(|mount| mount.selinux_relabel));
        assert!(place.join("sub/x").is_dir());
        let unknown =
            volumes.mounts(&config, &pod, container, &[], &none, cri::Features::default());
        assert!(unknown.is_err(), "unknown variable");
        mounts::remove_tree(&config.pod_dir("uid-1")).unwrap();
        assert!(!place.exists());
    }
}
