//! `/healthz` in the clear, by default for this machine only, as supervisors ask for it.
//!
//! Says that the process answers, and nothing of the node: everybody on the machine may ask.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

/// Whoever has the address may let go of it; upstream tries as often.
const RETRY: Duration = Duration::from_secs(5);
/// Further connections wait.
const CONNECTIONS_MAX: usize = 16;
/// Of a connection, questions and answers together.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers until the drain begins.
pub async fn run(address: SocketAddr, drain: Drain) {
    let listen = async {
        let mut told = false;
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(error) if !told => {
                    warn!(%address, %error, "/healthz is not answered yet");
                    told = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    let serve = async {
        let listener = listen.await;
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => drop(base::task::spawn(async move {
                    // Who takes longer comes again.
                    let _ = tokio::time::timeout(PATIENCE, answer(stream)).await;
                    drop(place);
                })),
                Err(error) => {
                    debug!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    drain.until(serve).await;
}

async fn answer(stream: TcpStream) {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(page(&request)) });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "connection ended");
    }
}

fn page(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let is_verbose = request
        .uri()
        .query()
        .is_some_and(|query| query.split('&').any(|it| it == "verbose" || it == "verbose=true"));
    let (status, text) = match request.uri().path() {
        "/healthz" if is_verbose => (StatusCode::OK, "[+]ping ok\nhealthz check passed\n"),
        "/healthz" | "/healthz/ping" => (StatusCode::OK, "ok"),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, plain);
    headers.insert("x-content-type-options", header::HeaderValue::from_static("nosniff"));
    response
}
