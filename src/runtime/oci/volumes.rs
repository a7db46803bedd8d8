//! Volumes that an image declares (`VOLUME`): each is a directory of the container, filled with
//! what the image has at that path, where the pod mounts nothing.
//!
//! They lie beside the container's writable layer and go with it. The image's files are read
//! through a mount that is attached nowhere, so that nothing of it outlives this process.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use sys::fs::{Node, Root};

use crate::cri::{ContainerConfig, DiskUsage, Error, ErrorKind, Result};
use crate::images::disk_below;

/// Below a container's directory.
pub const DIRECTORY: &str = "volumes";
/// An image that declares more is not run.
const VOLUMES_MAX: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub source: PathBuf,
    pub target: PathBuf,
}

/// Absolute, and without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// What a container gets of what its image declares; `state` is the container's directory.
///
/// # Errors
/// A volume at `/`, and more than 256.
pub fn plan(declared: &[String], config: &ContainerConfig, state: &Path) -> Result<Vec<Volume>> {
    let covered: BTreeSet<PathBuf> =
        config.mounts.iter().map(|mount| clean(&mount.container_path)).collect();
    let targets: BTreeSet<PathBuf> = declared.iter().map(|path| clean(Path::new(path))).collect();
    let refuse = |why: String| Error::new(ErrorKind::Create, why);
    if targets.len() > VOLUMES_MAX {
        return Err(refuse(format!(
            "the image declares {} volumes, and may declare {VOLUMES_MAX}",
            targets.len()
        )));
    }
    if targets.contains(Path::new("/")) {
        return Err(refuse("the image declares a volume at \"/\"".into()));
    }
    let own = targets.into_iter().filter(|target| !covered.contains(target));
    let place = |(at, target): (usize, PathBuf)| Volume {
        source: state.join(DIRECTORY).join(at.to_string()),
        target,
    };
    Ok(own.enumerate().map(place).collect())
}

/// Makes the directories, and copies into each what the image has there: owners, modes,
/// times and extended attributes, links, devices and holes.
///
/// # Errors
/// What the disk says, and an image that has no directory there.
pub fn fill(volumes: &[Volume], layers: &Path, lower: &[String]) -> io::Result<()> {
    let tree = match lower {
        [] => None,
        _ => Some(sys::mount::read_only_layers(layers, lower, None)?),
    };
    let image = tree.as_ref().map(|tree| Root::open(&sys::fs::descriptor_path(tree.as_fd())));
    let image = image.transpose()?;
    for volume in volumes {
        std::fs::create_dir_all(&volume.source)?;
        // The first user of it may be anybody, as of what the image has not.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&volume.source, open)?;
        base::failpoint!("container/volume-made");
        let Some(image) = &image else { continue };
        let about = |err: io::Error| {
            let words = format!("volume \"{}\" of the image: {err}", volume.target.display());
            io::Error::new(err.kind(), words)
        };
        match image.resolve(&volume.target) {
            Ok(from) if sys::fs::is_directory(from.as_fd())? => {
                copy_tree(&from, &volume.source).map_err(about)?;
            }
            Ok(_) => return Err(about(io::ErrorKind::NotADirectory.into())),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(about(err)),
        }
    }
    Ok(())
}

/// What the volumes of a container take.
pub fn disk_usage(state: &Path) -> DiskUsage {
    disk_below(&state.join(DIRECTORY))
}

fn copy_tree(from: &OwnedFd, to: &Path) -> io::Result<()> {
    let from = Root::open(&sys::fs::descriptor_path(from.as_fd()))?;
    let to = Root::open(to)?;
    let mut copy = Copy { from, to, links: HashMap::new() };
    let (mut todo, mut made) = (vec![PathBuf::new()], Vec::new());
    while let Some(path) = todo.pop() {
        copy.entries(&path, &mut todo)?;
        made.push(path);
    }
    // The deepest first, for what is made in a directory changes its time.
    made.iter().rev().try_for_each(|path| copy.finish_directory(path))
}

struct Copy {
    from: Root,
    to: Root,
    /// Where the first link of a file lies, by device and number of the file.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copy {
    /// Copies what lies in a directory; those in it are made and noted in `todo`.
    fn entries(&mut self, path: &Path, todo: &mut Vec<PathBuf>) -> io::Result<()> {
        let (from, to) = (self.from.directory(path)?, self.to.directory(path)?);
        for entry in std::fs::read_dir(sys::fs::descriptor_path(from.as_fd()))? {
            let entry = entry?;
            let (name, meta) = (entry.file_name(), entry.metadata()?);
            let kind = meta.file_type();
            // A layer that lies alone shows what it hides.
            if kind.is_socket() || (kind.is_char_device() && meta.rdev() == 0) {
                continue;
            }
            if kind.is_dir() {
                sys::fs::make_directory_at(to.as_fd(), &name, 0o700)?;
                todo.push(path.join(name));
                continue;
            }
            if meta.nlink() > 1 {
                let file = (meta.dev(), meta.ino());
                if let Some(first) = self.links.get(&file) {
                    let parent = self.to.directory(first.parent().unwrap_or(Path::new("")))?;
                    let first = first.file_name().unwrap_or_default();
                    sys::fs::link_at(parent.as_fd(), first, to.as_fd(), &name)?;
                    continue;
                }
                self.links.insert(file, path.join(&name));
            }
            copy_entry(from.as_fd(), to.as_fd(), &name, &meta)?;
        }
        Ok(())
    }

    fn finish_directory(&self, path: &Path) -> io::Result<()> {
        let (from, to) = (self.from.directory(path)?, self.to.directory(path)?);
        let meta = std::fs::File::from(from.try_clone()?).metadata()?;
        attributes(from.as_fd(), to.as_fd(), OsStr::new("."), &meta)
    }
}

fn copy_entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    meta: &std::fs::Metadata,
) -> io::Result<()> {
    let path = sys::fs::descriptor_path(from).join(name);
    if meta.is_symlink() {
        sys::fs::symlink_at(sys::fs::read_link_at(from, name)?.as_os_str(), to, name)?;
    } else if meta.is_file() {
        let file = sys::fs::create_file_at(to, name)?;
        sys::fs::copy_data(&std::fs::File::open(&path)?, &file)?;
    } else if meta.file_type().is_fifo() {
        sys::fs::make_node_at(to, name, Node::Fifo, 0o600)?;
    } else if let Some(node) = sys::fs::device_of(&path)? {
        sys::fs::make_node_at(to, name, node, 0o600)?;
    } else {
        return Ok(());
    }
    attributes(from, to, name, meta)
}

fn attributes(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    meta: &std::fs::Metadata,
) -> io::Result<()> {
    sys::fs::set_owner_at(to, name, meta.uid(), meta.gid())?;
    if !meta.is_symlink() {
        sys::fs::set_mode_at(to, name, meta.mode())?;
    }
    sys::fs::copy_xattrs(from, to, name)?;
    sys::fs::set_modified_at(to, name, meta.mtime())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::Mount;

    fn targets(declared: &[&str], mounts: &[&str]) -> Result<Vec<PathBuf>> {
        let declared: Vec<String> = declared.iter().map(|it| (*it).to_owned()).collect();
        let mount = |path: &&str| Mount { container_path: path.into(), ..Mount::default() };
        let mounts = mounts.iter().map(mount).collect();
        let config = ContainerConfig { mounts, ..ContainerConfig::default() };
        let planned = plan(&declared, &config, Path::new("/state"))?;
        Ok(planned.into_iter().map(|it| it.target).collect())
    }

    #[test]
    fn a_mount_at_the_same_place_stands_in_for_a_volume() {
        let of = |declared: &[&str], mounts: &[&str]| targets(declared, mounts).unwrap();
        let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(of(&[], &["/x"]), paths(&[]));
        assert_eq!(of(&["/b", "/a/", "/a", "./a"], &[]), paths(&["/a", "/b"]));
        assert_eq!(of(&["/data/", "/log"], &["/data"]), paths(&["/log"]));
        assert_eq!(of(&["/data"], &["/data/../data/"]), paths(&[]));
        // Below a mount, or above one, it is a volume all the same.
        assert_eq!(of(&["/data/db"], &["/data"]), paths(&["/data/db"]));
        assert_eq!(of(&["/data"], &["/data/db"]), paths(&["/data"]));
        assert_eq!(of(&["../../etc/x"], &[]), paths(&["/etc/x"]));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in ["/", "", ".", "/a/.."] {
            let err = targets(&[bad], &[]).unwrap_err();
            assert_eq!(err.kind, ErrorKind::Create, "{bad}");
        }
        let many: Vec<String> = (0..=VOLUMES_MAX).map(|it| format!("/v{it}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(targets(&many, &[]).unwrap_err().message.contains("257 volumes"));
        assert_eq!(targets(&many[1..], &[]).unwrap().len(), VOLUMES_MAX);
    }
}
