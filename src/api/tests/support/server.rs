//! An API server on a datastore of its own, for suites that ask it in this process.

use std::path::Path;
use std::sync::Arc;

use api::authn::{MASTERS, Peer, User};
use api::serve::{Shared, chain};
use bytes::{Bytes, BytesMut};
use client::Body;
use futures::StreamExt;
use http::{Method, Request};
use serde_json::Value;

/// Starts a server on the datastore in `dir`, without some of the admission plugins and
/// with a configuration that `change` was told of. Its authorities for clients
/// (`client-ca`) and for itself as a front proxy (`proxy-ca`) lie there, too.
pub async fn server_with(
    dir: &Path,
    disabled: &[&str],
    change: impl FnOnce(&mut api::Config),
) -> Shared {
    let client_ca = pki::files::authority(dir, "client-ca", "clients").unwrap();
    let proxy_ca = pki::files::authority(dir, "proxy-ca", "proxies").unwrap();
    let proxy = pki::authority::Leaf::client("system:auth-proxy", "");
    let mut config = testing::config(dir);
    config.flags.disabled_admission = disabled.iter().map(ToString::to_string).collect();
    config.kubelet_tls = pki::tls::client_config(None, None, true).unwrap();
    config.proxy_client = Some(proxy_ca.issue(&proxy).unwrap());
    config.authentication.client_ca_pem = client_ca.cert_pem.clone();
    change(&mut config);
    testing::serve(config).await
}

/// What a request was answered with.
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        let mut decoder = serde_json::Deserializer::from_slice(&self.body);
        decoder.disable_recursion_limit();
        serde::Deserialize::deserialize(&mut decoder).unwrap_or_default()
    }

    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or("").to_string()
    }

    pub fn warnings(&self) -> Vec<String> {
        let all = self.headers.get_all("warning").iter();
        all.map(|value| value.to_str().unwrap().to_string()).collect()
    }
}

pub fn user(name: &str) -> User {
    match name {
        "admin" => User::new("admin", &[MASTERS]),
        node if node.starts_with("system:node:") => User::new(node, &["system:nodes"]),
        other => User::new(other, &[]),
    }
}

/// Sends a request and returns the answer as it comes.
pub async fn open(
    server: &Shared,
    who: &str,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> http::Response<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(body.into()).unwrap();
    let peer = Peer { in_process: Some(Arc::new(user(who))), ..Peer::default() };
    request.extensions_mut().insert(peer);
    chain::handle(server, request).await
}

/// Sends a request and reads the whole answer.
pub async fn send(
    server: &Shared,
    who: &str,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let response = open(server, who, method, path, headers, body).await;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = match response.into_body() {
        Body::Full(bytes) => bytes,
        Body::Stream(mut stream) => {
            let mut out = BytesMut::new();
            while let Some(chunk) = stream.next().await {
                out.extend_from_slice(&chunk.unwrap());
            }
            out.freeze()
        }
    };
    Answer { status, headers, body }
}

/// A request of the administrator with a JSON body; null is none.
pub async fn ask(server: &Shared, method: Method, path: &str, body: Value) -> Answer {
    let kind =
        if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let headers = [("content-type", kind), ("user-agent", "transcript/1")];
    send(server, "admin", method, path, &headers, body).await
}
