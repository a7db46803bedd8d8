//! How far a pull has come, for whoever wants to show it.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    #[default]
    Resolving,
    Downloading,
    Unpacking,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    pub digest: String,
    pub bytes: u64,
    pub bytes_done: u64,
    /// Nothing was to be done: the layer was there.
    pub is_present: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub step: Step,
    pub blobs: Vec<Blob>,
}

/// The telling end. A teller without listeners costs next to nothing.
#[derive(Clone)]
pub struct Teller(watch::Sender<Progress>);

impl Teller {
    pub fn channel() -> (Self, watch::Receiver<Progress>) {
        let (tell, told) = watch::channel(Progress::default());
        (Self(tell), told)
    }

    pub fn step(&self, step: Step) {
        self.0.send_modify(|now| now.step = step);
    }

    pub(super) fn blobs(&self, blobs: Vec<Blob>) {
        self.0.send_modify(|now| now.blobs = blobs);
    }

    pub(super) fn done(&self, digest: &str, bytes: u64) {
        self.0.send_modify(|now| {
            for blob in now.blobs.iter_mut().filter(|blob| blob.digest == digest) {
                blob.bytes_done = bytes;
            }
        });
    }
}
