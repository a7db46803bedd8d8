//! Keeps the directories of this node's volumes: makes them, limits their sizes where the
//! file system can, and removes the data of those that are to go.
//!
//! Touches only directories right below its folder. Speaks to the API server with the
//! node's own rights, so that it works on any node.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::drain::Drain;
use base::error::chain;
use client::api::ListParams;
use client::cache::{Key, key_of};
use client::{Cache, Patch, Queue, Recorder, Shared, volumes};
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use parking_lot::Mutex;
use serde_json::json;
use tracing::{info, warn};

use super::disk::Disk;
use super::provisioner::settle;
use super::{DISK, FINALIZER, FOLDER, NODE, has_finalizer, policy, released};

const WORKERS: usize = 2;
/// Projects of ours begin here; those below are left to whoever uses quotas otherwise.
const PROJECTS_FROM: u32 = 0x4000_0000;
const PROJECTS: u32 = 0x2000_0000;

struct Keeper {
    shared: Shared,
    recorder: Recorder,
    node: String,
    folder: PathBuf,
    volumes: Cache<PersistentVolume>,
    /// Volumes whose limit was refused, so that it is told once.
    unlimited: Mutex<std::collections::HashSet<String>>,
}

/// Keeps directories below `folder` for the node `node` until the drain begins. `shared`
/// acts as the node.
pub async fn run(shared: Shared, node: String, folder: PathBuf, drain: Drain) {
    if let Err(err) = std::fs::create_dir_all(&folder) {
        warn!(folder = %folder.display(), error = %err, "no folder for local volumes");
        return;
    }
    let client = shared.client().clone();
    let volumes = shared.cache_where(None, ListParams::labels(format!("{NODE}={node}")));
    let nodes: Cache<Node> =
        shared.cache_where(None, ListParams::fields(format!("metadata.name={node}")));
    let recorder = Recorder::new(client, super::PROVISIONER, &node, drain.clone());
    let unlimited = Mutex::default();
    let me = Arc::new(Keeper { shared, recorder, node, folder, volumes, unlimited });
    let queue: Queue<Key> = Queue::named("local_path_directories");
    let changed = queue.clone();
    me.volumes.on_change(move |_, new| {
        if let Some(volume) = new {
            changed.add(key_of(&**volume));
        }
    });
    let offers: Queue<Key> = Queue::new();
    let offered = offers.clone();
    nodes.on_change(move |_, new| {
        if let Some(node) = new {
            offered.add(key_of(&**node));
        }
    });
    let keep = queue.run(WORKERS, drain.clone(), |(_, name)| me.keep(name));
    let offer = offers.run(1, drain.clone(), |_| me.offer(&nodes));
    tokio::join!(keep, offer);
}

/// What is to happen to a volume's directory.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// It is to be there and hold no more than this, in bytes.
    Have(u64),
    /// It goes with its data.
    Remove,
    /// The volume goes, its data stays.
    LetGo,
}

fn plan(volume: &PersistentVolume) -> Step {
    if volume.metadata.deletion_timestamp.is_none() {
        return Step::Have(volumes::capacity(volume).value().unsigned_abs());
    }
    // While it is protected, somebody uses it.
    if !has_finalizer(volume, FINALIZER) || has_finalizer(volume, "kubernetes.io/pv-protection") {
        return Step::Nothing;
    }
    if policy(volume) == "Delete" { Step::Remove } else { Step::LetGo }
}

/// The directory of a volume, if it is one right below `folder`.
fn directory(volume: &PersistentVolume, folder: &Path) -> Option<PathBuf> {
    let path = volume.spec.as_ref()?.local.as_ref()?.path.as_str();
    let name = Path::new(path).strip_prefix(folder).ok()?;
    let mut parts = name.components();
    match (parts.next(), parts.next()) {
        (Some(std::path::Component::Normal(name)), None) => Some(folder.join(name)),
        _ => None,
    }
}

/// A project for a volume that no directory in `taken` has.
fn choose(uid: &str, taken: &[u32]) -> u32 {
    let hash = uid
        .bytes()
        .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let from = hash % PROJECTS;
    let all = (from..PROJECTS).chain(0..from).map(|n| PROJECTS_FROM + n);
    all.into_iter().find(|project| !taken.contains(project)).unwrap_or(PROJECTS_FROM)
}

fn have(directory: &Path, folder: &Path, uid: &str, bytes_max: u64) -> io::Result<io::Result<()>> {
    match std::fs::create_dir(directory) {
        // Whoever the pod runs as may write, as the user of a disk of his own.
        Ok(()) => std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777))?,
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
        Err(err) => return Err(err),
    }
    Ok(limit(directory, folder, uid, bytes_max))
}

fn limit(directory: &Path, folder: &Path, uid: &str, bytes_max: u64) -> io::Result<()> {
    let held = sys::quota::project(directory)?;
    let project = match held {
        0 => {
            let others = std::fs::read_dir(folder)?.flatten();
            let taken: Vec<u32> =
                others.filter_map(|entry| sys::quota::project(&entry.path()).ok()).collect();
            choose(uid, &taken)
        }
        held => held,
    };
    sys::quota::limit(directory, project, bytes_max)
}

fn remove(directory: &Path, folder: &Path) -> io::Result<()> {
    let project = sys::quota::project(directory).unwrap_or(0);
    match std::fs::remove_dir_all(directory) {
        Ok(()) => {}
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return Err(err),
    }
    if project >= PROJECTS_FROM {
        // A limit of nothing holds nobody up.
        let _ = sys::quota::unlimit(folder, project);
    }
    Ok(())
}

impl Keeper {
    /// Says on the node where its volumes lie, and how large that disk is. The node's own
    /// heartbeats are when it is looked at; an idle one is not written to.
    async fn offer(&self, nodes: &Cache<Node>) -> Result<(), ()> {
        let Some(node) = nodes.get("", &self.node) else { return Ok(()) };
        let folder = self.folder.to_string_lossy();
        let said = |key| node.metadata.annotations.as_ref().and_then(|all| all.get(key));
        let mut news = json!({});
        if said(FOLDER).is_none_or(|said| **said != *folder) {
            news[FOLDER] = json!(folder);
        }
        let place = self.folder.clone();
        match blocking(move || sys::fs::capacity(&place)).await {
            Ok((total, free)) => {
                let told = said(DISK).and_then(|said| said.parse().ok());
                if let Some(disk) = (Disk { total, free }).news(told) {
                    news[DISK] = json!(disk.to_string());
                }
            }
            Err(err) => warn!(folder = %folder, error = %err, "its disk cannot be measured"),
        }
        if news == json!({}) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"metadata": {"annotations": news}}));
        settle(
            "offer local storage",
            self.shared.client().all::<Node>().patch(&self.node, &patch).await,
        )
    }

    async fn keep(&self, name: String) -> Result<(), ()> {
        let Some(volume) = self.volumes.get("", &name) else { return Ok(()) };
        let step = plan(&volume);
        let Some(directory) = directory(&volume, &self.folder) else {
            if step != Step::Nothing {
                warn!(volume = name, "its path is not one of ours; nothing is done with it");
            }
            return Ok(());
        };
        let (place, folder) = (directory.clone(), self.folder.clone());
        match step {
            Step::Nothing => Ok(()),
            Step::Have(bytes_max) => {
                let uid = volume.metadata.uid.clone().unwrap_or_default();
                let made = blocking(move || have(&place, &folder, &uid, bytes_max)).await;
                match made {
                    Ok(limited) => {
                        self.note_limit(&volume, limited);
                        Ok(())
                    }
                    Err(err) => self.failed(&volume, "make", &directory, &err),
                }
            }
            Step::Remove => match blocking(move || remove(&place, &folder)).await {
                Ok(()) => {
                    info!(volume = name, directory = %directory.display(), "data removed");
                    self.let_go(&volume).await
                }
                Err(err) => self.failed(&volume, "remove", &directory, &err),
            },
            Step::LetGo => self.let_go(&volume).await,
        }
    }

    async fn let_go(&self, volume: &PersistentVolume) -> Result<(), ()> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        self.unlimited.lock().remove(name);
        let volumes = self.shared.client().all::<PersistentVolume>();
        let patch = Patch::Merge(released(volume));
        settle("let a volume go", volumes.patch_status(name, &patch).await)
    }

    fn failed(
        &self,
        volume: &PersistentVolume,
        doing: &str,
        directory: &Path,
        err: &io::Error,
    ) -> Result<(), ()> {
        let text = format!("{doing} {}: {}", directory.display(), chain(err));
        warn!(
            volume = volume.metadata.name.as_deref(),
            error = text,
            "a local volume is not as it should be"
        );
        let reason = if doing == "remove" { "VolumeFailedDelete" } else { "ProvisioningFailed" };
        self.recorder.warning(&client::recorder::reference(volume), reason, text);
        Err(())
    }

    /// Tells, once for each volume, where its size is no more than a word.
    fn note_limit(&self, volume: &PersistentVolume, limited: io::Result<()>) {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let Err(err) = limited else {
            self.unlimited.lock().remove(&name);
            return;
        };
        if !self.unlimited.lock().insert(name.clone()) {
            return;
        }
        let text = format!(
            "the size of volume {name} is not enforced: {} has no project quotas ({err}); mount \
             it with prjquota to have them",
            self.folder.display()
        );
        let about = volumes::claim_ref(volume).cloned();
        let about = about.unwrap_or_else(|| client::recorder::reference(volume));
        self.recorder.normal(&about, "SizeNotEnforced", text);
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    base::task::spawn_blocking(work).await.unwrap_or_else(|err| Err(io::Error::other(err)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn volume(path: &str, policy: &str, going: bool, finalizers: Value) -> PersistentVolume {
        let at = going.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({"metadata": {"name": "v", "deletionTimestamp": at,
            "finalizers": finalizers}, "spec": {"local": {"path": path},
            "capacity": {"storage": "1Ki"}, "persistentVolumeReclaimPolicy": policy}}))
        .unwrap()
    }

    #[test]
    fn data_goes_when_nothing_protects_its_volume_any_more() {
        let both = json!([FINALIZER, "kubernetes.io/pv-protection"]);
        let ours = json!([FINALIZER]);
        for (policy, going, finalizers, want) in [
            ("Delete", false, both.clone(), Step::Have(1024)),
            ("Delete", true, both, Step::Nothing),
            ("Delete", true, ours.clone(), Step::Remove),
            ("Retain", true, ours, Step::LetGo),
            ("Delete", true, json!([]), Step::Nothing),
        ] {
            assert_eq!(plan(&volume("/s/v", policy, going, finalizers)), want);
        }
    }

    #[test]
    fn only_directories_right_below_the_folder_are_ours() {
        for (path, want) in [
            ("/s/v", Some("/s/v")),
            ("/s", None),
            ("/s/../etc", None),
            ("/s/v/../../etc", None),
            ("/s/a/b", None),
            ("/etc", None),
            ("/sv", None),
        ] {
            let found = directory(&volume(path, "Delete", false, json!([])), Path::new("/s"));
            assert_eq!(found.as_deref(), want.map(Path::new), "{path}");
        }
    }

    #[test]
    fn a_directory_is_made_once_and_removed_with_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("v");
        let _ = have(&place, dir.path(), "u", 4096).unwrap();
        std::fs::write(place.join("file"), "data").unwrap();
        let _ = have(&place, dir.path(), "u", 4096).unwrap();
        assert_eq!(std::fs::read(place.join("file")).unwrap(), b"data");
        assert_eq!(place.metadata().unwrap().permissions().mode() & 0o777, 0o777);
        remove(&place, dir.path()).unwrap();
        remove(&place, dir.path()).unwrap();
        assert!(!place.exists());
    }

    #[test]
    fn projects_do_not_collide() {
        let first = choose("u", &[]);
        let second = choose("u", &[first]);
        assert!(first != second && first >= PROJECTS_FROM && second >= PROJECTS_FROM);
    }
}
