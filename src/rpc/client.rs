//! Asks a server behind a socket.
//!
//! One connection per channel, made when it is first needed and again after it broke. A call
//! is made once: whether it may be repeated only its caller knows.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tracing::debug;

use crate::deadline;
use crate::frame::{self, Frames};
use crate::{Code, MESSAGE_BYTES_MAX, Status};

/// How long a socket may take to be connected; longer is a backlog that nobody empties.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

pub struct Channel {
    socket: PathBuf,
    message_bytes_max: usize,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Channel {
    /// Connects when it is first asked for something.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            message_bytes_max: MESSAGE_BYTES_MAX,
            connection: Mutex::default(),
        }
    }

    /// Bytes of an answer that are read at most.
    #[must_use]
    pub fn with_message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// One request, one answer; `method` is `/PACKAGE.SERVICE/METHOD`.
    ///
    /// # Errors
    /// What the server says, DeadlineExceeded after `patience`, or Unavailable when there is
    /// no server or it goes away.
    pub async fn unary<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
        patience: Duration,
    ) -> Result<A, Status> {
        frame::read(self.exchange(method, frame::write(request), patience).await?)
    }

    /// What is the same for all messages is compiled once.
    async fn exchange(
        &self,
        method: &str,
        request: Bytes,
        patience: Duration,
    ) -> Result<Bytes, Status> {
        let call = async {
            let mut answers = self.call(method, request, Some(patience)).await?;
            let answer = answers.next().await?;
            // The status comes after the message, and counts.
            let more = answers.next().await?;
            match (answer, more) {
                (Some(answer), None) => Ok(answer),
                (answer, _) => {
                    let many = if answer.is_some() { "more than one" } else { "no" };
                    let said = format!("{many} message in the answer to a unary call");
                    Err(Status::new(Code::Internal, said))
                }
            }
        };
        tokio::time::timeout(patience, call).await.unwrap_or_else(|_| Err(Status::late()))
    }

    /// One request, a stream of answers without an end in time. Returns once the server
    /// begins to answer; with many servers that is the first message. The caller sets the
    /// deadline, and ends the call by dropping it.
    ///
    /// # Errors
    /// As [`Channel::unary`].
    pub async fn streaming<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<Replies<A>, Status> {
        let pieces = self.call(method, frame::write(request), None).await?;
        Ok(Replies { pieces, _answer: std::marker::PhantomData })
    }

    async fn call(
        &self,
        method: &str,
        request: Bytes,
        patience: Option<Duration>,
    ) -> Result<Pieces, Status> {
        let mut connection = self.connected().await?;
        let mut head = Request::post(format!("http://localhost{method}"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers");
        if let Some(patience) = patience {
            head = head.header(deadline::TIMEOUT, deadline::write(patience));
        }
        let request = head
            .body(Full::new(request))
            .map_err(|error| Status::new(Code::Internal, error.to_string()))?;
        let response = connection.send_request(request).await.map_err(|error| {
            Status::new(Code::Unavailable, format!("error reading from server: {error}"))
        })?;
        let (head, body) = response.into_parts();
        // A call that fails at once has its status where the headers are.
        match Status::read(&head.headers) {
            Some(Err(status)) => return Err(status),
            Some(Ok(())) => {}
            None if !head.status.is_success() => return Err(Status::of_http(head.status)),
            None => {}
        }
        let is_over = head.headers.contains_key(crate::status::STATUS);
        let frames = (!is_over).then(|| Frames::new(body, self.message_bytes_max));
        Ok(Pieces { frames })
    }

    async fn connected(&self) -> Result<SendRequest<Full<Bytes>>, Status> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|it| !it.is_closed()) {
            return Ok(connection.clone());
        }
        let refused = |error: &dyn std::fmt::Display| {
            let socket = self.socket.display();
            let said = format!(
                "connection error: desc = \"transport: Error while dialing: dial unix {socket}: \
                 connect: {error}\""
            );
            Status::new(Code::Unavailable, said)
        };
        let connecting = async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
                let words = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
                match words {
                    Some(rustix::io::Errno::NOENT) => refused(&"no such file or directory"),
                    Some(rustix::io::Errno::CONNREFUSED) => refused(&"connection refused"),
                    Some(rustix::io::Errno::ACCESS) => refused(&"permission denied"),
                    _ => refused(&error),
                }
            })?;
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|error| refused(&error))
        };
        let (connection, driving) = tokio::time::timeout(CONNECT_PATIENCE, connecting)
            .await
            .unwrap_or_else(|_| Err(refused(&"i/o timeout")))?;
        let socket = self.socket.clone();
        // Ends when the peer goes, or with the last handle to the connection.
        base::task::spawn(async move {
            if let Err(error) = driving.await {
                debug!(socket = %socket.display(), %error, "connection broke");
            }
        });
        *held = Some(connection.clone());
        Ok(connection)
    }
}

/// The bytes of the messages of an answer.
struct Pieces {
    /// None once the stream has ended.
    frames: Option<Frames<Incoming>>,
}

impl Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(frames) = self.frames.as_mut() else { return Ok(None) };
        let outcome = match frames.next().await {
            Ok(None) => match frames.trailers().and_then(Status::read) {
                Some(outcome) => outcome.map(|()| None),
                None => Err(Status::new(
                    Code::Internal,
                    "server closed the stream without sending trailers",
                )),
            },
            next => next,
        };
        if !matches!(outcome, Ok(Some(_))) {
            self.frames = None;
        }
        outcome
    }
}

/// The answers of a streaming call.
pub struct Replies<A> {
    pieces: Pieces,
    _answer: std::marker::PhantomData<fn() -> A>,
}

impl<A: Message + Default> Replies<A> {
    /// The next answer; None when the server ended the call well.
    ///
    /// # Errors
    /// What the server says, or Unavailable when it went away. The call is over then.
    pub async fn next(&mut self) -> Result<Option<A>, Status> {
        let Some(bytes) = self.pieces.next().await? else { return Ok(None) };
        frame::read(bytes).map(Some).inspect_err(|_| self.pieces.frames = None)
    }
}
