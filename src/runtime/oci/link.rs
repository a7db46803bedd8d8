//! The server's side of the connection to one shim.
//!
//! Answers find their callers by sequence number; what the shim says on its own goes to
//! one channel. When the shim is gone every waiting call fails.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::shim::proto::{self, Answer, Exit, Failure, FailureKind, Message, Request, Verb};
use crate::cri::{Error, ErrorKind, Result};

/// What a shim gets to answer: as long as other runtimes get (upstream's runtimeRequestTimeout).
/// A start reads its program, and the shim writes logs, on a disk that may be busy for a minute
/// with what others have written.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);

pub enum LinkEvent {
    Exited { container_id: String, exit: Exit },
    Closed { sandbox_id: String },
}

type Reply = (std::result::Result<Answer, Failure>, Vec<OwnedFd>);

pub struct Link {
    socket: UnixStream,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
    execs: Mutex<HashMap<u64, oneshot::Sender<i32>>>,
    writing: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Connects and reads until the shim is gone.
    pub fn connect(
        path: &Path,
        sandbox_id: String,
        events: mpsc::Sender<LinkEvent>,
    ) -> io::Result<Arc<Self>> {
        let stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        let link = Arc::new(Self {
            socket: UnixStream::from_std(stream)?,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
            execs: Mutex::default(),
            writing: tokio::sync::Mutex::new(()),
        });
        // The reader must not keep a link alive that nobody uses any more.
        let reader = Arc::downgrade(&link);
        base::task::spawn(async move {
            if let Some(link) = reader.upgrade() {
                let _ = link.read(&events).await;
                lock(&link.waiting).clear();
                lock(&link.execs).clear();
            }
            let _ = events.send(LinkEvent::Closed { sandbox_id }).await;
        });
        Ok(link)
    }

    async fn read(&self, events: &mpsc::Sender<LinkEvent>) -> io::Result<()> {
        let mut input = Vec::new();
        let mut fds: VecDeque<OwnedFd> = VecDeque::new();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            self.socket.readable().await?;
            let mut arrived = Vec::new();
            let outcome = self.socket.try_io(Interest::READABLE, || {
                sys::socket::receive(self.socket.as_fd(), &mut buffer, &mut arrived)
            });
            fds.extend(arrived);
            match outcome {
                Ok(0) => return Ok(()),
                Ok(length) => input.extend_from_slice(&buffer[..length]),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => continue,
                Err(err) => return Err(err),
            }
            while let Some(frame) = proto::take_frame(&mut input)? {
                match serde_json::from_slice(&frame)? {
                    Message::Answer { seq, fds: count, result } => {
                        let handed: Vec<OwnedFd> = fds.drain(..count.min(fds.len())).collect();
                        if let Some(waiter) = lock(&self.waiting).remove(&seq) {
                            let _ = waiter.send((result, handed));
                        }
                    }
                    Message::Exited { id, exit } => {
                        let event = LinkEvent::Exited { container_id: id, exit };
                        let _ = events.send(event).await;
                    }
                    Message::ExecExited { session, code } => {
                        if let Some(waiter) = lock(&self.execs).remove(&session) {
                            let _ = waiter.send(code);
                        }
                    }
                }
            }
        }
    }

    /// A number for an exec, and the receiver of its exit code.
    pub fn new_session(&self) -> (u64, oneshot::Receiver<i32>) {
        let session = self.next.fetch_add(1, Ordering::Relaxed);
        // Sessions of several servers may meet in one shim.
        let session = session | u64::from(std::process::id()) << 32;
        let (sender, receiver) = oneshot::channel();
        lock(&self.execs).insert(session, sender);
        (session, receiver)
    }

    pub fn forget_session(&self, session: u64) {
        lock(&self.execs).remove(&session);
    }

    pub async fn call(&self, verb: Verb, fds: &[BorrowedFd<'_>]) -> Result<(Answer, Vec<OwnedFd>)> {
        let gone = |err: io::Error| {
            Error::with_source(ErrorKind::Internal, "the pod's shim does not answer", err)
        };
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes = proto::frame(&Request { seq, fds: fds.len(), verb }).map_err(gone)?;
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(seq, sender);
        let answer = tokio::time::timeout(ANSWER_PATIENCE, async {
            self.write(&bytes, fds).await.map_err(gone)?;
            receiver.await.map_err(|_| Error::new(ErrorKind::Internal, "the pod's shim is gone"))
        })
        .await;
        let (result, handed) = match answer {
            Ok(answer) => answer.inspect_err(|_| drop(lock(&self.waiting).remove(&seq)))?,
            Err(_) => {
                lock(&self.waiting).remove(&seq);
                return Err(Error::new(
                    ErrorKind::DeadlineExceeded,
                    format!("the pod's shim did not answer within {ANSWER_PATIENCE:?}"),
                ));
            }
        };
        match result {
            Ok(answer) => Ok((answer, handed)),
            Err(failure) => Err(error_from(failure)),
        }
    }

    async fn write(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let _one_at_a_time = self.writing.lock().await;
        let mut sent = 0;
        while sent < bytes.len() {
            self.socket.writable().await?;
            let with = if sent == 0 { fds } else { &[] };
            let outcome = self.socket.try_io(Interest::WRITABLE, || {
                sys::socket::send(self.socket.as_fd(), &bytes[sent..], with)
            });
            match outcome {
                Ok(length) => sent += length,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }
}

fn error_from(failure: Failure) -> Error {
    let (kind, prefix) = match failure.kind {
        FailureKind::NotFound => (ErrorKind::NotFound, ""),
        FailureKind::Create => (ErrorKind::Create, "unable to start container process: "),
        FailureKind::Start => (ErrorKind::Start, "unable to start container process: "),
        FailureKind::Internal => (ErrorKind::Internal, ""),
    };
    Error::new(kind, format!("{prefix}{}", failure.message))
}
