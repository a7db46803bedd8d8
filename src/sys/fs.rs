//! Files by descriptor: paths that are resolved inside a root and cannot leave it,
//! device nodes, extended attributes.
//!
//! Everything in an image is hostile: its symbolic links are followed as the container
//! would follow them, never as the host would.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::{c_bytes, c_path, check, check_int, own};

const RESOLVE_IN_ROOT: u64 = 0x10;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of <linux/limits.h>.
const XATTR_BYTES_MAX: usize = 64 << 10;
/// openat2 asks to try again when a rename runs beside it.
const RETRIES_MAX: usize = 64;

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// Puts a file in place, whole and on disk once this is back: after a crash there is the old
/// one or the new. Its directory is made if need be; only its owner reads it. Two writers of
/// one file must take turns. What a crash leaves beside it begins with a dot.
///
/// # Errors
/// When the disk does not take it; the old file is untouched then.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    std::fs::create_dir_all(directory)?;
    let mut beside = OsStr::new(".").to_os_string();
    beside.push(name);
    let beside = directory.join(beside);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&beside)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.and_then(|()| std::fs::rename(&beside, path)).inspect_err(|_| {
        // On a full disk what was begun only takes room.
        let _ = std::fs::remove_file(&beside);
    })?;
    std::fs::File::open(directory)?.sync_all()
}

/// Opens a path as a mere handle, following symbolic links of the host.
pub fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: a live C string.
    own(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) }.into())
}

/// Whether a descriptor, which may be a mere handle, is a directory's.
pub fn is_directory(file: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(std::fs::File::from(file.try_clone_to_owned()?).metadata()?.is_dir())
}

fn openat2(dir: BorrowedFd<'_>, path: &Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let name = c_path(relative)?;
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: u64::from(mode),
        resolve: RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    };
    for _ in 0..RETRIES_MAX {
        // SAFETY: a live C string and a structure as long as we say.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                name.as_ptr(),
                &raw const how,
                size_of::<OpenHow>(),
            )
        };
        match own(answer) {
            Err(err) if err.raw_os_error() == Some(libc::EAGAIN) => {}
            other => return other,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

/// A directory that paths are resolved in as if it were `/`.
pub struct Root {
    dir: OwnedFd,
    /// User and group of what is made.
    owner: Option<u32>,
}

impl Root {
    pub fn open(path: &Path) -> io::Result<Self> {
        let name = c_path(path)?;
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: a live C string.
        own(unsafe { libc::open(name.as_ptr(), flags) }.into()).map(|dir| Self { dir, owner: None })
    }

    /// What is made belongs to user and group `id`.
    pub fn made_for(self, id: Option<u32>) -> Self {
        Self { owner: id, ..self }
    }

    pub fn handle(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// A handle (`O_PATH`) of what is at `path`; the last link is followed.
    pub fn resolve(&self, path: &Path) -> io::Result<OwnedFd> {
        openat2(self.dir.as_fd(), path, libc::O_PATH, 0)
    }

    /// A handle of the directory at `path` for the calls that end in `at`.
    pub fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        openat2(self.dir.as_fd(), path, libc::O_PATH | libc::O_DIRECTORY, 0)
    }

    pub fn read_to_string(&self, path: &Path, bytes_max: u64) -> io::Result<String> {
        use std::io::Read;
        let fd =
            openat2(self.dir.as_fd(), path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY, 0)?;
        let file = std::fs::File::from(fd);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut text = Vec::new();
        file.take(bytes_max).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Makes all directories of `path` that are missing (mode 0755) and gives a handle.
    pub fn make_directories(&self, path: &Path) -> io::Result<OwnedFd> {
        if let Ok(found) = self.directory(path) {
            return Ok(found);
        }
        let mut at = PathBuf::from("/");
        let mut dir = self.directory(&at)?;
        for part in path.components() {
            let name = match part {
                Component::Normal(name) => name,
                Component::ParentDir => {
                    at.pop();
                    dir = self.directory(&at)?;
                    continue;
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            };
            at.push(name);
            dir = match self.directory(&at) {
                Ok(found) => found,
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    match make_directory_at(dir.as_fd(), name, 0o755) {
                        Ok(()) => {
                            if let Some(id) = self.owner {
                                set_owner_at(dir.as_fd(), name, id, id)?;
                            }
                        }
                        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
                            // A link that points to nothing yet: make what it names.
                            return self.make_through_link(&at, path);
                        }
                        Err(err) => return Err(err),
                    }
                    self.directory(&at)?
                }
                Err(err) => return Err(err),
            };
        }
        Ok(dir)
    }

    fn make_through_link(&self, link: &Path, whole: &Path) -> io::Result<OwnedFd> {
        let rest = whole.strip_prefix(link).unwrap_or(Path::new(""));
        let parent = self.directory(link.parent().unwrap_or(Path::new("/")))?;
        let name = link.file_name().unwrap_or_default();
        let goal = read_link_at(parent.as_fd(), name)?;
        let next = link.parent().unwrap_or(Path::new("/")).join(goal).join(rest);
        if next == whole || next.components().count() > 256 {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        self.make_directories(&next)
    }

    /// An empty file at `path` (with its directories) unless something is there.
    pub fn make_file(&self, path: &Path) -> io::Result<OwnedFd> {
        if let Ok(found) = self.resolve(path) {
            return Ok(found);
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        self.make_directories(parent)?;
        let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let made = openat2(self.dir.as_fd(), path, flags, 0o644)?;
        if let Some(id) = self.owner {
            std::os::unix::fs::fchown(&made, Some(id), Some(id))?;
        }
        self.resolve(path)
    }
}

/// What names a device: its type and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Node {
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

pub fn make_node_at(dir: BorrowedFd<'_>, name: &OsStr, node: Node, mode: u32) -> io::Result<()> {
    let name = c_bytes(name.as_bytes())?;
    let (kind, device) = match node {
        Node::Character { major, minor } => (libc::S_IFCHR, libc::makedev(major, minor)),
        Node::Block { major, minor } => (libc::S_IFBLK, libc::makedev(major, minor)),
        Node::Fifo => (libc::S_IFIFO, 0),
    };
    // SAFETY: a live C string.
    check_int(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), kind | mode, device) })
        .map(drop)
}

/// The device that a host path names.
pub fn device_of(path: &Path) -> io::Result<Option<Node>> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = std::fs::metadata(path)?;
    let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    Ok(if meta.file_type().is_char_device() {
        Some(Node::Character { major, minor })
    } else if meta.file_type().is_block_device() {
        Some(Node::Block { major, minor })
    } else {
        None
    })
}

pub fn make_directory_at(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
    let name = c_bytes(name.as_bytes())?;
    // SAFETY: a live C string.
    check_int(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

pub fn link_at(
    from: BorrowedFd<'_>,
    from_name: &OsStr,
    to: BorrowedFd<'_>,
    to_name: &OsStr,
) -> io::Result<()> {
    let (a, b) = (c_bytes(from_name.as_bytes())?, c_bytes(to_name.as_bytes())?);
    // SAFETY: live C strings; the last link is not followed.
    check_int(unsafe { libc::linkat(from.as_raw_fd(), a.as_ptr(), to.as_raw_fd(), b.as_ptr(), 0) })
        .map(drop)
}

pub fn symlink_at(goal: &OsStr, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let (goal, name) = (c_bytes(goal.as_bytes())?, c_bytes(name.as_bytes())?);
    // SAFETY: live C strings.
    check_int(unsafe { libc::symlinkat(goal.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

pub fn read_link_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<PathBuf> {
    let name = c_bytes(name.as_bytes())?;
    let mut buffer = [0u8; 4096];
    // SAFETY: the buffer is ours and as long as we say.
    let length = check(unsafe {
        libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
            as libc::c_long
    })?;
    Ok(PathBuf::from(OsStr::from_bytes(&buffer[..length as usize])))
}

/// A new regular file that only its owner can use until its mode is set.
pub fn create_file_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<std::fs::File> {
    let name = c_bytes(name.as_bytes())?;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a live C string.
    own(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, 0o600) }.into())
        .map(std::fs::File::from)
}

/// Kind of what lies at a name; links are not followed. None when there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    Other,
}

pub fn kind_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Kind>> {
    let name = c_bytes(name.as_bytes())?;
    // SAFETY: all-zero is a valid stat, and the kernel fills it.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a live C string and a stat of ours.
    let answer = check_int(unsafe {
        libc::fstatat(dir.as_raw_fd(), name.as_ptr(), &raw mut stat, libc::AT_SYMLINK_NOFOLLOW)
    });
    match answer {
        Ok(_) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => Ok(Some(Kind::Directory)),
        Ok(_) => Ok(Some(Kind::Other)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

pub fn unlink_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let name = c_bytes(name.as_bytes())?;
    // SAFETY: a live C string.
    check_int(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// Removes what lies at a name, with all that is below it; links are not followed.
pub fn remove_all_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match kind_at(dir, name)? {
        None => Ok(()),
        Some(Kind::Other) => unlink_at(dir, name),
        // The standard library walks by descriptor, so that a link put in the way is
        // removed and not followed.
        Some(Kind::Directory) => std::fs::remove_dir_all(descriptor_path(dir).join(name)),
    }
}

/// Visits everything at and below `path` by its handle (`O_PATH`), `path` itself last, so that a
/// walk that was cut off shows. Follows no link, whatever others do to the tree meanwhile;
/// what they remove is passed over.
pub fn walk(
    path: &Path,
    visit: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<()> {
    use rustix::fs::{CWD, Dir, Mode, OFlags, ResolveFlags};
    let handle = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let open = |path: &Path| match rustix::fs::openat2(&top, path, handle, Mode::empty(), inside) {
        Ok(file) => Ok(Some(file)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    };
    let mut todo = Vec::new();
    if is_directory(top.as_fd())? {
        todo.push(PathBuf::from("."));
    }
    while let Some(here) = todo.pop() {
        let Some(directory) = open(&here)? else { continue };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listed = rustix::fs::openat(&directory, ".", flags, Mode::empty())?;
        for entry in Dir::read_from(&listed)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let below = here.join(name);
            let Some(file) = open(&below)? else { continue };
            visit(file.as_fd())?;
            if is_directory(file.as_fd())? {
                todo.push(below);
            }
        }
    }
    visit(top.as_fd())
}

/// Makes a directory (also one that no path leads to) the present one.
pub fn change_directory(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a number only.
    check_int(unsafe { libc::fchdir(directory.as_raw_fd()) }).map(drop)
}

/// The path by which `/proc` names an open descriptor of this process.
pub fn descriptor_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

pub fn set_owner_at(dir: BorrowedFd<'_>, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
    let name = c_bytes(name.as_bytes())?;
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: a live C string.
    check_int(unsafe { libc::fchownat(dir.as_raw_fd(), name.as_ptr(), uid, gid, flags) }).map(drop)
}

/// Sets the mode of something that is not a symbolic link.
pub fn set_mode_at(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
    let name = c_bytes(name.as_bytes())?;
    // SAFETY: a live C string.
    check_int(unsafe { libc::fchmodat(dir.as_raw_fd(), name.as_ptr(), mode & 0o7777, 0) }).map(drop)
}

pub fn set_modified_at(dir: BorrowedFd<'_>, name: &OsStr, seconds: i64) -> io::Result<()> {
    let name = c_bytes(name.as_bytes())?;
    let time = libc::timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = [time, time];
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: a live C string and two times.
    check_int(unsafe { libc::utimensat(dir.as_raw_fd(), name.as_ptr(), times.as_ptr(), flags) })
        .map(drop)
}

/// Sets an extended attribute on an entry, not following a link.
pub fn set_xattr_at(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    attribute: &[u8],
    value: &[u8],
) -> io::Result<()> {
    let path = c_path(&descriptor_path(dir).join(name))?;
    let attribute = c_bytes(attribute)?;
    // SAFETY: live C strings and a buffer as long as we say.
    check_int(unsafe {
        libc::lsetxattr(path.as_ptr(), attribute.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    })
    .map(drop)
}

/// Gives the file at a name of `to` the extended attributes of the one at the same name of
/// `from`, but for those that steer overlays. A file system without them still holds the file.
///
/// # Errors
/// What the kernel says; more than 64 KiB of names or of one value, which it allows nowhere.
pub fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let path = c_path(&descriptor_path(from).join(name))?;
    let mut names = vec![0_u8; XATTR_BYTES_MAX];
    let mut value = vec![0_u8; XATTR_BYTES_MAX];
    // SAFETY: a live C string and a buffer as long as we say.
    let length = check(unsafe {
        libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) as libc::c_long
    });
    let length = match length {
        Err(err) if err.raw_os_error() == Some(libc::EOPNOTSUPP) => 0,
        other => other?,
    };
    for attribute in names[..length as usize].split(|byte| *byte == 0) {
        if attribute.is_empty() || attribute.starts_with(b"trusted.") {
            continue;
        }
        let key = c_bytes(attribute)?;
        // SAFETY: live C strings and a buffer as long as we say.
        let length = check(unsafe {
            libc::lgetxattr(path.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), value.len())
                as libc::c_long
        })?;
        match set_xattr_at(to, name, attribute, &value[..length as usize]) {
            Err(err) if matches!(err.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPERM)) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Writes what `from` holds into `to`, an empty file, and leaves holes where it has some.
pub fn copy_data(mut from: &std::fs::File, mut to: &std::fs::File) -> io::Result<()> {
    use rustix::fs::{SeekFrom, seek};
    use std::io::{Read, Seek};
    let length = from.metadata()?.len();
    let mut at = 0;
    while at < length {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // A hole until the end.
            Err(rustix::io::Errno::NXIO) => break,
            // A file system that knows of none.
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let end = match seek(from, SeekFrom::Hole(data)) {
            Ok(end) => end,
            Err(rustix::io::Errno::INVAL) => length,
            Err(error) => return Err(error.into()),
        };
        from.seek(io::SeekFrom::Start(data))?;
        to.seek(io::SeekFrom::Start(data))?;
        if io::copy(&mut from.take(end - data), &mut to)? != end - data {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = end;
    }
    to.set_len(length)
}

/// Whether a name is hidden by an overlay's whiteout (character device 0:0).
pub fn is_whiteout_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = std::fs::symlink_metadata(descriptor_path(dir).join(name))?;
    Ok(meta.file_type().is_char_device() && meta.rdev() == 0)
}

/// Writes everything of this file system to disk.
pub fn sync_filesystem(dir: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a plain descriptor.
    check_int(unsafe { libc::syncfs(dir.as_raw_fd()) }).map(drop)
}

/// Total and available bytes of the file system at `path`.
pub fn capacity(path: &Path) -> io::Result<(u64, u64)> {
    let stat = statvfs(path)?;
    Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

/// How many files there may be on the file system at `path`, and how many more.
pub fn files(path: &Path) -> io::Result<(u64, u64)> {
    let stat = statvfs(path)?;
    Ok((stat.f_files, stat.f_ffree))
}

fn statvfs(path: &Path) -> io::Result<libc::statvfs> {
    let path = c_path(path)?;
    // SAFETY: all-zero is a valid statvfs, and the kernel fills it.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a live C string and a structure of ours.
    check_int(unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) })?;
    Ok(stat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn holes_stay_holes() {
        const LENGTH: u64 = 64 << 20;
        let mut from = tempfile::tempfile().unwrap();
        for at in [4 << 20, 32 << 20] {
            from.seek(io::SeekFrom::Start(at)).unwrap();
            from.write_all(b"data").unwrap();
        }
        for length in [LENGTH, (32 << 20) + 4] {
            from.set_len(length).unwrap();
            let mut to = tempfile::tempfile().unwrap();
            copy_data(&from, &to).unwrap();
            let meta = to.metadata().unwrap();
            assert_eq!(meta.len(), length);
            assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
            let (mut is, mut was) = (Vec::new(), Vec::new());
            to.rewind().unwrap();
            to.read_to_end(&mut is).unwrap();
            from.rewind().unwrap();
            from.read_to_end(&mut was).unwrap();
            assert!(is == was, "the copy differs");
        }
        let empty = tempfile::tempfile().unwrap();
        copy_data(&empty, &tempfile::tempfile().unwrap()).unwrap();
    }
}
