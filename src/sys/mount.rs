//! Mounts by descriptor: make one detached, set its attributes, then put it in place.
//!
//! Targets are `O_PATH` descriptors (see `fs::Root`), so that a symbolic link inside an
//! image cannot send a mount elsewhere. Needs Linux 5.2, and 5.12 for read-only trees.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::{c_bytes, c_path, check, check_int, own};

pub mod options;
pub mod sharing;

/// Attributes of a mount, combined with `|`.
pub mod attr {
    pub const RDONLY: u64 = 0x1;
    pub const NOSUID: u64 = 0x2;
    pub const NODEV: u64 = 0x4;
    pub const NOEXEC: u64 = 0x8;
    pub const NOATIME: u64 = 0x10;
    pub const STRICTATIME: u64 = 0x20;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Private,
    Slave,
    Shared,
}

impl Propagation {
    fn flag(self) -> u64 {
        match self {
            Self::Private => libc::MS_PRIVATE,
            Self::Slave => libc::MS_SLAVE,
            Self::Shared => libc::MS_SHARED,
        }
    }
}

const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
/// Option by which all files of a mount have one SELinux label.
pub const LABEL: &str = "context";
const MOVE_MOUNT_EMPTY_BOTH: libc::c_uint = 0x4 | 0x40;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const ATTR_IDMAP: u64 = 0x10_0000;

/// A file system that is being configured.
struct Context(OwnedFd);

impl Context {
    fn open(kind: &str) -> io::Result<Self> {
        let kind = c_bytes(kind.as_bytes())?;
        // SAFETY: the pointer is a live C string.
        own(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) }).map(Self)
    }

    fn set(&self, key: &str, value: Option<&[u8]>) -> io::Result<()> {
        let key = c_bytes(key.as_bytes())?;
        let value = value.map(c_bytes).transpose()?;
        let (command, pointer) = match &value {
            Some(v) => (FSCONFIG_SET_STRING, v.as_ptr()),
            None => (FSCONFIG_SET_FLAG, std::ptr::null()),
        };
        // SAFETY: key and value are live C strings or null, as the command expects.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, key.as_ptr(), pointer, 0)
        })
        .map(drop)
    }

    fn mount(self, attributes: u64) -> io::Result<OwnedFd> {
        let null = std::ptr::null::<libc::c_char>();
        // SAFETY: CMD_CREATE takes no key and no value.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                FSCONFIG_CMD_CREATE,
                null,
                null,
                0,
            )
        })
        .map_err(|err| self.explain(err))?;
        // SAFETY: plain integers.
        own(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), 1, attributes) })
    }

    /// The kernel leaves its own words about a refusal in the context.
    fn explain(&self, err: io::Error) -> io::Error {
        let mut buffer = [0u8; 256];
        // SAFETY: the buffer is ours and as long as we say.
        let read =
            unsafe { libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if read <= 0 {
            return err;
        }
        let words = String::from_utf8_lossy(&buffer[..read as usize]);
        io::Error::new(err.kind(), format!("{err} ({})", words.trim()))
    }
}

/// A new file system (`proc`, `tmpfs`, `sysfs`, ...), not yet attached anywhere.
pub fn filesystem(
    kind: &str,
    source: &str,
    options: &[(&str, &str)],
    attributes: u64,
) -> io::Result<OwnedFd> {
    let context = Context::open(kind)?;
    context.set("source", Some(source.as_bytes()))?;
    for (key, value) in options {
        context.set(key, if value.is_empty() { None } else { Some(value.as_bytes()) })?;
    }
    context.mount(attributes)
}

/// Directories of an overlay; `lower` has the topmost layer first.
pub struct Overlay<'a> {
    /// The directory that holds all layers; `lower` are names in it.
    pub layers: &'a Path,
    pub lower: &'a [String],
    pub upper: &'a Path,
    pub work: &'a Path,
    /// SELinux label of every file in it.
    pub label: Option<&'a str>,
}

/// An overlay that is attached nowhere (`overlay` attaches it).
fn overlay_detached(overlay: &Overlay<'_>) -> io::Result<OwnedFd> {
    match overlay_by_descriptor(overlay) {
        Err(err) if err.raw_os_error() == Some(libc::EINVAL) => {
            overlay_by_page(overlay, overlay.layers)?;
            let mounted = clone_tree(overlay.layers, false);
            unmount_detach(overlay.layers)?;
            mounted
        }
        other => other,
    }
}

/// As `overlay`, with the ids of the layers below shown as those of a user namespace; those
/// of the upper directory are taken as they are.
pub fn overlay_mapped(
    overlay: &Overlay<'_>,
    users: BorrowedFd<'_>,
    target: &Path,
) -> io::Result<()> {
    let mapped = MappedLayers::mount(overlay.layers, overlay.lower, users, target)?;
    let made = overlay_detached(&Overlay { layers: target, lower: &mapped.names, ..*overlay })?;
    drop(mapped);
    attach(made.as_fd(), crate::fs::open_path(target)?.as_fd())
}

/// Mounts an overlay on `target`, which must be an existing directory.
///
/// Each lower directory is its own option where the kernel takes that (6.5); before, they
/// share one page of options. The mount is volatile: a container's writable layer is
/// never used again after a crash of the node, so nothing waits for its disk.
pub fn overlay(overlay: &Overlay<'_>, target: &Path) -> io::Result<()> {
    match overlay_by_descriptor(overlay) {
        Ok(mount) => {
            let target = crate::fs::open_path(target)?;
            attach(mount.as_fd(), target.as_fd())
        }
        Err(err) if err.raw_os_error() == Some(libc::EINVAL) => overlay_by_page(overlay, target),
        Err(err) => Err(err),
    }
}

fn overlay_by_descriptor(overlay: &Overlay<'_>) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let context = Context::open("overlay")?;
    context.set("source", Some(b"overlay"))?;
    for name in overlay.lower {
        let layer = overlay.layers.join(name);
        context.set("lowerdir+", Some(layer.as_os_str().as_bytes()))?;
    }
    context.set("upperdir", Some(overlay.upper.as_os_str().as_bytes()))?;
    context.set("workdir", Some(overlay.work.as_os_str().as_bytes()))?;
    if let Some(label) = overlay.label {
        context.set(LABEL, Some(label.as_bytes()))?;
    }
    // Older kernels do not know it; they sync on unmount instead.
    let _ = context.set("volatile", None);
    context.mount(0)
}

/// Layers whose ids are shown as those of a user namespace, mounted side by side: an overlay
/// takes mapped ids from below, but cannot be mapped itself (Linux 5.19).
///
/// Lies on a directory of a mount namespace of our own until it is dropped; an overlay that
/// was made of it stays.
pub struct MappedLayers {
    directory: PathBuf,
    pub names: Vec<String>,
}

impl MappedLayers {
    /// `directory` must exist and be empty.
    pub fn mount(
        layers: &Path,
        lower: &[String],
        users: BorrowedFd<'_>,
        directory: &Path,
    ) -> io::Result<Self> {
        let base = filesystem("tmpfs", "tmpfs", &[("mode", "700")], attr::NOSUID | attr::NODEV)?;
        attach(base.as_fd(), crate::fs::open_path(directory)?.as_fd())?;
        let mut made = Self { directory: directory.to_owned(), names: Vec::new() };
        for (number, layer) in lower.iter().enumerate() {
            let name = number.to_string();
            let target = directory.join(&name);
            std::fs::create_dir(&target)?;
            let tree = clone_tree(&layers.join(layer), false)?;
            map_ids(tree.as_fd(), users)?;
            attach(tree.as_fd(), crate::fs::open_path(&target)?.as_fd())?;
            made.names.push(name);
        }
        Ok(made)
    }

    /// A last layer without files.
    pub fn add_empty(&mut self) -> io::Result<()> {
        let name = "empty".to_owned();
        std::fs::create_dir(self.directory.join(&name))?;
        self.names.push(name);
        Ok(())
    }
}

impl Drop for MappedLayers {
    fn drop(&mut self) {
        // What cannot be unmounted goes with the mount namespace.
        let _ = unmount_detach(&self.directory);
    }
}

/// Layers (names in the directory `layers`, the topmost first) as one tree that can only be
/// read and runs nothing with more rights, attached nowhere. For an SELinux label of all its
/// files there must be two layers at least.
pub fn read_only_layers(
    layers: &Path,
    lower: &[String],
    label: Option<&str>,
) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let attributes = attr::RDONLY | attr::NOSUID | attr::NODEV;
    if let ([only], None) = (lower, label) {
        // An overlay wants two directories.
        let tree = clone_tree(&layers.join(only), false)?;
        set_attributes(tree.as_fd(), false, attributes, Some(Propagation::Private))?;
        return Ok(tree);
    }
    let build = |joined: bool| -> io::Result<OwnedFd> {
        let context = Context::open("overlay")?;
        context.set("source", Some(b"overlay"))?;
        let paths: Vec<_> = lower.iter().map(|name| layers.join(name)).collect();
        if joined {
            let text: Vec<&[u8]> = paths.iter().map(|path| path.as_os_str().as_bytes()).collect();
            context.set("lowerdir", Some(&text.join(&b':')))?;
        } else {
            for path in &paths {
                context.set("lowerdir+", Some(path.as_os_str().as_bytes()))?;
            }
        }
        if let Some(label) = label {
            context.set(LABEL, Some(label.as_bytes()))?;
        }
        context.mount(attributes)
    };
    match build(false) {
        // Before Linux 6.5 the directories share one option.
        Err(err) if err.raw_os_error() == Some(libc::EINVAL) => build(true),
        other => other,
    }
}

fn overlay_by_page(overlay: &Overlay<'_>, target: &Path) -> io::Result<()> {
    std::env::set_current_dir(overlay.layers)?;
    // In quotes, for labels have commas.
    let label = overlay.label.map(|it| format!(",{LABEL}=\"{it}\"")).unwrap_or_default();
    let options = |extra: &str| {
        format!(
            "lowerdir={},upperdir={},workdir={}{label}{extra}",
            overlay.lower.join(":"),
            overlay.upper.display(),
            overlay.work.display()
        )
    };
    for extra in [",volatile", ""] {
        let text = options(extra);
        if text.len() >= 4096 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "too many layers for this kernel: overlay options exceed one page",
            ));
        }
        match mount("overlay", target, "overlay", 0, &text) {
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) && !extra.is_empty() => {}
            other => return other,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// mount(2) as it always was.
pub fn mount(source: &str, target: &Path, kind: &str, flags: u64, options: &str) -> io::Result<()> {
    let (source, target) = (c_bytes(source.as_bytes())?, c_path(target)?);
    let (kind, options) = (c_bytes(kind.as_bytes())?, c_bytes(options.as_bytes())?);
    // SAFETY: four live C strings.
    check_int(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags as libc::c_ulong,
            options.as_ptr().cast(),
        )
    })
    .map(drop)
}

/// Binds a tree, with what is mounted below it. `flags` are of the mount, not of the file
/// system, and of the topmost mount alone.
pub fn bind_with(source: &Path, target: &Path, flags: u64) -> io::Result<()> {
    rustix::mount::mount_bind_recursive(source, target)?;
    if flags == 0 {
        return Ok(());
    }
    mount("", target, "", libc::MS_BIND | libc::MS_REMOUNT | flags, "").inspect_err(|_| {
        // The first error says more.
        let _ = unmount_detach(target);
    })
}

/// A copy of the mount at `path`, with what is mounted below it when `recursive`.
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC as libc::c_uint
        | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: a live C string.
    own(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// A copy of the mount that an `O_PATH` descriptor points to.
pub fn clone_tree_at(fd: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC as libc::c_uint
        | libc::AT_EMPTY_PATH as libc::c_uint
        | if recursive { AT_RECURSIVE } else { 0 };
    let empty = CString::default();
    // SAFETY: a live, empty C string.
    own(unsafe { libc::syscall(libc::SYS_open_tree, fd.as_raw_fd(), empty.as_ptr(), flags) })
}

/// Puts a detached mount in its place.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let empty = CString::default();
    // SAFETY: two live, empty C strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            empty.as_ptr(),
            target.as_raw_fd(),
            empty.as_ptr(),
            MOVE_MOUNT_EMPTY_BOTH,
        )
    })
    .map(drop)
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes the attributes (and the propagation) of a mount or a tree of mounts.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    propagation: Option<Propagation>,
) -> io::Result<()> {
    let propagation = propagation.map_or(0, Propagation::flag);
    change(mount, recursive, &MountAttr { set, clear: 0, propagation, userns_fd: 0 })
}

/// Shows the ids of a detached mount (without those below it) as those of a user namespace.
///
/// # Errors
/// EINVAL where the kernel (before 5.12) or the file system cannot.
pub fn map_ids(mount: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = users.as_raw_fd() as u64;
    change(mount, false, &MountAttr { set: ATTR_IDMAP, clear: 0, propagation: 0, userns_fd })
}

fn change(mount: BorrowedFd<'_>, recursive: bool, attributes: &MountAttr) -> io::Result<()> {
    let empty = CString::default();
    let flags = libc::AT_EMPTY_PATH as libc::c_uint | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the structure is as long as we say, and the string is live.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            empty.as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Changes the propagation of everything mounted at and below `path`.
pub fn set_propagation(path: &Path, propagation: Propagation) -> io::Result<()> {
    mount("", path, "", propagation.flag() | libc::MS_REC, "")
}

/// Mounts one existing file or directory over another, without what is below it.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    let tree = clone_tree(source, false)?;
    let target = crate::fs::open_path(target)?;
    attach(tree.as_fd(), target.as_fd())
}

/// Takes a mount away at once; users of it keep what they have open. True when there
/// was one.
pub fn unmount_detach(path: &Path) -> io::Result<bool> {
    let path = c_path(path)?;
    // SAFETY: a live C string.
    match check_int(unsafe {
        libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW)
    }) {
        Ok(_) => Ok(true),
        Err(err) if matches!(err.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Ok(false),
        Err(err) => Err(err),
    }
}

/// Makes `root` the root of this mount namespace and drops the old one.
pub fn pivot_root(root: &Path) -> io::Result<()> {
    let root = c_path(root)?;
    let dot = c_path(Path::new("."))?;
    let old = crate::fs::open_path(Path::new("/"))?;
    // SAFETY: live C strings and a live descriptor; the calls only change this process's
    // view of the tree.
    unsafe {
        check_int(libc::chdir(root.as_ptr()))?;
        check(libc::syscall(libc::SYS_pivot_root, dot.as_ptr(), dot.as_ptr()))?;
        // The old root now lies over the new one; its unmounting must not reach the host
        // through propagation. From inside the old root, "." is that and nothing of the
        // new one, whose shared mounts stay shared.
        check_int(libc::fchdir(old.as_raw_fd()))?;
        let empty = CString::default();
        check_int(libc::mount(
            empty.as_ptr(),
            dot.as_ptr(),
            empty.as_ptr(),
            (libc::MS_SLAVE | libc::MS_REC) as libc::c_ulong,
            std::ptr::null(),
        ))?;
        check_int(libc::umount2(dot.as_ptr(), libc::MNT_DETACH))?;
    }
    std::env::set_current_dir("/")
}

/// Mount points at or below `path`, the deepest first.
pub fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    use std::os::unix::ffi::OsStringExt;
    let text = std::fs::read("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = text
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| std::ffi::OsString::from_vec(unescape(field)).into())
        .filter(|mount: &PathBuf| mount.starts_with(path))
        .collect();
    found.sort();
    found.reverse();
    Ok(found)
}

/// mountinfo writes blanks and backslashes as three octal digits.
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut i = 0;
    while i < field.len() {
        let octal = field.get(i + 1..i + 4).filter(|d| d.iter().all(|c| (b'0'..=b'7').contains(c)));
        match (field[i], octal) {
            (b'\\', Some(d)) => {
                let value = d.iter().fold(0u32, |n, c| n * 8 + u32::from(c - b'0'));
                out.push(value as u8);
                i += 4;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn mountinfo_escapes_are_undone() {
        assert_eq!(super::unescape(br"/a\040b\134c"), br"/a b\c");
        assert_eq!(super::unescape(br"/a\04"), br"/a\04");
    }
}
