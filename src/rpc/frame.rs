//! Messages in the body of a request or an answer: a flag, a length, the bytes.
//!
//! A message that is longer than its reader allows is refused before it is read.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Body;
use prost::Message;

use crate::{Code, Status};

const HEAD_BYTES: usize = 5;

pub(crate) fn write(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(HEAD_BYTES + length);
    out.put_u8(0);
    // What is longer than the format can say is longer than any reader allows, too.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode(&mut out).expect("a buffer in memory grows");
    out.freeze()
}

pub(crate) fn read<M: Message + Default>(bytes: Bytes) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| {
        Status::new(
            Code::Internal,
            format!("grpc: failed to unmarshal the received message: {error}"),
        )
    })
}

/// The messages of a body, one after the other.
pub(crate) struct Frames<B> {
    body: B,
    held: BytesMut,
    trailers: Option<HeaderMap>,
    message_bytes_max: usize,
}

impl<B: Body<Data = Bytes> + Unpin> Frames<B>
where
    B::Error: std::fmt::Display,
{
    pub(crate) fn new(body: B, message_bytes_max: usize) -> Self {
        Self { body, held: BytesMut::new(), trailers: None, message_bytes_max }
    }

    /// The bytes of the next message; None at the end of the body. May be dropped and
    /// called again.
    ///
    /// # Errors
    /// When the message is too long, compressed, or cut off, or the connection breaks.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.cut()? {
                return Ok(Some(message));
            }
            match self.body.frame().await {
                None if self.held.is_empty() => return Ok(None),
                None => return Err(Status::new(Code::Internal, "unexpected EOF")),
                Some(Err(error)) => {
                    let said = format!("error reading from server: {error}");
                    return Err(Status::new(Code::Unavailable, said));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.held.extend_from_slice(&data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
        }
    }

    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    fn cut(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((&[flag, a, b, c, d], _)) = self.held.split_first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        if flag != 0 {
            let said = "grpc: compressed flag set with identity or empty encoding";
            return Err(Status::new(Code::Internal, said));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.message_bytes_max {
            let said = format!(
                "grpc: received message larger than max ({length} vs. {})",
                self.message_bytes_max
            );
            return Err(Status::new(Code::ResourceExhausted, said));
        }
        if self.held.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        self.held.advance(HEAD_BYTES);
        Ok(Some(self.held.split_to(length).freeze()))
    }
}
