//! How the executable is linked.

use std::env::var;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Functions that are the same to the byte become one: 0.8 MB of them.
const FOLD: &str = "-Wl,--icf=all";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // At a fixed address, as programs of other container runtimes are: what need not be
    // relocated is neither in the file (2.7 MB of it) nor copied into the memory of every
    // process, and each pod has one. Stack, heap and libraries still lie where chance puts
    // them.
    let is = |name: &str, value: &str| var(name).is_ok_and(|it| it == value);
    // Without shared libraries, rustc links code that starts by relocating itself.
    let features = var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let is_static = features.split(',').any(|it| it == "crt-static");
    if is("CARGO_CFG_TARGET_ENV", "gnu") && is("PROFILE", "release") && !is_static {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
    if is("PROFILE", "release") && links_with(FOLD) == Some(true) {
        println!("cargo:rustc-link-arg-bins={FOLD}");
    }
}

/// Whether the linker that will be used knows an argument: rustc's own does, and mold, but
/// not every one.
fn links_with(argument: &str) -> Option<bool> {
    let mut rustc = Command::new(var("RUSTC").ok()?);
    let to = PathBuf::from(var("OUT_DIR").ok()?).join("probe");
    rustc.args(["-", "--crate-name=probe", "--target", &var("TARGET").ok()?, "-o"]).arg(to);
    if let Ok(linker) = var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let flags = var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    rustc.args(flags.split('\x1f').filter(|it| !it.is_empty()));
    rustc.arg(format!("-Clink-arg={argument}"));
    let mut running =
        rustc.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    running.stdin.take()?.write_all(b"fn main() {}").ok()?;
    Some(running.wait().ok()?.success())
}
