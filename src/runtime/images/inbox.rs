//! A directory of archives whose images are there for as long as it has them: imported at
//! start and whenever one comes or changes, and pinned, for no registry may have them.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use sys::watched_dir::{WatchFlags, WatchedDir};

use super::{Images, beside, store::failed};
use crate::cri::{ErrorKind, Result};

const ENDINGS: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"];
/// A change is looked at this long after it came: archives often come in numbers.
const SETTLE: Duration = Duration::from_millis(200);
/// How often a directory is looked at that cannot be watched.
const REREAD: Duration = Duration::from_secs(60);

/// What tells one state of a file from another: device, number, bytes, and when it changed.
type Stamp = (u64, u64, u64, i64, i64);
/// Each file's outcome.
pub type Outcomes = Vec<(PathBuf, Result<Vec<String>>)>;

pub struct Inbox {
    images: Arc<Images>,
    dir: PathBuf,
    /// The archives as they were looked at last, and ids of the images in them.
    seen: HashMap<PathBuf, (Stamp, Vec<String>)>,
}

/// The archives in `dir` in order of names; a directory that is not there holds none.
fn archives(dir: &Path) -> Result<Vec<(PathBuf, Stamp)>> {
    let entries = match std::fs::read_dir(dir) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|err| failed(&format!("read {}", dir.display()), err))?,
    };
    let mut found: Vec<(PathBuf, Stamp)> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            ENDINGS.iter().any(|end| name.ends_with(end))
        })
        .filter_map(|path| {
            let meta = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
            let stamp = (meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec());
            Some((path, stamp))
        })
        .collect();
    found.sort();
    Ok(found)
}

impl Inbox {
    pub fn new(images: Arc<Images>, dir: PathBuf) -> Self {
        Self { images, dir, seen: HashMap::new() }
    }

    /// Imports what is new or has changed: one bad archive stops no other.
    ///
    /// # Errors
    /// When the directory cannot be read, or what is pinned not be noted.
    pub async fn look(&mut self) -> Result<Outcomes> {
        let dir = self.dir.clone();
        let found = beside(move || archives(&dir)).await?;
        self.seen.retain(|path, _| found.iter().any(|(there, _)| there == path));
        let mut outcomes = Vec::new();
        for (path, stamp) in found {
            if self.seen.get(&path).is_some_and(|(seen, _)| *seen == stamp) {
                continue;
            }
            let outcome = self.images.import_file(&path).await;
            match &outcome {
                Ok(ids) => drop(self.seen.insert(path.clone(), (stamp, ids.clone()))),
                Err(err) => {
                    tracing::warn!(file = %path.display(), error = %err, "archive not imported");
                    // A bad one is not read again before it changes; a full disk may be less so.
                    if err.kind == ErrorKind::ImageInvalid {
                        self.seen.insert(path.clone(), (stamp, Vec::new()));
                    }
                }
            }
            outcomes.push((path, outcome));
        }
        let pinned: HashSet<String> =
            self.seen.values().flat_map(|(_, ids)| ids.iter().cloned()).collect();
        let store = self.images.store.clone();
        beside(move || store.pin_only(&pinned)).await?;
        Ok(outcomes)
    }

    /// Looks whenever something changes in the directory, which is made if need be.
    pub async fn follow(mut self, drain: Drain) {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::CREATE;
        let watch = |dir: &Path| {
            std::fs::create_dir_all(dir)?;
            WatchedDir::new(dir, flags)
        };
        let mut watched = watch(&self.dir);
        if let Err(err) = &watched {
            tracing::warn!(dir = %self.dir.display(), error = %err,
                           "new archives of images are looked for at intervals");
        }
        // What came between the first look and the watch.
        let mut change = Duration::ZERO;
        loop {
            if drain.until(tokio::time::sleep(change)).await.is_none() {
                return;
            }
            match self.look().await {
                Ok(outcomes) => {
                    for (path, _) in outcomes.iter().filter(|(_, outcome)| outcome.is_ok()) {
                        tracing::info!(file = %path.display(), "images imported");
                    }
                }
                Err(err) => tracing::warn!(error = %err, "archives of images not looked at"),
            }
            change = SETTLE;
            let changed = async {
                match &watched {
                    Ok(watched) => watched.changed().await,
                    Err(_) => {
                        tokio::time::sleep(REREAD).await;
                        Ok(())
                    }
                }
            };
            match drain.until(changed).await {
                None => return,
                Some(Ok(())) if self.dir.is_dir() => {}
                // It was taken away: it is made anew, and watched from then on.
                Some(_) => watched = watch(&self.dir),
            }
        }
    }
}
