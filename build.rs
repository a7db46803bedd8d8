//! How the executable is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // At a fixed address, as programs of other container runtimes are: what need not be
    // relocated is neither in the file (2.7 MB of it) nor copied into the memory of every
    // process, and each pod has one. Stack, heap and libraries still lie where chance puts
    // them.
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|it| it == value);
    if is("CARGO_CFG_TARGET_ENV", "gnu") && is("PROFILE", "release") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
