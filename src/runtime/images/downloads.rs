//! Blobs on their way: files that outlive a cut connection and a restart, until the image
//! they belong to is in the store.
//!
//! Knows no registry; whoever holds a blob writes it and judges its digest.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::reference::digest_hex;

/// Bytes of half blobs that are kept for a next pull; the oldest go first.
const KEPT_BYTES_MAX: u64 = 2 << 30;
/// A half blob that nobody came back for.
const KEPT_AGE_MAX: Duration = Duration::from_secs(24 * 3_600);

/// One blob is written by one pull at a time; others that want it wait.
type Turn = Arc<tokio::sync::Mutex<()>>;

pub struct Downloads {
    dir: PathBuf,
    /// By digest: blobs of pulls under way.
    held: Mutex<HashMap<String, Turn>>,
}

/// A blob that a pull under way wants. Its file is nobody else's to remove.
pub struct Held {
    downloads: Arc<Downloads>,
    digest: String,
    pub path: PathBuf,
    pub turn: Turn,
    /// The store has its content: the file has done its service.
    pub is_done: bool,
}

impl Downloads {
    /// What is too old or too much of the pulls before is removed.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let downloads = Self { dir, held: Mutex::default() };
        downloads.prune(KEPT_BYTES_MAX);
        Ok(downloads)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Turn>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None for a digest that is malformed or not sha256.
    pub fn hold(self: &Arc<Self>, digest: &str) -> Option<Held> {
        let path = self.dir.join(digest_hex(digest)?);
        let turn = self.lock().entry(digest.to_owned()).or_default().clone();
        let digest = digest.to_owned();
        Some(Held { downloads: self.clone(), digest, path, turn, is_done: false })
    }

    /// Removes half blobs that no pull is at, down to `bytes_max` of them.
    pub fn prune(&self, bytes_max: u64) {
        let held = self.lock();
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if held.contains_key(&format!("sha256:{name}")) {
                continue;
            }
            if let Ok(meta) = entry.metadata() {
                let written = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.push((written, meta.len(), entry.path()));
            }
        }
        for path in superfluous(files, bytes_max, SystemTime::now()) {
            remove(&path);
        }
    }
}

/// The files that are too old, and the oldest of those that are too many.
fn superfluous(
    mut files: Vec<(SystemTime, u64, PathBuf)>,
    bytes_max: u64,
    now: SystemTime,
) -> Vec<PathBuf> {
    files.sort();
    let (mut kept, mut out) = (0_u64, Vec::new());
    for (written, bytes, path) in files.into_iter().rev() {
        let is_old = now.duration_since(written).is_ok_and(|age| age > KEPT_AGE_MAX);
        kept = kept.saturating_add(bytes);
        if is_old || kept > bytes_max {
            out.push(path);
        }
    }
    out
}

fn remove(path: &Path) {
    if let Err(err) = std::fs::remove_file(path)
        && err.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(file = %path.display(), error = %err, "half download not removed");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        {
            let mut held = self.downloads.lock();
            // One is the table's, one is ours.
            let is_last = held.get(&self.digest).is_some_and(|turn| Arc::strong_count(turn) <= 2);
            if is_last {
                held.remove(&self.digest);
                if self.is_done {
                    remove(&self.path);
                }
            }
        }
        if !self.is_done {
            self.downloads.prune(KEPT_BYTES_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_half_blobs_go_first_and_none_gets_too_old() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let file = |age: u64, bytes: u64, name: &str| {
            (now - Duration::from_secs(age), bytes, PathBuf::from(name))
        };
        let files = || vec![file(60, 40, "new"), file(120, 40, "middle"), file(200, 40, "old")];
        let names = |bytes_max| {
            let out = superfluous(files(), bytes_max, now);
            out.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert!(names(120).is_empty());
        assert_eq!(names(100), ["old"]);
        assert_eq!(names(0), ["new", "middle", "old"]);
        let aged = vec![file(25 * 3_600, 1, "aged")];
        assert_eq!(superfluous(aged, 100, now), [PathBuf::from("aged")]);
    }

    #[test]
    fn what_a_pull_holds_is_not_removed_and_what_is_done_goes_with_its_last_holder() {
        let dir = tempfile::tempdir().unwrap();
        let downloads = Arc::new(Downloads::open(dir.path().join("d")).unwrap());
        let digest = format!("sha256:{}", "a".repeat(64));
        let mut first = downloads.hold(&digest).unwrap();
        let mut second = downloads.hold(&digest).unwrap();
        std::fs::write(&first.path, "half").unwrap();
        downloads.prune(0);
        assert!(first.path.exists());
        let path = first.path.clone();
        first.is_done = true;
        drop(first);
        assert!(path.exists(), "the second still wants it");
        second.is_done = true;
        drop(second);
        assert!(!path.exists());
        let broken = downloads.hold(&digest).unwrap();
        std::fs::write(&broken.path, "half").unwrap();
        drop(broken);
        assert!(path.exists(), "kept for the next pull");
        downloads.prune(0);
        assert!(!path.exists());
        assert!(downloads.hold("sha256:12").is_none());
    }
}
