//! exec and attach: joins a runtime session with a client, over WebSocket channels or
//! SPDY streams, and tells how the command ended.
//!
//! Every buffer is bounded; a slow client slows the command, a client that goes away
//! ends the session.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::cri::{BoxRead, BoxWrite, Session, TerminalSize};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::spdy;

const PIECE_BYTES_MAX: usize = 32 << 10;
const PIECES_MAX: usize = 8;
/// After the command has ended its output is read until it pauses this long: a process
/// it left behind may hold the pipe open for ever.
const DRAIN_PAUSE: Duration = Duration::from_secs(1);
/// SPDY clients open one stream after another; all must have come by then.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to hear of the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client that answers no pings may keep back what is said.
const LISTENING_TIMEOUT: Duration = Duration::from_millis(200);
/// From reading to knowing one's channels.
const LISTENING_LAG: Duration = Duration::from_millis(1);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

pub const WEBSOCKET_PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
pub const SPDY_PROTOCOLS: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// Which streams the client asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Wants {
    /// From `stdin`, `stdout`, `stderr`, `tty`, or the kubelet's `input`, `output`, `error`.
    pub fn from_query(query: &[(String, String)]) -> Self {
        let is = |names: [&str; 2]| {
            query.iter().any(|(name, value)| {
                names.contains(&name.as_str()) && matches!(value.as_str(), "1" | "true" | "True")
            })
        };
        let tty = is(["tty", "tty"]);
        Self {
            stdin: is(["stdin", "input"]),
            stdout: is(["stdout", "output"]),
            stderr: is(["stderr", "error"]) && !tty,
            tty,
        }
    }
}

impl Wants {
    /// Closes the streams that nobody wants.
    pub fn only(self, mut session: Session) -> Session {
        session.stdin = session.stdin.filter(|_| self.stdin);
        session.stdout = session.stdout.filter(|_| self.stdout);
        session.stderr = session.stderr.filter(|_| self.stderr);
        session
    }
}

enum ToClient {
    Data(u8, Bytes),
    Status(Value),
}

struct Pipes {
    /// Ends with the client's input.
    stdin: mpsc::Receiver<Bytes>,
    resize: mpsc::Receiver<TerminalSize>,
    out: mpsc::Sender<ToClient>,
    /// Resolves when the client has gone.
    gone: oneshot::Receiver<()>,
}

/// Copies between client and session until the command ends or the client goes.
async fn run(session: Session, pipes: Pipes) {
    let Pipes { mut stdin, mut resize, out, gone } = pipes;
    let Session { stdin: to, stdout, stderr, resize: sizes, exit } = session;
    let progress = Arc::new(Progress::default());
    let input = base::task::spawn(async move {
        let Some(mut to): Option<BoxWrite> = to else {
            while stdin.recv().await.is_some() {}
            return;
        };
        while let Some(bytes) = stdin.recv().await {
            if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                break;
            }
        }
        // Closing is the end of input; the command may have ended before.
        let _ = to.shutdown().await;
        drop(to);
        while stdin.recv().await.is_some() {}
    });
    let sizing = base::task::spawn(async move {
        while let Some(size) = resize.recv().await {
            // More sizes than the session takes are of no use.
            let _ = sizes.try_send(size);
        }
    });
    let pumps = async {
        tokio::join!(
            pump(stdout, STDOUT, out.clone(), progress.clone()),
            pump(stderr, STDERR, out.clone(), progress.clone()),
        );
    };
    let work = async {
        tokio::pin!(pumps);
        let mut exit = exit;
        let mut pumped = false;
        let ended = loop {
            tokio::select! {
                ended = &mut exit => break ended,
                () = &mut pumps, if !pumped => pumped = true,
            }
        };
        while !pumped {
            let before = progress.moved.load(Ordering::Relaxed);
            if tokio::time::timeout(DRAIN_PAUSE, &mut pumps).await.is_ok() {
                break;
            }
            let is_still = progress.moved.load(Ordering::Relaxed) == before
                && !progress.is_blocked.load(Ordering::Relaxed);
            pumped = is_still;
        }
        let status = match ended {
            Ok(Ok(code)) => exit_status(code),
            Ok(Err(error)) => failure(&format!(
                "error executing command in container: {}",
                base::error::chain(&error)
            )),
            Err(_) => failure("the session broke off"),
        };
        let _ = out.send(ToClient::Status(status)).await;
    };
    tokio::select! {
        () = work => {}
        _ = gone => {}
    }
    input.abort();
    sizing.abort();
}

#[derive(Default)]
struct Progress {
    moved: AtomicU64,
    is_blocked: AtomicBool,
}

async fn pump(
    from: Option<BoxRead>,
    channel: u8,
    out: mpsc::Sender<ToClient>,
    progress: Arc<Progress>,
) {
    let Some(mut from) = from else { return };
    let mut buffer = BytesMut::with_capacity(PIECE_BYTES_MAX);
    while let Ok(read @ 1..) = from.read_buf(&mut buffer).await {
        progress.moved.fetch_add(read as u64, Ordering::Relaxed);
        let bytes = buffer.split().freeze();
        buffer.reserve(PIECE_BYTES_MAX);
        progress.is_blocked.store(true, Ordering::Relaxed);
        let sent = out.send(ToClient::Data(channel, bytes)).await;
        progress.is_blocked.store(false, Ordering::Relaxed);
        if sent.is_err() {
            return;
        }
    }
}

/// How a command ended, as the error channel says it (meta/v1 Status).
pub fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failure(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    })
}

/// The error channel's bytes; before v4 only a failure was told, as text.
fn status_bytes(status: &Value, protocol: &str) -> Option<Bytes> {
    if matches!(protocol, "v5.channel.k8s.io" | "v4.channel.k8s.io") {
        return Some(status.to_string().into());
    }
    if status["status"] == "Success" {
        return None;
    }
    status["message"].as_str().map(|text| text.to_owned().into())
}

fn size(bytes: &[u8]) -> Option<TerminalSize> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let number = |name: &str| {
        let lower = name.to_lowercase();
        value.get(name).or_else(|| value.get(lower.as_str()))?.as_u64()
    };
    Some(TerminalSize {
        width: u16::try_from(number("Width")?).ok()?,
        height: u16::try_from(number("Height")?).ok()?,
    })
}

struct Ends {
    pipes: Pipes,
    stdin: mpsc::Sender<Bytes>,
    resize: mpsc::Sender<TerminalSize>,
    from: mpsc::Receiver<ToClient>,
    /// Dropped when the client goes.
    alive: oneshot::Sender<()>,
}

fn ends() -> Ends {
    let (stdin, stdin_out) = mpsc::channel(PIECES_MAX);
    let (resize, resize_out) = mpsc::channel(8);
    let (out, from) = mpsc::channel(PIECES_MAX);
    let (alive, gone) = oneshot::channel();
    Ends {
        pipes: Pipes { stdin: stdin_out, resize: resize_out, out, gone },
        stdin,
        resize,
        from,
        alive,
    }
}

/// Joins a session and a WebSocket.
pub async fn over_websocket<S>(
    session: Session,
    socket: WebSocketStream<S>,
    wants: Wants,
    protocol: &str,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ends { pipes, stdin, resize, mut from, alive } = ends();
    let (mut sink, mut source) = socket.split();
    let half_close = protocol == "v5.channel.k8s.io";
    let (heard, listening) = oneshot::channel();
    let reading = async move {
        let mut heard = Some(heard);
        let mut stdin = wants.stdin.then_some(stdin);
        while let Some(Ok(message)) = source.next().await {
            let bytes: Bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => break,
                Message::Pong(_) => {
                    // Nobody waits for a second one.
                    let _ = heard.take().map(|heard| heard.send(()));
                    continue;
                }
                Message::Ping(_) | Message::Frame(_) => continue,
            };
            match bytes.split_first() {
                Some((&STDIN, rest)) if !rest.is_empty() => {
                    if let Some(stdin) = &stdin {
                        // A command that reads no more still runs.
                        let _ = stdin.send(bytes.slice(1..)).await;
                    }
                }
                Some((&RESIZE, rest)) => {
                    if let Some(size) = size(rest) {
                        let _ = resize.try_send(size);
                    }
                }
                Some((&CLOSE, [STDIN])) if half_close => stdin = None,
                _ => {}
            }
        }
        drop(alive);
    };
    let protocol = protocol.to_owned();
    let writing = async move {
        // An empty message tells the client that the connection stands.
        let first = if wants.stdout {
            STDOUT
        } else if wants.stderr {
            STDERR
        } else {
            ERROR
        };
        // kubectl up to 1.33 begins to read before it knows its own channels, and throws
        // away what comes for one that it does not know. What answers a ping reads, and
        // knows them a moment later.
        let mut ok = sink.send(Message::Ping(Bytes::new())).await.is_ok();
        if tokio::time::timeout(LISTENING_TIMEOUT, listening).await.is_ok() {
            tokio::time::sleep(LISTENING_LAG).await;
        }
        ok = ok && sink.send(Message::Binary(vec![first].into())).await.is_ok();
        while let Some(item) = from.recv().await {
            let message = match item {
                ToClient::Data(channel, bytes) => framed(channel, &bytes),
                ToClient::Status(status) => match status_bytes(&status, &protocol) {
                    Some(bytes) => framed(ERROR, &bytes),
                    None => continue,
                },
            };
            ok = ok && sink.send(message).await.is_ok();
            if !ok {
                break;
            }
        }
        // A client that does not hear of the end is cut off.
        let goodbye = super::websocket::say_goodbye(&mut sink);
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await;
    };
    let reader = base::task::spawn(reading);
    tokio::join!(run(session, pipes), writing);
    reader.abort();
}

fn framed(channel: u8, bytes: &[u8]) -> Message {
    let mut out = BytesMut::with_capacity(1 + bytes.len());
    out.put_u8(channel);
    out.extend_from_slice(bytes);
    Message::Binary(out.freeze())
}

/// Joins a session and the streams of a SPDY connection.
pub async fn over_spdy(
    session: Session,
    mut accept: mpsc::Receiver<spdy::Stream>,
    wants: Wants,
    protocol: &str,
) {
    let has_resize = wants.tty && protocol != "v2.channel.k8s.io" && protocol != "channel.k8s.io";
    let expected = 1
        + usize::from(wants.stdin)
        + usize::from(wants.stdout)
        + usize::from(wants.stderr)
        + usize::from(has_resize);
    let mut streams: HashMap<String, spdy::Stream> = HashMap::new();
    let gather = async {
        while streams.len() < expected {
            let Some(stream) = accept.recv().await else { return };
            let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
            streams.insert(kind, stream);
        }
    };
    if tokio::time::timeout(STREAMS_TIMEOUT, gather).await.is_err() || streams.len() < expected {
        return;
    }
    let Ends { pipes, stdin, resize, mut from, alive } = ends();
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(mut stream) = streams.remove("stdin") {
        tasks.spawn(base::task::boxed(async move {
            while let Some(bytes) = stream.data.recv().await {
                // A command that reads no more still runs.
                let _ = stdin.send(bytes).await;
            }
        }));
    }
    if let Some(mut stream) = streams.remove("resize") {
        tasks.spawn(base::task::boxed(async move {
            while let Some(bytes) = stream.data.recv().await {
                if let Some(size) = size(&bytes) {
                    let _ = resize.try_send(size);
                }
            }
        }));
    }
    let sender = |name: &str| streams.get(name).map(|stream| stream.sender.clone());
    let (stdout, stderr, error) = (sender("stdout"), sender("stderr"), sender("error"));
    tasks.spawn(base::task::boxed(async move {
        // Streams that come late have no meaning; the end is the client's going.
        while accept.recv().await.is_some() {}
        drop(alive);
    }));
    let protocol = protocol.to_owned();
    let writing = async move {
        while let Some(item) = from.recv().await {
            let sent = match item {
                ToClient::Data(STDERR, bytes) => match &stderr {
                    Some(stderr) => stderr.send(bytes).await,
                    None => Ok(()),
                },
                ToClient::Data(_, bytes) => match &stdout {
                    Some(stdout) => stdout.send(bytes).await,
                    None => Ok(()),
                },
                ToClient::Status(status) => match (&error, status_bytes(&status, &protocol)) {
                    (Some(error), Some(bytes)) => error.send(bytes).await,
                    _ => Ok(()),
                },
            };
            if sent.is_err() {
                return;
            }
        }
        for sender in [stdout, stderr, error].into_iter().flatten() {
            if sender.finish().await.is_err() {
                return;
            }
        }
    };
    tokio::join!(run(session, pipes), writing);
    // The client closes the connection when it has read everything.
    let _ =
        tokio::time::timeout(CLOSE_TIMEOUT, async { while tasks.join_next().await.is_some() {} })
            .await;
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    #[test]
    fn an_end_is_told_as_clients_read_it() {
        assert_eq!(exit_status(0)["status"], "Success");
        let failed = exit_status(7);
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0]["message"], "7");
        assert_eq!(status_bytes(&exit_status(0), "v2.channel.k8s.io"), None);
        assert!(status_bytes(&exit_status(0), "v5.channel.k8s.io").is_some());
    }

    #[test]
    fn sizes_and_wants_are_read() {
        let want = TerminalSize { width: 80, height: 24 };
        assert_eq!(size(br#"{"Width":80,"Height":24}"#), Some(want));
        assert_eq!(size(b"{"), None);
        assert_eq!(size(br#"{"Width":800000,"Height":24}"#), None);
        let query = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        let wants = Wants::from_query(&query(&[
            ("stdin", "true"),
            ("output", "1"),
            ("stderr", "1"),
            ("tty", "1"),
        ]));
        assert_eq!(wants, Wants { stdin: true, stdout: true, stderr: false, tty: true });
    }

    #[tokio::test]
    async fn nothing_is_said_before_the_client_listens() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let server = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
        let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let (mut shell_out, stdout) = tokio::io::duplex(1024);
        let (end, exit) = oneshot::channel();
        let (resize, _sizes) = mpsc::channel(8);
        let session =
            Session { stdin: None, stdout: Some(Box::new(stdout)), stderr: None, resize, exit };
        let wants = Wants { stdin: false, stdout: true, stderr: false, tty: false };
        let serving =
            base::task::spawn(over_websocket(session, server, wants, "v5.channel.k8s.io"));
        shell_out.write_all(b"early").await.unwrap();
        drop(shell_out);
        end.send(Ok(0)).unwrap();
        // The answer to the ping goes out with the next look at the socket.
        assert!(matches!(client.next().await, Some(Ok(Message::Ping(_)))));
        let mut said = Vec::new();
        while let Some(Ok(Message::Binary(bytes))) = client.next().await {
            said.push(bytes);
        }
        assert_eq!(said[..2], [Bytes::from_static(&[STDOUT]), Bytes::from_static(b"\x01early")]);
        assert_eq!(said[2][0], ERROR);
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_spdy_client_hears_everything_and_the_end() {
        use super::super::spdy::samples::{Peer, Seen};
        let (mut shell_out, stdout) = tokio::io::duplex(1024);
        let (stdin, mut shell_in) = tokio::io::duplex(1024);
        let (resize, _sizes) = mpsc::channel(8);
        let (end, exit) = oneshot::channel();
        let session = Session {
            stdin: Some(Box::new(stdin)),
            stdout: Some(Box::new(stdout)),
            stderr: None,
            resize,
            exit,
        };
        base::task::spawn(async move {
            let mut text = String::new();
            shell_in.read_to_string(&mut text).await.unwrap();
            shell_out.write_all(text.as_bytes()).await.unwrap();
            drop(shell_out);
            end.send(Ok(7)).unwrap();
        });
        let (client, server) = tokio::io::duplex(1 << 16);
        let wants = Wants { stdin: true, stdout: true, ..Wants::default() };
        let serving = base::task::spawn(async move {
            over_spdy(session, spdy::serve(server), wants, "v4.channel.k8s.io").await;
        });
        let mut peer = Peer::new(client);
        peer.open(1, &[("streamtype", "error")]).await;
        peer.open(3, &[("streamtype", "stdin")]).await;
        peer.open(5, &[("streamtype", "stdout")]).await;
        peer.data(3, b"hello", true).await;
        let (mut out, mut status, mut ended) = (Vec::new(), Vec::new(), 0);
        while ended < 2 {
            match peer.next().await.unwrap() {
                Seen::Data(1, bytes, fin) => {
                    status.extend(bytes);
                    ended += usize::from(fin);
                }
                Seen::Data(5, bytes, fin) => {
                    out.extend(bytes);
                    ended += usize::from(fin);
                }
                Seen::Reply(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(out, b"hello");
        let status: Value = serde_json::from_slice(&status).unwrap();
        assert_eq!(status, exit_status(7));
        drop(peer);
        tokio::time::timeout(Duration::from_secs(5), serving).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_the_session() {
        let (resize, _sizes) = mpsc::channel(8);
        let (_end, exit) = oneshot::channel();
        let (stdout, _shell) = tokio::io::duplex(64);
        let session =
            Session { stdin: None, stdout: Some(Box::new(stdout)), stderr: None, resize, exit };
        let Ends { pipes, alive, .. } = ends();
        drop(alive);
        tokio::time::timeout(Duration::from_secs(5), run(session, pipes)).await.unwrap();
    }
}
