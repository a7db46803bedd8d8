//! The cluster's DNS: answers for the cluster's names from the caches and forwards the rest,
//! over UDP and TCP.
//!
//! What a name means is decided in `answers.rs`, how it looks on the wire in `wire.rs`.

pub mod answers;
pub mod forward;
pub mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use base::error::chain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use answers::{Reply, TTL_SECONDS, Zone};
use forward::Forwarder;
use wire::{Code, Data, Query, Record};

pub const PORT: u16 = 53;
/// A further connection waits.
const CONNECTIONS_MAX: usize = 128;
/// A connection that is silent for so long is closed.
const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// A longer question is no question.
const QUESTION_BYTES_MAX: usize = 4_096;
/// After a failure to receive or accept.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
#[error("listen for DNS on {address}")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Answers questions, wherever they come from.
pub struct Resolver {
    zone: Zone,
    forwarder: Forwarder,
}

/// An answer that is there, or must be fetched.
enum Answer {
    Now(Vec<u8>),
    Forward,
    /// The cluster's name is another name for this one.
    ForwardAlias(String),
}

impl Resolver {
    pub fn new(zone: Zone, forwarder: Forwarder) -> Self {
        Self { zone, forwarder }
    }

    fn decide(&self, query: &Query, limit: usize) -> Answer {
        let fail = |code| Answer::Now(wire::write(query, code, false, &[], &[], limit));
        if query.flags & 0x7800 != 0 {
            return fail(Code::NotImplemented);
        }
        if query.class != wire::IN {
            return fail(Code::Refused);
        }
        if self.zone.owns(&query.labels) && !self.zone.is_synced() {
            return fail(Code::ServerFailure);
        }
        let reply = self.zone.answer(&query.labels, query.kind);
        let (code, records) = match reply {
            Reply::Records(records) => (Code::Success, records),
            Reply::NoData => (Code::Success, Vec::new()),
            Reply::NoName => (Code::NameError, Vec::new()),
            Reply::Alias(target) => return self.alias(query, target, limit),
            Reply::Foreign => match self.forwarder.recall(query) {
                Some(answer) => return Answer::Now(wire::fit(query, answer, limit)),
                None => return Answer::Forward,
            },
        };
        let soa = if records.is_empty() { vec![self.zone.soa()] } else { Vec::new() };
        Answer::Now(wire::write(query, code, true, &records, &soa, limit))
    }

    fn alias(&self, query: &Query, target: String, limit: usize) -> Answer {
        let labels: Vec<String> = target.split('.').map(str::to_string).collect();
        let mut records = vec![alias_record(query, &target)];
        if query.kind != wire::CNAME {
            match self.zone.answer(&labels, query.kind) {
                Reply::Foreign => return Answer::ForwardAlias(target),
                Reply::Records(more) => records.extend(more),
                // A chain of aliases is left to the client.
                Reply::Alias(_) | Reply::NoData | Reply::NoName => {}
            }
        }
        Answer::Now(wire::write(query, Code::Success, true, &records, &[], limit))
    }

    async fn fetch(&self, query: &Query, request: &[u8], answer: Answer, tcp: bool) -> Vec<u8> {
        let limit = if tcp { usize::from(u16::MAX) } else { wire::udp_limit(query) };
        let fetched = match answer {
            Answer::Now(bytes) => return bytes,
            Answer::Forward => self.forwarder.ask(query, request, tcp).await,
            Answer::ForwardAlias(target) => self.fetch_alias(query, &target, limit).await,
        };
        match fetched {
            Ok(answer) => wire::fit(query, answer, limit),
            Err(err) => {
                debug!(name = query.labels.join("."), error = %chain(&err), "no answer");
                wire::write(query, Code::ServerFailure, false, &[], &[], limit)
            }
        }
    }

    async fn fetch_alias(&self, query: &Query, target: &str, limit: usize) -> io::Result<Vec<u8>> {
        let request = wire::question(target, query.kind);
        let inner = wire::read(&request).map_err(|_| io::Error::other("not a name"))?;
        let answer = match self.forwarder.recall(&inner) {
            Some(answer) => answer,
            None => self.forwarder.ask(&inner, &request, false).await?,
        };
        let mut records = vec![alias_record(query, target)];
        for found in wire::records(&answer).unwrap_or_default() {
            let bytes = &answer[found.data.clone()];
            let data = match (found.section, found.kind) {
                (0, wire::A) => <[u8; 4]>::try_from(bytes).ok().map(|it| Data::A(it.into())),
                (0, wire::AAAA) => <[u8; 16]>::try_from(bytes).ok().map(|it| Data::Aaaa(it.into())),
                _ => None,
            };
            // The resolver has followed further aliases; their last addresses are the target's.
            records.extend(data.map(|data| Record {
                name: target.to_string(),
                ttl_seconds: found.ttl,
                data,
            }));
        }
        Ok(wire::write(query, Code::Success, true, &records, &[], limit))
    }
}

fn alias_record(query: &Query, target: &str) -> Record {
    Record {
        name: query.labels.join("."),
        ttl_seconds: TTL_SECONDS,
        data: Data::Cname(target.to_string()),
    }
}

/// Binds all addresses, then serves them until the drain begins.
pub async fn start(
    addresses: &[IpAddr],
    resolver: Arc<Resolver>,
    drain: Drain,
) -> Result<(), ListenError> {
    let mut bound = Vec::new();
    for address in addresses {
        let address = SocketAddr::new(*address, PORT);
        let fail = |source| ListenError { address, source };
        let udp = UdpSocket::bind(address).await.map_err(fail)?;
        bound.push((udp, TcpListener::bind(address).await.map_err(fail)?));
    }
    for (udp, tcp) in bound {
        let (shared, until) = (resolver.clone(), drain.clone());
        base::task::spawn(async move { until.until(serve_udp(Arc::new(udp), shared)).await });
        let (shared, until) = (resolver.clone(), drain.clone());
        base::task::spawn(async move { until.until(serve_tcp(tcp, shared)).await });
    }
    Ok(())
}

async fn serve_udp(socket: Arc<UdpSocket>, resolver: Arc<Resolver>) {
    let mut buffer = vec![0; QUESTION_BYTES_MAX];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(err) => {
                debug!(error = %chain(&err), "DNS question not received");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let request = &buffer[..length];
        let query = match wire::read(request) {
            Ok(query) => query,
            Err(Some(id)) => {
                let _ = socket.send_to(&wire::format_error(id), from).await;
                continue;
            }
            Err(None) => continue,
        };
        match resolver.decide(&query, wire::udp_limit(&query)) {
            Answer::Now(answer) => {
                // The client has gone or asks again.
                let _ = socket.send_to(&answer, from).await;
            }
            later => {
                // The forwarder bounds how many of these wait.
                let (socket, resolver) = (socket.clone(), resolver.clone());
                let request = request.to_vec();
                base::task::spawn(async move {
                    let answer = resolver.fetch(&query, &request, later, false).await;
                    let _ = socket.send_to(&answer, from).await;
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, resolver: Arc<Resolver>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let resolver = resolver.clone();
                base::task::spawn(async move {
                    let _slot = slot;
                    // A broken connection concerns the client alone.
                    let _ = serve_connection(stream, &resolver).await;
                });
            }
            Err(err) => {
                warn!(error = %chain(&err), "DNS connection not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn serve_connection(mut stream: TcpStream, resolver: &Resolver) -> io::Result<()> {
    loop {
        let asked = async {
            let length = usize::from(stream.read_u16().await?);
            let mut request = vec![0; length.min(QUESTION_BYTES_MAX)];
            stream.read_exact(&mut request).await?;
            if length > QUESTION_BYTES_MAX {
                Err(io::ErrorKind::InvalidData.into())
            } else {
                Ok(request)
            }
        };
        let request: io::Result<Vec<u8>> = tokio::time::timeout(CONNECTION_IDLE, asked).await?;
        let request = request?;
        let answer = match wire::read(&request) {
            Ok(query) => {
                let decided = resolver.decide(&query, usize::from(u16::MAX));
                resolver.fetch(&query, &request, decided, true).await
            }
            Err(Some(id)) => wire::format_error(id),
            Err(None) => return Ok(()),
        };
        let framed = [&(answer.len() as u16).to_be_bytes(), answer.as_slice()].concat();
        tokio::time::timeout(CONNECTION_IDLE, stream.write_all(&framed)).await??;
    }
}
