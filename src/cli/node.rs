//! A node: pod network, container runtime, kubelet.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::drain::Drain;
use client::{Cache, ListParams, Shared};
use k8s_openapi::api::core::v1::Node as NodeObject;
use network::{Network, NetworkConfig};
use runtime::cri::{self, ErrorKind, PodSandboxMetadata};
use runtime::images::Registries;
use runtime::images::inbox::Inbox;
use runtime::remote::Remote;
use runtime::{Runtime, RuntimeConfig};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::control::Holder;
use crate::{Error, Result};

pub mod settings;

use settings::Settings;

/// A node that is not ready by then is reported, and the server goes on.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// The one nf_tables table of ours.
pub const NFT_TABLE: &str = "coracle";
/// Cgroup of the shims below the root of every hierarchy.
pub const SHIM_CGROUP: &str = "coracle-shims";

pub struct Node {
    pub holder: Holder,
    pub tasks: Vec<JoinHandle<()>>,
}

/// Lends the pod network to the runtime, which knows only its own contract.
pub struct Plug(pub Arc<Network>);

#[async_trait]
impl cri::PodNetwork for Plug {
    async fn attach(
        &self,
        sandbox_id: &str,
        _: &PodSandboxMetadata,
        _: &BTreeMap<String, String>,
        netns: &Path,
    ) -> cri::Result<Vec<IpAddr>> {
        self.0.attach(sandbox_id, netns).await.map_err(|err| {
            let text = format!("set up the pod's network: {}", base::error::chain(&err));
            cri::Error::with_source(ErrorKind::Internal, text, err)
        })
    }

    async fn forward(&self, sandbox_id: &str, addresses: &[IpAddr], ports: &[cri::HostPort]) {
        let protocol = |port: &cri::HostPort| match port.protocol {
            cri::Protocol::Tcp => network::TCP,
            cri::Protocol::Udp => network::UDP,
            cri::Protocol::Sctp => network::SCTP,
        };
        let forwards = ports.iter().map(|port| network::Forward {
            protocol: protocol(port),
            address: port.host_ip,
            port: port.host_port,
            to: port.container_port,
        });
        self.0.forward(sandbox_id, addresses, forwards.collect());
    }

    async fn detach(&self, sandbox_id: &str, netns: &Path) -> cri::Result<()> {
        self.0.detach(sandbox_id, netns).await.map_err(|err| {
            let text = format!("take the pod's network down: {}", base::error::chain(&err));
            cri::Error::with_source(ErrorKind::Internal, text, err)
        })
    }

    async fn status(&self) -> Option<String> {
        self.0.status().await
    }
}

/// The pod network while everything is taken down: the runtime only detaches, and what
/// is left goes with the bridge.
pub struct Unplug {
    pub bridge: String,
}

#[async_trait]
impl cri::PodNetwork for Unplug {
    async fn attach(
        &self,
        _: &str,
        _: &PodSandboxMetadata,
        _: &BTreeMap<String, String>,
        _: &Path,
    ) -> cri::Result<Vec<IpAddr>> {
        let text = format!("{} is being removed", self.bridge);
        Err(cri::Error::new(ErrorKind::Internal, text))
    }

    async fn forward(&self, _: &str, _: &[IpAddr], _: &[cri::HostPort]) {}

    async fn detach(&self, _: &str, _: &Path) -> cri::Result<()> {
        Ok(())
    }

    async fn status(&self) -> Option<String> {
        Some(format!("{} is being removed", self.bridge))
    }
}

fn network_config(settings: &Settings) -> NetworkConfig {
    let prefix = |network: api::registry::allocate::Network| network::Prefix {
        address: network.address,
        length: network.prefix,
    };
    let cluster_cidr = prefix(settings.cluster_network);
    NetworkConfig {
        node_name: settings.name.clone(),
        bridge: settings.bridge.clone(),
        table: NFT_TABLE.into(),
        pod_cidr: network::first_node_range(cluster_cidr),
        cluster_cidr,
        service_cidr: prefix(settings.service_network),
        dns_address: settings.dns_address,
        cluster_domain: settings.cluster_domain.clone(),
        resolv_conf: settings.resolv_conf.clone(),
        state_dir: settings.paths.network(),
        mtu: None,
        proxy: settings.proxy,
    }
}

/// What to execute for a shim.
pub fn shim_command() -> Result<Vec<std::ffi::OsString>> {
    let exe = std::env::current_exe().map_err(|err| Error::failed("find this executable", err))?;
    Ok(vec![exe.into(), "shim".into()])
}

/// `registries.yaml`; where there is none, no registry has a mirror.
pub fn registries(path: &Path) -> Result<Registries> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(Registries::default()),
        Err(err) => return Err(Error::failed(format!("read {}", path.display()), err)),
    };
    codec::yaml::read::typed(&text)
        .map_err(|err| Error::failed(format!("parse {}", path.display()), err))
}

/// As whom a node speaks to its server, and what it shows to those who ask it.
pub struct Identity {
    /// Reads services and their endpoints.
    pub proxy: Shared,
    /// The node itself.
    pub node: Shared,
    /// Asks clients for a certificate, and takes none for an answer.
    pub tls: rustls::ServerConfig,
    /// PEM of the authorities by which it knows clients; empty where it asks for none.
    pub client_ca_pem: Vec<u8>,
    pub client_certificate: Option<Arc<kubelet::ClientCertificate>>,
}

/// Starts the node and returns when it is Ready, or has failed to become so in time.
pub async fn start(settings: &Settings, identity: Identity, drain: &Drain) -> Result<Node> {
    let config = kubelet_config(
        settings,
        (identity.tls, identity.client_ca_pem),
        identity.client_certificate,
    )?;
    let node = identity.node;
    share(&config.root_dir)?;
    let network = Network::start(network_config(settings), &identity.proxy, &node, drain.clone())
        .await
        .map_err(|err| Error::failed("start the pod network", err))?;
    let mut tasks = Vec::new();
    let (holder, runtime, images): (_, Arc<dyn cri::RuntimeService>, Arc<dyn cri::ImageService>) =
        match &config.runtime_endpoint {
            Some(socket) => {
                let remote = foreign(socket, config.image_endpoint.as_deref(), drain).await?;
                (Holder::Foreign(remote.clone(), socket.clone()), remote.clone(), remote)
            }
            None => {
                let runtime = built_in(settings, &network).await?;
                tasks.push(offer(settings, &runtime, &network, drain)?);
                (Holder::BuiltIn(runtime.clone()), runtime.clone(), runtime)
            }
        };
    keep_only_living(&*runtime, &network).await?;
    if let Holder::BuiltIn(runtime) = &holder {
        tasks.push(import_archives(settings, runtime, drain).await);
    }

    let keeper = settings.local_storage.then(|| {
        let (name, folder) = (settings.name.clone(), settings.paths.storage());
        base::task::spawn(addons::local_path::keeper::run(
            node.clone(),
            name,
            folder,
            drain.clone(),
        ))
    });
    let seen = node.clone();
    let kubelet = kubelet::Kubelet::new(config, node, runtime, images, drain.clone())
        .map_err(|err| Error::failed("start the kubelet", err))?;
    let (ended, mut has_ended) = tokio::sync::oneshot::channel();
    let task = base::task::spawn(async move {
        let Err(err) = kubelet.run().await else { return };
        // Once the node has been ready nobody waits for this any more.
        if let Err(err) = ended.send(err) {
            tracing::error!(error = %base::error::chain(&err), "the kubelet has stopped");
        }
    });
    tokio::select! {
        Ok(err) = &mut has_ended => {
            let port = settings.port;
            return Err(Error::failed("start the kubelet", err)
                .with_fix(format!("if another kubelet holds port {port}, stop that one")));
        }
        () = wait_until_ready(settings, &seen, drain) => {}
    }
    drop(has_ended);
    tasks.extend([Some(task), keeper].into_iter().flatten());
    Ok(Node { holder, tasks })
}

async fn built_in(settings: &Settings, network: &Arc<Network>) -> Result<Arc<Runtime>> {
    let config = RuntimeConfig {
        state_dir: settings.paths.containers(),
        data_dir: settings.paths.image_store(),
        run_dir: settings.paths.run.clone(),
        shim_command: shim_command()?,
        network: Arc::new(Plug(network.clone())),
        registries: registries(&settings.registries)?,
        programs: runtime::oci::handlers::find(settings.runtime_handlers.clone()),
        cdi_dirs: runtime::oci::cdi::DIRS.map(Into::into).into(),
        shim_cgroup: SHIM_CGROUP.into(),
    };
    Runtime::open(config).await.map_err(|err| Error::failed("start the container runtime", err))
}

/// Shows the built-in runtime on its socket.
fn offer(
    settings: &Settings,
    runtime: &Arc<Runtime>,
    network: &Arc<Network>,
    drain: &Drain,
) -> Result<JoinHandle<()>> {
    let socket = settings.paths.cri_socket();
    let plug = Arc::new(Plug(network.clone()));
    runtime::offer::serve(&socket, runtime.clone(), runtime.clone(), plug, drain.clone())
        .map_err(|err| Error::failed(format!("listen on {}", socket.display()), err))
}

/// Storage drivers run in containers: what they mount for other pods must reach the node,
/// also on a host whose mounts are private.
fn share(root: &Path) -> Result<()> {
    let shared = std::fs::create_dir_all(root)
        .and_then(|()| std::fs::canonicalize(root))
        .and_then(|root| sys::mount::sharing::share(&root));
    match shared {
        Ok(true) => {}
        Ok(false) => warn!(
            directory = %root.display(),
            "volumes of before are in the way: storage drivers in containers do not work until \
             the host was started anew"
        ),
        Err(err) => {
            return Err(Error::failed(format!("share the mounts below {}", root.display()), err));
        }
    }
    Ok(())
}

async fn foreign(socket: &Path, images: Option<&Path>, drain: &Drain) -> Result<Arc<Remote>> {
    let remote = Remote::connect(socket, images, drain.clone()).await.map_err(|err| {
        Error::failed("reach the container runtime", err)
            .with_fix("start it, or leave out --container-runtime-endpoint for the built-in one")
    })?;
    let (name, version) = cri::RuntimeService::version(&*remote);
    info!(
        name,
        version,
        socket = %socket.display(),
        "the container runtime answers; pods get the network of its CNI configuration"
    );
    Ok(remote)
}

fn kubelet_config(
    settings: &Settings,
    (tls, client_ca_pem): (rustls::ServerConfig, Vec<u8>),
    client_certificate: Option<Arc<kubelet::ClientCertificate>>,
) -> Result<kubelet::KubeletConfig> {
    let addresses = vec![settings.ip.into()];
    let mut config = kubelet::KubeletConfig::new(&settings.name, addresses, Arc::new(tls));
    config.node_external_ips = settings.external_ip.into_iter().map(Into::into).collect();
    config.root_dir = settings.paths.agent();
    config.static_pod_dir = Some(settings.paths.static_pods());
    config.cluster_dns = settings.dns_address.into_iter().map(Into::into).collect();
    config.cluster_domain = settings.cluster_domain.clone();
    config.resolv_conf = settings.resolv_conf.clone();
    config.listen = SocketAddr::from((settings.bind_address, settings.port));
    config.node_labels = settings.labels.clone();
    config.register_taints = settings.taints.clone();
    config.client_certificate = client_certificate;
    config.client_ca_pem = client_ca_pem;
    settings.kubelet.clone().apply(&mut config).map_err(Error::Usage)?;
    Ok(config)
}

/// Addresses of sandboxes that are gone are free again.
async fn keep_only_living(runtime: &dyn cri::RuntimeService, network: &Network) -> Result<()> {
    let sandboxes = runtime
        .list_pod_sandboxes()
        .await
        .map_err(|err| Error::failed("list the pods of before", err))?;
    let living: Vec<String> = sandboxes.into_iter().map(|sandbox| sandbox.id).collect();
    network.reconcile(&living).await.map_err(|err| Error::failed("clean up the pod network", err))
}

/// Imports what is there, and from then on what comes.
async fn import_archives(settings: &Settings, runtime: &Runtime, drain: &Drain) -> JoinHandle<()> {
    let mut inbox = Inbox::new(runtime.images().clone(), settings.paths.images());
    match inbox.look().await {
        Ok(outcomes) => {
            let good = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count();
            if good > 0 {
                info!(archives = good, "images imported");
            }
        }
        Err(err) => warn!(error = %base::error::chain(&err), "images not imported"),
    }
    base::task::spawn(inbox.follow(drain.clone()))
}

async fn wait_until_ready(settings: &Settings, shared: &Shared, drain: &Drain) {
    let name = settings.name.clone();
    let own = ListParams::fields(format!("metadata.name={name}"));
    let nodes: Cache<NodeObject> = shared.cache_where(None, own);
    let (told, mut ready) = tokio::sync::watch::channel(false);
    nodes.on_change(move |_, new| {
        if let Some(node) = new.filter(|node| node.metadata.name.as_ref() == Some(&name)) {
            told.send_replace(is_ready(node));
        }
    });
    let waited = drain.until(tokio::time::timeout(READY_TIMEOUT, ready.wait_for(|ready| *ready)));
    match waited.await {
        None => {}
        Some(Ok(Ok(_))) => info!(node = %settings.name, "node is Ready"),
        Some(_) => warn!(
            node = %settings.name,
            seconds = READY_TIMEOUT.as_secs(),
            "node is not Ready yet; `kubectl describe node` tells why"
        ),
    }
}

fn is_ready(node: &NodeObject) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}
