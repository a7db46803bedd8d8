//! Bytes under keys, with one revision for everything: compare-and-swap, ranges at a
//! revision, watches, compaction.
//!
//! Never sees a kind. Only the `api` room reads or writes it.

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

pub mod backend {
    //! Where the bytes lie.
    pub mod sqlite;
}
pub mod contract;

/// A value and its history's marks, as etcd's `KeyValue`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: Bytes,
    pub create_revision: u64,
    pub mod_revision: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The revision asked for has been compacted away; `oldest` is still there.
    #[error("revision {asked} has been compacted, the oldest is {oldest}")]
    Compacted { asked: u64, oldest: u64 },
    /// The revision asked for has not been reached.
    #[error("revision {asked} is in the future, the newest is {newest}")]
    Future { asked: u64, newest: u64 },
    #[error("{0} is in use by another process")]
    InUse(String),
    /// The disk refuses: full, read-only or broken. Nothing of the write was kept.
    #[error("the datastore cannot write: {0}")]
    Disk(String),
    #[error("{action}")]
    Open {
        action: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the datastore has stopped")]
    Stopped,
}

pub type Result<T> = std::result::Result<T, Error>;

/// When a write must be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Before it is acknowledged.
    #[default]
    Durable,
    /// With the next durable write, or within five minutes. Only for what a power cut
    /// may take back: heartbeats and events.
    Relaxed,
}

/// One change to one key.
#[derive(Debug, Clone)]
pub enum Write {
    /// The key must not exist.
    Create {
        key: String,
        value: Bytes,
    },
    /// The key's `mod_revision` must be `expected`.
    Update {
        key: String,
        value: Bytes,
        expected: u64,
    },
    Delete {
        key: String,
        expected: u64,
    },
}

impl Write {
    pub fn key(&self) -> &str {
        match self {
            Write::Create { key, .. } | Write::Update { key, .. } | Write::Delete { key, .. } => {
                key
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Written at this revision.
    Done(u64),
    /// The expectation did not hold; this is what is there.
    Conflict(Option<KeyValue>),
}

#[derive(Debug, Clone, Default)]
pub struct RangeRequest {
    pub prefix: String,
    /// Only keys greater than this one.
    pub after: Option<String>,
    /// 0 is no limit.
    pub limit: usize,
    /// None is the newest.
    pub revision: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub struct Range {
    pub revision: u64,
    /// In the order of keys.
    pub items: Vec<KeyValue>,
    /// There are more keys than the limit let through.
    pub more: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Put(KeyValue),
    Delete { key: String, revision: u64 },
}

impl Event {
    pub fn key(&self) -> &str {
        match self {
            Event::Put(kv) => &kv.key,
            Event::Delete { key, .. } => key,
        }
    }

    pub fn revision(&self) -> u64 {
        match self {
            Event::Put(kv) => kv.mod_revision,
            Event::Delete { revision, .. } => *revision,
        }
    }
}

/// Events in the order of revisions, in batches of one commit. It ends when its reader
/// lags too far behind; the reader then watches again from the last revision it saw.
pub struct Watch {
    pub batches: mpsc::Receiver<Vec<Event>>,
    /// The revision up to which the first batch reaches.
    pub revision: u64,
}

/// A datastore. Every implementation passes [`contract`].
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// The newest acknowledged revision.
    fn revision(&self) -> u64;
    /// The oldest revision whose state is still there.
    fn oldest(&self) -> u64;
    async fn get(&self, key: &str) -> Result<Option<KeyValue>>;
    async fn range(&self, request: RangeRequest) -> Result<Range>;
    async fn write(&self, write: Write, durability: Durability) -> Result<Outcome>;
    /// Everything with a revision greater than `after`, whatever its key.
    async fn watch(&self, after: u64) -> Result<Watch>;
    /// Forgets superseded values older than `revision`. Returns how many.
    async fn compact(&self, revision: u64) -> Result<u64>;
    /// Puts relaxed writes on disk.
    async fn flush(&self) -> Result<()>;
}
