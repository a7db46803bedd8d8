//! Reads ahead in a thread of its own, so that one core unpacks while another decompresses.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, sync_channel};

const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that may wait to be read.
const CHUNKS_MAX: usize = 8;

pub struct Ahead {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    read: usize,
}

impl Ahead {
    /// The thread ends with the reader, or soon after this is dropped.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn new(mut reader: impl Read + Send + 'static) -> io::Result<Self> {
        let (sender, chunks) = sync_channel(CHUNKS_MAX);
        std::thread::Builder::new().name("decompress".into()).spawn(move || {
            loop {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                let filled = reader.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
                let ends = filled.as_ref().map_or(true, |length| *length == 0);
                // Nobody reads on once the other side is gone.
                if sender.send(filled.map(|_| chunk)).is_err() || ends {
                    break;
                }
            }
        })?;
        Ok(Self { chunks, chunk: Vec::new(), read: 0 })
    }
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.chunk.len() {
            // The thread says that it is at the end by an empty chunk; one that is gone
            // has said so before, or why it failed.
            self.chunk = self.chunks.recv().unwrap_or_else(|_| Ok(Vec::new()))?;
            self.read = 0;
        }
        let rest = &self.chunk[self.read..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.read += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_ahead_is_what_there_is() {
        let all: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let mut read = Vec::new();
        Ahead::new(io::Cursor::new(all.clone())).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == all);
    }

    #[test]
    fn a_failure_comes_after_what_was_read_before_it() {
        struct Breaks(usize);
        impl Read for Breaks {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.0 == 0 {
                    return Err(io::Error::other("the disk is gone"));
                }
                let length = self.0.min(buffer.len());
                self.0 -= length;
                buffer[..length].fill(7);
                Ok(length)
            }
        }
        let mut ahead = Ahead::new(Breaks(CHUNK_BYTES)).unwrap();
        let mut whole = vec![0; CHUNK_BYTES];
        ahead.read_exact(&mut whole).unwrap();
        assert_eq!(ahead.read(&mut whole).unwrap_err().to_string(), "the disk is gone");
    }

    #[test]
    fn the_thread_ends_when_nobody_reads_on() {
        let (gone, dropped) = std::sync::mpsc::channel::<()>();
        struct Endless(std::sync::mpsc::Sender<()>);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                // Nobody needs to hear it: what counts is that it can still be said.
                let _ = self.0.clone();
                buffer.fill(0);
                Ok(buffer.len())
            }
        }
        drop(Ahead::new(Endless(gone)).unwrap());
        let ended = dropped.recv_timeout(std::time::Duration::from_secs(10));
        assert_eq!(ended, Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
    }
}
