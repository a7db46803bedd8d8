//! How the executable is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // At a fixed address, as programs of other container runtimes are: what need not be
    // relocated is neither in the file (2.7 MB of it) nor copied into the memory of every
    // process, and each pod has one. Stack, heap and libraries still lie where chance puts
    // them.
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|it| it == value);
    // Without shared libraries, rustc links code that starts by relocating itself.
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let is_static = features.split(',').any(|it| it == "crt-static");
    if is("CARGO_CFG_TARGET_ENV", "gnu") && is("PROFILE", "release") && !is_static {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
