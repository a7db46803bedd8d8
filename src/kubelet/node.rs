//! What the parts of one kubelet share: its configuration, its handles, what it knows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use base::drain::Drain;
use client::{Cache, Client, Recorder};
use k8s_openapi::api::core::v1::{Node as NodeObject, ObjectReference, Pod, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use parking_lot::Mutex;
use runtime::cri::{self, DnsConfig, RuntimeService, UserNamespace};
use tracing::warn;

use crate::admission::Standing;
use crate::config::KubeletConfig;
use crate::dra::Dynamic;
use crate::env::Facts;
use crate::eviction::Pressure;
use crate::garbage::Ages;
use crate::images::Images;
use crate::machine::Machine;
use crate::objects::Objects;
use crate::observed::{Observed, PodRuntime};
use crate::placement::Placements;
use crate::pods::Pods;
use crate::probes::counts::Counts;
use crate::resize::Allocations;
use crate::shutdown::Shutdown;
use crate::status_writer::StatusWriter;
use crate::usage::{Measurements, Rates};
use crate::users::Users;
use crate::volumes::Volumes;
use crate::{pod, qos, quantity, register, resources, sandbox};

/// How long a pod is kept waiting for news of the node that may let it in.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Node {
    pub config: KubeletConfig,
    pub client: Client,
    /// By which the node says that it is there: never held up by other requests.
    pub heartbeat_client: Client,
    pub runtime: Arc<dyn RuntimeService>,
    pub images: Images,
    pub observed: Observed,
    pub recorder: Recorder,
    pub objects: Objects,
    pub services: Cache<Service>,
    pub volumes: Volumes,
    pub pods: Arc<Pods>,
    pub status: Arc<StatusWriter>,
    pub machine: Machine,
    /// What the QoS classes were given last.
    pub classes: Mutex<Option<qos::Classes>>,
    /// The labels of our Node object, once known.
    pub labels: Mutex<BTreeMap<String, String>>,
    /// CPU counters last read.
    pub rates: Rates,
    pub probe_counts: Arc<Counts>,
    pub pressure: Pressure,
    pub allocations: Allocations,
    /// Held while a pod is judged and until it has what it asks for.
    pub admitting: tokio::sync::Mutex<()>,
    pub users: Users,
    pub shutdown: Shutdown,
    pub placements: Placements,
    pub dynamic: Arc<Dynamic>,
    pub image_ages: Ages,
    pub network: Network,
    pub measurements: Measurements,
    pub drain: Drain,
}

/// How the network of pods was when it was looked at last.
#[derive(Default)]
pub struct Network(AtomicU8);

const IS_WELL: u8 = 1;

impl Network {
    /// `trouble` is what the runtime said of itself.
    pub fn note(&self, trouble: Option<&str>) {
        let is_well = !trouble.is_some_and(cri::is_network_trouble);
        self.0.store(if is_well { IS_WELL } else { 0 }, Ordering::Relaxed);
    }
}

impl Node {
    /// Why pods get no network; asked anew for as long as it was not well.
    pub async fn network_trouble(&self) -> Option<String> {
        if self.network.0.load(Ordering::Relaxed) == IS_WELL {
            return None;
        }
        let trouble = self.runtime.trouble().await;
        self.network.note(trouble.as_deref());
        trouble.filter(|it| cri::is_network_trouble(it))
    }

    /// What events about this node are about.
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.config.node_name.clone()),
            uid: Some(self.config.node_name.clone()),
            ..ObjectReference::default()
        }
    }

    /// What containers' limits depend on.
    pub fn host(&self) -> resources::Host {
        let allocatable = quantity::value_of(Some(&self.machine.allocatable), "memory");
        resources::Host {
            memory_bytes: self.machine.memory_bytes,
            memory_allocatable_bytes: allocatable,
            has_unified_cgroups: self.machine.has_unified_cgroups,
            huge_pages: self.machine.huge_page_bytes,
            swap_bytes: self.config.limited_swap.then_some(self.machine.swap_bytes),
            memory_qos: self.config.memory_qos,
            keeps_requests: self.config.keeps_requests,
            ends_one_process: self.config.ends_one_process,
            cpu: self.config.cpu_time,
            gives_cpus_away: self.config.places.cpus.is_some(),
        }
    }

    /// The address by which the node reaches the pod.
    pub fn pod_ip(&self, pod: &Pod, runtime: &PodRuntime) -> Option<IpAddr> {
        if pod::is_host_network(pod) {
            return self.config.node_ips.first().copied();
        }
        runtime.newest_sandbox().and_then(|sandbox| sandbox.ips.first().copied())
    }

    pub fn pod_ips(&self, pod: &Pod, runtime: &PodRuntime) -> Vec<String> {
        if pod::is_host_network(pod) {
            return self.config.node_ips.iter().map(ToString::to_string).collect();
        }
        let ips = runtime.newest_sandbox().map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
        ips.iter().map(ToString::to_string).collect()
    }

    pub fn facts(&self, pod: &Pod, runtime: &PodRuntime) -> Facts<'_> {
        Facts {
            pod_ips: self.pod_ips(pod, runtime),
            host_ips: self.config.node_ips.iter().map(ToString::to_string).collect(),
            allocatable: Some(&self.machine.allocatable),
        }
    }

    fn machine_labels(&self) -> BTreeMap<String, String> {
        self.labels.lock().clone()
    }

    /// The node as it admits pods, by what was last heard of it.
    pub fn standing(&self) -> Standing<'_> {
        let own = self.volumes.csi.drivers.own_node.get("", &self.config.node_name);
        self.standing_of(self.machine_labels(), own.as_deref())
    }

    /// The same as the API server has it now, or as it was last known where it cannot tell.
    pub async fn refreshed_standing(&self) -> Standing<'_> {
        let nodes = self.client.all::<NodeObject>();
        // Other pods wait for their turn meanwhile.
        let look = tokio::time::timeout(LOOK_TIMEOUT, nodes.get_opt(&self.config.node_name));
        let Ok(looked) = look.await else {
            warn!("node not looked up in {LOOK_TIMEOUT:?}");
            return self.standing();
        };
        match looked {
            Ok(Some(node)) => {
                let labels = node.metadata.labels.clone().unwrap_or_default();
                *self.labels.lock() = labels.clone();
                self.standing_of(labels, Some(&node))
            }
            Ok(None) => self.standing(),
            Err(error) => {
                warn!(error = %base::error::chain(&error), "node not looked up");
                self.standing()
            }
        }
    }

    fn standing_of(
        &self,
        labels: BTreeMap<String, String>,
        own: Option<&NodeObject>,
    ) -> Standing<'_> {
        let mut allocatable = self.machine.allocatable.clone();
        let told = own.and_then(|own| own.status.as_ref()?.capacity.as_ref());
        let brought = self.placements.devices.capacity().0;
        let others = register::extended(told);
        allocatable.extend(others.into_iter().filter(|(name, _)| !brought.contains_key(name)));
        let taints = own.and_then(|own| own.spec.as_ref()?.taints.clone());
        let taints = taints.unwrap_or_default();
        Standing { name: &self.config.node_name, labels, taints, allocatable }
    }

    /// The handler of the pod's RuntimeClass; empty is the default.
    ///
    /// # Errors
    /// When there is no such class.
    pub async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        let name = pod::spec(pod).runtime_class_name.as_deref().unwrap_or_default();
        if name.is_empty() {
            return Ok(String::new());
        }
        match self.client.all::<RuntimeClass>().get_opt(name).await {
            Ok(Some(class)) => Ok(class.handler),
            Ok(None) => Err(format!("RuntimeClass \"{name}\" not found")),
            Err(error) => Err(format!("failed to get RuntimeClass \"{name}\": {error}")),
        }
    }

    /// The ids of a pod that asks for a user namespace of its own.
    ///
    /// # Errors
    /// When the runtime has none to give: running the pod with the node's own users would be
    /// less than it asked for.
    pub async fn users_of(
        self: &Arc<Self>,
        pod: &Pod,
        handler: &str,
    ) -> Result<Option<UserNamespace>, String> {
        if pod::spec(pod).host_users != Some(false) {
            return Ok(None);
        }
        if !self.runtime.features(handler).user_namespaces {
            let who = if handler.is_empty() {
                "runtime".to_owned()
            } else {
                format!("RuntimeClass handler \"{handler}\"")
            };
            return Err(format!(
                "can't set `spec.hostUsers: false`, {who} does not support user namespaces"
            ));
        }
        let (node, uid) = (self.clone(), pod::uid(pod).to_owned());
        base::task::spawn_blocking(move || node.users.of(&node.config, &uid))
            .await
            .map_err(|error| error.to_string())?
            .map(Some)
    }

    /// The host's resolver as it is now; the file may change while we run.
    pub async fn host_resolver(&self) -> DnsConfig {
        match tokio::fs::read_to_string(&self.config.resolv_conf).await {
            Ok(text) => sandbox::parse_resolv_conf(&text),
            Err(error) => {
                warn!(path = %self.config.resolv_conf.display(), %error, "no host resolver");
                DnsConfig::default()
            }
        }
    }
}
