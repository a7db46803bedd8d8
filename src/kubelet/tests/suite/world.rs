//! A kubelet with the built-in runtime in a directory of its own, against an API server
//! in memory. What it made is gone when the test has ended.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::drain::{self, Trigger};
use client::Client;
use kubelet::{Kubelet, KubeletConfig};
use runtime::cri::{
    HostPort, ImageService, PodNetwork, PodSandboxMetadata, Result, RuntimeService,
};
use runtime::images::Registries;
use runtime::oci::handlers::Program;
use runtime::remote::Remote;
use runtime::{Runtime, RuntimeConfig};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::apiserver::ApiServer;
use crate::host::{Containerd, PAUSE};

pub const NODE: &str = "n1";

/// Leaves pods with loopback only.
#[derive(Default)]
pub struct NoNetwork {
    trouble: std::sync::Mutex<Option<String>>,
}

impl NoNetwork {
    /// Why pods get no network from now on.
    pub fn be_troubled(&self, why: Option<&str>) {
        *self.trouble.lock().unwrap() = why.map(str::to_owned);
    }
}

#[async_trait::async_trait]
impl PodNetwork for NoNetwork {
    async fn attach(
        &self,
        _: &str,
        _: &PodSandboxMetadata,
        _: &BTreeMap<String, String>,
        _: &Path,
    ) -> Result<Vec<IpAddr>> {
        Ok(vec![IpAddr::from([10, 99, 0, 2])])
    }

    async fn forward(&self, _: &str, _: &[IpAddr], _: &[HostPort]) {}

    async fn detach(&self, _: &str, _: &Path) -> Result<()> {
        Ok(())
    }

    async fn status(&self) -> Option<String> {
        self.trouble.lock().unwrap().clone()
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub api: Arc<ApiServer>,
    pub runtime: Arc<dyn RuntimeService>,
    pub images: Arc<dyn ImageService>,
    /// That of the built-in runtime.
    pub network: Arc<NoNetwork>,
    /// None with another runtime.
    built_in: Option<Arc<Runtime>>,
    containerd: Option<Containerd>,
    pub listen: SocketAddr,
    settings: Box<dyn Fn(&mut KubeletConfig) + Send + Sync>,
    kubelet: Option<(Trigger, JoinHandle<()>)>,
    _runtime: Trigger,
}

/// The cgroup of this world's pods or shims.
fn group(kind: &str, dir: &Path) -> String {
    let name = dir.file_name().unwrap().to_string_lossy().replace('.', "");
    format!("coracle-test-kubelet-{kind}{name}")
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With settings of its own on top of the test's.
    pub async fn with(settings: impl Fn(&mut KubeletConfig) + Send + Sync + 'static) -> Self {
        let dir = tempfile::Builder::new().prefix("ckt").tempdir_in("/tmp").unwrap();
        let at = dir.path();
        // Debian's runc, which does not say what it can do.
        let bare = at.join("bare");
        let script = "#!/bin/sh\n[ \"$1\" != features ] || exit 1\nexec /usr/sbin/runc \"$@\"\n";
        std::fs::write(&bare, script).unwrap();
        std::fs::set_permissions(&bare, std::fs::Permissions::from_mode(0o755)).unwrap();
        let bare = Program::parse(&format!("bare={}", bare.display())).unwrap();
        let network = Arc::new(NoNetwork::default());
        let runtime = Runtime::open(RuntimeConfig {
            state_dir: at.join("state"),
            data_dir: at.join("images"),
            run_dir: at.join("run"),
            // A shim dies at the point that is named in this file.
            shim_command: vec![
                OsString::from("/usr/bin/env"),
                OsString::from(format!(
                    "CORACLE_FAILPOINT_FILE={}",
                    at.join("failpoint").display()
                )),
                OsString::from(env!("CARGO_BIN_EXE_kubelet-test-shim")),
            ],
            network: network.clone(),
            registries: Registries::default(),
            programs: runtime::oci::handlers::find(vec![bare]),
            cdi_dirs: vec![at.join("cdi")],
            shim_cgroup: group("shims", at),
        })
        .await
        .unwrap();
        let archive = at.join("busybox.tar");
        std::fs::write(&archive, archive_of("busybox:test", &["sh"])).unwrap();
        runtime.images().import_file(&archive).await.unwrap();
        let (trigger, _) = drain::channel();
        let mut world = Self::over(dir, runtime.clone(), runtime.clone(), None, trigger, settings);
        (world.built_in, world.network) = (Some(runtime), network);
        world
    }

    /// With Debian's containerd in the same directory.
    pub async fn with_containerd() -> Self {
        let dir = tempfile::Builder::new().prefix("ckt").tempdir_in("/tmp").unwrap();
        let at = dir.path().to_path_buf();
        let images =
            [archive_of("busybox:test", &["sh"]), archive_of(PAUSE, &["/bin/sleep", "100000"])];
        let starting = tokio::task::spawn_blocking(move || Containerd::start(&at, &images));
        let containerd = starting.await.unwrap();
        let (trigger, drain) = drain::channel();
        let remote = Remote::connect(&containerd.socket(), None, drain).await.unwrap();
        Self::over(dir, remote.clone(), remote, Some(containerd), trigger, |_| {})
    }

    fn over(
        dir: tempfile::TempDir,
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
        containerd: Option<Containerd>,
        trigger: Trigger,
        settings: impl Fn(&mut KubeletConfig) + Send + Sync + 'static,
    ) -> Self {
        let at = dir.path();
        std::fs::create_dir(at.join("system")).unwrap();
        std::fs::write(at.join("system/system.log"), "from the system\n").unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = listener.local_addr().unwrap();
        drop(listener);
        let mut world = Self {
            api: ApiServer::new(),
            runtime,
            images,
            network: Arc::default(),
            built_in: None,
            containerd,
            listen,
            settings: Box::new(settings),
            kubelet: None,
            dir,
            _runtime: trigger,
        };
        world.start();
        world
    }

    pub fn start(&mut self) {
        let authority = pki::Authority::create("test").unwrap();
        let leaf = pki::Leaf {
            common_name: "node".into(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            ..pki::Leaf::default()
        };
        let leaf = authority.issue(&leaf).unwrap();
        let mut tls = pki::tls::server_config(
            leaf.cert_pem.as_bytes(),
            leaf.key_pem.as_bytes(),
            Some(authority.cert_pem.as_bytes()),
        )
        .unwrap();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let at = self.dir.path();
        let mut config =
            KubeletConfig::new(NODE, vec!["192.0.2.1".parse().unwrap()], Arc::new(tls));
        config.root_dir = at.join("agent");
        config.plugin_root_dir = config.root_dir.clone();
        config.pod_log_dir = at.join("logs");
        config.container_log_dir = at.join("links");
        config.system_log_dir = at.join("system");
        config.static_pod_dir = Some(at.join("static"));
        config.cgroup_root = group("pods", at);
        config.listen = self.listen;
        // Kubelets of other tests want it too.
        config.healthz = None;
        // How full the machine is that the tests run on is none of theirs.
        config.eviction.thresholds.clear();
        (self.settings)(&mut config);
        let client = Client::new(self.api.clone(), "kubelet");
        let (trigger, drain) = drain::channel();
        let shared = client::Shared::new(client, drain.clone());
        let kubelet =
            Kubelet::new(config, shared, self.runtime.clone(), self.images.clone(), drain).unwrap();
        let task = tokio::spawn(async move { kubelet.run().await.unwrap() });
        self.kubelet = Some((trigger, task));
    }

    /// The cgroup of the pods below the hierarchy's root.
    pub fn pods_group(&self) -> String {
        group("pods", self.dir.path())
    }

    /// The cgroup of the shims, in each hierarchy.
    pub fn shims_group(&self) -> String {
        group("shims", self.dir.path())
    }

    /// Ends the kubelet as a restart of the process would; pods stay.
    pub async fn stop(&mut self) {
        let (trigger, task) = self.kubelet.take().unwrap();
        trigger.drain();
        tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
    }

    /// The images of the built-in runtime.
    pub fn store(&self) -> &runtime::images::Images {
        self.built_in.as_ref().expect("the built-in runtime").images()
    }

    pub fn pod_path(name: &str) -> String {
        format!("/api/v1/namespaces/default/pods/{name}")
    }

    pub fn create_pod(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = json!(NODE);
        for list in ["containers", "initContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                container["image"] = json!("busybox:test");
                container["imagePullPolicy"] = json!("IfNotPresent");
            }
        }
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "generation": 1,
                         "labels": {"app": name}},
            "spec": spec, "status": {"phase": "Pending"},
        });
        self.api.put(&Self::pod_path(name), pod);
    }

    pub fn pod(&self, name: &str) -> Option<Value> {
        self.api.get(&Self::pod_path(name))
    }

    /// Waits until `test` holds of the pod; None stands for a pod that is gone.
    pub async fn until(&self, name: &str, test: impl Fn(Option<&Value>) -> bool) -> Option<Value> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let pod = self.pod(name);
            if test(pod.as_ref()) {
                return pod;
            }
            if Instant::now() > deadline {
                panic!(
                    "{name} stays {:#}\nevents {:#?}",
                    pod.map(|pod| pod["status"].clone()).unwrap_or_default(),
                    self.api.events()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn until_ready(&self, name: &str) -> Value {
        let is_ready = |pod: Option<&Value>| {
            pod.and_then(|pod| pod["status"]["conditions"].as_array()).is_some_and(|it| {
                it.iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
            })
        };
        self.until(name, is_ready).await.unwrap()
    }

    /// Waits until the pod's first container has begun for the second time, and is ready.
    pub async fn until_restarted(&self, name: &str) {
        self.until(name, |pod| {
            let status = &pod.unwrap()["status"]["containerStatuses"][0];
            status["restartCount"] == 1 && status["ready"] == true
        })
        .await;
    }

    /// First processes of the containers that run.
    pub async fn runtime_processes(&self) -> Vec<i32> {
        let all = self.runtime.list_containers().await.unwrap();
        all.into_iter().map(|it| it.pid).filter(|pid| *pid > 0).collect()
    }

    pub async fn delete(&self, name: &str) {
        self.api.delete_gracefully(&Self::pod_path(name), 1);
        self.until(name, |pod| pod.is_none()).await;
    }

    pub async fn finish(mut self) {
        let at = self.dir.path().to_owned();
        let left = |dir: &str| std::fs::read_dir(at.join(dir)).map_or(0, Iterator::count);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            // A pod's files go after its sandbox: the kubelet is not stopped in between.
            let sandboxes = self.runtime.list_pod_sandboxes().await.unwrap().len();
            let now = (sandboxes, left("agent/pods"), left("logs"));
            if now == (0, 0, 0) {
                break;
            }
            assert!(Instant::now() < deadline, "sandboxes, pods, logs are left: {now:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.stop().await;
        if let Some(containerd) = &self.containerd {
            containerd.wait_for_shims();
        }
        assert_eq!(sys::mount::mounts_below(&at).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(left("links") + left("state/containers"), 0, "links or containers are left");
        let pods = sys::cgroup::Hierarchy::detect().unwrap().group(&group("pods", &at));
        for class in [pods.clone(), pods.child("burstable"), pods.child("besteffort")] {
            let left = class.children().into_iter().find(|name| name.starts_with("pod"));
            assert_eq!(left, None, "a cgroup is left in {}", class.path());
        }
        let namespaces: Vec<PathBuf> = files_below(&at.join("run"))
            .into_iter()
            .filter(|path| path.components().any(|part| part.as_os_str() == "ns"))
            .collect();
        assert_eq!(namespaces, Vec::<PathBuf>::new());
    }
}

impl Drop for World {
    /// A test that fails leaves nothing behind either.
    fn drop(&mut self) {
        let Ok(hierarchy) = sys::cgroup::Hierarchy::detect() else { return };
        for kind in ["pods", "shims"] {
            let group = hierarchy.group(&group(kind, self.dir.path()));
            let _ = group.kill_all(Duration::from_secs(5));
            let _ = group.delete(Duration::from_secs(5));
        }
        for mount in sys::mount::mounts_below(self.dir.path()).unwrap_or_default() {
            let _ = sys::mount::unmount_detach(&mount);
        }
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&entry.path()),
            _ => vec![entry.path()],
        })
        .collect()
}

/// An archive as `docker save` writes it, of busybox alone.
fn archive_of(name: &str, command: &[&str]) -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut layer = tar::Builder::new(Vec::new());
    let mut put = |name: &str, bytes: &[u8], mode: u32, goal: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        if let Some(goal) = goal {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            layer.append_link(&mut header, name, goal).unwrap();
        } else {
            header.set_size(bytes.len() as u64);
            layer.append_data(&mut header, name, bytes).unwrap();
        }
    };
    put("bin/busybox", &busybox, 0o755, None);
    for applet in [
        "sh", "cat", "sleep", "echo", "id", "test", "touch", "stat", "nc", "hostname", "ls",
        "mount", "grep", "dd", "df", "ln", "mkdir", "readlink", "kill", "rm",
    ] {
        put(&format!("bin/{applet}"), b"", 0o777, Some("busybox"));
    }
    let layer = layer.into_inner().unwrap();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Cmd": command, "Volumes": {"/kept": {}}},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let mut out = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("config.json", config.to_string().into_bytes()),
        ("layer.tar", layer),
        ("manifest.json", manifest.to_string().into_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(bytes.len() as u64);
        out.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    out.into_inner().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
