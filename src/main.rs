//! The `coracle` executable. Everything it does is in the `cli` room.

fn main() -> std::process::ExitCode {
    cli::run(std::env::args_os())
}
