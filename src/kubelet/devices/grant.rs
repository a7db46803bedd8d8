//! Asks plugins for what was reserved, and puts what they answer into a container's
//! configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};
use runtime::cri::{self, ContainerConfig};

use super::checkpoint::ByNode;
use super::choice::Ids;
use super::messages::*;
use super::{Devices, Endpoint, NO_NODE, State, asked, take};
use crate::metrics;
use crate::pod::{self, Role};

/// How long a plugin may take for a call of a pod's (upstream's limit before a start; its other
/// calls have none).
const CALL_PATIENCE: Duration = Duration::from_secs(30);

/// What a container gets of plugins.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Granted {
    envs: BTreeMap<String, String>,
    mounts: BTreeMap<String, Mount>,
    devices: BTreeMap<String, DeviceSpec>,
    annotations: BTreeMap<String, String>,
    pub cdi_devices: Vec<String>,
}

impl Granted {
    /// Of two that want the same place the first has it.
    fn add(&mut self, response: &ContainerAllocateResponse) {
        for (name, value) in &response.envs {
            self.envs.entry(name.clone()).or_insert_with(|| value.clone());
        }
        for mount in &response.mounts {
            self.mounts.entry(mount.container_path.clone()).or_insert_with(|| mount.clone());
        }
        for device in &response.devices {
            self.devices.entry(device.container_path.clone()).or_insert_with(|| device.clone());
        }
        for (name, value) in &response.annotations {
            self.annotations.entry(name.clone()).or_insert_with(|| value.clone());
        }
        for device in &response.cdi_devices {
            if !self.cdi_devices.contains(&device.name) {
                self.cdi_devices.push(device.name.clone());
            }
        }
    }

    /// What the pod itself says wins.
    pub fn put(self, config: &mut ContainerConfig) {
        let own = std::mem::take(&mut config.envs);
        config.envs.extend(self.envs);
        config.envs.extend(own);
        let own = std::mem::take(&mut config.mounts);
        config.mounts.extend(self.mounts.into_values().map(|mount| cri::Mount {
            container_path: PathBuf::from(mount.container_path),
            host_path: PathBuf::from(mount.host_path),
            readonly: mount.read_only,
            ..cri::Mount::default()
        }));
        config.mounts.retain(|it| !own.iter().any(|own| own.container_path == it.container_path));
        config.mounts.extend(own);
        let own = std::mem::take(&mut config.devices);
        config.devices.extend(self.devices.into_values().map(|device| cri::Device {
            container_path: PathBuf::from(device.container_path),
            host_path: PathBuf::from(device.host_path),
            permissions: device.permissions,
        }));
        config.devices.extend(own);
        for (name, value) in self.annotations {
            config.annotations.entry(name).or_insert(value);
        }
        config.cdi_devices.extend(self.cdi_devices);
    }
}

/// By the nodes that the devices lie near now.
fn by_node(state: &State, resource: &str, devices: &Ids) -> ByNode {
    let mut out = ByNode::new();
    for id in devices {
        let device = state.resources.get(resource).and_then(|it| it.devices.get(id));
        let nodes = device.and_then(|it| it.nodes.clone()).filter(|nodes| !nodes.is_empty());
        for node in nodes.unwrap_or_else(|| vec![NO_NODE]) {
            out.entry(node).or_default().insert(id.clone());
        }
    }
    out
}

impl Devices {
    /// Has the plugins give the container what was reserved for it. Safe to repeat.
    ///
    /// # Errors
    /// What stands in the way.
    pub async fn settle(&self, pod: &Pod, container: &Container) -> Result<(), String> {
        let (uid, name) = (pod::uid(pod), container.name.as_str());
        for (resource, _) in asked(container) {
            let is_reserved = {
                let state = self.state.lock();
                state.held(uid, name, resource).is_some_and(|held| held.response.is_none())
            };
            if is_reserved {
                let endpoint = self.endpoint(resource)?;
                self.choose(&endpoint, pod, name, resource).await?;
                self.allocate(&endpoint, uid, name, resource).await?;
            }
        }
        Ok(())
    }

    fn endpoint(&self, resource: &str) -> Result<Endpoint, String> {
        let state = self.state.lock();
        let endpoint = state.resources.get(resource).and_then(|it| it.endpoint.clone());
        endpoint.ok_or_else(|| format!("unknown Device Plugin {resource}"))
    }

    /// Lets the plugin say which it would like best, where it wants to and has a choice.
    async fn choose(
        &self,
        endpoint: &Endpoint,
        pod: &Pod,
        container: &str,
        resource: &str,
    ) -> Result<(), String> {
        if !endpoint.options.get_preferred_allocation_available {
            return Ok(());
        }
        let uid = pod::uid(pod);
        let (request, count) = {
            let state = self.state.lock();
            let Some(held) = state.held(uid, container, resource) else { return Ok(()) };
            let count = held.devices.len();
            let offer = state.offer(pod, container, resource, held.near);
            let Some((available, must_include)) = offer.question(count) else { return Ok(()) };
            let request = ContainerPreferredRequest {
                available: available.into_iter().collect(),
                must_include: must_include.into_iter().collect(),
                size: i32::try_from(count).unwrap_or(i32::MAX),
            };
            (PreferredRequest { containers: vec![request] }, count)
        };
        let answer: PreferredResponse =
            endpoint.channel.unary(PREFERRED, &request, CALL_PATIENCE).await.map_err(|error| {
                format!("device plugin GetPreferredAllocation rpc failed with err: {error}")
            })?;
        let liked: Ids = answer.containers.into_iter().take(1).flat_map(|it| it.devices).collect();
        let mut state = self.state.lock();
        let Some(held) = state.held(uid, container, resource) else { return Ok(()) };
        // Others may have taken some of it meanwhile; what is reserved is in the offer.
        let offer = state.offer(pod, container, resource, held.near);
        let chosen = take(&offer, resource, count, &liked)?;
        if let Some(held) = state.held_mut(uid, container, resource) {
            held.devices = chosen;
        }
        Ok(())
    }

    async fn allocate(
        &self,
        endpoint: &Endpoint,
        uid: &str,
        container: &str,
        resource: &str,
    ) -> Result<(), String> {
        let Some(held) = self.state.lock().held(uid, container, resource).cloned() else {
            return Ok(());
        };
        let devices_ids = held.devices.iter().cloned().collect();
        let request =
            AllocateRequest { containers: vec![ContainerAllocateRequest { devices_ids }] };
        let begun = Instant::now();
        let answer = endpoint.channel.unary(ALLOCATE, &request, CALL_PATIENCE).await;
        metrics::devices_allocated(resource, begun.elapsed());
        let answer: AllocateResponse = answer.map_err(|error| error.to_string())?;
        let Some(response) = answer.containers.into_iter().next() else {
            return Err("no containers return in allocation response \
                        &AllocateResponse{ContainerResponses:[]*ContainerAllocateResponse{},}"
                .to_owned());
        };
        let mut state = self.state.lock();
        let by_node = by_node(&state, resource, &held.devices);
        if let Some(held) = state.held_mut(uid, container, resource) {
            (held.by_node, held.response) = (by_node, Some(response));
            state.is_dirty = true;
        }
        Ok(())
    }

    /// What the container needs to use its devices; plugins that want to prepare them for each
    /// start have done so. A container of which nothing is known, because its file was lost,
    /// is given devices now.
    ///
    /// # Errors
    /// What stands in the way.
    pub async fn grant(
        &self,
        pod: &Pod,
        role: Role,
        container: &Container,
    ) -> Result<Granted, String> {
        let (uid, name) = (pod::uid(pod), container.name.as_str());
        if role == Role::Ephemeral {
            return Ok(Granted::default());
        }
        let mut is_missing = false;
        for (resource, count) in asked(container) {
            let (held, endpoint) = {
                let state = self.state.lock();
                if count == 0 || !state.knows(resource) {
                    continue;
                }
                let endpoint = state.resources.get(resource).and_then(|it| it.endpoint.clone());
                (state.held(uid, name, resource).cloned(), endpoint)
            };
            is_missing |= held.is_none();
            if let Some(endpoint) = endpoint.filter(|it| it.options.pre_start_required) {
                let held = held.ok_or_else(|| {
                    format!(
                        "no devices found allocated in local cache for pod {uid}, container \
                         {name}, resource {resource}"
                    )
                })?;
                let devices_ids = held.devices.into_iter().collect();
                let request = PreStartRequest { devices_ids };
                let done = endpoint.channel.unary::<Empty>(PRE_START, &request, CALL_PATIENCE);
                done.await.map_err(|error| {
                    format!("device plugin PreStartContainer rpc failed with err: {error}")
                })?;
            }
        }
        if is_missing {
            self.state.lock().reserve(pod, container, None)?;
            self.settle(pod, container).await?;
            self.keep().map_err(|error| format!("write down devices: {error}"))?;
        }
        let mut out = Granted::default();
        let state = self.state.lock();
        let resources = state.held.get(uid).and_then(|it| it.get(name));
        for held in resources.into_iter().flat_map(BTreeMap::values) {
            held.response.iter().for_each(|response| out.add(response));
        }
        Ok(out)
    }
}
