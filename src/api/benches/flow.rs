//! What a seat costs when there is one: flow control alone, and a GET through the whole
//! chain for somebody who is limited and for somebody who is not.
//!
//! Prints nanoseconds; asserts nothing. `cargo bench -p api --bench flow`.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::authn::{MASTERS, Peer, User};
use api::flow::{Asking, Flow, Limits, Stored};
use api::serve::request::{Query, RequestInfo};
use api::serve::{Shared, chain};
use bytes::Bytes;
use http::{Method, Request};
use serde_json::{Value, json};

const ROUNDS: u32 = 200_000;
const PATH: &str = "/api/v1/namespaces/default/configmaps/a";

async fn ask(server: &Shared, user: &Arc<User>, method: Method, path: &str, body: Bytes) {
    let mut request = Request::builder().method(method).uri(path).body(body).unwrap();
    let peer = Peer { in_process: Some(user.clone()), ..Peer::default() };
    request.extensions_mut().insert(peer);
    let response = chain::handle(server, request).await;
    assert!(response.status().is_success(), "{}", response.status());
}

fn say(what: &str, took: Duration, rounds: u32) {
    println!("{what}: {:.0} ns", took.as_secs_f64() * 1e9 / f64::from(rounds));
}

async fn seats(what: &str, flow: &Arc<Flow>, user: &User) {
    let query = Query::default();
    let info = RequestInfo::parse(&Method::GET, PATH, &query);
    let asking = Asking { info: &info, query: &query, user, time: Duration::from_secs(60) };
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        drop(flow.enter(&asking, Stored::default).await.unwrap());
    }
    say(what, begun.elapsed(), ROUNDS);
}

async fn gets(what: &str, server: &Shared, user: &Arc<User>) {
    let rounds = ROUNDS / 4;
    let begun = Instant::now();
    for _ in 0..rounds {
        ask(server, user, Method::GET, PATH, Bytes::new()).await;
    }
    say(what, begun.elapsed(), rounds);
}

#[tokio::main]
async fn main() {
    let bootstrap: Vec<Value> =
        serde_json::from_str(include_str!("../../../embedded/bootstrap-flowcontrol.json")).unwrap();
    let of = |kind: &str| -> Vec<Value> {
        bootstrap.iter().filter(|object| object["kind"] == kind).cloned().collect()
    };
    let flow = Flow::new(Limits::default());
    flow.configure(&of("FlowSchema"), &of("PriorityLevelConfiguration"));
    let admin = Arc::new(User::new("admin", &[MASTERS]));
    let node = Arc::new(User::new("system:node:n", &["system:nodes"]));
    let bob = Arc::new(User::new("bob", &[]));
    seats("seat, exempt", &flow, &admin).await;
    seats("seat, a node", &flow, &node).await;
    seats("seat, the last schema", &flow, &bob).await;
    let plain = Flow::new(Limits { fair: false, ..Limits::default() });
    seats("seat, without fairness", &plain, &bob).await;

    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let map = json!({"metadata": {"name": "a"}, "data": {"k": "v".repeat(1_000)}}).to_string();
    let maps = "/api/v1/namespaces/default/configmaps";
    ask(&server, &admin, Method::POST, maps, map.into()).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": "reader"},
        "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"]}]});
    let roles = format!("{rbac}/clusterroles");
    ask(&server, &admin, Method::POST, &roles, role.to_string().into()).await;
    let binding = json!({"metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}]});
    let bindings = format!("{rbac}/clusterrolebindings");
    ask(&server, &admin, Method::POST, &bindings, binding.to_string().into()).await;
    gets("GET, exempt", &server, &admin).await;
    gets("GET, limited", &server, &bob).await;
}
