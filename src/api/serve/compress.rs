//! Large answers are compressed for clients that take gzip. Watches and what other
//! servers answer are not.

use std::io::Write;

use bytes::Bytes;
use client::Body;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Response, header};

/// Smaller answers are sent as they are.
const BYTES_MIN: usize = 128 << 10;

/// An answer that may be compressed as it streams: it is a document, not a watch.
#[derive(Clone, Copy)]
pub struct Document;

/// Whether the client takes gzip.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let offers = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    offers.is_some_and(|offers| offers.split(',').any(|offer| offer.trim() == "gzip"))
}

/// The answer, compressed if it is large enough and a document.
pub fn large(mut response: Response<Body>) -> Response<Body> {
    let document = response.extensions_mut().remove::<Document>().is_some();
    if !document || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = match body {
        Body::Full(bytes) if bytes.len() <= BYTES_MIN => {
            return Response::from_parts(parts, Body::Full(bytes));
        }
        Body::Full(bytes) => {
            let mut encoder = encoder();
            match encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
                Ok(packed) => Body::Full(packed.into()),
                // Writing into memory does not fail; if it did, nothing is lost.
                Err(_) => return Response::from_parts(parts, Body::Full(bytes)),
            }
        }
        Body::Stream(stream) => {
            let state = Some((stream, encoder()));
            Body::Stream(Box::pin(futures::stream::unfold(state, |state| async move {
                let (mut stream, mut encoder) = state?;
                loop {
                    match stream.next().await {
                        Some(Ok(chunk)) => {
                            if let Err(err) = encoder.write_all(&chunk) {
                                return Some((Err(err), None));
                            }
                            let ready = std::mem::take(encoder.get_mut());
                            if !ready.is_empty() {
                                return Some((Ok(Bytes::from(ready)), Some((stream, encoder))));
                            }
                        }
                        Some(Err(err)) => return Some((Err(err), None)),
                        None => return Some((encoder.finish().map(Bytes::from), None)),
                    }
                }
            })))
        }
    };
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, body)
}

/// The fastest level, as upstream's.
fn encoder() -> GzEncoder<Vec<u8>> {
    GzEncoder::new(Vec::new(), Compression::new(1))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn unpack(packed: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut out).unwrap();
        out
    }

    fn answer(body: Body, document: bool) -> Response<Body> {
        let mut response = Response::new(body);
        if document {
            response.extensions_mut().insert(Document);
        }
        large(response)
    }

    #[tokio::test]
    async fn only_large_documents_are_compressed() {
        let text = Bytes::from(vec![b'x'; BYTES_MIN + 1]);
        let Body::Full(packed) = answer(Body::Full(text.clone()), true).into_body() else {
            panic!()
        };
        assert!(packed.len() < 2_000);
        assert_eq!(unpack(&packed), text);
        let Body::Full(same) = answer(Body::Full(text.clone()), false).into_body() else {
            panic!()
        };
        assert_eq!(same, text);
        let small = text.slice(..BYTES_MIN);
        let response = answer(Body::Full(small), true);
        assert!(!response.headers().contains_key(header::CONTENT_ENCODING));
    }

    #[tokio::test]
    async fn streams_are_compressed_as_they_come() {
        let chunks: Vec<std::io::Result<Bytes>> =
            (0..9u8).map(|n| Ok(Bytes::from(vec![n; 40_000]))).collect();
        let stream = Body::Stream(Box::pin(futures::stream::iter(chunks)));
        let Body::Stream(packed) = answer(stream, true).into_body() else { panic!() };
        let packed: Vec<Bytes> = packed.map(|chunk| chunk.unwrap()).collect().await;
        assert_eq!(unpack(&packed.concat()).len(), 360_000);
    }

    #[test]
    fn gzip_has_to_be_named() {
        let mut headers = HeaderMap::new();
        assert!(!is_wanted(&headers));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("br, gzip"));
        assert!(is_wanted(&headers));
    }
}
