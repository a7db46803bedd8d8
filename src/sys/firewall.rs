//! Looks for packet filters of others that keep the host from forwarding.
//!
//! Reads only. Knows the chains of nf_tables (and with them today's iptables) and those of
//! the older iptables; what the rules in them let through is not worked out.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::check_int;
use crate::netlink::{Message, Result, Socket, as_text, attribute};

const SUBSYSTEM: u16 = 10 << 8;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
/// Tables for IPv4, and for both IPv4 and IPv6.
const FAMILIES: [(u8, &str); 2] = [(libc::NFPROTO_IPV4 as u8, "ip"), (1, "inet")];
const FORWARD: usize = 2;

/// A chain that drops what none of its rules lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// "ip" or "inet"; None for the older iptables.
    pub family: Option<&'static str>,
    pub table: String,
    pub chain: String,
    /// Some rule of the table names the link: somebody has thought of it.
    pub names_link: bool,
}

/// Every such chain in the way of packets that the host forwards.
pub fn forward_blockers(link: &str) -> io::Result<Vec<Blocker>> {
    let mut found = nf_tables(link)?;
    found.extend(iptables(link)?);
    Ok(found)
}

fn nf_tables(link: &str) -> Result<Vec<Blocker>> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let mut found = Vec::new();
    for (number, family) in FAMILIES {
        let body = [number, 0, 0, 0];
        let list = Message::new(GET_CHAIN, 0, "list chains", &body);
        let chains = socket.dump(&list, |payload| {
            let attributes = payload.get(4..)?;
            let hook = attribute(attribute(attributes, 4)?, 1)?;
            let policy = attribute(attributes, 5)?;
            let blocks = *payload.first()? == number
                && hook == (FORWARD as u32).to_be_bytes()
                && policy == (libc::NF_DROP as u32).to_be_bytes();
            let (table, chain) = (attribute(attributes, 1)?, attribute(attributes, 3)?);
            blocks.then(|| (as_text(table), as_text(chain)))
        })?;
        for (table, chain) in chains {
            let mut rules = Message::new(GET_RULE, 0, format!("list rules of {table}"), &body);
            rules.attr_str(1, &table);
            let named = socket.dump(&rules, |payload| {
                (*payload.first()? == number && names(payload, link)).then_some(())
            })?;
            let names_link = !named.is_empty();
            found.push(Blocker { family: Some(family), table, chain, names_link });
        }
    }
    Ok(found)
}

/// Whether a name occurs as a whole, with its NUL byte.
fn names(bytes: &[u8], link: &str) -> bool {
    let name = [link.as_bytes(), &[0]].concat();
    bytes.windows(name.len()).any(|window| window == name)
}

/// Of the older iptables' interface: what is said about a table, and where in the answer.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
const NAME_BYTES: usize = 32;
const INFO_BYTES: usize = 84;
/// Offset of the policy of each hook, and the size of all entries.
const INFO_UNDERFLOW: usize = 56;
const INFO_SIZE: usize = 80;
const ENTRIES_START: usize = 40;
const ENTRY_TARGET_OFFSET: usize = 88;
const TARGET_VERDICT: usize = 32;
const VERDICT_DROP: i32 = -1;
/// Bigger tables than this are not looked at.
const ENTRIES_BYTES_MAX: usize = 64 << 20;

fn iptables(link: &str) -> io::Result<Option<Blocker>> {
    // To ask for a table makes it; this list tells whether there is one.
    let tables = match std::fs::read_to_string("/proc/thread-self/net/ip_tables_names") {
        Ok(tables) => tables,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err),
    };
    if !tables.lines().any(|table| table == "filter") {
        return Ok(None);
    }
    let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut info = vec![0; INFO_BYTES];
    info[..6].copy_from_slice(b"filter");
    query(socket.as_fd(), GET_INFO, &mut info)?;
    let torn = || io::Error::other("the table filter does not look as expected");
    let size = number(&info, INFO_SIZE).ok_or_else(torn)? as usize;
    let policy = number(&info, INFO_UNDERFLOW + 4 * FORWARD).ok_or_else(torn)? as usize;
    if size > ENTRIES_BYTES_MAX {
        return Ok(None);
    }
    let mut table = vec![0; ENTRIES_START + size];
    table[..6].copy_from_slice(b"filter");
    table[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&(size as u32).to_ne_bytes());
    query(socket.as_fd(), GET_ENTRIES, &mut table)?;
    let entries = &table[ENTRIES_START..];
    let target = entries.get(policy + ENTRY_TARGET_OFFSET..policy + ENTRY_TARGET_OFFSET + 2);
    let target = target.and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let verdict = usize::from(target.ok_or_else(torn)?) + policy + TARGET_VERDICT;
    let blocks = number(entries, verdict).ok_or_else(torn)? as i32 == VERDICT_DROP;
    Ok(blocks.then(|| Blocker {
        family: None,
        table: "filter".into(),
        chain: "FORWARD".into(),
        names_link: names(entries, link),
    }))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn query(socket: BorrowedFd<'_>, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the buffer is ours and as long as we say; the kernel writes no further.
    check_int(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    })
    .map(drop)
}
