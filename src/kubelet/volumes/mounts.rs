//! The few mounts that volumes need: memory file systems and safe sub-paths.
//!
//! Never follows a link out of a volume.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxAttributes};
use sys::mount::{mounts_below, unmount_detach};

/// True if something is mounted on `path` itself, another place of the same disk included.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    let none = rustix::fs::StatxFlags::empty();
    match rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, none) {
        Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Mounts a memory file system on `dir` unless one is there; 0 bytes is the kernel's
/// default size. Its root has the kernel's default mode, 1777.
pub fn tmpfs(dir: &Path, bytes_max: u64) -> io::Result<()> {
    if is_mounted(dir)? {
        return Ok(());
    }
    let mut options = String::from("mode=1777");
    if bytes_max > 0 {
        options.push_str(&format!(",size={bytes_max}"));
    }
    sys::mount::mount("tmpfs", dir, "tmpfs", 0, &options)
}

/// Mounts huge pages of that size on `dir` unless something is mounted there.
pub fn huge_pages(dir: &Path, page_bytes: i64) -> io::Result<()> {
    if is_mounted(dir)? {
        return Ok(());
    }
    let options = format!("pagesize={page_bytes},mode=0777");
    sys::mount::mount("hugetlbfs", dir, "hugetlbfs", 0, &options)
}

/// Unmounts everything at and below `dir`.
///
/// # Errors
/// While a mount is left.
pub fn unmount_tree(dir: &Path) -> io::Result<()> {
    for mount in mounts_below(dir)? {
        unmount_detach(&mount)?;
        base::failpoint!("volume/unmounted");
    }
    if let Some(left) = mounts_below(dir)?.first() {
        return Err(io::Error::other(format!("{} is still mounted", left.display())));
    }
    base::failpoint!("volume/all-unmounted");
    Ok(())
}

/// Unmounts everything at and below `dir`, then removes it. Refuses to remove anything
/// while a mount is left, since what lies behind it is not ours.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    unmount_tree(dir)?;
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens `path` inside the tree at `root`; a link that leads out of it is an error.
fn open_inside(root: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
    opened.map_err(|error| match error {
        rustix::io::Errno::XDEV => {
            io::Error::other(format!("subpath {path:?} not within the volume"))
        }
        error => error.into(),
    })
}

/// Makes `path` below `root` (directories only, with the root's mode, setgid and sticky bits
/// included) where it is missing.
fn make_inside(root: &OwnedFd, path: &Path) -> io::Result<()> {
    let stat = rustix::fs::fstat(root)?;
    let mut done = PathBuf::new();
    for part in path.components() {
        let Component::Normal(name) = part else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a sub-path must stay inside"));
        };
        let parent = if done.as_os_str().is_empty() { Path::new(".") } else { done.as_path() };
        let parent = open_inside(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
        done.push(name);
        if open_inside(root, &done, OFlags::PATH).is_ok() {
            continue;
        }
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        match rustix::fs::mkdirat(&parent, name, mode) {
            Ok(()) => {
                let group = rustix::fs::Gid::from_raw(stat.st_gid);
                rustix::fs::chownat(&parent, name, None, Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
                rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Binds `sub_path` of the volume at `root` onto `target`, making both as needed; what
/// was bound there before is replaced. Afterwards `target` is what a container mounts.
pub fn bind_sub_path(root: &Path, sub_path: &Path, target: &Path) -> io::Result<()> {
    let root = rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if open_inside(&root, sub_path, OFlags::PATH).is_err() {
        make_inside(&root, sub_path)?;
    }
    let source = open_inside(&root, sub_path, OFlags::PATH)?;
    let is_dir = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode)
        == rustix::fs::FileType::Directory;
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if std::fs::symlink_metadata(target).is_ok() {
        unmount_detach(target)?;
        if target.is_dir() { std::fs::remove_dir(target)? } else { std::fs::remove_file(target)? }
    }
    if is_dir {
        std::fs::create_dir(target)?;
    } else {
        File::create(target)?;
    }
    base::failpoint!("volume/sub-path-directory");
    let source = format!("/proc/self/fd/{}", source.as_fd().as_raw_fd());
    rustix::mount::mount_bind_recursive(source, target)?;
    base::failpoint!("volume/sub-path");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn a_sub_path_stays_inside_and_goes_with_its_pod() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, pod) = (dir.path().join("volume"), dir.path().join("pod"));
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::create_dir_all(&pod).unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        std::fs::write(volume.join("file"), "inside").unwrap();
        symlink("../secret", volume.join("escape")).unwrap();
        symlink("../", volume.join("up")).unwrap();
        symlink("/bin", volume.join("absolute")).unwrap();
        symlink("new/../file", volume.join("within")).unwrap();

        bind_sub_path(&volume, Path::new("file"), &pod.join("0")).unwrap();
        assert_eq!(std::fs::read_to_string(pod.join("0")).unwrap(), "inside");
        let open = std::fs::Permissions::from_mode(0o3777);
        std::fs::set_permissions(&volume, open).unwrap();
        std::os::unix::fs::chown(&volume, None, Some(4242)).unwrap();
        bind_sub_path(&volume, Path::new("new/deep"), &pod.join("1")).unwrap();
        for made in [volume.join("new"), pod.join("1")] {
            let meta = std::fs::metadata(made).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o3777, 4242));
        }
        std::fs::write(pod.join("1/x"), "y").unwrap();
        assert_eq!(std::fs::read_to_string(volume.join("new/deep/x")).unwrap(), "y");
        bind_sub_path(&volume, Path::new("within"), &pod.join("2")).unwrap();
        assert_eq!(std::fs::read_to_string(pod.join("2")).unwrap(), "inside");
        for out in ["escape", "up", "up/volume", "absolute", "absolute/new"] {
            let said = bind_sub_path(&volume, Path::new(out), &pod.join("3")).unwrap_err();
            assert!(said.to_string().contains("not within the volume"), "{out}: {said}");
            assert!(!pod.join("3").exists());
        }
        assert!(bind_sub_path(&volume, Path::new("../secret"), &pod.join("3")).is_err());

        remove_tree(&pod).unwrap();
        assert!(!pod.exists());
        assert!(volume.join("new/deep/x").exists(), "what was mounted is not removed");
    }

    #[test]
    fn memory_is_bounded_by_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("m");
        std::fs::create_dir(&mount).unwrap();
        tmpfs(&mount, 65536).unwrap();
        tmpfs(&mount, 65536).unwrap();
        assert!(std::fs::write(mount.join("big"), vec![0u8; 1 << 20]).is_err());
        remove_tree(&mount).unwrap();
        assert!(!is_mounted(&mount).unwrap());
    }
}
