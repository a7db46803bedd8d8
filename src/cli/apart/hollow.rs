//! Simulated nodes, and the ports at which each tells what it uses, as a kubelet would: to who may
//! read `nodes/metrics`.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::hollow::{Config, Fleet, Served};
use base::drain::Drain;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use client::api::{Dynamic, ResourceRef};
use client::{Client, ListParams, Shared, WatchEvent};
use futures::StreamExt;
use http::{Method, Request, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::auth::{Auth, How};
use super::listen::{self, Answer, PLAIN, text};
use super::{Reached, client_of, load};
use crate::{Error, Result};

/// Runs the nodes until the drain begins; with `served`, each listens on a port there.
pub async fn run(
    kubeconfig: &Path,
    clients: Vec<Client>,
    mut config: Config,
    served: Option<IpAddr>,
    drain: Drain,
) -> Result<()> {
    let Some(address) = served else {
        ::hollow::run(clients, config, drain).await;
        return Ok(());
    };
    let mut listeners = Vec::new();
    for _ in 0..config.nodes {
        let listener = TcpListener::bind(SocketAddr::from((address, 0))).await;
        listeners.push(listener.map_err(|err| {
            Error::failed(format!("listen on {address} for each of the nodes"), err)
                .with_fix("is it an address of this host, and may it open that many files?")
        })?);
    }
    let port = |listener: &TcpListener| listener.local_addr().map_or(0, |address| address.port());
    let ports = listeners.iter().map(port).collect();
    config.served = Some(Served { address, ports });
    let nodes = config.nodes;
    let fleet = Arc::new(Fleet::new(clients, config));
    let client = client_of(&load(kubeconfig)?, "hollow", &Reached::in_json())?;
    let shared = Shared::new(client.clone(), drain.clone());
    let auth = Arc::new(Auth::new(&shared, client.clone(), Vec::new(), How::default()));
    let mut tls = None;
    for (number, listener) in (0..).zip(listeners) {
        if number % NAMES_MAX == 0 {
            let names = (number..nodes.min(number + NAMES_MAX)).map(|it| fleet.name(it));
            tls = Some(certificate(&client, names.collect(), address).await?);
        }
        let Some(tls) = &tls else { continue };
        let (fleet, auth) = (fleet.clone(), auth.clone());
        let answers: listen::Answers = Arc::new(move |chain, request| {
            let (fleet, auth) = (fleet.clone(), auth.clone());
            Box::pin(async move { answer(&fleet, number, &auth, chain, &request).await })
        });
        base::task::spawn(listen::serve(listener, tls.clone(), drain.clone(), answers));
    }
    fleet.run(drain).await;
    Ok(())
}

async fn answer(
    fleet: &Fleet,
    number: u32,
    auth: &Auth,
    chain: Arc<super::auth::Chain>,
    request: &Request<Incoming>,
) -> Answer {
    let asked = json!({"resourceAttributes": {
        "verb": "get", "version": "v1", "resource": "nodes", "subresource": "metrics",
        "name": fleet.name(number),
    }});
    let path = request.uri().path();
    // The path says nothing that the review does not.
    if let Err(denied) = auth.check(&chain, request.headers(), path, &asked).await {
        return listen::refuse(denied);
    }
    match (request.method(), path) {
        (&Method::GET, "/metrics/resource") => {
            text(StatusCode::OK, PLAIN, fleet.resource_metrics(number))
        }
        _ => text(StatusCode::NOT_FOUND, PLAIN, "a hollow node has nothing there\n"),
    }
}

/// Nodes that share a certificate: it holds the names of all of them.
const NAMES_MAX: u32 = 100;
/// How long the cluster may take to sign.
const SIGNED_TIMEOUT: Duration = Duration::from_secs(60);
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// Of these nodes at this address: the cluster signs it for the first, who stands for the others.
/// Whoever runs simulated nodes may ask in their name, and approve it.
async fn certificate(
    client: &Client,
    nodes: Vec<String>,
    address: IpAddr,
) -> Result<rustls::ServerConfig> {
    let failed = |err: pki::Error| Error::failed("prepare the nodes' certificate", err);
    let asking = |err: client::Error| Error::failed("have the nodes' certificate signed", err);
    let user = format!("system:node:{}", nodes.first().map_or("", String::as_str));
    let leaf = pki::Leaf {
        common_name: user.clone(),
        organization: "system:nodes".into(),
        dns_names: nodes,
        addresses: vec![address],
        server: true,
        ..pki::Leaf::default()
    };
    let (request, key) = pki::request::make(&leaf).map_err(failed)?;
    let asked = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "hollow-"},
        "spec": {"request": STANDARD.encode(request), "usages": ["digital signature", "server auth"],
            "signerName": "kubernetes.io/kubelet-serving"},
    });
    let create = Request::post(REQUESTS)
        .header("Impersonate-User", &user)
        .header("Impersonate-Group", "system:nodes")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Bytes::from(asked.to_string()))
        .map_err(|err| Error::failed("ask for the nodes' certificate", err))?;
    let made = client.request(create).await.map_err(asking)?;
    let mut made: Value = serde_json::from_slice(&made)
        .map_err(|err| Error::failed("read the request for a certificate", err))?;
    let name = made["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    made["status"]["conditions"] = json!([{"type": "Approved", "status": "True",
        "reason": "HollowNodes", "message": "simulated nodes show what they use"}]);
    let kind = ResourceRef {
        group: "certificates.k8s.io".into(),
        version: "v1".into(),
        plural: "certificatesigningrequests".into(),
        kind: "CertificateSigningRequest".into(),
        namespaced: false,
    };
    let api = client.dynamic(kind, None);
    let approved: Dynamic = serde_json::from_value(made)
        .map_err(|err| Error::failed("read the request for a certificate", err))?;
    let approved = api.replace_subresource(&name, "approval", &approved).await.map_err(asking)?;
    let only = ListParams::fields(format!("metadata.name={name}"));
    let from = approved.metadata.resource_version.unwrap_or_default();
    let signed = async {
        let mut events = api.watch(&only, &from).await?;
        while let Some(event) = events.next().await {
            if let WatchEvent::Added(it) | WatchEvent::Modified(it) = event?
                && let Some(text) = it.rest["status"]["certificate"].as_str()
            {
                return Ok(STANDARD.decode(text).unwrap_or_default());
            }
        }
        Err(client::Error::Transport("the watch ended before the certificate came".into()))
    };
    let pem = tokio::time::timeout(SIGNED_TIMEOUT, signed).await;
    let pem = pem.map_err(|_| Error::Unfit {
        what: format!("nobody signed the request {name} for the nodes' certificate"),
        fix: "do the controllers run, with the server's authorities?".into(),
    })?;
    pki::tls::open_server_config(&pem.map_err(asking)?, key.as_bytes(), b"").map_err(failed)
}
