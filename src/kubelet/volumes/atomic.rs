//! Writes a set of small files so that a reader sees either all old or all new ones:
//! a dated directory, `..data` pointing to it, and a link per name.
//!
//! Knows nothing of where the files come from.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path};

pub const DATA_LINK: &str = "..data";
const DATA_LINK_NEW: &str = "..data_tmp";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub bytes: Vec<u8>,
    pub mode: u32,
    /// Owner of this file alone.
    pub uid: Option<u32>,
}

/// Relative paths and their files.
pub type Payload = BTreeMap<String, File>;

/// Makes `dir` show exactly `payload`. True if anything changed.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        check(path)?;
    }
    let link = dir.join(DATA_LINK);
    let current = std::fs::read_link(&link).ok();
    if let Some(current) = &current
        && is_same(&dir.join(current), payload)?
    {
        make_links(dir, payload)?;
        return Ok(false);
    }
    let name = format!(
        "..{}.{}",
        base::time::now().strftime("%Y_%m_%d_%H_%M_%S"),
        base::rng::below(1 << 32)
    );
    let fresh = dir.join(&name);
    std::fs::create_dir(&fresh)?;
    if let Err(error) = fill(&fresh, payload, group) {
        // The old set stays in place; what could be removed of the new one is.
        let _ = std::fs::remove_dir_all(&fresh);
        return Err(error);
    }
    base::failpoint!("volume/files-written");
    let new_link = dir.join(DATA_LINK_NEW);
    remove_if_there(&new_link)?;
    symlink(&name, &new_link)?;
    base::failpoint!("volume/files-linked");
    std::fs::rename(&new_link, &link)?;
    base::failpoint!("volume/files-turned");
    make_links(dir, payload)?;
    remove_stale(dir, payload, &name)?;
    Ok(true)
}

fn check(path: &str) -> io::Result<()> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || path.len() > 4096 || !plain || path.starts_with("..") {
        let message = format!("invalid path {path:?} in volume");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(())
}

fn fill(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    let set_mode =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    let directory = |path: &Path| {
        set_mode(path, if group.is_some() { 0o2755 } else { 0o755 })?;
        std::os::unix::fs::chown(path, None, group)
    };
    directory(dir)?;
    for (path, file) in payload {
        let target = dir.join(path);
        let mut parent = dir.to_path_buf();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            if !parent.exists() {
                std::fs::create_dir(&parent)?;
                directory(&parent)?;
            }
        }
        std::fs::write(&target, &file.bytes)?;
        std::os::unix::fs::chown(&target, file.uid, group)?;
        set_mode(&target, if group.is_some() { file.mode | 0o440 } else { file.mode })?;
    }
    Ok(())
}

/// Whether a dated directory holds these bytes and no more. Modes cannot change during
/// a pod's life.
fn is_same(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let mut seen = 0;
    let mut todo = vec![dir.to_path_buf()];
    while let Some(here) = todo.pop() {
        let entries = match std::fs::read_dir(&here) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).ok().and_then(Path::to_str).unwrap_or_default();
            match payload.get(name) {
                Some(file) if std::fs::read(&path)? == file.bytes => seen += 1,
                _ => return Ok(false),
            }
        }
    }
    Ok(seen == payload.len())
}

fn top_names(payload: &Payload) -> BTreeSet<&str> {
    payload.keys().filter_map(|path| path.split('/').next()).collect()
}

fn make_links(dir: &Path, payload: &Payload) -> io::Result<()> {
    for name in top_names(payload) {
        let goal = Path::new(DATA_LINK).join(name);
        let link = dir.join(name);
        if std::fs::read_link(&link).is_ok_and(|there| there == goal) {
            continue;
        }
        remove_if_there(&link)?;
        symlink(goal, link)?;
    }
    Ok(())
}

fn remove_stale(dir: &Path, payload: &Payload, current: &str) -> io::Result<()> {
    let names = top_names(payload);
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name == DATA_LINK || name == current || names.contains(name) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            if name.starts_with("..") {
                std::fs::remove_dir_all(entry.path())?;
            }
        } else {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, text)| {
                let bytes = text.as_bytes().to_vec();
                ((*path).to_owned(), File { bytes, mode: 0o640, uid: None })
            })
            .collect()
    }

    #[test]
    fn files_change_all_at_once_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
        assert!(write(dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("sub/b").as_deref()), (Some("1"), Some("2")));
        assert!(!write(dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        let mode = std::fs::metadata(dir.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let open = std::fs::read_link(dir.join(DATA_LINK)).unwrap();
        assert!(write(dir, &payload(&[("a", "9")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("sub/b")), (Some("9"), None));
        assert!(!dir.join(open).exists(), "the old set is removed");
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 3);
    }

    #[test]
    fn a_path_that_climbs_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "", "a/../../x", "..x"] {
            assert!(write(dir.path(), &payload(&[(path, "1")]), None).is_err(), "{path}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
