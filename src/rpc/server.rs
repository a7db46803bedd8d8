//! Answers on a socket: methods by name, one handler each.
//!
//! Who may connect is the socket's permissions' business.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use bytes::Bytes;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::net::UnixListener;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::authority::Renamed;
use crate::deadline;
use crate::frame::{self, Frames};
use crate::seats::{InUse, Seats};
use crate::{Code, MESSAGE_BYTES_MAX, Status};

/// Connections of one socket at a time.
const CONNECTIONS_MAX: usize = 64;
/// Calls of one connection at a time; the client's HTTP/2 queues the next.
const CALLS_PER_CONNECTION_MAX: u32 = 100;
/// How long a request's message may take to arrive.
const REQUEST_PATIENCE: Duration = Duration::from_secs(60);
/// How long the process waits before it accepts again when descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection that is told to end may take for it.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// What is known of a call besides its request.
#[derive(Debug, Clone)]
pub struct Call {
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    pub metadata: HeaderMap,
}

/// The answers of a streaming method.
pub type Answers<A> = BoxStream<'static, Result<A, Status>>;

/// A call that fails before its first message has nothing but headers.
type Body = Either<Empty<Bytes>, StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>>;
type Outcome = Result<BoxStream<'static, Result<Bytes, Status>>, Status>;
type Handler =
    Box<dyn Fn(Bytes, Call) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync>;

/// The methods of a server.
pub struct Routes {
    handlers: HashMap<String, Handler>,
    message_bytes_max: usize,
}

impl Default for Routes {
    fn default() -> Self {
        Self { handlers: HashMap::new(), message_bytes_max: MESSAGE_BYTES_MAX }
    }
}

impl Routes {
    /// Bytes of a request that are read at most.
    #[must_use]
    pub fn with_message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// One request, one answer; `method` is `/PACKAGE.SERVICE/METHOD`.
    #[must_use]
    pub fn unary<Q, A, F, R>(self, method: &str, handler: F) -> Self
    where
        Q: Message + Default + 'static,
        A: Message + 'static,
        F: Fn(Q, Call) -> R + Send + Sync + 'static,
        R: Future<Output = Result<A, Status>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.route(method, move |bytes, call| {
            let handler = handler.clone();
            async move {
                let answer = handler(frame::read(bytes)?, call).await?;
                Ok(stream::iter([Ok(frame::write(&answer))]).boxed())
            }
        })
    }

    /// One request, a stream of answers. The stream is dropped when the client goes.
    #[must_use]
    pub fn streaming<Q, A, F, R>(self, method: &str, handler: F) -> Self
    where
        Q: Message + Default + 'static,
        A: Message + 'static,
        F: Fn(Q, Call) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Answers<A>, Status>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.route(method, move |bytes, call| {
            let handler = handler.clone();
            async move {
                let answers = handler(frame::read(bytes)?, call).await?;
                Ok(answers.map(|answer| answer.map(|it| frame::write(&it))).boxed())
            }
        })
    }

    fn route<F, R>(mut self, method: &str, handler: F) -> Self
    where
        F: Fn(Bytes, Call) -> R + Send + Sync + 'static,
        R: Future<Output = Outcome> + Send + 'static,
    {
        let handler: Handler = Box::new(move |bytes, call| Box::pin(handler(bytes, call)));
        self.handlers.insert(method.to_owned(), handler);
        self
    }

    async fn answer(&self, request: Request<Incoming>, in_use: InUse) -> Response<Body> {
        let (head, body) = request.into_parts();
        let kind = head.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        if !kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
            return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        if head.method != Method::POST {
            return refused(StatusCode::METHOD_NOT_ALLOWED);
        }
        let patience = head.headers.get(deadline::TIMEOUT);
        let patience = patience.and_then(|it| it.to_str().ok()).and_then(deadline::read);
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        let method = head.uri.path().to_owned();
        let call = Call { deadline, metadata: head.headers };
        let work = self.call(&method, body, call);
        let outcome = match deadline {
            Some(at) => {
                tokio::time::timeout_at(at, work).await.unwrap_or_else(|_| Err(Status::late()))
            }
            None => work.await,
        };
        respond(outcome, deadline, in_use)
    }

    async fn call(&self, method: &str, body: Incoming, call: Call) -> Outcome {
        let handler = self.handlers.get(method).ok_or_else(|| unknown(&self.handlers, method))?;
        let mut frames = Frames::new(body, self.message_bytes_max);
        let message = tokio::time::timeout(REQUEST_PATIENCE, frames.next())
            .await
            .unwrap_or_else(|_| Err(Status::new(Code::Canceled, "the request did not arrive")))?
            .ok_or_else(|| Status::new(Code::Internal, "the request has no message"))?;
        handler(message, call).await
    }
}

fn unknown(handlers: &HashMap<String, Handler>, method: &str) -> Status {
    let (service, name) = method.trim_start_matches('/').rsplit_once('/').unwrap_or((method, ""));
    let is_known = handlers.keys().any(|known| {
        known.trim_start_matches('/').rsplit_once('/').is_some_and(|(known, _)| known == service)
    });
    let said = if is_known {
        format!("unknown method {name} for service {service}")
    } else {
        format!("unknown service {service}")
    };
    Status::new(Code::Unimplemented, said)
}

fn refused(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Either::Left(Empty::new()));
    *response.status_mut() = status;
    response
}

fn respond(outcome: Outcome, deadline: Option<Instant>, in_use: InUse) -> Response<Body> {
    let mut response = match outcome {
        Ok(messages) => {
            Response::new(Either::Right(StreamBody::new(body(messages, deadline, in_use))))
        }
        Err(status) => {
            let mut response = Response::new(Either::Left(Empty::new()));
            *response.headers_mut() = Status::write(&Err(status));
            response
        }
    };
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The messages up to the first that failed, and then how it ended.
fn body(
    messages: impl Stream<Item = Result<Bytes, Status>> + Send + Unpin + 'static,
    deadline: Option<Instant>,
    in_use: InUse,
) -> BoxStream<'static, Result<Frame<Bytes>, Infallible>> {
    stream::unfold(Some((messages, in_use)), move |rest| async move {
        let (mut messages, in_use) = rest?;
        let next = match deadline {
            Some(at) => tokio::time::timeout_at(at, messages.next())
                .await
                .unwrap_or_else(|_| Some(Err(Status::late()))),
            None => messages.next().await,
        };
        Some(match next {
            Some(Ok(bytes)) => (Ok(Frame::data(bytes)), Some((messages, in_use))),
            Some(Err(status)) => (Ok(Frame::trailers(Status::write(&Err(status)))), None),
            None => (Ok(Frame::trailers(Status::write(&Ok(())))), None),
        })
    })
    .boxed()
}

/// A socket to serve on, with the permissions of `mode`. A socket that lies there is taken to
/// be left behind by an earlier process.
///
/// # Errors
/// When something else than a socket lies there, or the directory cannot be made.
pub fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::from(io::ErrorKind::AlreadyExists)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Serves until the drain begins; calls that run then have a moment to end.
pub async fn serve(listener: UnixListener, routes: Routes, drain: Drain) {
    let routes = Arc::new(routes);
    let seats = Seats::new(CONNECTIONS_MAX);
    loop {
        let Some(accepted) = drain.until(listener.accept()).await else { return };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(seat) = drain.until(seats.take()).await else { return };
        let (routes, mut drain) = (routes.clone(), drain.clone());
        base::task::spawn(async move {
            let seat = Arc::new(seat);
            let service = service_fn(|request| {
                let (routes, in_use) = (routes.clone(), seat.call());
                async move { Ok::<_, Infallible>(routes.answer(request, in_use).await) }
            });
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
                .serve_connection(TokioIo::new(Renamed::new(stream)), service);
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = drain.begun() => {
                    connection.as_mut().graceful_shutdown();
                    drained(connection).await
                }
                () = seat.wanted() => {
                    // Who never called has nothing to lose, and may not even speak HTTP/2.
                    if seat.is_unused() {
                        return;
                    }
                    connection.as_mut().graceful_shutdown();
                    let _ = drained(connection.as_mut()).await;
                    if seat.is_idle() {
                        return;
                    }
                    // A call came at the same moment.
                    tokio::select! {
                        ended = connection.as_mut() => ended,
                        () = drain.begun() => drained(connection).await,
                    }
                }
            };
            if let Err(error) = ended {
                debug!(%error, "connection broke");
            }
        });
    }
}

async fn drained<E>(connection: impl Future<Output = Result<(), E>>) -> Result<(), E> {
    tokio::time::timeout(DRAIN_PATIENCE, connection).await.unwrap_or(Ok(()))
}
