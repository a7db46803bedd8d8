//! Namespaces: make new ones, pin them to a path, enter them.
//!
//! Entering changes the calling thread only. Code on a shared thread must use `within`,
//! which works on a thread of its own and therefore has nothing to restore.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::{check, check_int};

/// Kinds of namespaces, combined with `|`.
pub mod kind {
    pub const MOUNT: i32 = libc::CLONE_NEWNS;
    pub const NETWORK: i32 = libc::CLONE_NEWNET;
    pub const IPC: i32 = libc::CLONE_NEWIPC;
    pub const UTS: i32 = libc::CLONE_NEWUTS;
    pub const PID: i32 = libc::CLONE_NEWPID;
    pub const CGROUP: i32 = libc::CLONE_NEWCGROUP;
    pub const USER: i32 = libc::CLONE_NEWUSER;
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

/// Ids of users and groups that a user namespace has, beginning with its 0, and where they
/// lie on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    pub first: u32,
    pub length: u32,
}

/// A new user namespace and others that belong to it, for as long as this is held. Whoever
/// wants one longer opens, enters or pins it meanwhile.
///
/// A process with threads cannot enter a user namespace; a child that does nothing stands
/// in it instead.
pub struct Holder {
    pid: i32,
    /// The child waits for the end of this.
    leash: Option<OwnedFd>,
}

impl Holder {
    /// `kinds` are made besides the user namespace.
    pub fn new(kinds: i32, ids: IdRange) -> io::Result<Self> {
        let (reader, leash) = crate::socket::pipe()?;
        let flags = i64::from(kinds | kind::USER | libc::SIGCHLD);
        // SAFETY: without CLONE_VM this is a fork; the child below makes system calls only,
        // which is all that the copy of a process with threads may do.
        let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
        if pid == 0 {
            wait_for_end(reader.as_raw_fd());
        }
        let holder = Self { pid: pid as i32, leash: Some(leash) };
        let map = format!("0 {} {}\n", ids.first, ids.length);
        for file in ["uid_map", "gid_map"] {
            std::fs::write(holder.directory().join(file), &map)?;
        }
        Ok(holder)
    }

    /// `/proc/PID` of the child: its namespaces are in `ns` below.
    pub fn directory(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.pid))
    }

    pub fn open(&self, name: &str) -> io::Result<OwnedFd> {
        open(&self.directory().join("ns").join(name))
    }

    /// Pins the network namespace to `path`, with its loopback up.
    pub fn pin_network(&self, path: &Path) -> io::Result<()> {
        std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        let ours = self.directory().join("ns/net");
        within(&ours, kind::NETWORK, crate::socket::loopback_up)?;
        let ours = ours.to_string_lossy().into_owned();
        crate::mount::mount(&ours, path, "", libc::MS_BIND, "")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.leash.take());
        // SAFETY: a child of ours that nobody else waits for; null asks for no status.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// The child of `Holder::new`: lets go of everything, and ends when the other end closes.
fn wait_for_end(leash: i32) -> ! {
    let mut byte = 0u8;
    let fd = leash as u32;
    // SAFETY: system calls only, on numbers and on one byte of our own stack.
    unsafe {
        if fd > 0 {
            libc::syscall(libc::SYS_close_range, 0, fd - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, fd + 1, u32::MAX, 0);
        // Nothing is ever written: anything but an interruption is the end.
        while libc::syscall(libc::SYS_read, leash, &raw mut byte, 1) < 0
            && *libc::__errno_location() == libc::EINTR
        {}
        libc::_exit(0)
    }
}

/// Enters a user namespace and becomes its root, with no groups.
pub fn enter_as_root(namespace: BorrowedFd<'_>) -> io::Result<()> {
    enter(namespace, kind::USER)?;
    become_root()
}

/// Root of the user namespace that was entered; before, the old user has no name in it.
pub fn become_root() -> io::Result<()> {
    crate::process::set_groups(&[])?;
    crate::process::set_gid(0)?;
    crate::process::set_uid(0)
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
    fn a_held_user_namespace_maps_its_ids_and_owns_its_network() {
        let ids = IdRange { first: 700_000, length: 65_536 };
        let holder = Holder::new(kind::NETWORK | kind::UTS, ids).unwrap();
        let map = std::fs::read_to_string(holder.directory().join("uid_map")).unwrap();
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "700000", "65536"]);
        let path = std::env::temp_dir().join(format!("coracle-sys-holder-{}", std::process::id()));
        holder.pin_network(&path).unwrap();
        let directory = holder.directory();
        drop(holder);
        assert!(!directory.exists(), "the child is gone and reaped");
        let up = within(&path, kind::NETWORK, || std::net::TcpListener::bind("127.0.0.1:0"));
        assert!(up.is_ok());
        unpin(&path).unwrap();
    }

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
