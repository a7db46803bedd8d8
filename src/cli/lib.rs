//! The cli room: arguments, configuration, and the wiring of the other rooms.

/// Runs the command line `argv` (program name first).
pub fn run(argv: impl IntoIterator<Item = std::ffi::OsString>) -> std::process::ExitCode {
    let _ = argv.into_iter();
    std::process::ExitCode::SUCCESS
}
