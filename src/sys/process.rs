//! Processes: fork in a single-threaded program, wait, signals, limits, identity, exec.
//!
//! `fork` is for the shim, which has one thread; it refuses to run where there are more.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::{c_bytes, check, check_int, own};

pub enum Fork {
    Child,
    Parent(i32),
}

/// Splits this process in two. An error where other threads run, whose locks the child
/// would inherit locked.
pub fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.take(2).count() != 1 {
        return Err(io::Error::other("fork needs a single-threaded process"));
    }
    // SAFETY: this is the only thread, so the child inherits no lock held by another.
    match check_int(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// As `fork`, but the child is this process's sibling: its parent reaps it.
pub fn fork_sibling() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.take(2).count() != 1 {
        return Err(io::Error::other("fork needs a single-threaded process"));
    }
    let flags = i64::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: one thread, and no memory is shared: the child goes on as after fork.
    match check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid as i32)),
    }
}

/// Ends the process at once, running no destructors of a forked copy.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(code) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    Signaled(i32),
}

impl Ended {
    /// The shell's convention: 128 + signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }
}

/// A child that has ended, or None. ECHILD is None as well.
pub fn reap() -> io::Result<Option<(i32, Ended)>> {
    let mut status = 0;
    // SAFETY: status is ours.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid < 0 {
        let err = io::Error::last_os_error();
        return if err.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(err) };
    }
    if pid == 0 {
        return Ok(None);
    }
    let ended = if libc::WIFSIGNALED(status) {
        Ended::Signaled(libc::WTERMSIG(status))
    } else {
        Ended::Exited(libc::WEXITSTATUS(status))
    };
    Ok(Some((pid, ended)))
}

/// Ids of the children of this thread, those that it took over included. None where the
/// kernel does not tell.
pub fn children() -> Vec<i32> {
    let text = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends a signal; a process that is gone is no error. Negative pids name groups.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    match check_int(unsafe { libc::kill(pid, signal) }) {
        Err(err) if err.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}

/// Sends a signal to exactly the process that the descriptor names.
pub fn signal_pidfd(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let null = std::ptr::null::<libc::c_void>();
    // SAFETY: a null siginfo is allowed.
    match check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null, 0)
    }) {
        Err(err) if err.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}

pub fn is_alive(pid: i32) -> bool {
    // SAFETY: signal 0 only asks.
    pid > 0 && unsafe { libc::kill(pid, 0) } == 0
}

/// The start time of a process in clock ticks: with its pid, its identity.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

pub fn new_session() -> io::Result<()> {
    // SAFETY: takes nothing.
    check_int(unsafe { libc::setsid() }).map(drop)
}

/// Makes this process the parent of its descendants' orphans.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: takes numbers only.
    check_int(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// Makes the kernel kill this process when its parent ends.
pub fn end_with_parent() -> io::Result<()> {
    // SAFETY: takes numbers only.
    check_int(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

pub fn set_name(name: &str) {
    if let Ok(name) = c_bytes(name.as_bytes()) {
        // SAFETY: a live C string; the kernel takes 15 bytes of it.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
    }
}

pub fn set_no_new_privs() -> io::Result<()> {
    // SAFETY: takes numbers only.
    check_int(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// A process that others may not look into by /proc or ptrace until it executes.
pub fn set_undumpable() -> io::Result<()> {
    // SAFETY: takes numbers only.
    check_int(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Gives free memory back to the kernel.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: glibc's allocator allows this at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the caller holds nothing above `first`; it is called before anything is opened.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Closes every descriptor but these: what a forked child does with what it inherits and
/// never uses.
pub fn close_others(keep: &[i32]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        if fd > first {
            // SAFETY: the caller uses none of the descriptors that it does not name.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) })?;
        }
        first = fd + 1;
    }
    close_from(first)
}

/// Puts copies of three descriptors at 0, 1 and 2.
pub fn set_stdio(
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
) -> io::Result<()> {
    // Copies above 2 first, so that no source is overwritten before it is used.
    let mut copies = Vec::with_capacity(3);
    for fd in [stdin, stdout, stderr] {
        // SAFETY: plain descriptors.
        copies.push(own(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) }.into())?);
    }
    for (number, copy) in copies.iter().enumerate() {
        // SAFETY: dup2 onto the standard descriptors is what we want.
        check_int(unsafe { libc::dup2(copy.as_raw_fd(), number as i32) })?;
    }
    Ok(())
}

/// Lets only the bit pattern of permissions be given that is not in `mask`.
pub fn set_umask(mask: u32) {
    // SAFETY: takes a number only.
    unsafe { libc::umask(mask) };
}

/// Blocks a signal and gives a descriptor that reads it.
pub fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is ours and initialised by sigemptyset.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        check_int(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        own(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())
    }
}

/// Default disposition and no blocked signal, as a fresh program expects.
pub fn reset_signals() {
    // SAFETY: resetting to the default is always allowed (and ignored for KILL and STOP).
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Ignores a signal.
pub fn ignore_signal(signal: i32) {
    // SAFETY: ignoring installs no handler of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the slice is as long as we say.
    check_int(unsafe { libc::setgroups(groups.len() as _, groups.as_ptr()) }).map(drop)
}

pub fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check_int(unsafe { libc::setresgid(gid, gid, gid) }).map(drop)
}

pub fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check_int(unsafe { libc::setresuid(uid, uid, uid) }).map(drop)
}

/// `RLIMIT_NOFILE`: how many files this process may open, and how far it may raise that.
pub fn open_files() -> io::Result<(u64, u64)> {
    // SAFETY: all-zero is a valid rlimit.
    let mut now: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is ours.
    check_int(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut now) })?;
    Ok((now.rlim_cur, now.rlim_max))
}

/// `RLIMIT_NOFILE` as containers expect it; clamped to what this process may set. True
/// when it had to be clamped.
pub fn set_open_files(soft: u64, hard: u64) -> io::Result<bool> {
    // SAFETY: all-zero is a valid rlimit.
    let mut now: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is ours.
    check_int(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut now) })?;
    let wanted = libc::rlimit { rlim_cur: soft.min(hard), rlim_max: hard };
    // SAFETY: the structure is ours.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) } == 0 {
        return Ok(false);
    }
    let max = hard.min(now.rlim_max);
    let clamped = libc::rlimit { rlim_cur: soft.min(max), rlim_max: max };
    // SAFETY: the structure is ours.
    check_int(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const clamped) })?;
    Ok(true)
}

/// How willingly the kernel kills this process when memory is short. True when lowering
/// it was refused and the present value stays.
pub fn set_oom_score_adj(value: i64) -> io::Result<bool> {
    match std::fs::write("/proc/self/oom_score_adj", value.to_string()) {
        Err(err) if matches!(err.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => Ok(true),
        other => other.map(|()| false),
    }
}

/// Replaces this program. Returns only with an error.
pub fn execute(path: &Path, args: &[CString], env: &[CString]) -> io::Error {
    let Ok(path) = c_bytes(path.as_os_str().as_bytes()) else {
        return io::Error::from_raw_os_error(libc::EINVAL);
    };
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: null-terminated arrays of live C strings.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

pub fn c_strings<S: AsRef<OsStr>>(list: &[S]) -> io::Result<Vec<CString>> {
    list.iter().map(|s| c_bytes(s.as_ref().as_bytes())).collect()
}

/// True when this process may use the file as a program.
pub fn may_execute(path: &Path) -> io::Result<()> {
    let path = c_bytes(path.as_os_str().as_bytes())?;
    // SAFETY: a live C string.
    check_int(unsafe {
        libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS)
    })
    .map(drop)
}

/// What to wait for on a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Read,
    Write,
}

/// Waits until one of the descriptors is ready (or broken), at most `timeout_ms`
/// (negative: for ever). Gives the positions of those that are.
pub fn poll(list: &[(i32, Interest)], timeout_ms: i32, ready: &mut Vec<usize>) -> io::Result<()> {
    ready.clear();
    let mut fds: Vec<libc::pollfd> = list
        .iter()
        .map(|(fd, interest)| libc::pollfd {
            fd: *fd,
            events: match interest {
                Interest::Read => libc::POLLIN,
                Interest::Write => libc::POLLOUT,
            },
            revents: 0,
        })
        .collect();
    // SAFETY: the array is ours and as long as we say.
    let answer =
        check_int(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) });
    match answer {
        Ok(_) => {}
        Err(err) if err.kind() == io::ErrorKind::Interrupted => return Ok(()),
        Err(err) => return Err(err),
    }
    ready.extend(fds.iter().enumerate().filter(|(_, f)| f.revents != 0).map(|(i, _)| i));
    Ok(())
}

/// Signals by their names, with or without `SIG`, or by number.
pub fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = plain.strip_prefix("RTMIN") {
        let n = 34 + if offset.is_empty() { 0 } else { offset.parse::<i32>().ok()? };
        return (34..=64).contains(&n).then_some(n);
    }
    if let Some(offset) = plain.strip_prefix("RTMAX") {
        let n = 64 + if offset.is_empty() { 0 } else { offset.parse::<i32>().ok()? };
        return (34..=64).contains(&n).then_some(n);
    }
    Some(match plain {
        "HUP" => libc::SIGHUP,
        "INT" => libc::SIGINT,
        "QUIT" => libc::SIGQUIT,
        "ILL" => libc::SIGILL,
        "TRAP" => libc::SIGTRAP,
        "ABRT" | "IOT" => libc::SIGABRT,
        "BUS" => libc::SIGBUS,
        "FPE" => libc::SIGFPE,
        "KILL" => libc::SIGKILL,
        "USR1" => libc::SIGUSR1,
        "SEGV" => libc::SIGSEGV,
        "USR2" => libc::SIGUSR2,
        "PIPE" => libc::SIGPIPE,
        "ALRM" => libc::SIGALRM,
        "TERM" => libc::SIGTERM,
        "STKFLT" => libc::SIGSTKFLT,
        "CHLD" | "CLD" => libc::SIGCHLD,
        "CONT" => libc::SIGCONT,
        "STOP" => libc::SIGSTOP,
        "TSTP" => libc::SIGTSTP,
        "TTIN" => libc::SIGTTIN,
        "TTOU" => libc::SIGTTOU,
        "URG" => libc::SIGURG,
        "XCPU" => libc::SIGXCPU,
        "XFSZ" => libc::SIGXFSZ,
        "VTALRM" => libc::SIGVTALRM,
        "PROF" => libc::SIGPROF,
        "WINCH" => libc::SIGWINCH,
        "IO" | "POLL" => libc::SIGIO,
        "PWR" => libc::SIGPWR,
        "SYS" => libc::SIGSYS,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (name, number) in
            [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)]
        {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        assert_eq!(signal_number("SIGNOTHING"), None);
        assert_eq!(signal_number("0"), None);
    }

    #[test]
    fn fork_is_refused_beside_other_threads() {
        // The test harness runs this on a thread beside its main one.
        let outcome = std::thread::spawn(|| fork().map(|_| ())).join().unwrap();
        assert!(outcome.is_err());
    }
}
