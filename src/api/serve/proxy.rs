//! Requests that go on to a node's kubelet: logs, exec, attach, port-forward, and the
//! node, pod and service proxies. The kubelet's streams are passed byte for byte.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::Body;
use futures::StreamExt;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyDataStream, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::chain::Call;
use super::{Shared, answer};
use crate::error::{ApiError, Result};
use crate::metrics::route::LongRunning;
use crate::registry::Target;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a kubelet may take to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const KUBELET_PORT: u16 = 10250;
const NODES: &str = "/registry/minions/";

/// How kubelets are reached: their certificate authority and our certificate.
pub struct Kubelets {
    tls: Arc<rustls::ClientConfig>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Kubelets {
    pub fn new(tls: rustls::ClientConfig) -> Self {
        let mut tls = tls;
        // Upgrades need HTTP/1.1.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { tls: Arc::new(tls) }
    }

    /// A connection to a node's kubelet; the node's name is what its certificate says.
    async fn connect(&self, node: &Value) -> Result<(Box<dyn Stream>, String)> {
        let name = node["metadata"]["name"].as_str().unwrap_or("").to_string();
        let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
        let address = ["InternalIP", "Hostname", "ExternalIP"].iter().find_map(|kind| {
            let found = addresses.clone().find(|address| address["type"] == *kind)?;
            found["address"].as_str().map(str::to_string)
        });
        let address = address.ok_or_else(|| {
            ApiError::internal(format!("no preferred addresses found for node {name}"))
        })?;
        let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)
            .unwrap_or(KUBELET_PORT);
        let failed = |why: String| {
            ApiError::internal(format!("error dialing backend: dial tcp {address}:{port}: {why}"))
        };
        let connect = async {
            let tcp = TcpStream::connect((address.as_str(), port)).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from(name.clone())
                .map_err(|err| std::io::Error::other(err.to_string()))?;
            TlsConnector::from(self.tls.clone()).connect(name, tcp).await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => Ok((Box::new(stream), format!("{name}:{port}"))),
            Ok(Err(err)) => Err(failed(err.to_string())),
            Err(_) => Err(failed("i/o timeout".into())),
        }
    }
}

pub async fn serve(server: &Shared, call: Call, target: Target) -> Result<Response<Body>> {
    super::connect::admit(server, &call, &target).await?;
    match (target.resource.plural.as_str(), target.subresource.as_str()) {
        ("pods", "proxy") | ("services", "proxy") => to_address(server, call, &target).await,
        ("nodes", "proxy") => {
            let (name, _) = split_port(&target.name);
            let node = node(server, &name)?;
            let path = with_query(&format!("/{}", call.info.rest), call.request.uri().query());
            to_kubelet(server, call, &node, &path).await
        }
        ("pods", _) => {
            let pod = server.registry.live(&target).await?.value();
            let path = kubelet_path(&call, &target, &pod)?;
            let node_name = pod["spec"]["nodeName"].as_str().unwrap_or("");
            if node_name.is_empty() {
                // Upstream has nothing to say of a log, and refuses the rest.
                if target.subresource == "log" {
                    let mut nothing = answer::bytes(StatusCode::NO_CONTENT, "", Bytes::new());
                    nothing.headers_mut().remove(http::header::CONTENT_TYPE);
                    return Ok(nothing);
                }
                return Err(ApiError::bad_request(format!(
                    "pod {} does not have a host assigned",
                    target.name
                )));
            }
            let node = node(server, node_name)?;
            to_kubelet(server, call, &node, &path).await
        }
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

/// The container a request is about: the one named, the annotated default, or the only
/// one.
fn container(call: &Call, target: &Target, pod: &Value) -> Result<String> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.filter_map(|c| c["name"].as_str().map(str::to_string)).collect()
    };
    let (own, init) = (names("containers"), names("initContainers"));
    let ephemeral = names("ephemeralContainers");
    if let Some(wanted) = call.query.set("container") {
        let known = own.iter().chain(&init).chain(&ephemeral).any(|name| name == wanted);
        return if known {
            Ok(wanted.to_string())
        } else {
            Err(ApiError::bad_request(format!(
                "container {wanted} is not valid for pod {}",
                target.name
            )))
        };
    }
    let default = &pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"];
    if let Some(default) = default.as_str().filter(|d| own.iter().any(|name| name == d)) {
        return Ok(default.to_string());
    }
    match own.as_slice() {
        [only] => Ok(only.clone()),
        many => {
            let mut text = format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                target.name,
                many.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::bad_request(text))
        }
    }
}

/// Path and query of the kubelet's own API for a pod's subresource.
fn kubelet_path(call: &Call, target: &Target, pod: &Value) -> Result<String> {
    let place = format!("{}/{}", target.namespace, target.name);
    let query = call.request.uri().query().unwrap_or("");
    // `container` is in the kubelet's path.
    let rest: Vec<&str> =
        query.split('&').filter(|p| !p.is_empty() && !p.starts_with("container=")).collect();
    let path = match target.subresource.as_str() {
        "log" => format!("/containerLogs/{place}/{}", container(call, target, pod)?),
        "exec" => format!("/exec/{place}/{}", container(call, target, pod)?),
        "attach" => format!("/attach/{place}/{}", container(call, target, pod)?),
        "portforward" => format!("/portForward/{place}"),
        _ => return Err(ApiError::no_such_resource()),
    };
    // The kubelet reads the streams under its own names.
    let renamed: Vec<String> = rest
        .iter()
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let on = !matches!(value, "false" | "0");
            match (target.subresource.as_str(), name) {
                ("exec" | "attach", "stdin") => format!("input={}", u8::from(on)),
                ("exec" | "attach", "stdout") => format!("output={}", u8::from(on)),
                ("exec" | "attach", "stderr") => format!("error={}", u8::from(on)),
                ("exec" | "attach", "tty") => format!("tty={}", u8::from(on)),
                _ => (*pair).to_string(),
            }
        })
        .collect();
    Ok(with_query(&path, Some(&renamed.join("&"))))
}

fn with_query(path: &str, query: Option<&str>) -> String {
    match query.filter(|query| !query.is_empty()) {
        Some(query) => format!("{path}?{query}"),
        None => path.to_string(),
    }
}

async fn to_kubelet(
    server: &Shared,
    call: Call,
    node: &Value,
    path: &str,
) -> Result<Response<Body>> {
    let (stream, host) = server.kubelets.connect(node).await?;
    forward(call, stream, &host, path).await
}

/// `[scheme:]name[:port]`
fn split_port(text: &str) -> (String, String) {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [name] => ((*name).to_string(), String::new()),
        [name, port] => ((*name).to_string(), (*port).to_string()),
        [_, name, port] => ((*name).to_string(), (*port).to_string()),
        _ => (text.to_string(), String::new()),
    }
}

/// The pod and service proxies: plain HTTP to the pod's address.
async fn to_address(server: &Shared, call: Call, target: &Target) -> Result<Response<Body>> {
    let (name, port) = split_port(&target.name);
    let target = Target { name, ..target.clone() };
    server.registry.cache.fresh().await?;
    let address = if target.resource.plural == "pods" {
        let pod = server.registry.live(&target).await?.value();
        let ip = pod["status"]["podIP"].as_str().unwrap_or("").to_string();
        let first = pod["spec"]["containers"][0]["ports"][0]["containerPort"].as_u64();
        let port = if port.is_empty() { first.unwrap_or(80).to_string() } else { port };
        (!ip.is_empty()).then(|| format!("{ip}:{port}"))
    } else {
        let service = server.registry.live(&target).await?.value();
        service_endpoint(server, &target, &service, &port)
    };
    let address = address.ok_or_else(|| {
        ApiError::unavailable(format!("no endpoints available for service {:?}", target.name))
    })?;
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await;
    let stream: Box<dyn Stream> = match stream {
        Ok(Ok(stream)) => Box::new(stream),
        Ok(Err(err)) => {
            return Err(ApiError::unavailable(format!(
                "error trying to reach service: dial tcp {address}: {err}"
            )));
        }
        Err(_) => {
            return Err(ApiError::unavailable(format!(
                "error trying to reach service: dial tcp {address}: i/o timeout"
            )));
        }
    };
    let path = with_query(&format!("/{}", call.info.rest), call.request.uri().query());
    forward(call, stream, &address, &path).await
}

/// A ready endpoint of a service's port (by name or number; the only one if empty).
fn service_endpoint(
    server: &Shared,
    target: &Target,
    service: &Value,
    port: &str,
) -> Option<String> {
    const SLICES: &str = "/registry/endpointslices/";
    let ports = service["spec"]["ports"].as_array()?;
    let wanted = if port.is_empty() {
        ports.first()?
    } else {
        ports.iter().find(|p| p["name"] == port || p["port"].as_u64() == port.parse().ok())?
    };
    let port_name = wanted["name"].as_str().unwrap_or("");
    let start = format!("{SLICES}{}/", target.namespace);
    let (slices, _) = server.registry.cache.list(SLICES, &start, None);
    let mut found = Vec::new();
    for slice in slices.iter().map(|slice| slice.value()) {
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] != target.name.as_str() {
            continue;
        }
        let port = slice["ports"]
            .as_array()
            .and_then(|ports| ports.iter().find(|p| p["name"].as_str().unwrap_or("") == port_name))
            .and_then(|port| port["port"].as_u64());
        let Some(port) = port else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] != false
                && let Some(address) = endpoint["addresses"][0].as_str()
            {
                found.push(format!("{address}:{port}"));
            }
        }
    }
    let at = base::rng::below(found.len() as u64) as usize;
    found.into_iter().nth(at)
}

/// Headers that belong to one connection, not to the message.
const HOP_BY_HOP: [&str; 8] = [
    "host",
    "authorization",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "keep-alive",
    "content-length",
];

/// Sends the request on over `stream` and answers with what comes back; an upgrade
/// joins the two connections.
async fn forward(
    mut call: Call,
    stream: Box<dyn Stream>,
    host: &str,
    path: &str,
) -> Result<Response<Body>> {
    let failed = |why: String| ApiError::internal(format!("error dialing backend: {why}"));
    let on_upgrade = call.request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|err| failed(err.to_string()))?;
    tokio::spawn(async move {
        if let Err(err) = connection.with_upgrades().await {
            debug!(error = %err, "proxied connection ended");
        }
    });
    let (parts, body) = call.request.into_parts();
    let held = parts.extensions.get::<Arc<LongRunning>>().cloned();
    let upgrades = parts.headers.contains_key(http::header::UPGRADE);
    let uri: Uri = path.parse().map_err(|_| ApiError::bad_request("the path cannot be proxied"))?;
    let mut request = Request::builder().method(parts.method).uri(uri);
    if let Some(headers) = request.headers_mut() {
        for (name, value) in &parts.headers {
            let kept = upgrades || (name != "connection" && name != "upgrade");
            let impersonates = name.as_str().starts_with("impersonate-");
            if kept && !impersonates && !HOP_BY_HOP.contains(&name.as_str()) {
                headers.append(name.clone(), value.clone());
            }
        }
        if let Ok(host) = http::HeaderValue::from_str(host) {
            headers.insert(http::header::HOST, host);
        }
    }
    let request = request.body(Full::new(body)).map_err(|err| failed(err.to_string()))?;
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(err)) => return Err(failed(err.to_string())),
        Err(_) => return Err(ApiError::timeout("the backend did not answer")),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(on_upgrade) = on_upgrade else {
            return Err(ApiError::bad_request("the connection cannot be upgraded"));
        };
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            // Counted as under way until it ends.
            let _held = held;
            let (Ok(client), Ok(backend)) = tokio::join!(on_upgrade, backend) else { return };
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            // Either side may hang up at any time; both directions end then.
            if let Err(err) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
                debug!(error = %err, "proxied stream ended");
            }
        });
        let (parts, _) = response.into_parts();
        return Ok(Response::from_parts(parts, Body::Full(Bytes::new())));
    }
    let (mut parts, body) = response.into_parts();
    for name in ["connection", "transfer-encoding", "keep-alive"] {
        parts.headers.remove(name);
    }
    let stream =
        BodyDataStream::new(body).map(|chunk| chunk.map_err(std::io::Error::other)).boxed();
    // The connection lives as long as its sender or its stream.
    let stream = stream.map(move |chunk| {
        let _ = &sender;
        chunk
    });
    Ok(Response::from_parts(parts, Body::Stream(Box::pin(stream))))
}
