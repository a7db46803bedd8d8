//! Makes this machine a Node of the cluster and keeps its status and lease current.
//!
//! Survives an absent API server: everything is tried again. Writes the status only when
//! something changed, when somebody wrote that nobody knows of it, or when what is written has
//! grown old.

mod transitions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::backoff::Backoff;
use base::drain::Drain;
use client::Patch;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node as NodeObject, NodeAddress, NodeCondition,
    NodeDaemonEndpoints, NodeFeatures, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec,
    NodeStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kinds::meta::name::is_extended_resource;
use runtime::cri::Handler;
use serde_json::json;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::eviction::thresholds::Condition;
use crate::machine::architecture;
use crate::node::Node;
use crate::quantity::ResourceList;
use crate::status::seconds;
use crate::{metrics, shutdown};

/// What this kubelet can do that older ones cannot; schedulers place pods that need it only
/// where it is said (node-declared features).
const DECLARED: [&str; 4] = [
    "ExtendWebSocketsToKubelet",
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    "RestartAllContainersOnContainerExits",
];
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// As upstream.
const LEASE_RENEWALS: u32 = 4;
/// What the kubelet writes, and the node lifecycle controller when it hears nothing.
const OWN_CONDITIONS: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
const NAMES_PER_IMAGE_MAX: usize = 5;

/// What the conditions are judged by.
struct Health {
    not_ready: Option<String>,
    memory_is_short: bool,
    disk_is_short: bool,
    pids_are_short: bool,
}

impl Node {
    fn wanted_labels(&self) -> BTreeMap<String, String> {
        let own = [
            ("beta.kubernetes.io/arch", architecture()),
            ("beta.kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture()),
            ("kubernetes.io/hostname", &self.config.node_name),
            ("kubernetes.io/os", "linux"),
        ];
        own.into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .chain(self.config.node_labels.iter().cloned())
            .collect()
    }

    pub(crate) fn addresses(&self) -> Vec<NodeAddress> {
        let address = |type_: &str, address: String| NodeAddress { type_: type_.into(), address };
        let external = self.config.node_external_ips.iter();
        self.config
            .node_ips
            .iter()
            .map(|ip| address("InternalIP", ip.to_string()))
            .chain(external.map(|ip| address("ExternalIP", ip.to_string())))
            .chain([address("Hostname", self.config.node_name.clone())])
            .collect()
    }
}

/// Registers, then keeps status and lease until the drain begins.
pub async fn run(node: Arc<Node>, drain: Drain) {
    let work = async {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7));
        let begun = Instant::now();
        let is_new = loop {
            match register(&node).await {
                Ok(is_new) => break is_new,
                Err(error) => {
                    warn!(error = %base::error::chain(&error), "node not registered yet");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        };
        let startup = is_new.then(|| Startup { begun, registered: Instant::now() });
        info!(node = node.config.node_name, "node registered");
        let about = node.reference();
        node.recorder.normal(&about, "Starting", "Starting kubelet.");
        tokio::join!(keep_status(&node, startup), keep_lease(&node));
    };
    drain.until(work).await;
}

/// The way of a node that was not there before.
struct Startup {
    begun: Instant,
    registered: Instant,
}

impl Startup {
    /// The node is ready now.
    fn end(self) {
        let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let since_boot = Duration::from_secs(up.tv_sec.try_into().unwrap_or(0));
        let registering = self.registered - self.begun;
        metrics::node::became_ready(since_boot, registering, self.registered.elapsed());
    }
}

/// True when the node was not there before.
async fn register(node: &Node) -> client::error::Result<bool> {
    let api = node.heartbeat_client.all::<NodeObject>();
    let name = &node.config.node_name;
    let labels = node.wanted_labels();
    if let Some(there) = api.get_opt(name).await? {
        let held = there.metadata.labels.unwrap_or_default();
        let differs = labels.iter().any(|(key, value)| held.get(key) != Some(value));
        let mut all = held;
        all.extend(labels.clone());
        *node.labels.lock() = all;
        if differs {
            api.patch(name, &Patch::Merge(json!({"metadata": {"labels": labels}}))).await?;
        }
        return Ok(false);
    }
    let health = health(node).await;
    let object = NodeObject {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels.clone()),
            annotations: Some(
                [(
                    "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                    "true".to_owned(),
                )]
                .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!node.config.register_taints.is_empty())
                .then(|| node.config.register_taints.clone()),
            provider_id: Some(node.config.provider_id.clone()).filter(|id| !id.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(status(node, &health, None, base::time::now()).await),
    };
    match api.create(&object).await {
        Ok(_) => {
            *node.labels.lock() = labels;
            if let Some(status) = &object.status {
                tell_conditions(node, None, status);
            }
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// Events about what became of the node's conditions.
fn tell_conditions(node: &Node, old: Option<&NodeStatus>, new: &NodeStatus) {
    for reason in transitions::of_conditions(old, new) {
        tell_status(node, reason);
    }
}

fn tell_status(node: &Node, reason: &'static str) {
    let text = format!("Node {} status is now: {reason}", node.config.node_name);
    node.recorder.normal(&node.reference(), reason, text);
}

async fn keep_status(node: &Node, mut startup: Option<Startup>) {
    let api = node.heartbeat_client.all::<NodeObject>();
    let mut written: Option<(NodeStatus, Timestamp)> = None;
    let own = node.volumes.csi.drivers.own_node.clone();
    let doubted = Arc::new(Notify::new());
    let tell = doubted.clone();
    own.on_change(move |old, new| {
        let was_cordoned = old.is_some_and(|old| is_cordoned(old));
        let cordons = new.is_some_and(|new| is_cordoned(new) != was_cordoned);
        if cordons || new.is_some_and(|new| is_doubted(new) || new_extended(new)) {
            tell.notify_one();
        }
    });
    let mut was_cordoned = false;
    loop {
        let now = base::time::now();
        let health = health(node).await;
        let new = status(node, &health, written.as_ref().map(|(status, _)| status), now).await;
        let is_old = written.as_ref().is_none_or(|(_, at)| {
            // Also when the clock was set back since.
            Duration::try_from(now.duration_since(*at))
                .map_or(true, |age| age >= node.config.heartbeat.status_age_max)
        });
        let differs = written
            .as_ref()
            .is_none_or(|(old, _)| without_heartbeats(old) != without_heartbeats(&new));
        // Only the node itself takes back what others wrote while it was silent.
        let held = own.get("", &node.config.node_name);
        if let Some(is) = held.as_deref().map(is_cordoned)
            && is != was_cordoned
        {
            was_cordoned = is;
            tell_status(node, if is { "NodeNotSchedulable" } else { "NodeSchedulable" });
        }
        let is_lost = held.as_deref().is_some_and(is_doubted);
        let doubts = is_lost || held.as_deref().is_some_and(new_extended);
        if is_old || differs || doubts {
            match write_status(node, &api, new.clone(), written.is_none()).await {
                Ok(told) => {
                    if let Some((before, _)) = &written {
                        let others = held.as_ref().and_then(|own| own.status.as_ref());
                        tell_conditions(node, others.filter(|_| is_lost).or(Some(before)), &told);
                    }
                    if transitions::is_ready(&told)
                        && let Some(startup) = startup.take()
                    {
                        startup.end();
                    }
                    written = Some((told, now));
                }
                Err(error) if error.is_not_found() => {
                    // Somebody deleted the Node: register anew.
                    written = None;
                    if let Err(error) = register(node).await {
                        warn!(error = %base::error::chain(&error), "node not registered");
                    }
                }
                Err(error) => {
                    warn!(error = %base::error::chain(&error), "node status not written");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(node.config.heartbeat.status_period) => {}
            () = doubted.notified() => {}
            () = node.pressure.changed.notified() => {}
            () = node.placements.devices.changed.notified() => {}
            () = node.volumes.csi.in_use_changed.notified() => {}
        }
    }
}

fn is_cordoned(node: &NodeObject) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

/// The cluster has not heard of the node for too long and says that it knows nothing of it.
fn is_doubted(node: &NodeObject) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    // What others tell of a node may be unknown to them for ever.
    conditions.into_iter().flatten().any(|condition| {
        OWN_CONDITIONS.contains(&condition.type_.as_str()) && condition.status == "Unknown"
    })
}

/// Extended resources of somebody else's capacity for the node, which are allocatable as well
/// (documentation, "Advertise Extended Resources for a Node").
pub fn extended(list: Option<&ResourceList>) -> ResourceList {
    let all = list.into_iter().flatten().filter(|(name, _)| is_extended_resource(name));
    all.map(|(name, amount)| (name.clone(), amount.clone())).collect()
}

/// Whether capacity and what is allocatable tell of different extended resources.
fn new_extended(node: &NodeObject) -> bool {
    let status = node.status.as_ref();
    let names = |list: Option<&ResourceList>| extended(list).into_keys().collect::<Vec<_>>();
    names(status.and_then(|status| status.capacity.as_ref()))
        != names(status.and_then(|status| status.allocatable.as_ref()))
}

async fn write_status(
    node: &Node,
    api: &client::Api<NodeObject>,
    mut new: NodeStatus,
    first: bool,
) -> client::error::Result<NodeStatus> {
    let name = &node.config.node_name;
    let mut before = None;
    if first {
        // Transitions that happened before this process keep their times.
        let held = api.get(name).await?;
        let labels = held.metadata.labels.unwrap_or_default();
        *node.labels.lock() = labels;
        keep_transitions(&mut new, held.status.as_ref());
        before = Some(held.status);
    }
    let mut body = json!({"status": new});
    if let Some(addresses) = body.pointer_mut("/status/addresses").and_then(|it| it.as_array_mut())
    {
        addresses.push(json!({"$patch": "replace"}));
    }
    let held = node.volumes.csi.drivers.own_node.get("", name);
    let held = held.as_ref().and_then(|own| own.status.as_ref());
    let (capacity, told) =
        held.map_or((None, None), |held| (held.capacity.as_ref(), held.allocatable.as_ref()));
    for resource in extended(told).into_keys() {
        // Nobody has it any more: not in the capacity, and not by a device plugin.
        let kept = [capacity, new.allocatable.as_ref()];
        if !kept.into_iter().flatten().any(|list| list.contains_key(&resource)) {
            body["status"]["allocatable"][&resource] = serde_json::Value::Null;
        }
    }
    let answer = api.patch_status(name, &Patch::Strategic(body)).await?;
    *node.labels.lock() = answer.metadata.labels.unwrap_or_default();
    if let Some(before) = before {
        tell_conditions(node, before.as_ref(), &new);
        if transitions::is_rebooted(before.as_ref(), &new) {
            let boot = new.node_info.as_ref().map_or("", |info| info.boot_id.as_str());
            let text = format!("Node {name} has been rebooted, boot id: {boot}");
            node.recorder.warning(&node.reference(), "Rebooted", text);
        }
    }
    Ok(new)
}

fn without_heartbeats(status: &NodeStatus) -> NodeStatus {
    let mut out = status.clone();
    for condition in out.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
    }
    out
}

fn keep_transitions(new: &mut NodeStatus, old: Option<&NodeStatus>) {
    let old = old.and_then(|old| old.conditions.as_ref());
    for condition in new.conditions.iter_mut().flatten() {
        let before = old.into_iter().flatten().find(|old| old.type_ == condition.type_);
        if let Some(before) = before.filter(|before| before.status == condition.status) {
            condition.last_transition_time = before.last_transition_time.clone();
        }
    }
}

async fn health(node: &Node) -> Health {
    let shutdown = node.shutdown.has_begun().then(|| shutdown::NODE_MESSAGE.to_owned());
    let runtime = match tokio::time::timeout(Duration::from_secs(10), node.runtime.trouble()).await
    {
        Ok(trouble) => {
            node.network.note(trouble.as_deref());
            trouble
        }
        Err(_) => Some("container runtime is down: it does not answer".to_owned()),
    };
    Health {
        not_ready: runtime.or(shutdown),
        memory_is_short: node.pressure.is(Condition::Memory),
        disk_is_short: node.pressure.is(Condition::Disk),
        pids_are_short: node.pressure.is(Condition::Pid),
    }
}

fn conditions(health: &Health, now: Timestamp) -> Vec<NodeCondition> {
    let now: Time = seconds(now);
    let condition = |type_: &str, status: bool, reason: &str, message: &str| NodeCondition {
        type_: type_.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    };
    let memory = if health.memory_is_short {
        condition(
            "MemoryPressure",
            true,
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        )
    } else {
        condition(
            "MemoryPressure",
            false,
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        )
    };
    let disk = if health.disk_is_short {
        condition("DiskPressure", true, "KubeletHasDiskPressure", "kubelet has disk pressure")
    } else {
        condition("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure")
    };
    let pids = if health.pids_are_short {
        condition(
            "PIDPressure",
            true,
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
        )
    } else {
        condition(
            "PIDPressure",
            false,
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        )
    };
    let ready = match &health.not_ready {
        None => condition("Ready", true, "KubeletReady", "kubelet is posting ready status"),
        Some(why) => condition("Ready", false, "KubeletNotReady", why),
    };
    vec![memory, disk, pids, ready]
}

async fn status(
    node: &Node,
    health: &Health,
    old: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let (mut capacity, mut allocatable) =
        (node.machine.capacity.clone(), node.machine.allocatable.clone());
    let brought = node.placements.devices.capacity();
    capacity.extend(brought.0);
    allocatable.extend(brought.1);
    let held = node.volumes.csi.drivers.own_node.get("", &node.config.node_name);
    let held = held.as_ref().and_then(|own| own.status.as_ref()?.capacity.as_ref());
    for (name, amount) in extended(held) {
        // Those of device plugins are told above.
        if !capacity.contains_key(&name) {
            allocatable.insert(name, amount);
        }
    }
    let mut status = NodeStatus {
        addresses: Some(node.addresses()),
        allocatable: Some(allocatable),
        capacity: Some(capacity),
        conditions: Some(conditions(health, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: node.config.listen.port().into() }),
        }),
        images: Some(images(node).await),
        node_info: Some(node.machine.info.clone()),
        volumes_in_use: Some(node.volumes.csi.in_use()),
        features: Some(NodeFeatures {
            supplemental_groups_policy: Some(node.runtime.gives_groups_strictly()),
        }),
        declared_features: Some(DECLARED.map(str::to_owned).into()),
        runtime_handlers: Some(node.runtime.handlers().into_iter().map(handler).collect()),
        ..NodeStatus::default()
    };
    keep_transitions(&mut status, old);
    status
}

fn handler(it: Handler) -> NodeRuntimeHandler {
    NodeRuntimeHandler {
        name: Some(it.name),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(it.features.recursive_read_only_mounts),
            user_namespaces: Some(it.features.user_namespaces),
        }),
    }
}

async fn images(node: &Node) -> Vec<ContainerImage> {
    let mut list = node.images.service.list_images().await.unwrap_or_default();
    list.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    list.truncate(node.config.status_images_max.unwrap_or(usize::MAX));
    list.into_iter()
        .map(|image| {
            let mut names = image.repo_digests;
            names.extend(image.repo_tags);
            names.truncate(NAMES_PER_IMAGE_MAX);
            ContainerImage {
                names: Some(names),
                size_bytes: Some(i64::try_from(image.size).unwrap_or(i64::MAX)),
            }
        })
        .collect()
}

async fn keep_lease(node: &Node) {
    let api = node.heartbeat_client.api::<Lease>(Some(LEASE_NAMESPACE));
    let mut held: Option<Lease> = None;
    let life = Duration::from_secs(node.config.heartbeat.lease_seconds.unsigned_abs().into());
    let mut ticks = tokio::time::interval(life / LEASE_RENEWALS);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match renew(node, &api, held.take()).await {
            Ok(lease) => held = Some(lease),
            Err(error) => warn!(error = %base::error::chain(&error), "node lease not renewed"),
        }
    }
}

/// A lease that was read before is replaced; one that is missing is created.
async fn renew(
    node: &Node,
    api: &client::Api<Lease>,
    held: Option<Lease>,
) -> client::error::Result<Lease> {
    let name = &node.config.node_name;
    let held = match held {
        Some(held) => Some(held),
        None => api.get_opt(name).await?,
    };
    let spec = LeaseSpec {
        holder_identity: Some(name.clone()),
        lease_duration_seconds: Some(node.config.heartbeat.lease_seconds),
        renew_time: Some(MicroTime(base::time::now())),
        ..LeaseSpec::default()
    };
    match held {
        Some(mut lease) => {
            lease.spec = Some(spec);
            api.replace(name, &lease).await
        }
        None => {
            let owner = node.client.all::<NodeObject>().get_opt(name).await?;
            let owner = owner.and_then(|owner| owner.metadata.uid).map(|uid| OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.clone(),
                uid,
                ..OwnerReference::default()
            });
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(LEASE_NAMESPACE.into()),
                    owner_references: owner.map(|owner| vec![owner]),
                    ..ObjectMeta::default()
                },
                spec: Some(spec),
            };
            api.create(&lease).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_wrong() {
        let now = base::time::now();
        let shows = |health: Health| -> Vec<String> {
            conditions(&health, now)
                .into_iter()
                .map(|it| format!("{}={}:{}", it.type_, it.status, it.reason.unwrap()))
                .collect()
        };
        let good = Health {
            not_ready: None,
            memory_is_short: false,
            disk_is_short: false,
            pids_are_short: false,
        };
        assert_eq!(
            shows(good),
            [
                "MemoryPressure=False:KubeletHasSufficientMemory",
                "DiskPressure=False:KubeletHasNoDiskPressure",
                "PIDPressure=False:KubeletHasSufficientPID",
                "Ready=True:KubeletReady"
            ]
        );
        let bad = Health {
            not_ready: Some("down".into()),
            memory_is_short: true,
            disk_is_short: true,
            pids_are_short: true,
        };
        assert_eq!(
            shows(bad),
            [
                "MemoryPressure=True:KubeletHasInsufficientMemory",
                "DiskPressure=True:KubeletHasDiskPressure",
                "PIDPressure=True:KubeletHasInsufficientPID",
                "Ready=False:KubeletNotReady"
            ]
        );
    }
}
