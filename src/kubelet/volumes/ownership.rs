//! Gives the files of a volume to the pod's group (`fsGroup`), as `fsGroupChangePolicy` says.
//!
//! Follows no link, whatever another pod does to the tree meanwhile.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode};

const SETGID: u32 = 0o2000;

/// What files and directories of the group may at least be used for.
fn wanted_mode(mode: u32, is_dir: bool, read_only: bool) -> u32 {
    let mut mode = mode | if read_only { 0o440 } else { 0o660 };
    if is_dir {
        mode |= SETGID | 0o110;
    }
    mode
}

fn change(file: BorrowedFd<'_>, group: u32, read_only: bool) -> io::Result<()> {
    let stat = rustix::fs::fstat(file)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    rustix::fs::chownat(file, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
    if kind == FileType::Symlink {
        return Ok(());
    }
    let mode = wanted_mode(stat.st_mode & 0o7777, kind == FileType::Directory, read_only);
    // An O_PATH descriptor takes no fchmod, but its name in /proc leads to the very file.
    let name = sys::fs::descriptor_path(file);
    rustix::fs::chmodat(CWD, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    Ok(())
}

/// Whether the root of the volume already is as it should be.
fn root_matches(root: &Path, group: u32, read_only: bool) -> io::Result<bool> {
    let stat = rustix::fs::stat(root)?;
    let mode = stat.st_mode & 0o7777;
    Ok(stat.st_gid == group && wanted_mode(mode, true, read_only) == mode)
}

/// Everything at and below `dir`; with `only_on_mismatch`, nothing if the root itself is
/// right. The root comes last, so that a walk that was cut off is done again.
pub fn give(dir: &Path, group: u32, read_only: bool, only_on_mismatch: bool) -> io::Result<()> {
    if only_on_mismatch && root_matches(dir, group, read_only)? {
        return Ok(());
    }
    sys::fs::walk(dir, &mut |file| change(file, group, read_only))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn files_go_to_the_group_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir_all(volume.join("a/b")).unwrap();
        std::fs::write(volume.join("a/b/f"), "x").unwrap();
        std::fs::set_permissions(volume.join("a/b/f"), std::fs::Permissions::from_mode(0o600))
            .unwrap();
        std::fs::write(dir.path().join("outside"), "x").unwrap();
        symlink("../outside", volume.join("link")).unwrap();
        give(&volume, 4242, false, true).unwrap();
        let shows = |path: &str| {
            let meta = std::fs::symlink_metadata(dir.path().join(path)).unwrap();
            format!("{}:{:o}", meta.gid(), meta.mode() & 0o7777)
        };
        assert_eq!(shows("v"), "4242:2775");
        assert_eq!(shows("v/a/b"), "4242:2775");
        assert_eq!(shows("v/a/b/f"), "4242:660");
        assert_eq!(shows("outside"), "0:644");

        std::fs::write(volume.join("new"), "x").unwrap();
        std::os::unix::fs::chown(volume.join("new"), None, Some(0)).unwrap();
        give(&volume, 4242, false, true).unwrap();
        assert_eq!(shows("v/new"), "0:644", "the root matches: nothing is walked");
        give(&volume, 4242, false, false).unwrap();
        assert_eq!(shows("v/new"), "4242:664");
    }
}
