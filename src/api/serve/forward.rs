//! Sends a request on to another server and answers with what comes back: bodies as they
//! flow in both directions, and upgrades by joining the two connections.
//!
//! Where to, and under which name, is for whoever asks to say.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::Body;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyDataStream, BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tracing::debug;

use crate::metrics::route::LongRunning;

/// A client that sends nothing of its body for so long is given up.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the end of a joined connection may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// A body on its way out.
pub type Outgoing = UnsyncBoxBody<Bytes, std::io::Error>;

/// The body of a request that is passed on while it arrives; it is taken once.
#[derive(Clone)]
pub struct Unread(Arc<Mutex<Option<Incoming>>>);

impl Unread {
    pub fn new(body: Incoming) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }
}

/// The address a request came from.
#[derive(Clone, Copy)]
pub struct ClientAddress(pub std::net::SocketAddr);

/// When something of a request's body was last sent.
#[derive(Clone)]
pub struct Progress(Arc<Mutex<Instant>>);

impl Progress {
    fn begin() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

/// A request that is ready to be sent on.
pub struct Onward {
    pub request: Request<Outgoing>,
    pub upgrade: Option<Upgrade>,
    progress: Progress,
}

/// The client's connection, once it stops to speak HTTP.
pub struct Upgrade {
    on: OnUpgrade,
    /// Counted as under way until it ends.
    _held: Option<Arc<LongRunning>>,
}

/// Headers that belong to one connection, not to the message.
const HOP_BY_HOP: [header::HeaderName; 6] = [
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
];

/// Whether the request wants to become something else than HTTP.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let mut said = headers.get_all(header::CONNECTION).iter();
    said.any(|value| value.to_str().is_ok_and(|text| text.to_lowercase().contains("upgrade")))
}

/// Makes of a request the one to send: `path` with its query, to `host`. Who the client is
/// stays behind: its credentials are for this server.
///
/// # Errors
/// Why the path cannot be asked for.
pub fn onward(mut request: Request<Bytes>, path: &str, host: &str) -> Result<Onward, String> {
    let held = request.extensions().get::<Arc<LongRunning>>().cloned();
    let on = request.extensions_mut().remove::<OnUpgrade>();
    let upgrade = on.map(|on| Upgrade { on, _held: held });
    let unread = request.extensions_mut().remove::<Unread>();
    let from = request.extensions_mut().remove::<ClientAddress>();
    let (parts, body) = request.into_parts();
    let upgrades = is_upgrade(&parts.headers);
    let uri: Uri = path.parse().map_err(|_| format!("the path {path:?} cannot be asked for"))?;
    let mut headers = HeaderMap::with_capacity(parts.headers.len() + 2);
    for (name, value) in &parts.headers {
        let of_connection =
            matches!(*name, header::CONNECTION | header::UPGRADE) || name.as_str() == "keep-alive";
        let of_client = matches!(*name, header::HOST | header::AUTHORIZATION)
            || name.as_str().starts_with("impersonate-");
        if of_client || HOP_BY_HOP.contains(name) || (of_connection && !upgrades) {
            continue;
        }
        let value = match *name {
            header::SEC_WEBSOCKET_PROTOCOL => without_token(value),
            _ => Some(value.clone()),
        };
        headers.extend(value.map(|value| (name.clone(), value)));
    }
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(header::HOST, host);
    }
    if let Some(ClientAddress(address)) = from {
        let earlier = headers.get("x-forwarded-for").and_then(|value| value.to_str().ok());
        let all = match earlier {
            Some(earlier) => format!("{earlier}, {}", address.ip()),
            None => address.ip().to_string(),
        };
        if let Ok(value) = HeaderValue::from_str(&all) {
            headers.insert("x-forwarded-for", value);
        }
    }
    let length = parts.headers.get(header::CONTENT_LENGTH).cloned();
    let progress = Progress::begin();
    let body = match unread.and_then(|unread| unread.0.lock().take()) {
        Some(incoming) if !hyper::body::Body::is_end_stream(&incoming) => {
            // Whoever said how much there is, says so to the other server.
            if let Some(length) = length {
                headers.insert(header::CONTENT_LENGTH, length);
            }
            flowing(incoming, progress.clone())
        }
        Some(_) | None => whole(body),
    };
    let mut out = Request::new(body);
    *out.method_mut() = parts.method;
    *out.uri_mut() = uri;
    *out.headers_mut() = headers;
    Ok(Onward { request: out, upgrade, progress })
}

/// The subprotocols without the one that carries a browser's token.
fn without_token(protocols: &HeaderValue) -> Option<HeaderValue> {
    let text = protocols.to_str().ok()?;
    let kept: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|protocol| !protocol.starts_with("base64url.bearer.authorization.k8s.io."))
        .collect();
    HeaderValue::from_str(&kept.join(", ")).ok().filter(|value| !value.is_empty())
}

/// A body that is there already.
pub fn whole(body: Bytes) -> Outgoing {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

fn flowing(incoming: Incoming, progress: Progress) -> Outgoing {
    let chunks = futures::stream::unfold(Some(incoming), move |body| {
        let progress = progress.clone();
        async move {
            let mut body = body?;
            let frame = tokio::time::timeout(BODY_IDLE_TIMEOUT, body.frame()).await;
            *progress.0.lock() = Instant::now();
            match frame {
                Ok(Some(Ok(frame))) => Some((Ok(frame), Some(body))),
                Ok(Some(Err(err))) => Some((Err(std::io::Error::other(err)), None)),
                Ok(None) => None,
                Err(_) => Some((Err(std::io::ErrorKind::TimedOut.into()), None)),
            }
        }
    });
    BodyExt::boxed_unsync(StreamBody::new(chunks.filter_map(|frame| async move {
        match frame {
            // Trailers are the connection's.
            Ok(frame) => frame.into_data().ok().map(|data| Ok(Frame::data(data))),
            Err(err) => Some(Err(err)),
        }
    })))
}

/// Speaks HTTP/1.1 over `stream`, as long as the sender or one of its answers lives.
///
/// # Errors
/// Why the other side does not.
pub async fn open<S>(stream: S) -> Result<SendRequest<Outgoing>, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(|err| err.to_string())?;
    base::task::spawn(async move {
        if let Err(err) = connection.with_upgrades().await {
            debug!(error = %err, "proxied connection ended");
        }
    });
    Ok(sender)
}

impl Onward {
    /// The same request once more, if it has no body and changes nothing.
    pub fn repeat(&self) -> Option<Self> {
        let request = &self.request;
        let safe = matches!(*request.method(), Method::GET | Method::HEAD);
        let empty = hyper::body::Body::is_end_stream(request.body());
        if !safe || !empty || is_upgrade(request.headers()) {
            return None;
        }
        let mut again = Request::new(whole(Bytes::new()));
        *again.method_mut() = request.method().clone();
        *again.uri_mut() = request.uri().clone();
        *again.headers_mut() = request.headers().clone();
        Some(Self { request: again, upgrade: None, progress: Progress::begin() })
    }

    /// Sends the request and waits until an answer begins, for at most `patience` after
    /// the last piece of the body.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(
        self,
        sender: &mut SendRequest<Outgoing>,
        patience: Duration,
    ) -> Result<(Response<Incoming>, Option<Upgrade>), String> {
        let answer = sender.send_request(self.request);
        let response = self.progress.wait(answer, patience).await?;
        Ok((response, self.upgrade))
    }
}

impl Progress {
    async fn wait<F>(&self, answer: F, patience: Duration) -> Result<Response<Incoming>, String>
    where
        F: Future<Output = hyper::Result<Response<Incoming>>>,
    {
        tokio::pin!(answer);
        loop {
            let last = *self.0.lock();
            tokio::select! {
                answered = &mut answer => {
                    return answered.map_err(|err| base::error::chain(&err).to_string());
                }
                () = tokio::time::sleep_until(last + patience) => {
                    if *self.0.lock() == last {
                        return Err("net/http: timeout awaiting response headers".into());
                    }
                }
            }
        }
    }
}

/// The answer for the client. `done` is called with what `keep` is when the whole body has
/// passed; it is dropped where it has not.
pub fn answer<K: Send + 'static>(
    mut response: Response<Incoming>,
    upgrade: Option<Upgrade>,
    keep: K,
    done: impl FnOnce(K) + Send + 'static,
) -> Result<Response<Body>, String> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(upgrade) = upgrade else {
            return Err("the connection cannot be upgraded".into());
        };
        join(upgrade, hyper::upgrade::on(&mut response));
        let (parts, _) = response.into_parts();
        return Ok(Response::from_parts(parts, Body::Full(Bytes::new())));
    }
    let (mut parts, body) = response.into_parts();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        parts.headers.remove(name);
    }
    parts.headers.remove("keep-alive");
    let state = (BodyDataStream::new(body), Some((keep, done)));
    let stream = futures::stream::unfold(state, |(mut body, mut kept)| async move {
        match body.next().await {
            Some(chunk) => Some((chunk.map_err(std::io::Error::other), (body, kept))),
            None => {
                if let Some((keep, done)) = kept.take() {
                    done(keep);
                }
                None
            }
        }
    });
    Ok(Response::from_parts(parts, Body::Stream(Box::pin(stream))))
}

/// Who may read an answer in a browser is this server's to say, not a backend's.
pub fn remove_cors(headers: &mut HeaderMap) {
    for name in [
        header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        header::ACCESS_CONTROL_ALLOW_METHODS,
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
    ] {
        headers.remove(name);
    }
}

/// Passes bytes between two upgraded connections until one of them ends.
fn join(client: Upgrade, backend: OnUpgrade) {
    base::task::spawn(async move {
        let Upgrade { on, _held } = client;
        let (Ok(client), Ok(backend)) = tokio::join!(on, backend) else { return };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        if let Err(err) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
            debug!(error = %err, "proxied stream ended");
        }
        // Where one side broke, the other is still told of the end.
        let end = async { tokio::join!(client.shutdown(), backend.shutdown()) };
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, end).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_what_belongs_to_the_connection_stay_behind() {
        let mut request = Request::get("/x")
            .header("authorization", "Bearer t")
            .header("impersonate-user", "u")
            .header("connection", "keep-alive")
            .header("te", "trailers")
            .header("accept", "application/json")
            .header("x-forwarded-for", "192.0.2.9")
            .body(Bytes::new())
            .unwrap();
        request.extensions_mut().insert(ClientAddress("192.0.2.1:5".parse().unwrap()));
        let onward = onward(request, "/y?a=b", "host.example").unwrap();
        let names: Vec<&str> = onward.request.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["accept", "x-forwarded-for", "host"]);
        assert_eq!(onward.request.headers()["x-forwarded-for"], "192.0.2.9, 192.0.2.1");
        assert_eq!(onward.request.uri(), "/y?a=b");
    }

    #[test]
    fn an_upgrade_keeps_its_headers_but_not_its_token() {
        let request = Request::get("/x")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header(
                "sec-websocket-protocol",
                "base64url.bearer.authorization.k8s.io.dG9r,v5.channel.k8s.io",
            )
            .body(Bytes::new())
            .unwrap();
        let headers = onward(request, "/y", "h").unwrap().request.headers().clone();
        assert_eq!(headers["connection"], "Upgrade");
        assert_eq!(headers["upgrade"], "websocket");
        assert_eq!(headers["sec-websocket-protocol"], "v5.channel.k8s.io");
    }
}
