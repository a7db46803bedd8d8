//! Project quotas: how many bytes a tree of files may hold, where the file system counts
//! projects (ext4 and xfs, mounted with `prjquota`).
//!
//! Decides no numbers: the caller chooses the project.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::{check, check_int};

/// `struct fsxattr` of <linux/fs.h>.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

/// `struct if_dqblk` of <linux/quota.h>.
#[repr(C)]
#[derive(Default)]
struct Limits {
    hard_kib: u64,
    soft_kib: u64,
    used_bytes: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes_used: u64,
    bytes_grace: u64,
    inodes_grace: u64,
    valid: u32,
}

const GET_ATTRIBUTES: libc::c_ulong = 0x801c_581f;
const SET_ATTRIBUTES: libc::c_ulong = 0x401c_5820;
/// What is made below belongs to the same project.
const INHERIT: u32 = 0x200;
/// `QCMD(Q_SETQUOTA, PRJQUOTA)`
const SET_PROJECT_QUOTA: libc::c_ulong = (0x0080_0008 << 8) | 2;
const BYTES_VALID: u32 = 1;
/// The same number on every architecture (Linux 5.14).
const QUOTACTL_FD: libc::c_long = 443;

fn attributes(dir: &File) -> io::Result<Attributes> {
    let mut out = Attributes::default();
    // SAFETY: the descriptor is open, and the kernel writes one `struct fsxattr` to `out`.
    check_int(unsafe { libc::ioctl(dir.as_raw_fd(), GET_ATTRIBUTES as _, &raw mut out) })?;
    Ok(out)
}

fn set(dir: &File, project: u32, bytes_max: u64) -> io::Result<()> {
    let mut limits =
        Limits { hard_kib: bytes_max.div_ceil(1024), valid: BYTES_VALID, ..Limits::default() };
    // SAFETY: the descriptor is open, and the kernel reads one `struct if_dqblk` from `limits`.
    check(unsafe {
        libc::syscall(QUOTACTL_FD, dir.as_raw_fd(), SET_PROJECT_QUOTA, project, &raw mut limits)
    })?;
    Ok(())
}

/// The project of a directory; 0 where it has none.
///
/// # Errors
/// When the file system knows no projects.
pub fn project(dir: &Path) -> io::Result<u32> {
    Ok(attributes(&File::open(dir)?)?.project)
}

/// Makes a directory a project of its own that may hold `bytes_max` bytes, rounded up to
/// KiB. Only what is made afterwards belongs to it.
///
/// # Errors
/// When the file system does not limit projects.
pub fn limit(dir: &Path, project: u32, bytes_max: u64) -> io::Result<()> {
    let dir = File::open(dir)?;
    set(&dir, project, bytes_max)?;
    let mut held = attributes(&dir)?;
    if held.project == project && held.flags & INHERIT != 0 {
        return Ok(());
    }
    held.project = project;
    held.flags |= INHERIT;
    // SAFETY: the descriptor is open, and the kernel reads one `struct fsxattr` from `held`.
    check_int(unsafe { libc::ioctl(dir.as_raw_fd(), SET_ATTRIBUTES as _, &raw mut held) })?;
    Ok(())
}

/// Forgets a project's limit. `dir` is any directory of its file system.
///
/// # Errors
/// When the file system does not limit projects.
pub fn unlimit(dir: &Path, project: u32) -> io::Result<()> {
    set(&File::open(dir)?, project, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_sees_structures_of_its_own_sizes() {
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<Limits>(), 72);
    }

    #[test]
    fn a_file_system_without_projects_says_so() {
        // /proc knows neither attributes nor quotas.
        assert!(project(Path::new("/proc/self")).is_err());
        assert!(limit(Path::new("/proc/self"), 7, 4096).is_err());
    }
}
