//! Which volumes of drivers are on this node, and which pods use them.
//!
//! On disk too, written before a driver is asked: what a process that died has begun, the
//! next one ends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::warn;

use super::source::Record;
use crate::volumes::mounts;

const RECORD: &str = "vol_data.json";
/// Longest record; a longer one is none of ours.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// A volume that is, or will be, staged on this node.
pub struct Held {
    pub record: Record,
    /// Uids of pods.
    pub users: BTreeSet<String>,
    pub is_staged: bool,
    /// It is staged and unstaged by one at a time.
    pub gate: Arc<tokio::sync::Mutex<()>>,
}

impl Held {
    pub fn new(record: Record) -> Self {
        Self { record, users: BTreeSet::new(), is_staged: false, gate: Arc::default() }
    }
}

/// None where there is none, or none that can be read.
pub fn read(dir: &Path) -> Option<Record> {
    let path = dir.join(RECORD);
    let meta = std::fs::symlink_metadata(&path).ok()?;
    if !meta.is_file() || meta.len() > RECORD_BYTES_MAX {
        return None;
    }
    match serde_json::from_slice(&std::fs::read(&path).ok()?) {
        Ok(record) => Some(record),
        Err(error) => {
            warn!(path = %path.display(), %error, "the record of a volume cannot be read");
            None
        }
    }
}

/// # Errors
/// When the disk does not take it; the driver must not be asked then.
pub fn write(dir: &Path, record: &Record) -> std::io::Result<()> {
    sys::fs::replace_file(&dir.join(RECORD), &serde_json::to_vec(record)?)
}

/// Removes a record and its directory, once nothing is mounted below.
///
/// # Errors
/// When something is.
pub fn remove(dir: &Path) -> std::io::Result<()> {
    for path in [dir.join(format!(".{RECORD}")), dir.join(RECORD), dir.to_path_buf()] {
        let removed =
            if path == dir { std::fs::remove_dir(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Removes what a driver was to mount on, a directory or a file, unless it is mounted.
///
/// # Errors
/// When it is mounted, or not empty.
pub fn remove_target(path: &Path) -> std::io::Result<()> {
    if mounts::is_mounted(path)? {
        return Err(std::io::Error::other(format!("{} is still mounted", path.display())));
    }
    let removed = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The records of a pod's volumes.
pub fn of_pod(root: &Path, uid: &str) -> Vec<(PathBuf, Record)> {
    children(&root.join("pods").join(uid).join("volumes/kubernetes.io~csi"))
        .into_iter()
        .filter_map(|dir| Some((dir.clone(), read(&dir)?)))
        .collect()
}

/// What earlier processes left on this node, by unique name.
pub fn load(root: &Path) -> BTreeMap<String, Held> {
    let mut out: BTreeMap<String, Held> = BTreeMap::new();
    for driver in children(&root.join("plugins/kubernetes.io/csi")) {
        for dir in children(&driver) {
            if let Some(record) = read(&dir) {
                out.insert(record.unique_name(), Held::new(record));
            }
        }
    }
    for pod in children(&root.join("pods")) {
        let Some(uid) = pod.file_name().and_then(|name| name.to_str()) else { continue };
        for (_, record) in of_pod(root, uid) {
            if record.is_ephemeral() {
                continue;
            }
            let held = out.entry(record.unique_name()).or_insert_with(|| Held::new(record.clone()));
            held.users.insert(uid.to_owned());
            let is_mounted = mounts::is_mounted(&root.join(record.target(uid)));
            held.is_staged |= is_mounted.unwrap_or(false);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::csi::source::Source;

    #[test]
    fn what_was_begun_is_found_again_and_garbage_is_nothing() {
        let root = tempfile::tempdir().unwrap();
        let source = Source {
            name: "pv1".into(),
            driver: "d".into(),
            handle: "h".into(),
            ..Source::default()
        };
        let record = source.record("n1", true);
        write(&root.path().join(record.global_dir()), &record).unwrap();
        let dir = root.path().join("pods/u1/volumes/kubernetes.io~csi");
        write(&dir.join("pv1"), &record).unwrap();
        let own =
            Source { is_ephemeral: true, handle: "csi-1".into(), ..source }.record("n1", false);
        write(&dir.join("own"), &own).unwrap();
        std::fs::create_dir_all(dir.join("torn")).unwrap();
        std::fs::write(dir.join("torn").join(RECORD), "{\"driverName\":").unwrap();
        std::fs::create_dir_all(dir.join("huge")).unwrap();
        std::fs::write(dir.join("huge").join(RECORD), vec![b' '; 100_000]).unwrap();
        let held = load(root.path());
        assert_eq!(held.keys().collect::<Vec<_>>(), ["kubernetes.io/csi/d^h"]);
        let held = &held["kubernetes.io/csi/d^h"];
        assert_eq!(
            (held.users.len(), held.is_staged, held.record.attach_required),
            (1, false, true)
        );
        assert_eq!(of_pod(root.path(), "u1").len(), 2);
        remove(&dir.join("pv1")).unwrap();
        remove(&dir.join("pv1")).unwrap();
        assert!(!dir.join("pv1").exists());
    }
}
