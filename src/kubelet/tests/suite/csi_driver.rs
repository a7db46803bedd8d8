//! A storage driver of directories, written from the Container Storage Interface: it stages
//! and publishes with bind mounts, refuses what the interface lets a driver refuse, and fails
//! where a test wants it to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::drain::{self, Trigger};
use kubelet::csi::messages::*;
use parking_lot::Mutex;
use rpc::{Code, Routes, Status};
use tokio::task::JoinHandle;

pub const DRIVER: &str = "dirs.csi.example";

/// What a call does instead of its work.
#[derive(Clone)]
pub enum Fault {
    Fails(Code),
    /// The work is done, but its answer never comes.
    Stalls,
    /// The program ends in the middle of the call.
    Dies,
}

#[derive(Default)]
pub struct State {
    pub stages: Vec<StageRequest>,
    pub publishes: Vec<PublishRequest>,
    pub expands: Vec<ExpandRequest>,
    /// Volumes that the node holds at most, where it is not as the shape has it.
    pub limit: Option<i64>,
    /// How often it was asked how full a volume is.
    pub measured: usize,
    pub unpublished: usize,
    pub unstaged: usize,
    /// What kubelets said of the registration.
    pub told: Vec<RegistrationStatus>,
    faults: HashMap<&'static str, VecDeque<Fault>>,
    /// Handles by the place where they are staged, and by where they are published.
    staged: BTreeMap<String, String>,
    published: BTreeMap<String, String>,
}

impl State {
    /// From now on all goes well.
    pub fn faults_end(&mut self) {
        self.faults.clear();
    }
}

/// How the driver presents itself.
#[derive(Clone)]
pub struct Shape {
    pub versions: Vec<&'static str>,
    pub abilities: Vec<Ability>,
    pub info: NodeInfo,
}

impl Default for Shape {
    fn default() -> Self {
        let segments = [("topology.dirs.example/rack".to_owned(), "r7".to_owned())].into();
        Self {
            versions: vec!["1.0.0"],
            abilities: vec![
                Ability::StageUnstageVolume,
                Ability::GetVolumeStats,
                Ability::ExpandVolume,
            ],
            info: NodeInfo {
                node_id: "node-of-dirs".into(),
                max_volumes_per_node: 12,
                accessible_topology: Some(Topology { segments }),
            },
        }
    }
}

/// Without its trigger, the program has ended.
type Life = Arc<Mutex<Option<Trigger>>>;

pub struct Driver {
    pub state: Arc<Mutex<State>>,
    root: PathBuf,
    agent: PathBuf,
    shape: Shape,
    running: Option<(Life, Vec<JoinHandle<()>>)>,
}

impl Driver {
    /// Its volumes are directories, or devices, below `world/volumes`.
    pub fn start(world: &Path, shape: Shape) -> Self {
        let root = world.join("volumes");
        std::fs::create_dir_all(&root).unwrap();
        let (state, agent) = (Arc::default(), world.join("agent"));
        let mut driver = Self { state, root, agent, shape, running: None };
        driver.restart();
        driver
    }

    pub fn volume(&self, handle: &str) -> PathBuf {
        self.root.join(handle)
    }

    pub fn fail(&self, method: &'static str, fault: Fault) {
        self.state.lock().faults.entry(method).or_default().push_back(fault);
    }

    /// Faults that are still to come.
    pub fn faults(&self, method: &str) -> usize {
        self.state.lock().faults.get(method).map_or(0, VecDeque::len)
    }

    /// The program is ended and, like one that was killed, leaves its sockets.
    pub async fn stop(&mut self) {
        let (trigger, tasks) = self.running.take().unwrap();
        trigger.lock().take();
        for task in tasks {
            let _ = task.await;
        }
    }

    /// Its sockets go, as when it is taken from the node.
    pub async fn leave(&mut self) {
        self.stop().await;
        std::fs::remove_file(self.registration()).unwrap();
    }

    fn registration(&self) -> PathBuf {
        self.agent.join("plugins_registry").join(format!("{DRIVER}-reg.sock"))
    }

    pub fn restart(&mut self) {
        let endpoint = self.agent.join("plugins").join(DRIVER).join("csi.sock");
        let (trigger, drain) = drain::channel();
        let trigger = Arc::new(Mutex::new(Some(trigger)));
        let served = rpc::bind(&endpoint, 0o600).unwrap();
        let serving = tokio::spawn(rpc::serve(served, self.node(&trigger), drain.clone()));
        let served = rpc::bind(&self.registration(), 0o600).unwrap();
        let registering = rpc::serve(served, self.register(&endpoint), drain);
        self.running = Some((trigger, vec![serving, tokio::spawn(registering)]));
    }

    fn register(&self, endpoint: &Path) -> Routes {
        let plugin = PluginInfo {
            kind: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: endpoint.display().to_string(),
            supported_versions: self.shape.versions.iter().map(|it| (*it).to_owned()).collect(),
        };
        let state = self.state.clone();
        Routes::default()
            .unary(GET_INFO, move |_: Nothing, _| {
                let plugin = plugin.clone();
                async move { Ok(plugin) }
            })
            .unary(NOTIFY_STATUS, move |status: RegistrationStatus, _| {
                state.lock().told.push(status);
                async { Ok(Nothing {}) }
            })
    }

    fn node(&self, trigger: &Life) -> Routes {
        let (info, limits) = (self.shape.info.clone(), self.state.clone());
        let capability =
            |ability: &Ability| NodeCapability { rpc: Some(NodeRpc { ability: *ability as i32 }) };
        let capabilities = self.shape.abilities.iter().map(capability).collect();
        let told = NodeCapabilities { capabilities };
        let stages = self.shape.abilities.contains(&Ability::StageUnstageVolume);
        let work = Work {
            state: self.state.clone(),
            root: self.root.clone(),
            stages,
            trigger: trigger.clone(),
        };
        let with = |work: &Work| work.clone();
        let (stage, publish, unpublish) = (with(&work), with(&work), with(&work));
        let (unstage, expand, stats) = (with(&work), with(&work), work);
        Routes::default()
            .unary(NODE_GET_INFO, move |_: Nothing, _| {
                let mut info = info.clone();
                info.max_volumes_per_node =
                    limits.lock().limit.unwrap_or(info.max_volumes_per_node);
                async move { Ok(info) }
            })
            .unary(NODE_GET_CAPABILITIES, move |_: Nothing, _| {
                let told = told.clone();
                async move { Ok(told) }
            })
            .unary(NODE_STAGE, move |request, _| {
                let work = stage.clone();
                async move {
                    let done = work.stage(request);
                    work.answer("stage", done).await
                }
            })
            .unary(NODE_PUBLISH, move |request, _| {
                let work = publish.clone();
                async move {
                    let done = work.publish(request);
                    work.answer("publish", done).await
                }
            })
            .unary(NODE_UNPUBLISH, move |request, _| {
                let work = unpublish.clone();
                async move {
                    let done = work.unpublish(request);
                    work.answer("unpublish", done).await
                }
            })
            .unary(NODE_UNSTAGE, move |request, _| {
                let work = unstage.clone();
                async move {
                    let done = work.unstage(request);
                    work.answer("unstage", done).await
                }
            })
            .unary(NODE_EXPAND, move |request: ExpandRequest, _| {
                let work = expand.clone();
                async move {
                    let range = request.capacity_range.clone().unwrap_or_default();
                    work.state.lock().expands.push(request);
                    work.answer("expand", Ok(())).await?;
                    Ok(Expanded { capacity_bytes: range.required_bytes })
                }
            })
            .unary(NODE_STATS, move |request: StatsRequest, _| {
                let work = stats.clone();
                async move { work.stats(&request) }
            })
    }
}

#[derive(Clone)]
struct Work {
    state: Arc<Mutex<State>>,
    root: PathBuf,
    stages: bool,
    trigger: Life,
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::new(Code::Internal, error.to_string())
}

fn invalid(what: &str) -> Status {
    Status::new(Code::InvalidArgument, what)
}

fn bind(from: &Path, to: &Path) -> Result<(), Status> {
    rustix::mount::mount_bind(from, to).map_err(internal)
}

impl Work {
    /// Does what the test wants to go wrong; a failure was decided before the work.
    async fn answer(
        &self,
        method: &'static str,
        done: Result<(), Status>,
    ) -> Result<Nothing, Status> {
        let fault = self.state.lock().faults.get_mut(method).and_then(VecDeque::pop_front);
        match fault {
            Some(Fault::Fails(code)) => return Err(Status::new(code, "as the test wants")),
            Some(Fault::Stalls) => std::future::pending().await,
            Some(Fault::Dies) => {
                self.trigger.lock().take();
                std::future::pending().await
            }
            None => {}
        }
        done.map(|()| Nothing {})
    }

    fn is_to_fail(&self, method: &str) -> bool {
        let state = self.state.lock();
        matches!(state.faults.get(method).and_then(VecDeque::front), Some(Fault::Fails(_)))
    }

    fn source(&self, handle: &str) -> Result<PathBuf, Status> {
        if handle.is_empty() || handle.contains('/') {
            return Err(invalid("volume_id"));
        }
        let path = self.root.join(handle);
        // Volumes that are described in pods are made when they are published.
        if handle.starts_with("csi-") {
            std::fs::create_dir_all(&path).map_err(internal)?;
        }
        path.exists().then_some(path).ok_or_else(|| Status::new(Code::NotFound, handle))
    }

    fn stage(&self, request: StageRequest) -> Result<(), Status> {
        let (handle, at) = (request.volume_id.clone(), request.staging_target_path.clone());
        let capability = request.volume_capability.clone().ok_or(invalid("volume_capability"))?;
        self.state.lock().stages.push(request);
        if self.is_to_fail("stage") {
            return Ok(());
        }
        let source = self.source(&handle)?;
        let known = self.state.lock().staged.insert(at.clone(), handle.clone());
        if known.is_some() {
            return Ok(());
        }
        if !Path::new(&at).is_dir() {
            return Err(internal("the staging directory is the orchestrator's to make"));
        }
        match capability.access_type {
            // A device needs nothing before it is published.
            Some(AccessType::Block(_)) => Ok(()),
            Some(AccessType::Mount(_)) => bind(&source, Path::new(&at)),
            None => Err(invalid("access_type")),
        }
    }

    fn publish(&self, request: PublishRequest) -> Result<(), Status> {
        let (handle, at) = (request.volume_id.clone(), request.target_path.clone());
        let staging = request.staging_target_path.clone();
        let (read_only, capability) = (request.readonly, request.volume_capability.clone());
        self.state.lock().publishes.push(request);
        if self.is_to_fail("publish") {
            return Ok(());
        }
        let is_ephemeral = handle.starts_with("csi-");
        if self.stages && !is_ephemeral && !self.state.lock().staged.contains_key(&staging) {
            return Err(Status::new(Code::FailedPrecondition, "the volume is not staged"));
        }
        let source = self.source(&handle)?;
        if self.state.lock().published.insert(at.clone(), handle).is_some() {
            return Ok(());
        }
        let target = Path::new(&at);
        let is_block =
            matches!(capability.and_then(|it| it.access_type), Some(AccessType::Block(_)));
        if is_block {
            std::fs::File::create(target).map_err(internal)?;
        } else {
            std::fs::create_dir(target).map_err(internal)?;
        }
        bind(&source, target)?;
        if read_only {
            let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
            rustix::mount::mount_remount(target, flags, "").map_err(internal)?;
        }
        Ok(())
    }

    fn unpublish(&self, request: UnpublishRequest) -> Result<(), Status> {
        if self.is_to_fail("unpublish") {
            return Ok(());
        }
        self.state.lock().unpublished += 1;
        if self.state.lock().published.remove(&request.target_path).is_none() {
            return Ok(());
        }
        let target = Path::new(&request.target_path);
        sys::mount::unmount_detach(target).map_err(internal)?;
        let removed = if target.is_dir() {
            std::fs::remove_dir(target)
        } else {
            std::fs::remove_file(target)
        };
        removed.map_err(internal)
    }

    fn unstage(&self, request: UnstageRequest) -> Result<(), Status> {
        if self.is_to_fail("unstage") {
            return Ok(());
        }
        let mut state = self.state.lock();
        state.unstaged += 1;
        if state.published.values().any(|handle| *handle == request.volume_id) {
            return Err(Status::new(Code::FailedPrecondition, "the volume is published"));
        }
        if state.staged.remove(&request.staging_target_path).is_some() {
            // Nothing is mounted there of a device.
            let _ = sys::mount::unmount_detach(Path::new(&request.staging_target_path));
        }
        Ok(())
    }

    fn stats(&self, request: &StatsRequest) -> Result<Stats, Status> {
        let mut state = self.state.lock();
        state.measured += 1;
        if !state.published.contains_key(&request.volume_path) {
            return Err(Status::new(Code::NotFound, "not published there"));
        }
        let usage = |unit: Unit, used, total| Usage {
            available: total - used,
            total,
            used,
            unit: unit as i32,
        };
        Ok(Stats { usage: vec![usage(Unit::Bytes, 1000, 4000), usage(Unit::Inodes, 3, 30)] })
    }
}
