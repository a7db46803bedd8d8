//! port-forward: pairs of data and error streams over SPDY, alone or tunnelled in a
//! WebSocket, and the older WebSocket channels.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::cri::{Duplex, RuntimeService};
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tracing::debug;

use super::spdy;
use super::websocket::Socket;

pub const SPDY_PROTOCOL: &str = "portforward.k8s.io";
pub const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
pub const CHANNEL_PROTOCOLS: [&str; 1] = ["v4.channel.k8s.io"];

const PIECE_BYTES_MAX: usize = 32 << 10;
/// Ports of one connection over WebSocket channels, of which there are 255.
const PORTS_MAX: usize = 120;
/// A stream whose partner does not come is reset.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects to a port of the pod; the error is what the client's error stream says.
pub type Goal =
    Arc<dyn Fn(u16) -> BoxFuture<'static, Result<Box<dyn Duplex>, String>> + Send + Sync>;

/// The ports of a sandbox.
pub fn goal(runtime: Arc<dyn RuntimeService>, sandbox_id: String, pod_uid: String) -> Goal {
    Arc::new(move |port| {
        let (runtime, sandbox_id, pod_uid) = (runtime.clone(), sandbox_id.clone(), pod_uid.clone());
        Box::pin(async move {
            runtime.port_forward(&sandbox_id, port).await.map_err(|error| {
                format!(
                    "error forwarding port {port} to pod {sandbox_id}, uid {pod_uid}: {}",
                    base::error::chain(&error)
                )
            })
        })
    })
}

fn port(text: Option<&String>) -> Result<u16, String> {
    match text.and_then(|text| text.parse::<u16>().ok()) {
        Some(port) if port > 0 => Ok(port),
        _ => Err(format!("invalid port {:?}", text.map(String::as_str).unwrap_or_default())),
    }
}

/// Serves streams until the connection ends.
pub async fn over_spdy(goal: Goal, mut accept: mpsc::Receiver<spdy::Stream>) {
    let mut waiting: HashMap<String, (bool, spdy::Stream, tokio::time::Instant)> = HashMap::new();
    let mut pairs = tokio::task::JoinSet::new();
    loop {
        let oldest = waiting.values().map(|(_, _, since)| *since).min();
        let timeout = async {
            match oldest {
                Some(since) => tokio::time::sleep_until(since + PAIR_TIMEOUT).await,
                None => std::future::pending().await,
            }
        };
        let stream = tokio::select! {
            stream = accept.recv() => stream,
            Some(_) = pairs.join_next(), if !pairs.is_empty() => continue,
            () = timeout => {
                let now = tokio::time::Instant::now();
                let late: Vec<String> = waiting
                    .iter()
                    .filter(|(_, (_, _, since))| *since + PAIR_TIMEOUT <= now)
                    .map(|(id, _)| id.clone())
                    .collect();
                for id in late {
                    if let Some((_, stream, _)) = waiting.remove(&id) {
                        // The connection may be going down as well.
                        let _ = stream.sender.reset().await;
                    }
                }
                continue;
            }
        };
        let Some(stream) = stream else { break };
        let is_data = match stream.headers.get("streamtype").map(String::as_str) {
            Some("data") => true,
            Some("error") => false,
            _ => {
                let _ = stream.sender.reset().await;
                continue;
            }
        };
        let id = stream.headers.get("requestid").cloned().unwrap_or_default();
        match waiting.remove(&id) {
            Some((was_data, other, _)) if was_data != is_data => {
                let (data, error) = if is_data { (stream, other) } else { (other, stream) };
                pairs.spawn(base::task::boxed(pair(goal.clone(), data, error)));
            }
            other => {
                if let Some((_, other, _)) = other {
                    let _ = other.sender.reset().await;
                }
                waiting.insert(id, (is_data, stream, tokio::time::Instant::now()));
            }
        }
    }
    // With the connection gone the copies end by themselves or are of no use.
    pairs.abort_all();
}

async fn pair(goal: Goal, mut data: spdy::Stream, error: spdy::Stream) {
    let connected = match port(data.headers.get("port")) {
        Ok(port) => goal(port).await,
        Err(error) => Err(error),
    };
    match connected {
        Ok(connection) => {
            let (mut from, mut to) = tokio::io::split(connection);
            let sender = data.sender.clone();
            let outwards = async {
                let mut buffer = BytesMut::with_capacity(PIECE_BYTES_MAX);
                while let Ok(1..) = from.read_buf(&mut buffer).await {
                    let bytes = buffer.split().freeze();
                    buffer.reserve(PIECE_BYTES_MAX);
                    if sender.send(bytes).await.is_err() {
                        return;
                    }
                }
                let _ = sender.finish().await;
            };
            let inwards = async {
                while let Some(bytes) = data.data.recv().await {
                    if to.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _ = to.shutdown().await;
            };
            // What the server still says after the client has finished is carried; once
            // the server has closed nothing more can follow.
            tokio::pin!(inwards, outwards);
            tokio::select! {
                () = &mut outwards => {}
                () = &mut inwards => outwards.await,
            }
        }
        Err(message) => {
            debug!(message, "port not forwarded");
            let _ = error.sender.send(message.into()).await;
            let _ = data.sender.finish().await;
        }
    }
    let _ = error.sender.finish().await;
}

/// The older form: two channels per port of the query, data then error, each beginning
/// with the port's number.
pub async fn over_channels(goal: Goal, socket: Socket, ports: Vec<u16>) {
    let (mut sink, mut source) = socket.split();
    let (out, mut messages) = mpsc::channel::<(u8, Bytes)>(8);
    let mut inputs: Vec<mpsc::Sender<Bytes>> = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    for (index, port) in ports.into_iter().take(PORTS_MAX).enumerate() {
        let (input, receiver) = mpsc::channel(8);
        inputs.push(input);
        tasks.spawn(base::task::boxed(channel(
            goal.clone(),
            port,
            (index * 2) as u8,
            receiver,
            out.clone(),
        )));
    }
    drop(out);
    let writing = async {
        while let Some((channel, bytes)) = messages.recv().await {
            let mut frame = BytesMut::with_capacity(1 + bytes.len());
            frame.put_u8(channel);
            frame.extend_from_slice(&bytes);
            if sink.send(Message::Binary(frame.freeze())).await.is_err() {
                return;
            }
        }
        super::websocket::say_goodbye(&mut sink).await;
    };
    let reading = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(bytes) if !bytes.is_empty() && bytes[0] % 2 == 0 => {
                    if let Some(input) = inputs.get(usize::from(bytes[0] / 2)) {
                        // The connection behind it may have ended.
                        let _ = input.send(bytes.slice(1..)).await;
                    }
                }
                Message::Close(_) => return,
                Message::Binary(_)
                | Message::Text(_)
                | Message::Ping(_)
                | Message::Pong(_)
                | Message::Frame(_) => {}
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = reading => {}
    }
    tasks.abort_all();
}

async fn channel(
    goal: Goal,
    port: u16,
    number: u8,
    mut input: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<(u8, Bytes)>,
) {
    let head = Bytes::copy_from_slice(&port.to_le_bytes());
    for channel in [number, number + 1] {
        if out.send((channel, head.clone())).await.is_err() {
            return;
        }
    }
    let connection = match goal(port).await {
        Ok(connection) => connection,
        Err(message) => {
            let _ = out.send((number + 1, message.into())).await;
            return;
        }
    };
    let (mut from, mut to) = tokio::io::split(connection);
    let outwards = async {
        let mut buffer = BytesMut::with_capacity(PIECE_BYTES_MAX);
        while let Ok(1..) = from.read_buf(&mut buffer).await {
            let bytes = buffer.split().freeze();
            buffer.reserve(PIECE_BYTES_MAX);
            if out.send((number, bytes)).await.is_err() {
                return;
            }
        }
    };
    let inwards = async {
        while let Some(bytes) = input.recv().await {
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = outwards => {}
        () = inwards => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::spdy::samples::{Peer, Seen};
    use super::*;

    /// Port 80 echoes in capitals; others refuse.
    fn shouting() -> Goal {
        Arc::new(|port| {
            Box::pin(async move {
                if port != 80 {
                    return Err(format!("error forwarding port {port}: connection refused"));
                }
                let (near, mut far) = tokio::io::duplex(1024);
                base::task::spawn(async move {
                    let mut text = String::new();
                    far.read_to_string(&mut text).await.unwrap();
                    far.write_all(text.to_uppercase().as_bytes()).await.unwrap();
                });
                Ok(Box::new(near) as Box<dyn Duplex>)
            })
        })
    }

    async fn forwarded(port: &str, send: &[u8]) -> (String, String) {
        let (client, server) = tokio::io::duplex(1 << 16);
        let serving = base::task::spawn(over_spdy(shouting(), spdy::serve(server)));
        let mut peer = Peer::new(client);
        peer.open(1, &[("streamtype", "error"), ("port", port), ("requestid", "0")]).await;
        peer.data(1, b"", true).await;
        peer.open(3, &[("streamtype", "data"), ("port", port), ("requestid", "0")]).await;
        peer.data(3, send, true).await;
        let (mut data, mut error, mut ended) = (Vec::new(), Vec::new(), 0);
        while ended < 2 {
            match peer.next().await.unwrap() {
                Seen::Data(1, bytes, fin) => {
                    error.extend(bytes);
                    ended += usize::from(fin);
                }
                Seen::Data(3, bytes, fin) => {
                    data.extend(bytes);
                    ended += usize::from(fin);
                }
                Seen::Reply(_) | Seen::Window(..) => {}
                other => panic!("{other:?}"),
            }
        }
        drop(peer);
        tokio::time::timeout(Duration::from_secs(5), serving).await.unwrap().unwrap();
        (String::from_utf8(data).unwrap(), String::from_utf8(error).unwrap())
    }

    #[tokio::test]
    async fn a_pair_of_streams_carries_one_connection() {
        assert_eq!(forwarded("80", b"hello").await, ("HELLO".into(), String::new()));
        let refused = "error forwarding port 81: connection refused";
        assert_eq!(forwarded("81", b"hello").await, (String::new(), refused.into()));
        assert_eq!(forwarded("0", b"").await.1, "invalid port \"0\"");
    }
}
