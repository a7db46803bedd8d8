//! Tells when something in a directory, or in several, changes.
//!
//! Says only that, never what: the reader looks again. What is gone by then [`Removals`] names.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags};
use tokio::net::unix::pipe;

pub use rustix::fs::inotify::WatchFlags;

/// An inotify descriptor is read like a pipe.
pub struct WatchedDir(pipe::Receiver);

impl WatchedDir {
    pub fn new(dir: &Path, flags: WatchFlags) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&fd, dir, flags | WatchFlags::ONLYDIR)?;
        Ok(Self(pipe::Receiver::from_owned_fd_unchecked(fd)?))
    }

    /// Watches another directory as well; one that is watched already stays so.
    ///
    /// # Errors
    /// When it is none, or the kernel watches no more.
    pub fn add(&self, dir: &Path, flags: WatchFlags) -> io::Result<()> {
        inotify::add_watch(&self.0, dir, flags | WatchFlags::ONLYDIR).map(drop)?;
        Ok(())
    }

    /// Returns after the next change; changes since the last call count.
    pub async fn changed(&self) -> io::Result<()> {
        let mut buffer = [0u8; 4096];
        loop {
            self.0.readable().await?;
            match self.0.try_read(&mut buffer) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        // One look answers all that came at once.
        while self.0.try_read(&mut buffer).is_ok_and(|read| read > 0) {}
        Ok(())
    }
}

/// The names that were taken away from a directory.
pub struct Removals(OwnedFd);

impl Removals {
    /// # Errors
    /// When it is no directory, or the kernel watches no more.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let flags = WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, dir, flags)?;
        Ok(Self(fd))
    }

    /// Those since the last call, without waiting. Of more than the kernel keeps (16,384 where
    /// nobody says otherwise) the last are missing.
    pub fn take(&self) -> BTreeSet<OsString> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        let mut out = BTreeSet::new();
        while let Ok(event) = events.next() {
            out.extend(event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned()));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_away_is_named_even_if_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a", "b", "c"] {
            std::fs::write(path(name), "").unwrap();
        }
        let removals = Removals::new(dir.path()).unwrap();
        assert_eq!(removals.take(), BTreeSet::new());
        std::fs::remove_file(path("a")).unwrap();
        std::fs::write(path("a"), "").unwrap();
        // Replaced by another, it was always there.
        std::fs::rename(path("c"), path("b")).unwrap();
        assert_eq!(removals.take(), ["a", "c"].map(OsString::from).into());
        assert_eq!(removals.take(), BTreeSet::new());
    }
}
