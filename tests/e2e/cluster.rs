//! `coracle server` on a machine, and the real kubectl to talk to it.

use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::images;
use crate::machine::{Machine, eventually, told};

pub const KUBECONFIG: &str = "/etc/coracle/kubeconfig.yaml";
pub const LOG: &str = "/tmp/coracle.log";
/// The minor versions of kubectl that users have.
const KUBECTLS: [&str; 3] = ["1.33", "1.32", "1.31"];

/// All kubectls here: those with a version in their names, else the one of the host.
pub fn kubectls() -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join("kubectl"))
        .find(|path| path.exists())
        .expect("kubectl is installed");
    let real = std::fs::canonicalize(&found).unwrap();
    let versions: Vec<PathBuf> = KUBECTLS
        .iter()
        .map(|version| real.with_file_name(format!("kubectl.{version}")))
        .filter(|path| path.exists())
        .collect();
    let list = if versions.is_empty() { vec![real] } else { versions };
    list.into_iter().map(|path| path.to_str().unwrap().to_string()).collect()
}

pub struct Cluster {
    pub machine: Machine,
    pub kubectl: String,
    flags: Vec<String>,
    /// Variables of the server's environment, as `NAME=VALUE`.
    pub environment: Vec<String>,
    before: Vec<String>,
    pid: u32,
    /// From exec to the kubeconfig's node being Ready.
    pub started_in: Duration,
}

impl Cluster {
    /// A cluster on a machine of its own that has the images web:1 and web:2.
    pub fn new() -> Self {
        Self::with(Machine::new(), &[])
    }

    pub fn with(machine: Machine, flags: &[&str]) -> Self {
        let mut cluster = Self::not_started(machine, flags);
        cluster.start();
        cluster
    }

    pub fn not_started(machine: Machine, flags: &[&str]) -> Self {
        let before = machine.traces();
        let folder = machine.data().join("agent/images");
        let versions = if flags.contains(&"--disable-agent") { &[][..] } else { &["1", "2"] };
        for version in versions {
            std::fs::create_dir_all(&folder).unwrap();
            let archive = images::web(version).archive();
            std::fs::write(folder.join(format!("web{version}.tar")), archive).unwrap();
        }
        std::fs::write(machine.bin().join("app.yaml"), include_str!("app.yaml")).unwrap();
        let kubectl = kubectls().remove(0);
        let mut cluster = Self {
            machine,
            kubectl,
            flags: Vec::new(),
            environment: Vec::new(),
            before,
            pid: 0,
            started_in: Duration::ZERO,
        };
        cluster.flags(flags);
        cluster
    }

    /// For its next start.
    pub fn flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|flag| flag.to_string()).collect();
    }

    pub fn start(&mut self) {
        self.start_server();
        if !self.flags.iter().any(|flag| flag == "--disable-agent") {
            self.node_is_ready();
        }
    }

    /// Starts it and waits for its word that it is ready.
    pub fn start_server(&mut self) {
        let mut argv = vec!["env"];
        argv.extend(self.environment.iter().map(String::as_str));
        argv.extend(["/mnt/coracle/coracle", "server"]);
        argv.extend(self.flags.iter().map(String::as_str));
        let began = Instant::now();
        self.pid = self.machine.start(LOG, &argv);
        eventually("the server is ready", 60, || {
            let log = self.machine.read(LOG);
            assert!(self.machine.is_alive(self.pid), "the server ended:\n{log}");
            let ready = log.contains("ready; use it with");
            if ready { Ok(()) } else { Err(log) }
        });
        self.started_in = began.elapsed();
    }

    pub fn node_is_ready(&self) {
        eventually("the node is Ready", 30, || {
            let nodes = self.try_kubectl(&["get", "nodes", "--no-headers"])?;
            if nodes.contains(" Ready ") { Ok(()) } else { Err(nodes) }
        });
    }

    /// As the kernel would: no word to anybody.
    pub fn kill(&mut self) {
        self.machine.sh(&format!("kill -9 {}", self.pid));
        let pid = self.pid;
        eventually("the server is gone", 10, || match self.machine.is_alive(pid) {
            true => Err(format!("{pid} lives")),
            false => Ok(()),
        });
    }

    /// As a service manager would.
    pub fn terminate(&mut self) {
        self.machine.sh(&format!("kill -TERM {}", self.pid));
        let pid = self.pid;
        eventually("the server has ended", 30, || match self.machine.is_alive(pid) {
            true => Err(self.machine.read(LOG)),
            false => Ok(()),
        });
    }

    pub fn is_running(&self) -> bool {
        self.machine.is_alive(self.pid)
    }

    fn words<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let mut words = vec![self.kubectl.as_str(), "--kubeconfig", KUBECONFIG];
        words.extend(args);
        words
    }

    pub fn output(&self, args: &[&str]) -> Output {
        self.machine.run(&self.words(args))
    }

    pub fn command(&self, seconds: u32, args: &[&str]) -> std::process::Command {
        self.machine.command(seconds, &self.words(args))
    }

    pub fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        let output = self.output(args);
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(told(&output)),
        }
    }

    /// kubectl, which must succeed; gives its standard output.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args)
            .unwrap_or_else(|told| panic!("kubectl {}\n{told}\n{}", args.join(" "), self.log()))
    }

    /// kubectl with words that hold no spaces.
    pub fn k(&self, line: &str) -> String {
        self.kubectl(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// kubectl, which must fail; gives what it said.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(
            !output.status.success(),
            "kubectl {} succeeded\n{}",
            args.join(" "),
            told(&output)
        );
        told(&output)
    }

    pub fn apply(&self, manifest: &str) -> String {
        self.apply_with(&[], manifest)
    }

    pub fn apply_with(&self, flags: &[&str], manifest: &str) -> String {
        let output = self.try_apply(flags, manifest);
        assert!(output.status.success(), "{manifest}\n{}\n{}", told(&output), self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn try_apply(&self, flags: &[&str], manifest: &str) -> Output {
        let mut args = vec!["apply", "-f", "-"];
        args.extend(flags);
        self.machine.run_with_input(&self.words(&args), manifest)
    }

    pub fn json(&self, args: &str) -> Value {
        let text = self.k(&format!("{args} -o json"));
        serde_json::from_str(&text).unwrap()
    }

    /// Waits until what `line` prints holds.
    pub fn until(&self, line: &str, seconds: u64, holds: impl Fn(&str) -> bool) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        eventually(&format!("kubectl {line}"), seconds, || {
            let text = self.try_kubectl(&words)?;
            if holds(&text) { Ok(text) } else { Err(text) }
        })
    }

    /// Prints a script's output from inside a pod.
    pub fn in_pod(&self, pod: &str, script: &str) -> String {
        self.kubectl(&["exec", pod, "--", "sh", "-c", script])
    }

    pub fn rollout(&self, deployment: &str) {
        let name = format!("deployment/{deployment}");
        let ended = self.try_kubectl(&["rollout", "status", &name, "--timeout=60s"]);
        if let Err(told) = ended {
            let pods = self.k("get pods -A -o wide");
            let about = self.k("describe pods");
            panic!("{told}\n{pods}\n{about}\n{}", self.log());
        }
    }

    pub fn log(&self) -> String {
        let log = self.machine.read(LOG);
        let lines: Vec<&str> = log.lines().collect();
        format!("--- the server's log\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
    }

    /// Takes everything down and checks that nothing of it is left.
    pub fn reset(self) {
        let output = self.machine.run(&["/mnt/coracle/coracle", "reset"]);
        assert!(output.status.success(), "reset\n{}", told(&output));
        assert!(!self.is_running(), "the server runs after a reset");
        self.assert_clean();
    }

    /// Every component did only what its role lets it do.
    fn assert_nobody_was_refused(&self) {
        let log = self.machine.read(LOG);
        let own = ["system:serviceaccount:kube-system:", "system:kube-"];
        let is_refusal = |line: &&str| {
            own.iter().any(|user| line.contains(&format!("is forbidden: User \"{user}")))
        };
        let refused: Vec<&str> = log.lines().filter(is_refusal).collect();
        assert!(refused.is_empty(), "refused:\n{}", refused.join("\n"));
    }

    pub fn assert_clean(&self) {
        self.machine.assert_unchanged(&self.before);
        self.assert_nobody_was_refused();
    }
}
