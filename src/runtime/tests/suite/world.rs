//! What the tests of this room share: an image of busybox, and a runtime in a directory
//! of its own whose traces are looked for at the end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::cri::*;
use runtime::images::Registries;
use runtime::oci::handlers::Program;
use runtime::{Runtime, RuntimeConfig};
use sha2::{Digest, Sha256};

pub const IMAGE: &str = "docker.io/library/busybox:test";

/// Leaves pods with loopback only.
pub struct NoNetwork;

#[async_trait::async_trait]
impl PodNetwork for NoNetwork {
    async fn attach(
        &self,
        _: &str,
        _: &PodSandboxMetadata,
        _: &BTreeMap<String, String>,
        netns: &Path,
    ) -> Result<Vec<IpAddr>> {
        assert!(netns.exists());
        Ok(vec![IpAddr::from([10, 99, 0, 2])])
    }

    async fn forward(&self, _: &str, _: &[IpAddr], _: &[HostPort]) {}

    async fn detach(&self, _: &str, _: &Path) -> Result<()> {
        Ok(())
    }

    async fn status(&self) -> Option<String> {
        None
    }
}

/// A directory for one runtime; a test that fails leaves nothing behind either.
pub struct Home(tempfile::TempDir);

impl Home {
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let name = self.path().file_name().unwrap().to_string_lossy().replace('.', "");
        let Ok(hierarchy) = sys::cgroup::Hierarchy::detect() else { return };
        for kind in ["pods", "shims"] {
            let group = hierarchy.group(&format!("coracle-test-{kind}{name}"));
            let _ = group.kill_all(Duration::from_secs(5));
            let _ = group.delete(Duration::from_secs(5));
        }
        for mount in sys::mount::mounts_below(self.path()).unwrap_or_default() {
            let _ = sys::mount::unmount_detach(&mount);
        }
    }
}

pub fn home() -> Home {
    Home(tempfile::Builder::new().prefix("crt").tempdir_in("/tmp").unwrap())
}

pub fn pods_cgroup(dir: &Path) -> String {
    format!("coracle-test-pods{}", dir.file_name().unwrap().to_string_lossy().replace('.', ""))
}

pub struct World {
    pub dir: Home,
    pub runtime: Arc<Runtime>,
    pub cgroup: String,
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn config(dir: &Path, registries: Registries) -> RuntimeConfig {
    let name = dir.file_name().unwrap().to_string_lossy().replace('.', "");
    RuntimeConfig {
        state_dir: dir.join("state"),
        data_dir: dir.join("images"),
        run_dir: dir.join("run"),
        // A shim dies at the point that is named in this file.
        shim_command: vec![
            OsString::from("/usr/bin/env"),
            OsString::from(format!("CORACLE_FAILPOINT_FILE={}", dir.join("failpoint").display())),
            OsString::from(env!("CARGO_BIN_EXE_runtime-test-shim")),
        ],
        network: Arc::new(NoNetwork),
        registries,
        programs: runtime::oci::handlers::find(vec![
            crun(dir),
            Program::parse("absent=/no/such/runtime").unwrap(),
        ]),
        cdi_dirs: vec![dir.join("cdi")],
        shim_cgroup: format!("coracle-test-shims{name}"),
    }
}

/// It refuses hosts that have controllers in the unified tree of hybrid mode, so it does not
/// see that one. What it mounts stays its own.
fn crun(dir: &Path) -> Program {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("crun");
    let script = "#!/bin/sh\nexec unshare --mount --propagation slave sh -c \
                  'umount /sys/fs/cgroup/unified 2>/dev/null; exec /usr/bin/crun \"$@\"' crun \"$@\"\n";
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    Program::parse(&format!("crun={}", path.display())).unwrap()
}

impl World {
    pub async fn new() -> Self {
        Self::at(home()).await
    }

    pub async fn at(dir: Home) -> Self {
        let runtime = Runtime::open(config(dir.path(), Registries::default())).await.unwrap();
        let archive = dir.path().join("busybox.tar");
        std::fs::write(&archive, busybox_archive()).unwrap();
        runtime.images().import_file(&archive).await.unwrap();
        let cgroup = pods_cgroup(dir.path());
        Self { dir, runtime, cgroup }
    }

    pub fn sandbox_config(&self) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: "pod".into(),
                namespace: "default".into(),
                uid: "u1".into(),
                attempt: 0,
            },
            hostname: "pod".into(),
            log_directory: self.dir.path().join("logs"),
            dns: DnsConfig { servers: vec!["10.43.0.10".into()], ..DnsConfig::default() },
            pid: NamespaceMode::Container,
            cgroup_parent: format!("{}/podu1", self.cgroup),
            ..PodSandboxConfig::default()
        }
    }

    pub async fn sandbox(&self) -> String {
        self.runtime.run_pod_sandbox(self.sandbox_config()).await.unwrap()
    }

    pub fn container(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: ContainerMetadata { name: name.into(), attempt: 0 },
            image: IMAGE.into(),
            command: vec!["sh".into(), "-c".into(), script.into()],
            log_path: PathBuf::from(format!("{name}/0.log")),
            pid: NamespaceMode::Container,
            ..ContainerConfig::default()
        }
    }

    pub async fn start(&self, sandbox: &str, config: ContainerConfig) -> String {
        let id =
            self.runtime.create_container(sandbox, config, &self.sandbox_config()).await.unwrap();
        self.runtime.start_container(&id).await.unwrap();
        id
    }

    pub async fn ended(&self, id: &str) -> Container {
        let mut events = self.runtime.events();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.runtime.container_status(id).await.unwrap();
            if status.state == ContainerState::Exited {
                return status;
            }
            assert!(Instant::now() < deadline, "container does not end: {status:?}");
            let _ = tokio::time::timeout(Duration::from_secs(1), events.recv()).await;
        }
    }

    /// Lines of a container's log as (stream, text).
    pub fn log(&self, name: &str) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.dir.path().join("logs").join(name).join("0.log"))
            .unwrap_or_default();
        text.lines()
            .map(|line| {
                let mut parts = line.splitn(4, ' ');
                assert!(parts.next().unwrap().ends_with('Z'), "{line}");
                let stream = parts.next().unwrap().to_string();
                parts.next().unwrap();
                (stream, parts.next().unwrap_or("").to_string())
            })
            .collect()
    }

    /// Runs a script to its end and gives its log as one text.
    pub async fn output(&self, sandbox: &str, config: ContainerConfig) -> (Container, String) {
        let name = config.metadata.name.clone();
        let id = self.start(sandbox, config).await;
        let ended = self.ended(&id).await;
        let text: Vec<String> = self.log(&name).into_iter().map(|(_, line)| line).collect();
        self.runtime.remove_container(&id).await.unwrap();
        (ended, text.join("\n"))
    }

    pub async fn finish(self) {
        for sandbox in self.runtime.list_pod_sandboxes().await.unwrap() {
            self.runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
        }
        self.assert_clean();
    }

    pub fn assert_clean(&self) {
        let path = self.dir.path();
        assert_eq!(sys::mount::mounts_below(path).unwrap(), Vec::<PathBuf>::new());
        for below in ["run/ns", "run/shm", "run/shim", "state/sandboxes", "state/containers"] {
            let left: Vec<_> = std::fs::read_dir(path.join(below)).unwrap().collect();
            assert!(left.is_empty(), "{below}: {left:?}");
        }
        let hierarchy = sys::cgroup::Hierarchy::detect().unwrap();
        let pods = hierarchy.group(&self.cgroup);
        assert_eq!(pods.processes(), Vec::<i32>::new());
        pods.delete(Duration::from_secs(5)).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().replace('.', "");
        let shims = hierarchy.group(&format!("coracle-test-shims{name}"));
        shims.delete(Duration::from_secs(5)).expect("no shim is left");
    }
}

pub fn tar_of(entries: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, mode, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        if let Some(goal) = name.strip_prefix("link:") {
            let (name, goal) = goal.split_once("->").unwrap();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, name, goal).unwrap();
        } else if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            builder.append_data(&mut header, name, std::io::empty()).unwrap();
        } else {
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

pub fn busybox_layer() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut entries: Vec<(&str, u32, &[u8])> = vec![
        ("bin/", 0o755, b""),
        ("bin/busybox", 0o755, &busybox),
        ("etc/", 0o755, b""),
        (
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nweb:x:1001:1002::/home/web:/bin/sh\n",
        ),
        ("etc/group", 0o644, b"root:x:0:\nweb:x:1002:\nextra:x:1500:web\n"),
        ("etc/not-a-program", 0o644, b"data"),
        ("tmp/", 0o1777, b""),
        ("root/", 0o700, b""),
    ];
    let applets = [
        "sh", "cat", "ls", "echo", "id", "sleep", "mount", "touch", "grep", "kill", "ps", "true",
        "false", "hostname", "dd", "tail", "env", "pwd", "mkdir", "nc", "stty", "head", "unshare",
        "chown", "tty", "ulimit", "readlink", "wc", "mknod", "dmesg",
    ];
    let links: Vec<String> = applets.iter().map(|a| format!("link:bin/{a}->busybox")).collect();
    entries.extend(links.iter().map(|l| (l.as_str(), 0o777, b"".as_slice())));
    tar_of(&entries)
}

/// Configuration, manifest and index of an image with these layers, as an OCI layout.
pub fn oci_layout(layers: &[Vec<u8>], name: &str) -> BTreeMap<String, Vec<u8>> {
    oci_layout_of(layers, name, &["sh"])
}

pub fn oci_layout_of(
    layers: &[Vec<u8>],
    name: &str,
    command: &[&str],
) -> BTreeMap<String, Vec<u8>> {
    let config = serde_json::json!({"Env": ["FROM_IMAGE=yes"], "Cmd": command, "User": ""});
    oci_layout_with(layers, name, &config)
}

/// `config` is how containers of the image run.
pub fn oci_layout_with(
    layers: &[Vec<u8>],
    name: &str,
    config: &serde_json::Value,
) -> BTreeMap<String, Vec<u8>> {
    let digest = |bytes: &[u8]| format!("sha256:{}", hex(&Sha256::digest(bytes)));
    let diff_ids: Vec<String> = layers.iter().map(|l| digest(l)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(&config), "size": config.len()},
        "layers": layers.iter().map(|l| serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest(l), "size": l.len()})).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&manifest), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": name}}],
    });
    let mut files = BTreeMap::new();
    files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    files.insert("index.json".into(), index.to_string().into_bytes());
    for blob in layers.iter().chain([&config, &manifest]) {
        let name = format!("blobs/sha256/{}", hex(&Sha256::digest(blob)));
        files.insert(name, blob.clone());
    }
    files
}

pub fn archive(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let entries: Vec<(&str, u32, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), 0o644, bytes.as_slice())).collect();
    tar_of(&entries)
}

pub fn busybox_archive() -> Vec<u8> {
    archive(&oci_layout(&[busybox_layer()], "busybox:test"))
}
