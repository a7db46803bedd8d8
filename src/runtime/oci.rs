//! The built-in runtime: sandboxes and containers, each pod under a shim of its own.
//!
//! What must survive this process lies in files (whole or not at all) and in the shims;
//! what is in memory is rebuilt from them by `recover`. Nothing polls: shims tell.

mod apparmor;
mod bundle;
pub mod cdi;
pub mod handlers;
mod hooks;
mod link;
mod program;
mod recover;
mod sandbox;
pub(crate) use sandbox::limits;
mod seccomp;
mod selinux;
mod service;
pub mod shim;
mod spec;
pub(crate) use spec::{MASKED_PATHS, READONLY_PATHS};
mod stats;
pub use stats::interfaces_of;
mod streams;
mod users;
mod volumes;

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, watch};

use crate::cri::{
    ContainerConfig, ContainerEvent, ContainerState, ContainerUser, Error, ErrorKind, Features,
    LinuxResources, PodNetwork, PodSandboxConfig, Result,
};
use crate::images::{Images, Registries};
use link::{Link, LinkEvent};
use shim::proto::Exit;

/// Events that a slow listener may lag behind before it must list again.
const EVENTS_MAX: usize = 1_024;
/// Reports of shims that wait to be taken up; shims wait beyond that.
const REPORTS_MAX: usize = 256;

pub struct RuntimeConfig {
    /// Sandboxes and containers, on disk (`/var/lib/coracle/agent/containers`).
    pub state_dir: PathBuf,
    /// Images, on disk (`/var/lib/coracle/agent/images`).
    pub data_dir: PathBuf,
    /// Sockets and namespaces, gone after a reboot (`/run/coracle`).
    pub run_dir: PathBuf,
    /// What to execute for a shim, without its configuration: `[/usr/bin/coracle, shim]`.
    pub shim_command: Vec<OsString>,
    pub network: Arc<dyn PodNetwork>,
    pub registries: Registries,
    /// Programs that pods may choose instead of the built-in way ([`handlers::find`]).
    pub programs: Vec<handlers::Program>,
    /// Where vendors describe their devices ([`cdi::DIRS`]).
    pub cdi_dirs: Vec<PathBuf>,
    /// Cgroup of the shims below the root of every hierarchy (`coracle-shims`).
    pub shim_cgroup: String,
}

/// A sandbox as it is on disk.
#[derive(Clone, Serialize, Deserialize)]
struct SandboxRecord {
    id: String,
    config: PodSandboxConfig,
    created_at: i64,
    ips: Vec<IpAddr>,
    netns: Option<PathBuf>,
    /// SELinux level of the pod; empty where there is no SELinux.
    #[serde(default)]
    selinux_level: String,
    /// False while it is made. What wrote no such word wrote only what was finished.
    #[serde(default = "finished")]
    is_finished: bool,
}

fn finished() -> bool {
    true
}

/// A container as it is on disk.
#[derive(Clone, Serialize, Deserialize)]
struct ContainerRecord {
    id: String,
    sandbox_id: String,
    config: ContainerConfig,
    created_at: i64,
    image_ref: String,
    stop_signal: i32,
    cgroup: String,
    /// Of the program that runs it; empty is the built-in way.
    #[serde(default)]
    handler: String,
    /// None until it is created.
    #[serde(default)]
    user: Option<ContainerUser>,
}

struct Sandbox {
    record: SandboxRecord,
    shim_pid: i32,
    /// None once it is stopped.
    link: Mutex<Option<Arc<Link>>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Status {
    state: ContainerState,
    pid: i32,
    started_at: i64,
    exit: Exit,
    resources: LinuxResources,
}

struct Container {
    record: ContainerRecord,
    status: watch::Sender<Status>,
}

#[derive(Default)]
struct Tables {
    sandboxes: HashMap<String, Arc<Sandbox>>,
    containers: HashMap<String, Arc<Container>>,
}

pub struct Runtime {
    config: RuntimeConfig,
    images: Arc<Images>,
    cgroups: sys::cgroup::Hierarchy,
    tables: Mutex<Tables>,
    events: broadcast::Sender<ContainerEvent>,
    reports: mpsc::Sender<LinkEvent>,
    features: Features,
}

impl Runtime {
    /// Takes up the shims that run, and removes what belongs to none of them.
    pub async fn open(config: RuntimeConfig) -> Result<Arc<Self>> {
        for directory in [
            config.state_dir.join("sandboxes"),
            config.state_dir.join("containers"),
            config.run_dir.join("ns"),
            config.run_dir.join("shm"),
            config.run_dir.join("shim"),
            config.run_dir.join("tty"),
        ] {
            make_private(&directory)?;
        }
        let cgroups = sys::cgroup::Hierarchy::detect()
            .map_err(|err| internal("find the cgroup hierarchy", err))?;
        for missing in cgroups.missing() {
            tracing::warn!(controller = missing, "this host lacks a cgroup controller");
        }
        if !sys::caps::effective().is_ok_and(|set| set.has_name("SYS_RESOURCE")) {
            tracing::warn!(
                capability = "CAP_SYS_RESOURCE",
                "limits are not raised and oom scores not lowered"
            );
        }
        let images = Images::open(&config.data_dir, config.registries.clone()).await?;
        let features = users::features(&[config.state_dir.clone(), images.layers_dir()]);
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let (reports, inbox) = mpsc::channel(REPORTS_MAX);
        let runtime = Arc::new(Self {
            config,
            images: Arc::new(images),
            cgroups,
            tables: Mutex::default(),
            events,
            reports,
            features,
        });
        runtime.recover().await?;
        base::task::spawn(listen(Arc::downgrade(&runtime), inbox));
        Ok(runtime)
    }

    /// The container that uses an image, whose layers must then stay.
    pub(crate) fn user_of_image(&self, image_id: &str) -> Option<String> {
        self.tables()
            .containers
            .values()
            .find(|c| {
                let config = &c.record.config;
                let mounted = config.mounts.iter().filter_map(|mount| mount.image.as_ref());
                std::iter::once(&config.image)
                    .chain(mounted.map(|tree| &tree.image))
                    .any(|name| self.images.find(name).is_some_and(|i| i.id == image_id))
            })
            .map(|c| c.record.id.clone())
    }

    pub(crate) fn writable_layers_dir(&self) -> PathBuf {
        self.config.state_dir.join("containers")
    }

    pub fn images(&self) -> &Arc<Images> {
        &self.images
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        self.tables()
            .sandboxes
            .get(id)
            .cloned()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("sandbox \"{id}\" not found")))
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.tables()
            .containers
            .get(id)
            .cloned()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("container \"{id}\" not found")))
    }

    fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        self.tables()
            .containers
            .values()
            .filter(|c| c.record.sandbox_id == sandbox_id)
            .cloned()
            .collect()
    }

    fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.config.state_dir.join("sandboxes").join(id)
    }

    fn container_dir(&self, id: &str) -> PathBuf {
        self.config.state_dir.join("containers").join(id)
    }

    /// Short, for the path of a socket has at most 107 bytes.
    fn socket_path(&self, sandbox_id: &str) -> PathBuf {
        let short = sandbox_id.get(..20).unwrap_or(sandbox_id);
        self.config.run_dir.join("shim").join(format!("{short}.sock"))
    }

    fn netns_path(&self, sandbox_id: &str) -> PathBuf {
        self.config.run_dir.join("ns").join(sandbox_id)
    }

    fn shm_path(&self, sandbox_id: &str) -> PathBuf {
        self.config.run_dir.join("shm").join(sandbox_id)
    }

    /// The link to a sandbox that is ready.
    fn link_of(&self, sandbox: &Sandbox) -> Result<Arc<Link>> {
        sandbox.link().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("sandbox \"{}\" is not running", sandbox.record.id),
            )
        })
    }

    /// Notes an end once; later reports of it change nothing.
    fn note_exit(&self, container: &Container, exit: Exit) {
        let first = container.status.send_if_modified(|status| {
            let (first, unstarted) =
                (status.state != ContainerState::Exited, status.state == ContainerState::Created);
            if first {
                let ran = exit.started_at != 0;
                status.state = ContainerState::Exited;
                status.pid = 0;
                if ran {
                    status.started_at = exit.started_at;
                }
                status.exit = exit;
                // A short life may be over before its start is told: that comes first.
                if unstarted && ran {
                    self.tell_started(&container.record);
                }
                // No listener is no loss: they list when they come.
                let _ = self.events.send(ContainerEvent::Stopped {
                    sandbox_id: container.record.sandbox_id.clone(),
                    container_id: container.record.id.clone(),
                });
            }
            first
        });
        if first {
            self.clear_cgroup(container.record.cgroup.clone());
        }
    }

    /// Only while the status changes to it, so that events come in the order of life.
    fn tell_started(&self, record: &ContainerRecord) {
        let _ = self.events.send(ContainerEvent::Started {
            sandbox_id: record.sandbox_id.clone(),
            container_id: record.id.clone(),
        });
    }

    /// Kills what is left in a cgroup and removes it, beside.
    fn clear_cgroup(&self, path: String) {
        let group = self.cgroups.group(&path);
        base::task::spawn_blocking(move || clear_group(&group));
    }
}

fn clear_group(group: &sys::cgroup::Group) {
    let cleared =
        group.kill_all(sandbox::KILL_PATIENCE).and_then(|()| group.delete(sandbox::KILL_PATIENCE));
    if let Err(err) = cleared {
        tracing::warn!(cgroup = group.path(), error = %err, "cgroup not removed");
    }
}

impl Sandbox {
    fn link(&self) -> Option<Arc<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn take_link(&self) -> Option<Arc<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Container {
    fn new(record: ContainerRecord, state: ContainerState) -> Arc<Self> {
        let resources = record.config.resources.clone();
        let status = Status { state, pid: 0, started_at: 0, exit: Exit::default(), resources };
        Arc::new(Self { record, status: watch::Sender::new(status) })
    }

    fn status(&self) -> Status {
        self.status.borrow().clone()
    }
}

/// Takes up what shims report, until the runtime is dropped.
async fn listen(runtime: std::sync::Weak<Runtime>, mut inbox: mpsc::Receiver<LinkEvent>) {
    while let Some(report) = inbox.recv().await {
        let Some(runtime) = runtime.upgrade() else { return };
        match report {
            LinkEvent::Exited { container_id, exit } => {
                if let Ok(container) = runtime.container(&container_id) {
                    runtime.note_exit(&container, exit);
                }
            }
            LinkEvent::Closed { sandbox_id } => {
                if let Ok(sandbox) = runtime.sandbox(&sandbox_id)
                    && sandbox.take_link().is_some()
                {
                    tracing::warn!(sandbox = sandbox_id, "a pod's shim is gone");
                    runtime.shim_is_gone(&sandbox);
                }
            }
        }
    }
}

fn internal(doing: &str, err: std::io::Error) -> Error {
    let kind = if err.kind() == std::io::ErrorKind::StorageFull {
        ErrorKind::NoSpace
    } else {
        ErrorKind::Internal
    };
    Error::with_source(kind, format!("{doing}: {err}"), err)
}

fn make_private(directory: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|err| internal(&format!("make {}", directory.display()), err))
}

/// Whole or not at all; a crash of the node may lose it, and then its owner is removed.
fn write_whole<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let fail = |err: std::io::Error| internal(&format!("write {}", path.display()), err);
    let temporary = path.with_extension("tmp");
    let bytes = serde_json::to_vec(value).map_err(|err| fail(err.into()))?;
    std::fs::write(&temporary, bytes).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)
}

/// 64 hexadecimal digits by chance.
pub(crate) fn new_id() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|err| internal("read /dev/urandom", err))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
