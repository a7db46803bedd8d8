//! Protobuf on the way to a server and back, for callers that know only JSON: what costs a
//! server least (documentation, "Alternate representations of resources").
//!
//! Kinds without a message (custom resources, patches, tables) pass as they are.

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use codec::protobuf::encode::Encoder;
use codec::protobuf::{decode_sparse, watch_event};
use futures::StreamExt;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::transport::{Body, ByteStream, Transport, collect};

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// A frame of a watch that says it is larger ends the watch.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// A transport whose other end is spoken to in protobuf.
pub struct InProtobuf<T>(pub T);

#[async_trait]
impl<T: Transport> Transport for InProtobuf<T> {
    async fn send(&self, mut request: http::Request<Bytes>) -> Result<http::Response<Body>> {
        let accepted = text(request.headers(), &ACCEPT).to_string();
        if accepted.starts_with(JSON) {
            // JSON stays the second choice, for kinds that have no other form.
            let wanted = format!("{},{accepted}", accepted.replace(JSON, PROTOBUF));
            let wanted = HeaderValue::from_str(&wanted).map_err(|e| Error::Request(e.into()))?;
            request.headers_mut().insert(ACCEPT, wanted);
        }
        if text(request.headers(), &CONTENT_TYPE) == JSON
            && let Some(message) = encode(request.body())
        {
            *request.body_mut() = message.into();
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
        }
        let (mut parts, body) = self.0.send(request).await?.into_parts();
        let kind = text(&parts.headers, &CONTENT_TYPE);
        let Some(parameters) = kind.strip_prefix(PROTOBUF) else {
            return Ok(http::Response::from_parts(parts, body));
        };
        let body = if parameters.contains("stream=watch") {
            Body::Stream(lines(body))
        } else {
            let value = decode_sparse(&collect(body).await?).map_err(unreadable)?;
            Body::Full(value.to_string().into())
        };
        parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        parts.headers.remove(http::header::CONTENT_LENGTH);
        Ok(http::Response::from_parts(parts, body))
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

fn unreadable(err: codec::protobuf::Error) -> Error {
    Error::Transport(Box::new(err))
}

/// The body in protobuf; None for a kind that has no message, or an object that does not
/// fit it: the server says better what is wrong with that.
fn encode(body: &[u8]) -> Option<Vec<u8>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Type<'a> {
        api_version: &'a str,
        kind: &'a str,
    }
    let of: Type<'_> = serde_json::from_slice(body).ok()?;
    Encoder::of(of.api_version, of.kind)?.object(of.api_version, of.kind, body).ok()
}

/// The frames of a watch as lines of JSON.
fn lines(body: Body) -> ByteStream {
    let stream = match body {
        Body::Full(bytes) => futures::stream::once(async move { Ok(bytes) }).boxed(),
        Body::Stream(stream) => stream,
    };
    let state = Some((stream, BytesMut::new()));
    futures::stream::unfold(state, |state| async move {
        let (mut stream, mut buffer) = state?;
        loop {
            match line(&mut buffer) {
                Ok(Some(line)) => return Some((Ok(line), Some((stream, buffer)))),
                Ok(None) => {}
                Err(err) => return Some((Err(std::io::Error::other(err)), None)),
            }
            match stream.next().await {
                Some(Ok(chunk)) => buffer.extend_from_slice(&chunk),
                Some(Err(err)) => return Some((Err(err), None)),
                None => return None,
            }
        }
    })
    .boxed()
}

/// Takes all whole frames off the buffer; None where there is none.
fn line(buffer: &mut BytesMut) -> std::result::Result<Option<Bytes>, String> {
    let mut out = Vec::new();
    while let Some(length) = buffer.first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(format!("a watch event of {length} bytes is too large"));
        }
        if buffer.len() < 4 + length {
            buffer.reserve(4 + length - buffer.len());
            break;
        }
        buffer.advance(4);
        let frame = buffer.split_to(length);
        let (change, object) = watch_event(&frame).map_err(|err| err.to_string())?;
        let object = decode_sparse(object).map_err(|err| err.to_string())?;
        let event = serde_json::json!({"type": change, "object": object});
        out.extend_from_slice(event.to_string().as_bytes());
        out.push(b'\n');
    }
    Ok((!out.is_empty()).then(|| out.into()))
}

#[cfg(test)]
mod tests {
    use codec::protobuf::encode::watch_frame;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;

    /// A server that answers one thing, and keeps what it was asked.
    struct Server {
        asked: Mutex<Vec<(HeaderMap, Bytes)>>,
        kind: &'static str,
        chunks: Vec<Bytes>,
    }

    #[async_trait]
    impl Transport for std::sync::Arc<Server> {
        async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>> {
            let (parts, body) = request.into_parts();
            self.asked.lock().push((parts.headers, body));
            let chunks = futures::stream::iter(self.chunks.clone().into_iter().map(Ok));
            let response = http::Response::builder().header(CONTENT_TYPE, self.kind);
            Ok(response.body(Body::Stream(chunks.boxed())).unwrap())
        }
    }

    fn pod(name: &str) -> Value {
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": "n"}})
    }

    fn message(object: &Value) -> Vec<u8> {
        let text = |field: &str| object[field].as_str().unwrap();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let encoder = Encoder::of(version, kind).unwrap();
        encoder.object(version, kind, object.to_string().as_bytes()).unwrap()
    }

    async fn ask(server: Server, body: Value) -> (std::sync::Arc<Server>, Vec<Value>) {
        let server = std::sync::Arc::new(server);
        let request = http::Request::post("/").header(ACCEPT, JSON).header(CONTENT_TYPE, JSON);
        let request = request.body(Bytes::from(body.to_string())).unwrap();
        let response = InProtobuf(server.clone()).send(request).await.unwrap();
        assert_eq!(text(response.headers(), &CONTENT_TYPE), JSON);
        let body = collect(response.into_body()).await.unwrap();
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        (server, lines.map(|line| serde_json::from_slice(line).unwrap()).collect())
    }

    #[tokio::test]
    async fn objects_travel_in_protobuf_and_are_seen_as_json() {
        let answer = message(&pod("there")).into();
        let server = Server { asked: Mutex::default(), kind: PROTOBUF, chunks: vec![answer] };
        let (server, seen) = ask(server, pod("here")).await;
        let (headers, body) = &server.asked.lock()[0];
        assert_eq!(text(headers, &ACCEPT), format!("{PROTOBUF},{JSON}"));
        assert_eq!(text(headers, &CONTENT_TYPE), PROTOBUF);
        assert_eq!(decode_sparse(body).unwrap()["metadata"]["name"], "here");
        assert_eq!(seen[0]["metadata"]["name"], "there");
        assert_eq!(seen[0]["spec"]["nodeName"], "n");
        // What was not set is not there, as in JSON.
        assert_eq!(seen[0]["spec"].get("hostname"), None);
        assert_eq!(seen[0]["spec"]["containers"][0].get("tty"), None);
    }

    #[tokio::test]
    async fn kinds_without_a_message_stay_json() {
        let custom = json!({"kind": "Widget", "apiVersion": "example.com/v1"});
        let chunks = vec![Bytes::from(custom.to_string())];
        let server = Server { asked: Mutex::default(), kind: JSON, chunks };
        let (server, seen) = ask(server, custom.clone()).await;
        assert_eq!(text(&server.asked.lock()[0].0, &CONTENT_TYPE), JSON);
        assert_eq!(seen, [custom]);
    }

    #[tokio::test]
    async fn frames_of_a_watch_become_lines_however_they_are_cut() {
        let frames: Vec<u8> =
            ["a", "b"].iter().flat_map(|name| watch_frame("ADDED", &message(&pod(name)))).collect();
        for size in [1, 7, frames.len()] {
            let chunks = frames.chunks(size).map(Bytes::copy_from_slice).collect();
            let kind = "application/vnd.kubernetes.protobuf;stream=watch";
            let server = Server { asked: Mutex::default(), kind, chunks };
            let (_, seen) = ask(server, pod("x")).await;
            let names: Vec<&Value> =
                seen.iter().map(|e| &e["object"]["metadata"]["name"]).collect();
            assert_eq!(names, ["a", "b"], "in pieces of {size}");
            assert_eq!(seen[0]["type"], "ADDED");
        }
    }

    #[test]
    fn a_frame_that_claims_to_be_huge_ends_the_watch() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 0][..]);
        assert!(line(&mut buffer).is_err());
        assert!(line(&mut BytesMut::from(&[0, 0, 0, 1, 0xff][..])).is_err());
    }
}
