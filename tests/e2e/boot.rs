//! Computers that boot: a Debian in QEMU with a kernel, an init system and cgroup v2 of
//! its own, which the namespaces of `machine` cannot show.
//!
//! What happens inside is `boot.sh`; it runs at every boot and says on a line of its own
//! what it finds.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::kubectls;
use crate::images;

const PACKAGES: &str =
    "linux-image-cloud-ARCH,systemd-sysv,openrc,udev,iproute2,procps,kmod,nftables";
/// Where `boot.sh` speaks: a line that no login wants.
const LINE: &str = "hvc0";
/// Emulated, everything takes ten times as long.
const RUN_TIMEOUT: Duration = Duration::from_secs(220);
const MACHINE: [&str; 8] = ["-cpu", "max", "-m", "2048", "-smp", "2", "-display", "none"];

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect(program);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Debian's name of this architecture, QEMU's program for it, its
/// plainest machine, and that one's console.
fn architecture() -> (&'static str, &'static str, &'static str, &'static str) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", "qemu-system-x86_64", "q35", "ttyS0"),
        "aarch64" => ("arm64", "qemu-system-aarch64", "virt", "ttyAMA0"),
        other => panic!("no boot test for {other}"),
    }
}

/// A Debian of this host's release as a tar archive, kept between runs where there is a
/// cache.
fn debian() -> PathBuf {
    let packages = PACKAGES.replace("ARCH", architecture().0);
    let cache = std::env::var("CORACLE_CACHE").unwrap_or_else(|_| "/var/cache/coracle".into());
    let name = format!("debian-{}.tar", &images::digest(packages.as_bytes())[7..19]);
    let archive = Path::new(&cache).join(name);
    if archive.exists() {
        return archive;
    }
    fs::create_dir_all(&cache).unwrap();
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let release = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap();
    let half = tempfile::Builder::new().suffix(".tar").tempfile_in(&cache).unwrap();
    run(
        "mmdebstrap",
        &[
            "--quiet",
            "--variant=minbase",
            &format!("--include={packages}"),
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            release,
            half.path().to_str().unwrap(),
        ],
    );
    half.persist(&archive).unwrap();
    archive
}

struct Computer {
    dir: tempfile::TempDir,
    init: &'static str,
}

impl Computer {
    fn new(init: &'static str) -> Self {
        let dir = tempfile::Builder::new().prefix("ce2e-boot").tempdir_in("/var/tmp").unwrap();
        let computer = Self { dir, init };
        let root = computer.path("root");
        fs::create_dir(&root).unwrap();
        let (archive, root_arg) = (debian(), root.to_str().unwrap());
        run("tar", &["-C", root_arg, "--exclude=./dev/*", "-xf", archive.to_str().unwrap()]);
        let put = |from: &str, to: &str| {
            let to = root.join(to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            run("cp", &["-rL", from, to.to_str().unwrap()]);
        };
        let here = env!("CARGO_MANIFEST_DIR");
        for part in ["install.sh", "packaging", "Cargo.toml"] {
            put(&format!("{here}/{part}"), &format!("checkout/{part}"));
        }
        put(env!("CARGO_BIN_EXE_coracle"), "root/coracle");
        // Without debug information it loads in a tenth of the time.
        run("strip", &[root.join("root/coracle").to_str().unwrap()]);
        put(&kubectls()[0], "usr/local/bin/kubectl");
        let write = |path: &str, text: &[u8]| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("root/web.tar", &images::web("1").archive());
        write("root/boot.sh", include_bytes!("boot.sh"));
        write("etc/hostname", b"board\n");
        write("etc/rc.conf", b"rc_cgroup_mode=\"unified\"\n");
        let _ = fs::remove_file(root.join("etc/resolv.conf"));
        write("etc/resolv.conf", b"nameserver 10.0.2.3\n");
        // systemd's way of starting it, and OpenRC's.
        write(
            "etc/systemd/system/boot-test.service",
            format!(
                "[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nTimeoutStartSec=0\n\
                 ExecStart=/bin/bash /root/boot.sh systemd\n\
                 StandardOutput=tty\nStandardError=tty\nTTYPath=/dev/{LINE}\n"
            )
            .as_bytes(),
        );
        let wants = root.join("etc/systemd/system/graphical.target.wants");
        fs::create_dir_all(&wants).unwrap();
        symlink("/etc/systemd/system/boot-test.service", wants.join("boot-test.service")).unwrap();
        write(
            "etc/init.d/boot-test",
            b"#!/sbin/openrc-run\ndepend() {\n after *\n}\nstart() {\n\
              setsid bash /root/boot.sh openrc < /dev/null > /dev/console 2>&1 &\n}\n",
        );
        run("chmod", &["0755", root.join("etc/init.d/boot-test").to_str().unwrap()]);
        let runlevel = root.join("etc/runlevels/default");
        fs::create_dir_all(&runlevel).unwrap();
        symlink("/etc/init.d/boot-test", runlevel.join("boot-test")).unwrap();
        let disk = computer.path("disk");
        fs::File::create(&disk).unwrap().set_len(3 << 30).unwrap();
        run("mke2fs", &["-q", "-t", "ext4", "-d", root_arg, disk.to_str().unwrap()]);
        computer
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The one file in the root's /boot whose name begins so.
    fn boot_file(&self, prefix: &str) -> PathBuf {
        let entries = fs::read_dir(self.path("root/boot")).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        paths
            .find(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix))
            .expect(prefix)
    }

    /// From power on to power off; what `boot.sh` said.
    fn run(&self) -> String {
        let (_, program, machine, console_line) = architecture();
        let (console, said) = (self.path("console"), self.path("said"));
        let mut computer = Command::new(program)
            .args(["-M", machine])
            .args(MACHINE)
            .args(["-monitor", "none", "-no-reboot"])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-device", "virtio-serial-pci", "-device", "virtconsole,chardev=said"])
            .args(["-chardev", &format!("file,id=said,path={}", said.display())])
            .arg("-kernel")
            .arg(self.boot_file("vmlinuz"))
            .arg("-initrd")
            .arg(self.boot_file("initrd.img"))
            .args([
                "-append",
                &format!("root=/dev/vda rw console={console_line} init={}", self.init),
            ])
            .args([
                "-drive",
                &format!("file={},format=raw,if=virtio,cache=unsafe", self.path("disk").display()),
            ])
            // A network of its own that ends in this process.
            .args(["-nic", "user,restrict=on,model=virtio-net-pci"])
            .stdin(Stdio::null())
            .spawn()
            .expect(program);
        let deadline = Instant::now() + RUN_TIMEOUT;
        let ended = loop {
            if computer.try_wait().unwrap().is_some() {
                break true;
            }
            if Instant::now() > deadline {
                computer.kill().unwrap();
                computer.wait().unwrap();
                break false;
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        // Where no udev readies the line in time, all is said on the console.
        let said = String::from_utf8_lossy(&fs::read(&said).unwrap()).into_owned();
        let console = String::from_utf8_lossy(&fs::read(&console).unwrap()).into_owned();
        let end: Vec<&str> = console.lines().rev().take(120).collect();
        assert!(
            ended && format!("{said}{console}").contains("boot.sh: all is well"),
            "{said}\n--- end of the console, last line first\n{}",
            end.join("\n")
        );
        said + &console
    }
}

fn install_use_reboot_reset(init: &'static str) {
    let computer = Computer::new(init);
    computer.run();
    let said = computer.run();
    assert!(said.contains("boot.sh: after the reboot"), "{said}");
}

#[test]
fn with_systemd_and_cgroup_v2() {
    install_use_reboot_reset("/lib/systemd/systemd");
}

#[test]
fn with_openrc() {
    install_use_reboot_reset("/sbin/openrc-init");
}
