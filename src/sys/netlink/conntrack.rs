//! Entries of the connection tracker: list those of UDP, delete one.
//!
//! IPv4 only. Which entries are stale is the proxy's matter.

use std::net::Ipv4Addr;

use super::{Message, Result, Socket, as_be16, attribute, attributes};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// nfgenmsg: family, version, resource.
const BODY: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    pub protocol: u8,
    pub source: (Ipv4Addr, u16),
    pub target: (Ipv4Addr, u16),
}

/// A tracked connection: as it came, and as its answers come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub original: Tuple,
    pub reply: Tuple,
    zone: Option<u16>,
}

/// A handle on ctnetlink.
pub struct Tracker(Socket);

impl Tracker {
    pub fn open() -> Result<Self> {
        Socket::open(libc::NETLINK_NETFILTER).map(Self)
    }

    /// The entries of UDP that `wanted` picks; others are not kept.
    pub fn udp(&mut self, wanted: impl Fn(&Entry) -> bool) -> Result<Vec<Entry>> {
        let message = Message::new(GET, 0, "list tracked connections", &BODY);
        self.0.dump(&message, |payload| {
            let entry = parse(payload.get(4..)?)?;
            (i32::from(entry.original.protocol) == libc::IPPROTO_UDP && wanted(&entry))
                .then_some(entry)
        })
    }

    /// Safe to repeat.
    pub fn delete(&mut self, entry: &Entry) -> Result<()> {
        let what = format!("forget tracked connection to {}", entry.original.target.0);
        let mut message = Message::new(DELETE, 0, what, &BODY);
        message.nest(CTA_TUPLE_ORIG, |tuple| write(tuple, &entry.original));
        if let Some(zone) = entry.zone {
            message.attr(CTA_ZONE, &zone.to_be_bytes());
        }
        super::ignore_missing(self.0.execute(message))
    }
}

fn write(message: &mut Message, tuple: &Tuple) {
    message.nest(CTA_TUPLE_IP, |ip| {
        ip.attr(CTA_IP_V4_SRC, &tuple.source.0.octets());
        ip.attr(CTA_IP_V4_DST, &tuple.target.0.octets());
    });
    message.nest(CTA_TUPLE_PROTO, |proto| {
        proto.attr(CTA_PROTO_NUM, &[tuple.protocol]);
        proto.attr(CTA_PROTO_SRC_PORT, &tuple.source.1.to_be_bytes());
        proto.attr(CTA_PROTO_DST_PORT, &tuple.target.1.to_be_bytes());
    });
}

fn parse(bytes: &[u8]) -> Option<Entry> {
    let (mut original, mut reply, mut zone) = (None, None, None);
    for (kind, value) in attributes(bytes) {
        match kind {
            CTA_TUPLE_ORIG => original = parse_tuple(value),
            CTA_TUPLE_REPLY => reply = parse_tuple(value),
            CTA_ZONE => zone = as_be16(value),
            _ => {}
        }
    }
    Some(Entry { original: original?, reply: reply?, zone })
}

fn parse_tuple(bytes: &[u8]) -> Option<Tuple> {
    let ip = attribute(bytes, CTA_TUPLE_IP)?;
    let proto = attribute(bytes, CTA_TUPLE_PROTO)?;
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(attribute(ip, kind)?).ok()?));
    let port = |kind| attribute(proto, kind).and_then(as_be16).unwrap_or(0);
    Some(Tuple {
        protocol: *attribute(proto, CTA_PROTO_NUM)?.first()?,
        source: (address(CTA_IP_V4_SRC)?, port(CTA_PROTO_SRC_PORT)),
        target: (address(CTA_IP_V4_DST)?, port(CTA_PROTO_DST_PORT)),
    })
}
