//! A driver of dynamic resources, written from the interface: it registers, prepares claims
//! with a device of the Container Device Interface each, and fails where a test wants it to.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::drain::{self, Trigger};
use futures::stream::{self, StreamExt};
use kubelet::csi::messages::{GET_INFO, NOTIFY_STATUS, Nothing, PluginInfo, RegistrationStatus};
use kubelet::dra::messages::*;
use parking_lot::Mutex;
use rpc::{Code, Routes, Status};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub const DRIVER: &str = "things.dra.example";

/// What the next call answers instead of its work.
pub enum Fault {
    Fails,
    Refuses(&'static str),
    Skips,
    Invents,
}

#[derive(Default)]
pub struct State {
    /// Names of claims as they were asked for.
    pub prepares: Vec<String>,
    pub unprepares: Vec<String>,
    /// Uids of claims.
    pub prepared: BTreeSet<String>,
    pub told: Vec<RegistrationStatus>,
    pub faults: VecDeque<Fault>,
}

pub struct Driver {
    pub state: Arc<Mutex<State>>,
    /// How the device is, once something is said; None ends the stream.
    pub health: watch::Sender<Option<DeviceHealth>>,
    pub says_health: bool,
    pub services: Vec<&'static str>,
    world: PathBuf,
    running: Option<(Trigger, Vec<JoinHandle<()>>)>,
}

impl Driver {
    pub fn new(world: &Path) -> Self {
        let services = vec!["v1.DRAPlugin", "v1beta1.DRAPlugin"];
        Self {
            state: Arc::default(),
            health: watch::Sender::new(None),
            says_health: false,
            services,
            world: world.to_path_buf(),
            running: None,
        }
    }

    fn registration(&self) -> PathBuf {
        self.world.join("agent/plugins_registry/things.sock")
    }

    pub fn start(&mut self) {
        let endpoint = self.world.join("agent/plugins/things/dra.sock");
        let (trigger, drain) = drain::channel();
        let served = rpc::bind(&endpoint, 0o600).unwrap();
        let serving = tokio::spawn(rpc::serve(served, self.work(), drain.clone()));
        let plugin = PluginInfo {
            kind: "DRAPlugin".into(),
            name: DRIVER.into(),
            endpoint: endpoint.display().to_string(),
            supported_versions: self.services.iter().map(|it| (*it).to_owned()).collect(),
        };
        let state = self.state.clone();
        let routes = Routes::default()
            .unary(GET_INFO, move |_: Nothing, _| std::future::ready(Ok(plugin.clone())))
            .unary(NOTIFY_STATUS, move |status: RegistrationStatus, _| {
                state.lock().told.push(status);
                std::future::ready(Ok(Nothing {}))
            });
        let served = rpc::bind(&self.registration(), 0o600).unwrap();
        let registering = tokio::spawn(rpc::serve(served, routes, drain));
        self.running = Some((trigger, vec![serving, registering]));
    }

    /// The program ends, and its sockets go.
    pub async fn leave(&mut self) {
        let (trigger, tasks) = self.running.take().unwrap();
        trigger.drain();
        for task in tasks {
            task.await.unwrap();
        }
        std::fs::remove_file(self.registration()).unwrap();
    }

    fn work(&self) -> Routes {
        // The best of what both sides speak.
        let known = SERVICES.iter().find(|(name, _)| self.services.contains(name));
        let service = known.map_or("/none", |(_, path)| path);
        let (preparing, unpreparing) = (self.state.clone(), self.state.clone());
        let health = self.health.clone();
        let routes = match self.says_health {
            false => Routes::default(),
            true => Routes::default().streaming(WATCH_HEALTH, move |_: HealthRequest, _| {
                let lists = health.subscribe();
                let next = |mut lists: watch::Receiver<Option<DeviceHealth>>| async move {
                    lists.changed().await.ok()?;
                    let devices = lists.borrow_and_update().iter().cloned().collect();
                    Some((Ok(HealthList { devices }), lists))
                };
                let answers = stream::unfold(lists, next).boxed();
                std::future::ready(Ok(answers))
            }),
        };
        routes
            .unary(&format!("{service}/{PREPARE}"), move |request: Claims, _| {
                std::future::ready(prepare(&preparing, request))
            })
            .unary(&format!("{service}/{UNPREPARE}"), move |request: Claims, _| {
                std::future::ready(unprepare(&unpreparing, request))
            })
    }
}

fn prepare(state: &Mutex<State>, request: Claims) -> Result<PrepareResponse, Status> {
    let mut state = state.lock();
    state.prepares.extend(request.claims.iter().map(|it| it.name.clone()));
    let fault = state.faults.pop_front();
    let mut answer = PrepareResponse::default();
    for claim in request.claims {
        let mut prepared = Prepared {
            devices: vec![Device {
                pool_name: "pool".into(),
                device_name: "one".into(),
                request_names: vec!["req".into()],
                cdi_device_ids: vec!["example.com/thing=one".into()],
                ..Device::default()
            }],
            ..Prepared::default()
        };
        let mut uid = claim.uid;
        match fault {
            Some(Fault::Fails) => return Err(Status::new(Code::Internal, "broken")),
            Some(Fault::Refuses(why)) => prepared.error = why.into(),
            Some(Fault::Skips) => continue,
            Some(Fault::Invents) => uid = "nobody".into(),
            None => {
                state.prepared.insert(uid.clone());
            }
        }
        answer.claims.insert(uid, prepared);
    }
    Ok(answer)
}

fn unprepare(state: &Mutex<State>, request: Claims) -> Result<UnprepareResponse, Status> {
    let mut state = state.lock();
    state.unprepares.extend(request.claims.iter().map(|it| it.name.clone()));
    if state.faults.pop_front().is_some() {
        return Err(Status::new(Code::Internal, "broken"));
    }
    let mut answer = UnprepareResponse::default();
    for claim in request.claims {
        state.prepared.remove(&claim.uid);
        answer.claims.insert(claim.uid, Unprepared::default());
    }
    Ok(answer)
}
