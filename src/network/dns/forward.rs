//! Asks the host's resolvers what is not the cluster's, and remembers the answers briefly.
//!
//! The list of resolvers is looked at again whenever the file has changed. Our own addresses
//! in it are passed over: asking ourselves would never end.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::wire::{self, OPT, Query, SOA};

/// Questions under way at one time; a further one is answered with a failure.
const FORWARDS_MAX: usize = 512;
/// Answers remembered; at the bound those that ran out go, then any.
const CACHE_ENTRIES_MAX: usize = 4_096;
/// Longer answers are not remembered.
const CACHE_ANSWER_BYTES_MAX: usize = 2_048;
const CACHE_TIME_MAX: Duration = Duration::from_secs(30);
/// Each resolver is given so long; there are at most three, as in the C library.
const RESOLVER_TIMEOUT: Duration = Duration::from_secs(2);
const RESOLVERS_MAX: usize = 3;

struct Remembered {
    answer: Vec<u8>,
    ttls: Vec<usize>,
    since: Instant,
    until: Instant,
}

#[derive(Default)]
struct Resolvers {
    modified: Option<SystemTime>,
    addresses: Vec<SocketAddr>,
}

pub struct Forwarder {
    file: PathBuf,
    own: Vec<SocketAddr>,
    resolvers: Mutex<Resolvers>,
    cache: Mutex<HashMap<Vec<u8>, Remembered>>,
    slots: Semaphore,
    chance: RandomState,
}

/// The `nameserver` lines of a resolv.conf.
pub fn parse_resolvers(text: &str, own: &[SocketAddr]) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            if words.next() != Some("nameserver") {
                return None;
            }
            let address: IpAddr = words.next()?.split('%').next()?.parse().ok()?;
            Some(SocketAddr::new(address, 53))
        })
        .filter(|address| !own.contains(address))
        .take(RESOLVERS_MAX)
        .collect()
}

impl Forwarder {
    pub fn new(file: PathBuf, own: Vec<SocketAddr>) -> Self {
        Self {
            file,
            own,
            resolvers: Mutex::default(),
            cache: Mutex::default(),
            slots: Semaphore::new(FORWARDS_MAX),
            chance: RandomState::new(),
        }
    }

    /// Reading a small local file is quicker than handing it to another thread.
    fn resolvers(&self) -> Vec<SocketAddr> {
        let modified = std::fs::metadata(&self.file).and_then(|meta| meta.modified()).ok();
        let mut held = self.resolvers.lock();
        if modified.is_none() || held.modified != modified {
            let text = std::fs::read_to_string(&self.file).unwrap_or_default();
            *held = Resolvers { modified, addresses: parse_resolvers(&text, &self.own) };
        }
        held.addresses.clone()
    }

    fn key(query: &Query) -> Vec<u8> {
        let mut key = query.question.to_ascii_lowercase();
        key.push(u8::from(query.dnssec) | u8::from(query.edns_bytes.is_some()) << 1);
        key
    }

    /// A remembered answer, with what is left of its lifetime.
    pub fn recall(&self, query: &Query) -> Option<Vec<u8>> {
        let cache = self.cache.lock();
        let held = cache.get(&Self::key(query))?;
        let now = Instant::now();
        if held.until <= now {
            return None;
        }
        let age = now.duration_since(held.since).as_secs() as u32;
        let mut answer = held.answer.clone();
        for at in &held.ttls {
            if let Some(bytes) = answer.get_mut(*at..at + 4) {
                let ttl = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                bytes.copy_from_slice(&ttl.saturating_sub(age).to_be_bytes());
            }
        }
        answer[..2].copy_from_slice(&query.id.to_be_bytes());
        // The question as this client wrote it.
        answer.get_mut(12..12 + query.question.len())?.copy_from_slice(&query.question);
        Some(answer)
    }

    fn remember(&self, query: &Query, answer: &[u8]) {
        let cacheable = matches!(wire::code_of(answer), Some(0 | 3));
        if !cacheable || wire::is_truncated(answer) || answer.len() > CACHE_ANSWER_BYTES_MAX {
            return;
        }
        let Some(records) = wire::records(answer) else { return };
        let negative = records.iter().all(|record| record.section != 0);
        let lifetime = if negative {
            records.iter().find(|record| record.kind == SOA).and_then(|record| {
                let minimum = answer.get(record.data.clone())?.last_chunk::<4>()?;
                Some(u32::from_be_bytes(*minimum).min(record.ttl))
            })
        } else {
            let real = records.iter().filter(|record| record.kind != OPT);
            real.map(|record| record.ttl).min()
        };
        let Some(lifetime) = lifetime.filter(|seconds| *seconds > 0) else { return };
        let ttls =
            records.iter().filter(|found| found.kind != OPT).map(|found| found.ttl_at).collect();
        let since = Instant::now();
        let until = since + Duration::from_secs(lifetime.into()).min(CACHE_TIME_MAX);
        let mut cache = self.cache.lock();
        if cache.len() >= CACHE_ENTRIES_MAX {
            cache.retain(|_, held| held.until > since);
            if cache.len() >= CACHE_ENTRIES_MAX {
                let any = cache.keys().next().cloned();
                any.and_then(|key| cache.remove(&key));
            }
        }
        cache.insert(Self::key(query), Remembered { answer: answer.to_vec(), ttls, since, until });
    }

    /// Asks one resolver after the other. The answer bears the client's id.
    pub async fn ask(&self, query: &Query, request: &[u8], tcp: bool) -> io::Result<Vec<u8>> {
        let _slot = self
            .slots
            .try_acquire()
            .map_err(|_| io::Error::other("too many questions under way"))?;
        let mut last = io::Error::other("the host has no resolver");
        let mut request = request.to_vec();
        for resolver in self.resolvers() {
            let mut chance = self.chance.build_hasher();
            chance.write_u128(
                SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default()
                    .as_nanos(),
            );
            chance.write(&query.question);
            let id = (chance.finish() as u16).to_be_bytes();
            request[..2].copy_from_slice(&id);
            let asked = async {
                if tcp {
                    over_tcp(resolver, &request).await
                } else {
                    over_udp(resolver, &request, query).await
                }
            };
            match tokio::time::timeout(RESOLVER_TIMEOUT, asked).await {
                Ok(Ok(mut answer)) if answers(&answer, id, query) => {
                    answer[..2].copy_from_slice(&query.id.to_be_bytes());
                    self.remember(query, &answer);
                    return Ok(answer);
                }
                Ok(Ok(_)) => last = io::Error::other("a resolver answered something else"),
                Ok(Err(err)) => last = err,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }
}

fn answers(answer: &[u8], id: [u8; 2], query: &Query) -> bool {
    answer.get(..2) == Some(&id)
        && answer.get(2).is_some_and(|flags| flags & 0x80 != 0)
        && answer
            .get(12..12 + query.question.len())
            .is_some_and(|question| question.eq_ignore_ascii_case(&query.question))
}

async fn over_udp(resolver: SocketAddr, request: &[u8], query: &Query) -> io::Result<Vec<u8>> {
    let any: SocketAddr =
        if resolver.is_ipv4() { ([0u8; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(request).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // A forged answer must not end the wait for the true one.
        if answers(&buffer[..length], [request[0], request[1]], query) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(resolver: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    stream.write_all(&[&(request.len() as u16).to_be_bytes(), request].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_and_we_are_not_among_them() {
        let own: SocketAddr = "10.43.0.10:53".parse().unwrap();
        let text = "# x\nsearch a b\nnameserver 10.43.0.10\nnameserver fe80::1%eth0\n\
                    nameserver  192.0.2.1\nnameserver oops\n";
        let found = parse_resolvers(text, &[own]);
        let expected: Vec<SocketAddr> =
            ["[fe80::1]:53", "192.0.2.1:53"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(found, expected);
    }
}
