//! Plugs pods into the node: a bridge with the node's address in the pod range, and for
//! each pod a pair of veths, an address and a default route.
//!
//! A pod has its address as a /32, and everything it sends goes through the node's routing.
//! So an answer from a pod on the same node passes the connection tracker as well and is
//! translated back, without the bridge having to call the packet filter. Speaks to the
//! kernel only; works before there is an API server.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;

use parking_lot::Mutex;
use sys::namespace;
use sys::netlink::route::{LINK_NAME_BYTES_MAX, Mac, Prefix, Route, Router, Veth};

use crate::ipam::{self, Ipam};
use crate::sysctl::{self, Sysctls};

const POD_LINK: &str = "eth0";
const VETH_PREFIX: &str = "cor";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Netlink(#[from] sys::netlink::Error),
    #[error(transparent)]
    Ipam(#[from] ipam::Error),
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    #[error("network namespace {netns}")]
    Namespace {
        netns: String,
        #[source]
        source: io::Error,
    },
    #[error("bridge name {0:?} is empty or longer than {LINK_NAME_BYTES_MAX} bytes")]
    BridgeName(String),
    #[error("link {0} exists and is not a bridge")]
    NotABridge(String),
    #[error("pod range {0}/{1} is too small or not a range")]
    Range(Ipv4Addr, u8),
}

type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone)]
pub struct BridgeConfig {
    pub name: String,
    pub pod_range: Prefix,
    pub service_range: Prefix,
    /// Further addresses of this node that pods and the node itself reach: the DNS service.
    pub own_addresses: Vec<Ipv4Addr>,
    /// Default: that of the link with the default route, otherwise 1500.
    pub mtu: Option<u32>,
}

/// The node's side of the pod network.
#[derive(Debug)]
pub struct Cni {
    config: BridgeConfig,
    bridge: u32,
    mtu: u32,
    ipam: Mutex<Ipam>,
}

fn bridge_mac(gateway: Ipv4Addr) -> Mac {
    let [a, b, c, d] = gateway.octets();
    [0x0a, 0x57, a, b, c, d]
}

fn pod_mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

fn veth_name(address: Ipv4Addr) -> String {
    format!("{VETH_PREFIX}{:08x}", u32::from(address))
}

/// The MTU of the link with the best default route.
pub fn default_mtu(router: &mut Router) -> Result<u32> {
    let mut routes = router.routes()?;
    routes.retain(|route| route.to.length == 0);
    routes.sort_by_key(|route| route.metric);
    let Some(route) = routes.first() else { return Ok(1500) };
    let link = router.links()?.into_iter().find(|link| link.index == route.link);
    Ok(link.map_or(1500, |link| link.mtu))
}

impl Cni {
    /// Brings the bridge into shape, whatever there is of it, and reads the addresses in use.
    pub fn start(config: BridgeConfig, state: &Path, sysctls: &Sysctls) -> Result<Self> {
        if config.name.is_empty() || config.name.len() > LINK_NAME_BYTES_MAX {
            return Err(Error::BridgeName(config.name));
        }
        let range = config.pod_range;
        if !(8..=29).contains(&range.length) {
            return Err(Error::Range(range.address, range.length));
        }
        let ipam = Ipam::open(&state.join("addresses"), range)?;
        let mut router = Router::open()?;
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => default_mtu(&mut router)?,
        };
        sysctls.set("ipv4/ip_forward", "1")?;
        // The kernel sends redirects if either this or the link's own switch is on. Between
        // pods the node is in the way on purpose.
        sysctls.set("ipv4/conf/all/send_redirects", "0")?;
        let gateway = ipam::gateway(range);
        router.add_bridge(&config.name, bridge_mac(gateway), mtu)?;
        let link = router.require(&config.name)?;
        if link.kind.as_deref() != Some("bridge") {
            return Err(Error::NotABridge(config.name));
        }
        if link.mtu != mtu {
            router.set_mtu(link.index, mtu)?;
        }
        if link.mac != Some(bridge_mac(gateway)) {
            router.set_mac(link.index, bridge_mac(gateway))?;
        }
        router.set_up(link.index, true)?;
        for (name, value) in [
            // Connections from 127.0.0.1 to a node port leave through the bridge.
            ("route_localnet", "1"),
            ("send_redirects", "0"),
            // Pods have /32 addresses, so their answers are never asymmetric.
            ("forwarding", "1"),
        ] {
            Sysctls::set_own(&format!("ipv4/conf/{}/{name}", config.name), value)?;
        }
        let mut wanted = vec![Prefix { address: gateway, length: range.length }];
        wanted.extend(config.own_addresses.iter().map(|address| Prefix::host(*address)));
        for address in router.addresses(link.index)? {
            if !wanted.contains(&address) {
                router.delete_address(link.index, address)?;
            }
        }
        for address in wanted {
            router.add_address(link.index, address)?;
        }
        // Service addresses need a route to be dialled at all where there is no default
        // route; connections from the node then come from the bridge's address, which every
        // pod can answer.
        router.add_route(&Route {
            to: config.service_range,
            via: None,
            link: link.index,
            source: Some(gateway),
            metric: 0,
        })?;
        Ok(Self { config, bridge: link.index, mtu, ipam: Mutex::new(ipam) })
    }

    pub fn gateway(&self) -> Ipv4Addr {
        ipam::gateway(self.config.pod_range)
    }

    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Gives the sandbox its interface and address. Safe to repeat.
    pub fn attach(&self, sandbox: &str, netns: &Path) -> Result<Ipv4Addr> {
        let address = self.ipam.lock().allocate(sandbox)?;
        base::failpoint!("network/address");
        let fail = |source| Error::Namespace { netns: netns.display().to_string(), source };
        let name = veth_name(address);
        let mut router = Router::open()?;
        if let Some(link) = router.link(&name)? {
            let plugged =
                link.master == Some(self.bridge) && self.configure(netns, address).map_err(fail)?;
            if plugged {
                router.set_hairpin(link.index, true)?;
                return Ok(address);
            }
            router.delete_link(link.index)?;
        }
        let namespace = namespace::open(netns).map_err(fail)?;
        router.add_veth(&Veth {
            name: &name,
            bridge: self.bridge,
            mtu: self.mtu,
            peer_name: POD_LINK,
            peer_mac: pod_mac(address),
            peer_namespace: namespace.as_fd(),
        })?;
        base::failpoint!("network/link");
        // Where br_netfilter is loaded (Docker does so), a bridge that has seen a destination
        // rewritten hands the frame straight to the right port instead of the node's routing.
        // A pod that is balanced to itself would then be cut off.
        let link = router.require(&name)?;
        router.set_hairpin(link.index, true)?;
        match self.configure(netns, address) {
            Ok(true) => Ok(address),
            Ok(false) => Err(fail(io::Error::other("eth0 vanished while it was configured"))),
            Err(err) => Err(fail(err)),
        }
    }

    /// Addresses and routes inside the pod. False if there is no fitting eth0.
    fn configure(&self, netns: &Path, address: Ipv4Addr) -> io::Result<bool> {
        let gateway = self.gateway();
        namespace::within(netns, namespace::kind::NETWORK, || {
            let mut router = Router::open()?;
            let Some(link) = router.link(POD_LINK)? else { return Ok(false) };
            if link.mac != Some(pod_mac(address)) {
                return Ok(false);
            }
            sys::socket::loopback_up()?;
            router.set_up(link.index, true)?;
            base::failpoint!("network/link-up");
            router.add_address(link.index, Prefix::host(address))?;
            let direct = Route {
                to: Prefix::host(gateway),
                via: None,
                link: link.index,
                source: None,
                metric: 0,
            };
            router.add_route(&direct)?;
            router.add_route(&Route { to: Prefix::ANY, via: Some(gateway), ..direct })?;
            Ok(true)
        })
    }

    /// Takes interface and address away. Safe to repeat; the namespace may be gone.
    pub fn detach(&self, sandbox: &str) -> Result<()> {
        let mut ipam = self.ipam.lock();
        let Some(address) = ipam.address_of(sandbox) else { return Ok(()) };
        Router::open()?.delete_link_named(&veth_name(address))?;
        base::failpoint!("network/link-gone");
        Ok(ipam.release(sandbox)?)
    }

    /// Gives back what belongs to no living sandbox: addresses, and veths on the bridge.
    pub fn reconcile(&self, live: &[&str]) -> Result<()> {
        let held = self.ipam.lock().sandboxes();
        for (sandbox, _) in &held {
            if !live.contains(&sandbox.as_str()) {
                self.detach(sandbox)?;
            }
        }
        let ipam = self.ipam.lock();
        let known: Vec<String> =
            ipam.sandboxes().iter().map(|(_, address)| veth_name(*address)).collect();
        let mut router = Router::open()?;
        for link in router.links()? {
            if link.master == Some(self.bridge)
                && is_ours(&link.name)
                && !known.contains(&link.name)
            {
                router.delete_link(link.index)?;
            }
        }
        Ok(())
    }

    /// None when pods can be attached, otherwise why not.
    pub fn status(&self) -> Option<String> {
        match Router::open().and_then(|mut router| router.link(&self.config.name)) {
            Ok(Some(link)) if link.index == self.bridge && link.is_up => None,
            Ok(Some(_)) => Some(format!("bridge {} is down or not ours", self.config.name)),
            Ok(None) => Some(format!("bridge {} is gone", self.config.name)),
            Err(err) => Some(base::error::chain(&err).to_string()),
        }
    }

    /// Sandboxes that have an address.
    pub fn sandboxes(&self) -> Vec<(String, Ipv4Addr)> {
        self.ipam.lock().sandboxes()
    }
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(VETH_PREFIX)
        .is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Removes the bridge, the veths on it and the remembered addresses. Safe to repeat.
pub fn reset(bridge: &str, state: &Path) -> Result<()> {
    let mut router = Router::open()?;
    if let Some(link) = router.link(bridge)?
        && link.kind.as_deref() == Some("bridge")
    {
        for port in router.links()? {
            if port.master == Some(link.index) && is_ours(&port.name) {
                router.delete_link(port.index)?;
            }
        }
        router.delete_link(link.index)?;
    }
    let directory = state.join("addresses");
    match std::fs::remove_dir_all(&directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ipam::Error::Read { directory, source }.into())
        }
        _ => Ok(()),
    }
}
