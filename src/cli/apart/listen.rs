//! A small HTTPS server: connections with bounds, and who is at their other end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use bytes::Bytes;
use client::review::Denied;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::auth::Chain;

/// Further connections wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

pub type Answer = Response<Full<Bytes>>;

pub const PLAIN: &str = "text/plain; charset=utf-8";

pub fn text(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let no_sniff = HeaderValue::from_static("nosniff");
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, no_sniff);
    answer
}

pub fn refuse(denied: Denied) -> Answer {
    match denied {
        Denied::Unauthenticated => text(StatusCode::UNAUTHORIZED, PLAIN, "Unauthorized\n"),
        Denied::Forbidden(why) => text(StatusCode::FORBIDDEN, PLAIN, why + "\n"),
        Denied::Unknown(why) => {
            warn!(error = why, "a request could not be judged");
            text(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, "Internal Server Error\n")
        }
    }
}

/// What makes answers. It is told the certificates that the client presented; whether they prove
/// anything is for it to say.
pub type Answers =
    Arc<dyn Fn(Arc<Chain>, Request<Incoming>) -> BoxFuture<'static, Answer> + Send + Sync>;

/// Answers in HTTP/1.1 until the drain begins.
pub async fn serve(
    listener: TcpListener,
    mut tls: rustls::ServerConfig,
    drain: Drain,
    answers: Answers,
) {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(tls));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match drain.until(listener.accept()).await {
            None => return,
            Some(Ok((stream, _))) => stream,
            Some(Err(error)) => {
                // Out of descriptors, most likely: others must end first.
                warn!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, drain, answers) = (tls.clone(), drain.clone(), answers.clone());
        base::task::spawn(async move {
            drain.until(connection(tls, stream, answers)).await;
            drop(place);
        });
    }
}

async fn connection(tls: TlsAcceptor, stream: TcpStream, answers: Answers) {
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
        Err(_) => return debug!("TLS handshake took too long"),
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let chain: Arc<Chain> = Arc::new(chain);
    let service = service_fn(move |request| {
        let answered = answers(chain.clone(), request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "connection ended");
    }
}
