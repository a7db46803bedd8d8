//! A site that others run, over TLS, and requests that prove who they are by a token alone.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use api::authn::Peer;
use api::serve::{Shared, chain};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use client::Body;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub enum Reply {
    Json(Value),
    Raw(u16, Bytes),
    /// Nothing, ever.
    Silence,
}

/// What a site was asked.
#[derive(Clone)]
pub struct Asked {
    pub path: String,
    pub authorization: String,
    pub body: Value,
}

pub struct Site {
    pub address: SocketAddr,
    pub ca_pem: String,
    pub asked: Arc<Mutex<Vec<Asked>>>,
}

type Answer = dyn Fn(&Asked) -> Reply + Send + Sync;

impl Site {
    pub async fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let leaf = pki::Leaf {
            common_name: "site".into(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            ..pki::Leaf::default()
        };
        let (acceptor, ca_pem) = testing::tls(&leaf);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let site = Self { address: listener.local_addr().unwrap(), ca_pem, asked: Arc::default() };
        let answer: Arc<Answer> = Arc::new(answer);
        let asked = site.asked.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, asked, answer) = (acceptor.clone(), asked.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let service =
                        service_fn(move |request| respond(request, asked.clone(), answer.clone()));
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        site
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    pub fn last(&self) -> Asked {
        self.asked.lock().unwrap().last().cloned().unwrap()
    }

    /// Writes a kubeconfig that leads to `path` of it.
    pub fn kubeconfig(&self, dir: &Path, path: &str) -> std::path::PathBuf {
        let file = dir.join(format!("kubeconfig-{}", self.address.port()));
        let ca = STANDARD.encode(&self.ca_pem);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- name: c\n  context: {{cluster: s, user: u}}\nclusters:\n- name: s\n  cluster: {{server: '{}{path}', certificate-authority-data: {ca}}}\nusers:\n- name: u\n  user: {{token: hook-secret}}\n",
            self.url()
        );
        std::fs::write(&file, text).unwrap();
        file
    }
}

async fn respond(
    request: Request<Incoming>,
    log: Arc<Mutex<Vec<Asked>>>,
    answer: Arc<Answer>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let header = parts.headers.get("authorization");
    let asked = Asked {
        path: parts.uri.path().to_owned(),
        authorization: header.map_or("", |value| value.to_str().unwrap()).to_owned(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    log.lock().unwrap().push(asked.clone());
    let (status, bytes) = match answer(&asked) {
        Reply::Json(value) => (200, Bytes::from(value.to_string())),
        Reply::Raw(status, bytes) => (status, bytes),
        Reply::Silence => std::future::pending().await,
    };
    Ok(Response::builder().status(status).body(Full::new(bytes)).unwrap())
}

/// A request that is nobody's but for its headers.
pub async fn send(
    server: &Shared,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> (u16, Value) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let mut request = request.header("content-type", "application/json").body(body).unwrap();
    request.extensions_mut().insert(Peer::default());
    let response = chain::handle(server, request).await;
    let status = response.status().as_u16();
    let Body::Full(bytes) = response.into_body() else { return (status, Value::Null) };
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

pub async fn with_token(
    server: &Shared,
    token: &str,
    method: Method,
    path: &str,
    body: &Value,
) -> (u16, Value) {
    let header = format!("Bearer {token}");
    send(server, method, path, &[("authorization", &header)], body).await
}

/// The status and the `userInfo` of a SelfSubjectReview.
pub async fn who_is(server: &Shared, token: &str) -> (u16, Value) {
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let (status, answer) = with_token(server, token, Method::POST, path, &body).await;
    (status, answer["status"]["userInfo"].clone())
}
