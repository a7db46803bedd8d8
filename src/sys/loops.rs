//! Loop devices: block devices whose content is a file.
//!
//! A device carries a mark of whoever attached it, so that one that somebody else made of
//! the same file is left alone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::check_int;

/// `struct loop_info64` of <linux/loop.h>.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    name: [u8; NAME_BYTES],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const NAME_BYTES: usize = 64;
const NOTHING: Info = Info {
    device: 0,
    inode: 0,
    real_device: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    name: [0; NAME_BYTES],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};
const DETACH: libc::c_ulong = 0x4c01;
const STATUS: libc::c_ulong = 0x4c05;
const CONFIGURE: libc::c_ulong = 0x4c0a;
const NEXT_FREE: libc::c_ulong = 0x4c82;
const READ_ONLY: u32 = 1;
const CONTROL: &str = "/dev/loop-control";
/// Others look for a free device as well; whoever is later looks again.
const TRIES_MAX: usize = 64;

fn status(device: &File) -> io::Result<Info> {
    let mut info = NOTHING;
    // SAFETY: the descriptor is open, and the kernel writes one `struct loop_info64` to `info`.
    check_int(unsafe { libc::ioctl(device.as_raw_fd(), STATUS as _, &raw mut info) })?;
    Ok(info)
}

fn name_of(mark: &str) -> io::Result<[u8; NAME_BYTES]> {
    let mut name = [0; NAME_BYTES];
    // The last byte stays 0.
    let room = name.get_mut(..mark.len()).filter(|_| mark.len() < NAME_BYTES);
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(mark.as_bytes());
    Ok(name)
}

/// The devices of a file that carry the mark; all that carry it if the file is gone.
///
/// # Errors
/// When devices cannot be listed.
pub fn devices_of(file: &Path, mark: &str) -> io::Result<Vec<PathBuf>> {
    let (meta, name) = (std::fs::metadata(file).ok(), name_of(mark)?);
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        if !entry.path().join("loop").is_dir() {
            continue;
        }
        let path = Path::new("/dev").join(entry.file_name());
        // One that is detached meanwhile is nobody's.
        let Ok(info) = File::open(&path).and_then(|device| status(&device)) else { continue };
        let is_of_file =
            meta.as_ref().is_none_or(|it| info.device == it.dev() && info.inode == it.ino());
        if info.name == name && is_of_file {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Makes a block device of a regular file, which others may have attached as well.
///
/// # Errors
/// A kernel without loop devices, a file that cannot be opened, or a mark of 64 bytes and
/// more.
pub fn attach(file: &Path, read_only: bool, mark: &str) -> io::Result<PathBuf> {
    let name = name_of(mark)?;
    let backing = OpenOptions::new().read(true).write(!read_only).open(file)?;
    let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
    let flags = if read_only { READ_ONLY } else { 0 };
    let config = Config {
        fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
        block_size: 0,
        info: Info { flags, name, ..NOTHING },
        reserved: [0; 8],
    };
    for _ in 0..TRIES_MAX {
        // SAFETY: the descriptor is open; this request has no argument.
        let number = check_int(unsafe { libc::ioctl(control.as_raw_fd(), NEXT_FREE as _) })?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(!read_only).open(&path)?;
        // SAFETY: both descriptors are open, and the kernel reads one `struct loop_config`.
        let answer = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE as _, &raw const config) };
        match check_int(answer) {
            Ok(_) => return Ok(path),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "no loop device is free"))
}

/// Takes the file from a device; one that is in use loses it with its last user. Safe to
/// repeat.
///
/// # Errors
/// When it is no loop device.
pub fn detach(device: &Path) -> io::Result<()> {
    let device = match File::open(device) {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // SAFETY: the descriptor is open; this request has no argument.
    match check_int(unsafe { libc::ioctl(device.as_raw_fd(), DETACH as _, 0) }) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_file_is_a_device_until_it_is_detached() {
        let path = std::env::temp_dir().join(format!("coracle-sys-loop-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        file.write_all(b"on the disk").unwrap();
        file.set_len(1 << 20).unwrap();
        let mark = format!("test-{}", std::process::id());
        assert_eq!(devices_of(&path, &mark).unwrap(), Vec::<PathBuf>::new());
        let device = attach(&path, true, &mark).unwrap();
        let read = || {
            let mut start = [0; 11];
            File::open(&device).unwrap().read_exact(&mut start).unwrap();
            start
        };
        assert_eq!(&read(), b"on the disk");
        let written = OpenOptions::new()
            .write(true)
            .open(&device)
            .and_then(|mut device| device.write_all(&[0; 512]).and_then(|()| device.sync_all()));
        assert!(written.is_err(), "it may only be read");
        assert_eq!(devices_of(&path, &mark).unwrap(), std::slice::from_ref(&device));
        assert!(devices_of(&path, "somebody-else").unwrap().is_empty());
        detach(&device).unwrap();
        detach(&device).unwrap();
        assert!(devices_of(&path, &mark).unwrap().is_empty());
        assert!(attach(&path, true, &"m".repeat(64)).is_err());
        let device = attach(&path, false, &mark).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(devices_of(&path, &mark).unwrap(), std::slice::from_ref(&device));
        detach(&device).unwrap();
        assert!(attach(&path, true, &mark).is_err());
    }
}
