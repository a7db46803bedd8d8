//! Pipes and terminals as asynchronous streams.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::mpsc;

use crate::cri::TerminalSize;

/// Sizes that wait; more are dropped.
const SIZES_MAX: usize = 8;

/// What a terminal answers once the last process has closed its other end.
const EIO: i32 = 5;

/// The end to read from. A terminal whose other end is closed reads as ended.
pub struct Reader(Receiver);

pub fn reader(fd: OwnedFd) -> io::Result<Reader> {
    sys::socket::set_nonblocking(fd.as_fd(), true)?;
    // Unchecked, for a terminal is no pipe but can be waited for like one.
    Receiver::from_owned_fd_unchecked(fd).map(Reader)
}

/// The end to write to.
pub fn writer(fd: OwnedFd) -> io::Result<Sender> {
    sys::socket::set_nonblocking(fd.as_fd(), true)?;
    Sender::from_owned_fd_unchecked(fd)
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(context, buffer) {
            Poll::Ready(Err(err)) if err.raw_os_error() == Some(EIO) => Poll::Ready(Ok(())),
            other => other,
        }
    }
}

/// Where sizes for a terminal go; without one they are taken and ignored.
pub fn resizer(terminal: Option<OwnedFd>) -> mpsc::Sender<TerminalSize> {
    let (sender, mut sizes) = mpsc::channel::<TerminalSize>(SIZES_MAX);
    base::task::spawn(async move {
        while let Some(size) = sizes.recv().await {
            if let Some(terminal) = &terminal {
                // A terminal that is gone has no size.
                let _ = sys::pty::resize(terminal.as_fd(), size.width, size.height);
            }
        }
    });
    sender
}
