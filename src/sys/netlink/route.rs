//! Links, addresses and routes of the thread's network namespace.
//!
//! Verbs that bring something about may be repeated: what is there already is no error.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Error, Message, Result, Socket, as_text, as_u32, attribute, attributes};

/// Longest name of a link, in bytes.
pub const LINK_NAME_BYTES_MAX: usize = 15;

const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_HAIRPIN: u16 = 4;

pub type Mac = [u8; 6];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub mac: Option<Mac>,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// What made it: "bridge", "veth", "dummy"; None for hardware.
    pub kind: Option<String>,
    pub is_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    pub address: Ipv4Addr,
    pub length: u8,
}

impl Prefix {
    pub const ANY: Self = Self { address: Ipv4Addr::UNSPECIFIED, length: 0 };

    pub fn host(address: Ipv4Addr) -> Self {
        Self { address, length: 32 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub to: Prefix,
    pub via: Option<Ipv4Addr>,
    pub link: u32,
    /// The address that connections along this route come from.
    pub source: Option<Ipv4Addr>,
    pub metric: u32,
}

/// How a pair of veths is made: one end here, the other in a namespace of its own.
pub struct Veth<'a> {
    pub name: &'a str,
    pub bridge: u32,
    pub mtu: u32,
    pub peer_name: &'a str,
    pub peer_mac: Mac,
    pub peer_namespace: BorrowedFd<'a>,
}

/// A handle on rtnetlink.
pub struct Router(Socket);

fn link_body(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&change.to_ne_bytes());
    body
}

const UP: u32 = libc::IFF_UP as u32;
const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

fn tolerate_existing(result: Result<()>) -> Result<()> {
    match result {
        Err(err) if err.is_existing() => Ok(()),
        other => other,
    }
}

impl Router {
    pub fn open() -> Result<Self> {
        Socket::open(libc::NETLINK_ROUTE).map(Self)
    }

    pub fn links(&mut self) -> Result<Vec<Link>> {
        let message = Message::new(libc::RTM_GETLINK, 0, "list links", &link_body(0, 0, 0));
        self.0.dump(&message, parse_link)
    }

    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let what = format!("look up link {name}");
        let mut message = Message::new(libc::RTM_GETLINK, 0, what, &link_body(0, 0, 0));
        message.attr_str(libc::IFLA_IFNAME, name);
        match self.0.request(message) {
            Ok(answers) => Ok(answers.first().and_then(|payload| parse_link(payload))),
            Err(err) if err.is_missing() => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// The link of that name, which must exist.
    pub fn require(&mut self, name: &str) -> Result<Link> {
        let found = self.link(name)?;
        found.ok_or_else(|| {
            Error::new(
                format!("look up link {name}"),
                std::io::Error::from_raw_os_error(libc::ENODEV),
            )
        })
    }

    /// Makes a bridge that is up.
    pub fn add_bridge(&mut self, name: &str, mac: Mac, mtu: u32) -> Result<()> {
        let mut message = Message::new(
            libc::RTM_NEWLINK,
            CREATE,
            format!("create bridge {name}"),
            &link_body(0, UP, UP),
        );
        message.attr_str(libc::IFLA_IFNAME, name);
        message.attr(libc::IFLA_ADDRESS, &mac);
        message.attr_u32(libc::IFLA_MTU, mtu);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.attr_str(libc::IFLA_INFO_KIND, "bridge");
        });
        tolerate_existing(self.0.execute(message))
    }

    /// Makes a dummy link that is up.
    pub fn add_dummy(&mut self, name: &str) -> Result<()> {
        let what = format!("create dummy link {name}");
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE, what, &link_body(0, UP, UP));
        message.attr_str(libc::IFLA_IFNAME, name);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.attr_str(libc::IFLA_INFO_KIND, "dummy");
        });
        tolerate_existing(self.0.execute(message))
    }

    /// Makes both ends in one request; the near end is up and a port of the bridge. An
    /// existing name is an error: what it leads to is unknown.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> Result<()> {
        let mut message = Message::new(
            libc::RTM_NEWLINK,
            CREATE,
            format!("create veth {}", veth.name),
            &link_body(0, UP, UP),
        );
        message.attr_str(libc::IFLA_IFNAME, veth.name);
        message.attr_u32(libc::IFLA_MTU, veth.mtu);
        message.attr_u32(libc::IFLA_MASTER, veth.bridge);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.attr_str(libc::IFLA_INFO_KIND, "veth");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    // An end cannot be up before it knows its other end.
                    peer.raw(&link_body(0, 0, 0));
                    peer.attr_str(libc::IFLA_IFNAME, veth.peer_name);
                    peer.attr_u32(libc::IFLA_MTU, veth.mtu);
                    peer.attr(libc::IFLA_ADDRESS, &veth.peer_mac);
                    let namespace = veth.peer_namespace.as_raw_fd() as u32;
                    peer.attr_u32(libc::IFLA_NET_NS_FD, namespace);
                });
            });
        });
        self.0.execute(message)
    }

    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let what = format!("delete link {index}");
        let message = Message::new(libc::RTM_DELLINK, 0, what, &link_body(index, 0, 0));
        super::ignore_missing(self.0.execute(message))
    }

    /// Safe to repeat.
    pub fn delete_link_named(&mut self, name: &str) -> Result<()> {
        match self.link(name)? {
            Some(link) => self.delete_link(link.index),
            None => Ok(()),
        }
    }

    pub fn set_up(&mut self, index: u32, up: bool) -> Result<()> {
        let flags = if up { UP } else { 0 };
        let what = format!("set link {index} {}", if up { "up" } else { "down" });
        self.0.execute(Message::new(libc::RTM_NEWLINK, 0, what, &link_body(index, flags, UP)))
    }

    fn set(&mut self, index: u32, what: &str, kind: u16, value: &[u8]) -> Result<()> {
        let what = format!("set {what} of link {index}");
        let mut message = Message::new(libc::RTM_NEWLINK, 0, what, &link_body(index, 0, 0));
        message.attr(kind, value);
        self.0.execute(message)
    }

    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        self.set(index, "the MTU", libc::IFLA_MTU, &mtu.to_ne_bytes())
    }

    pub fn set_mac(&mut self, index: u32, mac: Mac) -> Result<()> {
        self.set(index, "the address", libc::IFLA_ADDRESS, &mac)
    }

    /// Makes a link a port of a bridge.
    pub fn set_master(&mut self, index: u32, master: u32) -> Result<()> {
        self.set(index, "the bridge", libc::IFLA_MASTER, &master.to_ne_bytes())
    }

    /// Lets a bridge port send a frame back where it came from.
    pub fn set_hairpin(&mut self, index: u32, on: bool) -> Result<()> {
        let mut body = link_body(index, 0, 0);
        body[0] = libc::AF_BRIDGE as u8;
        let what = format!("set hairpin of link {index}");
        let mut message = Message::new(libc::RTM_SETLINK, 0, what, &body);
        message.nest(libc::IFLA_PROTINFO, |info| {
            info.attr(IFLA_BRPORT_HAIRPIN, &[u8::from(on)]);
        });
        self.0.execute(message)
    }

    pub fn addresses(&mut self, link: u32) -> Result<Vec<Prefix>> {
        let body = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0];
        let message = Message::new(libc::RTM_GETADDR, 0, "list addresses", &body);
        self.0.dump(&message, |payload| {
            let index = as_u32(payload.get(4..8)?)?;
            let local = attribute(payload.get(8..)?, libc::IFA_LOCAL)?;
            (index == link).then_some(Prefix { address: ipv4(local)?, length: *payload.get(1)? })
        })
    }

    pub fn add_address(&mut self, link: u32, prefix: Prefix) -> Result<()> {
        let what = format!("add address {}/{} to link {link}", prefix.address, prefix.length);
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let message = address_message(libc::RTM_NEWADDR, flags, what, link, prefix);
        tolerate_existing(self.0.execute(message))
    }

    /// Safe to repeat.
    pub fn delete_address(&mut self, link: u32, prefix: Prefix) -> Result<()> {
        let what = format!("delete address {}/{} of link {link}", prefix.address, prefix.length);
        let message = address_message(libc::RTM_DELADDR, 0, what, link, prefix);
        super::ignore_missing(self.0.execute(message))
    }

    /// Routes of the main table.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let mut body = [0; 12];
        body[0] = libc::AF_INET as u8;
        let message = Message::new(libc::RTM_GETROUTE, 0, "list routes", &body);
        self.0.dump(&message, parse_route)
    }

    /// Adds a route, or replaces the one to the same prefix with the same metric.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        let what = format!("add route to {}/{}", route.to.address, route.to.length);
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        self.0.execute(route_message(libc::RTM_NEWROUTE, flags, what, route))
    }

    /// Safe to repeat.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        let what = format!("delete route to {}/{}", route.to.address, route.to.length);
        super::ignore_missing(self.0.execute(route_message(libc::RTM_DELROUTE, 0, what, route)))
    }
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(0..4)?).ok()?))
}

fn address_message(kind: u16, flags: i32, what: String, link: u32, prefix: Prefix) -> Message {
    let mut body = [libc::AF_INET as u8, prefix.length, 0, 0, 0, 0, 0, 0];
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    let mut message = Message::new(kind, flags, what, &body);
    message.attr(libc::IFA_LOCAL, &prefix.address.octets());
    message.attr(libc::IFA_ADDRESS, &prefix.address.octets());
    message
}

fn route_message(kind: u16, flags: i32, what: String, route: &Route) -> Message {
    let scope = if route.via.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
    let mut body = [0; 12];
    body[0] = libc::AF_INET as u8;
    body[1] = route.to.length;
    body[4] = libc::RT_TABLE_MAIN;
    body[5] = libc::RTPROT_BOOT;
    body[6] = scope;
    body[7] = libc::RTN_UNICAST;
    let mut message = Message::new(kind, flags, what, &body);
    if route.to.length > 0 {
        message.attr(libc::RTA_DST, &route.to.address.octets());
    }
    if let Some(via) = route.via {
        message.attr(libc::RTA_GATEWAY, &via.octets());
    }
    if let Some(source) = route.source {
        message.attr(libc::RTA_PREFSRC, &source.octets());
    }
    message.attr_u32(libc::RTA_OIF, route.link);
    if route.metric != 0 {
        message.attr_u32(libc::RTA_PRIORITY, route.metric);
    }
    message
}

fn parse_route(payload: &[u8]) -> Option<Route> {
    let length = *payload.get(1)?;
    if *payload.get(4)? != libc::RT_TABLE_MAIN || *payload.get(7)? != libc::RTN_UNICAST {
        return None;
    }
    let mut route = Route { to: Prefix::ANY, via: None, link: 0, source: None, metric: 0 };
    route.to.length = length;
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::RTA_DST => route.to.address = ipv4(value)?,
            libc::RTA_GATEWAY => route.via = ipv4(value),
            libc::RTA_PREFSRC => route.source = ipv4(value),
            libc::RTA_OIF => route.link = as_u32(value)?,
            libc::RTA_PRIORITY => route.metric = as_u32(value)?,
            _ => {}
        }
    }
    Some(route)
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let flags = as_u32(payload.get(8..12)?)?;
    let mut link = Link {
        index: as_u32(payload.get(4..8)?)?,
        name: String::new(),
        mtu: 0,
        mac: None,
        master: None,
        kind: None,
        is_up: flags & UP != 0,
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = as_text(value),
            libc::IFLA_MTU => link.mtu = as_u32(value)?,
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok(),
            libc::IFLA_MASTER => link.master = as_u32(value),
            libc::IFLA_LINKINFO => {
                link.kind = attribute(value, libc::IFLA_INFO_KIND).map(as_text);
            }
            _ => {}
        }
    }
    Some(link)
}
