//! The expressions of a rule, from left to right: each reads or writes registers, or ends
//! the rule when it does not match.

use super::Family;
use crate::netlink::Message;

/// One of sixteen registers of four bytes; longer values take the following ones too.
pub type Register = u32;

const FIRST_REGISTER: u32 = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    pub(crate) fn write(&self, data: &mut Message) {
        let (code, chain) = match self {
            Self::Accept => (libc::NF_ACCEPT, None),
            Self::Drop => (libc::NF_DROP, None),
            Self::Return => (-5, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
        };
        data.nest(2, |verdict| {
            verdict.attr_be32(1, code as u32);
            if let Some(chain) = chain {
                verdict.attr_str(2, chain);
            }
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    Mark = 3,
    InName = 6,
    OutName = 7,
    Protocol = 16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    Network,
    Transport,
}

/// Bits of `ct status`.
pub const STATUS_DNAT: u32 = 1 << 5;
/// `fib` gives this for an address of the host itself.
pub const TYPE_LOCAL: u32 = 2;

#[derive(Debug, Clone)]
pub enum Expr<'a> {
    Meta(Meta, Register),
    Payload {
        header: Header,
        offset: u32,
        bytes: u32,
        to: Register,
    },
    Equal(Register, &'a [u8]),
    Different(Register, &'a [u8]),
    /// Keeps the bits of the mask, then flips those of the second.
    Mask(Register, &'a [u8], &'a [u8]),
    SetMark(Register),
    /// Ends the rule unless the key is in the set.
    Lookup {
        set: &'a str,
        key: Register,
    },
    LookupValue {
        map: &'a str,
        key: Register,
        to: Register,
    },
    LookupVerdict {
        map: &'a str,
        key: Register,
    },
    Immediate(&'a [u8], Register),
    Verdict(Verdict),
    /// A random number below the given one.
    Random(u32, Register),
    /// `ct status`.
    TrackedStatus(Register),
    /// Where a tracked packet's first one was sent, before any translation: IPv4 address.
    OriginalTarget(Register),
    /// Likewise, the port.
    OriginalPort(Register),
    /// The kind of the destination address.
    DestinationType(Register),
    /// Adds an element, or renews the lifetime of the one that is there.
    Update {
        map: &'a str,
        key: Register,
        value: Register,
        timeout_ms: u64,
    },
    /// New destination: address and port from registers.
    Redirect {
        address: Register,
        port: Register,
    },
    /// Source becomes the outgoing link's address, with a random port.
    Masquerade,
    /// Port unreachable.
    Reject,
    Counter,
}

fn register(message: &mut Message, kind: u16, register: Register) {
    message.attr_be32(kind, FIRST_REGISTER + register);
}

fn data(message: &mut Message, kind: u16, bytes: &[u8]) {
    message.nest(kind, |data| {
        data.attr(1, bytes);
    });
}

impl Expr<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Meta(..) | Self::SetMark(_) => "meta",
            Self::Payload { .. } => "payload",
            Self::Equal(..) | Self::Different(..) => "cmp",
            Self::Mask(..) => "bitwise",
            Self::Lookup { .. } | Self::LookupValue { .. } | Self::LookupVerdict { .. } => "lookup",
            Self::Immediate(..) | Self::Verdict(_) => "immediate",
            Self::Random(..) => "numgen",
            Self::TrackedStatus(_) | Self::OriginalTarget(_) | Self::OriginalPort(_) => "ct",
            Self::DestinationType(_) => "fib",
            Self::Update { .. } => "dynset",
            Self::Redirect { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reject => "reject",
            Self::Counter => "counter",
        }
    }

    pub(super) fn write(&self, list: &mut Message, family: Family) {
        list.nest(1, |expression| {
            expression.attr_str(1, self.name());
            expression.nest(2, |message| self.write_data(message, family));
        });
    }

    fn write_data(&self, m: &mut Message, family: Family) {
        match self {
            Self::Meta(key, to) => {
                register(m, 1, *to);
                m.attr_be32(2, *key as u32);
            }
            Self::Payload { header, offset, bytes, to } => {
                register(m, 1, *to);
                m.attr_be32(2, if *header == Header::Network { 1 } else { 2 });
                m.attr_be32(3, *offset).attr_be32(4, *bytes);
            }
            Self::Equal(from, bytes) => {
                register(m, 1, *from);
                m.attr_be32(2, 0);
                data(m, 3, bytes);
            }
            Self::Different(from, bytes) => {
                register(m, 1, *from);
                m.attr_be32(2, 1);
                data(m, 3, bytes);
            }
            Self::SetMark(from) => {
                m.attr_be32(2, Meta::Mark as u32);
                register(m, 3, *from);
            }
            Self::Mask(at, mask, flip) => {
                register(m, 1, *at);
                register(m, 2, *at);
                m.attr_be32(3, mask.len() as u32);
                data(m, 4, mask);
                data(m, 5, flip);
            }
            Self::Lookup { set, key } => {
                m.attr_str(1, set);
                register(m, 2, *key);
            }
            Self::LookupValue { map, key, to } => {
                m.attr_str(1, map);
                register(m, 2, *key);
                register(m, 3, *to);
            }
            Self::LookupVerdict { map, key } => {
                m.attr_str(1, map);
                register(m, 2, *key);
                m.attr_be32(3, 0);
            }
            Self::Immediate(bytes, to) => {
                register(m, 1, *to);
                data(m, 2, bytes);
            }
            Self::Verdict(verdict) => {
                m.attr_be32(1, 0);
                m.nest(2, |data| verdict.write(data));
            }
            Self::Random(below, to) => {
                register(m, 1, *to);
                m.attr_be32(2, *below).attr_be32(3, 1).attr_be32(4, 0);
            }
            Self::TrackedStatus(to) => {
                register(m, 1, *to);
                m.attr_be32(2, 2);
            }
            Self::OriginalTarget(to) => {
                register(m, 1, *to);
                m.attr_be32(2, 20).attr(3, &[0]);
            }
            Self::OriginalPort(to) => {
                register(m, 1, *to);
                m.attr_be32(2, 12).attr(3, &[0]);
            }
            Self::DestinationType(to) => {
                register(m, 1, *to);
                m.attr_be32(2, 3).attr_be32(3, 2);
            }
            Self::Update { map, key, value, timeout_ms } => {
                m.attr_str(1, map).attr_be32(3, 1);
                register(m, 4, *key);
                register(m, 5, *value);
                m.attr_be64(6, *timeout_ms);
            }
            Self::Redirect { address, port } => {
                m.attr_be32(1, 1).attr_be32(2, u32::from(family.number()));
                register(m, 3, *address);
                register(m, 5, *port);
            }
            Self::Masquerade => {
                // NF_NAT_RANGE_PROTO_RANDOM_FULLY
                m.attr_be32(1, 1 << 4);
            }
            Self::Reject => {
                m.attr_be32(1, 0).attr(2, &[3]);
            }
            Self::Counter => {}
        }
    }
}
