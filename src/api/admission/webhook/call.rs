//! One question to one webhook over HTTPS.
//!
//! Every call has a deadline and every answer a bound; a connection that still stands is used
//! again. What an answer means is for `review` to judge.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cache::Cache;

/// Larger answers are refused, in bytes: a patch is not longer than what it patches, by much.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Connections kept for the next question.
const IDLE_CONNECTIONS_MAX: usize = 4;
/// Of an error's text that is told to the client.
const ERROR_CHARS_MAX: usize = 1_000;
const SERVICES: &str = "/registry/services/specs/";
const SLICES: &str = "/registry/endpointslices/";
/// Trusted where a webhook names no authority of its own.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Where a webhook is.
#[derive(Debug)]
enum Place {
    Url { host: String, port: u16, path: String, shown: String },
    Service { namespace: String, name: String, path: String, port: u16 },
    Nowhere(String),
}

/// A webhook that can be asked.
pub struct Endpoint {
    place: Place,
    tls: Result<Arc<rustls::ClientConfig>, String>,
    timeout: Duration,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// Where to connect, and the name the certificate must have.
struct Peer {
    address: String,
    port: u16,
    name: String,
}

impl Endpoint {
    /// Reads a `clientConfig`.
    pub fn read(config: &Value, timeout: Duration) -> Self {
        Self { place: Place::read(config), tls: tls(config), timeout, idle: Mutex::default() }
    }

    /// Posts a question and returns the answer.
    ///
    /// # Errors
    /// Why there is none, in a sentence.
    pub async fn ask(&self, cache: &Cache, question: &Value) -> Result<Value, String> {
        let shown = format!("{}?timeout={}s", self.place.shown(), self.timeout.as_secs());
        let answered = tokio::time::timeout(self.timeout, self.call(cache, question)).await;
        let why = match answered {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(why)) => why,
            Err(_) => "context deadline exceeded".to_owned(),
        };
        Err(format!("failed to call webhook: Post {shown:?}: {why}"))
    }

    async fn call(&self, cache: &Cache, question: &Value) -> Result<Value, String> {
        let body = Bytes::from(question.to_string());
        let peer = self.place.peer(cache)?;
        // Of a kept connection nobody knows whether the other side still holds it.
        let kept = self.idle.lock().pop();
        if let Some(sender) = kept.filter(SendRequest::is_ready)
            && let Ok(answer) = self.exchange(sender, &peer, body.clone()).await
        {
            return answer;
        }
        let sender = self.connect(&peer).await?;
        self.exchange(sender, &peer, body).await?
    }

    async fn connect(&self, peer: &Peer) -> Result<SendRequest<Full<Bytes>>, String> {
        let tls = self.tls.clone()?;
        let server = ServerName::try_from(peer.name.clone()).map_err(|err| err.to_string())?;
        let place = format!("{}:{}", peer.address, peer.port);
        let tcp = TcpStream::connect((peer.address.as_str(), peer.port)).await.map_err(|err| {
            let why = match err.kind() {
                std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
                _ => err.to_string(),
            };
            format!("dial tcp {place}: connect: {why}")
        })?;
        let stream = TlsConnector::from(tls)
            .connect(server, tcp)
            .await
            .map_err(|err| format!("tls: failed to verify certificate: {err}"))?;
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|err| err.to_string())?;
        // Ends with the connection, which ends when the sender is dropped.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// The outer error is the connection's, before an answer began.
    async fn exchange(
        &self,
        mut sender: SendRequest<Full<Bytes>>,
        peer: &Peer,
        body: Bytes,
    ) -> Result<Result<Value, String>, String> {
        let path = self.place.path();
        let request = Request::post(format!("{path}?timeout={}s", self.timeout.as_secs()))
            .header(http::header::HOST, &peer.name)
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "application/json, */*")
            .header(http::header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(body))
            .map_err(|err| err.to_string())?;
        let response = sender.send_request(request).await.map_err(|err| err.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = match body {
            Ok(body) => body.to_bytes(),
            Err(err) => return Ok(Err(err.to_string())),
        };
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(sender);
        }
        drop(idle);
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body);
            let text: String = text.trim().chars().take(ERROR_CHARS_MAX).collect();
            let code = status.as_u16();
            return Ok(Err(if text.is_empty() {
                format!("the server responded with the status code {code}")
            } else {
                text
            }));
        }
        Ok(crate::serve::negotiate::json(&body).map_err(|err| err.message))
    }
}

impl Place {
    fn read(config: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if let Some(url) = config["url"].as_str() {
            let Ok(uri) = url.parse::<Uri>() else {
                return Place::Nowhere(format!("invalid URL {url:?}"));
            };
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            return Place::Url {
                host,
                port: uri.port_u16().unwrap_or(443),
                path: uri.path().to_owned(),
                shown: url.to_owned(),
            };
        }
        let service = &config["service"];
        let path = text(&service["path"]);
        Place::Service {
            namespace: text(&service["namespace"]),
            name: text(&service["name"]),
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            port: service["port"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(443),
        }
    }

    fn path(&self) -> &str {
        match self {
            Place::Url { path, .. } | Place::Service { path, .. } => path,
            Place::Nowhere(_) => "/",
        }
    }

    /// The address that messages name.
    fn shown(&self) -> String {
        match self {
            Place::Url { shown, .. } => shown.clone(),
            Place::Service { namespace, name, path, port } => {
                format!("https://{name}.{namespace}.svc:{port}{path}")
            }
            Place::Nowhere(_) => "https:".to_owned(),
        }
    }

    fn peer(&self, cache: &Cache) -> Result<Peer, String> {
        match self {
            Place::Url { host, port, .. } => {
                Ok(Peer { address: host.clone(), port: *port, name: host.clone() })
            }
            Place::Service { namespace, name, port, .. } => {
                let (address, port) = resolve(cache, namespace, name, *port)?;
                Ok(Peer { address, port, name: format!("{name}.{namespace}.svc") })
            }
            Place::Nowhere(why) => Err(why.clone()),
        }
    }
}

/// An address behind a service: one of its ready endpoints, or the service's own where it has
/// none that we know of (the node's proxy then decides).
fn resolve(cache: &Cache, namespace: &str, name: &str, port: u16) -> Result<(String, u16), String> {
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

fn tls(config: &Value) -> Result<Arc<rustls::ClientConfig>, String> {
    let own = config["caBundle"].as_str().filter(|bundle| !bundle.is_empty());
    let pem = match own {
        Some(bundle) => STANDARD.decode(bundle).map_err(|err| err.to_string())?,
        None => SYSTEM_ROOTS
            .iter()
            .find_map(|path| std::fs::read(path).ok())
            .ok_or("no certificate authorities of the system were found")?,
    };
    let config = pki::tls::client_config(Some(&pem), None, false);
    let mut config = config
        .map_err(|err| format!("unable to load root certificates: {}", base::error::chain(&err)))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
