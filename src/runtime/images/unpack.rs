//! Unpacks one layer into a directory that overlayfs can take as a lower one.
//!
//! A layer is hostile: every path is resolved inside the directory, with links followed
//! as the container would; a path that climbs is an error, and nothing outside is touched.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use sys::fs::{Kind, Node, Root};
use tar::EntryType;

use super::below::Below;
use super::bounds::{Allowance, Metered, Room};
use super::retell::Marks;
use super::sparse::{self, Sparse};

/// Entries of one layer; a longer one is refused.
const ENTRIES_MAX: usize = 4_000_000;
const WHITEOUT: &[u8] = b".wh.";
/// What hides all that the layers below have in a directory, after [`WHITEOUT`].
const OPAQUE: &[u8] = b".wh..opq";
/// `ELOOP`, which the standard library has no stable word for.
const LINKS_IN_A_RING: i32 = 40;

fn refuse(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// `lower` are the layers below, topmost first; gives the bytes of the files. `marks` learns
/// where in the archive their content is. What the archive itself replaces later goes into
/// `aside`, a directory that is made if need be: each under the position of its content.
pub fn unpack(
    reader: impl Read,
    target: &Path,
    lower: &[PathBuf],
    (marks, aside): (&Marks, &Path),
) -> io::Result<u64> {
    let mut at = PathBuf::new();
    entries(reader, target, lower, (marks, aside), &mut at).map_err(|err| blame(err, &at))
}

/// What cannot be made in an empty directory of our own cannot be made anywhere.
fn blame(err: io::Error, at: &Path) -> io::Error {
    use io::ErrorKind::{
        AlreadyExists, DirectoryNotEmpty, InvalidFilename, IsADirectory, NotADirectory, NotFound,
    };
    match err.kind() {
        NotFound | NotADirectory | IsADirectory | AlreadyExists | DirectoryNotEmpty
        | InvalidFilename => refuse(format!("entry {at:?}: {err}")),
        _ if err.raw_os_error() == Some(LINKS_IN_A_RING) => refuse(format!("entry {at:?}: {err}")),
        _ => err,
    }
}

/// `at` is the entry that is being made.
fn entries(
    reader: impl Read,
    target: &Path,
    lower: &[PathBuf],
    (marks, aside): (&Marks, &Path),
    at: &mut PathBuf,
) -> io::Result<u64> {
    let root = Root::open(target)?;
    let top = std::fs::read_link(sys::fs::descriptor_path(root.handle()))?;
    let (allowance, mut room) = (Allowance::default(), Room::at(target));
    let mut archive = tar::Archive::new(Metered { inner: reader, allowance: &allowance });
    let mut directories: Vec<(PathBuf, i64)> = Vec::new();
    let (mut bytes, mut below) = (0, Below::new(lower));
    // Position of the content of each file, by its number.
    let mut contents: HashMap<u64, u64> = HashMap::new();
    for (count, entry) in archive.entries()?.enumerate() {
        if count >= ENTRIES_MAX {
            return Err(refuse(format!("a layer has more than {ENTRIES_MAX} entries")));
        }
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        let is_file =
            matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse);
        if is_file {
            // A sparse file has less in the archive than on the disk.
            allowance.entry(entry.header().entry_size()?.max(entry.size()));
            room.take(entry.size())?;
        } else {
            allowance.entry(0);
        }
        if matches!(kind, EntryType::XGlobalHeader) {
            continue;
        }
        let sparse = if is_file { holes(&mut entry)? } else { None };
        let path = match sparse.as_ref().and_then(|it| it.name.as_deref()) {
            Some(name) => inside(name)?,
            None => inside(&entry.path_bytes())?,
        };
        at.clone_from(&path);
        let Some(name) = path.file_name().map(OsStr::to_os_string) else {
            set_attributes(&mut entry, &root, &path)?;
            continue;
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let dir = make_parents(&root, parent, lower)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            whiteout(&dir, hidden)?;
            continue;
        }
        let present = sys::fs::kind_at(dir.as_fd(), &name)?;
        let goal = match kind {
            EntryType::Symlink | EntryType::Link => Some(
                entry
                    .link_name_bytes()
                    .ok_or_else(|| refuse(format!("link {} has no goal", path.display())))?
                    .into_owned(),
            ),
            _ => None,
        };
        if let (EntryType::Link, Some(goal), Some(Kind::Other)) = (kind, &goal, present)
            && inside(goal)? == path
        {
            // Who archives a file with several names twice links it to itself.
            continue;
        }
        let keep = kind == EntryType::Directory && present == Some(Kind::Directory);
        // Made in place of what this layer has hidden, it shows nothing of the layers below.
        let hides = kind == EntryType::Directory
            && present == Some(Kind::Other)
            && sys::fs::is_whiteout_at(dir.as_fd(), &name)?;
        if present.is_some() && !keep {
            let there = sys::fs::descriptor_path(dir.as_fd()).join(&name);
            set_aside(there, &contents, aside)?;
            sys::fs::remove_all_at(dir.as_fd(), &name)?;
        }
        match kind {
            EntryType::Directory => {
                if !keep {
                    sys::fs::make_directory_at(dir.as_fd(), &name, 0o755)?;
                }
                if hides {
                    make_opaque(&dir, &name)?;
                }
                directories.push((path.clone(), mtime(&entry)));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = sys::fs::create_file_at(dir.as_fd(), &name)?;
                // A sparse file's content is not as the archive has it.
                if let Some(sparse) = &sparse {
                    bytes += sparse.write(&mut entry, &mut file)?;
                } else if kind == EntryType::GNUSparse {
                    bytes += sparse::copy(&mut entry, &mut file)?;
                } else {
                    let position = entry.raw_file_position();
                    // A link on the way to it may be replaced later; where it lies, it stays.
                    let lies = place(&top, &dir, &name).unwrap_or_else(|| path.clone());
                    marks.content(position, entry.size(), &lies);
                    if entry.size() > 0 {
                        contents.insert(file.metadata()?.ino(), position);
                    }
                    bytes += io::copy(&mut entry, &mut file)?;
                    file.flush()?;
                }
            }
            EntryType::Symlink => {
                let goal = goal.unwrap_or_default();
                sys::fs::symlink_at(OsStr::from_bytes(&goal), dir.as_fd(), &name)?;
            }
            EntryType::Link => {
                let goal = inside(&goal.unwrap_or_default())?;
                let from = make_parents(&root, goal.parent().unwrap_or(Path::new("")), lower)?;
                let from_name = goal.file_name().unwrap_or_default();
                if sys::fs::kind_at(from.as_fd(), from_name)?.is_none() {
                    below.copy_up(&goal, &from, from_name)?;
                }
                if goal != path {
                    sys::fs::link_at(from.as_fd(), from_name, dir.as_fd(), &name)?;
                }
                // The attributes are those of the file that is linked to.
                continue;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let number = |n: io::Result<Option<u32>>| n.map(Option::unwrap_or_default);
                let node = match kind {
                    // Not every archiver writes a number for what has none.
                    EntryType::Fifo => Node::Fifo,
                    _ => {
                        let major = number(entry.header().device_major())?;
                        let minor = number(entry.header().device_minor())?;
                        match kind {
                            EntryType::Char => Node::Character { major, minor },
                            _ => Node::Block { major, minor },
                        }
                    }
                };
                sys::fs::make_node_at(dir.as_fd(), &name, node, 0o600)?;
            }
            other => {
                return Err(refuse(format!("{} has an unknown type {other:?}", path.display())));
            }
        }
        attributes(&mut entry, &dir, &name, kind == EntryType::Symlink)?;
    }
    // Last, for every entry made in a directory changes its time.
    for (path, seconds) in directories.iter().rev() {
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(dir) = root.directory(parent)
        {
            sys::fs::set_modified_at(dir.as_fd(), name, *seconds)?;
        }
    }
    Ok(bytes)
}

/// Where an entry of `dir` lies below `top`; None where that is so deep that it has no name.
fn place(top: &Path, dir: &OwnedFd, name: &OsStr) -> Option<PathBuf> {
    let dir = std::fs::read_link(sys::fs::descriptor_path(dir.as_fd())).ok()?;
    Some(dir.strip_prefix(top).ok()?.join(name))
}

/// Keeps the contents below a path that an export needs: the archive has them, the layer not.
fn set_aside(there: PathBuf, contents: &HashMap<u64, u64>, aside: &Path) -> io::Result<()> {
    let mut todo = vec![there];
    while let Some(path) = todo.pop() {
        let meta = match std::fs::symlink_metadata(&path) {
            // So deep that it has no name here: the layer is as it should be, and an export
            // says that it cannot be.
            Err(err) if err.kind() == io::ErrorKind::InvalidFilename => continue,
            other => other?,
        };
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
        } else if let Some(position) = contents.get(&meta.ino()).filter(|_| meta.is_file()) {
            std::fs::create_dir_all(aside)?;
            std::fs::rename(&path, aside.join(position.to_string()))?;
        }
    }
    Ok(())
}

/// The path below the root; an error for one that names what is above.
pub fn inside(bytes: &[u8]) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(bytes)).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => {
                return Err(refuse(format!(
                    "entry {:?} climbs out of its root",
                    String::from_utf8_lossy(bytes)
                )));
            }
        }
    }
    Ok(clean)
}

fn mtime<R: Read>(entry: &tar::Entry<'_, R>) -> i64 {
    entry.header().mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0)
}

/// Directories that the layer uses without carrying them look as in the layers below.
fn make_parents(root: &Root, path: &Path, lower: &[PathBuf]) -> io::Result<OwnedFd> {
    if let Ok(found) = root.directory(path) {
        return Ok(found);
    }
    let mut at = PathBuf::new();
    for part in path.components() {
        at.push(part);
        if root.directory(&at).is_ok() {
            continue;
        }
        let (parent, name) = (at.parent().unwrap_or(Path::new("")), part.as_os_str());
        let parent = root.directory(parent)?;
        if sys::fs::kind_at(parent.as_fd(), name)? == Some(Kind::Other)
            && sys::fs::is_whiteout_at(parent.as_fd(), name)?
        {
            // The layer has hidden what was there, and begins anew.
            sys::fs::unlink_at(parent.as_fd(), name)?;
            sys::fs::make_directory_at(parent.as_fd(), name, 0o755)?;
            make_opaque(&parent, name)?;
            continue;
        }
        let made = root.make_directories(&at)?;
        for below in lower {
            let Ok(handle) = Root::open(below).and_then(|below| below.directory(&at)) else {
                continue;
            };
            let meta = std::fs::File::from(handle).metadata()?;
            let proc = sys::fs::descriptor_path(made.as_fd());
            std::os::unix::fs::chown(&proc, Some(meta.uid()), Some(meta.gid()))?;
            std::fs::set_permissions(&proc, std::fs::Permissions::from_mode(meta.mode() & 0o7777))?;
            break;
        }
    }
    root.directory(path)
}

/// What a whiteout hides lies in the layers below; what this layer has made itself stays,
/// before or after (OCI image-spec, "Whiteouts").
fn whiteout(dir: &OwnedFd, hidden: &[u8]) -> io::Result<()> {
    if hidden == OPAQUE {
        return make_opaque(dir, OsStr::new("."));
    }
    if hidden.starts_with(WHITEOUT) {
        // Notes of other storage drivers.
        return Ok(());
    }
    if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(refuse("a whiteout names nothing".into()));
    }
    let name = OsStr::from_bytes(hidden);
    match sys::fs::kind_at(dir.as_fd(), name)? {
        Some(Kind::Directory) => make_opaque(dir, name),
        Some(Kind::Other) => Ok(()),
        None => {
            let node = Node::Character { major: 0, minor: 0 };
            sys::fs::make_node_at(dir.as_fd(), name, node, 0)
        }
    }
}

fn make_opaque(dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let path = sys::fs::descriptor_path(dir.as_fd()).join(name);
    let itself = sys::fs::open_path(&path)?;
    sys::fs::set_xattr_at(itself.as_fd(), OsStr::new("."), b"trusted.overlay.opaque", b"y")
}

/// What the extended headers say of holes.
fn holes<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Option<Sparse>> {
    let Some(records) = entry.pax_extensions()? else { return Ok(None) };
    let records = records.collect::<io::Result<Vec<_>>>()?;
    Sparse::of(records.iter().map(|it| (it.key_bytes(), it.value_bytes())))
}

fn set_attributes<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    root: &Root,
    path: &Path,
) -> io::Result<()> {
    if entry.header().entry_type() != EntryType::Directory {
        return Err(refuse("the root of a layer is not a directory".into()));
    }
    let dir = root.directory(path)?;
    attributes(entry, &dir, OsStr::new("."), false)
}

fn attributes<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    dir: &OwnedFd,
    name: &OsStr,
    is_link: bool,
) -> io::Result<()> {
    let id = |value: u64| u32::try_from(value).map_err(|_| refuse("an owner is too large".into()));
    let (uid, gid) = (id(entry.header().uid()?)?, id(entry.header().gid()?)?);
    sys::fs::set_owner_at(dir.as_fd(), name, uid, gid)?;
    if !is_link {
        sys::fs::set_mode_at(dir.as_fd(), name, entry.header().mode()?)?;
    }
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if let Some(key) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                xattrs.push((key.to_vec(), extension.value_bytes().to_vec()));
            }
        }
    }
    for (key, value) in xattrs {
        // What steers the overlay is ours to set, not the image's.
        if key.starts_with(b"trusted.") {
            continue;
        }
        match sys::fs::set_xattr_at(dir.as_fd(), name, &key, &value) {
            // A file system without them still holds the file.
            Err(err) if matches!(err.raw_os_error(), Some(95 | 1)) => {}
            other => other?,
        }
    }
    sys::fs::set_modified_at(dir.as_fd(), name, mtime(entry))
}
