//! Devices that plugins bring: which there are, who has them, what a container needs to use
//! them.
//!
//! A pod is given its devices in two steps: they are reserved with everything else that it
//! needs of the machine, without a wait; then the plugin is asked, while nobody waits for it
//! but the pod. `serve` follows the plugins, `choice` decides.

mod checkpoint;
mod choice;
mod grant;
pub mod messages;
pub mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceHealth, ResourceStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use rpc::Channel;
use tokio::sync::Notify;

use crate::placement::hints::Hints;
use crate::placement::layout::Nodes;
use crate::placement::{self, Demand, Refusal};
use crate::pod::{self, Role};
use crate::quantity::{self, ResourceList};
use checkpoint::{ByNode, Content, Entry};
use choice::{Device, Ids, Offer};
pub use grant::Granted;
use messages::{ContainerAllocateResponse, DeviceList, HEALTHY, PluginOptions};

/// Below the root directory, as plugins know it.
pub const DIRECTORY: &str = "device-plugins";

/// What a device without a NUMA node is filed under.
const NO_NODE: i64 = -1;

/// A plugin that can be asked.
#[derive(Clone)]
struct Endpoint {
    channel: Arc<Channel>,
    options: PluginOptions,
}

#[derive(Default)]
struct Resource {
    devices: choice::Devices,
    /// None until a plugin registers, and after it went away.
    endpoint: Option<Endpoint>,
    /// Which registration it is that counts.
    registration: u64,
}

/// Devices of one resource that a container has.
#[derive(Debug, Clone)]
struct Held {
    devices: Ids,
    near: Option<Nodes>,
    /// By node as the devices were when they were given; empty while they are reserved.
    by_node: ByNode,
    /// None while they are reserved.
    response: Option<ContainerAllocateResponse>,
}

/// By container, then by resource.
type OfPod = BTreeMap<String, BTreeMap<String, Held>>;

#[derive(Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    held: BTreeMap<String, OfPod>,
    registrations: u64,
    /// Differs from what is on disk.
    is_dirty: bool,
}

/// One device of a container, and its NUMA nodes.
pub struct Used {
    pub resource: String,
    pub device: String,
    pub nodes: Vec<i64>,
}

pub struct Devices {
    dir: PathBuf,
    all: Nodes,
    state: Mutex<State>,
    /// Told when the node has more or fewer of them.
    pub changed: Notify,
    /// Told when a plugin registers.
    registered: Notify,
}

/// How many of each resource the container asks for.
fn asked(container: &Container) -> impl Iterator<Item = (&String, usize)> {
    let limits = container.resources.iter().flat_map(|it| it.limits.iter()).flatten();
    limits.map(|(name, amount)| {
        let count = quantity::value(amount).unwrap_or(0);
        (name, usize::try_from(count).unwrap_or(0))
    })
}

impl State {
    /// Whether a plugin brings it, or did.
    fn knows(&self, resource: &str) -> bool {
        let is_held =
            || self.held.values().flat_map(BTreeMap::values).any(|it| it.contains_key(resource));
        self.resources.contains_key(resource) || is_held()
    }

    fn held(&self, uid: &str, container: &str, resource: &str) -> Option<&Held> {
        self.held.get(uid)?.get(container)?.get(resource)
    }

    fn held_mut(&mut self, uid: &str, container: &str, resource: &str) -> Option<&mut Held> {
        self.held.get_mut(uid)?.get_mut(container)?.get_mut(resource)
    }

    fn healthy(&self, resource: &str) -> Ids {
        let devices = self.resources.get(resource).into_iter().flat_map(|it| &it.devices);
        devices.filter(|(_, device)| device.is_healthy).map(|(id, _)| id.clone()).collect()
    }

    /// What is free, and what the pod's init containers can hand on to the container.
    fn free(&self, pod: &Pod, container: &str, resource: &str) -> (Ids, Ids) {
        let healthy = self.healthy(resource);
        let uid = pod::uid(pod);
        let is_init = |name: &str| {
            pod::containers(pod).iter().any(|(role, it)| it.name == name && *role == Role::Init)
        };
        let (mut taken, mut init, mut own) = (Ids::new(), Ids::new(), Ids::new());
        for (of, containers) in &self.held {
            for (name, resources) in containers {
                if of == uid && name == container {
                    continue;
                }
                let Some(held) = resources.get(resource) else { continue };
                let into = match (of == uid, is_init(name)) {
                    (false, _) => &mut taken,
                    (true, true) => &mut init,
                    (true, false) => &mut own,
                };
                into.extend(held.devices.iter().cloned());
            }
        }
        let handed_on: Ids =
            init.difference(&own).filter(|id| healthy.contains(*id)).cloned().collect();
        let is_free = |id: &String| ![&taken, &init, &own].into_iter().any(|it| it.contains(id));
        (healthy.into_iter().filter(|id| is_free(id)).collect(), handed_on)
    }

    fn offer(&self, pod: &Pod, container: &str, resource: &str, near: Option<Nodes>) -> Offer {
        let (free, handed_on) = self.free(pod, container, resource);
        let nothing = choice::Devices::new();
        let devices = self.resources.get(resource).map_or(&nothing, |it| &it.devices);
        Offer::new(devices, free, handed_on, near)
    }

    fn reserve(
        &mut self,
        pod: &Pod,
        container: &Container,
        near: Option<Nodes>,
    ) -> Result<(), String> {
        let (uid, name) = (pod::uid(pod), &container.name);
        for (resource, count) in asked(container) {
            if count == 0 || !self.knows(resource) {
                continue;
            }
            let before = self.held(uid, name, resource).map(|held| held.devices.clone());
            if let Some(before) = before.as_ref().filter(|before| before.len() != count) {
                return Err(format!(
                    "pod {uid:?} container {name:?} changed request for resource {resource:?} \
                     from {} to {count}",
                    before.len()
                ));
            }
            if !self.resources.contains_key(resource) {
                return Err(format!("cannot allocate unregistered device {resource}"));
            }
            let healthy = self.healthy(resource);
            if healthy.is_empty() {
                return Err(format!(
                    "no healthy devices present; cannot allocate unhealthy devices {resource}"
                ));
            }
            if let Some(before) = before {
                if !before.is_subset(&healthy) {
                    return Err(format!(
                        "previously allocated devices are no longer healthy; cannot allocate \
                         unhealthy devices {resource}"
                    ));
                }
                continue;
            }
            let devices =
                take(&self.offer(pod, name, resource, near), resource, count, &Ids::new())?;
            let held = Held { devices, near, by_node: ByNode::new(), response: None };
            let own = self.held.entry(uid.to_owned()).or_default();
            own.entry(name.clone()).or_default().insert(resource.clone(), held);
        }
        Ok(())
    }
}

fn take(offer: &Offer, resource: &str, count: usize, liked: &Ids) -> Result<Ids, String> {
    offer.take(count, liked).map_err(|there| {
        // What is handed on was counted already.
        let wanted = count - offer.handed_on.len().min(count);
        format!(
            "requested number of devices unavailable for {resource}. Requested: {wanted}, \
             Available: {there}"
        )
    })
}

impl Devices {
    /// Takes up what was given before.
    pub fn open(root: &Path, all: Nodes) -> Self {
        let dir = root.join(DIRECTORY);
        let content = checkpoint::read(&dir);
        let mut state = State::default();
        // Nothing can be given out until its plugin has come back.
        let known = content.registered.into_keys();
        state.resources.extend(known.map(|name| (name, Resource::default())));
        for entry in content.entries {
            let held = Held {
                devices: entry.devices.values().flatten().cloned().collect(),
                near: None,
                by_node: entry.devices,
                response: Some(entry.response),
            };
            let own = state.held.entry(entry.uid).or_default();
            own.entry(entry.container).or_default().insert(entry.resource, held);
        }
        Self {
            dir,
            all,
            state: Mutex::new(state),
            changed: Notify::new(),
            registered: Notify::new(),
        }
    }

    /// Whether the pod asks for anything that a plugin brings.
    pub fn concern(&self, pod: &Pod) -> bool {
        let state = self.state.lock();
        let containers = pod::containers(pod);
        containers.iter().flat_map(|(_, it)| asked(it)).any(|(name, _)| state.knows(name))
    }

    /// Where the demand could be met, by resource.
    pub fn hints(&self, demand: Demand<'_>) -> Vec<Hints> {
        let state = self.state.lock();
        let pod = demand.pod;
        let of = |it: &Container, name: &str| {
            asked(it).find(|(asked, _)| *asked == name).map_or(0, |(_, count)| count)
        };
        let containers = pod::containers(pod);
        let names: BTreeSet<&String> = match demand.container {
            Some((_, container)) => asked(container).map(|(name, _)| name).collect(),
            None => containers.iter().flat_map(|(_, it)| asked(it)).map(|(name, _)| name).collect(),
        };
        let mut out = Vec::new();
        for name in names {
            let Some(resource) = state.resources.get(name) else { continue };
            let whole = || placement::of_whole_pod(pod, |it| of(it, name) as u64) as usize;
            let count = demand.container.map_or_else(whole, |(_, container)| of(container, name));
            let own = demand.container.map_or("", |(_, container)| &container.name);
            if count == 0 {
                continue;
            }
            let (free, handed_on) = match state.held(pod::uid(pod), own, name) {
                Some(held) => (held.devices.clone(), Ids::new()),
                None => state.free(pod, own, name),
            };
            out.push(choice::hints(self.all, &resource.devices, &free, &handed_on, count));
        }
        out
    }

    /// Keeps devices for the container, near the nodes where that is possible.
    ///
    /// # Errors
    /// Why the pod is refused.
    pub fn reserve(
        &self,
        pod: &Pod,
        container: &Container,
        near: Option<Nodes>,
    ) -> Result<(), Refusal> {
        let reserved = self.state.lock().reserve(pod, container, near);
        reserved.map_err(|why| placement::unexpected(&why))
    }

    /// Gives back what the pod has. True if it had something.
    pub fn release(&self, uid: &str) -> bool {
        let mut state = self.state.lock();
        let had = state.held.remove(uid).is_some();
        state.is_dirty |= had;
        had
    }

    /// Forgets all pods but those.
    pub fn retain(&self, is_known: &dyn Fn(&str) -> bool) {
        let mut state = self.state.lock();
        let before = state.held.len();
        state.held.retain(|uid, _| is_known(uid));
        state.is_dirty |= state.held.len() != before;
    }

    /// On disk once this is back, if it is not there already.
    pub fn keep(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.is_dirty {
            return Ok(());
        }
        let mut content = Content::default();
        for (name, resource) in &state.resources {
            let healthy = resource.devices.iter().filter(|(_, it)| it.is_healthy);
            content.registered.insert(name.clone(), healthy.map(|(id, _)| id.clone()).collect());
        }
        for (uid, containers) in &state.held {
            for (container, resources) in containers {
                // What is only reserved is given to nobody after a restart.
                let given = resources
                    .iter()
                    .filter_map(|(name, it)| Some((name, it, it.response.clone()?)));
                content.entries.extend(given.map(|(resource, held, response)| Entry {
                    uid: uid.clone(),
                    container: container.clone(),
                    resource: resource.clone(),
                    devices: held.by_node.clone(),
                    response,
                }));
            }
        }
        checkpoint::write(&self.dir, &content)?;
        state.is_dirty = false;
        Ok(())
    }

    /// What the node has of them, and what of it can be given out.
    pub fn capacity(&self) -> (ResourceList, ResourceList) {
        let state = self.state.lock();
        let (mut capacity, mut allocatable) = (ResourceList::new(), ResourceList::new());
        for (name, resource) in &state.resources {
            let healthy = resource.devices.values().filter(|it| it.is_healthy).count();
            capacity.insert(name.clone(), Quantity(resource.devices.len().to_string()));
            allocatable.insert(name.clone(), Quantity(healthy.to_string()));
        }
        (capacity, allocatable)
    }

    /// Devices that the container has.
    pub fn used(&self, uid: &str, container: &str) -> Vec<Used> {
        let state = self.state.lock();
        let resources = state.held.get(uid).and_then(|it| it.get(container));
        let mut out = Vec::new();
        for (resource, held) in resources.into_iter().flatten() {
            for device in &held.devices {
                let nodes = held
                    .by_node
                    .iter()
                    .filter(|(node, ids)| **node != NO_NODE && ids.contains(device));
                out.push(Used {
                    resource: resource.clone(),
                    device: device.clone(),
                    nodes: nodes.map(|(node, _)| *node).collect(),
                });
            }
        }
        out
    }

    /// Every healthy device there is.
    pub fn healthy(&self) -> Vec<Used> {
        let state = self.state.lock();
        let all = state.resources.iter().flat_map(|(resource, it)| {
            let healthy = it.devices.iter().filter(|(_, device)| device.is_healthy);
            healthy.map(|(id, device)| Used {
                resource: resource.clone(),
                device: id.clone(),
                nodes: device.nodes.clone().unwrap_or_default(),
            })
        });
        all.collect()
    }

    /// Tells how the devices of the pod's containers are.
    pub fn show(&self, uid: &str, status: &mut PodStatus) {
        let state = self.state.lock();
        let Some(own) = state.held.get(uid) else { return };
        for container in status.container_statuses.iter_mut().flatten() {
            let resources = own.get(&container.name).into_iter().flatten();
            let shown: Vec<ResourceStatus> = resources
                .map(|(name, held)| {
                    let there = state.resources.get(name).map(|it| &it.devices);
                    let health = |id: &String| match there.and_then(|it| it.get(id)) {
                        Some(device) if device.is_healthy => HEALTHY,
                        Some(_) => "Unhealthy",
                        None => "Unknown",
                    };
                    let one = |id: &String| ResourceHealth {
                        health: Some(health(id).to_owned()),
                        resource_id: id.clone(),
                        ..ResourceHealth::default()
                    };
                    let resources = Some(held.devices.iter().map(one).collect());
                    ResourceStatus { name: name.clone(), resources }
                })
                .collect();
            if !shown.is_empty() {
                container.allocated_resources_status = Some(shown);
            }
        }
    }

    /// A registration that counts from now on; the plugin before it is no longer listened to.
    fn register(&self, resource: &str, endpoint: Endpoint) -> u64 {
        let mut state = self.state.lock();
        state.registrations += 1;
        let registration = state.registrations;
        let it = state.resources.entry(resource.to_owned()).or_default();
        (it.endpoint, it.registration) = (Some(endpoint), registration);
        state.is_dirty = true;
        drop(state);
        self.registered.notify_waiters();
        registration
    }

    /// Returns when another plugin brings the resource.
    async fn superseded(&self, resource: &str, registration: u64) {
        let is_current = || {
            let state = self.state.lock();
            state.resources.get(resource).is_some_and(|it| it.registration == registration)
        };
        loop {
            let told = self.registered.notified();
            tokio::pin!(told);
            // Before the look, so that none is missed.
            told.as_mut().enable();
            if !is_current() {
                return;
            }
            told.await;
        }
    }

    /// What the plugin says there is. Some are the pods that have some of it, None is a plugin
    /// that no longer counts.
    fn update(&self, resource: &str, registration: u64, list: DeviceList) -> Option<Vec<String>> {
        let mut state = self.state.lock();
        let it = state.resources.get_mut(resource).filter(|it| it.registration == registration)?;
        let devices = list.devices.into_iter().map(|device| {
            let nodes = device.topology.map(|it| it.nodes.iter().map(|node| node.id).collect());
            (device.id, Device { is_healthy: device.health == HEALTHY, nodes })
        });
        let devices: choice::Devices = devices.collect();
        if devices == it.devices {
            return Some(Vec::new());
        }
        it.devices = devices;
        Some(self.changed(state, resource))
    }

    /// The plugin is gone. Its devices are unhealthy, or `forgotten`.
    fn lose(&self, resource: &str, registration: u64, forgotten: bool) -> Option<Vec<String>> {
        let mut state = self.state.lock();
        let it = state.resources.get_mut(resource).filter(|it| it.registration == registration)?;
        it.endpoint = None;
        if forgotten {
            it.devices.clear();
        }
        for device in it.devices.values_mut() {
            device.is_healthy = false;
        }
        Some(self.changed(state, resource))
    }

    fn changed(
        &self,
        mut state: parking_lot::MutexGuard<'_, State>,
        resource: &str,
    ) -> Vec<String> {
        state.is_dirty = true;
        let has = |own: &OfPod| own.values().any(|it| it.contains_key(resource));
        let uids = state.held.iter().filter(|(_, own)| has(own)).map(|(uid, _)| uid.clone());
        let uids = uids.collect();
        drop(state);
        if let Err(error) = self.keep() {
            tracing::warn!(%error, "devices are not written down");
        }
        self.changed.notify_one();
        uids
    }
}
