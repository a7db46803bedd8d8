//! Failures as gRPC codes, and back.
//!
//! The codes are those that kubelets and crictl look at: NotFound, AlreadyExists,
//! InvalidArgument, DeadlineExceeded; what a runtime itself failed at is Unknown, as with the
//! runtimes that are written in Go.

use rpc::{Code, Status};

use crate::cri::{Error, ErrorKind};

pub fn to_status(error: &Error) -> Status {
    let code = match error.kind {
        ErrorKind::NotFound | ErrorKind::ImageNotPresent => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::ImagePull
        | ErrorKind::ImageInvalid
        | ErrorKind::Create
        | ErrorKind::Start
        | ErrorKind::Internal => Code::Unknown,
    };
    Status::new(code, base::error::chain(error).to_string())
}

/// `what` is the kind of a failure that the code says nothing about: it depends on the call.
pub fn from_status(status: Status, what: ErrorKind) -> Error {
    let kind = match status.code {
        Code::NotFound if what == ErrorKind::Create => ErrorKind::ImageNotPresent,
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::InvalidArgument if what == ErrorKind::Internal => ErrorKind::InvalidArgument,
        Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Code::ResourceExhausted => ErrorKind::NoSpace,
        _ => what,
    };
    let message = match status.code {
        // Not the runtime's words, but those of the way to it.
        Code::Unavailable => status.to_string(),
        _ => status.message,
    };
    Error::new(kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_its_kind_on_the_way_as_far_as_codes_can_say() {
        use ErrorKind::*;
        for (kind, call, wanted) in [
            (NotFound, Internal, NotFound),
            (ImageNotPresent, Create, ImageNotPresent),
            (AlreadyExists, Create, AlreadyExists),
            (InvalidArgument, Internal, InvalidArgument),
            (InvalidArgument, Create, Create),
            (DeadlineExceeded, Internal, DeadlineExceeded),
            (NoSpace, ImagePull, NoSpace),
            (ImageInvalid, ImagePull, ImagePull),
            (Start, Start, Start),
            (Internal, Internal, Internal),
        ] {
            let status = to_status(&Error::new(kind, "words"));
            let back = from_status(status, call);
            assert_eq!((back.kind, back.message.as_str()), (wanted, "words"), "{kind:?}");
        }
        let gone = from_status(Status::new(Code::Unavailable, "no socket"), Start);
        assert_eq!(gone.message, "rpc error: code = Unavailable desc = no socket");
    }
}
