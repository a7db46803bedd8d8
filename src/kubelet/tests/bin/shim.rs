//! The smallest program that can be a shim: what the tests of this room start.

fn main() -> std::process::ExitCode {
    runtime::shim_main(std::env::args_os().skip(1).collect())
}
