//! A device plugin, written from the interface: it registers, lists what a test says there
//! is, and answers as the test says.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::drain::{self, Trigger};
use futures::StreamExt;
use kubelet::devices::messages::*;
use parking_lot::Mutex;
use rpc::{Channel, Code, Routes, Status};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub const RESOURCE: &str = "example.com/thing";

#[derive(Default)]
pub struct Seen {
    pub allocated: Vec<Vec<String>>,
    pub started: Vec<Vec<String>>,
    pub asked: Vec<ContainerPreferredRequest>,
}

/// What the next allocation answers instead of devices.
pub enum Fault {
    Fails(&'static str),
    Empty,
}

pub struct Plugin {
    pub seen: Arc<Mutex<Seen>>,
    pub faults: Arc<Mutex<VecDeque<Fault>>>,
    pub options: PluginOptions,
    /// Of these the plugin likes the first best.
    pub likes: Arc<Mutex<Vec<String>>>,
    dir: PathBuf,
    list: watch::Sender<DeviceList>,
    running: Option<(Trigger, JoinHandle<()>)>,
}

pub fn device(id: &str, health: &str, nodes: &[i64]) -> Device {
    let nodes: Vec<NumaNode> = nodes.iter().map(|id| NumaNode { id: *id }).collect();
    let topology = (!nodes.is_empty()).then_some(Topology { nodes });
    Device { id: id.into(), health: health.into(), topology }
}

pub fn healthy(ids: &[&str]) -> DeviceList {
    DeviceList { devices: ids.iter().map(|id| device(id, HEALTHY, &[])).collect() }
}

impl Plugin {
    /// Below the kubelet's directory.
    pub fn new(world: &Path, list: DeviceList) -> Self {
        Self {
            seen: Arc::default(),
            faults: Arc::default(),
            options: PluginOptions::default(),
            likes: Arc::default(),
            dir: world.join("agent/device-plugins"),
            list: watch::channel(list).0,
            running: None,
        }
    }

    pub fn tell(&self, list: DeviceList) {
        self.list.send_replace(list);
    }

    /// Serves, and tells the kubelet so.
    pub async fn start(&mut self) {
        // A kubelet that comes takes away what lies beside its socket.
        self.kubelet().await;
        self.serve();
        self.register(RESOURCE, VERSION).await.unwrap();
    }

    async fn kubelet(&self) -> PathBuf {
        let socket = self.dir.join("kubelet.sock");
        for _ in 0..500 {
            if socket.exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        socket
    }

    pub async fn register(&self, resource: &str, version: &str) -> Result<(), Status> {
        let socket = self.kubelet().await;
        let request = RegisterRequest {
            version: version.into(),
            endpoint: "thing.sock".into(),
            resource_name: resource.into(),
            options: None,
        };
        let channel = Channel::new(socket);
        channel.unary::<Empty>(REGISTER, &request, Duration::from_secs(15)).await.map(drop)
    }

    fn serve(&mut self) {
        let options = self.options.clone();
        let list = self.list.clone();
        let (allocating, starting, choosing) =
            (self.seen.clone(), self.seen.clone(), self.seen.clone());
        let (faults, likes) = (self.faults.clone(), self.likes.clone());
        let routes = Routes::default()
            .unary(OPTIONS, move |_: Empty, _| std::future::ready(Ok(options.clone())))
            .streaming(LIST_AND_WATCH, move |_: Empty, _| {
                let lists = futures::stream::unfold(
                    (list.subscribe(), true),
                    |(mut list, first)| async move {
                        if !first {
                            list.changed().await.ok()?;
                        }
                        let now = list.borrow_and_update().clone();
                        Some((Ok(now), (list, false)))
                    },
                );
                std::future::ready(Ok(lists.boxed()))
            })
            .unary(ALLOCATE, move |request: AllocateRequest, _| {
                let ids = request.containers[0].devices_ids.clone();
                allocating.lock().allocated.push(ids.clone());
                let answer = match faults.lock().pop_front() {
                    Some(Fault::Fails(why)) => Err(Status::new(Code::Internal, why)),
                    Some(Fault::Empty) => Ok(AllocateResponse::default()),
                    None => Ok(AllocateResponse { containers: vec![given(&ids)] }),
                };
                std::future::ready(answer)
            })
            .unary(PRE_START, move |request: PreStartRequest, _| {
                starting.lock().started.push(request.devices_ids);
                std::future::ready(Ok(Empty {}))
            })
            .unary(PREFERRED, move |request: PreferredRequest, _| {
                choosing.lock().asked.push(request.containers[0].clone());
                let devices = likes.lock().clone();
                let containers = vec![ContainerPreferredResponse { devices }];
                std::future::ready(Ok(PreferredResponse { containers }))
            });
        let listener = rpc::bind(&self.dir.join("thing.sock"), 0o600).unwrap();
        let (trigger, drain) = drain::channel();
        self.running = Some((trigger, tokio::spawn(rpc::serve(listener, routes, drain))));
    }

    /// The program ends.
    pub async fn stop(&mut self) {
        let (trigger, task) = self.running.take().unwrap();
        trigger.drain();
        // What it said last is not said again.
        let list = self.list.borrow().clone();
        self.list = watch::channel(list).0;
        task.await.unwrap();
    }
}

fn given(ids: &[String]) -> ContainerAllocateResponse {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    ContainerAllocateResponse {
        envs: [pair("THINGS", &ids.join(",")), pair("OWN", "plugin")].into(),
        mounts: vec![Mount {
            container_path: "/things".into(),
            host_path: "/usr/share".into(),
            read_only: true,
        }],
        devices: vec![DeviceSpec {
            container_path: "/dev/thing".into(),
            host_path: "/dev/null".into(),
            permissions: "rw".into(),
        }],
        annotations: BTreeMap::from([pair("example.com/things", "yes")]).into_iter().collect(),
        cdi_devices: vec![CdiDevice { name: "example.com/thing=one".into() }],
    }
}
