//! A machine to test on: processes, network, cgroups and files of its own, made in a tenth
//! of a second and gone without a trace when dropped, or when the test is killed.
//!
//! Knows nothing of clusters.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The address of the machine on its only link.
pub const ADDRESS: &str = "172.29.7.1";
const UP_TIMEOUT: Duration = Duration::from_secs(20);
const DOWN_TIMEOUT: Duration = Duration::from_secs(20);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Seconds that a command inside may take, unless told otherwise.
const COMMAND_SECONDS: u32 = 90;

pub struct Machine {
    dir: PathBuf,
    keeper: Child,
    hold: Option<ChildStdin>,
    /// First process inside, as seen from outside.
    pid: u32,
}

impl Machine {
    /// A machine with a link and a default route.
    pub fn new() -> Self {
        let machine = Self::offline();
        machine.sh(&format!(
            "ip link add up0 type veth peer name up1 && ip link set up1 up && ip addr add {ADDRESS}/24 dev up0 && ip link set up0 up \
             && ip route add default via 172.29.7.254"
        ));
        machine
    }

    /// A machine with nothing but its loopback.
    pub fn offline() -> Self {
        let dir = tempfile::Builder::new().prefix("ce2e").tempdir_in("/var/tmp").unwrap().keep();
        let name = dir.file_name().unwrap().to_string_lossy().replace('.', "").to_lowercase();
        for below in ["data", "bin", "checkout"] {
            fs::create_dir(dir.join(below)).unwrap();
        }
        link_or_copy(Path::new(env!("CARGO_BIN_EXE_coracle")), &dir.join("bin/coracle"));
        let log = File::create(dir.join("log")).unwrap();
        let mut keeper = Command::new("bash");
        // In a group of its own, so that it cleans up even if the test's group is killed.
        std::os::unix::process::CommandExt::process_group(&mut keeper, 0);
        let mut keeper = keeper
            .args(["-c", include_str!("machine.sh"), "machine"])
            .arg(&dir)
            .arg(&name)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let hold = keeper.stdin.take();
        let mut machine = Self { dir, keeper, hold, pid: 0 };
        let up = machine.dir.join("bin/up");
        let deadline = Instant::now() + UP_TIMEOUT;
        while !up.exists() {
            let ended = machine.keeper.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "no machine: {}",
                fs::read_to_string(machine.dir.join("log")).unwrap_or_default()
            );
            thread::sleep(Duration::from_millis(5));
        }
        machine.pid = first_inside(machine.keeper.id());
        machine
    }

    /// Its disk (`/var/lib/coracle`), from outside.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// What is `/mnt/checkout` inside.
    pub fn checkout(&self) -> PathBuf {
        self.dir.join("checkout")
    }

    /// What is `/mnt/coracle` inside; holds the executable.
    pub fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// A command that runs inside; nothing waits for it longer than `seconds`, and it ends
    /// with the one who asked for it.
    pub fn command(&self, seconds: u32, argv: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-a", "-t", &self.pid.to_string(), "setpriv", "--pdeathsig", "KILL", "timeout"])
            .args(["-k", "2", &seconds.to_string()])
            .args(argv)
            .env_clear()
            .env("HOME", "/root")
            .env("LC_ALL", "C")
            .env("PATH", std::env::var("PATH").unwrap())
            .stdin(Stdio::null());
        command
    }

    /// Runs `work` on a thread whose sockets are the machine's.
    pub fn inside(&self, work: impl FnOnce() + Send + 'static) {
        let network = File::open(format!("/proc/{}/ns/net", self.pid)).unwrap();
        let thread = thread::spawn(move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(network.as_fd(), kind).unwrap();
            work();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    pub fn run(&self, argv: &[&str]) -> Output {
        self.command(COMMAND_SECONDS, argv).output().unwrap()
    }

    pub fn run_with_input(&self, argv: &[&str], input: &str) -> Output {
        let mut child = self
            .command(COMMAND_SECONDS, argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_string();
        // A command may end without reading all of it.
        let writer = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// Runs a script that must succeed, and gives what it printed.
    pub fn sh(&self, script: &str) -> String {
        let output = self.run(&["bash", "-c", script]);
        assert!(output.status.success(), "{script}\n{}", told(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn write(&self, path: &str, content: &[u8]) {
        let folder = Path::new(path).parent().unwrap().to_str().unwrap();
        self.sh(&format!("mkdir -p {folder}"));
        fs::write(PathBuf::from(format!("/proc/{}/root{path}", self.pid)), content).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        let outside = format!("/proc/{}/root{path}", self.pid);
        fs::read_to_string(&outside).unwrap_or_default()
    }

    /// Starts a process that outlives the call; its output goes to the file `log`.
    pub fn start(&self, log: &str, argv: &[&str]) -> u32 {
        let cgroup = "for h in /sys/fs/cgroup/*/cgroup.procs; do echo $$ > $h; done 2>/dev/null";
        let script = format!("{cgroup}; \"$@\" > {log} 2>&1 < /dev/null & echo $!");
        let mut words = vec!["bash", "-c", &script, "start"];
        words.extend(argv);
        let output = self.command(COMMAND_SECONDS, &words).output().unwrap();
        assert!(output.status.success(), "{argv:?}\n{}", told(&output));
        String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
    }

    /// A process whose first thread has ended may live on in the others.
    pub fn is_alive(&self, pid: u32) -> bool {
        let tasks = format!("/proc/{}/root/proc/{pid}/task", self.pid);
        let states = fs::read_dir(tasks).into_iter().flatten().flatten();
        states
            .filter_map(|task| fs::read_to_string(task.path().join("stat")).ok())
            .any(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
    }

    /// What a program could leave behind, one line each.
    pub fn traces(&self) -> Vec<String> {
        let script = r"
            set -eu
            awk '{print $5, $9, $10}' /proc/1/mountinfo | sed 's/^/mount /'
            ip -o link | awk '{print $2}' | sed 's/^/link /'
            ip -4 route | sed 's/^/route /; s/ linkdown//'
            ip rule | sed 's/^/rule /'
            nft list ruleset | sed 's/^/nft /'
            find /sys/fs/cgroup -type d | sed 's/^/cgroup /'
            find /etc/coracle /var/lib/coracle /var/log /run /usr/local/bin /etc/init.d \
                /etc/systemd/system -mount 2>/dev/null | sed 's/^/file /'
            (cd /proc/sys/net && find ipv4 bridge netfilter -type f 2>/dev/null \
                | grep -v -e neigh -e conf/coracle -e count$ -e random -e flush \
                | while read -r f; do echo sysctl $f $(cat $f 2>/dev/null); done)
            ps -e -o args= | grep -v -e '^ps ' -e '^bash' -e '^sed ' -e '^grep ' -e '^timeout' \
                -e '^sort' -e '<defunct>' | sed 's/^/process /'
        ";
        let mut lines: Vec<String> = self.sh(script).lines().map(str::to_string).collect();
        lines.sort();
        lines
    }
}

impl Machine {
    /// Fails if anything was left behind, or taken that was not ours, since `before`.
    /// What is on its way out gets a moment; a leak stays.
    pub fn assert_unchanged(&self, before: &[String]) {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let after = self.traces();
            let new: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
            let gone: Vec<&String> = before.iter().filter(|line| !after.contains(line)).collect();
            if new.is_empty() && gone.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {new:#?}\ntaken away: {gone:#?}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.hold.take());
        let deadline = Instant::now() + DOWN_TIMEOUT;
        while self.keeper.try_wait().is_ok_and(|ended| ended.is_none()) {
            if Instant::now() > deadline {
                eprintln!("{} is not gone", self.dir.display());
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn link_or_copy(from: &Path, to: &Path) {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The first process of the new namespace: the deepest of the keeper's descendants.
fn first_inside(keeper: u32) -> u32 {
    let ours = fs::read_link("/proc/self/ns/pid").unwrap();
    let mut pids = children(keeper);
    while let Some(pid) = pids.pop() {
        match fs::read_link(format!("/proc/{pid}/ns/pid")) {
            Ok(theirs) if theirs != ours => return pid,
            _ => pids.extend(children(pid)),
        }
    }
    panic!("the machine has no first process");
}

pub fn told(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Asks until the answer is yes. `ask` gives what it saw otherwise.
pub fn eventually<T>(what: &str, seconds: u64, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match ask() {
            Ok(value) => return value,
            Err(seen) => {
                assert!(Instant::now() < deadline, "not within {seconds} s: {what}\n{seen}");
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
}
