//! Client libraries that programs are written with, unmodified, against a cluster: Python,
//! Node and Rust (`rust_client.rs`). Each is installed by its own package tool, once for all runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::{Cluster, KUBECONFIG};
use crate::machine::told;
use crate::rust_client;

const PYTHON: &str = "kubernetes==37.0.2";
/// The newest that runs with the Node of Debian 12.
const NODE: &str = "@kubernetes/client-node@1.4.0";
/// Seconds that a suite may take.
const SUITE_SECONDS: u32 = 240;

/// Runs `install` in a new folder, unless it has been for the same package.
fn installed(package: &str, install: impl FnOnce(&Path) -> Command) -> PathBuf {
    let name: String =
        package.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if !folder.exists() {
        let fresh = folder.with_extension("new");
        let _ = std::fs::remove_dir_all(&fresh);
        std::fs::create_dir_all(&fresh).unwrap();
        let output = install(&fresh).output().unwrap();
        assert!(output.status.success(), "install {package}\n{}", told(&output));
        std::fs::rename(&fresh, &folder).unwrap();
    }
    folder
}

fn runs(cluster: &Cluster, variables: &[String], argv: &[&str], content: &str) {
    let kubeconfig = format!("KUBECONFIG={KUBECONFIG}");
    let mut words = vec!["env", &kubeconfig];
    words.extend(variables.iter().map(String::as_str));
    words.extend(argv);
    let output = cluster.machine.command(SUITE_SECONDS, &words).output().unwrap();
    let said = told(&output);
    assert!(output.status.success() && said.contains(content), "{said}\n{}", cluster.log());
}

#[test]
fn client_libraries_find_what_they_know() {
    let python = installed(PYTHON, |folder| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(folder).arg(PYTHON);
        pip
    });
    let node = installed(NODE, |folder| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]);
        npm.arg(folder).arg(NODE);
        npm
    });
    let cluster = Cluster::new();
    let suites = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let suite = |name: &str| suites.join(name).to_str().unwrap().to_string();

    // The machine has a /tmp of its own, where this checkout may lie. And Node looks modules up
    // beside the program that imports them.
    let program = python.join("suite.py");
    std::fs::copy(suite("suite.py"), &program).unwrap();
    let path = format!("PYTHONPATH={}", python.display());
    let argv = ["python3", program.to_str().unwrap()];
    runs(&cluster, &[path], &argv, "the Python client is content");
    let program = node.join("suite.mjs");
    std::fs::copy(suite("suite.mjs"), &program).unwrap();
    runs(&cluster, &[], &["node", program.to_str().unwrap()], "the Node client is content");

    let kubeconfig = cluster.machine.read(KUBECONFIG);
    cluster.machine.inside(move || rust_client::suite(&kubeconfig));
    cluster.reset();
}
