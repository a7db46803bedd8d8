//! Limits of a group, and the files of cgroup v2 that they become: pure.

use std::collections::BTreeMap;
use std::io;

/// 0, -1 or empty leave a limit alone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    pub cpu_shares: u64,
    pub cpu_quota: i64,
    pub cpu_period: u64,
    pub memory_bytes: i64,
    pub pids: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    /// Bytes by size of page, as the kernel names it (`2MB`).
    pub huge_pages: BTreeMap<String, u64>,
    /// Bytes beyond memory; None keeps the group from swapping once its memory is bounded.
    pub swap_bytes: Option<u64>,
    pub unified: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum File {
    Required,
    Optional,
}

/// What is written to which files of a v2 group, in order.
pub(super) fn unified_files(limits: &Limits) -> io::Result<Vec<(String, String, File)>> {
    let mut out = Vec::new();
    let mut put = |file: &str, value: String, kind| out.push((file.to_owned(), value, kind));
    if limits.cpu_shares > 0 {
        let shares = limits.cpu_shares.clamp(2, 262_144);
        let weight = 1 + ((shares - 2) * 9_999) / 262_142;
        put("cpu.weight", weight.to_string(), File::Required);
    }
    if limits.cpu_quota != 0 || limits.cpu_period != 0 {
        let period = if limits.cpu_period == 0 { 100_000 } else { limits.cpu_period };
        let value = if limits.cpu_quota > 0 {
            format!("{} {period}", limits.cpu_quota)
        } else {
            format!("max {period}")
        };
        put("cpu.max", value, File::Required);
    }
    if limits.memory_bytes > 0 {
        put("memory.max", limits.memory_bytes.to_string(), File::Required);
    }
    if limits.memory_bytes > 0 || limits.swap_bytes.is_some() {
        // Swap would turn a limit into a slow one, unless somebody asks for it.
        put("memory.swap.max", limits.swap_bytes.unwrap_or(0).to_string(), File::Optional);
    }
    for (size, bytes) in &limits.huge_pages {
        put(&format!("hugetlb.{size}.max"), bytes.to_string(), File::Required);
        // Reserved pages count apart (Linux 5.7).
        put(&format!("hugetlb.{size}.rsvd.max"), bytes.to_string(), File::Optional);
    }
    if limits.pids > 0 {
        put("pids.max", limits.pids.to_string(), File::Required);
    }
    if !limits.cpuset_cpus.is_empty() {
        put("cpuset.cpus", limits.cpuset_cpus.clone(), File::Required);
    }
    if !limits.cpuset_mems.is_empty() {
        put("cpuset.mems", limits.cpuset_mems.clone(), File::Required);
    }
    for (file, value) in &limits.unified {
        if file.contains('/') || file.starts_with("cgroup.") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{file:?} is not a limit"),
            ));
        }
        put(file, value.clone(), File::Required);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_files_of_a_v2_group() {
        let base = Limits::default();
        let of = |limits: Limits| -> Vec<String> {
            let files = unified_files(&limits).unwrap();
            files.into_iter().map(|(file, value, _)| format!("{file}={value}")).collect()
        };
        let cases: Vec<(Limits, &[&str])> = vec![
            (base.clone(), &[]),
            (Limits { cpu_shares: 1024, ..base.clone() }, &["cpu.weight=39"]),
            (Limits { cpu_quota: 5_000, ..base.clone() }, &["cpu.max=5000 100000"]),
            (Limits { cpu_quota: -1, ..base.clone() }, &["cpu.max=max 100000"]),
            (Limits { memory_bytes: 64, ..base.clone() }, &["memory.max=64", "memory.swap.max=0"]),
            (
                Limits { memory_bytes: 64, swap_bytes: Some(32), ..base.clone() },
                &["memory.max=64", "memory.swap.max=32"],
            ),
            (Limits { swap_bytes: Some(0), ..base.clone() }, &["memory.swap.max=0"]),
            (
                Limits { huge_pages: [("2MB".into(), 4_194_304)].into(), ..base.clone() },
                &["hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max=4194304"],
            ),
            (
                Limits { cpuset_cpus: "1-2".into(), cpuset_mems: "0".into(), ..base.clone() },
                &["cpuset.cpus=1-2", "cpuset.mems=0"],
            ),
            (
                Limits { unified: [("memory.high".into(), "9".into())].into(), ..base.clone() },
                &["memory.high=9"],
            ),
        ];
        for (limits, want) in cases {
            assert_eq!(of(limits), want);
        }
        let climbs = Limits { unified: [("../x".into(), "1".into())].into(), ..base };
        assert!(unified_files(&climbs).is_err());
    }
}
