//! Remembers how a peer began to speak: a handshake that fails does not tell.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More is not kept.
const BYTES_MAX: usize = 8;

/// What the peer said first.
#[derive(Clone, Default)]
pub struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    /// `words` are at most `BYTES_MAX` long.
    pub fn is(&self, words: &[u8]) -> bool {
        self.0.lock().starts_with(words)
    }
}

pub struct Heard<S> {
    stream: S,
    said: Said,
    has_heard: bool,
}

/// `stream`, and what will come first of it.
pub fn heard<S>(stream: S) -> (Heard<S>, Said) {
    let said = Said::default();
    (Heard { stream, said: said.clone(), has_heard: false }, said)
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if !this.has_heard
            && let Some(new) = buffer.filled().get(before..)
        {
            let mut said = this.said.0.lock();
            let room = BYTES_MAX - said.len();
            said.extend(new.iter().take(room));
            this.has_heard = said.len() == BYTES_MAX;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
