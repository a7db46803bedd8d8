//! What containers leave behind as their last words.

use std::os::unix::fs::FileExt;
use std::path::Path;

use runtime::cri;

use crate::observed::{ANNOTATION_MESSAGE_PATH, ANNOTATION_MESSAGE_POLICY};

/// Bytes of a termination message (core/v1 ContainerStateTerminated).
const MESSAGE_BYTES_MAX: u64 = 4096;
/// Bytes of the log's end that stand in for a missing message.
const MESSAGE_LOG_BYTES_MAX: u64 = 2048;
/// Lines of the log's end that are looked at for it.
const MESSAGE_LOG_LINES_MAX: usize = 80;

/// What the container wrote to its termination message file, of a long one the end, or the end
/// of its log.
pub fn read(container: &cri::Container, log_dir: &Path) -> String {
    let get = |key: &str| container.annotations.get(key).map(String::as_str).unwrap_or_default();
    let path = get(ANNOTATION_MESSAGE_PATH);
    let mount = container.mounts.iter().find(|it| it.container_path == Path::new(path));
    let text = mount.and_then(|mount| tail(&mount.host_path, MESSAGE_BYTES_MAX));
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        return text;
    }
    if get(ANNOTATION_MESSAGE_POLICY) != "FallbackToLogsOnError" || container.exit_code == 0 {
        return String::new();
    }
    let raw = tail(&log_dir.join(&container.log_path), MESSAGE_LOG_BYTES_MAX * 2);
    let raw = raw.unwrap_or_default();
    let lines: Vec<&str> = raw.lines().collect();
    let mut text = String::new();
    for line in &lines[lines.len().saturating_sub(MESSAGE_LOG_LINES_MAX)..] {
        let mut parts = line.splitn(4, ' ').skip(2);
        let (Some(tag), Some(words)) = (parts.next(), parts.next()) else { continue };
        text.push_str(words);
        // A part of a line is followed by the rest of it, or by nothing.
        if tag.starts_with('F') {
            text.push('\n');
        }
    }
    let cut = text.len().saturating_sub(MESSAGE_LOG_BYTES_MAX as usize);
    text.split_off(text.ceil_char_boundary(cut))
}

/// At most the last `bytes_max` of a regular file.
fn tail(path: &Path, bytes_max: u64) -> Option<String> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    if !meta.is_file() {
        return None;
    }
    let file = std::fs::File::open(path).ok()?;
    let start = meta.len().saturating_sub(bytes_max);
    let mut buffer = vec![0; meta.len().min(bytes_max) as usize];
    let read = file.read_at(&mut buffer, start).ok()?;
    buffer.truncate(read);
    Some(String::from_utf8_lossy(&buffer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_message_the_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("message");
        let mut container = crate::plan::samples::container("a", cri::ContainerState::Exited, 1);
        container.annotations.insert(ANNOTATION_MESSAGE_PATH.into(), "/m".into());
        container.mounts = vec![cri::Mount {
            container_path: "/m".into(),
            host_path: file.clone(),
            ..cri::Mount::default()
        }];
        std::fs::write(&file, "short").unwrap();
        assert_eq!(read(&container, dir.path()), "short");
        std::fs::write(&file, format!("{}end", "x".repeat(5000))).unwrap();
        let told = read(&container, dir.path());
        assert_eq!((told.len(), &told[4093..]), (4096, "end"));
    }
}
