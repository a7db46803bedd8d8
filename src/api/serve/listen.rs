//! The way in over the network: TLS, HTTP/1.1 and HTTP/2, with bounds on everything that
//! a stranger can make large or slow.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use bytes::{Bytes, BytesMut};
use client::Body;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::forward::Unread;
use super::negotiate::Asked;
use super::request::{Query, RequestInfo};
use super::{Shared, answer, chain};
use crate::authn::Peer;
use crate::error::ApiError;
use crate::metrics::TLS_HANDSHAKE_ERRORS;

/// Larger bodies are answered with 413 (upstream's limit).
const BODY_BYTES_MAX: usize = 3 << 20;
/// Open connections; a further one waits for one to close.
const CONNECTIONS_MAX: usize = 10_000;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Streams per HTTP/2 connection; the many watches of one client share a connection.
const STREAMS_MAX: u32 = 1_000;
/// When draining, connections get this long to finish what they are doing.
const GRACE: Duration = Duration::from_secs(5);

type Answer = Either<
    Full<Bytes>,
    StreamBody<
        std::pin::Pin<Box<dyn futures::Stream<Item = std::io::Result<Frame<Bytes>>> + Send>>,
    >,
>;

/// Accepts connections until the drain begins.
pub async fn serve(server: Shared, listener: TcpListener, tls: Arc<ServerConfig>, drain: Drain) {
    let acceptor = TlsAcceptor::from(tls);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = match drain.until(listener.accept()).await {
            None => return,
            Some(accepted) => accepted,
        };
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(err) => {
                // Out of file descriptors, most likely: give those in use time to close.
                warn!(error = %err, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (server, acceptor, drain) = (server.clone(), acceptor.clone(), drain.clone());
        base::task::spawn(async move {
            connection(server, acceptor, tcp, address, drain).await;
            drop(permit);
        });
    }
}

async fn connection(
    server: Shared,
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    address: std::net::SocketAddr,
    mut drain: Drain,
) {
    // Only latency is lost where the option is refused.
    let _ = tcp.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(err)) => {
            TLS_HANDSHAKE_ERRORS.inc();
            debug!(peer = %address, error = %err, "TLS handshake failed");
            return;
        }
        Err(_) => {
            TLS_HANDSHAKE_ERRORS.inc();
            return;
        }
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .map(|chain| Arc::new(server.authenticator.judge(chain)));
    let peer = Peer { in_process: None, certificate, address: Some(address) };
    let goaway = Arc::new(Notify::new());
    let leave = goaway.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (server, peer) = (server.clone(), peer.clone());
        let chance = server.flags.goaway_chance;
        let http2 = request.version() == http::Version::HTTP_2;
        if http2 && chance > 0.0 && base::rng::unit() < chance {
            leave.notify_one();
        }
        async move { Ok::<_, std::convert::Infallible>(one(server, peer, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(30));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = goaway.notified() => {
            // What is under way is finished; the client's next request opens a connection.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = drain.begun() => return,
            }
        }
        () = drain.begun() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(GRACE, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(err) = ended {
        debug!(peer = %address, error = %err, "connection ended");
    }
}

async fn one(server: Shared, peer: Peer, request: Request<Incoming>) -> Response<Answer> {
    let (parts, body) = request.into_parts();
    let asked = Asked::of(&parts.headers, &Query::parse(parts.uri.query()));
    if is_passed_on(&server, &parts) {
        let mut request = Request::from_parts(parts, Bytes::new());
        request.extensions_mut().insert(Unread::new(body));
        request.extensions_mut().insert(peer);
        return finish(walked(&server, request).await);
    }
    let body = match tokio::time::timeout(BODY_TIMEOUT, read(body)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return finish(answer::failure(&error, &asked)),
        Err(_) => {
            let error = ApiError::timeout("the request body did not arrive");
            return finish(answer::failure(&error, &asked));
        }
    };
    let mut request = Request::from_parts(parts, body);
    request.extensions_mut().insert(peer);
    finish(walked(&server, request).await)
}

/// The answer of the chain. In a box of its own, so that a stream that follows does not keep
/// the room which the whole walk needs: the many watches of a cluster would pay for it.
fn walked(
    server: &Shared,
    request: Request<Bytes>,
) -> Pin<Box<impl Future<Output = Response<Body>>>> {
    Box::pin(chain::handle(server, request))
}

/// Whether the body of a request goes on to somebody else while it arrives.
fn is_passed_on(server: &Shared, parts: &http::request::Parts) -> bool {
    let path = parts.uri.path();
    let proxied = path.contains("/proxy") && {
        let query = Query::parse(parts.uri.query());
        RequestInfo::parse(&parts.method, path, &query).subresource == "proxy"
    };
    proxied || server.aggregator.route(path).is_some()
}

async fn read(mut body: Incoming) -> Result<Bytes, ApiError> {
    let mut out = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|err| ApiError::bad_request(err.to_string()))?;
        if let Ok(data) = frame.into_data() {
            if out.len() + data.len() > BODY_BYTES_MAX {
                return Err(ApiError::too_large());
            }
            out.extend_from_slice(&data);
        }
    }
    Ok(out.freeze())
}

fn finish(response: Response<Body>) -> Response<Answer> {
    response.map(|body| match body {
        Body::Full(bytes) => Either::Left(Full::new(bytes)),
        Body::Stream(stream) => {
            Either::Right(StreamBody::new(stream.map(|chunk| chunk.map(Frame::data)).boxed()))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the future that a function returns, without one.
    fn size<F>(_: impl Fn(Shared, Peer, Request<Incoming>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn what_each_stream_keeps_is_small() {
        assert!(size(one) <= 1_024, "{}", size(one));
    }
}
