//! Points between two steps at which a test has the process die, as by `kill -9`.
//!
//! Builds without debug assertions hold none of this: there a point is no code at all. In
//! the others a point looks into the file that [`FILE_VARIABLE`] names; if the point's name
//! is in it, it takes the file away and kills the process. A program's points can be read
//! from the program: each is in it as `failpoint{NAME}`. Who wants the shims of pods to die
//! gives them the variable with the command that starts them, for they inherit nothing.
//! With `stop ` before the name the process stops there instead, as one that the machine is too
//! busy for, and goes on at `SIGCONT`. A process that changes its root [holds](hold) the file first, and empties it instead of
//! taking it away.

/// Environment variable with the path of the file that says at which point to die.
#[cfg(debug_assertions)]
pub const FILE_VARIABLE: &str = "CORACLE_FAILPOINT_FILE";

/// A point with a name of its own, of letters, digits, `/` and `-`.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::failpoint::reach(concat!("failpoint{", $name, "}"));
    };
}

#[cfg(debug_assertions)]
mod wanted {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;
    use std::sync::OnceLock;

    /// No name of a point is longer.
    const NAME_BYTES_MAX: usize = 256;

    static HELD: OnceLock<File> = OnceLock::new();

    fn file() -> Option<&'static PathBuf> {
        static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
        FILE.get_or_init(|| std::env::var_os(super::FILE_VARIABLE).map(PathBuf::from)).as_ref()
    }

    pub fn hold() -> Option<&'static File> {
        let file = File::options().read(true).write(true).open(file()?).ok()?;
        Some(HELD.get_or_init(|| file))
    }

    /// The point's name, marked as in the program.
    pub fn read() -> Option<String> {
        let Some(held) = HELD.get() else { return std::fs::read_to_string(file()?).ok() };
        let mut bytes = [0; NAME_BYTES_MAX];
        let length = held.read_at(&mut bytes, 0).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// Once: whoever starts the process again wants it to live.
    pub fn take() {
        match (HELD.get(), file()) {
            (Some(held), _) => drop(held.set_len(0)),
            (None, Some(file)) => drop(std::fs::remove_file(file)),
            (None, None) => {}
        }
    }
}

/// Keeps the file open for when its path leads nowhere, and gives its descriptor, which does
/// not survive exec.
#[cfg(debug_assertions)]
pub fn hold() -> Option<std::os::fd::RawFd> {
    wanted::hold().map(std::os::fd::AsRawFd::as_raw_fd)
}

#[cfg(debug_assertions)]
#[doc(hidden)]
pub fn reach(marked: &str) {
    let Some(text) = wanted::read() else { return };
    let (stops, wanted) = match text.trim().strip_prefix("stop ") {
        Some(wanted) => (true, wanted),
        None => (false, text.trim()),
    };
    if wanted != marked {
        return;
    }
    wanted::take();
    if stops {
        // Until somebody has it go on.
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::STOP);
        return;
    }
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The first process of a pid namespace cannot kill itself; what its parent sees is alike.
    std::process::exit(128 + 9);
}
