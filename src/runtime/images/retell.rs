//! What of a layer's archive its directory does not hold, so that the very same archive
//! can be written again: everything but the contents of files.
//!
//! A stream of frames, zstd: length of what to write (u32) and it; length of a path (u16)
//! and it; length of that file (u64). An empty path stands for no file. Little endian.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use sys::fs::Root;

/// Bytes between two files that are held in memory; more are written in pieces.
const GAP_BYTES_MAX: usize = 64 << 10;
/// Bytes of an archive that are no file's content: as many as four million entries have.
/// Nothing else bounds the time that they take.
const REST_BYTES_MAX: u64 = 4 << 30;
/// Bytes after the end of an archive: it is filled up to a multiple of some kilobytes.
const END_BYTES_MAX: u64 = 16 << 20;
/// Headers compress well at any level.
const LEVEL: i32 = 3;

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the record of a layer's archive is damaged")
}

/// Where the file whose content is read next begins and ends, and its path.
#[derive(Default)]
pub struct Marks(Cell<Option<(u64, u64, PathBuf)>>);

impl Marks {
    pub fn content(&self, position: u64, length: u64, path: &Path) {
        if length > 0 && path.as_os_str().len() <= usize::from(u16::MAX) {
            self.0.set(Some((position, position + length, path.to_path_buf())));
        }
    }
}

/// Passes an archive on, hashes it, and notes what is not content.
pub struct Recorder<'a, R> {
    inner: R,
    marks: &'a Marks,
    hash: Sha256,
    position: u64,
    /// The end of the content that is read now.
    content_end: u64,
    gap: Vec<u8>,
    /// All that was no content.
    rest: u64,
    out: zstd::stream::write::Encoder<'static, File>,
}

impl<'a, R: Read> Recorder<'a, R> {
    pub fn new(inner: R, marks: &'a Marks, out: File) -> io::Result<Self> {
        let out = zstd::stream::write::Encoder::new(out, LEVEL)?;
        let (hash, gap) = (Sha256::new(), Vec::new());
        Ok(Self { inner, marks, hash, position: 0, content_end: 0, gap, rest: 0, out })
    }

    fn frame(&mut self, path: &Path, length: u64) -> io::Result<()> {
        let gap = u32::try_from(self.gap.len()).map_err(io::Error::other)?;
        let path = path.as_os_str().as_bytes();
        let path_length = u16::try_from(path.len()).map_err(io::Error::other)?;
        self.out.write_all(&gap.to_le_bytes())?;
        self.out.write_all(&self.gap)?;
        self.out.write_all(&path_length.to_le_bytes())?;
        self.out.write_all(path)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.gap.clear();
        Ok(())
    }

    /// Notes `bytes`, which begin at the present position.
    fn note(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.position < self.content_end {
                let left = usize::try_from(self.content_end - self.position).unwrap_or(usize::MAX);
                let taken = left.min(bytes.len());
                self.position += taken as u64;
                bytes = &bytes[taken..];
                continue;
            }
            let mut until = bytes.len();
            if let Some((from, to, path)) = self.marks.0.take() {
                if from == self.position {
                    self.frame(&path, to - from)?;
                    self.content_end = to;
                    continue;
                }
                if let Ok(ahead) = usize::try_from(from.saturating_sub(self.position)) {
                    until = until.min(ahead.max(1));
                }
                self.marks.0.set(Some((from, to, path)));
            }
            until = until.min(GAP_BYTES_MAX - self.gap.len());
            self.gap.extend_from_slice(&bytes[..until]);
            self.position += until as u64;
            self.rest += until as u64;
            if self.rest > REST_BYTES_MAX {
                let message = "the archive has too much beside its files";
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            bytes = &bytes[until..];
            if self.gap.len() >= GAP_BYTES_MAX {
                self.frame(Path::new(""), 0)?;
            }
        }
        Ok(())
    }

    /// The digest of the whole archive, and its bytes.
    pub fn finish(mut self) -> io::Result<(String, u64)> {
        // The digest covers what follows the archive's end, too.
        let mut end = self.by_ref().take(END_BYTES_MAX + 1);
        if io::copy(&mut end, &mut io::sink())? > END_BYTES_MAX {
            let message = "the archive goes on after its end";
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        self.frame(Path::new(""), 0)?;
        self.out.finish()?.sync_all()?;
        Ok((format!("sha256:{}", super::store::hex(&self.hash.finalize())), self.position))
    }
}

impl<R: Read> Read for Recorder<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        self.note(&buffer[..length])?;
        Ok(length)
    }
}

/// Writes the archive that `record` tells of, with the files that lie in `directory`, and those
/// that the archive itself replaces later, which lie in `aside` under the position of their
/// content. Gives its digest and its bytes; the caller judges them.
pub fn retell(
    record: File,
    (directory, aside): (&Path, &Path),
    out: &mut impl Write,
) -> io::Result<(String, u64)> {
    let has_aside = aside.is_dir();
    let root = Root::open(directory)?;
    let mut record = zstd::stream::read::Decoder::new(record)?;
    let mut out = Hashing { inner: out, hash: Sha256::new(), bytes: 0 };
    loop {
        let mut four = [0; 4];
        match record.read_exact(&mut four) {
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => break,
            other => other?,
        }
        let gap = u32::from_le_bytes(four);
        if gap as usize > GAP_BYTES_MAX {
            return Err(broken());
        }
        if io::copy(&mut record.by_ref().take(gap.into()), &mut out)? != u64::from(gap) {
            return Err(broken());
        }
        let (mut two, mut eight) = ([0; 2], [0; 8]);
        record.read_exact(&mut two)?;
        let mut path = vec![0; u16::from_le_bytes(two).into()];
        record.read_exact(&mut path)?;
        record.read_exact(&mut eight)?;
        let length = u64::from_le_bytes(eight);
        if path.is_empty() {
            continue;
        }
        let path = Path::new(OsStr::from_bytes(&path));
        // By its handle, so that no link of the layer leads out, and no pipe is waited for.
        let replaced = aside.join(out.bytes.to_string());
        let found = match has_aside && replaced.is_file() {
            true => sys::fs::open_path(&replaced)?,
            false => root.resolve(path)?,
        };
        let handle = sys::fs::descriptor_path(found.as_fd());
        if !std::fs::metadata(&handle)?.is_file() {
            return Err(broken());
        }
        let copied = io::copy(&mut File::open(handle)?.take(length), &mut out)?;
        if copied != length {
            return Err(broken());
        }
    }
    Ok((format!("sha256:{}", super::store::hex(&out.hash.finalize())), out.bytes))
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(buffer)?;
        self.hash.update(&buffer[..length]);
        self.bytes += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beside_the_files_is_bounded() {
        let marks = Marks::default();
        let out = tempfile::tempfile().unwrap();
        let mut recorder = Recorder::new(io::repeat(0), &marks, out).unwrap();
        recorder.rest = REST_BYTES_MAX - 8;
        assert_eq!(recorder.read(&mut [1; 8]).unwrap(), 8);
        marks.content(8, 100, Path::new("file"));
        assert_eq!(recorder.read(&mut [1; 100]).unwrap(), 100, "content is none of it");
        let err = recorder.read(&mut [1; 8]).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidData);
    }
}
