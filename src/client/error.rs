//! What a request can fail with.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `meta/v1 Status`, as far as clients look at it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    pub status: String,
    pub message: String,
    pub reason: String,
    pub code: u16,
    pub details: Option<Value>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with a Status.
    #[error("{}", .0.message)]
    Api(Box<Status>),
    /// No answer, or a broken one.
    #[error("reach the API server")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the API server did not answer within {0:?}")]
    Timeout(std::time::Duration),
    #[error("read the API server's answer")]
    Decode(#[source] serde_json::Error),
    #[error("encode the request")]
    Encode(#[source] serde_json::Error),
    #[error("build the request")]
    Request(#[source] http::Error),
}

impl Error {
    /// The HTTP status of the answer, 0 where there was none.
    pub fn code(&self) -> u16 {
        match self {
            Error::Api(status) => status.code,
            Error::Transport(_)
            | Error::Timeout(_)
            | Error::Decode(_)
            | Error::Encode(_)
            | Error::Request(_) => 0,
        }
    }

    pub fn reason(&self) -> &str {
        match self {
            Error::Api(status) => &status.reason,
            _ => "",
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    pub fn is_conflict(&self) -> bool {
        self.code() == 409 && self.reason() == "Conflict"
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason() == "AlreadyExists"
    }

    /// The version asked for is gone; list anew.
    pub fn is_expired(&self) -> bool {
        self.code() == 410
    }

    pub fn is_forbidden(&self) -> bool {
        self.code() == 403
    }

    /// Creation was refused because the namespace is being deleted.
    pub fn is_namespace_terminating(&self) -> bool {
        let Error::Api(status) = self else { return false };
        let causes =
            status.details.as_ref().and_then(|d| d.get("causes")).and_then(Value::as_array);
        causes.is_some_and(|causes| {
            causes.iter().any(|cause| cause["reason"] == "NamespaceTerminating")
        })
    }
}

pub type Result<T> = std::result::Result<T, Error>;
