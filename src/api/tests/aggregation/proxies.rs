//! What goes on to a node's kubelet, and through it: logs, streams, and the proxies with
//! their redirects and links.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::support::{ask, send};
use super::{DISABLED, connection, get, support};
use api::serve::Shared;

const POD: &str = "/api/v1/namespaces/default/pods/p";

/// A kubelet that shows what it is asked.
async fn kubelet() -> u16 {
    let authority = pki::authority::Authority::create("kubelets").unwrap();
    let leaf = pki::authority::Leaf {
        common_name: "n".into(),
        dns_names: vec!["n".into()],
        server: true,
        ..Default::default()
    };
    let issued = authority.issue(&leaf).unwrap();
    let (cert, key) = (issued.cert_pem.as_bytes(), issued.key_pem.as_bytes());
    let mut tls = pki::tls::server_config(cert, key, None).unwrap();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let connection = hyper::server::conn::http1::Builder::new();
                let service = service_fn(|request| async { answer(request).await });
                let serving = connection.serve_connection(TokioIo::new(stream), service);
                let _ = serving.with_upgrades().await;
            });
        }
    });
    port
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let whole = request.uri().path_and_query().unwrap().to_string();
    let path = request.uri().path().to_string();
    let plain = |status: u16, kind: &str, text: String| {
        let response = Response::builder().status(status).header("content-type", kind);
        response.body(Full::new(Bytes::from(text))).unwrap()
    };
    Ok(match path.as_str() {
        "/containerLogs/default/p/c" => plain(200, "text/plain", format!("{whole}\n")),
        path if path.starts_with("/containerLogs/") => {
            plain(400, "text/plain", "container \"d\" is waiting to start".into())
        }
        path if path.starts_with("/exec/") || path.starts_with("/portForward/") => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                stream.write_all(whole.as_bytes()).await.unwrap();
            });
            let response = Response::builder().status(101).header("connection", "Upgrade");
            response.header("upgrade", "SPDY/3.1").body(Full::default()).unwrap()
        }
        "/page" => plain(200, "text/html; charset=utf-8", "<a href=\"/next\">x</a>".into()),
        "/moved" => {
            let mut response = plain(302, "text/plain", String::new());
            response.headers_mut().insert("location", "/elsewhere?a=b".parse().unwrap());
            response.headers_mut().insert("access-control-allow-origin", "*".parse().unwrap());
            response
        }
        _ => {
            let method = request.method().to_string();
            let headers: Value = request
                .headers()
                .iter()
                .map(|(name, value)| {
                    (name.to_string(), Value::from(value.to_str().unwrap_or_default()))
                })
                .collect::<serde_json::Map<_, _>>()
                .into();
            let body = request.into_body().collect().await?.to_bytes();
            let body = String::from_utf8_lossy(&body).to_string();
            let seen = json!({"method": method, "path": whole, "headers": headers, "body": body});
            plain(200, "application/json", seen.to_string())
        }
    })
}

/// A server with a node, whose kubelet that is, and a pod on it.
async fn with_kubelet(dir: &std::path::Path) -> Shared {
    let server = support::server_with(dir, &DISABLED, |_| {}).await;
    let port = kubelet().await;
    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n"},
        "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    assert_eq!(ask(&server, Method::POST, "/api/v1/nodes", node).await.status, 201);
    let container = |name: &str| json!({"name": name, "image": "i"});
    for (name, containers) in [("p", vec!["c"]), ("two", vec!["c", "d"])] {
        let containers: Vec<Value> = containers.into_iter().map(container).collect();
        let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name},
            "spec": {"nodeName": "n", "containers": containers,
                "initContainers": [container("i")]}});
        let pods = "/api/v1/namespaces/default/pods";
        let made = ask(&server, Method::POST, pods, pod).await;
        assert_eq!(made.status, 201, "{}", made.message());
    }
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_from_the_kubelet_with_all_their_options() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_kubelet(dir.path()).await;
    let options = "follow=true&tailLines=3&timestamps=true&pretty=1&insecureSkipTLSVerifyBackend=1";
    let log = get(&server, &format!("{POD}/log?{options}")).await;
    assert_eq!(
        String::from_utf8_lossy(&log.body),
        "/containerLogs/default/p/c?follow=true&tailLines=3&timestamps=true\n"
    );
    assert_eq!(log.headers["content-type"], "text/plain");
    for (path, code, said) in [
        (
            "p/log?tailLines=-1",
            422,
            "PodLogOptions \"p\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0",
        ),
        ("two/log", 400, "a container name must be specified for pod two, choose one of: [i c d]"),
        ("two/log?container=x", 400, "container x is not valid for pod two"),
        ("two/log?container=d", 400, "container \"d\" is waiting to start"),
        ("none/log", 404, "pods \"none\" not found"),
        ("p/exec?command=ls", 400, "Upgrade request required"),
    ] {
        let answer = get(&server, &format!("/api/v1/namespaces/default/pods/{path}")).await;
        assert_eq!((answer.status, answer.message().as_str()), (code, said), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_reach_the_kubelet_under_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_kubelet(dir.path()).await;
    for (path, expected) in [
        (
            "exec?command=sh&command=-c&command=a%20%26%20b&stdin=true&stdout=1&stderr=false&tty=true",
            "/exec/default/p/c?input=1&output=1&tty=1&command=sh&command=-c&command=a%20%26%20b",
        ),
        ("portforward?ports=80&ports=81", "/portForward/default/p?port=80,81"),
    ] {
        let mut sender = connection(&server, dir.path()).await;
        let request = Request::post(format!("{POD}/{path}"))
            .header("host", "localhost")
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .body(http_body_util::Empty::new().map_err(|never| match never {}))
            .unwrap();
        let mut response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 101);
        let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        let mut seen = String::new();
        stream.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_pass_every_verb_and_lead_back_to_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_kubelet(dir.path()).await;
    let root = "/api/v1/nodes/n/proxy";
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let headers = [("host", "asked:1"), ("authorization", "Bearer t"), ("x-own", "1")];
        let path = format!("{root}/a//b%20c?d=e");
        let body = if method == "POST" { "words" } else { "" };
        let verb: Method = method.parse().unwrap();
        let seen = send(&server, "admin", verb, &path, &headers, body).await.json();
        assert_eq!((&seen["method"], &seen["path"]), (&json!(method), &json!("/a//b%20c?d=e")));
        assert_eq!(seen["body"], body);
        assert_eq!(seen["headers"]["host"], "asked:1");
        assert_eq!(seen["headers"]["x-own"], "1");
        assert_eq!(seen["headers"]["x-forwarded-uri"], format!("{root}/a//b%20c"));
        assert!(seen["headers"].get("authorization").is_none());
    }
    let page = get(&server, &format!("{root}/page")).await;
    let expected = format!("<a href=\"{root}/next\">x</a>");
    assert_eq!(String::from_utf8_lossy(&page.body), expected);
    assert_eq!(page.headers["content-length"], expected.len().to_string());
    let moved = get(&server, &format!("{root}/moved")).await;
    assert_eq!(moved.status, 302);
    assert_eq!(moved.headers["location"], format!("{root}/elsewhere?a=b"));
    assert!(!moved.headers.contains_key("access-control-allow-origin"));
    let bare = get(&server, &format!("{root}?x=y")).await;
    assert_eq!(
        (bare.status, bare.headers["location"].to_str().unwrap()),
        (301, "/api/v1/nodes/n/proxy/?x=y")
    );
    assert_eq!(get(&server, &format!("{root}/")).await.json()["path"], "/");
    let posted = ask(&server, Method::POST, root, json!({})).await;
    assert_eq!(posted.json()["path"], "/");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_proxied_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_kubelet(dir.path()).await;
    let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "s"},
        "spec": {"ports": [{"name": "http", "port": 80}]}});
    ask(&server, Method::POST, "/api/v1/namespaces/default/services", service).await;
    let status = json!({"status": {"phase": "Running", "podIP": "127.0.0.1",
        "podIPs": [{"ip": "127.0.0.1"}]}});
    ask(&server, Method::PATCH, &format!("{POD}/status"), status).await;
    for (path, code, said) in [
        ("nodes/ftp:n:1/proxy/", 400, "invalid node request \"ftp:n:1\""),
        ("nodes/n:1/proxy/", 400, "address not allowed"),
        ("nodes/none/proxy/", 404, "nodes \"none\" not found"),
        ("namespaces/default/pods/a:b:c:d/proxy/", 400, "invalid pod request \"a:b:c:d\""),
        ("namespaces/default/pods/p:80/proxy/", 400, "address not allowed"),
        ("namespaces/default/services/s:http/proxy/", 404, "services \"s\" not found"),
        (
            "namespaces/default/services/s:81/proxy/",
            503,
            "no service port 81 found for service \"s\"",
        ),
    ] {
        let answer = get(&server, &format!("/api/v1/{path}")).await;
        assert_eq!((answer.status, answer.message().as_str()), (code, said), "{path}");
    }
    let slice = json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 80}], "endpoints": []});
    super::place(&server, &slice).await;
    let path = "/api/v1/namespaces/default/services/http:s:80/proxy/x";
    let answer = get(&server, path).await;
    assert_eq!(
        (answer.status, answer.message()),
        (503, "no endpoints available for service \"s\"".into())
    );
    // Clients would ask again by themselves, ten times over.
    assert_eq!(answer.headers.get("retry-after"), None);
}
