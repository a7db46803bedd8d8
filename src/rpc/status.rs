//! How a call ended, and its form in headers and in words.

use std::fmt;

use http::{HeaderMap, HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};

pub(crate) const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";

/// What is not printable ASCII is encoded, and the sign of the encoding itself.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// Bytes of a message that are sent; a longer one would not fit the peer's header limit.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

macro_rules! codes {
    ($($name:ident = $number:literal),+ $(,)?) => {
        /// The codes of <https://github.com/grpc/grpc/blob/master/doc/statuscodes.md>.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $($name = $number),+ }

        impl Code {
            /// A number that nobody defined is [`Code::Unknown`].
            pub fn from_number(number: u32) -> Self {
                match number {
                    $($number => Self::$name,)+
                    _ => Self::Unknown,
                }
            }
        }
    };
}

codes! {
    Ok = 0,
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

/// A call that did not end well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub code: Code,
    pub message: String,
}

impl Status {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn late() -> Self {
        Self::new(Code::DeadlineExceeded, "context deadline exceeded")
    }

    /// None says that it ended well, or that the headers do not say.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Result<(), Self>> {
        let number = headers.get(STATUS)?.to_str().ok().and_then(|text| text.parse().ok());
        let code = number.map_or(Code::Unknown, Code::from_number);
        if code == Code::Ok {
            return Some(Ok(()));
        }
        let message = headers.get(MESSAGE).map(HeaderValue::as_bytes).unwrap_or_default();
        let message = percent_decode(message).decode_utf8_lossy().into_owned();
        Some(Err(Self { code, message }))
    }

    pub(crate) fn write(outcome: &Result<(), Self>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let code = outcome.as_ref().err().map_or(Code::Ok, |status| status.code);
        headers.insert(STATUS, HeaderValue::from(code as u32));
        if let Err(status) = outcome {
            let end = status.message.floor_char_boundary(MESSAGE_BYTES_MAX);
            let text = utf8_percent_encode(&status.message[..end], ENCODED).to_string();
            let text = HeaderValue::try_from(text);
            headers.insert(MESSAGE, text.expect("what is no printable ASCII was encoded"));
        }
        headers
    }

    /// What an answer means that is none of gRPC's
    /// (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>).
    pub(crate) fn of_http(status: StatusCode) -> Self {
        let code = match status.as_u16() {
            400 => Code::Internal,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::Unimplemented,
            429 | 502..=504 => Code::Unavailable,
            _ => Code::Unknown,
        };
        let reason = status.canonical_reason().unwrap_or_default();
        Self::new(
            code,
            format!(
                "unexpected HTTP status code received from server: {} ({reason})",
                status.as_u16()
            ),
        )
    }
}

/// The words that upstream's events and logs have for it.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rpc error: code = {:?} desc = {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_its_headers_whatever_its_message_holds() {
        for message in ["", "plain", "100 % wrong\nsecond line", "größer als \u{1f600}", "%41"] {
            let status = Status::new(Code::FailedPrecondition, message);
            let headers = Status::write(&Err(status.clone()));
            assert!(headers[MESSAGE].as_bytes().iter().all(|byte| (0x20..0x7f).contains(byte)));
            assert_eq!(Status::read(&headers), Some(Err(status)));
        }
        assert_eq!(Status::read(&Status::write(&Ok(()))), Some(Ok(())));
        assert_eq!(Status::read(&HeaderMap::new()), None);
    }

    #[test]
    fn what_the_peer_may_send_as_a_status_is_never_taken_for_success() {
        for (status, message, means) in [
            ("17", "a", "rpc error: code = Unknown desc = a"),
            ("zero", "%zz%4", "rpc error: code = Unknown desc = %zz%4"),
            ("", "", "rpc error: code = Unknown desc = "),
            ("14", "%FF", "rpc error: code = Unavailable desc = \u{fffd}"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(STATUS, status.parse().unwrap());
            headers.insert(MESSAGE, message.parse().unwrap());
            assert_eq!(Status::read(&headers).unwrap().unwrap_err().to_string(), means);
        }
    }

    #[test]
    fn a_long_message_is_cut_where_a_character_ends() {
        let headers = Status::write(&Err(Status::new(Code::Internal, "ü".repeat(5_000))));
        let Some(Err(status)) = Status::read(&headers) else { panic!("it failed") };
        assert_eq!(status.message, "ü".repeat(MESSAGE_BYTES_MAX / 2));
    }
}
