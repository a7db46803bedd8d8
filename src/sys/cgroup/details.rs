//! What is read of a group only when somebody asks for all of it: dashboards do, the limits
//! and the evictions do not.

use std::path::Path;

use super::{Group, Layout, field, number};

/// Processes, and descriptors of them, that are counted; a group with more shows too few.
const PROCESSES_MAX: usize = 4_096;
const DESCRIPTORS_MAX: u64 = 65_536;
/// Ticks of a second in `cpuacct.stat` (`USER_HZ`).
const TICKS: u64 = 100;
/// cgroup v1 and the largest value of `cpu.shares` (KEP-2254).
const SHARES_MAX: u64 = 262_144;
const WEIGHT_MAX: u64 = 10_000;

/// Zero where the kernel does not say, and None where it says that there is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    pub cpu_user_nanos: u64,
    pub cpu_system_nanos: u64,
    pub cpu_shares: u64,
    pub cpu_period_micros: u64,
    pub cpu_quota_micros: Option<u64>,
    pub memory_max_used_bytes: u64,
    /// How often the limit was met.
    pub memory_failures: u64,
    pub memory_kernel_bytes: u64,
    pub memory_mapped_bytes: u64,
    /// Memory that is kept for the group.
    pub memory_reserved_bytes: u64,
    /// v2: swap alone; v1: memory and swap.
    pub swap_limit_bytes: Option<u64>,
    pub threads_max: Option<u64>,
    pub descriptors: u64,
    pub sockets: u64,
    pub disks: Vec<Disk>,
}

/// What went to and came from a block device. Empty on v1, where no process is put into
/// groups of `blkio`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

impl Disk {
    /// Its file in `/dev`; empty for one that has none.
    pub fn device(&self) -> String {
        let path = format!("/sys/dev/block/{}:{}/uevent", self.major, self.minor);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        name.map(|name| format!("/dev/{name}")).unwrap_or_default()
    }
}

impl Group {
    /// Reads some ten files, and those of every process.
    pub fn details(&self) -> Details {
        let mut details = match &self.hierarchy.layout {
            Layout::Unified { root } => unified(&root.join(&self.path)),
            Layout::Split { .. } => self.split(),
        };
        if let Some(at) = self.directory("pids") {
            details.threads_max = limit(&at.join("pids.max"));
        }
        for process in self.processes().into_iter().take(PROCESSES_MAX) {
            // One that has ended meanwhile has none.
            let Ok(open) = std::fs::read_dir(format!("/proc/{process}/fd")) else { continue };
            for entry in open.flatten() {
                if details.descriptors == DESCRIPTORS_MAX {
                    return details;
                }
                details.descriptors += 1;
                let to = std::fs::read_link(entry.path()).unwrap_or_default();
                details.sockets += u64::from(to.to_string_lossy().starts_with("socket:"));
            }
        }
        details
    }

    fn split(&self) -> Details {
        let mut details = Details::default();
        if let Some(at) = self.directory("cpuacct") {
            let stat = text(&at.join("cpuacct.stat"));
            details.cpu_user_nanos = field(&stat, "user") * (1_000_000_000 / TICKS);
            details.cpu_system_nanos = field(&stat, "system") * (1_000_000_000 / TICKS);
        }
        if let Some(at) = self.directory("cpu") {
            details.cpu_shares = number(&at.join("cpu.shares")).unwrap_or(0);
            details.cpu_period_micros = number(&at.join("cpu.cfs_period_us")).unwrap_or(0);
            // -1 is no limit.
            details.cpu_quota_micros = number(&at.join("cpu.cfs_quota_us")).ok();
        }
        if let Some(at) = self.directory("memory") {
            let read = |name: &str| number(&at.join(format!("memory.{name}"))).unwrap_or(0);
            // Without a limit the kernel shows the largest whole number of pages.
            let limited = |bytes: u64| Some(bytes).filter(|bytes| *bytes < 1 << 62);
            details.memory_max_used_bytes = read("max_usage_in_bytes");
            details.memory_failures = read("failcnt");
            details.memory_kernel_bytes = read("kmem.usage_in_bytes");
            details.memory_mapped_bytes =
                field(&text(&at.join("memory.stat")), "total_mapped_file");
            details.memory_reserved_bytes = limited(read("soft_limit_in_bytes")).unwrap_or(0);
            details.swap_limit_bytes =
                number(&at.join("memory.memsw.limit_in_bytes")).ok().and_then(limited);
        }
        details
    }
}

fn unified(at: &Path) -> Details {
    let cpu = text(&at.join("cpu.stat"));
    let memory = text(&at.join("memory.stat"));
    let quota = text(&at.join("cpu.max"));
    let (quota, period) = quota.trim().split_once(' ').unwrap_or(("max", ""));
    let weight = number(&at.join("cpu.weight")).unwrap_or(0);
    Details {
        cpu_user_nanos: field(&cpu, "user_usec") * 1_000,
        cpu_system_nanos: field(&cpu, "system_usec") * 1_000,
        cpu_shares: shares(weight),
        cpu_period_micros: period.parse().unwrap_or(0),
        cpu_quota_micros: quota.parse().ok(),
        memory_max_used_bytes: number(&at.join("memory.peak")).unwrap_or(0),
        memory_failures: field(&text(&at.join("memory.events")), "max"),
        memory_kernel_bytes: field(&memory, "kernel"),
        memory_mapped_bytes: field(&memory, "file_mapped"),
        memory_reserved_bytes: number(&at.join("memory.min")).unwrap_or(0),
        swap_limit_bytes: limit(&at.join("memory.swap.max")),
        disks: text(&at.join("io.stat")).lines().filter_map(disk).collect(),
        ..Details::default()
    }
}

/// The shares that a weight of v2 was made from (KEP-2254, the way back).
fn shares(weight: u64) -> u64 {
    match weight {
        0 => 0,
        _ => 2 + (weight - 1) * (SHARES_MAX - 2) / (WEIGHT_MAX - 1),
    }
}

/// A line of `io.stat`: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 ...`.
fn disk(line: &str) -> Option<Disk> {
    let mut words = line.split(' ');
    let (major, minor) = words.next()?.split_once(':')?;
    let mut disk =
        Disk { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Disk::default() };
    for (name, value) in words.filter_map(|word| word.split_once('=')) {
        let place = match name {
            "rbytes" => &mut disk.read_bytes,
            "wbytes" => &mut disk.written_bytes,
            "rios" => &mut disk.reads,
            "wios" => &mut disk.writes,
            _ => continue,
        };
        *place = value.parse().ok()?;
    }
    Some(disk)
}

fn text(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// `max` is none.
fn limit(file: &Path) -> Option<u64> {
    number(file).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_becomes_shares_again() {
        for (weight, wanted) in [(0, 0), (1, 2), (39, 998), (10_000, 262_144)] {
            assert_eq!(shares(weight), wanted);
        }
    }

    #[test]
    fn a_unified_group_tells_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("cpu.stat", "usage_usec 9\nuser_usec 5\nsystem_usec 4\n"),
            ("cpu.max", "50000 100000\n"),
            ("cpu.weight", "1\n"),
            ("memory.stat", "file_mapped 7\nkernel 8\n"),
            ("memory.peak", "11\n"),
            ("memory.events", "low 0\nmax 3\n"),
            ("memory.min", "0\n"),
            ("memory.swap.max", "max\n"),
            ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\nwrong\n"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let wanted = Details {
            cpu_user_nanos: 5_000,
            cpu_system_nanos: 4_000,
            cpu_shares: 2,
            cpu_period_micros: 100_000,
            cpu_quota_micros: Some(50_000),
            memory_max_used_bytes: 11,
            memory_failures: 3,
            memory_kernel_bytes: 8,
            memory_mapped_bytes: 7,
            disks: vec![Disk {
                major: 254,
                minor: 0,
                read_bytes: 1,
                written_bytes: 2,
                reads: 3,
                writes: 4,
            }],
            ..Details::default()
        };
        assert_eq!(unified(dir.path()), wanted);
        std::fs::write(dir.path().join("cpu.max"), "max 100000\n").unwrap();
        assert_eq!(unified(dir.path()).cpu_quota_micros, None);
        assert_eq!(unified(&dir.path().join("gone")), Details::default());
    }
}
