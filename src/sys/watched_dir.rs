//! Tells when something in a directory, or in several, changes.
//!
//! Says only that, never what: the reader looks again.

use std::io;
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
