//! SPDY/3.1 on any byte stream, as server and as client: frames and streams.
//!
//! Knows nothing of what the streams mean. A malformed frame ends the connection; every
//! buffer has a bound. Peers that never speak of windows (moby/spdystream, so kubectl)
//! are sent to without one; others get no more than they allowed.

mod headers;
mod windows;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

pub use headers::Headers;
use headers::{Packer, Unpacker};
use windows::Windows;

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

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("spdy: {what}"))
}

enum Out {
    Open { stream: u32, headers: Headers },
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
        Out::Open { stream, headers } => {
            // No stream is associated, the highest priority, no slot.
            let mut body = pair(stream, 0);
            body.extend([0, 0]);
            body.extend(packer.pack(&headers)?);
            control(SYN_STREAM, 0, &body)
        }
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
    let begun = Shared::start(io);
    let state = Reader { shared: begun.shared, streams: Some(streams), last: begun.last };
    base::task::spawn(state.until_the_end(begun.reader));
    accept
}

/// The other side: opens streams. Dropping it ends the connection.
pub struct Client {
    shared: Shared,
    next: Mutex<u32>,
    reading: tokio::task::AbortHandle,
}

impl Client {
    pub fn new<S>(io: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let begun = Shared::start(io);
        let state = Reader { shared: begun.shared.clone(), streams: None, last: begun.last };
        let reading = base::task::spawn(state.until_the_end(begun.reader)).abort_handle();
        Self { shared: begun.shared, next: Mutex::new(1), reading }
    }

    /// # Errors
    /// When the connection has ended.
    pub async fn open(&self, headers: Headers) -> io::Result<Stream> {
        let stream = {
            let mut next = self.next.lock();
            let stream = *next;
            *next += 2;
            stream
        };
        let opened = self.shared.note(stream, false);
        self.shared.put(Out::Open { stream, headers: headers.clone() }).await?;
        // Too late to be ended with the others.
        if self.shared.out.is_closed() {
            self.shared.open.lock().remove(&stream);
        }
        Ok(Stream { headers, data: opened.0, sender: opened.1 })
    }
}

impl Client {
    /// Ends the connection; what waits to be written still goes out.
    pub fn close(&self) {
        self.reading.abort();
        self.shared.end();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}

/// What readers, senders and clients of a connection share.
#[derive(Clone)]
struct Shared {
    out: mpsc::Sender<Out>,
    windows: Arc<Windows>,
    open: Arc<Mutex<HashMap<u32, Open>>>,
}

struct Begun<S> {
    shared: Shared,
    reader: tokio::io::ReadHalf<S>,
    last: Arc<Mutex<u32>>,
}

impl Shared {
    /// The writer runs; reading is to come.
    fn start<S>(io: S) -> Begun<S>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (out, frames) = mpsc::channel(OUT_FRAMES_MAX);
        let (reader, writer) = tokio::io::split(io);
        let last = Arc::new(Mutex::new(0u32));
        base::task::spawn(write(writer, frames, last.clone()));
        let shared = Self { out, windows: Arc::new(Windows::new()), open: Arc::default() };
        Begun { shared, reader, last }
    }

    fn note(&self, stream: u32, fin: bool) -> (mpsc::Receiver<Bytes>, Sender) {
        let (data, receiver) = mpsc::channel(PIECES_MAX);
        self.open.lock().insert(stream, Open { data: (!fin).then_some(data), owed: 0 });
        self.windows.open(stream);
        let sender = Sender { stream, out: self.out.clone(), windows: self.windows.clone() };
        (receiver, sender)
    }

    /// Receivers of data end, and senders that wait for a window must not wait for ever.
    fn end(&self) {
        self.open.lock().clear();
        self.windows.close_all();
    }

    async fn put(&self, out: Out) -> io::Result<()> {
        self.out
            .send(out)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the writer has ended"))
    }
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
    shared: Shared,
    /// None on the client's side, where the peer opens none.
    streams: Option<mpsc::Sender<Stream>>,
    last: Arc<Mutex<u32>>,
}

impl Reader {
    async fn until_the_end(self, io: impl AsyncRead + Unpin) {
        let shared = self.shared.clone();
        let result = self.run(io).await;
        shared.end();
        if result.is_err() {
            // The writer may be gone already.
            let _ = shared.out.send(Out::GoAway).await;
        }
    }

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
                self.shared.open.lock().remove(&stream);
                self.shared.windows.close(stream);
                Ok(())
            }
            SETTINGS => {
                let count = word(0)? as usize;
                for index in 0..count.min(body.len() / 8) {
                    let id = word(4 + index * 8)? & 0x00ff_ffff;
                    let value = word(8 + index * 8)?;
                    if id == SETTING_INITIAL_WINDOW {
                        self.shared.windows.set_initial(i64::from(value & 0x7fff_ffff));
                    }
                }
                Ok(())
            }
            // A server's own have even ids, a client's odd ones; those are answers.
            PING if (word(0)? % 2 == 1) == self.streams.is_some() => {
                self.shared.put(Out::Ping(word(0)?)).await
            }
            PING => Ok(()),
            GOAWAY => {
                word(0)?;
                Ok(())
            }
            WINDOW_UPDATE => {
                let delta = word(4)? & 0x7fff_ffff;
                self.shared.windows.grow(word(0)? & 0x7fff_ffff, i64::from(delta))
            }
            // Unknown control frames are passed over (SPDY/3, 2.2.1).
            _ => Ok(()),
        }
    }

    async fn open(&mut self, stream: u32, headers: Headers, fin: bool) -> io::Result<()> {
        let newest = *self.last.lock();
        if stream.is_multiple_of(2) || stream <= newest {
            return self.shared.put(Out::Reset { stream, code: RST_PROTOCOL_ERROR }).await;
        }
        let is_full = self.shared.open.lock().len() >= STREAMS_MAX;
        let Some(streams) = self.streams.clone().filter(|_| !is_full) else {
            return self.shared.put(Out::Reset { stream, code: RST_REFUSED_STREAM }).await;
        };
        *self.last.lock() = stream;
        let (data, sender) = self.shared.note(stream, fin);
        self.shared.put(Out::Reply { stream, headers: Headers::new() }).await?;
        streams
            .send(Stream { headers, data, sender })
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
        if !self.shared.open.lock().contains_key(&stream) {
            self.shared.put(Out::Reset { stream, code: RST_INVALID_STREAM }).await?;
        }
        while length > 0 {
            let mut piece = BytesMut::zeroed(length.min(PIECE_BYTES_MAX));
            io.read_exact(&mut piece).await?;
            length -= piece.len();
            let size = piece.len() as u32;
            let to = self.shared.open.lock().get(&stream).and_then(|open| open.data.clone());
            if let Some(data) = to {
                // A reader that has gone wants none of it; the rest is read and dropped.
                let _ = data.send(piece.freeze()).await;
            }
            *owed_all += size;
            if i64::from(*owed_all) >= WINDOW_BYTES / 2 {
                self.shared.put(Out::Window { stream: 0, delta: *owed_all }).await?;
                *owed_all = 0;
            }
            let owed = self.shared.open.lock().get_mut(&stream).map_or(0, |open| {
                open.owed += size;
                let is_due = i64::from(open.owed) >= WINDOW_BYTES / 2 && !fin;
                if is_due { std::mem::take(&mut open.owed) } else { 0 }
            });
            if owed > 0 {
                self.shared.put(Out::Window { stream, delta: owed }).await?;
            }
        }
        if fin && let Some(open) = self.shared.open.lock().get_mut(&stream) {
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
        let sending = base::task::spawn(async move {
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

    #[tokio::test]
    async fn a_client_opens_streams_and_both_sides_finish_theirs() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let mut accept = serve(server);
        let client = Client::new(client);
        for round in 0..20 {
            let headers: Headers = [("streamtype".to_owned(), format!("s{round}"))].into();
            let mut near = client.open(headers).await.unwrap();
            let mut far = accept.recv().await.unwrap();
            assert_eq!(far.headers["streamtype"], format!("s{round}"));
            let bytes = Bytes::from(vec![round; 50_000]);
            let (sender, sent) = (near.sender.clone(), bytes.clone());
            let sending = base::task::spawn(async move {
                sender.send(sent).await.unwrap();
                sender.finish().await.unwrap();
            });
            let mut got = 0;
            while let Some(piece) = far.data.recv().await {
                got += piece.len();
            }
            sending.await.unwrap();
            assert_eq!(got, bytes.len());
            far.sender.send("answer".into()).await.unwrap();
            far.sender.finish().await.unwrap();
            assert_eq!(near.data.recv().await.unwrap(), "answer");
            assert!(near.data.recv().await.is_none());
        }
        let mut last = client.open(Headers::new()).await.unwrap();
        drop(client);
        assert!(last.data.recv().await.is_none(), "it ends with its connection");
        assert!(last.sender.send("x".into()).await.is_err());
        let mut far = accept.recv().await.unwrap();
        drop(last);
        let ended = async {
            while far.data.recv().await.is_some() {}
            accept.recv().await.is_none()
        };
        assert!(tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap());
    }
}
