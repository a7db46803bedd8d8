//! DNS messages as bytes (RFC 1035, RFC 6891): reads a question, writes an answer, finds the
//! lifetimes in somebody else's answer.
//!
//! Everything read is hostile: each read is bounded, and a compression pointer must point
//! backwards. Does not know what any name means.

use std::net::{Ipv4Addr, Ipv6Addr};

pub const A: u16 = 1;
pub const NS: u16 = 2;
pub const CNAME: u16 = 5;
pub const SOA: u16 = 6;
pub const PTR: u16 = 12;
pub const TXT: u16 = 16;
pub const AAAA: u16 = 28;
pub const SRV: u16 = 33;
pub const OPT: u16 = 41;
pub const ANY: u16 = 255;
pub const IN: u16 = 1;

pub const HEADER_BYTES: usize = 12;
/// A name on the wire (RFC 1035, 2.3.4).
const NAME_BYTES_MAX: usize = 255;
/// What a client without EDNS takes over UDP, and the most that we send to any.
const UDP_BYTES: usize = 512;
const UDP_BYTES_MAX: usize = 1232;

const FLAG_RESPONSE: u16 = 0x8000;
const FLAG_AUTHORITATIVE: u16 = 0x0400;
const FLAG_TRUNCATED: u16 = 0x0200;
const FLAG_RECURSION_DESIRED: u16 = 0x0100;
const FLAG_RECURSION_AVAILABLE: u16 = 0x0080;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Success = 0,
    FormatError = 1,
    ServerFailure = 2,
    NameError = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// A question, with what matters of its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub id: u16,
    pub flags: u16,
    /// In lower case.
    pub labels: Vec<String>,
    pub kind: u16,
    pub class: u16,
    /// The question section as it came.
    pub question: Vec<u8>,
    /// The largest UDP answer that the client takes, if it said so.
    pub edns_bytes: Option<u16>,
    /// The client wants DNSSEC records.
    pub dnssec: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Cname(String),
    Ptr(String),
    Txt(String),
    Srv { port: u16, weight: u16, target: String },
    Soa { zone: String },
    Ns(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub name: String,
    pub ttl_seconds: u32,
    pub data: Data,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Reads a name; gives its labels in lower case and where it ends.
fn name_at(bytes: &[u8], start: usize) -> Option<(Vec<String>, usize)> {
    let (mut at, mut end, mut total, mut bound) = (start, None, 0, start);
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*bytes.get(at)?);
        match length {
            0 => return Some((labels, end.unwrap_or(at + 1))),
            1..=63 => {
                total += length + 1;
                if total >= NAME_BYTES_MAX {
                    return None;
                }
                let label = bytes.get(at + 1..at + 1 + length)?;
                labels.push(label.iter().map(|b| char::from(b.to_ascii_lowercase())).collect());
                at += 1 + length;
            }
            192.. => {
                let target = usize::from(u16_at(bytes, at)? & 0x3fff);
                if target >= bound {
                    return None;
                }
                end = end.or(Some(at + 2));
                (bound, at) = (target, target);
            }
            _ => return None,
        }
    }
}

/// Reads a message with one question. The error holds what can be answered at all: the id.
pub fn read(bytes: &[u8]) -> Result<Query, Option<u16>> {
    let id = u16_at(bytes, 0).ok_or(None)?;
    let flags = u16_at(bytes, 2).ok_or(None)?;
    if flags & FLAG_RESPONSE != 0 {
        return Err(None);
    }
    parse(bytes, id, flags).ok_or(Some(id))
}

fn parse(bytes: &[u8], id: u16, flags: u16) -> Option<Query> {
    if u16_at(bytes, 4)? != 1 {
        return None;
    }
    let (labels, end) = name_at(bytes, HEADER_BYTES)?;
    let mut query = Query {
        id,
        flags,
        labels,
        kind: u16_at(bytes, end)?,
        class: u16_at(bytes, end + 2)?,
        question: bytes.get(HEADER_BYTES..end + 4)?.to_vec(),
        edns_bytes: None,
        dnssec: false,
    };
    for record in records(bytes)? {
        if record.kind == OPT {
            query.edns_bytes = Some(record.class);
            query.dnssec = record.ttl & 0x8000 != 0;
        }
    }
    Some(query)
}

/// Where a record of a message lies.
#[derive(Debug, Clone)]
pub struct Found {
    pub labels: Vec<String>,
    pub kind: u16,
    pub class: u16,
    pub ttl: u32,
    pub ttl_at: usize,
    pub data: std::ops::Range<usize>,
    /// 0 answer, 1 authority, 2 additional.
    pub section: usize,
}

/// All records of a message; None if it is malformed.
pub fn records(bytes: &[u8]) -> Option<Vec<Found>> {
    let mut at = HEADER_BYTES;
    for _ in 0..u16_at(bytes, 4)? {
        at = name_at(bytes, at)?.1 + 4;
    }
    let mut found = Vec::new();
    for section in 0..3 {
        for _ in 0..u16_at(bytes, 6 + 2 * section)? {
            let (labels, end) = name_at(bytes, at)?;
            let length = usize::from(u16_at(bytes, end + 8)?);
            let data = end + 10..end + 10 + length;
            bytes.get(data.clone())?;
            at = data.end;
            found.push(Found {
                labels,
                kind: u16_at(bytes, end)?,
                class: u16_at(bytes, end + 2)?,
                ttl: u32_at(bytes, end + 4)?,
                ttl_at: end + 4,
                data,
                section,
            });
        }
    }
    Some(found)
}

pub fn code_of(bytes: &[u8]) -> Option<u8> {
    bytes.get(3).map(|flags| flags & 15)
}

pub fn is_truncated(bytes: &[u8]) -> bool {
    u16_at(bytes, 2).is_some_and(|flags| flags & FLAG_TRUNCATED != 0)
}

fn put_name(bytes: &mut Vec<u8>, name: &str) {
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let length = label.len().min(63);
        bytes.push(length as u8);
        bytes.extend_from_slice(&label.as_bytes()[..length]);
    }
    bytes.push(0);
}

fn put_record(bytes: &mut Vec<u8>, query: &Query, record: &Record) {
    // Most records answer for the name that was asked; the question lies at offset 12.
    if record.name == query.labels.join(".") {
        bytes.extend_from_slice(&[0xc0, HEADER_BYTES as u8]);
    } else {
        put_name(bytes, &record.name);
    }
    let kind = match &record.data {
        Data::A(_) => A,
        Data::Aaaa(_) => AAAA,
        Data::Cname(_) => CNAME,
        Data::Ptr(_) => PTR,
        Data::Txt(_) => TXT,
        Data::Srv { .. } => SRV,
        Data::Soa { .. } => SOA,
        Data::Ns(_) => NS,
    };
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&IN.to_be_bytes());
    bytes.extend_from_slice(&record.ttl_seconds.to_be_bytes());
    let length_at = bytes.len();
    bytes.extend_from_slice(&[0, 0]);
    match &record.data {
        Data::A(address) => bytes.extend_from_slice(&address.octets()),
        Data::Aaaa(address) => bytes.extend_from_slice(&address.octets()),
        Data::Cname(name) | Data::Ptr(name) | Data::Ns(name) => put_name(bytes, name),
        Data::Txt(text) => {
            let length = text.len().min(255);
            bytes.push(length as u8);
            bytes.extend_from_slice(&text.as_bytes()[..length]);
        }
        Data::Srv { port, weight, target } => {
            bytes.extend_from_slice(&0u16.to_be_bytes());
            bytes.extend_from_slice(&weight.to_be_bytes());
            bytes.extend_from_slice(&port.to_be_bytes());
            put_name(bytes, target);
        }
        Data::Soa { zone } => {
            put_name(bytes, &format!("ns.dns.{zone}"));
            put_name(bytes, &format!("hostmaster.{zone}"));
            for number in [1u32, 7200, 1800, 86400, record.ttl_seconds] {
                bytes.extend_from_slice(&number.to_be_bytes());
            }
        }
    }
    let length = (bytes.len() - length_at - 2) as u16;
    bytes[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
}

/// How large an answer may be.
pub fn udp_limit(query: &Query) -> usize {
    query.edns_bytes.map_or(UDP_BYTES, |bytes| usize::from(bytes).clamp(UDP_BYTES, UDP_BYTES_MAX))
}

/// Writes an answer. One that is too long becomes an empty one that says so.
pub fn write(
    query: &Query,
    code: Code,
    authoritative: bool,
    answers: &[Record],
    authority: &[Record],
    limit: usize,
) -> Vec<u8> {
    let mut flags = FLAG_RESPONSE | FLAG_RECURSION_AVAILABLE | code as u16;
    flags |= query.flags & FLAG_RECURSION_DESIRED;
    if authoritative {
        flags |= FLAG_AUTHORITATIVE;
    }
    let edns = u16::from(query.edns_bytes.is_some());
    let mut bytes = Vec::with_capacity(512);
    let head = |bytes: &mut Vec<u8>, flags: u16, answers: u16, authority: u16| {
        for number in [query.id, flags, 1, answers, authority, edns] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&query.question);
    };
    head(&mut bytes, flags, answers.len() as u16, authority.len() as u16);
    for record in answers.iter().chain(authority) {
        put_record(&mut bytes, query, record);
        if bytes.len() > usize::from(u16::MAX) {
            break;
        }
    }
    if bytes.len() + 11 * usize::from(edns) > limit {
        bytes.clear();
        head(&mut bytes, flags | FLAG_TRUNCATED, 0, 0);
    }
    if edns == 1 {
        bytes.extend_from_slice(&[0, 0, OPT as u8]);
        bytes.extend_from_slice(&(UDP_BYTES_MAX as u16).to_be_bytes());
        bytes.extend_from_slice(&[0; 6]);
    }
    bytes
}

/// A question of our own.
pub fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    put_name(&mut bytes, name);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&IN.to_be_bytes());
    bytes
}

/// The shortest answer to a message that cannot be read.
pub fn format_error(id: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    for number in [id, FLAG_RESPONSE | Code::FormatError as u16, 0, 0, 0, 0] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes
}

/// Cuts somebody else's answer down to its question if it is too long.
pub fn fit(query: &Query, answer: Vec<u8>, limit: usize) -> Vec<u8> {
    if answer.len() <= limit {
        return answer;
    }
    let mut bytes = write(query, Code::Success, false, &[], &[], limit);
    bytes[2] |= (FLAG_TRUNCATED >> 8) as u8;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_and_answered() {
        let query = read(&question("Web.Default", A)).unwrap();
        assert_eq!((query.labels.join("."), query.id), ("web.default".into(), 7));
        let record = Record {
            name: "web.default".into(),
            ttl_seconds: 5,
            data: Data::A(Ipv4Addr::new(10, 43, 0, 1)),
        };
        let answer = write(&query, Code::Success, true, &vec![record.clone(); 3], &[], 512);
        let found = records(&answer).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(&answer[found[0].data.clone()], &[10, 43, 0, 1]);
        let short = write(&query, Code::Success, true, &vec![record; 100], &[], 512);
        assert!(is_truncated(&short) && short.len() < 512);
    }

    #[test]
    fn hostile_messages_are_refused() {
        let good = question("web.default", A);
        for cut in 0..good.len() {
            assert!(read(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut looped = good.clone();
        looped.truncate(HEADER_BYTES);
        looped.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(read(&looped), Err(Some(7)));
        let mut answer = good.clone();
        answer[2] |= 0x80;
        assert_eq!(read(&answer), Err(None), "answers are not answered");
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut noise = good.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (state >> 33) as usize % noise.len();
                noise[at] = (state >> 20) as u8;
            }
            let _ = (read(&noise), records(&noise));
        }
    }
}
