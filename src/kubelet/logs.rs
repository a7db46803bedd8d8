//! Container log files on the node: rotation, compression and removal.
//!
//! The runtime writes them; reading for clients is in `server/logs.rs`. Of the rotated files
//! all but the newest are compressed: what reads the log may still be at that one.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::drain::Drain;
use futures::StreamExt;
use runtime::cri::{Container, ContainerState};
use tracing::warn;

use crate::node::Node;
use crate::observed::{LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};

/// How often the sizes of the running containers' logs are looked at, and how many are
/// rotated at the same time (upstream's).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    pub period: Duration,
    pub workers_max: usize,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self { period: Duration::from_secs(10), workers_max: 1 }
    }
}

const COMPRESSED: &str = "gz";
/// A file that is being compressed; one that a crash left is removed.
const UNFINISHED: &str = "tmp";

/// Rotated files of `log`, newest first: their names end in a time, and `.gz` where they
/// are compressed.
pub fn rotated(log: &Path) -> Vec<PathBuf> {
    let is_whole = |path: &PathBuf| path.extension().is_none_or(|end| end != UNFINISHED);
    files_of(log).into_iter().filter(is_whole).collect()
}

/// With what a crash has left of compressing.
fn files_of(log: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|it| it.to_str())) else {
        return Vec::new();
    };
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut out: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            let file = entry.file_name();
            file.to_str()
                .and_then(|file| file.strip_prefix(name)?.strip_prefix('.'))
                .map(|rest| rest.split_once('.').unwrap_or((rest, COMPRESSED)))
                .is_some_and(|(time, end)| {
                    [COMPRESSED, UNFINISHED].contains(&end)
                        && time.bytes().all(|b| b.is_ascii_digit() || b == b'-')
                })
        })
        .map(|entry| entry.path())
        .collect();
    out.sort();
    out.reverse();
    out
}

/// Removes a log and what was rotated from it.
pub fn remove_files(log: &Path) {
    for path in files_of(log).into_iter().chain([log.to_path_buf()]) {
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(path = %path.display(), %error, "log not removed");
        }
    }
}

/// Moves a full log aside and removes the oldest. True if the runtime must open a new one.
fn rotate(log: &Path, bytes_max: u64, files_max: usize, stamp: &str) -> std::io::Result<bool> {
    match std::fs::metadata(log) {
        Ok(meta) if meta.len() >= bytes_max => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    for left in files_of(log).iter().filter(|it| it.extension().is_some_and(|e| e == UNFINISHED)) {
        std::fs::remove_file(left)?;
    }
    // One place is the new file's, one that of the file being moved.
    let (keep, old) = {
        let mut all = rotated(log);
        let old = all.split_off(all.len().min(files_max.saturating_sub(2)));
        (all, old)
    };
    for old in old {
        std::fs::remove_file(old)?;
    }
    for path in keep.iter().filter(|it| it.extension().is_none_or(|end| end != COMPRESSED)) {
        // An uncompressed one is as good, and a full disk wants the rotation all the more.
        if let Err(error) = compress(path) {
            warn!(path = %path.display(), %error, "rotated log not compressed");
        }
    }
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{stamp}"));
    std::fs::rename(log, PathBuf::from(name))?;
    Ok(true)
}

/// Puts `PATH.gz` in the place of the file.
fn compress(path: &Path) -> io::Result<()> {
    let with = |end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{end}"));
        PathBuf::from(name)
    };
    let unfinished = with(UNFINISHED);
    let written = (|| {
        let mut source = File::open(path)?;
        let target = File::create(&unfinished)?;
        target.set_permissions(source.metadata()?.permissions())?;
        let mut encoder = flate2::write::GzEncoder::new(target, flate2::Compression::default());
        io::copy(&mut source, &mut encoder)?;
        encoder.finish()?;
        std::fs::rename(&unfinished, with(COMPRESSED))?;
        std::fs::remove_file(path)
    })();
    written.inspect_err(|_| {
        let _ = std::fs::remove_file(&unfinished);
    })
}

/// Rotates logs until the drain begins.
pub async fn run(node: &Node, drain: Drain) {
    let rhythm = node.config.log_rhythm;
    while drain.until(tokio::time::sleep(rhythm.period)).await.is_some() {
        let running =
            node.observed.containers().into_iter().filter(|it| it.state == ContainerState::Running);
        let work = futures::stream::iter(running)
            .for_each_concurrent(rhythm.workers_max, |container| look(node, container));
        if drain.until(work).await.is_none() {
            return;
        }
    }
}

async fn look(node: &Node, container: Container) {
    let label = |name| container.labels.get(name).map(String::as_str).unwrap_or_default();
    let log = node
        .config
        .log_dir(label(LABEL_POD_NAMESPACE), label(LABEL_POD_NAME), label(LABEL_POD_UID))
        .join(&container.log_path);
    let stamp = base::time::now().strftime("%Y%m%d-%H%M%S").to_string();
    let mut moved = log.as_os_str().to_owned();
    moved.push(format!(".{stamp}"));
    let (bytes_max, files_max) = (node.config.log_bytes_max, node.config.log_files_max);
    let path = log.clone();
    let rotated =
        base::task::spawn_blocking(move || rotate(&path, bytes_max, files_max, &stamp)).await;
    match rotated.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(false) => {}
        Ok(true) => {
            if let Err(error) = node.runtime.reopen_container_log(&container.id).await {
                warn!(container = container.id, error = %error, "log not reopened");
                // The runtime still writes to the old file; it keeps its name.
                let _ = std::fs::rename(PathBuf::from(moved), &log);
            }
        }
        Err(error) => warn!(path = %log.display(), %error, "log not rotated"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_moves_aside_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for round in 0..6 {
            std::fs::write(&log, "0123456789").unwrap();
            assert!(rotate(&log, 10, 3, &format!("20260102-00000{round}")).unwrap());
            assert!(!rotate(&log, 10, 3, "x").unwrap(), "there is no log now");
        }
        std::fs::write(&log, "short").unwrap();
        assert!(!rotate(&log, 10, 3, "20260102-000009").unwrap());
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        let names: Vec<String> = rotated(&log).iter().map(name).collect();
        assert_eq!(names, ["0.log.20260102-000005", "0.log.20260102-000004.gz"]);
        let packed = File::open(dir.path().join(&names[1])).unwrap();
        let text = io::read_to_string(flate2::read::GzDecoder::new(packed)).unwrap();
        assert_eq!(text, "0123456789");
        // What a crash left of compressing goes with the next rotation, and with the log.
        let unfinished = dir.path().join("0.log.20260102-000003.tmp");
        for _ in 0..2 {
            std::fs::write(&unfinished, "half").unwrap();
            assert_eq!(rotated(&log).len(), 2);
            std::fs::write(&log, "0123456789").unwrap();
            assert!(rotate(&log, 10, 3, "20260102-000007").unwrap());
            assert!(!unfinished.exists());
        }
        std::fs::write(&unfinished, "half").unwrap();
        remove_files(&log);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
