//! The service proxy: follows services, endpoint slices and this node's pods and keeps the kernel's rules
//! right, with one batch per change and nothing to do in between.
//!
//! Packets never pass this process. Rules of a former process stay in force until there is
//! an API server to ask.

pub mod forwards;
pub mod host_ports;
pub mod kernel;
pub mod near;
pub mod plan;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Backoff;
use base::drain::Drain;
use base::error::chain;
use client::Cache;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{info, warn};

pub use forwards::{Forward, Forwards};
pub use kernel::TableConfig;
use kernel::{Table, cuts_flows};
use near::Place;
use plan::{Change, Front, Owner, Plan, ServiceKey};

/// The label that ties a slice to its service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The index of slices by namespace/service.
pub const BY_SERVICE: &str = "network/service";

/// Waits between tries to write rules.
const RETRY_INITIAL: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct ProxyConfig {
    pub table: TableConfig,
    pub node_name: String,
}

/// What the rules follow from.
#[derive(Clone)]
pub struct Sources {
    pub services: Cache<Service>,
    pub slices: Cache<EndpointSlice>,
    /// Those bound to this node; see [`host_ports::pods_of`].
    pub pods: Cache<Pod>,
    /// This node, for its zone.
    pub nodes: Cache<Node>,
    /// Ports of pods that no API server knows.
    pub forwards: Forwards,
}

pub fn service_of(slice: &EndpointSlice) -> Option<ServiceKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some((slice.metadata.namespace.clone().unwrap_or_default(), name.clone()))
}

pub fn index_of_service(slice: &EndpointSlice) -> Vec<String> {
    service_of(slice).map(|(namespace, name)| format!("{namespace}/{name}")).into_iter().collect()
}

/// Services and pods that have to be looked at again.
#[derive(Default)]
struct Dirty {
    keys: Mutex<HashSet<Owner>>,
    wake: Notify,
}

impl Dirty {
    fn add(&self, key: Owner) {
        self.keys.lock().insert(key);
        self.wake.notify_one();
    }

    fn take(&self) -> HashSet<Owner> {
        std::mem::take(&mut *self.keys.lock())
    }
}

/// Table and plan, which change together.
struct State {
    table: Table,
    plan: Plan,
    /// The table is known to hold what the plan had before the pending changes.
    in_step: bool,
    removed: HashSet<Front>,
}

impl State {
    fn sync(&mut self, changes: &[Change]) -> Result<(), sys::netlink::Error> {
        for change in changes.iter().filter(|change| cuts_flows(change)) {
            self.removed.insert(change.front);
        }
        if self.in_step {
            self.in_step = false;
            self.table.apply(changes)?;
            self.in_step = true;
            self.table.forget_clients(changes)?;
            if self.removed.is_empty() {
                return Ok(());
            }
        } else {
            self.table.replace(&self.plan)?;
            self.in_step = true;
        }
        self.table.forget_flows(&self.plan, &self.removed)?;
        self.removed.clear();
        Ok(())
    }
}

/// Keeps the rules until the drain begins, and leaves them in force then.
pub async fn run(config: ProxyConfig, sources: Sources, drain: Drain) {
    let dirty = Arc::new(Dirty::default());
    follow(&sources, &dirty);
    let table = Table::new(config.table.clone());
    let state = Arc::new(Mutex::new(State {
        table,
        plan: Plan::default(),
        in_step: false,
        removed: HashSet::new(),
    }));
    let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX);
    // Without a former process' rules, pods get at least their way out.
    let missing = |state: &mut State| match state.table.exists() {
        Ok(true) => Ok(()),
        Ok(false) => state.sync(&[]),
        Err(err) => Err(err),
    };
    if let Err(err) = blocking(&state, missing).await {
        warn!(error = %chain(&err), "service rules cannot be written yet");
    }
    let synced = async {
        sources.services.synced().await;
        sources.slices.synced().await;
        sources.pods.synced().await;
        sources.nodes.synced().await;
    };
    if drain.until(synced).await.is_none() {
        return;
    }
    state.lock().in_step = false;
    let mut first = true;
    loop {
        let keys = dirty.take();
        let changes = {
            let mut state = state.lock();
            let observe = |key: &Owner| observe(&config, &sources, key);
            keys.iter().flat_map(|key| state.plan.update(key, observe(key))).collect::<Vec<_>>()
        };
        let result = if changes.is_empty() && state.lock().in_step {
            Ok(())
        } else {
            blocking(&state, move |state| state.sync(&changes)).await
        };
        match result {
            Ok(()) => {
                backoff.reset();
                if std::mem::take(&mut first) {
                    let fronts = state.lock().plan.all().count();
                    info!(services = sources.services.len(), fronts, "service rules are in force");
                }
                if drain.until(dirty.wake.notified()).await.is_none() {
                    return;
                }
            }
            Err(err) => {
                warn!(error = %chain(&err), "service rules were refused, writing all of them");
                if drain.until(tokio::time::sleep(backoff.next_delay())).await.is_none() {
                    return;
                }
            }
        }
    }
}

fn follow(sources: &Sources, dirty: &Arc<Dirty>) {
    let hint = dirty.clone();
    sources.forwards.on_change(move |sandbox| hint.add(Owner::Sandbox(sandbox.to_owned())));
    sources.slices.add_index(BY_SERVICE, index_of_service);
    let hint = dirty.clone();
    sources.services.on_change(move |old, new| {
        for object in old.into_iter().chain(new) {
            hint.add(Owner::Service(client::cache::key_of(&**object)));
        }
    });
    let hint = dirty.clone();
    sources.slices.on_change(move |old, new| {
        for key in old.into_iter().chain(new).filter_map(|slice| service_of(slice)) {
            hint.add(Owner::Service(key));
        }
    });
    let (hint, services) = (dirty.clone(), sources.services.clone());
    sources.nodes.on_change(move |old, new| {
        if old.and_then(|node| zone(node)) != new.and_then(|node| zone(node)) {
            for service in services.list() {
                hint.add(Owner::Service(client::cache::key_of(&*service)));
            }
        }
    });
    let hint = dirty.clone();
    sources.pods.on_change(move |old, new| {
        for pod in old.into_iter().chain(new).filter(|pod| host_ports::has_any(pod)) {
            hint.add(Owner::Pod(client::cache::key_of(&**pod)));
        }
    });
}

const ZONE: &str = "topology.kubernetes.io/zone";

fn zone(node: &Node) -> Option<&str> {
    node.metadata.labels.as_ref()?.get(ZONE).map(String::as_str)
}

fn observe(config: &ProxyConfig, sources: &Sources, owner: &Owner) -> Vec<(Front, plan::Target)> {
    match owner {
        Owner::Service((namespace, name)) => {
            let Some(service) = sources.services.get(namespace, name) else { return Vec::new() };
            let slices = sources.slices.indexed(BY_SERVICE, &format!("{namespace}/{name}"));
            let node = sources.nodes.get("", &config.node_name);
            let zone = node.as_deref().and_then(zone);
            let place = Place { node: &config.node_name, zone };
            plan::fronts(&service, &slices, place, config.table.own_address)
        }
        Owner::Pod((namespace, name)) => {
            let pod = sources.pods.get(namespace, name);
            pod.map(|pod| host_ports::fronts(&pod, config.table.pod_range)).unwrap_or_default()
        }
        Owner::Sandbox(id) => sources.forwards.fronts(id),
    }
}

async fn blocking(
    state: &Arc<Mutex<State>>,
    work: impl FnOnce(&mut State) -> Result<(), sys::netlink::Error> + Send + 'static,
) -> Result<(), std::io::Error> {
    let state = state.clone();
    match base::task::spawn_blocking(move || work(&mut state.lock())).await {
        Ok(result) => result.map_err(std::io::Error::from),
        Err(err) => Err(std::io::Error::other(err)),
    }
}

/// Takes the table away. Safe to repeat.
pub fn cleanup(table: &str) -> Result<(), sys::netlink::Error> {
    kernel::delete_table(table)
}
