//! An extension API server, as somebody would run one in a cluster: HTTPS on a port of its
//! own, its group, discovery, OpenAPI, and objects of its own in memory.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub const GROUP: &str = "wardle.example.com";
pub const VERSION: &str = "v1alpha1";

/// How the server behaves now.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mood {
    Well,
    /// Answers everything with 500.
    Broken,
    /// Takes requests and never answers.
    Stalling,
}

struct State {
    mood: Mutex<Mood>,
    /// Path and headers of what was asked, oldest first.
    asked: Mutex<Vec<(String, HeaderMap)>>,
    objects: Mutex<Vec<Value>>,
    changes: tokio::sync::broadcast::Sender<Value>,
    connections: AtomicU64,
    certified: AtomicU64,
    /// Whether it knows aggregated discovery and OpenAPI v3.
    modern: bool,
}

pub struct Extension {
    pub address: SocketAddr,
    /// PEM of its authority, in base64.
    pub bundle: String,
    state: Arc<State>,
}

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

impl Extension {
    /// Starts one whose certificate is for the service `name` in the namespace `default`; it
    /// asks for certificates of `client_ca`.
    pub async fn start(name: &str, client_ca: &str, modern: bool) -> Self {
        let authority = pki::authority::Authority::create("extensions").unwrap();
        let leaf = pki::authority::Leaf {
            common_name: name.into(),
            dns_names: vec![format!("{name}.default.svc")],
            server: true,
            ..Default::default()
        };
        let issued = authority.issue(&leaf).unwrap();
        let (cert, key) = (issued.cert_pem.as_bytes(), issued.key_pem.as_bytes());
        let mut tls = pki::tls::server_config(cert, key, Some(client_ca.as_bytes())).unwrap();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            mood: Mutex::new(Mood::Well),
            asked: Mutex::default(),
            objects: Mutex::default(),
            changes: tokio::sync::broadcast::channel(64).0,
            connections: AtomicU64::new(0),
            certified: AtomicU64::new(0),
            modern,
        });
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    state.connections.fetch_add(1, Ordering::SeqCst);
                    if stream.get_ref().1.peer_certificates().is_some() {
                        state.certified.fetch_add(1, Ordering::SeqCst);
                    }
                    let service = service_fn(move |request| {
                        let state = state.clone();
                        async move { Ok::<_, std::convert::Infallible>(answer(request, state).await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let serving = connection.serve_connection(TokioIo::new(stream), service);
                    let _ = serving.with_upgrades().await;
                });
            }
        });
        Self { address, bundle: STANDARD.encode(&authority.cert_pem), state }
    }

    pub fn set(&self, mood: Mood) {
        *self.state.mood.lock().unwrap() = mood;
    }

    /// Connections that came with a certificate, and all of them.
    pub fn connections(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        (count(&self.state.certified), count(&self.state.connections))
    }

    /// The headers of the last request for a path.
    pub fn last(&self, path: &str) -> HeaderMap {
        let asked = self.state.asked.lock().unwrap();
        let found = asked.iter().rev().find(|(asked, _)| asked == path);
        found.map(|(_, headers)| headers.clone()).unwrap_or_default()
    }

    /// The service and its endpoints as the cluster would know them, and the API service.
    pub fn objects(&self, service: &str) -> [Value; 3] {
        let ports = json!([{"name": "https", "port": 7443, "protocol": "TCP"}]);
        let slice_ports =
            json!([{"name": "https", "port": self.address.port(), "protocol": "TCP"}]);
        [
            json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": service},
                "spec": {"ports": ports}}),
            json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
                "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
                "addressType": "IPv4", "ports": slice_ports,
                "endpoints": [{"addresses": [self.address.ip().to_string()],
                    "conditions": {"ready": true}}]}),
            json!({"kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
                "metadata": {"name": format!("{VERSION}.{GROUP}")},
                "spec": {"group": GROUP, "version": VERSION, "groupPriorityMinimum": 2000,
                    "versionPriority": 200, "caBundle": self.bundle,
                    "service": {"namespace": "default", "name": service, "port": 7443}}}),
        ]
    }
}

fn text(status: StatusCode, kind: &str, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).header("content-type", kind).body(body).unwrap()
}

fn json_answer(status: StatusCode, body: &Value) -> Answer {
    text(status, "application/json", body.to_string())
}

fn resources() -> Value {
    json!({"kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [{"name": "flunders", "singularName": "flunder", "namespaced": true,
            "kind": "Flunder", "verbs": ["create", "get", "list", "watch"]}]})
}

fn aggregated() -> Value {
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": [{"metadata": {"name": GROUP}, "versions": [{
            "version": VERSION, "freshness": "Current", "resources": [{
                "resource": "flunders", "scope": "Namespaced", "singularResource": "flunder",
                "responseKind": {"group": GROUP, "version": VERSION, "kind": "Flunder"},
                "verbs": ["create", "get", "list", "watch"], "shortNames": ["fl"]}]}]}]})
}

fn swagger() -> Value {
    let path = format!("/apis/{GROUP}/{VERSION}/flunders");
    json!({"swagger": "2.0", "info": {"title": "wardle", "version": "v1"}, "paths": {
            path: {"get": {"produces": ["application/json"], "responses": {"200": {"description": "OK",
                "schema": {"$ref": "#/definitions/com.example.wardle.Flunder"}}}}},
            "/apis/other.example.com/v1/x": {"get": {}}},
        "definitions": {"com.example.wardle.Flunder": {"type": "object"}, "unused": {}}})
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Answer {
    let path = request.uri().path().to_string();
    state.asked.lock().unwrap().push((path.clone(), request.headers().clone()));
    let mood = *state.mood.lock().unwrap();
    match mood {
        Mood::Well => {}
        Mood::Broken => return text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "broken"),
        Mood::Stalling => std::future::pending().await,
    }
    let root = format!("/apis/{GROUP}/{VERSION}");
    let flunders = format!("{root}/namespaces/default/flunders");
    match path.as_str() {
        "/apis" if state.modern => {
            let kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
            text(StatusCode::OK, kind, aggregated().to_string())
        }
        path if path == root => json_answer(StatusCode::OK, &resources()),
        "/openapi/v2" => json_answer(StatusCode::OK, &swagger()),
        "/openapi/v3" if state.modern => {
            let url = format!("/openapi/v3{root}?hash=ABC");
            let key = root.trim_start_matches('/').to_string();
            json_answer(StatusCode::OK, &json!({"paths": {key: {"serverRelativeURL": url}}}))
        }
        path if state.modern && path == format!("/openapi/v3{root}") => {
            json_answer(StatusCode::OK, &json!({"openapi": "3.0.0", "info": {"title": "wardle"}}))
        }
        path if path == flunders => objects(request, &state).await,
        path if path == format!("{flunders}/echo/stream") => upgraded(request),
        path if path == format!("{flunders}/upload/body") => {
            // Answers with the first piece before there is a second.
            let mut body = request.into_body();
            let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
            text(StatusCode::OK, "text/plain", first)
        }
        _ => text(StatusCode::NOT_FOUND, "text/plain", "nothing here"),
    }
}

async fn objects(request: Request<Incoming>, state: &Arc<State>) -> Answer {
    let watch = request.uri().query().is_some_and(|query| query.contains("watch"));
    if *request.method() == Method::POST {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let object: Value = serde_json::from_slice(&body).unwrap();
        state.objects.lock().unwrap().push(object.clone());
        let _ = state.changes.send(json!({"type": "ADDED", "object": object}));
        return json_answer(StatusCode::CREATED, &object);
    }
    if !watch {
        let items = state.objects.lock().unwrap().clone();
        let list = json!({"kind": "FlunderList", "apiVersion": format!("{GROUP}/{VERSION}"),
            "metadata": {}, "items": items});
        return json_answer(StatusCode::OK, &list);
    }
    let changes = state.changes.subscribe();
    let lines = futures::stream::unfold(changes, |mut changes| async move {
        let line = format!("{}\n", changes.recv().await.ok()?);
        Some((Ok(Frame::data(Bytes::from(line))), changes))
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(lines.boxed())))
}

/// Says what it hears, in a protocol of its own.
fn upgraded(mut request: Request<Incoming>) -> Answer {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut heard = [0u8; 64];
        while let Ok(count @ 1..) = stream.read(&mut heard).await {
            let mut said = b"heard ".to_vec();
            said.extend_from_slice(&heard[..count]);
            if stream.write_all(&said).await.is_err() {
                return;
            }
        }
    });
    let mut answer = text(StatusCode::SWITCHING_PROTOCOLS, "text/plain", "");
    answer.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    answer.headers_mut().insert("upgrade", "echo".parse().unwrap());
    answer
}

/// How long something may take to become true.
pub const PATIENCE: Duration = Duration::from_secs(20);
