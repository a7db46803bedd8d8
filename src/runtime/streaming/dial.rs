//! The client's side of exec, attach and port-forward: what a runtime that is not ours gave a
//! URL for becomes a session or a connection.
//!
//! SPDY, which every runtime speaks, and which can say that the input has ended. No TLS: the
//! runtime is on this host.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::exec::Wants;
use super::spdy::{Client, Headers, Sender, Stream};
use super::{SPDY, portforward};
use crate::cri::{BoxRead, BoxWrite, Duplex, Error, ErrorKind, Result, Session, TerminalSize};

const EXEC_PROTOCOL: &str = "v4.channel.k8s.io";
/// Connecting and the answer to the upgrade together.
const DIAL_PATIENCE: Duration = Duration::from_secs(30);
/// What a refusal may say.
const REFUSAL_BYTES_MAX: usize = 4 << 10;
/// Bytes on their way between the connection and one stream's reader or writer.
const PIPE_BYTES_MAX: usize = 64 << 10;
const PIECE_BYTES_MAX: usize = 32 << 10;
/// What the error stream says at the end.
const STATUS_BYTES_MAX: usize = 64 << 10;
const SIZES_MAX: usize = 8;
/// How long the output may still come after the command's end was told.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(10);

fn failed(doing: &str, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Internal, format!("{doing}: {error}"))
}

async fn dial(url: &str, protocol: &str) -> Result<Arc<Client>> {
    let doing = "connect to the runtime's streaming server";
    tokio::time::timeout(DIAL_PATIENCE, upgraded(url, protocol))
        .await
        .unwrap_or_else(|_| Err(failed(doing, "it took too long")))
}

async fn upgraded(url: &str, protocol: &str) -> Result<Arc<Client>> {
    let doing = "connect to the runtime's streaming server";
    let uri: Uri = url.parse().map_err(|error| failed(doing, error))?;
    let authority = match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) => authority.clone(),
        _ => return Err(failed(doing, format!("{url:?} is no http:// URL"))),
    };
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80)))
        .await
        .map_err(|error| failed(doing, error))?;
    // Keystrokes must not wait for more.
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(doing, error))?;
    base::task::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = Request::post(path)
        .header(header::HOST, authority.as_str())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, SPDY)
        .header("X-Stream-Protocol-Version", protocol)
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(doing, error))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(doing, error))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let said = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await;
        let said = said.map(|body| body.to_bytes()).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        return Err(failed(doing, format!("unable to upgrade connection: {status} {said}")));
    }
    let io = hyper::upgrade::on(answer).await.map_err(|error| failed(doing, error))?;
    Ok(Arc::new(Client::new(TokioIo::new(io))))
}

async fn open(client: &Client, headers: &[(&str, &str)]) -> Result<Stream> {
    let headers: Headers =
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    client.open(headers).await.map_err(|error| failed("open a stream", error))
}

/// Joins the session behind the URL of an Exec or Attach. Dropping the session ends the
/// connection; what that does to the command is the runtime's matter.
///
/// # Errors
/// When the runtime cannot be reached or refuses.
pub async fn session(url: &str, wants: Wants) -> Result<Session> {
    let client = dial(url, EXEC_PROTOCOL).await?;
    let error = open(&client, &[("streamtype", "error")]).await?;
    let mut pumps = tokio::task::JoinSet::new();
    let (mut stdin, mut stdout, mut stderr) = (None::<BoxWrite>, None::<BoxRead>, None::<BoxRead>);
    let mut resizing = None;
    if wants.stdin {
        let stream = open(&client, &[("streamtype", "stdin")]).await?;
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES_MAX);
        stdin = Some(Box::new(ours));
        // Ends with its writer, or with the connection.
        base::task::spawn(inwards(client.clone(), tokio::io::split(theirs).0, stream.sender));
    }
    for (is_wanted, kind, slot) in
        [(wants.stdout, "stdout", &mut stdout), (wants.stderr && !wants.tty, "stderr", &mut stderr)]
    {
        if is_wanted {
            let stream = open(&client, &[("streamtype", kind)]).await?;
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES_MAX);
            *slot = Some(Box::new(ours));
            pumps.spawn(base::task::boxed(outwards(stream.data, tokio::io::split(theirs).1)));
        }
    }
    let (resize, sizes) = mpsc::channel(SIZES_MAX);
    if wants.tty {
        let stream = open(&client, &[("streamtype", "resize")]).await?;
        resizing = Some(base::task::spawn(resized(sizes, stream.sender)).abort_handle());
    }
    let (mut tell, exit) = oneshot::channel();
    base::task::spawn(async move {
        let ended = async {
            let ended = outcome(&whole(error.data).await);
            // The output belongs before the end of the command.
            let rest = async { while pumps.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(OUTPUT_PATIENCE, rest).await;
            ended
        };
        tokio::select! {
            ended = ended => {
                let _ = tell.send(ended);
            }
            () = tell.closed() => {}
        }
        if let Some(resizing) = resizing {
            resizing.abort();
        }
        client.close();
    });
    Ok(Session { stdin, stdout, stderr, resize, exit })
}

/// Connects to a port through the URL of a PortForward.
///
/// # Errors
/// When the runtime cannot be reached or refuses. That nobody listens on the port shows as a
/// connection that ends.
pub async fn forward(url: &str, port: u16) -> Result<Box<dyn Duplex>> {
    let client = dial(url, portforward::SPDY_PROTOCOL).await?;
    let number = port.to_string();
    let headers = |kind| [("streamtype", kind), ("port", number.as_str()), ("requestid", "0")];
    let error = open(&client, &headers("error")).await?;
    let finished = error.sender.finish().await;
    finished.map_err(|error| failed("open a stream", error))?;
    let data = open(&client, &headers("data")).await?;
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES_MAX);
    let (from, to) = tokio::io::split(theirs);
    base::task::spawn(async move {
        let carrying = async {
            tokio::join!(inwards(client.clone(), from, data.sender), outwards(data.data, to),)
        };
        let failing = async {
            let said = whole(error.data).await;
            if said.is_empty() {
                std::future::pending::<()>().await;
            }
            tracing::debug!(port, error = %String::from_utf8_lossy(&said), "port not forwarded");
        };
        tokio::select! {
            _ = carrying => {}
            () = failing => {}
        }
        client.close();
    });
    Ok(Box::new(ours))
}

async fn inwards(client: Arc<Client>, mut from: ReadHalf<DuplexStream>, to: Sender) {
    let mut buffer = BytesMut::with_capacity(PIECE_BYTES_MAX);
    while let Ok(1..) = from.read_buf(&mut buffer).await {
        let bytes = buffer.split().freeze();
        buffer.reserve(PIECE_BYTES_MAX);
        if to.send(bytes).await.is_err() {
            return;
        }
    }
    // The connection may have ended first.
    let _ = to.finish().await;
    drop(client);
}

async fn outwards(mut from: mpsc::Receiver<Bytes>, mut to: WriteHalf<DuplexStream>) {
    while let Some(bytes) = from.recv().await {
        if to.write_all(&bytes).await.is_err() {
            // Nobody reads; the peer is not held up by that.
            while from.recv().await.is_some() {}
            return;
        }
    }
    let _: io::Result<()> = to.shutdown().await;
}

async fn resized(mut sizes: mpsc::Receiver<TerminalSize>, to: Sender) {
    while let Some(size) = sizes.recv().await {
        let text = json!({"Width": size.width, "Height": size.height}).to_string();
        if to.send(text.into()).await.is_err() {
            return;
        }
    }
}

/// All of a stream, as far as it is kept.
async fn whole(mut from: mpsc::Receiver<Bytes>) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(bytes) = from.recv().await {
        let left = STATUS_BYTES_MAX.saturating_sub(out.len());
        out.extend_from_slice(&bytes[..bytes.len().min(left)]);
    }
    out
}

/// How a command ended, from the meta/v1 Status of the error stream.
fn outcome(said: &[u8]) -> Result<i32> {
    let broken = |why: &str| Err(Error::new(ErrorKind::Internal, why));
    if said.is_empty() {
        return broken("the session broke off");
    }
    let Ok(status) = serde_json::from_slice::<Value>(said) else {
        return broken(String::from_utf8_lossy(said).trim());
    };
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes
        .into_iter()
        .flatten()
        .find(|cause| cause["reason"] == "ExitCode")
        .and_then(|cause| cause["message"].as_str()?.parse().ok())
        .filter(|_| status["reason"] == "NonZeroExitCode");
    match code {
        Some(code) => Ok(code),
        None => broken(status["message"].as_str().unwrap_or("the command failed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_command_is_read_from_its_status() {
        let cases = [
            (r#"{"status":"Success","metadata":{}}"#, Ok(0)),
            (
                r#"{"status":"Failure","reason":"NonZeroExitCode","message":"x",
                    "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#,
                Ok(7),
            ),
            (r#"{"status":"Failure","message":"no such container"}"#, Err("no such container")),
            (
                r#"{"status":"Failure","reason":"NonZeroExitCode","message":"odd",
                    "details":{"causes":[{"reason":"ExitCode","message":"many"}]}}"#,
                Err("odd"),
            ),
            ("plain words\n", Err("plain words")),
            ("", Err("the session broke off")),
        ];
        for (said, wanted) in cases {
            let got = outcome(said.as_bytes());
            match (got, wanted) {
                (Ok(got), Ok(wanted)) => assert_eq!(got, wanted),
                (Err(got), Err(wanted)) => assert_eq!(got.message, wanted),
                (got, wanted) => panic!("{said}: {got:?}, not {wanted:?}"),
            }
        }
    }
}
