//! Client against server over a socket, on good days and on bad ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base::drain::{self, Trigger};
use futures::stream::{self, StreamExt};
use rpc::{Channel, Code, Routes, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

const ECHO: &str = "/test.v1.Echo/Say";
const COUNT: &str = "/test.v1.Echo/Count";
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, PartialEq, prost::Message)]
struct Words {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(uint32, tag = "2")]
    number: u32,
}

fn words(text: &str, number: u32) -> Words {
    Words { text: text.to_owned(), number }
}

/// Counts the calls that run.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Server {
    socket: PathBuf,
    running: Arc<AtomicUsize>,
    task: JoinHandle<()>,
    trigger: Trigger,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory of its own");
        let socket = dir.path().join("s.sock");
        let running = Arc::new(AtomicUsize::new(0));
        let (trigger, drain) = drain::channel();
        let listener = rpc::bind(&socket, 0o600).expect("a fresh directory");
        let task = tokio::spawn(rpc::serve(listener, routes(&running), drain));
        Self { socket, running, task, trigger, _dir: dir }
    }

    async fn until_nothing_runs(&self) {
        let idle = async {
            while self.running.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, idle).await.expect("calls end with their client");
    }
}

fn routes(running: &Arc<AtomicUsize>) -> Routes {
    let (saying, counting) = (running.clone(), running.clone());
    Routes::default()
        .with_message_bytes_max(1 << 20)
        .unary(ECHO, move |said: Words, call| {
            let running = Running::begin(&saying);
            async move {
                let _running = running;
                match said.text.as_str() {
                    "refuse" => Err(Status::new(Code::FailedPrecondition, "50 % füll\n")),
                    "stall" => std::future::pending().await,
                    "panic" => panic!("a handler's own mistake"),
                    "grow" => Ok(words(&"x".repeat(said.number as usize), 0)),
                    "deadline" => Ok(words(
                        "",
                        call.deadline.map_or(0, |at| {
                            at.duration_since(tokio::time::Instant::now()).as_secs() as u32
                        }),
                    )),
                    _ => Ok(said),
                }
            }
        })
        .streaming(COUNT, move |said: Words, _| {
            let running = Running::begin(&counting);
            async move {
                let last = said.number;
                let then = match said.text.as_str() {
                    "fail" => stream::iter([Err(Status::new(Code::DataLoss, "lost"))]).boxed(),
                    "stall" => stream::pending().boxed(),
                    _ => stream::empty().boxed(),
                };
                let numbers = stream::iter((0..last).map(|number| Ok(words("", number))));
                Ok(numbers
                    .chain(then)
                    .map(move |it| {
                        let _ = &running;
                        it
                    })
                    .boxed())
            }
        })
}

async fn say(channel: &Channel, text: &str, number: u32) -> Result<Words, Status> {
    channel.unary(ECHO, &words(text, number), PATIENCE).await
}

#[tokio::test]
async fn an_answer_comes_back_and_a_refusal_keeps_its_code_and_words() {
    let server = Server::start();
    let channel = Channel::new(&server.socket);
    assert_eq!(say(&channel, "hello", 7).await, Ok(words("hello", 7)));
    assert_eq!(say(&channel, "", 0).await, Ok(Words::default()));
    let refused = say(&channel, "refuse", 0).await.unwrap_err();
    assert_eq!(refused, Status::new(Code::FailedPrecondition, "50 % füll\n"));
    for (method, said) in [
        ("/test.v1.Echo/Sing", "unknown method Sing for service test.v1.Echo"),
        ("/test.v1.Other/Say", "unknown service test.v1.Other"),
    ] {
        let refused = channel.unary::<Words>(method, &words("", 0), PATIENCE).await.unwrap_err();
        assert_eq!(refused, Status::new(Code::Unimplemented, said));
    }
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_on_both_sides() {
    let server = Server::start();
    let channel = Channel::new(&server.socket);
    let told = say(&channel, "deadline", 0).await.unwrap().number;
    assert!((15..=20).contains(&told), "{told}");
    let patience = Duration::from_millis(50);
    let late = channel.unary::<Words>(ECHO, &words("stall", 0), patience).await.unwrap_err();
    assert_eq!(
        late.to_string(),
        "rpc error: code = DeadlineExceeded desc = context deadline exceeded"
    );
    server.until_nothing_runs().await;
    assert!(say(&channel, "still there", 1).await.is_ok());
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_by_whoever_reads_it() {
    let server = Server::start();
    let channel = Channel::new(&server.socket).with_message_bytes_max(2_000);
    let long = say(&channel, "grow", 3_000).await.unwrap_err();
    let said = "grpc: received message larger than max (3003 vs. 2000)";
    assert_eq!(long, Status::new(Code::ResourceExhausted, said));
    let long = say(&channel, &"x".repeat(2 << 20), 0).await.unwrap_err();
    assert_eq!(long.code, Code::ResourceExhausted, "{long}");
    assert_eq!(say(&channel, "grow", 1_990).await.unwrap().text.len(), 1_990);
}

#[tokio::test]
async fn a_stream_gives_its_messages_and_then_how_it_ended() {
    let server = Server::start();
    let channel = Channel::new(&server.socket);
    for (text, ends) in [("", Ok(None)), ("fail", Err(Status::new(Code::DataLoss, "lost")))] {
        let mut replies = channel.streaming::<Words>(COUNT, &words(text, 1_000)).await.unwrap();
        for number in 0..1_000 {
            assert_eq!(replies.next().await, Ok(Some(words("", number))));
        }
        assert_eq!(replies.next().await, ends);
        assert_eq!(replies.next().await, Ok(None), "over is over");
    }
    let mut replies = channel.streaming::<Words>(COUNT, &words("stall", 1)).await.unwrap();
    assert_eq!(replies.next().await, Ok(Some(words("", 0))));
    drop(replies);
    server.until_nothing_runs().await;
}

#[tokio::test]
async fn a_peer_that_dies_is_unavailable_and_one_that_comes_back_is_found() {
    let server = Server::start();
    let channel = Arc::new(Channel::new(&server.socket));
    let mut replies = channel.streaming::<Words>(COUNT, &words("stall", 1)).await.unwrap();
    assert_eq!(replies.next().await, Ok(Some(words("", 0))));
    let waiting = {
        let channel = channel.clone();
        tokio::spawn(async move { say(&channel, "stall", 0).await })
    };
    while server.running.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.trigger.drain();
    server.task.await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().code, Code::Unavailable);
    assert_eq!(replies.next().await.unwrap_err().code, Code::Unavailable);
    let gone = say(&channel, "x", 0).await.unwrap_err();
    let socket = server.socket.display();
    let said = format!(
        "rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while \
         dialing: dial unix {socket}: connect: connection refused\""
    );
    assert_eq!(gone.to_string(), said);
    // The socket of the dead process lies in the way.
    let listener = rpc::bind(&server.socket, 0o600).unwrap();
    let (_trigger, drain) = drain::channel();
    tokio::spawn(rpc::serve(listener, routes(&server.running), drain));
    assert!(say(&channel, "back", 1).await.is_ok());
}

#[tokio::test]
async fn a_handler_that_panics_harms_its_own_call_alone() {
    let server = Server::start();
    let channel = Channel::new(&server.socket);
    assert!(say(&channel, "panic", 0).await.is_err());
    assert!(say(&channel, "next", 0).await.is_ok());
}

#[tokio::test]
async fn many_calls_share_a_connection() {
    let server = Server::start();
    let channel = Channel::new(&server.socket);
    let calls = (0..1_000).map(|number| say(&channel, "n", number));
    let answers = stream::iter(calls).buffered(300).collect::<Vec<_>>().await;
    let numbers: Vec<u32> = answers.into_iter().map(|it| it.unwrap().number).collect();
    assert_eq!(numbers, (0..1_000).collect::<Vec<_>>());
}

#[test]
fn only_a_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "precious").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(async { rpc::bind(&path, 0o600).unwrap_err() });
    assert_eq!(refused.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

/// Clients of others take a failure with an empty message after it for a broken stream.
#[tokio::test]
async fn a_call_that_fails_at_once_is_headers_alone() {
    use http_body_util::Full;
    use hyper::body::Body;
    let server = Server::start();
    let stream = tokio::net::UnixStream::connect(&server.socket).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, driving) =
        hyper::client::conn::http2::handshake(executor, hyper_util::rt::TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(driving);
    let mut ask = async |content_type: &str, method: &str| {
        let request = http::Request::post(format!("http://localhost{method}"))
            .header("content-type", content_type)
            .body(Full::new(bytes::Bytes::from_static(b"\0\0\0\0\x00")))
            .unwrap();
        sender.send_request(request).await.unwrap()
    };
    let answer = ask("application/grpc+proto", "/none/None").await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["grpc-status"]),
        (200, &"12".parse().unwrap())
    );
    assert!(answer.body().is_end_stream());
    assert_eq!(ask("application/json", ECHO).await.status(), 415);
}

/// A peer that takes the connection, says `answer`, and keeps or closes it.
fn stranger(path: &Path, answer: &'static [u8], stays: bool) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).expect("a fresh name");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(answer).await;
                let mut sink = [0; 1024];
                while stays && stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
            });
        }
    })
}

#[tokio::test]
async fn what_speaks_no_grpc_is_an_error_in_time() {
    let dir = tempfile::tempdir().unwrap();
    for (name, answer, stays, code) in [
        ("closes", &b""[..], false, Code::Unavailable),
        ("garbage", b"HTTP/1.1 200 OK\r\n\r\nhello", true, Code::Unavailable),
        ("silent", b"", true, Code::DeadlineExceeded),
    ] {
        let path = dir.path().join(name);
        let peer = stranger(&path, answer, stays);
        let channel = Channel::new(&path);
        let request = words("x", 0);
        let patience = Duration::from_millis(200);
        let failed = channel.unary::<Words>(ECHO, &request, patience).await.unwrap_err();
        assert_eq!(failed.code, code, "{name}: {failed}");
        peer.abort();
    }
    let nobody = Channel::new(dir.path().join("nobody"));
    let failed = say(&nobody, "x", 0).await.unwrap_err().to_string();
    assert!(failed.ends_with("nobody: connect: no such file or directory\""), "{failed}");
}

/// Answers that are HTTP/2 but break gRPC's own rules.
#[tokio::test]
async fn an_answer_that_breaks_the_rules_is_no_success() {
    use http::{HeaderMap, Response};
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    let ok = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    let data = |bytes: &[u8]| Frame::data(bytes::Bytes::copy_from_slice(bytes));
    let trailers = || Frame::trailers(ok.clone());
    let (whole, cut) = (&b"\0\0\0\0\x03\x0a\x01x"[..], &b"\0\0\0\0\x09\x0a\x01x"[..]);
    for (what, http, frames, code) in [
        ("no status", 200, vec![data(whole)], Code::Internal),
        ("cut off", 200, vec![data(cut), trailers()], Code::Internal),
        ("no message", 200, vec![trailers()], Code::Internal),
        ("two", 200, vec![data(&[whole, whole].concat()), trailers()], Code::Internal),
        ("compressed", 200, vec![data(&b"\x01\0\0\0\0"[..])], Code::Internal),
        ("endless", 200, vec![data(&b"\0\xff\xff\xff\xff"[..])], Code::ResourceExhausted),
        ("no protobuf", 200, vec![data(&b"\0\0\0\0\x01\xff"[..]), trailers()], Code::Internal),
        ("a web server", 404, vec![data(whole)], Code::Unimplemented),
        ("overloaded", 503, vec![], Code::Unavailable),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let listener = rpc::bind(&dir.path().join("s"), 0o600).unwrap();
        let frames = parking_lot::Mutex::new(Some(frames));
        let peer = async {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(|_| {
                let frames: Vec<_> = frames
                    .lock()
                    .take()
                    .unwrap()
                    .into_iter()
                    .map(Ok::<_, std::io::Error>)
                    .collect();
                let answer =
                    Response::builder().status(http).body(StreamBody::new(stream::iter(frames)));
                async { Ok::<_, std::convert::Infallible>(answer.unwrap()) }
            });
            let _ = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                .await;
        };
        let channel = Channel::new(dir.path().join("s"));
        let outcome = tokio::select! {
            () = peer => panic!("{what}: the peer ended"),
            outcome = say(&channel, "x", 0) => outcome,
        };
        assert_eq!(outcome.unwrap_err().code, code, "{what}");
    }
}

#[tokio::test]
async fn whoever_keeps_connections_for_nothing_keeps_nobody_out() {
    let server = Server::start();
    let busy = Channel::new(&server.socket);
    let mut replies = busy.streaming::<Words>(COUNT, &words("stall", 1)).await.unwrap();
    assert_eq!(replies.next().await, Ok(Some(words("", 0))));
    let mut mute = Vec::new();
    for _ in 0..40 {
        mute.push(tokio::net::UnixStream::connect(&server.socket).await.unwrap());
    }
    let channels: Vec<_> = (0..150).map(|_| Channel::new(&server.socket)).collect();
    for round in 0..2 {
        for (number, channel) in channels.iter().enumerate() {
            let said = say(channel, "here", number as u32).await;
            assert_eq!(said, Ok(words("here", number as u32)), "round {round}");
        }
    }
    assert_eq!(server.running.load(Ordering::SeqCst), 1, "the stream goes on");
    let next = tokio::time::timeout(Duration::from_millis(50), replies.next()).await;
    assert!(next.is_err(), "it has no more to say, and did not end: {next:?}");
}
