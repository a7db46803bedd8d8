//! Watches over WebSocket (RFC 6455): an event is a message, text for JSON and binary for
//! protobuf. What the client sends is read and thrown away.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use client::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tracing::debug;

/// From the RFC, section 1.3.
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// A client that takes no data for so long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pings that wait for their answer.
const PONGS_MAX: usize = 4;
/// Control frames are no longer (section 5.5).
const CONTROL_BYTES_MAX: usize = 125;

/// Whether a request wants to become a WebSocket.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let has = |name: header::HeaderName, word: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket")
}

/// The answer that opens the connection; None without the client's key.
pub fn accept(headers: &HeaderMap) -> Option<Response<Body>> {
    let key = headers.get("sec-websocket-key")?.to_str().ok()?;
    let digest = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{}{KEY_SUFFIX}", key.trim()).as_bytes(),
    );
    let mut response = Response::new(Body::Full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = HeaderValue::from_str(&STANDARD.encode(digest)).ok()?;
    let out = response.headers_mut();
    out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    out.insert("sec-websocket-accept", answer);
    Some(response)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Text,
    Binary,
}

#[derive(Clone, Copy)]
enum Opcode {
    Text = 1,
    Binary = 2,
    Close = 8,
    Pong = 10,
}

/// Sends the messages of `next` until there is none, or the client leaves.
pub async fn send<F>(upgrade: OnUpgrade, kind: Kind, mut next: impl FnMut() -> F)
where
    F: Future<Output = Option<Vec<Bytes>>>,
{
    let stream = match upgrade.await {
        Ok(stream) => TokioIo::new(stream),
        Err(err) => {
            debug!(error = %err, "a watch did not become a WebSocket");
            return;
        }
    };
    let (mut from, mut to) = tokio::io::split(stream);
    let (pings, mut pongs) = mpsc::channel(PONGS_MAX);
    let reader = base::task::spawn(async move { read(&mut from, pings).await });
    let opcode = match kind {
        Kind::Text => Opcode::Text,
        Kind::Binary => Opcode::Binary,
    };
    loop {
        let frames = tokio::select! {
            messages = next() => match messages {
                Some(messages) => messages.iter().flat_map(|m| frame(opcode, m)).collect(),
                None => break,
            },
            ping = pongs.recv() => match ping {
                Some(payload) => frame(Opcode::Pong, &payload),
                // The reader has seen the end.
                None => break,
            },
        };
        if !write(&mut to, &frames).await {
            break;
        }
    }
    // 1000: an orderly end.
    write(&mut to, &frame(Opcode::Close, &1000u16.to_be_bytes())).await;
    reader.abort();
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> bool {
    let written = tokio::time::timeout(WRITE_TIMEOUT, async {
        to.write_all(bytes).await?;
        to.flush().await
    });
    matches!(written.await, Ok(Ok(())))
}

fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 10);
    out.push(0x80 | opcode as u8);
    match payload.len() {
        length @ 0..=125 => out.push(length as u8),
        length @ 126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    out
}

/// Reads frames until the client closes; the payloads of pings go to `pings`.
async fn read(from: &mut (impl AsyncRead + Unpin), pings: mpsc::Sender<Vec<u8>>) {
    let mut skipped = [0u8; 1_024];
    loop {
        let mut head = [0u8; 2];
        if from.read_exact(&mut head).await.is_err() {
            return;
        }
        let opcode = head[0] & 0x0f;
        let masked = head[1] & 0x80 != 0;
        let length = match head[1] & 0x7f {
            126 => from.read_u16().await.map(u64::from),
            127 => from.read_u64().await,
            short => Ok(u64::from(short)),
        };
        let Ok(mut length) = length else { return };
        let mut mask = [0u8; 4];
        if masked && from.read_exact(&mut mask).await.is_err() {
            return;
        }
        if opcode == Opcode::Close as u8 || (opcode >= 8 && length > CONTROL_BYTES_MAX as u64) {
            return;
        }
        if opcode == 9 {
            let mut payload = vec![0; length as usize];
            if from.read_exact(&mut payload).await.is_err() {
                return;
            }
            payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
            // Who pings faster than it reads is not answered every time.
            if let Err(mpsc::error::TrySendError::Closed(_)) = pings.try_send(payload) {
                return;
            }
            continue;
        }
        while length > 0 {
            let part = length.min(skipped.len() as u64) as usize;
            if from.read_exact(&mut skipped[..part]).await.is_err() {
                return;
            }
            length -= part as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_is_that_of_the_rfc() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        assert!(is_wanted(&headers) && accept(&headers).is_none());
        headers.insert("sec-websocket-key", HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        let response = accept(&headers).unwrap();
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frames_tell_their_length() {
        assert_eq!(frame(Opcode::Text, b"hi"), b"\x81\x02hi");
        assert_eq!(frame(Opcode::Binary, &[0; 126])[..4], [0x82, 126, 0, 126]);
        assert_eq!(
            frame(Opcode::Binary, &[0; 70_000])[..10],
            [0x82, 127, 0, 0, 0, 0, 0, 1, 17, 112]
        );
    }

    #[tokio::test]
    async fn pings_are_handed_on_and_a_close_ends() {
        // A masked text, a masked ping, a close.
        let mut bytes = b"\x81\x83\x01\x02\x03\x04abc".to_vec();
        bytes.extend_from_slice(b"\x89\x82\x01\x01\x01\x01hi");
        bytes.extend_from_slice(b"\x88\x80\x00\x00\x00\x00");
        let (sender, mut receiver) = mpsc::channel(PONGS_MAX);
        read(&mut bytes.as_slice(), sender).await;
        assert_eq!(receiver.recv().await.unwrap(), [b'h' ^ 1, b'i' ^ 1]);
        assert!(receiver.recv().await.is_none());
    }
}
