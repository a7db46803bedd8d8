//! What an archive may take before it is refused: memory for the words about an entry, and
//! room on the disk. An archive says how large its parts are; nothing else makes it say the
//! truth, and some kilobytes can stand for terabytes.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes between the content of one entry and the next entry: headers, and long names and
/// extended attributes, which are held in memory. Each of these may have 1 MiB elsewhere
/// (`archive/tar` of Go).
const BETWEEN_BYTES_MAX: u64 = 4 << 20;
/// One part of so many of the disk is left to others: records, logs, the datastore.
const KEPT_PART: u64 = 100;
/// The disk is looked at again after so many bytes.
const LOOK_BYTES: u64 = 64 << 20;

/// How much may be read before the next entry has to begin.
pub struct Allowance(Cell<u64>);

impl Default for Allowance {
    fn default() -> Self {
        Self(Cell::new(BETWEEN_BYTES_MAX))
    }
}

impl Allowance {
    /// An entry begins that has `content` bytes in the archive.
    pub fn entry(&self, content: u64) {
        self.0.set(content.saturating_add(BETWEEN_BYTES_MAX));
    }
}

/// Passes an archive on for as long as its allowance lasts.
pub struct Metered<'a, R> {
    pub inner: R,
    pub allowance: &'a Allowance,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        let left = self.allowance.0.get().checked_sub(length as u64).ok_or_else(|| {
            let message = "the words about an entry of the archive are too long";
            io::Error::new(io::ErrorKind::InvalidData, message)
        })?;
        self.allowance.0.set(left);
        Ok(length)
    }
}

/// The room that is left on the disk of a directory.
pub struct Room {
    path: PathBuf,
    granted: u64,
}

impl Room {
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_path_buf(), granted: 0 }
    }

    /// Before `bytes` are written.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] where they would take what is left to others.
    pub fn take(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.granted {
            let (total, available) = sys::fs::capacity(&self.path)?;
            let free = available.saturating_sub(total / KEPT_PART);
            if bytes > free {
                let message = format!(
                    "no space left on device: {bytes} bytes are wanted, and {free} are to be had"
                );
                return Err(io::Error::new(io::ErrorKind::StorageFull, message));
            }
            self.granted = free.min(bytes.max(LOOK_BYTES));
        }
        self.granted -= bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_read_for_as_long_as_its_entries_say() {
        let allowance = Allowance::default();
        let mut reader = Metered { inner: io::repeat(0), allowance: &allowance };
        let most = 2 * BETWEEN_BYTES_MAX;
        let mut read = |bytes: u64| io::copy(&mut (&mut reader).take(bytes), &mut io::sink());
        assert_eq!(read(BETWEEN_BYTES_MAX).unwrap(), BETWEEN_BYTES_MAX);
        allowance.entry(BETWEEN_BYTES_MAX);
        assert_eq!(read(most).unwrap(), most);
        allowance.entry(u64::MAX);
        assert_eq!(read(most).unwrap(), most);
        allowance.entry(0);
        assert_eq!(read(most).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn no_room_is_given_that_is_not_there() {
        let mut room = Room::at(Path::new("/"));
        let (total, available) = sys::fs::capacity(Path::new("/")).unwrap();
        room.take(1).unwrap();
        let err = room.take(available.max(total / 2)).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::StorageFull);
        room.take(1).unwrap();
    }
}
