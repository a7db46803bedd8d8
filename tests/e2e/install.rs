//! `install.sh` on a machine without a service manager: install, upgrade, reset.

use std::process::Command;

use crate::cluster::{Cluster, kubectls};
use crate::images;
use crate::machine::{Machine, eventually, told};

const INSTALL: &str =
    "cd /mnt/checkout && INSTALL_CORACLE_BINARY=/mnt/coracle/coracle ./install.sh";

fn machine() -> Machine {
    let machine = Machine::new();
    let here = env!("CARGO_MANIFEST_DIR");
    for part in ["install.sh", "packaging", "Cargo.toml"] {
        let copied = Command::new("cp")
            .arg("-r")
            .arg(format!("{here}/{part}"))
            .arg(machine.checkout())
            .status()
            .unwrap();
        assert!(copied.success());
    }
    machine
}

#[test]
fn install_upgrade_reset() {
    let machine = machine();
    let before = machine.traces();
    let kubectl = format!("{} --kubeconfig /etc/coracle/kubeconfig.yaml", kubectls().remove(0));
    let said = machine.sh(INSTALL);
    assert!(said.contains("export KUBECONFIG=/etc/coracle/kubeconfig.yaml"), "{said}");
    let nodes = machine.sh(&format!("{kubectl} get nodes"));
    assert!(nodes.contains(" Ready "), "{nodes}");

    machine.write("/tmp/web.tar", &images::web("1").archive());
    machine.sh("coracle images import /tmp/web.tar && rm /tmp/web.tar");
    machine.sh(&format!("{kubectl} run web --image=web:1"));
    machine.sh(&format!("{kubectl} wait --for=condition=Ready pod/web --timeout=30s"));
    let web = || machine.sh("ps -C httpd -o pid=,lstart=");
    let (server, running) = (machine.sh("pgrep -f '^/usr/local/bin/coracle server'"), web());

    // Again, with a flag: another server, the same pods; and again, which keeps the flag.
    machine.sh(&format!("{INSTALL_WITH} ./install.sh"));
    assert_ne!(machine.sh("pgrep -f '^/usr/local/bin/coracle server'"), server);
    machine.sh(INSTALL);
    let server = machine.sh("pgrep -a -f '^/usr/local/bin/coracle server'");
    assert!(server.contains("--node-label tier=edge"), "{server}");
    assert_eq!(web(), running);
    let labels = machine.sh(&format!("{kubectl} get nodes --show-labels"));
    assert!(labels.contains("tier=edge"), "{labels}");

    // The server dies: its supervisor starts it again.
    let pid = server.split_whitespace().next().unwrap();
    machine.sh(&format!("kill -9 {pid}"));
    eventually("the supervisor starts the server again", 30, || {
        let output = machine.run(&["bash", "-c", &format!("{kubectl} get --raw /readyz")]);
        let other = machine.run(&["pgrep", "-f", "^/usr/local/bin/coracle server"]);
        let other = String::from_utf8_lossy(&other.stdout).trim().to_string();
        match output.status.success() && other != pid {
            true => Ok(()),
            false => Err(told(&output)),
        }
    });
    assert_eq!(web(), running);

    machine.sh("coracle reset && rm /usr/local/bin/coracle");
    machine.assert_unchanged(&before);
}

const INSTALL_WITH: &str = "cd /mnt/checkout && INSTALL_CORACLE_EXEC='--node-label tier=edge' \
     INSTALL_CORACLE_BINARY=/mnt/coracle/coracle";

/// Whoever cannot be served is told before anything is changed.
#[test]
fn unfit_hosts_are_refused_untouched() {
    let machine = machine();
    let before = machine.traces();
    machine
        .write("/tmp/bin/uname", b"#!/bin/sh\ncase $1 in -m) echo armv6l;; *) echo Linux;; esac\n");
    machine.sh("chmod +x /tmp/bin/uname");
    for (script, word) in [
        (format!("PATH=/tmp/bin:$PATH; {INSTALL}"), "armv6l"),
        (format!("setpriv --reuid 1000 --clear-groups bash -c '{INSTALL}'"), "root"),
        ("cd /mnt/checkout && INSTALL_CORACLE_BINARY=/nowhere ./install.sh".into(), "/nowhere"),
        (
            "cd /mnt/checkout && INSTALL_CORACLE_BINARY=/etc/passwd ./install.sh".into(),
            "/etc/passwd",
        ),
    ] {
        let output = machine.run(&["bash", "-c", &script]);
        assert!(!output.status.success() && told(&output).contains(word), "{}", told(&output));
    }
    machine.assert_unchanged(&before);
}

/// A server that cannot start is an installation that failed, with the server's words.
#[test]
fn a_server_that_does_not_start_fails_the_installation() {
    let cluster = Cluster::with(machine(), &["--disable-agent", "--run-dir=/run/other"]);
    let output = cluster.machine.run(&["bash", "-c", INSTALL]);
    assert!(!output.status.success(), "{}", told(&output));
    assert!(told(&output).contains("listen on 0.0.0.0:6443"), "{}", told(&output));
}

/// A host without Rust: rustup brings it, and what it brings builds the executable. The
/// network's part is played by a `curl` that hands out an installer of our own.
#[test]
fn rust_is_installed_where_it_is_missing() {
    let machine = machine();
    let before = machine.traces();
    machine.write("/tmp/bin/curl", RUSTUP);
    machine.sh("chmod +x /tmp/bin/curl");
    let said = machine.sh(
        "export HOME=/tmp/home PATH=/tmp/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin && unset CARGO_HOME CARGO_TARGET_DIR \
         && ! command -v cargo && cd /mnt/checkout && ./install.sh",
    );
    for words in ["installing Rust (rustup)", "built with --release --locked", "the node is Ready"]
    {
        assert!(said.contains(words), "{said}");
    }
    machine.sh("coracle reset && rm -r /usr/local/bin/coracle /mnt/checkout/target /tmp/home");
    machine.assert_unchanged(&before);
}

const RUSTUP: &[u8] = br#"#!/bin/sh
case "$*" in *--proto*=https*https://sh.rustup.rs) ;; *) exit 7 ;; esac
cat << 'INSTALLER'
case "$*" in *-y*) ;; *) exit 1 ;; esac
mkdir -p "$HOME/.cargo/bin"
cat > "$HOME/.cargo/bin/cargo" << 'CARGO'
#!/bin/sh
case $1 in
    --version) echo "cargo 1.99.0 (of a test)" ;;
    build)
        shift
        echo "built with $*"
        mkdir -p target/release && cp /mnt/coracle/coracle target/release/coracle
        ;;
esac
CARGO
chmod +x "$HOME/.cargo/bin/cargo"
INSTALLER
"#;
