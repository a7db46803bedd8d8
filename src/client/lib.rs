//! How every component talks to an API server: requests, watches, shared caches, keyed
//! queues and events.
//!
//! The same types serve a server in this process and one across the network; only the
//! [`Transport`] differs. Nothing here knows which.

pub mod api;
pub mod cache;
pub mod compiled;
pub mod devices;
pub mod discovery;
pub mod election;
pub mod error;
pub mod fit;
pub mod kubeconfig;
pub mod labels;
mod metrics;
mod pace;
pub mod protobuf;
pub mod queue;
pub mod recorder;
pub mod remote;
mod requests;
pub mod review;
pub mod transport;
mod trim;
pub mod volumes;
pub mod zpages;

pub use api::{Api, DeleteParams, ListParams, ObjectList, Patch, Propagation, WatchEvent};
pub use cache::{Cache, Shared};
pub use error::{Error, Status};
pub use pace::Rate;
pub use queue::Queue;
pub use recorder::Recorder;
pub use transport::{Body, ByteStream, Client, Transport};
