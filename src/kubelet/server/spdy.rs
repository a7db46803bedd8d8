//! A SPDY/3.1 server on any byte stream: frames, header compression, streams, windows.
//!
//! Knows nothing of what the streams mean. A malformed frame ends the connection; every
//! buffer has a bound. Peers that never speak of windows (moby/spdystream, so kubectl)
//! are sent to without one; others get no more than they allowed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

/// Further streams are refused.
const STREAMS_MAX: usize = 512;
/// A larger control frame, or header block once unpacked, ends the connection.
const CONTROL_BYTES_MAX: usize = 64 << 10;
/// Data is handed on in pieces of at most this size.
const PIECE_BYTES_MAX: usize = 32 << 10;
/// Pieces that wait for a stream's reader; then the connection is not read on.
const PIECES_MAX: usize = 8;
/// Frames that wait to be written.
const OUT_FRAMES_MAX: usize = 32;
/// Window of a stream and of the session until told otherwise (SPDY/3.1, 2.6.8).
const WINDOW_BYTES: i64 = 64 << 10;
const WINDOW_BYTES_MAX: i64 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

const FLAG_FIN: u8 = 1;
const RST_PROTOCOL_ERROR: u32 = 1;
const RST_INVALID_STREAM: u32 = 2;
const RST_REFUSED_STREAM: u32 = 3;
const RST_CANCEL: u32 = 5;
const SETTING_INITIAL_WINDOW: u32 = 7;

pub type Headers = BTreeMap<String, String>;

/// The words that both sides' header compression starts from (SPDY/3, 2.6.10.1).
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
        accept-language accept-ranges age allow authorization cache-control connection \
        content-base content-encoding content-language content-length content-location \
        content-md5 content-range content-type date etag expect expires from host if-match \
        if-modified-since if-none-match if-range if-unmodified-since last-modified location \
        max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after \
        server te trailer transfer-encoding upgrade user-agent vary via warning \
        www-authenticate method get status 200\u{1}OK version HTTP/1.1 url public set-cookie \
        keep-alive origin";
    const TAIL: &str = "10010120120220520630030230330430530630740240540640740840941041141241341441\
        5416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 \
        Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
        Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec \
        00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,\
        image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivate\
        max-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut out = Vec::with_capacity(1423);
    for word in WORDS.split_ascii_whitespace() {
        let word = word.replace('\u{1}', " ");
        out.extend_from_slice(&(word.len() as u32).to_be_bytes());
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(TAIL.as_bytes());
    out
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("spdy: {what}"))
}

struct Unpacker(Decompress);

impl Unpacker {
    fn new() -> Self {
        Self(Decompress::new(true))
    }

    fn unpack(&mut self, mut input: &[u8]) -> io::Result<Headers> {
        let mut out: Vec<u8> = Vec::with_capacity(1024);
        loop {
            if out.len() == out.capacity() {
                if out.len() >= CONTROL_BYTES_MAX {
                    return Err(broken("headers are too large"));
                }
                out.reserve(out.capacity());
            }
            let before = (self.0.total_in(), out.len());
            let status = match self.0.decompress_vec(input, &mut out, FlushDecompress::Sync) {
                Ok(status) => status,
                Err(error) if error.needs_dictionary().is_some() => {
                    let used = (self.0.total_in() - before.0) as usize;
                    input = input.get(used..).unwrap_or_default();
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|_| broken("headers use an unknown dictionary"))?;
                    continue;
                }
                Err(_) => return Err(broken("headers cannot be unpacked")),
            };
            let used = (self.0.total_in() - before.0) as usize;
            input = input.get(used..).unwrap_or_default();
            let stuck = used == 0 && out.len() == before.1 && out.len() < out.capacity();
            if status == Status::StreamEnd
                || stuck
                || (input.is_empty() && out.len() < out.capacity())
            {
                break;
            }
        }
        parse_headers(&out)
    }
}

fn parse_headers(mut block: &[u8]) -> io::Result<Headers> {
    let mut out = Headers::new();
    let count = take_u32(&mut block)?;
    for _ in 0..count {
        let name = take_text(&mut block)?;
        let value = take_text(&mut block)?;
        if name.is_empty() {
            return Err(broken("a header has no name"));
        }
        // Several values are parted by NUL; the first one is what is asked for.
        let value = value.split('\0').next().unwrap_or_default().to_owned();
        out.insert(name.to_ascii_lowercase(), value);
    }
    Ok(out)
}

fn take_u32(block: &mut &[u8]) -> io::Result<u32> {
    let (head, rest) =
        block.split_first_chunk::<4>().ok_or_else(|| broken("headers are cut off"))?;
    *block = rest;
    Ok(u32::from_be_bytes(*head))
}

fn take_text(block: &mut &[u8]) -> io::Result<String> {
    let length = take_u32(block)? as usize;
    let text = block.get(..length).ok_or_else(|| broken("headers are cut off"))?;
    *block = &block[length..];
    String::from_utf8(text.to_vec()).map_err(|_| broken("a header is not text"))
}

struct Packer(Compress);

impl Packer {
    fn new() -> Self {
        let mut compress = Compress::new(Compression::default(), true);
        compress.set_dictionary(&dictionary()).expect("a fresh stream takes a dictionary");
        Self(compress)
    }

    fn pack(&mut self, headers: &Headers) -> io::Result<Vec<u8>> {
        let mut block = Vec::new();
        block.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name, value] {
                block.put_u32(text.len() as u32);
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(block.len() + 64);
        let mut input = block.as_slice();
        loop {
            let before = self.0.total_in();
            self.0
                .compress_vec(input, &mut out, FlushCompress::Sync)
                .map_err(|_| broken("headers cannot be packed"))?;
            input = &input[(self.0.total_in() - before) as usize..];
            if input.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(256);
        }
    }
}

enum Out {
    Reply { stream: u32, headers: Headers },
    Data { stream: u32, bytes: Bytes, fin: bool },
    Reset { stream: u32, code: u32 },
    Ping(u32),
    Window { stream: u32, delta: u32 },
    GoAway,
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + body.len());
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32((u32::from(flags) << 24) | body.len() as u32);
    out.extend_from_slice(body);
    out
}

fn encode(out: Out, packer: &mut Packer, last_stream: u32) -> io::Result<(Vec<u8>, Bytes)> {
    let pair = |a: u32, b: u32| [a.to_be_bytes(), b.to_be_bytes()].concat();
    let frame = match out {
        Out::Reply { stream, headers } => {
            let mut body = stream.to_be_bytes().to_vec();
            body.extend(packer.pack(&headers)?);
            control(SYN_REPLY, 0, &body)
        }
        Out::Data { stream, bytes, fin } => {
            let mut head = Vec::with_capacity(8);
            head.put_u32(stream);
            head.put_u32((u32::from(fin) << 24) | bytes.len() as u32);
            return Ok((head, bytes));
        }
        Out::Reset { stream, code } => control(RST_STREAM, 0, &pair(stream, code)),
        Out::Ping(id) => control(PING, 0, &id.to_be_bytes()),
        Out::Window { stream, delta } => control(WINDOW_UPDATE, 0, &pair(stream, delta)),
        Out::GoAway => control(GOAWAY, 0, &pair(last_stream, 0)),
    };
    Ok((frame, Bytes::new()))
}

/// How much may be sent, once the peer has spoken of windows at all.
struct Windows {
    is_used: AtomicBool,
    left: Mutex<HashMap<u32, i64>>,
    initial: Mutex<i64>,
    grown: Notify,
}

impl Windows {
    fn new() -> Self {
        Self {
            is_used: AtomicBool::new(false),
            left: Mutex::new([(0, WINDOW_BYTES)].into()),
            initial: Mutex::new(WINDOW_BYTES),
            grown: Notify::new(),
        }
    }

    fn open(&self, stream: u32) {
        let initial = *self.initial.lock();
        self.left.lock().insert(stream, initial);
    }

    fn close(&self, stream: u32) {
        self.left.lock().remove(&stream);
        self.grown.notify_waiters();
    }

    fn grow(&self, stream: u32, delta: i64) -> io::Result<()> {
        self.is_used.store(true, Ordering::Release);
        if let Some(left) = self.left.lock().get_mut(&stream) {
            *left += delta;
            if *left > WINDOW_BYTES_MAX {
                return Err(broken("a window overflows"));
            }
        }
        self.grown.notify_waiters();
        Ok(())
    }

    fn set_initial(&self, bytes: i64) {
        self.is_used.store(true, Ordering::Release);
        let mut initial = self.initial.lock();
        let delta = bytes - *initial;
        *initial = bytes;
        for (stream, left) in self.left.lock().iter_mut() {
            if *stream != 0 {
                *left += delta;
            }
        }
        self.grown.notify_waiters();
    }

    /// How many of `wanted` bytes may go now; waits until it is at least one.
    async fn take(&self, stream: u32, wanted: usize) -> io::Result<usize> {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            {
                let mut left = self.left.lock();
                let Some(own) = left.get(&stream).copied() else {
                    return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the stream is closed"));
                };
                let all = left.get(&0).copied().unwrap_or(0);
                let is_used = self.is_used.load(Ordering::Acquire);
                let may = if is_used { own.min(all).min(wanted as i64) } else { wanted as i64 };
                if may > 0 {
                    for key in [0, stream] {
                        if let Some(left) = left.get_mut(&key) {
                            *left -= may;
                        }
                    }
                    return Ok(may as usize);
                }
            }
            grown.await;
        }
    }
}

/// The sending side of a stream.
#[derive(Clone)]
pub struct Sender {
    stream: u32,
    out: mpsc::Sender<Out>,
    windows: Arc<Windows>,
}

impl Sender {
    pub async fn send(&self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            let wanted = bytes.len().min(PIECE_BYTES_MAX);
            let may = self.windows.take(self.stream, wanted).await?;
            let piece = bytes.split_to(may);
            self.put(Out::Data { stream: self.stream, bytes: piece, fin: false }).await?;
        }
        Ok(())
    }

    /// Nothing more comes from this side.
    pub async fn finish(&self) -> io::Result<()> {
        self.put(Out::Data { stream: self.stream, bytes: Bytes::new(), fin: true }).await
    }

    pub async fn reset(&self) -> io::Result<()> {
        self.put(Out::Reset { stream: self.stream, code: RST_CANCEL }).await
    }

    async fn put(&self, out: Out) -> io::Result<()> {
        self.out
            .send(out)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the connection is closed"))
    }
}

/// A stream that the peer has opened; it has been replied to.
pub struct Stream {
    pub headers: Headers,
    /// Ends when the peer has finished or reset the stream.
    pub data: mpsc::Receiver<Bytes>,
    pub sender: Sender,
}

/// Serves one connection. Streams come out of the receiver, which ends with it.
pub fn serve<S>(io: S) -> mpsc::Receiver<Stream>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (streams, accept) = mpsc::channel(8);
    let (out, frames) = mpsc::channel(OUT_FRAMES_MAX);
    let (reader, writer) = tokio::io::split(io);
    let windows = Arc::new(Windows::new());
    let last = Arc::new(Mutex::new(0u32));
    let writing = tokio::spawn(write(writer, frames, last.clone()));
    tokio::spawn(async move {
        let state = Reader {
            out: out.clone(),
            streams,
            windows: windows.clone(),
            last,
            open: HashMap::new(),
        };
        let result = state.run(reader).await;
        // Senders that wait for a window must not wait for ever.
        windows.left.lock().clear();
        windows.grown.notify_waiters();
        if result.is_err() {
            // The writer may be gone already.
            let _ = out.send(Out::GoAway).await;
        }
        drop(out);
        drop(writing);
    });
    accept
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Out>,
    last: Arc<Mutex<u32>>,
) -> io::Result<()> {
    let mut packer = Packer::new();
    while let Some(frame) = frames.recv().await {
        let last_stream = *last.lock();
        let (head, body) = encode(frame, &mut packer, last_stream)?;
        writer.write_all(&head).await?;
        writer.write_all(&body).await?;
        if frames.is_empty() {
            writer.flush().await?;
        }
    }
    writer.shutdown().await
}

struct Open {
    /// None once the peer has finished its side.
    data: Option<mpsc::Sender<Bytes>>,
    /// Received and not yet told back as window.
    owed: u32,
}

struct Reader {
    out: mpsc::Sender<Out>,
    streams: mpsc::Sender<Stream>,
    windows: Arc<Windows>,
    last: Arc<Mutex<u32>>,
    open: HashMap<u32, Open>,
}

impl Reader {
    async fn run(mut self, mut io: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut unpacker = Unpacker::new();
        let mut owed = 0u32;
        loop {
            let mut head = [0u8; 8];
            match io.read_exact(&mut head).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            let [a, b, c, d, flags, x, y, z] = head;
            let length = u32::from_be_bytes([0, x, y, z]) as usize;
            if a & 0x80 == 0 {
                let stream = u32::from_be_bytes([a, b, c, d]);
                self.data(&mut io, stream, length, flags & FLAG_FIN != 0, &mut owed).await?;
                continue;
            }
            if u16::from_be_bytes([a & 0x7f, b]) != 3 {
                return Err(broken("not version 3"));
            }
            if length > CONTROL_BYTES_MAX {
                return Err(broken("a control frame is too large"));
            }
            let mut body = vec![0; length];
            io.read_exact(&mut body).await?;
            self.control(u16::from_be_bytes([c, d]), flags, &body, &mut unpacker).await?;
        }
    }

    async fn put(&self, out: Out) -> io::Result<()> {
        self.out
            .send(out)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the writer has ended"))
    }

    async fn control(
        &mut self,
        kind: u16,
        flags: u8,
        body: &[u8],
        unpacker: &mut Unpacker,
    ) -> io::Result<()> {
        let word = |at: usize| -> io::Result<u32> {
            let bytes = body.get(at..at + 4).and_then(|bytes| bytes.first_chunk::<4>());
            bytes
                .map(|bytes| u32::from_be_bytes(*bytes))
                .ok_or_else(|| broken("a frame is cut off"))
        };
        match kind {
            SYN_STREAM => {
                let stream = word(0)? & 0x7fff_ffff;
                word(4)?;
                let block = body.get(10..).ok_or_else(|| broken("a frame is cut off"))?;
                // Unpacked even if refused: the compression has a memory.
                let headers = unpacker.unpack(block)?;
                self.open(stream, headers, flags & FLAG_FIN != 0).await
            }
            HEADERS | SYN_REPLY => {
                word(0)?;
                unpacker.unpack(&body[4..]).map(drop)
            }
            RST_STREAM => {
                let stream = word(0)? & 0x7fff_ffff;
                self.open.remove(&stream);
                self.windows.close(stream);
                Ok(())
            }
            SETTINGS => {
                let count = word(0)? as usize;
                for index in 0..count.min(body.len() / 8) {
                    let id = word(4 + index * 8)? & 0x00ff_ffff;
                    let value = word(8 + index * 8)?;
                    if id == SETTING_INITIAL_WINDOW {
                        self.windows.set_initial(i64::from(value & 0x7fff_ffff));
                    }
                }
                Ok(())
            }
            // Ours would have even ids; those are answers.
            PING if word(0)? % 2 == 1 => self.put(Out::Ping(word(0)?)).await,
            PING => Ok(()),
            GOAWAY => {
                word(0)?;
                Ok(())
            }
            WINDOW_UPDATE => {
                let delta = word(4)? & 0x7fff_ffff;
                self.windows.grow(word(0)? & 0x7fff_ffff, i64::from(delta))
            }
            // Unknown control frames are passed over (SPDY/3, 2.2.1).
            _ => Ok(()),
        }
    }

    async fn open(&mut self, stream: u32, headers: Headers, fin: bool) -> io::Result<()> {
        let newest = *self.last.lock();
        if stream.is_multiple_of(2) || stream <= newest {
            return self.put(Out::Reset { stream, code: RST_PROTOCOL_ERROR }).await;
        }
        if self.open.len() >= STREAMS_MAX {
            return self.put(Out::Reset { stream, code: RST_REFUSED_STREAM }).await;
        }
        *self.last.lock() = stream;
        let (data, receiver) = mpsc::channel(PIECES_MAX);
        self.open.insert(stream, Open { data: (!fin).then_some(data), owed: 0 });
        self.windows.open(stream);
        self.put(Out::Reply { stream, headers: Headers::new() }).await?;
        let sender = Sender { stream, out: self.out.clone(), windows: self.windows.clone() };
        self.streams
            .send(Stream { headers, data: receiver, sender })
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody accepts streams"))
    }

    async fn data(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        stream: u32,
        mut length: usize,
        fin: bool,
        owed_all: &mut u32,
    ) -> io::Result<()> {
        if !self.open.contains_key(&stream) {
            self.put(Out::Reset { stream, code: RST_INVALID_STREAM }).await?;
        }
        while length > 0 {
            let mut piece = BytesMut::zeroed(length.min(PIECE_BYTES_MAX));
            io.read_exact(&mut piece).await?;
            length -= piece.len();
            let size = piece.len() as u32;
            if let Some(data) = self.open.get(&stream).and_then(|open| open.data.clone()) {
                // A reader that has gone wants none of it; the rest is read and dropped.
                let _ = data.send(piece.freeze()).await;
            }
            *owed_all += size;
            if i64::from(*owed_all) >= WINDOW_BYTES / 2 {
                self.put(Out::Window { stream: 0, delta: *owed_all }).await?;
                *owed_all = 0;
            }
            if let Some(open) = self.open.get_mut(&stream) {
                open.owed += size;
                if i64::from(open.owed) >= WINDOW_BYTES / 2 && !fin {
                    let delta = std::mem::take(&mut open.owed);
                    self.put(Out::Window { stream, delta }).await?;
                }
            }
        }
        if fin && let Some(open) = self.open.get_mut(&stream) {
            open.data = None;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// A client for tests: writes frames and reads those of the server.
    pub struct Peer<S> {
        pub io: S,
        packer: Packer,
        unpacker: Unpacker,
    }

    #[derive(Debug, PartialEq)]
    pub enum Seen {
        Reply(u32),
        Data(u32, Vec<u8>, bool),
        Reset(u32, u32),
        Ping(u32),
        Window(u32, u32),
        GoAway,
    }

    impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
        pub fn new(io: S) -> Self {
            Self { io, packer: Packer::new(), unpacker: Unpacker::new() }
        }

        pub async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
            let headers: Headers =
                headers.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            let mut body = [stream.to_be_bytes(), [0; 4]].concat();
            body.extend([0, 0]);
            body.extend(self.packer.pack(&headers).unwrap());
            self.raw(&control(SYN_STREAM, 0, &body)).await;
        }

        pub async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
            let mut head = Vec::new();
            head.put_u32(stream);
            head.put_u32((u32::from(fin) << 24) | bytes.len() as u32);
            head.extend_from_slice(bytes);
            self.raw(&head).await;
        }

        pub async fn control(&mut self, kind: u16, body: &[u8]) {
            self.raw(&control(kind, 0, body)).await;
        }

        pub async fn raw(&mut self, bytes: &[u8]) {
            self.io.write_all(bytes).await.unwrap();
            self.io.flush().await.unwrap();
        }

        /// The next frame; None at the end.
        pub async fn next(&mut self) -> Option<Seen> {
            let mut head = [0u8; 8];
            self.io.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            let mut body = vec![0; length];
            self.io.read_exact(&mut body).await.ok()?;
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let word = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
            if head[0] & 0x80 == 0 {
                return Some(Seen::Data(first, body, head[4] & 1 == 1));
            }
            Some(match u16::from_be_bytes([head[2], head[3]]) {
                SYN_REPLY => {
                    self.unpacker.unpack(&body[4..]).unwrap();
                    Seen::Reply(word(0))
                }
                RST_STREAM => Seen::Reset(word(0), word(4)),
                PING => Seen::Ping(word(0)),
                WINDOW_UPDATE => Seen::Window(word(0), word(4)),
                GOAWAY => Seen::GoAway,
                other => panic!("frame {other}"),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{Peer, Seen};
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_dictionary_is_the_one_of_the_specification() {
        let bytes = dictionary();
        assert_eq!(bytes.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &bytes {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((b << 16) | a, 0xe3c6_a7c2);
    }

    #[test]
    fn headers_survive_packing_and_the_memory_of_the_compression() {
        let (mut packer, mut unpacker) = (Packer::new(), Unpacker::new());
        for round in 0..50 {
            let headers: Headers = [
                ("streamtype".to_owned(), "data".to_owned()),
                ("port".to_owned(), "8080".to_owned()),
                ("requestid".to_owned(), round.to_string()),
                ("long".to_owned(), "x".repeat(round * 100)),
            ]
            .into();
            let packed = packer.pack(&headers).unwrap();
            assert_eq!(unpacker.unpack(&packed).unwrap(), headers);
        }
    }

    #[tokio::test]
    async fn a_stream_carries_data_both_ways() {
        let (client, server) = tokio::io::duplex(1 << 20);
        let mut accept = serve(server);
        let mut peer = Peer::new(client);
        peer.open(1, &[("streamType", "stdin")]).await;
        peer.data(1, b"hello", false).await;
        peer.data(1, &vec![7; 100_000], true).await;
        peer.control(PING, &1u32.to_be_bytes()).await;
        let mut stream = accept.recv().await.unwrap();
        assert_eq!(stream.headers["streamtype"], "stdin");
        let mut got = Vec::new();
        while let Some(piece) = stream.data.recv().await {
            got.extend_from_slice(&piece);
        }
        assert_eq!(got.len(), 100_005);
        stream.sender.send(Bytes::from(vec![9; 200_000])).await.unwrap();
        stream.sender.finish().await.unwrap();
        let (mut bytes, mut ended, mut seen) = (0, false, Vec::new());
        while !ended {
            match peer.next().await.unwrap() {
                Seen::Data(1, data, fin) => {
                    bytes += data.len();
                    ended = fin;
                }
                other => seen.push(other),
            }
        }
        assert_eq!(bytes, 200_000, "no window was spoken of");
        assert!(seen.contains(&Seen::Reply(1)) && seen.contains(&Seen::Ping(1)), "{seen:?}");
        assert!(seen.iter().any(|it| matches!(it, Seen::Window(0, _))));
    }

    #[tokio::test]
    async fn a_peer_that_uses_windows_gets_no_more_than_it_allows() {
        let (client, server) = tokio::io::duplex(1 << 20);
        let mut accept = serve(server);
        let mut peer = Peer::new(client);
        let setting = [1u32.to_be_bytes(), 7u32.to_be_bytes(), 1000u32.to_be_bytes()].concat();
        peer.control(SETTINGS, &setting).await;
        peer.open(1, &[]).await;
        let stream = accept.recv().await.unwrap();
        let sending = tokio::spawn(async move {
            stream.sender.send(Bytes::from(vec![1; 1500])).await.unwrap();
        });
        assert_eq!(peer.next().await.unwrap(), Seen::Reply(1));
        assert!(
            matches!(peer.next().await.unwrap(), Seen::Data(1, data, false) if data.len() == 1000)
        );
        let more = tokio::time::timeout(Duration::from_millis(50), peer.next()).await;
        assert!(more.is_err(), "sent past the window");
        let update = [1u32.to_be_bytes(), 500u32.to_be_bytes()].concat();
        peer.control(WINDOW_UPDATE, &update).await;
        assert!(
            matches!(peer.next().await.unwrap(), Seen::Data(1, data, false) if data.len() == 500)
        );
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn malformed_input_ends_the_connection_and_nothing_else() {
        let inputs: Vec<Vec<u8>> = vec![
            vec![0xff; 64],
            control(SYN_STREAM, 0, &[0; 3]),
            control(SYN_STREAM, 0, &[[0, 0, 0, 1, 0, 0, 0, 0, 0, 0], [0xaa; 10]].concat()),
            [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff].to_vec(),
            control(WINDOW_UPDATE, 0, &[0, 0]),
            control(SETTINGS, 0, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0]),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        ];
        for input in inputs {
            let (client, server) = tokio::io::duplex(1 << 16);
            let mut accept = serve(server);
            let mut peer = Peer::new(client);
            peer.raw(&input).await;
            peer.io.shutdown().await.unwrap();
            let ended = tokio::time::timeout(Duration::from_secs(5), accept.recv()).await;
            assert!(ended.unwrap().is_none(), "{input:?}");
        }
        let (client, server) = tokio::io::duplex(1 << 16);
        let mut accept = serve(server);
        let mut peer = Peer::new(client);
        peer.open(2, &[]).await;
        peer.data(9, b"x", false).await;
        assert_eq!(peer.next().await.unwrap(), Seen::Reset(2, RST_PROTOCOL_ERROR));
        assert_eq!(peer.next().await.unwrap(), Seen::Reset(9, RST_INVALID_STREAM));
        peer.open(3, &[("a", "b")]).await;
        assert_eq!(accept.recv().await.unwrap().headers["a"], "b", "it goes on");
    }
}
