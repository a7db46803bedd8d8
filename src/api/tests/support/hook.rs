//! An admission webhook on a port of its own, over TLS, as an operator would run one.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What a webhook does with a question.
type Answer = dyn Fn(&Value) -> Reply + Send + Sync;

pub enum Reply {
    /// The `response` of the review, without its uid.
    Response(Value),
    /// This body and status.
    Raw(u16, String),
    /// Nothing, ever.
    Silence,
}

pub struct Hook {
    pub address: SocketAddr,
    /// PEM of its authority, in base64.
    pub bundle: String,
    /// The reviews it was asked, oldest first.
    pub reviews: Arc<Mutex<VecDeque<Value>>>,
    pub connections: Arc<AtomicU64>,
}

/// A response that allows, with a patch.
pub fn patch(operations: Value) -> Reply {
    let patch = STANDARD.encode(operations.to_string());
    Reply::Response(json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}))
}

pub fn allow() -> Reply {
    Reply::Response(json!({"allowed": true}))
}

impl Hook {
    /// Starts one whose certificate is for its address and for the name given.
    pub async fn start(
        name: &str,
        answer: impl Fn(&Value) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let authority = pki::authority::Authority::create("hooks").unwrap();
        let leaf = pki::authority::Leaf {
            common_name: "hook".into(),
            dns_names: vec![name.into()],
            addresses: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            ..Default::default()
        };
        let issued = authority.issue(&leaf).unwrap();
        let (cert, key) = (issued.cert_pem.as_bytes(), issued.key_pem.as_bytes());
        let mut tls = pki::tls::server_config(cert, key, None).unwrap();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hook = Self {
            address,
            bundle: STANDARD.encode(&authority.cert_pem),
            reviews: Arc::default(),
            connections: Arc::default(),
        };
        let (reviews, connections) = (hook.reviews.clone(), hook.connections.clone());
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let answer: Arc<Answer> = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (acceptor, reviews) = (acceptor.clone(), reviews.clone());
                let answer = answer.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request| {
                        respond(request, reviews.clone(), answer.clone())
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        hook
    }

    pub fn url(&self) -> Value {
        json!({"url": format!("https://{}/ask", self.address), "caBundle": self.bundle})
    }

    pub fn asked(&self) -> usize {
        self.reviews.lock().unwrap().len()
    }

    /// The last question.
    pub fn last(&self) -> Value {
        self.reviews.lock().unwrap().back().cloned().unwrap_or_default()
    }
}

async fn respond(
    request: Request<Incoming>,
    reviews: Arc<Mutex<VecDeque<Value>>>,
    answer: Arc<Answer>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    reviews.lock().unwrap().push_back(review.clone());
    let (status, text) = match answer(&review["request"]) {
        Reply::Raw(status, text) => (status, text),
        Reply::Silence => std::future::pending().await,
        Reply::Response(mut response) => {
            response["uid"] = review["request"]["uid"].clone();
            let answer = json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"],
                "response": response});
            (200, answer.to_string())
        }
    };
    Ok(Response::builder().status(status).body(Full::new(Bytes::from(text))).unwrap())
}
