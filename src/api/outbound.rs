//! The way out over TLS: how a service of the cluster is found, and how it is reached.
//!
//! Says nothing and waits for nothing beyond the handshake; deadlines are the caller's.

use std::sync::Arc;

use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cache::Cache;
use crate::cache::prefix::SERVICES;

pub const SLICES: &str = "/registry/endpointslices/";

/// Where to connect, and the name the certificate must have.
pub struct Peer {
    pub address: String,
    pub port: u16,
    pub name: String,
}

/// A connection to a peer that has shown its certificate.
///
/// # Errors
/// Why there is none, in upstream's words where it has some.
pub async fn dial(
    peer: &Peer,
    tls: Arc<rustls::ClientConfig>,
) -> Result<TlsStream<TcpStream>, String> {
    let server = ServerName::try_from(peer.name.clone()).map_err(|err| err.to_string())?;
    let tcp = plain(&peer.address, peer.port).await?;
    TlsConnector::from(tls)
        .connect(server, tcp)
        .await
        .map_err(|err| format!("tls: failed to verify certificate: {err}"))
}

/// A connection without TLS.
///
/// # Errors
/// Why there is none, in upstream's words where it has some.
pub async fn plain(address: &str, port: u16) -> Result<TcpStream, String> {
    let place = match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    };
    let tcp = TcpStream::connect((address, port)).await.map_err(|err| {
        let why = match err.kind() {
            std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            _ => err.to_string(),
        };
        format!("dial tcp {place}: connect: {why}")
    })?;
    // Only latency is lost where the option is refused.
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

/// An address behind a service: one of its ready endpoints, or the service's own where it has
/// none that we know of (the node's proxy then decides).
pub fn resolve(
    cache: &Cache,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<(String, u16), String> {
    let service = cache
        .get(SERVICES, &format!("{SERVICES}{namespace}/{name}"))
        .ok_or_else(|| format!("service {name:?} not found"))?
        .value();
    let spec = &service["spec"];
    let ports = || spec["ports"].as_array().into_iter().flatten();
    let Some(wanted) = ports().find(|known| known["port"] == port) else {
        return Err(format!("no service port {port} found for service {name:?}"));
    };
    if spec["type"] == "ExternalName" {
        let host = spec["externalName"].as_str().unwrap_or_default();
        return Ok((host.to_owned(), port));
    }
    let start = format!("{SLICES}{namespace}/");
    let (slices, _) = cache.list(SLICES, &start, None);
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| {
        slice.key.starts_with(&start) && slice.labels()["kubernetes.io/service-name"] == name
    }) {
        let slice = slice.value();
        let same = |known: &&Value| {
            let own = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            own(&known["name"]) == own(&wanted["name"])
        };
        let known = slice["ports"].as_array().into_iter().flatten().find(same);
        let Some(target) = known.and_then(|known| known["port"].as_u64()) else { continue };
        let Ok(target) = u16::try_from(target) else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] != false
                && let Some(address) = endpoint["addresses"][0].as_str()
            {
                found.push((address.to_owned(), target));
            }
        }
    }
    if !found.is_empty() {
        let index = base::rng::below(found.len() as u64);
        return Ok(found.swap_remove(usize::try_from(index).unwrap_or(0)));
    }
    match spec["clusterIP"].as_str().filter(|ip| *ip != "None" && !ip.is_empty()) {
        Some(ip) => Ok((ip.to_owned(), port)),
        None => Err(format!("no endpoints available for service {name:?}")),
    }
}
