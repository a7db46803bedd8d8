//! Control groups: v1 (each controller its own tree, as in hybrid mode) and v2.
//!
//! A `Group` is one path below the root of every tree. Which limits a pod gets is the
//! caller's matter; controllers that the host lacks are skipped, and `missing` says which.

mod details;
mod limits;
mod pressure;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::bpf::DeviceRule;
use limits::{File, unified_files};

pub use details::{Details, Disk};
pub use limits::Limits;
pub use pressure::{Pressure, Stall, Stalled};

/// Controllers that a container's limits and numbers need.
const WANTED: [&str; 7] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer"];

/// Controllers that a limit may name and that hosts may lack without a word.
const OPTIONAL: [&str; 1] = ["hugetlb"];

/// Pause between two looks at a group that is being emptied.
const EMPTYING_STEP: Duration = Duration::from_millis(2);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    Unified {
        root: PathBuf,
    },
    /// Mount points by controller, each controller once.
    Split {
        controllers: BTreeMap<String, PathBuf>,
        /// Trees without controllers (systemd's, the unified one of hybrid mode).
        plain: Vec<PathBuf>,
        /// Trees that we put nobody in (`blkio`, `perf_event`), but programs that run
        /// containers do.
        others: Vec<PathBuf>,
    },
}

/// The trees of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    layout: Layout,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanos: u64,
    /// Periods with a CPU quota, those of them in which it was used up, and the time that
    /// was waited for the next.
    pub cpu_periods: u64,
    pub cpu_throttled_periods: u64,
    pub cpu_throttled_nanos: u64,
    pub memory_bytes: u64,
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub memory_cache_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// None where the kernel does not account for swap.
    pub swap_bytes: Option<u64>,
    /// None without a limit.
    pub memory_limit_bytes: Option<u64>,
    pub oom_kills: u64,
    pub processes: u64,
    pub stalled: Stalled,
}

impl Hierarchy {
    pub fn detect() -> io::Result<Self> {
        Self::from_mountinfo(&std::fs::read_to_string("/proc/self/mountinfo")?)
    }

    fn from_mountinfo(text: &str) -> io::Result<Self> {
        let mut controllers = BTreeMap::new();
        let (mut plain, mut others) = (Vec::new(), Vec::new());
        let mut unified = None;
        for line in text.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let mut fields = before.split(' ').skip(3);
            let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
            let point = PathBuf::from(
                String::from_utf8_lossy(&crate::mount::unescape(point.as_bytes())).into_owned(),
            );
            let mut tail = after.split(' ');
            let kind = tail.next().unwrap_or_default();
            let options = tail.nth(1).unwrap_or_default();
            if root != "/" {
                continue;
            }
            match kind {
                "cgroup2" if unified.is_none() => unified = Some(point),
                "cgroup" => {
                    let mut any = false;
                    for name in
                        options.split(',').filter(|o| WANTED.contains(o) || OPTIONAL.contains(o))
                    {
                        controllers.entry(name.to_string()).or_insert_with(|| point.clone());
                        any = true;
                    }
                    if options.split(',').any(|o| o == "name=systemd") && !any {
                        plain.push(point);
                    } else if !any {
                        others.push(point);
                    }
                }
                _ => {}
            }
        }
        let layout = match unified {
            Some(root) if controllers.is_empty() => Layout::Unified { root },
            unified if !controllers.is_empty() => {
                plain.extend(unified);
                Layout::Split { controllers, plain, others }
            }
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "no cgroup hierarchy is mounted (looked in /proc/self/mountinfo)",
                ));
            }
        };
        Ok(Self { layout })
    }

    pub fn is_unified(&self) -> bool {
        matches!(self.layout, Layout::Unified { .. })
    }

    /// Controllers that limits need and this host does not have.
    pub fn missing(&self) -> Vec<&'static str> {
        match &self.layout {
            Layout::Unified { root } => {
                let have =
                    std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
                let have: Vec<&str> = have.split_whitespace().collect();
                ["cpu", "cpuset", "memory", "pids"]
                    .into_iter()
                    .filter(|c| !have.contains(c))
                    .collect()
            }
            Layout::Split { controllers, .. } => {
                WANTED.into_iter().filter(|c| !controllers.contains_key(*c)).collect()
            }
        }
    }

    /// Whether limits of a controller can be set on this host.
    pub fn has(&self, controller: &str) -> bool {
        match &self.layout {
            Layout::Unified { root } => std::fs::read_to_string(root.join("cgroup.controllers"))
                .is_ok_and(|have| have.split_whitespace().any(|it| it == controller)),
            Layout::Split { controllers, .. } => controllers.contains_key(controller),
        }
    }

    /// The group at a path below the root, such as `kubepods/burstable/podUID`.
    pub fn group(&self, path: &str) -> Group {
        Group { hierarchy: self.clone(), path: path.trim_matches('/').to_string() }
    }
}

#[derive(Debug, Clone)]
pub struct Group {
    hierarchy: Hierarchy,
    path: String,
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    std::fs::write(path, value).map_err(|err| {
        io::Error::new(err.kind(), format!("write {value:?} to {}: {err}", path.display()))
    })
}

fn number(path: &Path) -> io::Result<u64> {
    std::fs::read_to_string(path)?
        .trim()
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a number"))
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

impl Group {
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A group below this one.
    pub fn child(&self, name: &str) -> Self {
        Self { hierarchy: self.hierarchy.clone(), path: format!("{}/{name}", self.path) }
    }

    /// The group's directory in every tree, each once.
    fn directories(&self) -> Vec<PathBuf> {
        let mut roots: Vec<&PathBuf> = match &self.hierarchy.layout {
            Layout::Unified { root } => vec![root],
            Layout::Split { controllers, .. } => controllers.values().collect(),
        };
        roots.sort();
        roots.dedup();
        roots.into_iter().map(|root| root.join(&self.path)).collect()
    }

    fn directory(&self, controller: &str) -> Option<PathBuf> {
        match &self.hierarchy.layout {
            Layout::Unified { root } => Some(root.join(&self.path)),
            Layout::Split { controllers, .. } => {
                controllers.get(controller).map(|root| root.join(&self.path))
            }
        }
    }

    /// Makes the group and those above it. Safe to repeat.
    pub fn create(&self) -> io::Result<()> {
        match &self.hierarchy.layout {
            Layout::Unified { root } => {
                let have = std::fs::read_to_string(root.join("cgroup.controllers"))?;
                let enable: Vec<String> = have
                    .split_whitespace()
                    .filter(|c| ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"].contains(c))
                    .map(|c| format!("+{c}"))
                    .collect();
                let mut at = root.clone();
                for part in self.path.split('/') {
                    for controller in &enable {
                        // One at a time: a host that cannot give one still gives the others.
                        let _ = std::fs::write(at.join("cgroup.subtree_control"), controller);
                    }
                    at.push(part);
                    make_directory(&at)?;
                }
                Ok(())
            }
            Layout::Split { controllers, .. } => {
                for directory in self.directories() {
                    std::fs::create_dir_all(&directory)?;
                }
                if let Some(root) = controllers.get("cpuset") {
                    // A new cpuset is empty and takes no process until it has both.
                    let mut at = root.clone();
                    for part in self.path.split('/') {
                        let above = at.clone();
                        at.push(part);
                        for file in ["cpuset.cpus", "cpuset.mems"] {
                            if std::fs::read_to_string(at.join(file))?.trim().is_empty() {
                                let value = std::fs::read_to_string(above.join(file))?;
                                write(&at.join(file), value.trim())?;
                            }
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// Makes the group in the trees without controllers too, so that a process that joins
    /// it leaves the service manager's group of its parent.
    pub fn create_everywhere(&self) -> io::Result<()> {
        self.create()?;
        if let Layout::Split { plain, .. } = &self.hierarchy.layout {
            for root in plain {
                std::fs::create_dir_all(root.join(&self.path))?;
            }
        }
        Ok(())
    }

    /// Files that a process writes `0` to in order to join.
    pub fn join_files(&self) -> Vec<PathBuf> {
        self.directories().into_iter().map(|d| d.join("cgroup.procs")).collect()
    }

    /// As `join_files`, with the trees without controllers.
    pub fn join_files_everywhere(&self) -> Vec<PathBuf> {
        let mut files = self.join_files();
        if let Layout::Split { plain, .. } = &self.hierarchy.layout {
            files.extend(plain.iter().map(|root| root.join(&self.path).join("cgroup.procs")));
        }
        files
    }

    pub fn apply(&self, limits: &Limits) -> io::Result<()> {
        match &self.hierarchy.layout {
            Layout::Unified { root } => Self::apply_unified(&root.join(&self.path), limits),
            Layout::Split { .. } => self.apply_split(limits),
        }
    }

    fn apply_unified(at: &Path, limits: &Limits) -> io::Result<()> {
        for (file, value, kind) in unified_files(limits)? {
            let written = write(&at.join(&file), &value);
            match kind {
                // Hosts without swap, or before Linux 5.7, lack the file.
                File::Optional => drop(written),
                File::Required => written?,
            }
        }
        Ok(())
    }

    fn apply_split(&self, limits: &Limits) -> io::Result<()> {
        if let Some(at) = self.directory("cpu") {
            if limits.cpu_shares > 0 {
                write(&at.join("cpu.shares"), &limits.cpu_shares.max(2).to_string())?;
            }
            if limits.cpu_quota != 0 || limits.cpu_period != 0 {
                let period = if limits.cpu_period == 0 { 100_000 } else { limits.cpu_period };
                write(&at.join("cpu.cfs_period_us"), &period.to_string())?;
                let quota = if limits.cpu_quota > 0 { limits.cpu_quota } else { -1 };
                write(&at.join("cpu.cfs_quota_us"), &quota.to_string())?;
            }
        }
        if let Some(at) = self.directory("memory")
            && limits.memory_bytes > 0
        {
            self.apply_split_memory(&at, limits.memory_bytes, limits.swap_bytes.unwrap_or(0))?;
        }
        if let Some(at) = self.directory("hugetlb") {
            for (size, bytes) in &limits.huge_pages {
                let value = bytes.to_string();
                write(&at.join(format!("hugetlb.{size}.limit_in_bytes")), &value)?;
                // Reserved pages count apart (Linux 5.7).
                let reserved = at.join(format!("hugetlb.{size}.rsvd.limit_in_bytes"));
                if reserved.exists() {
                    write(&reserved, &value)?;
                }
            }
        }
        if let Some(at) = self.directory("pids")
            && limits.pids > 0
        {
            write(&at.join("pids.max"), &limits.pids.to_string())?;
        }
        if let Some(at) = self.directory("cpuset") {
            if !limits.cpuset_cpus.is_empty() {
                write(&at.join("cpuset.cpus"), &limits.cpuset_cpus)?;
            }
            if !limits.cpuset_mems.is_empty() {
                write(&at.join("cpuset.mems"), &limits.cpuset_mems)?;
            }
        }
        Ok(())
    }

    /// Memory with swap may never be below memory, so the order depends on the direction.
    fn apply_split_memory(&self, at: &Path, bytes: i64, swap_bytes: u64) -> io::Result<()> {
        let value = bytes.to_string();
        let sum = (bytes as u64).saturating_add(swap_bytes).min(i64::MAX as u64);
        let whole = sum.to_string();
        let (memory, both) =
            (at.join("memory.limit_in_bytes"), at.join("memory.memsw.limit_in_bytes"));
        if !both.exists() {
            return write(&memory, &value);
        }
        if number(&both)? >= bytes as u64 {
            write(&memory, &value)?;
            write(&both, &whole)
        } else {
            write(&both, &whole)?;
            write(&memory, &value)
        }
    }

    /// Lets processes use only these devices. Call it once, before anybody joins.
    pub fn restrict_devices(&self, rules: &[DeviceRule]) -> io::Result<()> {
        match &self.hierarchy.layout {
            Layout::Unified { root } => {
                let directory = std::fs::File::open(root.join(&self.path))?;
                crate::bpf::restrict_devices(directory.as_fd(), rules)
            }
            Layout::Split { .. } => {
                let Some(at) = self.directory("devices") else { return Ok(()) };
                write(&at.join("devices.deny"), "a")?;
                for rule in rules {
                    write(&at.join("devices.allow"), &rule.line())?;
                }
                Ok(())
            }
        }
    }

    /// The group's directory per v1 controller; empty on v2.
    pub fn controller_directories(&self) -> Vec<(String, PathBuf)> {
        match &self.hierarchy.layout {
            Layout::Unified { .. } => Vec::new(),
            Layout::Split { controllers, .. } => controllers
                .iter()
                .map(|(name, root)| (name.clone(), root.join(&self.path)))
                .collect(),
        }
    }

    /// One of the group's files, such as `cpu.max`, as the kernel shows it.
    pub fn read_limit(&self, controller: &str, file: &str) -> io::Result<String> {
        let directory = self.directory(controller).ok_or(io::ErrorKind::NotFound)?;
        std::fs::read_to_string(directory.join(file)).map(|text| text.trim().to_owned())
    }

    pub fn exists(&self) -> bool {
        self.directories().iter().any(|d| d.exists())
    }

    /// Processes in the group and below it.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for directory in self.directories() {
            collect_processes(&directory, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Kills everything in the group and waits until it is gone.
    pub fn kill_all(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        if !self.exists() {
            return Ok(());
        }
        loop {
            if let Layout::Unified { root } = &self.hierarchy.layout {
                // Linux 5.14; before, the list below does.
                let _ = std::fs::write(root.join(&self.path).join("cgroup.kill"), "1");
            }
            let processes = self.processes();
            if processes.is_empty() {
                return Ok(());
            }
            // Frozen, a group cannot fork faster than it is killed.
            let freezer = match &self.hierarchy.layout {
                Layout::Unified { .. } => None,
                Layout::Split { .. } => self.directory("freezer").map(|d| d.join("freezer.state")),
            };
            if let Some(state) = &freezer {
                let _ = std::fs::write(state, "FROZEN");
            }
            for pid in self.processes() {
                let _ = crate::process::kill(pid, libc::SIGKILL);
            }
            if let Some(state) = &freezer {
                let _ = std::fs::write(state, "THAWED");
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("processes {:?} of cgroup {} do not die", self.processes(), self.path),
                ));
            }
            std::thread::sleep(EMPTYING_STEP);
        }
    }

    /// Removes the group and those below it; it must hold no process. Safe to repeat.
    pub fn delete(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let mut refused = None;
            for directory in self.all_directories() {
                if let Err(err) = remove_tree(&directory) {
                    refused = Some(err);
                }
            }
            match refused {
                None => return Ok(()),
                // The last process of a group may still be on its way out.
                Some(err) if Instant::now() >= deadline => return Err(err),
                Some(_) => std::thread::sleep(EMPTYING_STEP),
            }
        }
    }

    fn all_directories(&self) -> Vec<PathBuf> {
        let mut all = self.directories();
        if let Layout::Split { plain, others, .. } = &self.hierarchy.layout {
            all.extend(plain.iter().chain(others).map(|root| root.join(&self.path)));
        }
        all
    }

    /// Names of the groups directly below this one.
    pub fn children(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .directories()
            .iter()
            .filter_map(|d| std::fs::read_dir(d).ok())
            .flatten()
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// How often the kernel has killed a process of this group for memory.
    pub fn oom_kills(&self) -> u64 {
        self.oom_file()
            .and_then(|file| std::fs::read_to_string(file).ok())
            .map_or(0, |text| field(&text, "oom_kill"))
    }

    /// How long processes of this group waited for a resource (`cpu`, `memory`, `io`); None
    /// where the kernel does not say: on v1, or without pressure stall information.
    fn pressure(&self, resource: &str) -> Option<Pressure> {
        let Layout::Unified { root } = &self.hierarchy.layout else { return None };
        let file = root.join(&self.path).join(format!("{resource}.pressure"));
        Pressure::parse(&std::fs::read_to_string(file).ok()?)
    }

    /// The file that `oom_kills` reads, for a process that has no hierarchy at hand.
    pub fn oom_file(&self) -> Option<PathBuf> {
        let name = match &self.hierarchy.layout {
            Layout::Unified { .. } => "memory.events",
            Layout::Split { .. } => "memory.oom_control",
        };
        self.directory("memory").map(|d| d.join(name))
    }

    pub fn usage(&self) -> io::Result<Usage> {
        let mut usage = match &self.hierarchy.layout {
            Layout::Unified { root } => unified_usage(&root.join(&self.path))?,
            Layout::Split { .. } => self.split_usage()?,
        };
        usage.oom_kills = self.oom_kills();
        usage.stalled = Stalled {
            cpu: self.pressure("cpu"),
            memory: self.pressure("memory"),
            io: self.pressure("io"),
        };
        if let Some(at) = self.directory("pids") {
            usage.processes = number(&at.join("pids.current")).unwrap_or(0);
        }
        Ok(usage)
    }

    fn split_usage(&self) -> io::Result<Usage> {
        let mut usage = Usage::default();
        if let Some(at) = self.directory("cpuacct") {
            usage.cpu_nanos = number(&at.join("cpuacct.usage"))?;
        }
        if let Some(at) = self.directory("cpu") {
            let stat = std::fs::read_to_string(at.join("cpu.stat")).unwrap_or_default();
            usage.cpu_periods = field(&stat, "nr_periods");
            usage.cpu_throttled_periods = field(&stat, "nr_throttled");
            usage.cpu_throttled_nanos = field(&stat, "throttled_time");
        }
        if let Some(at) = self.directory("memory") {
            let memory = std::fs::read_to_string(at.join("memory.stat"))?;
            usage.memory_bytes = number(&at.join("memory.usage_in_bytes"))?;
            usage.memory_working_set_bytes =
                usage.memory_bytes.saturating_sub(field(&memory, "total_inactive_file"));
            usage.memory_rss_bytes = field(&memory, "total_rss");
            usage.memory_cache_bytes = field(&memory, "total_cache");
            usage.page_faults = field(&memory, "total_pgfault");
            usage.major_page_faults = field(&memory, "total_pgmajfault");
            usage.swap_bytes = memory.contains("total_swap ").then(|| field(&memory, "total_swap"));
            // Without a limit the kernel shows the largest whole number of pages.
            usage.memory_limit_bytes =
                number(&at.join("memory.limit_in_bytes")).ok().filter(|limit| *limit < 1 << 62);
        }
        Ok(usage)
    }
}

fn unified_usage(at: &Path) -> io::Result<Usage> {
    let cpu = std::fs::read_to_string(at.join("cpu.stat"))?;
    let memory = std::fs::read_to_string(at.join("memory.stat"))?;
    let used = number(&at.join("memory.current"))?;
    Ok(Usage {
        cpu_nanos: field(&cpu, "usage_usec") * 1_000,
        cpu_periods: field(&cpu, "nr_periods"),
        cpu_throttled_periods: field(&cpu, "nr_throttled"),
        cpu_throttled_nanos: field(&cpu, "throttled_usec") * 1_000,
        memory_bytes: used,
        memory_working_set_bytes: used.saturating_sub(field(&memory, "inactive_file")),
        memory_rss_bytes: field(&memory, "anon"),
        memory_cache_bytes: field(&memory, "file"),
        page_faults: field(&memory, "pgfault"),
        major_page_faults: field(&memory, "pgmajfault"),
        swap_bytes: number(&at.join("memory.swap.current")).ok(),
        memory_limit_bytes: number(&at.join("memory.max")).ok(),
        ..Usage::default()
    })
}

/// The count of out-of-memory kills in a file that `Group::oom_file` named.
pub fn oom_kills_in(file: &Path) -> u64 {
    std::fs::read_to_string(file).map_or(0, |text| field(&text, "oom_kill"))
}

/// Moves this process into groups by their files.
pub fn join(files: &[PathBuf]) -> io::Result<()> {
    files.iter().try_for_each(|file| write(file, "0"))
}

fn make_directory(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => Err(err),
        _ => Ok(()),
    }
}

fn collect_processes(directory: &Path, found: &mut Vec<i32>) {
    if let Ok(text) = std::fs::read_to_string(directory.join("cgroup.procs")) {
        found.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
    }
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_processes(&entry.path(), found);
        }
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    match std::fs::read_dir(directory) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(err),
        Ok(entries) => {
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    remove_tree(&entry.path())?;
                }
            }
        }
    }
    match std::fs::remove_dir(directory) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 23 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
34 23 0:30 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio";

    #[test]
    fn layouts_are_told_apart() {
        let hybrid = Hierarchy::from_mountinfo(HYBRID).unwrap();
        assert!(!hybrid.is_unified());
        assert_eq!(hybrid.group("a").directories().len(), 2);
        assert_eq!(hybrid.group("a").join_files_everywhere().len(), 4);
        assert_eq!(hybrid.group("a").all_directories().len(), 5);
        let pure = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert!(Hierarchy::from_mountinfo(pure).unwrap().is_unified());
        assert!(Hierarchy::from_mountinfo("").is_err());
    }

    #[test]
    fn limits_become_files_of_v1_groups() {
        let dir = std::env::temp_dir().join(format!("coracle-sys-v1-{}", std::process::id()));
        let mounts: Vec<String> = ["hugetlb", "memory"]
            .iter()
            .map(|name| {
                let point = dir.join(name);
                std::fs::create_dir_all(point.join("g")).unwrap();
                format!("30 23 0:26 / {} rw - cgroup cgroup rw,{name}", point.display())
            })
            .collect();
        let hierarchy = Hierarchy::from_mountinfo(&mounts.join("\n")).unwrap();
        assert!(hierarchy.has("hugetlb") && !hierarchy.has("cpu"));
        std::fs::write(dir.join("memory/g/memory.memsw.limit_in_bytes"), "1000").unwrap();
        let limits = Limits {
            memory_bytes: 64,
            swap_bytes: Some(32),
            huge_pages: [("2MB".to_owned(), 4_194_304)].into(),
            ..Limits::default()
        };
        hierarchy.group("g").apply(&limits).unwrap();
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
        assert_eq!(read("hugetlb/g/hugetlb.2MB.limit_in_bytes"), "4194304");
        assert_eq!(read("memory/g/memory.limit_in_bytes"), "64");
        assert_eq!(read("memory/g/memory.memsw.limit_in_bytes"), "96");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_group_takes_limits_and_its_processes_die_with_it() {
        let group = Hierarchy::detect()
            .unwrap()
            .group(&format!("coracle-sys-test-{}/inner", std::process::id()));
        group.create().unwrap();
        group
            .apply(&Limits {
                cpu_shares: 512,
                cpu_quota: 20_000,
                memory_bytes: 32 << 20,
                pids: 32,
                ..Limits::default()
            })
            .unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        for file in group.join_files() {
            std::fs::write(file, child.id().to_string()).unwrap();
        }
        assert_eq!(group.processes(), [child.id() as i32]);
        assert!(group.usage().unwrap().memory_bytes < 32 << 20);
        assert_eq!(group.oom_kills(), 0);
        // The kernel reports a killed child as gone only once its parent looks.
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        group.kill_all(Duration::from_secs(5)).unwrap();
        assert!(!reaper.join().unwrap().success());
        let parent = group.path().split_once('/').unwrap().0.to_string();
        group.hierarchy.group(&parent).delete(Duration::from_secs(5)).unwrap();
        assert!(!group.exists());
    }
}
