//! Points between two steps at which a test has the process die, as by `kill -9`.
//!
//! Builds without debug assertions hold none of this: there a point is no code at all. In
//! the others a point looks into the file that [`FILE_VARIABLE`] names; if the point's name
//! is in it, it takes the file away and kills the process. A program's points can be read
//! from the program: each is in it as `failpoint{NAME}`. Who wants the shims of pods to die
//! gives them the variable with the command that starts them, for they inherit nothing.

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
#[doc(hidden)]
pub fn reach(marked: &str) {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(file) = FILE.get_or_init(|| std::env::var_os(FILE_VARIABLE).map(PathBuf::from)) else {
        return;
    };
    if !std::fs::read_to_string(file).is_ok_and(|wanted| wanted.trim() == marked) {
        return;
    }
    // Once: whoever starts the process again wants it to live.
    let _ = std::fs::remove_file(file);
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort();
}
