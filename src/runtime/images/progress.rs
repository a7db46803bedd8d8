//! How far a pull has come, for whoever wants to show it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

const MIB: u64 = 1 << 20;

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

/// In one line, as an event has it.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self.step {
            Step::Resolving => return f.write_str("resolving"),
            Step::Downloading => "downloading",
            Step::Unpacking => "unpacking",
        };
        let (mut bytes, mut bytes_done, mut done) = (0, 0, 0);
        for blob in &self.blobs {
            let is_done = blob.is_present || blob.bytes_done >= blob.bytes;
            bytes += blob.bytes;
            bytes_done += if is_done { blob.bytes } else { blob.bytes_done };
            done += usize::from(is_done);
        }
        let (bytes_done, bytes, all) = (bytes_done / MIB, bytes.div_ceil(MIB), self.blobs.len());
        write!(f, "{step}, {bytes_done} of {bytes} MiB, {done} of {all} layers there")
    }
}

/// Pulls under way, by the name that was asked for; of several of one name the last.
#[derive(Default)]
pub struct UnderWay(Mutex<HashMap<String, watch::Receiver<Progress>>>);

/// One of them, until this is dropped.
pub struct Noted<'a> {
    all: &'a UnderWay,
    image: String,
    told: watch::Receiver<Progress>,
}

impl UnderWay {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Progress>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self, image: &str, teller: &Teller) -> Noted<'_> {
        let told = teller.0.subscribe();
        self.lock().insert(image.to_owned(), told.clone());
        Noted { all: self, image: image.to_owned(), told }
    }

    pub fn of(&self, image: &str) -> Option<Progress> {
        self.lock().get(image).map(|told| told.borrow().clone())
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if all.get(&self.image).is_some_and(|held| held.same_channel(&self.told)) {
            all.remove(&self.image);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_told_of_as_long_as_it_is_under_way() {
        let all = UnderWay::default();
        assert_eq!(all.of("i"), None);
        let (first, second) = (Teller::channel().0, Teller::channel().0);
        let noted = all.note("i", &first);
        assert_eq!(all.of("i").unwrap().to_string(), "resolving");
        second.step(Step::Downloading);
        let blob = |bytes, bytes_done, is_present| Blob {
            digest: format!("{bytes}"),
            bytes,
            bytes_done,
            is_present,
        };
        second.blobs(vec![
            blob(9 * MIB, 0, true),
            blob(10 * MIB, MIB + 1, false),
            blob(1, 1, false),
        ]);
        let again = all.note("i", &second);
        drop(noted);
        let text = "downloading, 10 of 20 MiB, 2 of 3 layers there";
        assert_eq!(all.of("i").unwrap().to_string(), text);
        drop(again);
        assert_eq!(all.of("i"), None);
    }
}
