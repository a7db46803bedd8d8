//! Requests that go on to a node's kubelet or to a pod: logs, exec, attach, port-forward, and
//! the node, pod and service proxies. Streams are passed byte for byte.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::Body;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use self::log_socket::LogSocket;
use self::logs::LogOptions;
use self::rewrite::Rewriter;
use super::chain::Call;
use super::{Shared, answer, forward};
use crate::cache::prefix::NODES;
use crate::error::{ApiError, Result};
use crate::outbound::{self, SLICES};
use crate::registry::Target;

mod log_socket;
mod logs;
mod place;
mod rewrite;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a kubelet may take to begin its answer.
const KUBELET_TIMEOUT: Duration = Duration::from_secs(60);
/// How long whatever runs in a pod may take.
const POD_TIMEOUT: Duration = Duration::from_secs(300);
/// Of a kubelet's refusal that is told to the client, in bytes (upstream's limit).
const REFUSAL_BYTES_MAX: usize = 50_000;
/// A larger document of a proxied page is passed as it is, in bytes.
const HTML_BYTES_MAX: usize = 4 << 20;
/// And one that takes longer to arrive.
const HTML_TIMEOUT: Duration = Duration::from_secs(30);

/// How kubelets and pods are reached.
pub struct Kubelets {
    /// With the kubelets' certificate authority and our certificate.
    tls: Arc<ClientConfig>,
    /// The same without a look at the kubelet's certificate.
    lenient: Arc<ClientConfig>,
    /// To pods that speak TLS, whoever signed their certificates.
    pods: Arc<ClientConfig>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Connected = std::result::Result<Box<dyn Stream>, String>;

impl Kubelets {
    /// # Errors
    /// When no TLS configuration can be made.
    pub fn new(tls: ClientConfig) -> std::result::Result<Self, pki::Error> {
        let mut tls = tls;
        // Upgrades need HTTP/1.1.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut pods = pki::tls::client_config(None, None, true)?;
        pods.alpn_protocols = tls.alpn_protocols.clone();
        Ok(Self {
            lenient: Arc::new(pki::tls::trusting_anyone(tls.clone())),
            tls: Arc::new(tls),
            pods: Arc::new(pods),
        })
    }
}

/// A connection, with TLS where `tls` is given: to a server of this name.
async fn connect(address: &str, port: u16, tls: Option<(&Arc<ClientConfig>, &str)>) -> Connected {
    let open = async {
        let tcp = outbound::plain(address, port).await?;
        let Some((tls, name)) = tls else { return Ok(Box::new(tcp) as Box<dyn Stream>) };
        let name = ServerName::try_from(name.to_owned()).map_err(|err| err.to_string())?;
        let stream = TlsConnector::from(tls.clone()).connect(name, tcp).await;
        let stream = stream.map_err(|err| format!("tls: {err}"))?;
        Ok(Box::new(stream) as Box<dyn Stream>)
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, open).await {
        Ok(opened) => opened,
        Err(_) => Err(format!("dial tcp {address}:{port}: i/o timeout")),
    }
}

pub async fn serve(server: &Shared, call: Call, target: Target) -> Result<Response<Body>> {
    super::connect::admit(server, &call, &target).await?;
    match (target.resource.plural.as_str(), target.subresource.as_str()) {
        ("pods" | "services" | "nodes", "proxy") => proxy(server, call, &target).await,
        ("pods", "log") => log(server, call, &target).await,
        ("pods", _) => stream(server, call, &target).await,
        _ => Err(ApiError::no_such_resource()),
    }
}

fn node(server: &Shared, name: &str) -> Result<Value> {
    if let Some(node) = server.registry.cache.get(NODES, &format!("{NODES}{name}")) {
        return Ok(node.value());
    }
    let nodes = server.registry.resource("", "nodes").ok_or_else(ApiError::no_such_resource)?;
    Err(ApiError::not_found(&nodes, name))
}

/// The container a request is about: the one named, or the only one.
fn container(call: &Call, target: &Target, pod: &Value) -> Result<String> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.filter_map(|c| c["name"].as_str().map(str::to_string)).collect()
    };
    let own = names("containers");
    let all = [names("initContainers"), own.clone(), names("ephemeralContainers")].concat();
    let pod = &target.name;
    match (call.query.set("container"), own.as_slice()) {
        (Some(wanted), _) if all.iter().any(|name| name == wanted) => Ok(wanted.to_string()),
        (Some(wanted), _) => {
            Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {pod}")))
        }
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {pod}, choose one of: [{}]",
            all.join(" ")
        ))),
    }
}

/// A node, and how to open a connection to its kubelet.
struct Kubelet {
    name: String,
    address: String,
    port: u16,
}

impl Kubelet {
    fn of(node: &Value) -> Result<Self> {
        let name = node["metadata"]["name"].as_str().unwrap_or("").to_string();
        let address = place::of_node(node).ok_or_else(|| {
            ApiError::internal(format!("no preferred addresses found for node {name}"))
        })?;
        Ok(Self { address: address.to_string(), port: place::kubelet_port(node), name })
    }

    async fn connect(&self, tls: &Arc<ClientConfig>) -> Connected {
        connect(&self.address, self.port, Some((tls, &self.name))).await
    }

    fn host(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }
}

/// Sends a request on over a connection. The answer is the backend's, or why there is none.
async fn exchange(
    stream: Connected,
    onward: forward::Onward,
    patience: Duration,
) -> std::result::Result<Passed, String> {
    let mut sender = forward::open(stream?).await?;
    let (response, upgrade) = onward.send(&mut sender, patience).await?;
    Ok(Passed { response, upgrade, sender })
}

/// An answer on its way back.
struct Passed {
    response: Response<Incoming>,
    upgrade: Option<forward::Upgrade>,
    sender: hyper::client::conn::http1::SendRequest<forward::Outgoing>,
}

impl Passed {
    fn answer(self) -> std::result::Result<Response<Body>, String> {
        // The connection lives as long as its answer.
        forward::answer(self.response, self.upgrade, self.sender, drop)
    }
}

async fn log(server: &Shared, mut call: Call, target: &Target) -> Result<Response<Body>> {
    let options = LogOptions::read(&call.query)?;
    options.check(&target.name)?;
    let pod = server.registry.live(target).await?.value();
    let container = container(&call, target, &pod)?;
    let Some(node_name) = pod["spec"]["nodeName"].as_str().filter(|name| !name.is_empty()) else {
        let mut nothing = answer::bytes(StatusCode::NO_CONTENT, "", Bytes::new());
        nothing.headers_mut().remove(header::CONTENT_TYPE);
        return Ok(nothing);
    };
    let kubelet = Kubelet::of(&node(server, node_name)?)?;
    let path = format!("/containerLogs/{}/{}/{container}", target.namespace, target.name);
    let path = with_query(&path, Some(&options.query()));
    let tls = if options.insecure { &server.kubelets.lenient } else { &server.kubelets.tls };
    let failed = |why: String| {
        let url = format!("https://{}{path}", kubelet.host());
        ApiError::new(500, "", format!("Get {url:?}: {why}"))
    };
    let socket = LogSocket::take(&mut call)?;
    let onward = forward::onward(call.request, &path, &kubelet.host()).map_err(failed)?;
    let stream = kubelet.connect(tls).await;
    let passed = exchange(stream, onward, KUBELET_TIMEOUT).await.map_err(failed)?;
    let status = passed.response.status();
    if !status.is_success() {
        return Err(refusal(target, status, passed.response.into_body()).await);
    }
    let mut response = passed.answer().map_err(failed)?;
    if let Some(socket) = socket {
        return Ok(socket.send(response.into_body()));
    }
    let plain = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    Ok(response)
}

/// A kubelet's refusal in the form of this server's.
async fn refusal(target: &Target, status: StatusCode, body: Incoming) -> ApiError {
    let read = Limited::new(body, REFUSAL_BYTES_MAX).collect();
    let text = match tokio::time::timeout(CONNECT_TIMEOUT, read).await {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Ok(Err(_)) | Err(_) => String::new(),
    };
    match status {
        StatusCode::BAD_REQUEST => ApiError::bad_request(text),
        StatusCode::INTERNAL_SERVER_ERROR => ApiError::internal(text),
        StatusCode::NOT_FOUND => {
            let said = "the server could not find the requested resource";
            let name = &target.name;
            ApiError::new(404, "NotFound", format!("{said} ( pods/log {name})"))
                .about("", "pods/log", name)
        }
        other => {
            let code = other.as_u16();
            let said = format!(
                "the server responded with the status code {code} but did not return more information ( pods/log {})",
                target.name
            );
            ApiError::new(code, "", said).about("", "pods/log", &target.name)
        }
    }
}

/// Exec, attach and port-forward: connections that become streams.
async fn stream(server: &Shared, call: Call, target: &Target) -> Result<Response<Body>> {
    let pod = server.registry.live(target).await?.value();
    let path = stream_path(&call, target, &pod)?;
    let Some(node_name) = pod["spec"]["nodeName"].as_str().filter(|name| !name.is_empty()) else {
        let name = &target.name;
        return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
    };
    let kubelet = Kubelet::of(&node(server, node_name)?)?;
    if !forward::is_upgrade(call.request.headers()) {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    let failed = |why: String| ApiError::internal(format!("error dialing backend: {why}"));
    let onward = forward::onward(call.request, &path, &kubelet.host()).map_err(failed)?;
    let stream = kubelet.connect(&server.kubelets.tls).await;
    let passed = exchange(stream, onward, KUBELET_TIMEOUT).await.map_err(failed)?;
    passed.answer().map_err(ApiError::bad_request)
}

/// Path and query of the kubelet's own API for a pod's stream.
fn stream_path(call: &Call, target: &Target, pod: &Value) -> Result<String> {
    let place = format!("{}/{}", target.namespace, target.name);
    let mut query: Vec<String> = Vec::new();
    let path = match target.subresource.as_str() {
        kind @ ("exec" | "attach") => {
            // The kubelet reads the streams under its own names.
            for (ours, theirs) in
                [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
            {
                if call.query.flag(ours) {
                    query.push(format!("{theirs}=1"));
                }
            }
            if kind == "exec" {
                let words = call.query.all("command");
                query.extend(words.map(|word| format!("command={}", escape(word))));
            }
            format!("/{kind}/{place}/{}", container(call, target, pod)?)
        }
        "portforward" => {
            let ports: Vec<&str> = call.query.all("ports").flat_map(|p| p.split(',')).collect();
            let ports: Vec<&&str> = ports.iter().filter(|p| p.parse::<u16>().is_ok()).collect();
            if !ports.is_empty() {
                let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
                query.push(format!("port={}", ports.join(",")));
            }
            format!("/portForward/{place}")
        }
        _ => return Err(ApiError::no_such_resource()),
    };
    Ok(with_query(&path, Some(&query.join("&"))))
}

/// Percent-encodes a value of a query.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn with_query(path: &str, query: Option<&str>) -> String {
    match query.filter(|query| !query.is_empty()) {
        Some(query) => format!("{path}?{query}"),
        None => path.to_string(),
    }
}

/// Where a proxied request goes.
struct Place {
    address: String,
    port: u16,
    https: bool,
    kubelet: Option<Kubelet>,
}

impl Place {
    async fn connect(&self, kubelets: &Kubelets) -> Connected {
        match &self.kubelet {
            Some(kubelet) => kubelet.connect(&kubelets.tls).await,
            None => {
                let tls = self.https.then_some((&kubelets.pods, self.address.as_str()));
                connect(&self.address, self.port, tls).await
            }
        }
    }
}

async fn find(server: &Shared, target: &Target) -> Result<Place> {
    let kind = target.resource.singular.as_str();
    let text = &target.name;
    let named = place::named(text)
        .ok_or_else(|| ApiError::bad_request(format!("invalid {kind} request {text:?}")))?;
    let of = Target { name: named.name.into(), subresource: String::new(), ..target.clone() };
    let at = |address: &str, port: u16| Place {
        address: address.to_string(),
        port,
        https: named.https,
        kubelet: None,
    };
    server.registry.cache.fresh().await?;
    match target.resource.plural.as_str() {
        "pods" => {
            let pod = server.registry.live(&of).await?.value();
            let found = place::of_pod(&pod, named.port, named.https);
            found.map(|(address, port)| at(&address, port)).map_err(ApiError::bad_request)
        }
        "services" => {
            let (address, port) = behind_service(server, &of, named.port)?;
            Ok(at(&address, port))
        }
        _ => {
            let kubelet = Kubelet::of(&node(server, named.name)?)?;
            if named.port.is_empty() || named.port.parse() == Ok(kubelet.port) {
                let place = at(&kubelet.address, kubelet.port);
                return Ok(Place { https: true, kubelet: Some(kubelet), ..place });
            }
            let port = named.port.parse();
            let port = port.map_err(|_| ApiError::bad_request("invalid port"))?;
            if !place::is_allowed(&kubelet.address) {
                return Err(ApiError::bad_request("address not allowed"));
            }
            Ok(at(&kubelet.address, port))
        }
    }
}

/// One of the endpoints behind a service's port.
fn behind_service(server: &Shared, target: &Target, port: &str) -> Result<(String, u16)> {
    let (cache, name) = (&server.registry.cache, &target.name);
    let missing = || ApiError::not_found(&target.resource, name);
    let service = cache.get(target.prefix()?, &target.key()?).ok_or_else(missing)?.value();
    let port_name = place::port_name(&service, port).ok_or_else(|| {
        ApiError::unavailable(format!("no service port {port} found for service {name:?}"))
    })?;
    let start = format!("{SLICES}{}/", target.namespace);
    let (slices, _) = cache.list(SLICES, &start, None);
    let slices: Vec<Value> = slices
        .iter()
        .filter(|slice| slice.labels()["kubernetes.io/service-name"] == name.as_str())
        .map(|slice| slice.value())
        .collect();
    if slices.is_empty() {
        return Err(missing());
    }
    let found = place::behind(slices.iter(), port_name);
    let at = usize::try_from(base::rng::below(found.len().max(1) as u64)).unwrap_or(0);
    match found.get(at) {
        Some((address, _)) if !place::is_allowed(address) => {
            Err(ApiError::bad_request("address not allowed"))
        }
        Some((address, port)) => Ok(((*address).to_string(), *port)),
        None => Err(ApiError::unavailable(format!("no endpoints available for service {name:?}"))),
    }
}

/// The pod, service and node proxies.
async fn proxy(server: &Shared, call: Call, target: &Target) -> Result<Response<Body>> {
    let place = find(server, target).await?;
    let uri = call.request.uri().clone();
    let rest = &call.info.rest;
    let below = if rest.is_empty() { String::new() } else { format!("/{rest}") };
    let upgrades = forward::is_upgrade(call.request.headers());
    let reads = matches!(*call.request.method(), Method::GET | Method::HEAD);
    if below.is_empty() && reads && !upgrades && !uri.path().ends_with('/') {
        return Ok(to_root(&uri));
    }
    let below = if below.is_empty() { "/".to_string() } else { below };
    let prepend = uri.path().strip_suffix(&below).unwrap_or(uri.path()).to_string();
    let asked = call.request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let asked = asked.or_else(|| uri.authority().map(|authority| authority.as_str()));
    let rewriter = Rewriter {
        backend: format!("{}:{}", place.address, place.port),
        asked: asked.unwrap_or("").to_string(),
        prepend,
    };
    let path = with_query(&below, uri.query());
    // The backend sees the host that the client asked.
    let mut onward =
        forward::onward(call.request, &path, &rewriter.asked).map_err(ApiError::bad_request)?;
    if let Ok(value) = HeaderValue::from_str(uri.path()) {
        onward.request.headers_mut().insert("x-forwarded-uri", value);
    }
    let failed = |why: String| match upgrades {
        true => ApiError::internal(format!("error dialing backend: {why}")),
        false => ApiError::unavailable(format!("error trying to reach service: {why}")),
    };
    let patience = if place.kubelet.is_some() { KUBELET_TIMEOUT } else { POD_TIMEOUT };
    let stream = place.connect(&server.kubelets).await;
    let passed = exchange(stream, onward, patience).await.map_err(failed)?;
    let mut response = passed.answer().map_err(failed)?;
    forward::remove_cors(response.headers_mut());
    Ok(through(response, rewriter).await)
}

/// 301 to the path with a slash at its end, below which relative links lead somewhere.
fn to_root(uri: &http::Uri) -> Response<Body> {
    let mut response = answer::bytes(StatusCode::MOVED_PERMANENTLY, "", Bytes::new());
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    if let Ok(place) = HeaderValue::from_str(&with_query(&format!("{}/", uri.path()), uri.query()))
    {
        headers.insert(header::LOCATION, place);
    }
    response
}

/// An answer with redirects and links that lead through the proxy again.
async fn through(mut response: Response<Body>, rewriter: Rewriter) -> Response<Body> {
    let headers = response.headers_mut();
    if let Some(location) = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()) {
        if let Ok(value) = HeaderValue::from_str(&rewriter.url(location)) {
            headers.insert(header::LOCATION, value);
        }
        return response;
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media = text(header::CONTENT_TYPE).split(';').next().unwrap_or("").trim().to_string();
    let gzip = match text(header::CONTENT_ENCODING) {
        "" => false,
        "gzip" => true,
        // What cannot be read is not changed.
        _ => return response,
    };
    if media != "text/html" {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let Body::Stream(mut stream) = body else { return Response::from_parts(head, body) };
    let deadline = tokio::time::Instant::now() + HTML_TIMEOUT;
    let mut read: Vec<u8> = Vec::new();
    loop {
        match tokio::time::timeout_at(deadline, stream.next()).await {
            Ok(Some(Ok(chunk))) => read.extend_from_slice(&chunk),
            Ok(None) => break,
            // Its failure is passed on with what came before it.
            Ok(Some(Err(err))) => {
                let parts = futures::stream::iter([Ok(Bytes::from(read)), Err(err)]);
                return Response::from_parts(head, Body::Stream(Box::pin(parts)));
            }
            Err(_) => {
                let first = futures::stream::iter([Ok(Bytes::from(read))]);
                return Response::from_parts(head, Body::Stream(Box::pin(first.chain(stream))));
            }
        }
        if read.len() > HTML_BYTES_MAX {
            let first = futures::stream::iter([Ok(Bytes::from(read))]);
            return Response::from_parts(head, Body::Stream(Box::pin(first.chain(stream))));
        }
    }
    let new = rewritten(&read, gzip, &rewriter).unwrap_or(read);
    if head.headers.contains_key(header::CONTENT_LENGTH) && !new.is_empty() {
        head.headers.insert(header::CONTENT_LENGTH, new.len().into());
    }
    Response::from_parts(head, Body::Full(new.into()))
}

/// None where the document is not text, or unpacks to more than is read.
fn rewritten(read: &[u8], gzip: bool, rewriter: &Rewriter) -> Option<Vec<u8>> {
    if !gzip {
        return std::str::from_utf8(read).ok().map(|text| rewriter.html(text).into_bytes());
    }
    let mut text = String::new();
    let bound = HTML_BYTES_MAX as u64;
    GzDecoder::new(read).take(bound + 1).read_to_string(&mut text).ok()?;
    if text.len() as u64 > bound {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(rewriter.html(&text).as_bytes()).ok()?;
    encoder.finish().ok()
}
