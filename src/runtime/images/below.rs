//! The layers below the one that is unpacked, seen as a container would see them, for what a
//! layer takes from there: a hard link to a file that it does not carry itself.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sys::fs::Root;

pub struct Below<'a> {
    /// Topmost first.
    layers: &'a [PathBuf],
    /// Of a mount that is attached nowhere, and that goes with this.
    seen: Option<Root>,
}

impl<'a> Below<'a> {
    pub fn new(layers: &'a [PathBuf]) -> Self {
        Self { layers, seen: None }
    }

    /// Puts the file at `path` of the layers below into `dir`, as writing to it would have.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] where there is none; what is neither a file nor a symbolic
    /// link cannot be had.
    pub fn copy_up(&mut self, path: &Path, dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
        if self.seen.is_none() {
            self.seen = Some(see(self.layers)?);
        }
        let Some(root) = &self.seen else { return Err(io::ErrorKind::NotFound.into()) };
        let from = root.directory(path.parent().unwrap_or(Path::new("")))?;
        let from_path = sys::fs::descriptor_path(from.as_fd()).join(name);
        let meta = std::fs::symlink_metadata(&from_path)?;
        if meta.is_symlink() {
            let goal = sys::fs::read_link_at(from.as_fd(), name)?;
            sys::fs::symlink_at(goal.as_os_str(), dir.as_fd(), name)?;
        } else if meta.is_file() {
            let mut file = sys::fs::create_file_at(dir.as_fd(), name)?;
            io::copy(&mut std::fs::File::open(&from_path)?, &mut file)?;
            file.set_permissions(std::fs::Permissions::from_mode(meta.mode() & 0o7777))?;
        } else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "what a hard link names in a layer below is no file",
            ));
        }
        sys::fs::set_owner_at(dir.as_fd(), name, meta.uid(), meta.gid())?;
        if meta.is_file() {
            // Who owns it anew loses these bits.
            sys::fs::set_mode_at(dir.as_fd(), name, meta.mode())?;
            sys::fs::copy_xattrs(from.as_fd(), dir.as_fd(), name)?;
        }
        sys::fs::set_modified_at(dir.as_fd(), name, meta.mtime())
    }
}

fn see(layers: &[PathBuf]) -> io::Result<Root> {
    let Some(directory) = layers.first().and_then(|it| it.parent()) else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no layer below"));
    };
    let names: Vec<String> = layers
        .iter()
        .filter_map(|layer| layer.file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let tree = sys::mount::read_only_layers(directory, &names, None)?;
    Root::open(&sys::fs::descriptor_path(tree.as_fd()))
}
