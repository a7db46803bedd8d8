//! Which mounts others see: what a container mounts below a directory of the node reaches
//! the node, and the other way round, only where that directory lies on a shared mount
//! (mount_namespaces(7)).

use std::io;
use std::path::{Path, PathBuf};

use super::{Propagation, bind, mounts_below, set_propagation, unescape, unmount_detach};

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    device: String,
    /// What of the file system is mounted.
    root: PathBuf,
    point: PathBuf,
    is_shared: bool,
}

fn path(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(unescape(field)).into()
}

fn parse(line: &[u8]) -> Option<Line> {
    let mut fields = line.split(|byte| *byte == b' ').skip(2);
    let device = String::from_utf8_lossy(fields.next()?).into_owned();
    let (root, point) = (path(fields.next()?), path(fields.next()?));
    let _options = fields.next()?;
    // Optional fields end with a dash.
    let is_shared =
        fields.take_while(|field| *field != b"-").any(|field| field.starts_with(b"shared:"));
    Some(Line { device, root, point, is_shared })
}

/// The mount that `at` lies on.
fn holding(text: &[u8], at: &Path) -> Option<Line> {
    // Of several at one point the last lies on top.
    text.split(|byte| *byte == b'\n')
        .filter_map(parse)
        .filter(|line| at.starts_with(&line.point))
        .max_by_key(|line| line.point.components().count())
}

fn table() -> io::Result<Vec<u8>> {
    std::fs::read("/proc/self/mountinfo")
}

fn none(at: &Path) -> io::Error {
    io::Error::other(format!("no mount holds {}", at.display()))
}

/// Where the mount begins that `at`, a path without links, lies on, and whether it is shared.
///
/// # Errors
/// When the table of mounts cannot be read.
pub fn mount_of(at: &Path) -> io::Result<(PathBuf, bool)> {
    let line = holding(&table()?, at).ok_or_else(|| none(at))?;
    Ok((line.point, line.is_shared))
}

/// Has the directory `at` lie on a shared mount: lays it over itself where it does not. False
/// where that would hide what is mounted below already.
///
/// # Errors
/// What the kernel says.
pub fn share(at: &Path) -> io::Result<bool> {
    let (point, is_shared) = mount_of(at)?;
    if is_shared {
        return Ok(true);
    }
    if point != at {
        if !mounts_below(at)?.is_empty() {
            return Ok(false);
        }
        bind(at, at)?;
    }
    set_propagation(at, Propagation::Shared)?;
    Ok(true)
}

fn is_over_itself(text: &[u8], at: &Path) -> Option<bool> {
    let own = holding(text, at).filter(|line| line.point == at)?;
    let under = holding(text, at.parent()?)?;
    let rest = at.strip_prefix(&under.point).ok()?;
    Some(own.device == under.device && own.root == under.root.join(rest))
}

/// Takes away what [`share`] has laid over `at`; a mount of somebody else stays.
///
/// # Errors
/// What the kernel says.
pub fn unshare(at: &Path) -> io::Result<()> {
    while is_over_itself(&table()?, at) == Some(true) {
        unmount_detach(at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::mount;

    #[test]
    fn the_table_tells_whose_mount_it_is() {
        let text = b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 8:2 /x\\040y /data rw shared:7 master:3 - ext4 /dev/b rw\n\
            3 2 8:2 /x\\040y/agent /data/agent rw,noatime - ext4 /dev/b rw\n\
            4 2 8:2 /other /data/other rw - ext4 /dev/b rw\n\
            5 2 8:3 / /data/disk rw - ext4 /dev/c rw\n";
        let of = |at: &str| holding(text, Path::new(at)).unwrap();
        assert_eq!((of("/var").point.as_path(), of("/var").is_shared), (Path::new("/"), false));
        assert!(of("/data/x").is_shared && !of("/data/agent/x").is_shared);
        assert_eq!(is_over_itself(text, Path::new("/data/agent")), Some(true));
        for other in ["/data/other", "/data/disk"] {
            assert_eq!(is_over_itself(text, Path::new(other)), Some(false), "{other}");
        }
        assert_eq!(is_over_itself(text, Path::new("/data/none")), None);
    }

    #[test]
    fn a_directory_is_laid_over_itself_once_and_taken_away_again() {
        let dir = tempfile::tempdir().unwrap();
        // The host's own may be shared.
        mount("tmpfs", dir.path(), "tmpfs", 0, "").unwrap();
        set_propagation(dir.path(), Propagation::Private).unwrap();
        let at = dir.path().join("agent");
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join("file"), "kept").unwrap();
        for _ in 0..2 {
            assert!(share(&at).unwrap());
            assert_eq!(mount_of(&at.join("file")).unwrap(), (at.clone(), true));
            assert_eq!(mounts_below(&at).unwrap().len(), 1);
        }
        unshare(&at).unwrap();
        assert!(mounts_below(&at).unwrap().is_empty());
        assert_eq!(std::fs::read_to_string(at.join("file")).unwrap(), "kept");
        // What is mounted below is not hidden, and what is not ours stays.
        mount("tmpfs", &at, "tmpfs", 0, "").unwrap();
        unshare(&at).unwrap();
        assert_eq!(mounts_below(&at).unwrap().len(), 1);
        unmount_detach(&at).unwrap();
        std::fs::create_dir(at.join("below")).unwrap();
        mount("tmpfs", &at.join("below"), "tmpfs", 0, "").unwrap();
        assert!(!share(&at).unwrap());
        unmount_detach(&at.join("below")).unwrap();
        unmount_detach(dir.path()).unwrap();
    }
}
