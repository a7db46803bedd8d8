//! Why a volume is not there.

use super::waits::DEADLINE;

/// Why a volume is not there, as an event says it.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
    pub kind: FailureKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Making it failed.
    Failed,
    /// What is to be made is not known; it is told with all volumes that the pod lacks.
    Unprocessed,
    /// It is waited for; the pod's wait is told, not the volume's.
    Late,
}

impl Failure {
    pub fn new(reason: &'static str, message: String) -> Self {
        Self { reason, message, kind: FailureKind::Failed }
    }

    pub fn unprocessed(message: String) -> Self {
        Self { kind: FailureKind::Unprocessed, ..Self::from(message) }
    }

    pub fn late() -> Self {
        Self { kind: FailureKind::Late, ..Self::from(DEADLINE.to_owned()) }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::new("FailedMount", message)
    }
}
