//! The kubelet's life: read what runs, register, follow pods and events, serve, drain.

use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use client::{ListParams, Recorder, Shared};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod, Service};
use parking_lot::Mutex;
use runtime::cri::{ContainerEvent, ImageService, RuntimeService};
use tokio::sync::{Notify, broadcast, oneshot};
use tracing::{info, warn};

use crate::config::KubeletConfig;
use crate::csi::Drivers;
use crate::dra::Dynamic;
use crate::eviction::Pressure;
use crate::garbage::Ages;
use crate::images::Images;
use crate::machine::{self, Machine};
use crate::node::Node;
use crate::objects::Objects;
use crate::observed::Observed;
use crate::placement::layout::Layout;
use crate::placement::{self, Placements};
use crate::pods::Pods;
use crate::resize::Allocations;
use crate::serving::Presented;
use crate::shutdown::Shutdown;
use crate::status_writer::StatusWriter;
use crate::usage::{Measurements, Rates};
use crate::users::Users;
use crate::volumes::Volumes;
use crate::volumes::csi::CsiVolumes;
use crate::{
    devices, eviction, garbage, logs, metrics, oom, plugins, pod, podresources, process, qos,
    register, server, serving, shutdown, staticpods, worker,
};

/// A safety net under the event stream.
const RELIST_PERIOD: Duration = Duration::from_secs(300);
/// First and longest wait for a runtime that cannot be read.
const RUNTIME_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Places(String),
    #[error("listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

pub struct Kubelet {
    node: Arc<Node>,
    shared: Shared,
    drain: Drain,
}

impl Kubelet {
    /// `shared` reads and writes as the node; what else runs in the process may share its
    /// caches. Must be called within the async runtime: the event recorder and the caches
    /// of services start here. `drain` ends everything; pods go on running.
    ///
    /// # Errors
    /// When it is not known for sure what containers were given of the machine.
    pub fn new(
        config: KubeletConfig,
        shared: Shared,
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
        drain: Drain,
    ) -> Result<Self, Error> {
        metrics::node::begin();
        metrics::pods::begin();
        metrics::resizes::begin();
        let runtime: Arc<dyn RuntimeService> = Arc::new(metrics::operations::Measured(runtime));
        let images: Arc<dyn ImageService> = Arc::new(metrics::operations::Measured(images));
        let heartbeat_client = shared.client().clone();
        let client = match config.api_rate {
            Some(rate) => heartbeat_client.paced(rate),
            None => heartbeat_client.clone(),
        };
        let pods = Arc::new(Pods::default());
        let (name, version) = runtime.version();
        let woken = pods.clone();
        let layout = Layout::read("/sys/devices/system".as_ref(), machine::memory_bytes());
        let kept = config.reserved_milli("cpu");
        let placements = Placements::open(config.places.clone(), layout, &config.root_dir, kept)
            .map_err(Error::Places)?;
        let teller = heartbeat_client.clone();
        let name_of_node = config.node_name.as_str();
        let recorder =
            Recorder::paced(teller, "kubelet", name_of_node, config.event_rate, drain.clone());
        let own_node = ListParams::fields(format!("metadata.name={}", config.node_name));
        let own_node = shared.cache_where::<NodeObject>(None, own_node);
        let drivers = Drivers::new(client.clone(), &config.node_name, shared.cache(), own_node);
        let csi =
            CsiVolumes::new(drivers, client.clone(), recorder.clone(), &config, drain.clone());
        let root = &config.root_dir;
        let dynamic = Dynamic::open(root, client.clone(), &config.node_name, drain.clone());
        let node = Node {
            machine: Machine::read(&config, &name, &version),
            images: Images::new(
                images,
                client.clone(),
                &config.root_dir,
                config.image_rules.clone(),
            ),
            observed: Observed::new(runtime.clone()),
            recorder: recorder.clone(),
            objects: Objects::new(client.clone(), Arc::new(move |uid: &str| woken.wake(uid))),
            services: shared.cache::<Service>(),
            volumes: Volumes::new(&config, csi, recorder),
            status: Arc::new(StatusWriter::new(client.clone(), pods.clone())),
            pods,
            classes: Mutex::default(),
            labels: Mutex::default(),
            admitting: tokio::sync::Mutex::default(),
            rates: Rates::default(),
            probe_counts: Arc::default(),
            pressure: Pressure::default(),
            allocations: Allocations::default(),
            users: Users::default(),
            shutdown: Shutdown::default(),
            placements,
            dynamic: Arc::new(dynamic),
            image_ages: Ages::default(),
            network: crate::node::Network::default(),
            measurements: Measurements::default(),
            drain: drain.clone(),
            runtime,
            client,
            heartbeat_client,
            config,
        };
        let node = Arc::new(node);
        metrics::standing::watch(&node);
        Ok(Self { node, shared, drain })
    }

    /// Runs until the drain begins.
    ///
    /// # Errors
    /// When the listening address cannot be had.
    pub async fn run(self) -> Result<(), Error> {
        let Self { node, shared, drain } = self;
        let address = node.config.listen;
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .map_err(|source| Error::Listen { address, source })?;
        let events = node.runtime.events();
        if drain.until(first_list(&node)).await.is_none() {
            return Ok(());
        }
        qos::enforce_allocatable(&node).await;
        process::adjust(&node.config);
        if let Some(address) = node.config.healthz {
            base::task::spawn(server::healthz::run(address, drain.clone()));
        }
        let mirrors = Arc::new(Notify::new());
        let (is_read, files_read) = oneshot::channel();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(base::task::boxed(follow_runtime(node.clone(), events, drain.clone())));
        tasks.spawn(base::task::boxed(follow_clock(node.clone(), drain.clone())));
        let mut tls = node.config.tls.clone();
        if let Some(files) = node.config.serving_files.clone() {
            let mut with_files = (*tls).clone();
            let read = Arc::new(serving::files::Read::new(files, tls.cert_resolver.clone()));
            with_files.cert_resolver = read.clone();
            tasks.spawn(base::task::boxed(serving::files::follow(read, drain.clone())));
            tls = Arc::new(with_files);
        }
        let tls = if node.config.asks_for_serving_certificate {
            let mut tls = (*tls).clone();
            let presented = Arc::new(Presented::new(tls.cert_resolver.clone()));
            tls.cert_resolver = presented.clone();
            tasks.spawn(base::task::boxed(serving::run(node.clone(), presented, drain.clone())));
            Arc::new(tls)
        } else {
            tls
        };
        if let Some(certificate) = node.config.client_certificate.clone()
            && node.config.rotates_client_certificate
        {
            tasks.spawn(base::task::boxed(certificate.run(drain.clone())));
        }
        tasks.spawn(base::task::boxed(server::run(node.clone(), listener, tls, drain.clone())));
        tasks.spawn(base::task::boxed(register::run(node.clone(), drain.clone())));
        tasks.spawn(base::task::boxed(node.status.clone().run(drain.clone())));
        tasks.spawn(base::task::boxed(placement::cpusets::run(node.clone(), drain.clone())));
        tasks.spawn(base::task::boxed(shutdown::run(node.clone(), drain.clone())));
        tasks.spawn(base::task::boxed(plugins::run(node.clone(), drain.clone())));
        let (csi, until) = (node.volumes.csi.clone(), drain.clone());
        tasks.spawn(base::task::boxed(async move {
            until.until(csi.drivers.keep_limits()).await;
        }));
        let (csi, until) = (node.volumes.csi.clone(), drain.clone());
        tasks.spawn(base::task::boxed(async move {
            until.until(csi.keep_measured()).await;
        }));
        tasks.spawn(base::task::boxed(devices::serve::run(node.clone(), drain.clone())));
        let dynamic = node.dynamic.clone();
        tasks.spawn(base::task::boxed(async move { dynamic.wipe_all().await }));
        tasks.spawn(base::task::boxed(podresources::run(node.clone(), drain.clone())));
        tasks.spawn(base::task::boxed(garbage::run(node.clone(), drain.clone())));
        tasks.spawn(base::task::boxed(oom::run(node.clone(), drain.clone())));
        tasks.spawn(base::task::boxed(eviction::run(node.clone(), drain.clone())));
        let (rotating, draining) = (node.clone(), drain.clone());
        tasks.spawn(base::task::boxed(async move { logs::run(&rotating, draining).await }));
        let (closing, draining) = (node.clone(), drain.clone());
        tasks.spawn(base::task::boxed(async move { closing.objects.close_at(draining).await }));
        if node.config.static_pod_dir.is_some() || node.config.static_pod_url.is_some() {
            let (from, mirrors) = (node.clone(), mirrors.clone());
            tasks.spawn(base::task::boxed(staticpods::run(from, mirrors, is_read, drain.clone())));
        } else {
            drop(is_read);
        }
        tasks.spawn(base::task::boxed(follow_pods(
            node.clone(),
            shared,
            mirrors,
            files_read,
            drain.clone(),
        )));
        while tasks.join_next().await.is_some() {}
        info!("kubelet drained; its pods go on");
        Ok(())
    }
}

async fn first_list(node: &Node) {
    loop {
        match node.observed.relist().await {
            Ok(pods) => {
                info!(pods = pods.len(), "took up what the runtime holds");
                return;
            }
            Err(error) => {
                warn!(error = %base::error::chain(&error), "the runtime cannot be read yet");
                tokio::time::sleep(RUNTIME_RETRY).await;
            }
        }
    }
}

/// Pods of this node as the API server has them. Orphans are removed only after the
/// first complete list.
async fn follow_pods(
    node: Arc<Node>,
    shared: Shared,
    mirrors: Arc<Notify>,
    files_read: oneshot::Receiver<()>,
    drain: Drain,
) {
    let params = ListParams::fields(format!("spec.nodeName={}", node.config.node_name));
    let cache = shared.cache_where::<Pod>(None, params);
    // A pod's environment names the services there are when it starts.
    if drain.until(node.services.synced()).await.is_none() {
        return;
    }
    let to = node.clone();
    cache.on_change(move |old, new| match (old, new) {
        (_, Some(new)) if pod::is_mirror(new) => {
            to.pods.put_mirror(new.clone());
            mirrors.notify_one();
        }
        (Some(old), None) if pod::is_mirror(old) => {
            to.pods.remove_mirror(old);
            mirrors.notify_one();
        }
        (old, Some(new)) => {
            // Deleted and made anew between two lists.
            if let Some(old) = old.filter(|old| pod::uid(old) != pod::uid(new)) {
                to.pods.gone(pod::uid(old));
            }
            if let Some(begun) = to.pods.put(new.clone()) {
                worker::spawn(to.clone(), begun);
            }
        }
        (Some(old), None) => to.pods.gone(pod::uid(old)),
        (None, None) => {}
    });
    // Without static pods the sender is dropped at once.
    let all_known = async {
        cache.synced().await;
        let _ = files_read.await;
    };
    if drain.until(all_known).await.is_some() {
        garbage::remove_orphans(&node).await;
    }
    drain.clone().begun().await;
}

async fn follow_runtime(
    node: Arc<Node>,
    mut events: broadcast::Receiver<ContainerEvent>,
    drain: Drain,
) {
    let work = async {
        let mut relist = tokio::time::interval(RELIST_PERIOD);
        relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        relist.tick().await;
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                _ = relist.tick() => Err(broadcast::error::RecvError::Lagged(0)),
            };
            if let Err(broadcast::error::RecvError::Lagged(missed @ 1..)) = event {
                metrics::node::events_missed(missed);
            }
            metrics::node::runtime_heard();
            match event {
                Ok(event) => look(&node, event).await,
                Err(broadcast::error::RecvError::Lagged(_)) => match node.observed.relist().await {
                    Ok(uids) => uids.iter().for_each(|uid| node.pods.wake(uid)),
                    Err(error) => {
                        warn!(error = %base::error::chain(&error), "the runtime cannot be read");
                    }
                },
                Err(broadcast::error::RecvError::Closed) => {
                    warn!("the runtime's events have ended; reading it at intervals");
                    tokio::time::sleep(RUNTIME_RETRY).await;
                    events = node.runtime.events();
                }
            }
        }
    };
    drain.until(work).await;
}

/// Timers count what passes, not what the wall clock says; tokens and deadlines have ended,
/// or are not valid yet, as soon as it is set.
async fn follow_clock(node: Arc<Node>, drain: Drain) {
    let follow = async {
        let jumps = base::clock::Jumps::watch()?;
        loop {
            jumps.next().await?;
            node.pods.wake_all();
        }
    };
    let end: Option<std::io::Result<()>> = drain.until(follow).await;
    if let Some(Err(error)) = end {
        warn!(%error, "changes of the wall clock go unnoticed");
    }
}

async fn look(node: &Node, event: ContainerEvent) {
    let read = match &event {
        // Removed by us it is forgotten already; somebody else may do it as well.
        ContainerEvent::Started { container_id, .. }
        | ContainerEvent::Stopped { container_id, .. }
        | ContainerEvent::Removed { container_id, .. } => {
            node.observed.refresh_container(container_id).await
        }
        // Our own doing, which is known already.
        ContainerEvent::Created { .. } => Ok(None),
        ContainerEvent::SandboxStopped { sandbox_id } => {
            for container in node.observed.containers() {
                if container.sandbox_id == *sandbox_id
                    && let Err(error) = node.observed.refresh_container(&container.id).await
                {
                    warn!(container = container.id, error = %error, "container not read");
                }
            }
            node.observed.refresh_sandbox(sandbox_id).await
        }
    };
    match read {
        Ok(Some(uid)) => node.pods.wake(&uid),
        Ok(None) => {}
        Err(error) => warn!(?event, error = %base::error::chain(&error), "event not followed"),
    }
}
