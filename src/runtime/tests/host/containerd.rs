//! Debian's containerd and runc in a folder of their own, for the tests of several rooms.
//!
//! What it started has ended when it is dropped.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The image of sandboxes, which the caller gives as an archive.
pub const PAUSE: &str = "docker.io/library/pause:test";

/// What answers the runtime in place of CNI plugins: a loopback, and one address.
const PLUGIN: &str = r#"#!/bin/sh
[ "$CNI_COMMAND" = VERSION ] && { echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}'; exit; }
[ "$CNI_COMMAND" = ADD ] || exit 0
/bin/busybox nsenter --net="$CNI_NETNS" /bin/busybox ip link set lo up
echo '{"cniVersion":"0.4.0","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}],'
echo '"ips":[{"version":"4","address":"10.99.0.2/24","interface":0}]}'
"#;

pub struct Containerd {
    process: Child,
    dir: PathBuf,
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Containerd {
    /// `images` are archives; blocks until all is there.
    pub fn start(at: &Path, images: &[Vec<u8>]) -> Self {
        let write = |name: &str, text: &str, mode: u32| {
            let path = at.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        };
        for name in ["test", "loopback"] {
            write(&format!("cni/bin/{name}"), PLUGIN, 0o755);
        }
        let conf = r#"{"cniVersion":"0.4.0","name":"test","plugins":[{"type":"test"}]}"#;
        write("cni/conf/10-test.conflist", conf, 0o644);
        let root = at.display();
        let config = format!(
            r#"version = 2
root = "{root}/root"
state = "{root}/state"
[grpc]
  address = "{root}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{root}/cni/bin"
    conf_dir = "{root}/cni/conf"
"#
        );
        write("config.toml", &config, 0o644);
        let log = std::fs::File::create(at.join("containerd.log")).unwrap();
        let process = Command::new("/usr/bin/containerd")
            .args(["--config"])
            .arg(at.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let containerd = Self { process, dir: at.to_path_buf() };
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::os::unix::net::UnixStream::connect(containerd.socket()).is_err() {
            assert!(Instant::now() < deadline, "{}", containerd.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        for image in images {
            let file = at.join("image.tar");
            std::fs::write(&file, image).unwrap();
            let mut ctr = Command::new("/usr/bin/ctr");
            ctr.arg("-a").arg(containerd.socket()).args(["-n", "k8s.io"]);
            run(ctr.args(["images", "import", "--snapshotter", "native"]).arg(&file));
        }
        containerd
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("containerd.log")).unwrap_or_default()
    }

    /// Processes whose command line names our folder.
    fn others(&self) -> Vec<rustix::process::Pid> {
        let wanted = self.dir.display().to_string();
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let is_ours = String::from_utf8_lossy(&line).contains(&wanted);
            let is_other = pid != self.process.id() as i32 && pid != std::process::id() as i32;
            (is_ours && is_other).then(|| rustix::process::Pid::from_raw(pid)).flatten()
        })
        .collect()
    }

    /// A shim takes a moment to end after its sandbox.
    pub fn wait_for_shims(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.others().is_empty() {
            assert!(Instant::now() < deadline, "shims are left");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
        if let Some(pid) = rustix::process::Pid::from_raw(self.process.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
        for pid in self.others() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
