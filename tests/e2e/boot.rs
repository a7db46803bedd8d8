//! Computers that boot: a Debian in QEMU with a kernel, an init system and cgroup v2 of
//! its own, which the namespaces of `machine` cannot show.
//!
//! What happens inside is a script of `boot/`; it runs at every boot and says on a line of
//! its own what it finds.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::kubectls;
use crate::images;

const PACKAGES: &str = "systemd-sysv,openrc,udev,iproute2,procps,kmod,nftables";
const KERNEL: &str = "linux-image-cloud-";
/// Where the script speaks: a line that no login wants.
const LINE: &str = "hvc0";
/// Emulated, everything takes ten times as long.
const RUN_TIMEOUT: Duration = Duration::from_secs(400);

/// What is in a computer, and what happens there.
struct Model {
    init: &'static str,
    script: &'static [u8],
    /// Packages beyond those of every computer.
    packages: &'static str,
    /// Bookworm's own kernel is older than some of what is shown (tmpfs maps ids since 6.3).
    new_kernel: bool,
    kernel_arguments: &'static str,
    machine: &'static [&'static str],
}

const PLAIN: Model = Model {
    init: "/lib/systemd/systemd",
    script: include_bytes!("boot/install.sh"),
    packages: "",
    new_kernel: false,
    kernel_arguments: "",
    machine: &["-m", "2048", "-smp", "2"],
};

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect(program);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A kind of computer that QEMU knows.
struct Architecture {
    /// Debian's name of it.
    debian: &'static str,
    program: &'static str,
    /// Its plainest machine, that one's CPU and console.
    machine: &'static str,
    cpu: &'static str,
    console: &'static str,
}

fn architecture() -> Architecture {
    match std::env::consts::ARCH {
        "x86_64" => Architecture {
            debian: "amd64",
            program: "qemu-system-x86_64",
            machine: "q35",
            // QEMU 7.2 loses flags in cmpxchg16b, by which newer kernels allocate.
            cpu: "max,cx16=off,la57=off",
            console: "ttyS0",
        },
        "aarch64" => Architecture {
            debian: "arm64",
            program: "qemu-system-aarch64",
            machine: "virt",
            cpu: "max",
            console: "ttyAMA0",
        },
        other => panic!("no boot test for {other}"),
    }
}

/// A Debian of this host's release as a tar archive, kept between runs where there is a
/// cache.
fn debian(model: &Model) -> PathBuf {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let release = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap();
    let mut packages = format!("{PACKAGES},{KERNEL}{}", architecture().debian);
    let mut sources = vec![release.to_owned()];
    if model.new_kernel && release == "bookworm" {
        sources.push(format!("{release}-backports"));
        packages.push_str(&format!("/{release}-backports"));
    }
    for package in model.packages.split_whitespace() {
        packages.push_str(&format!(",{package}"));
    }
    let cache = std::env::var("CORACLE_CACHE").unwrap_or_else(|_| "/var/cache/coracle".into());
    let name = format!("debian-{}.tar", &images::digest(packages.as_bytes())[7..19]);
    let archive = Path::new(&cache).join(name);
    if archive.exists() {
        return archive;
    }
    fs::create_dir_all(&cache).unwrap();
    let half = tempfile::Builder::new().suffix(".tar").tempfile_in(&cache).unwrap();
    let mut args = vec![
        "--quiet".to_owned(),
        "--variant=minbase".to_owned(),
        format!("--include={packages}"),
        "--dpkgopt=path-exclude=/usr/share/doc/*".to_owned(),
        "--dpkgopt=path-exclude=/usr/share/man/*".to_owned(),
        "--dpkgopt=path-exclude=/usr/share/locale/*".to_owned(),
        release.to_owned(),
        half.path().display().to_string(),
    ];
    if sources.len() > 1 {
        let line = |suite| format!("deb http://deb.debian.org/debian {suite} main");
        args.extend(sources.into_iter().map(line));
    }
    run("mmdebstrap", &args.iter().map(String::as_str).collect::<Vec<_>>());
    half.persist(&archive).unwrap();
    archive
}

struct Computer {
    dir: tempfile::TempDir,
    model: Model,
}

impl Computer {
    fn new(model: Model) -> Self {
        let dir = tempfile::Builder::new().prefix("ce2e-boot").tempdir_in("/var/tmp").unwrap();
        let computer = Self { dir, model };
        let root = computer.path("root");
        fs::create_dir(&root).unwrap();
        let (archive, root_arg) = (debian(&computer.model), root.to_str().unwrap());
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
        // Of the room `kubelet`; it is built beside this one with the whole workspace.
        let driver = Path::new(env!("CARGO_BIN_EXE_coracle")).with_file_name("kubelet-test-csi");
        put(driver.to_str().unwrap(), "root/csi");
        run("strip", &[root.join("root/csi").to_str().unwrap()]);
        let write = |path: &str, text: &[u8]| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("root/web.tar", &images::web("1").archive());
        write("root/common.sh", include_bytes!("boot/common.sh"));
        write("root/boot.sh", computer.model.script);
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
        // systemd offers a login on it, which would take it from the script.
        let login = format!("etc/systemd/system/serial-getty@{LINE}.service");
        symlink("/dev/null", root.join(login)).unwrap();
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
        let Architecture { program, machine, cpu, console: console_line, .. } = architecture();
        let (console, said) = (self.path("console"), self.path("said"));
        let mut computer = Command::new(program)
            .args(["-M", machine, "-cpu", cpu, "-display", "none"])
            .args(self.model.machine)
            .args(["-monitor", "none", "-no-reboot"])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-device", "virtio-serial-pci", "-device", "virtconsole,chardev=said"])
            .args(["-chardev", &format!("file,id=said,path={}", said.display())])
            .arg("-kernel")
            .arg(self.boot_file("vmlinuz"))
            .arg("-initrd")
            .arg(self.boot_file("initrd.img"))
            .arg("-append")
            .arg(format!(
                "root=/dev/vda rw console={console_line} init={} {}",
                self.model.init, self.model.kernel_arguments
            ))
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
    let computer = Computer::new(Model { init, ..PLAIN });
    computer.run();
    let said = computer.run();
    assert!(said.contains("boot.sh: after the reboot"), "{said}");
}

#[test]
fn with_systemd_and_cgroup_v2() {
    install_use_reboot_reset(PLAIN.init);
}

#[test]
fn with_openrc() {
    install_use_reboot_reset("/sbin/openrc-init");
}

/// Two nodes of memory with two CPUs each, huge pages, swap, AppArmor.
#[test]
fn with_all_that_a_kernel_has() {
    let computer = Computer::new(Model {
        script: include_bytes!("boot/kernel.sh"),
        packages: "apparmor",
        new_kernel: true,
        kernel_arguments: "hugepages=16",
        machine: &[
            "-m",
            "3072",
            "-smp",
            "4",
            "-object",
            "memory-backend-ram,id=near,size=1536M",
            "-object",
            "memory-backend-ram,id=far,size=1536M",
            "-numa",
            "node,nodeid=0,cpus=0-1,memdev=near",
            "-numa",
            "node,nodeid=1,cpus=2-3,memdev=far",
        ],
        ..PLAIN
    });
    computer.run();
}

/// Pods that take too much; a host of disks and of files.
#[test]
fn with_pods_that_take_too_much_and_disks_of_others() {
    let computer = Computer::new(Model {
        script: include_bytes!("boot/excess.sh"),
        packages: "e2fsprogs tgt open-iscsi nfs-kernel-server",
        new_kernel: true,
        ..PLAIN
    });
    computer.run();
}

/// Volumes on a file system that counts projects, and on one that does not.
#[test]
fn with_volumes_that_have_a_size() {
    let computer = Computer::new(Model {
        script: include_bytes!("boot/quota.sh"),
        packages: "e2fsprogs quota",
        ..PLAIN
    });
    computer.run();
}

/// A small policy that is enforced: containers may use what has their label.
#[test]
fn with_selinux() {
    let computer = Computer::new(Model {
        script: include_bytes!("boot/selinux.sh"),
        packages: "secilc e2fsprogs tgt open-iscsi",
        new_kernel: true,
        kernel_arguments: "security=selinux selinux=1",
        ..PLAIN
    });
    computer.run();
}
