//! Container log files on the node: rotation and removal.
//!
//! The runtime writes them; reading for clients is in `server/logs.rs`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base::drain::Drain;
use runtime::cri::ContainerState;
use tracing::warn;

use crate::node::Node;
use crate::observed::{LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};

/// How often the sizes of the running containers' logs are looked at (upstream's).
const PERIOD: Duration = Duration::from_secs(10);

/// Rotated files of `log`, newest first: their names end in a time.
pub fn rotated(log: &Path) -> Vec<PathBuf> {
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
                .is_some_and(|time| time.bytes().all(|b| b.is_ascii_digit() || b == b'-'))
        })
        .map(|entry| entry.path())
        .collect();
    out.sort();
    out.reverse();
    out
}

/// Removes a log and what was rotated from it.
pub fn remove_files(log: &Path) {
    for path in rotated(log).into_iter().chain([log.to_path_buf()]) {
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
    // One place is the new file's, one that of the file being moved.
    for old in rotated(log).into_iter().skip(files_max.saturating_sub(2)) {
        std::fs::remove_file(old)?;
    }
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{stamp}"));
    std::fs::rename(log, PathBuf::from(name))?;
    Ok(true)
}

/// Rotates logs until the drain begins.
pub async fn run(node: &Node, drain: Drain) {
    loop {
        if drain.until(tokio::time::sleep(PERIOD)).await.is_none() {
            return;
        }
        for container in node.observed.containers() {
            if container.state != ContainerState::Running {
                continue;
            }
            let label = |name| container.labels.get(name).map(String::as_str).unwrap_or_default();
            let log = node
                .config
                .log_dir(label(LABEL_POD_NAMESPACE), label(LABEL_POD_NAME), label(LABEL_POD_UID))
                .join(&container.log_path);
            let stamp = base::time::now().strftime("%Y%m%d-%H%M%S").to_string();
            match rotate(&log, node.config.log_bytes_max, node.config.log_files_max, &stamp) {
                Ok(false) => {}
                Ok(true) => {
                    if let Err(error) = node.runtime.reopen_container_log(&container.id).await {
                        warn!(container = container.id, error = %error, "log not reopened");
                        let mut moved = log.as_os_str().to_owned();
                        moved.push(format!(".{stamp}"));
                        // The runtime still writes to the old file; it keeps its name.
                        let _ = std::fs::rename(PathBuf::from(moved), &log);
                    }
                }
                Err(error) => warn!(path = %log.display(), %error, "log not rotated"),
            }
        }
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
        let names: Vec<String> = rotated(&log)
            .iter()
            .map(|path| path.extension().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["20260102-000005", "20260102-000004"]);
        remove_files(&log);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
