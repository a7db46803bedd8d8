//! The server's side of a WebSocket that carries Kubernetes' streaming protocols:
//! numbered channels (`v5.channel.k8s.io` and before), or a tunnelled byte stream.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

/// A larger message ends the connection.
const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Bytes on their way between the socket and a tunnelled stream.
const TUNNEL_BYTES_MAX: usize = 64 << 10;

pub type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Says goodbye in the way that clients take for a good end: code 1000 (RFC 6455, 7.4.1).
/// Without a code kubectl reports an error.
pub async fn say_goodbye(sink: &mut (impl futures::Sink<Message> + Unpin)) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    // A client that is gone already needs no goodbye.
    let _ = sink.send(Message::Close(Some(frame))).await;
}

pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// The first protocol of the client's that is among ours.
pub fn choose<'a>(headers: &HeaderMap, ours: &[&'a str]) -> Option<&'a str> {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|wanted| ours.iter().find(|own| **own == wanted.trim()).copied())
}

pub fn asks_for_any(headers: &HeaderMap) -> bool {
    headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL)
}

/// The answer that turns the connection into a WebSocket; None if the request has no key.
pub fn accept<B: Default>(headers: &HeaderMap, protocol: Option<&str>) -> Option<Response<B>> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    let mut answer = Response::new(B::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = answer.headers_mut();
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let accept = derive_accept_key(key.as_bytes());
    out.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).ok()?);
    if let Some(protocol) = protocol {
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(protocol).ok()?);
    }
    Some(answer)
}

pub async fn open(upgrade: OnUpgrade) -> Result<Socket, hyper::Error> {
    let io = TokioIo::new(upgrade.await?);
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    Ok(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await)
}

/// The bytes of a socket's binary messages as one stream, both ways.
pub fn tunnel<S>(socket: WebSocketStream<S>) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (near, far) = tokio::io::duplex(TUNNEL_BYTES_MAX);
    let (mut read_far, mut write_far) = tokio::io::split(far);
    let (mut sink, mut source) = socket.split();
    base::task::spawn(async move {
        let inwards = async {
            while let Some(Ok(message)) = source.next().await {
                let bytes = match message {
                    Message::Binary(bytes) => bytes,
                    Message::Close(_) => break,
                    Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {
                        continue;
                    }
                };
                if write_far.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // The other end may have gone first.
            let _ = write_far.shutdown().await;
        };
        let outwards = async {
            let mut buffer = vec![0; 32 << 10];
            while let Ok(read @ 1..) = read_far.read(&mut buffer).await {
                let message = Message::Binary(Bytes::copy_from_slice(&buffer[..read]));
                if sink.send(message).await.is_err() {
                    return;
                }
            }
            say_goodbye(&mut sink).await;
        };
        tokio::join!(inwards, outwards);
    });
    near
}

#[cfg(test)]
mod tests {
    use super::super::spdy;
    use super::super::spdy::samples::{Peer, Seen};
    use super::*;

    #[tokio::test]
    async fn spdy_goes_through_the_messages_of_a_websocket() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let server = WebSocketStream::from_raw_socket(server, Role::Server, None).await;
        let mut accept = spdy::serve(tunnel(server));
        let mut peer = Peer::new(tunnel(client));
        peer.open(1, &[("streamtype", "data"), ("port", "80")]).await;
        peer.data(1, b"ping", true).await;
        let mut stream = accept.recv().await.unwrap();
        assert_eq!(stream.headers["port"], "80");
        assert_eq!(stream.data.recv().await.unwrap(), "ping");
        assert!(stream.data.recv().await.is_none());
        stream.sender.send("pong".into()).await.unwrap();
        stream.sender.finish().await.unwrap();
        assert_eq!(peer.next().await, Some(Seen::Reply(1)));
        assert_eq!(peer.next().await, Some(Seen::Data(1, b"pong".to_vec(), false)));
        assert_eq!(peer.next().await, Some(Seen::Data(1, vec![], true)));
        drop(peer);
        let ended = tokio::time::timeout(std::time::Duration::from_secs(5), accept.recv()).await;
        assert!(ended.unwrap().is_none(), "the connection ends with the socket");
    }

    #[test]
    fn the_clients_first_known_protocol_is_taken() {
        let headers = |value: &'static str| -> HeaderMap {
            [(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(value))]
                .into_iter()
                .collect()
        };
        let ours = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
        assert_eq!(
            choose(&headers("x, v4.channel.k8s.io, v5.channel.k8s.io"), &ours),
            Some(ours[1])
        );
        assert_eq!(choose(&headers("x"), &ours), None);
    }
}
