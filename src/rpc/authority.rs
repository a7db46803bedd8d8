//! Lets in clients that call a server by the path of its socket.
//!
//! Some gRPC libraries send the path, plain or escaped, as `:authority`. That is no name that
//! URIs allow, and the HTTP/2 below resets such calls before anybody sees them. Nobody reads
//! the name, so it is replaced on the way in by another of the same length: the length counts
//! in the table of headers that both sides keep (RFC 7541, section 4.1). Everything else
//! passes as it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Longest frame that a server takes unless it says more; we do not.
const FRAME_BYTES_MAX: usize = 16_384;
const READ_BYTES: usize = 8_192;
/// The place of `:authority` among the headers that have one (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// The same spelled out, plain and Huffman-coded.
const NAMES: [&[u8]; 2] = [b":authority", &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f]];

/// How many symbols have a code of that many bits (RFC 7541, appendix B); codes of a length
/// follow each other, and those of the next length follow them.
const CODES: [(u32, u32); 21] = [
    (5, 10),
    (6, 26),
    (7, 32),
    (8, 6),
    (10, 5),
    (11, 3),
    (12, 2),
    (13, 6),
    (14, 2),
    (15, 3),
    (19, 3),
    (20, 8),
    (21, 13),
    (22, 26),
    (23, 29),
    (24, 12),
    (25, 4),
    (26, 15),
    (27, 19),
    (28, 29),
    // A fourth means the end of all text, and is in none.
    (30, 3),
];

/// Characters that a Huffman-coded text has; None if it is none.
fn coded_chars(text: &[u8]) -> Option<usize> {
    let mut bits = text.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1));
    let mut count = 0;
    'symbols: loop {
        let (mut code, mut length, mut first, mut seen) = (0u32, 0, 0u32, 0u32);
        for (wanted, symbols) in CODES {
            first = (first + seen) << (wanted - length);
            seen = symbols;
            while length < wanted {
                match bits.next() {
                    Some(bit) => code = code << 1 | u32::from(bit),
                    // What is left at the end are the first bits of no symbol.
                    None if length < 8 && code + 1 == 1 << length => return Some(count),
                    None => return None,
                }
                length += 1;
            }
            if code - first < symbols {
                count += 1;
                continue 'symbols;
            }
        }
        return None;
    }
}

/// A number of the header block and the bytes it takes (RFC 7541, section 5.1).
fn number(block: &[u8], prefix: u32) -> Option<(usize, usize)> {
    let mask = (1usize << prefix) - 1;
    let mut value = usize::from(*block.first()?) & mask;
    if value < mask {
        return Some((value, 1));
    }
    for (index, byte) in block[1..].iter().enumerate().take(4) {
        value += usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 2));
        }
    }
    None
}

/// The bytes that a text takes, where it begins in them, and whether it is coded.
fn text(block: &[u8]) -> Option<(usize, usize, bool)> {
    let (length, head) = number(block, 7)?;
    let is_coded = block[0] & 0x80 != 0;
    (head + length <= block.len()).then_some((head + length, head, is_coded))
}

fn put_number(out: &mut BytesMut, mut value: usize, prefix: u32) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        return out.put_u8(value as u8);
    }
    out.put_u8(mask as u8);
    value -= mask;
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// The header block with another `:authority`; None if it cannot be read.
fn rename(mut block: &[u8]) -> Option<BytesMut> {
    let mut out = BytesMut::with_capacity(block.len() + 64);
    while let Some(first) = block.first() {
        let (prefix, is_literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let (name, mut length) = number(block, prefix)?;
        if !is_literal {
            out.put(&block[..length]);
            block.advance(length);
            continue;
        }
        let mut is_authority = name == AUTHORITY;
        if name == 0 {
            let spelled = &block[length..];
            let (bytes, head, _) = text(spelled)?;
            is_authority = NAMES.contains(&&spelled[head..bytes]);
            length += bytes;
        }
        out.put(&block[..length]);
        block.advance(length);
        let (length, head, is_coded) = text(block)?;
        if is_authority {
            let value = &block[head..length];
            let chars = if is_coded { coded_chars(value)? } else { value.len() };
            put_number(&mut out, chars, 7);
            out.put_bytes(b'x', chars);
        } else {
            out.put(&block[..length]);
        }
        block.advance(length);
    }
    Some(out)
}

/// A frame with headers, head included, as it is passed on.
fn renamed(frame: &[u8]) -> Option<BytesMut> {
    let (head, payload) = frame.split_at(HEAD_BYTES);
    let flags = head[4];
    let padding = if flags & PADDED != 0 { usize::from(*payload.first()?) } else { 0 };
    let before = usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
    let end = payload.len().checked_sub(padding)?;
    let block = rename(payload.get(before..end)?)?;
    let length = before + block.len() + padding;
    if flags & END_HEADERS == 0 || length > FRAME_BYTES_MAX {
        return None;
    }
    let mut out = BytesMut::with_capacity(HEAD_BYTES + length);
    out.put_uint(length as u64, 3);
    out.put(&head[3..]);
    out.put(&payload[..before]);
    out.put(block);
    out.put(&payload[end..]);
    Some(out)
}

/// A connection of a client, renamed as it is read.
pub(crate) struct Renamed<S> {
    inner: S,
    read: BytesMut,
    ready: BytesMut,
    /// Bytes that pass before the next frame begins.
    passing: usize,
}

impl<S> Renamed<S> {
    pub(crate) fn new(inner: S) -> Self {
        let (read, ready) = (BytesMut::new(), BytesMut::new());
        Self { inner, read, ready, passing: PREFACE_BYTES }
    }

    /// Moves what is complete to what may be read.
    fn pass(&mut self) {
        loop {
            let now = self.passing.min(self.read.len());
            self.ready.unsplit(self.read.split_to(now));
            self.passing -= now;
            if self.passing > 0 || self.read.len() < HEAD_BYTES {
                return;
            }
            let mut head = &self.read[..3];
            let length = HEAD_BYTES + head.get_uint(3) as usize;
            if self.read[3] != HEADERS || length > HEAD_BYTES + FRAME_BYTES_MAX {
                self.passing = length;
                continue;
            }
            if self.read.len() < length {
                return;
            }
            match renamed(&self.read[..length]) {
                Some(frame) => {
                    self.read.advance(length);
                    self.ready.unsplit(frame);
                }
                // Whatever it is, the one who reads it says so.
                None => self.passing = length,
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Renamed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.ready.is_empty() {
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // The end; what is cut off there is passed as it is.
                this.ready.unsplit(this.read.split());
                break;
            }
            this.read.put(read.filled());
            this.pass();
        }
        let now = this.ready.len().min(out.remaining());
        out.put_slice(&this.ready.split_to(now));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Renamed<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    /// `%2Ftmp`, coded.
    const ESCAPED: [u8; 5] = [0x54, 0x58, 0xd3, 0x4d, 0x7f];

    #[test]
    fn the_length_of_a_coded_text_is_known() {
        assert_eq!(coded_chars(&ESCAPED), Some(6));
        // www.example.com (RFC 7541, appendix C.4.1)
        let text = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(coded_chars(&text), Some(15));
        assert_eq!(coded_chars(&[]), Some(0));
        assert_eq!(coded_chars(&[0xff; 8]), None, "the end of all text is no text");
        assert_eq!(coded_chars(&[0x00, 0x00]), None, "padding is made of ones");
    }

    #[test]
    fn only_the_authority_changes_and_keeps_its_length() {
        let mut block = vec![0x83, 0x86, 0x41, 0x85];
        block.extend(ESCAPED);
        block.extend([0x40, 1, b'a', 1, b'b', 0x0f, 0x01, 1, b'c', 0x3f, 0x01]);
        let renamed = rename(&block).unwrap();
        assert_eq!(&renamed[..10], [0x83, 0x86, 0x41, 6, b'x', b'x', b'x', b'x', b'x', b'x']);
        assert_eq!(&renamed[10..], &block[9..]);
        let mut long = vec![0x01, 0x7f, 0x49];
        long.extend([b'/'; 200]);
        assert_eq!(rename(&long).unwrap().len(), long.len());
        for name in NAMES {
            let is_coded = if name.len() == 8 { 0x80 } else { 0 };
            let mut spelled = vec![0x40, name.len() as u8 | is_coded];
            spelled.extend(name);
            spelled.extend([2, b'%', b'2']);
            let renamed = rename(&spelled).unwrap();
            assert_eq!(&renamed[renamed.len() - 3..], [2, b'x', b'x']);
        }
        for torn in [&[0x41][..], &[0x41, 5, b'a'], &[0x40, 9], &[0xff, 0x80, 0x80, 0x80, 0x80]] {
            assert_eq!(rename(torn), None);
        }
    }

    #[tokio::test]
    async fn a_stream_passes_however_it_is_cut() {
        let mut stream = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        stream.extend([0, 0, 2, 0, 0, 0, 0, 0, 1, b'd', b'a']);
        // Padded by two bytes, with a priority.
        stream.extend([0, 0, 13, 1, 0x2c, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9]);
        stream.extend([0x41, 3, b'/', b'a', b'%', 0, 0]);
        // Its headers go on in another frame: left alone.
        stream.extend([0, 0, 3, 1, 0, 0, 0, 0, 3, 0x41, 1, b'/']);
        stream.extend([0, 0, 9, 1, 4, 0]);
        let mut wanted = stream.clone();
        let at = wanted.windows(3).position(|it| it == b"/a%").unwrap();
        wanted[at..at + 3].copy_from_slice(b"xxx");
        for size in [1, 7, 1000] {
            let mut mock = in_pieces(&stream, size);
            let mut seen = Vec::new();
            mock.read_to_end(&mut seen).await.unwrap();
            assert_eq!(seen, wanted, "in pieces of {size}");
        }
    }

    fn in_pieces(stream: &[u8], size: usize) -> Renamed<Pieces> {
        let pieces = stream.chunks(size).map(<[u8]>::to_vec).collect();
        Renamed::new(Pieces(pieces))
    }

    struct Pieces(std::collections::VecDeque<Vec<u8>>);

    impl AsyncRead for Pieces {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some(piece) = self.get_mut().0.pop_front() {
                out.put_slice(&piece);
            }
            Poll::Ready(Ok(()))
        }
    }
}
