//! The network room: pods get addresses, services get rules, names get answers.
//!
//! Pods can be plugged in before there is an API server; rules and names follow as soon as
//! it answers. Network policies, overlays and load balancers are not here yet.

pub mod cni;
pub mod dns;
pub mod forward;
pub mod ipam;
pub mod proxy;
pub mod sysctl;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::drain::Drain;
use client::Cache;
use client::api::ListParams;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
pub use sys::netlink::route::Prefix;

use cni::{BridgeConfig, Cni};
use dns::answers::Zone;
use dns::forward::Forwarder;
pub use proxy::Forward;
use proxy::{Forwards, ProxyConfig, Sources, TableConfig};
use sysctl::Sysctls;

#[derive(Debug, Clone)]
pub struct NetworkConfig {
    pub node_name: String,
    /// The bridge that pods hang on, normally `coracle0`.
    pub bridge: String,
    /// The nf_tables table, normally `coracle`.
    pub table: String,
    /// Of this node's pods, of all pods, of all services.
    pub pod_cidr: Prefix,
    pub cluster_cidr: Prefix,
    pub service_cidr: Prefix,
    /// The address of the cluster's DNS; None switches DNS off.
    pub dns_address: Option<Ipv4Addr>,
    pub cluster_domain: String,
    /// The host's resolvers.
    pub resolv_conf: PathBuf,
    pub state_dir: PathBuf,
    /// Default: that of the link with the default route, otherwise 1500.
    pub mtu: Option<u32>,
    /// False where another service proxy runs.
    pub proxy: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("pod network")]
    Cni(#[from] cni::Error),
    #[error("cluster DNS")]
    Dns(#[from] dns::ListenError),
    #[error("service rules")]
    Rules(#[from] sys::netlink::Error),
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    #[error("network state in {}", .directory.display())]
    State {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("a network task ended early")]
    Task(#[from] tokio::task::JoinError),
}

/// Reads `10.42.0.0/16`.
pub fn parse_cidr(text: &str) -> Option<Prefix> {
    let (address, length) = text.split_once('/')?;
    let length = length.parse().ok().filter(|length| *length <= 32)?;
    Some(Prefix { address: address.parse().ok()?, length })
}

/// The first range of a node: the first /24 of the cluster's.
pub fn first_node_range(cluster: Prefix) -> Prefix {
    Prefix { address: cluster.address, length: cluster.length.max(24) }
}

/// This node's network.
pub struct Network {
    cni: Arc<Cni>,
    forwards: Forwards,
}

/// IP protocol numbers.
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;

fn sysctls(state: &Path) -> Sysctls {
    Sysctls::new(state.join("sysctls.json"))
}

impl Network {
    /// Brings the bridge up, then starts proxy and DNS, which wait for the API server by
    /// themselves. Needs no default route. `shared` reads services and endpoint slices;
    /// `node` reads this node and the pods that are bound to it.
    pub async fn start(
        config: NetworkConfig,
        shared: &client::Shared,
        node: &client::Shared,
        drain: Drain,
    ) -> Result<Arc<Self>, Error> {
        let pods = proxy::host_ports::pods_of(&config.node_name);
        let this = ListParams::fields(format!("metadata.name={}", config.node_name));
        // Not every node may read these, and without a proxy and DNS none needs to.
        let serves = config.proxy || config.dns_address.is_some();
        let sources = Sources {
            services: if serves { shared.cache::<Service>() } else { Cache::new() },
            slices: if serves { shared.cache::<EndpointSlice>() } else { Cache::new() },
            pods: node.cache_where::<Pod>(None, pods),
            nodes: node.cache_where::<Node>(None, this),
            forwards: Forwards::default(),
        };
        Self::start_with(config, sources, drain).await
    }

    /// As `start`, with caches that somebody else feeds.
    pub async fn start_with(
        config: NetworkConfig,
        sources: Sources,
        drain: Drain,
    ) -> Result<Arc<Self>, Error> {
        let bridge = BridgeConfig {
            name: config.bridge.clone(),
            pod_range: config.pod_cidr,
            service_range: config.service_cidr,
            own_addresses: config.dns_address.into_iter().collect(),
            mtu: config.mtu,
        };
        let state = config.state_dir.clone();
        let link = config.bridge.clone();
        let started = base::task::spawn_blocking(move || {
            std::fs::create_dir_all(&state)
                .map_err(|source| Error::State { directory: state.clone(), source })?;
            let cni = Cni::start(bridge, &state, &sysctls(&state))?;
            forward::warn_if_blocked(&link);
            Ok::<_, Error>(cni)
        });
        let cni = Arc::new(started.await??);
        let forwards = sources.forwards.clone();
        if let Some(address) = config.dns_address {
            let ranges = vec![config.cluster_cidr, config.service_cidr];
            let zone = Zone::new(
                &config.cluster_domain,
                ranges,
                Some(address),
                sources.services.clone(),
                sources.slices.clone(),
            );
            let own = vec![SocketAddr::new(address.into(), dns::PORT)];
            let forwarder = Forwarder::new(config.resolv_conf.clone(), own);
            let resolver = Arc::new(dns::Resolver::new(zone, forwarder));
            dns::start(&[IpAddr::V4(address)], resolver, drain.clone()).await?;
        }
        if config.proxy {
            let proxy = ProxyConfig {
                table: TableConfig {
                    table: config.table,
                    bridge: config.bridge,
                    pod_range: config.pod_cidr,
                    cluster_range: config.cluster_cidr,
                    service_range: config.service_cidr,
                    own_address: config.dns_address,
                },
                node_name: config.node_name,
            };
            base::task::spawn(proxy::run(proxy, sources, drain));
        }
        Ok(Arc::new(Self { cni, forwards }))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cni) -> Result<T, cni::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let cni = self.cni.clone();
        Ok(base::task::spawn_blocking(move || work(&cni)).await??)
    }

    /// Gives the sandbox its interface and addresses. Safe to repeat: the same sandbox gets
    /// the same addresses.
    pub async fn attach(&self, sandbox_id: &str, netns: &Path) -> Result<Vec<IpAddr>, Error> {
        let (sandbox, netns) = (sandbox_id.to_string(), netns.to_path_buf());
        let address = self.blocking(move |cni| cni.attach(&sandbox, &netns)).await?;
        Ok(vec![address.into()])
    }

    /// Leads ports of the node to the sandbox, instead of those that did until now and until
    /// it is detached. Nothing does where there is no proxy.
    pub fn forward(&self, sandbox_id: &str, addresses: &[IpAddr], forwards: Vec<Forward>) {
        let own = addresses.iter().find_map(|it| match it {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        if let Some(address) = own {
            self.forwards.set(sandbox_id, address, forwards);
        }
    }

    /// Takes them away. Safe to repeat, and works when `netns` is gone.
    pub async fn detach(&self, sandbox_id: &str, _netns: &Path) -> Result<(), Error> {
        self.forwards.forget(sandbox_id);
        let sandbox = sandbox_id.to_string();
        self.blocking(move |cni| cni.detach(&sandbox)).await
    }

    /// Gives back what belongs to no living sandbox. To be called once at start, before new
    /// sandboxes are made.
    pub async fn reconcile(&self, live: &[String]) -> Result<(), Error> {
        let live = live.to_vec();
        self.blocking(move |cni| {
            cni.reconcile(&live.iter().map(String::as_str).collect::<Vec<_>>())
        })
        .await
    }

    /// None when ready, otherwise why not.
    pub async fn status(&self) -> Option<String> {
        match self.blocking(|cni| Ok(cni.status())).await {
            Ok(status) => status,
            Err(err) => Some(base::error::chain(&err).to_string()),
        }
    }

    /// The node's address on the bridge.
    pub fn gateway(&self) -> Ipv4Addr {
        self.cni.gateway()
    }
}

/// Removes everything that this room has made on the node: rules, links, addresses, switches.
/// Safe to repeat.
pub fn reset(bridge: &str, table: &str, state_dir: &Path) -> Result<(), Error> {
    proxy::cleanup(table)?;
    cni::reset(bridge, state_dir)?;
    Ok(sysctls(state_dir).restore()?)
}
