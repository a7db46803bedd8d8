//! A server and hollow nodes, as processes that end with this one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use client::Client;
use client::remote::Remote;
use k8s_openapi::api::core::v1::Node;

const PORT: &str = "36444";
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// What any measure may take.
pub const PATIENCE: Duration = Duration::from_secs(1_800);

pub struct Cluster {
    executable: PathBuf,
    dir: tempfile::TempDir,
    server: Option<Child>,
    agents: Vec<Child>,
}

/// What a process has used and holds.
#[derive(Clone, Copy)]
pub struct Usage {
    pub cpu: Duration,
    pub resident_mib: f64,
    pub peak_mib: f64,
}

impl Cluster {
    pub fn new(executable: &Path, flags: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("coracle-size.").tempdir_in("/var/tmp").unwrap();
        let executable = executable.to_owned();
        let mut cluster = Self { executable, dir, server: None, agents: Vec::new() };
        cluster.start(flags);
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the server; what it keeps is there from the last time.
    pub fn start(&mut self, flags: &[&str]) {
        let log = self.path("log");
        let child = Command::new(&self.executable)
            .arg("server")
            // Nobody answers for these nodes, and they need a network each.
            .args(["--disable-agent", "--disable=dns,local-storage,metrics-server"])
            .args(["--bind-address=127.0.0.1", "--https-listen-port", PORT])
            .args(["--cluster-cidr=10.128.0.0/9", "--service-cidr=10.43.0.0/16"])
            .arg("--data-dir")
            .arg(self.path("data"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .arg("--write-kubeconfig")
            .arg(self.path("kubeconfig"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .stderr(File::options().append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        self.server = Some(child);
        let begun = Instant::now();
        while !std::fs::read_to_string(&log).unwrap().contains("ready; use it") {
            assert!(begun.elapsed() < START_TIMEOUT, "{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn stop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let pid = rustix::process::Pid::from_child(&server);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        server.wait().unwrap();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn client(&self) -> Client {
        let endpoint = client::kubeconfig::load(&self.path("kubeconfig")).unwrap();
        Remote::new(&endpoint).unwrap().client("size/1")
    }

    /// Adds nodes and waits until they are Ready; gives a number by which they can be lost.
    pub async fn nodes(&mut self, prefix: &str, count: u32, flags: &[&str]) -> usize {
        let agent = std::env::var_os("CORACLE_HOLLOW").map(PathBuf::from);
        let log = File::create(self.path(&format!("{prefix}.log"))).unwrap();
        let child = Command::new(agent.as_ref().unwrap_or(&self.executable))
            .args(["agent", "--hollow", &count.to_string(), "--name-prefix", prefix])
            .arg("--kubeconfig")
            .arg(self.path("kubeconfig"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agents.push(child);
        let api = self.client().all::<Node>();
        let ours = client::ListParams::labels(format!("coracle.io/hollow={prefix}"));
        eventually("all nodes are there", async || {
            let nodes = api.list(&ours).await.unwrap().items;
            // New nodes are tainted until they are known to be ready.
            let free = |n: &&Node| n.spec.as_ref().is_none_or(|s| s.taints.is_none());
            nodes.iter().filter(free).count() == count as usize
        })
        .await;
        self.agents.len() - 1
    }

    /// As if the cable was cut.
    pub fn lose(&mut self, nodes: usize) {
        let mut agent = self.agents.remove(nodes);
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    pub fn usage(&self) -> Usage {
        usage(self.server.as_ref().unwrap().id())
    }

    /// CPU time of all agents.
    pub fn agents_cpu(&self) -> Duration {
        self.agents.iter().map(|agent| usage(agent.id()).cpu).sum()
    }
}

fn usage(pid: u32) -> Usage {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mib = |name: &str| -> f64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..=12].iter().map(|text| text.parse::<u64>().unwrap()).sum();
    let cpu = Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second());
    Usage { cpu, resident_mib: mib("VmRSS:"), peak_mib: mib("VmHWM:") }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for mut child in self.server.take().into_iter().chain(self.agents.drain(..)) {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Looks again and again until it holds; how long that took.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begun.elapsed()
}
