//! LIST of 5,000 ConfigMaps of about 1.5 kB, as JSON and as protobuf, and a GET of one:
//! from the request in this process to the last byte of the answer.
//!
//! Prints the median; asserts nothing. `cargo bench -p api --bench lists`.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::authn::{MASTERS, Peer, User};
use api::serve::{Shared, chain};
use bytes::Bytes;
use client::Body;
use futures::StreamExt;
use http::Request;
use serde_json::json;

const OBJECTS: usize = 5_000;
const ROUNDS: usize = 21;

async fn ask(server: &Shared, method: &str, path: &str, accept: &str, body: Bytes) -> usize {
    let mut request =
        Request::builder().method(method).uri(path).header("accept", accept).body(body).unwrap();
    let peer =
        Peer { in_process: Some(Arc::new(User::new("admin", &[MASTERS]))), ..Peer::default() };
    request.extensions_mut().insert(peer);
    let response = chain::handle(server, request).await;
    assert!(response.status().is_success(), "{}", response.status());
    match response.into_body() {
        Body::Full(bytes) => bytes.len(),
        Body::Stream(stream) => {
            stream.map(|chunk| chunk.unwrap().len()).fold(0, |a, b| async move { a + b }).await
        }
    }
}

#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let path = "/api/v1/namespaces/default/configmaps";
    let writers = (0..16).map(|writer| {
        let server = server.clone();
        async move {
            for at in (writer..OBJECTS).step_by(16) {
                let object = json!({
                    "metadata": {"name": format!("c{at:05}"), "labels": {"app": "bench", "n": at.to_string()}},
                    "data": {"key": "v".repeat(1_000), "other": "line\nline\n"},
                });
                let body = Bytes::from(object.to_string());
                ask(&server, "POST", path, "application/json", body).await;
            }
        }
    });
    futures::future::join_all(writers).await;
    for accept in ["application/json", "application/vnd.kubernetes.protobuf"] {
        for (what, path, rounds) in
            [("LIST", path.to_string(), ROUNDS), ("GET", format!("{path}/c00001"), 2_001)]
        {
            let mut took: Vec<Duration> = Vec::with_capacity(rounds);
            let mut bytes = 0;
            for _ in 0..rounds {
                let begun = Instant::now();
                bytes = ask(&server, "GET", &path, accept, Bytes::new()).await;
                took.push(begun.elapsed());
            }
            took.sort();
            println!("{what} {accept}: {bytes} bytes, median {:?}", took[rounds / 2]);
        }
    }
}
