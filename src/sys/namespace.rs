//! Namespaces: make new ones, pin them to a path, enter them.
//!
//! Entering changes the calling thread only. Code on a shared thread must use `within`,
//! which works on a thread of its own and therefore has nothing to restore.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::check_int;

/// Kinds of namespaces, combined with `|`.
pub mod kind {
    pub const MOUNT: i32 = libc::CLONE_NEWNS;
    pub const NETWORK: i32 = libc::CLONE_NEWNET;
    pub const IPC: i32 = libc::CLONE_NEWIPC;
    pub const UTS: i32 = libc::CLONE_NEWUTS;
    pub const PID: i32 = libc::CLONE_NEWPID;
    pub const CGROUP: i32 = libc::CLONE_NEWCGROUP;
}

/// Moves the calling thread into new namespaces (for `PID`: its children).
pub fn unshare(kinds: i32) -> io::Result<()> {
    // SAFETY: changes only this thread's namespaces.
    check_int(unsafe { libc::unshare(kinds) }).map(drop)
}

/// Enters namespaces by the descriptor of one, or of a process (a pidfd).
pub fn enter(namespace: BorrowedFd<'_>, kinds: i32) -> io::Result<()> {
    // SAFETY: changes only this thread's namespaces.
    check_int(unsafe { libc::setns(namespace.as_raw_fd(), kinds) }).map(drop)
}

pub fn open(path: &Path) -> io::Result<OwnedFd> {
    std::fs::File::open(path).map(OwnedFd::from)
}

pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: the buffer is as long as we say.
    check_int(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Makes a network namespace, brings its loopback up, and pins it to `path`. `inside`
/// runs in it before anybody else can.
pub fn create_network(
    path: &Path,
    inside: impl FnOnce() -> io::Result<()> + Send,
) -> io::Result<()> {
    on_own_thread(|| {
        std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        unshare(kind::NETWORK)?;
        crate::socket::loopback_up()?;
        inside()?;
        crate::mount::mount("/proc/thread-self/ns/net", path, "", libc::MS_BIND, "")
    })
}

/// Runs `work` in the namespace at `path`, on a thread of its own.
pub fn within<T: Send>(
    path: &Path,
    kinds: i32,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    on_own_thread(|| {
        let namespace = open(path)?;
        enter(std::os::fd::AsFd::as_fd(&namespace), kinds)?;
        work()
    })
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("namespace".into())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, work)?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the namespace thread panicked")))
    })
}

/// Takes a pinned namespace away. Safe to repeat.
pub fn unpin(path: &Path) -> io::Result<()> {
    while crate::mount::unmount_detach(path)? {}
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_network_namespace_is_another_one_until_it_is_unpinned() {
        let path = std::env::temp_dir().join(format!("coracle-sys-netns-{}", std::process::id()));
        create_network(&path, || Ok(())).unwrap();
        let ours = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs =
            within(&path, kind::NETWORK, || std::fs::read_link("/proc/thread-self/ns/net"))
                .unwrap();
        assert_ne!(ours, theirs);
        let up = within(&path, kind::NETWORK, || std::net::TcpListener::bind("127.0.0.1:0"));
        assert!(up.is_ok());
        unpin(&path).unwrap();
        unpin(&path).unwrap();
        assert!(!path.exists());
    }
}
