//! Tells monitoring agents who has which devices, CPUs and memory: the pod resources API, v1,
//! on a socket below the root directory.
//!
//! Changes nothing. Callers that ask too often are told so.

pub mod messages;

use std::future::{Ready, ready};
use std::sync::Arc;

use base::drain::Drain;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use rpc::{Call, Code, Routes, Status};
use tokio::time::{Duration, Instant};
use tracing::warn;

use crate::devices::Used;
use crate::metrics::node::{self as metrics, ResourcesCall as Kind};
use crate::node::Node;
use crate::pod::{self, Role};
use messages::*;

/// Below the root directory, as agents know it.
const SOCKET: &str = "pod-resources/kubelet.sock";
/// Calls a second, and how many may come at once (upstream's numbers).
const CALLS_PER_SECOND: f64 = 100.0;
const CALLS_AT_ONCE: f64 = 10.0;
/// How long until a socket that could not be made is tried again.
const SOCKET_RETRY: Duration = Duration::from_secs(10);

/// A bucket of calls that fills with time.
struct Limit {
    left: f64,
    at: Instant,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Self { left: CALLS_AT_ONCE, at: now }
    }

    fn allows(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * CALLS_PER_SECOND).min(CALLS_AT_ONCE);
        self.at = now;
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

/// Serves until the drain begins.
pub async fn run(node: Arc<Node>, drain: Drain) {
    let path = node.config.root_dir.join(SOCKET);
    loop {
        match rpc::bind(&path, 0o600) {
            Ok(listener) => {
                rpc::serve(listener, routes(&node), drain.clone()).await;
                let _ = std::fs::remove_file(&path);
                return;
            }
            Err(error) => warn!(path = %path.display(), %error, "pod resources are not served"),
        }
        if drain.until(tokio::time::sleep(SOCKET_RETRY)).await.is_none() {
            return;
        }
    }
}

fn routes(node: &Arc<Node>) -> Routes {
    let limit = Arc::new(Mutex::new(Limit::new(Instant::now())));
    Routes::default()
        .unary(LIST, limited(node, &limit, Kind::List, |node, _: Nothing| Ok(list(node))))
        .unary(GET, limited(node, &limit, Kind::Get, get))
        .unary(
            GET_ALLOCATABLE,
            limited(node, &limit, Kind::GetAllocatable, |node, _: Nothing| Ok(allocatable(node))),
        )
}

fn limited<Q, A>(
    node: &Arc<Node>,
    limit: &Arc<Mutex<Limit>>,
    kind: Kind,
    answer: fn(&Node, Q) -> Result<A, Status>,
) -> impl Fn(Q, Call) -> Ready<Result<A, Status>> + use<Q, A> {
    let (node, limit) = (node.clone(), limit.clone());
    move |request, _| {
        ready(match limit.lock().allows(Instant::now()) {
            true => {
                let answer = answer(&node, request);
                metrics::resources_asked(kind, answer.is_err());
                answer
            }
            false => Err(Status::new(Code::ResourceExhausted, "rejected by rate limit")),
        })
    }
}

/// Of pods that have not ended.
fn list(node: &Node) -> ListResponse {
    let all = node.pods.list().into_iter().filter(|it| !it.gone);
    let active = all.filter(|it| {
        let told = node.status.last(pod::uid(&it.pod)).and_then(|status| status.phase);
        !pod::is_terminal_phase(told.as_deref().unwrap_or_else(|| pod::phase(&it.pod)))
    });
    ListResponse { pods: active.map(|it| resources_of(node, &it.pod)).collect() }
}

fn get(node: &Node, request: GetRequest) -> Result<GetResponse, Status> {
    let (name, namespace) = (&request.name, &request.namespace);
    let pod = node.pods.find(namespace, name).ok_or_else(|| {
        Status::new(Code::Unknown, format!("pod {name} in namespace {namespace} not found"))
    })?;
    Ok(GetResponse { pod: Some(resources_of(node, &pod)) })
}

fn allocatable(node: &Node) -> Resources {
    let there = node.placements.allocatable();
    Resources {
        devices: node.placements.devices.healthy().into_iter().map(device).collect(),
        cpu_ids: there.cpus.iter().flat_map(|set| &set.0).map(|cpu| i64::from(*cpu)).collect(),
        memory: there.memory.iter().map(memory).collect(),
    }
}

fn resources_of(node: &Node, pod: &Pod) -> PodResources {
    let uid = pod::uid(pod);
    let all = pod::containers(pod);
    let long = all.iter().filter(|(role, _)| matches!(role, Role::Sidecar | Role::Main));
    let one = |container: &Container| {
        let name = container.name.as_str();
        let owned = node.placements.owned(uid, name);
        ContainerResources {
            name: name.to_owned(),
            devices: node.placements.devices.used(uid, name).into_iter().map(device).collect(),
            cpu_ids: owned.cpus.iter().flat_map(|set| &set.0).map(|cpu| i64::from(*cpu)).collect(),
            memory: owned.memory.iter().map(memory).collect(),
            dynamic_resources: dynamic(node, pod, container),
        }
    };
    PodResources {
        name: pod::name(pod).to_owned(),
        namespace: pod::namespace(pod).to_owned(),
        containers: long.map(|(_, it)| one(it)).collect(),
    }
}

/// By claim; a pod whose claims are not prepared yet has nothing.
fn dynamic(node: &Node, pod: &Pod, container: &Container) -> Vec<DynamicResource> {
    let mut out: Vec<DynamicResource> = Vec::new();
    for used in node.dynamic.used(pod, container).unwrap_or_default() {
        let ids = used.device.cdi_device_ids.into_iter().flatten();
        let resource = ClaimResource {
            cdi_devices: ids.map(|name| CdiDevice { name }).collect(),
            driver_name: used.driver,
            pool_name: used.device.pool_name,
            device_name: used.device.device_name,
            share_id: used.device.share_id,
        };
        match out.iter_mut().find(|it| it.claim_name == used.claim) {
            Some(known) => known.claim_resources.push(resource),
            None => out.push(DynamicResource {
                claim_name: used.claim,
                claim_namespace: pod::namespace(pod).to_owned(),
                claim_resources: vec![resource],
            }),
        }
    }
    out
}

fn topology(nodes: impl IntoIterator<Item = i64>) -> Option<Topology> {
    let nodes: Vec<NumaNode> = nodes.into_iter().map(|id| NumaNode { id }).collect();
    (!nodes.is_empty()).then_some(Topology { nodes })
}

fn device(used: Used) -> ContainerDevices {
    ContainerDevices {
        resource_name: used.resource,
        device_ids: vec![used.device],
        topology: topology(used.nodes),
    }
}

fn memory(block: &crate::placement::Block) -> ContainerMemory {
    ContainerMemory {
        memory_type: block.resource.clone(),
        size: block.bytes,
        topology: topology(block.nodes.iter().map(|node| i64::from(*node))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_may_come_at_once_and_a_hundred_in_a_second() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let mut count = |at: Duration| (0..1000).take_while(|_| limit.allows(start + at)).count();
        assert_eq!(count(Duration::ZERO), 10);
        assert_eq!(count(Duration::from_millis(50)), 5);
        assert_eq!(count(Duration::from_secs(3600)), 10);
        // A clock that stands still gives nothing.
        assert_eq!(count(Duration::from_secs(3600)), 0);
    }
}
