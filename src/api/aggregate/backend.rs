//! One other server: how it is reached, connections that stand, and what was learnt of it.
//!
//! Every wait has an end, and every answer that is kept has a bound.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use client::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1::SendRequest;
use parking_lot::{Mutex, RwLock};
use pki::Issued;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::identity;
use crate::authn::User;
use crate::cache::Cache;
use crate::outbound::{self, Peer};
use crate::serve::forward::{self, Onward, Outgoing};

/// How long a server may take to take a connection and finish the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to begin its answer after the last piece of the body.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a document may take to be there in full.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections kept for the next request.
const IDLE_CONNECTIONS_MAX: usize = 8;
/// Older ones are not trusted to stand any more.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// The service in front of another server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub port: u16,
}

/// What another server last said of itself. It stays while the server is away.
#[derive(Default, Clone)]
pub struct Learnt {
    /// Its entry of aggregated discovery.
    pub discovery: Option<Arc<Value>>,
    /// Where its OpenAPI v3 document is, with its hash.
    pub openapi_v3: Option<String>,
    /// It has no OpenAPI v3 at all.
    pub no_openapi_v3: bool,
    /// Its part of OpenAPI v2, gzipped JSON.
    pub openapi_v2: Option<Bytes>,
    /// What its documents were tagged with: discovery, v3, v2.
    pub tags: [Option<HeaderValue>; 3],
    /// The last questions were answered.
    pub fresh: bool,
}

impl Learnt {
    /// The OpenAPI v2 part of a server that has nothing newer, packed.
    pub fn only_v2(&self) -> Option<&Bytes> {
        self.openapi_v2.as_ref().filter(|_| self.no_openapi_v3)
    }
}

type Tls = Result<Arc<rustls::ClientConfig>, String>;

pub struct Remote {
    pub service: Service,
    pub group: String,
    pub version: String,
    /// The parts of the spec that make it this server.
    made_of: [Value; 5],
    tls: Tls,
    /// For the question whether it is there at all, which takes any certificate.
    lenient: Tls,
    idle: Mutex<Vec<(Instant, SendRequest<Outgoing>)>>,
    learnt: RwLock<Arc<Learnt>>,
    /// Something of its service changed: look again.
    pub woken: Notify,
}

/// A document, unless it is the one we have.
pub enum Fetched {
    New { body: Bytes, tag: Option<HeaderValue>, content_type: String },
    Same,
    Refused(StatusCode),
}

fn made_of(spec: &Value) -> [Value; 5] {
    ["group", "version", "service", "caBundle", "insecureSkipTLSVerify"].map(|f| spec[f].clone())
}

fn tls(spec: &Value, identity: Option<&Issued>, lenient: bool) -> Tls {
    let pem = match spec["caBundle"].as_str().filter(|text| !text.is_empty()) {
        Some(text) => STANDARD.decode(text).map_err(|err| err.to_string())?,
        None => Vec::new(),
    };
    let insecure = lenient || spec["insecureSkipTLSVerify"] == true;
    if pem.is_empty() && !insecure {
        let roots = crate::webhook::system_roots()?;
        return config(&roots, identity, false);
    }
    config(&pem, identity, insecure)
}

fn config(pem: &[u8], identity: Option<&Issued>, insecure: bool) -> Tls {
    let own = identity.map(|own| (own.cert_pem.as_bytes(), own.key_pem.as_bytes()));
    let mut config = pki::tls::client_config(Some(pem), own, insecure)
        .map_err(|err| format!("unable to load root certificates: {}", base::error::chain(&err)))?;
    // Upgrades need HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Remote {
    /// Reads the spec of an APIService that names a service.
    pub fn read(spec: &Value, own: Option<&Issued>) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or("").to_string();
        let service = &spec["service"];
        Self {
            service: Service {
                namespace: text(&service["namespace"]),
                name: text(&service["name"]),
                port: service["port"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(443),
            },
            group: text(&spec["group"]),
            version: text(&spec["version"]),
            made_of: made_of(spec),
            tls: tls(spec, own, false),
            lenient: tls(spec, own, true),
            idle: Mutex::default(),
            learnt: RwLock::default(),
            woken: Notify::new(),
        }
    }

    pub fn is_as(&self, spec: &Value) -> bool {
        self.made_of == made_of(spec)
    }

    pub fn learnt(&self) -> Arc<Learnt> {
        self.learnt.read().clone()
    }

    pub fn learn(&self, learnt: Learnt) {
        *self.learnt.write() = Arc::new(learnt);
    }

    /// The path under which it serves its group's version.
    pub fn path(&self) -> String {
        match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        }
    }

    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.service.name, self.service.namespace)
    }

    fn peer(&self, cache: &Cache) -> Result<Peer, String> {
        let Service { namespace, name, port } = &self.service;
        let (address, port) = outbound::resolve(cache, namespace, name, *port)?;
        Ok(Peer { address, port, name: self.host() })
    }

    async fn connect(&self, peer: &Peer, tls: &Tls) -> Result<SendRequest<Outgoing>, String> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, outbound::dial(peer, tls.clone()?));
        match stream.await {
            Ok(stream) => forward::open(stream?).await,
            Err(_) => Err(format!("dial tcp {}:{}: i/o timeout", peer.address, peer.port)),
        }
    }

    /// A connection that stood a moment ago.
    fn kept(&self) -> Option<SendRequest<Outgoing>> {
        let mut idle = self.idle.lock();
        idle.retain(|(since, sender)| since.elapsed() < IDLE_MAX && sender.is_ready());
        idle.pop().map(|(_, sender)| sender)
    }

    fn keep(&self, sender: SendRequest<Outgoing>) {
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_CONNECTIONS_MAX && !sender.is_closed() {
            idle.push((Instant::now(), sender));
        }
    }

    /// Sends a request and answers with what comes, as it comes.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(
        self: &Arc<Self>,
        cache: &Cache,
        onward: Onward,
    ) -> Result<Response<Body>, String> {
        let again = onward.repeat();
        let mut onward = Some(onward);
        // Of a kept connection nobody knows whether the other side still holds it: it is
        // only good for what can be asked once more.
        if let Some(again) = again
            && let Some(mut sender) = self.kept()
            && let Some(first) = onward.replace(again)
            && let Ok((response, upgrade)) = first.send(&mut sender, ANSWER_TIMEOUT).await
        {
            return self.answer(response, upgrade, sender);
        }
        let onward = onward.ok_or("nothing to send")?;
        let mut sender = self.connect(&self.peer(cache)?, &self.tls).await?;
        let (response, upgrade) = onward.send(&mut sender, ANSWER_TIMEOUT).await?;
        self.answer(response, upgrade, sender)
    }

    fn answer(
        self: &Arc<Self>,
        response: Response<hyper::body::Incoming>,
        upgrade: Option<forward::Upgrade>,
        sender: SendRequest<Outgoing>,
    ) -> Result<Response<Body>, String> {
        let remote = self.clone();
        forward::answer(response, upgrade, sender, move |sender| remote.keep(sender))
    }

    /// Asks for a document in this server's own name.
    ///
    /// # Errors
    /// When it does not come in time, or is larger than `bytes_max`.
    pub async fn fetch(
        &self,
        cache: &Cache,
        path: &str,
        accept: &'static str,
        tag: Option<&HeaderValue>,
        bytes_max: usize,
    ) -> Result<Fetched, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        if let Some(tag) = tag {
            headers.insert(header::IF_NONE_MATCH, tag.clone());
        }
        let asked = async {
            let mut sender = match self.kept() {
                Some(sender) => sender,
                None => self.connect(&self.peer(cache)?, &self.tls).await?,
            };
            let (head, body) = self.get(&mut sender, path, headers, bytes_max).await?;
            self.keep(sender);
            Ok::<_, String>((head, body))
        };
        let timed = tokio::time::timeout(FETCH_TIMEOUT, asked).await;
        let (head, body) = timed.map_err(|_| "context deadline exceeded".to_string())??;
        if head.status == StatusCode::NOT_MODIFIED {
            return Ok(Fetched::Same);
        }
        if head.status != StatusCode::OK {
            return Ok(Fetched::Refused(head.status));
        }
        let content_type = head.headers.get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or("");
        let content_type = content_type.to_string();
        Ok(Fetched::New { body, tag: head.headers.get(header::ETAG).cloned(), content_type })
    }

    /// Whether the server answers for its group's version, with any certificate.
    ///
    /// # Errors
    /// What is wrong, in upstream's words.
    pub async fn probe(&self, cache: &Cache) -> Result<(), String> {
        let peer = self.peer(cache)?;
        let url = format!("https://{}:{}{}", peer.address, peer.port, self.path());
        let failing = |why: String| format!("failing or missing response from {url}: {why}");
        let asked = async {
            let get = |why: String| format!("Get {url:?}: {why}");
            let mut sender = self.connect(&peer, &self.lenient).await.map_err(get)?;
            let headers = HeaderMap::new();
            let (head, _) =
                self.get(&mut sender, &self.path(), headers, PROBE_BYTES_MAX).await.map_err(get)?;
            match head.status.is_success() {
                true => Ok(()),
                false => Err(format!("bad status from {url}: {}", head.status.as_u16())),
            }
        };
        match tokio::time::timeout(FETCH_TIMEOUT, asked).await {
            Ok(answered) => answered.map_err(failing),
            Err(_) => Err(failing(format!("Get {url:?}: context deadline exceeded"))),
        }
    }

    async fn get(
        &self,
        sender: &mut SendRequest<Outgoing>,
        path: &str,
        mut headers: HeaderMap,
        bytes_max: usize,
    ) -> Result<(http::response::Parts, Bytes), String> {
        identity::tell(&mut headers, &aggregator())?;
        if let Ok(host) = HeaderValue::from_str(&self.host()) {
            headers.insert(header::HOST, host);
        }
        let mut request = Request::new(forward::whole(Bytes::new()));
        *request.method_mut() = Method::GET;
        *request.uri_mut() = path.parse().map_err(|_| format!("wrong path {path:?}"))?;
        *request.headers_mut() = headers;
        let response = sender.send_request(request).await.map_err(|err| err.to_string())?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, bytes_max).collect().await.map_err(|err| err.to_string())?;
        Ok((head, body.to_bytes()))
    }
}

/// An answer to the question whether a server is there, in bytes.
const PROBE_BYTES_MAX: usize = 4 << 20;

/// As whom this server asks others for their documents.
pub fn aggregator() -> User {
    User::new("system:kube-aggregator", &[crate::authn::MASTERS])
}
