//! `coracle check-config`: is this host fit? One line for each thing that is needed, and
//! what to do where it is missing.

use std::path::Path;

use crate::args::HostFlags;
use crate::{Error, Result};

/// One requirement and what the host says to it.
#[derive(Debug)]
pub struct Check {
    pub what: &'static str,
    /// None is good; otherwise what is wrong and what helps.
    pub problem: Option<(String, String)>,
    /// Without it the server does not start.
    pub required: bool,
}

/// Kernels before this one lack what the runtime needs (pidfd, cgroup kill, openat2).
const KERNEL_MIN: (u32, u32) = (5, 10);
/// Bytes free below which a node is of no use.
const DISK_BYTES_MIN: u64 = 512 << 20;

pub fn run(flags: &HostFlags) -> Result<()> {
    let checks = checks(&flags.data_dir);
    let mut missing = 0;
    for check in &checks {
        match &check.problem {
            None => println!("ok       {}", check.what),
            Some((why, fix)) => {
                let word = if check.required { "missing " } else { "warning " };
                missing += usize::from(check.required);
                println!("{word} {}: {why}\n         {fix}", check.what);
            }
        }
    }
    if missing == 0 {
        println!("this host is fit");
        return Ok(());
    }
    Err(Error::Usage(format!("this host is not fit: {missing} of {} checks failed", checks.len())))
}

/// The first required thing that this host lacks.
pub fn first_problem(data_dir: &Path) -> Option<Error> {
    checks(data_dir).into_iter().filter(|check| check.required).find_map(|check| {
        let (why, fix) = check.problem?;
        Some(Error::Unfit { what: format!("{}: {why}", check.what), fix })
    })
}

fn checks(data_dir: &Path) -> Vec<Check> {
    vec![
        required("root", root()),
        required("kernel", kernel()),
        required("overlayfs", filesystem("overlay")),
        required("cgroups", cgroups()),
        optional("memory cgroup", memory_cgroup()),
        required("network namespaces", path("/proc/self/ns/net", "CONFIG_NET_NS")),
        required("nf_tables", nf_tables()),
        optional("disk", disk(data_dir)),
        optional("clock", clock()),
    ]
}

type Problem = Option<(String, String)>;

fn required(what: &'static str, problem: Problem) -> Check {
    Check { what, problem, required: true }
}

fn optional(what: &'static str, problem: Problem) -> Check {
    Check { what, problem, required: false }
}

fn problem(why: impl Into<String>, fix: impl Into<String>) -> Problem {
    Some((why.into(), fix.into()))
}

fn root() -> Problem {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    problem("not running as root", "run it with sudo")
}

fn kernel() -> Problem {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_MIN {
        return None;
    }
    problem(
        format!("{release} is older than {}.{}", KERNEL_MIN.0, KERNEL_MIN.1),
        "upgrade the kernel (on Debian: apt-get install linux-image-generic, then reboot)",
    )
}

fn filesystem(name: &str) -> Problem {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim_start_matches("nodev").trim() == name)
        || module_exists(name)
    {
        return None;
    }
    problem(format!("this kernel has no {name}"), format!("modprobe {name}, or a kernel with it"))
}

/// Modules that are built but not loaded are loaded by the kernel when they are used.
fn module_exists(name: &str) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let file = |list: &str| format!("/lib/modules/{release}/{list}");
    ["modules.builtin", "modules.dep"].iter().any(|list| {
        std::fs::read_to_string(file(list)).is_ok_and(|text| text.contains(&format!("/{name}.ko")))
    })
}

fn cgroups() -> Problem {
    let fix = "mount the cgroup hierarchy (systemd does; otherwise install cgroupfs-mount)";
    match sys::cgroup::Hierarchy::detect() {
        Ok(_) => None,
        Err(err) => problem(err.to_string(), fix),
    }
}

fn memory_cgroup() -> Problem {
    let lacks = sys::cgroup::Hierarchy::detect().map(|found| found.missing()).unwrap_or_default();
    if !lacks.contains(&"memory") {
        return None;
    }
    problem(
        "the memory controller is off: limits are not enforced",
        "on Raspberry Pi OS, add cgroup_enable=memory cgroup_memory=1 to /boot/firmware/cmdline.txt and reboot",
    )
}

fn path(file: &str, option: &str) -> Problem {
    if Path::new(file).exists() {
        return None;
    }
    problem(format!("{file} does not exist"), format!("a kernel with {option}"))
}

fn nf_tables() -> Problem {
    let family = sys::nftables::Family::Ipv4;
    match sys::nftables::exists(family, crate::node::NFT_TABLE) {
        Ok(_) => None,
        Err(err) => problem(
            base::error::chain(&err).to_string(),
            "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES",
        ),
    }
}

fn disk(data_dir: &Path) -> Problem {
    let existing = data_dir.ancestors().find(|path| path.exists())?;
    let about = rustix::fs::statvfs(existing).ok()?;
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    if free >= DISK_BYTES_MIN {
        return None;
    }
    problem(
        format!("{} MiB are free below {}", free >> 20, existing.display()),
        "free some space, or choose another --data-dir",
    )
}

fn clock() -> Problem {
    // Nothing of ours was built before this: a clock that says so was never set.
    const FLOOR_SECONDS: i64 = 1_767_225_600; // 2026-01-01
    if base::time::now().as_second() >= FLOOR_SECONDS {
        return None;
    }
    problem(
        format!("it says {}", base::time::rfc3339(base::time::now())),
        "set the clock (timedatectl set-ntp true); certificates would not be valid",
    )
}
