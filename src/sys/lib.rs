//! The kernel room: safe verbs over namespaces, mounts, cgroups, capabilities, seccomp,
//! processes and terminals.
//!
//! The only room with `unsafe`. Decides nothing: which mounts, which limits and which
//! capabilities a container gets is the runtime's matter. Nothing here runs a helper
//! program.
#![allow(unsafe_code)]

pub mod bpf;
pub mod caps;
pub mod cgroup;
pub mod firewall;
pub mod fs;
pub mod loops;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod nftables;
pub mod process;
pub mod pty;
pub mod quota;
pub mod seccomp;
pub mod selinux;
pub mod socket;
pub mod syscalls;
pub mod watched_dir;

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Turns the answer of a system call into a result.
pub(crate) fn check(answer: libc::c_long) -> io::Result<libc::c_long> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

pub(crate) fn check_int(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Takes ownership of a descriptor that a system call has just returned.
pub(crate) fn own(answer: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(answer)?;
    // SAFETY: the kernel has just handed this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    c_bytes(path.as_os_str().as_bytes())
}

pub(crate) fn c_bytes(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL byte in a string"))
}
