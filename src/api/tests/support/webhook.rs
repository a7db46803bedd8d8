//! A conversion webhook on a port of its own, over TLS, as an operator would run one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use base64::Engine;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// How the webhook answers.
pub const WELL: u8 = 0;
pub const REFUSING: u8 = 1;
pub const FORGETFUL: u8 = 2;
pub const RENAMING: u8 = 3;

pub struct Webhook {
    pub address: SocketAddr,
    /// PEM of its authority, in base64.
    pub bundle: String,
    pub asked: Arc<AtomicU64>,
    pub mood: Arc<AtomicU8>,
}

/// v1 has `spec.hostPort`, v2 has `spec.host` and `spec.port`.
fn converted(mut object: Value, wanted: &str) -> Value {
    let spec = object["spec"].clone();
    object["spec"] = if wanted.ends_with("/v2") {
        let text = spec["hostPort"].as_str().unwrap_or(":");
        let (host, port) = text.split_once(':').unwrap_or((text, ""));
        json!({"host": host, "port": port})
    } else {
        let word = |name: &str| spec[name].as_str().unwrap_or("").to_string();
        json!({"hostPort": format!("{}:{}", word("host"), word("port"))})
    };
    object["metadata"]["labels"]["converted-to"] = wanted.rsplit('/').next().into();
    object["apiVersion"] = wanted.into();
    object
}

fn review(question: &Value, mood: u8) -> Value {
    let request = &question["request"];
    let wanted = request["desiredAPIVersion"].as_str().unwrap();
    let mut objects: Vec<Value> = request["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| converted(object.clone(), wanted))
        .collect();
    let mut result = json!({"status": "Success"});
    match mood {
        REFUSING => result = json!({"status": "Failed", "message": "not today"}),
        FORGETFUL => objects.clear(),
        RENAMING => objects.iter_mut().for_each(|o| o["metadata"]["name"] = "other".into()),
        _ => {}
    }
    json!({
        "kind": "ConversionReview", "apiVersion": question["apiVersion"],
        "response": {"uid": request["uid"], "result": result, "convertedObjects": objects},
    })
}

impl Webhook {
    pub async fn start() -> Self {
        let authority = pki::authority::Authority::create("hooks").unwrap();
        let leaf = pki::authority::Leaf {
            common_name: "hook".into(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            ..Default::default()
        };
        let issued = authority.issue(&leaf).unwrap();
        let mut tls =
            pki::tls::server_config(issued.cert_pem.as_bytes(), issued.key_pem.as_bytes(), None)
                .unwrap();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bundle = base64::engine::general_purpose::STANDARD.encode(&authority.cert_pem);
        let (asked, mood) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU8::new(WELL)));
        let (count, now) = (asked.clone(), mood.clone());
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, count, now) = (acceptor.clone(), count.clone(), now.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        count.fetch_add(1, Ordering::SeqCst);
                        let mood = now.load(Ordering::SeqCst);
                        async move {
                            let body = request.into_body().collect().await?.to_bytes();
                            let question: Value = serde_json::from_slice(&body).unwrap();
                            let answer = review(&question, mood).to_string();
                            Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(answer))))
                        }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, bundle, asked, mood }
    }
}
