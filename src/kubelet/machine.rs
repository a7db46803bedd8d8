//! What this machine is and has, as the Node object tells it.
//!
//! Read once at start; a machine that grows is read anew at the next start.

use std::path::Path;

use k8s_openapi::api::core::v1::{NodeSwapStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::config::{KUBELET_VERSION, KubeletConfig};
use crate::eviction::thresholds::Signal;
use crate::quantity::{self, ResourceList};
use crate::resources::PAGE_SIZES_MAX;

#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// `coracle`, `containerd`, ...
    pub runtime_name: String,
    pub memory_bytes: i64,
    /// cgroup v2 alone.
    pub has_unified_cgroups: bool,
    pub has_app_armor: bool,
    pub swap_bytes: u64,
    /// Sizes of huge pages whose use can be limited, in bytes; 0 is none.
    pub huge_page_bytes: [u64; PAGE_SIZES_MAX],
    pub capacity: ResourceList,
    pub allocatable: ResourceList,
    pub info: NodeSystemInfo,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The value of `name` in /proc/meminfo, in bytes.
pub fn meminfo(text: &str, name: &str) -> Option<i64> {
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    let kib: i64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// All of the machine's memory.
pub fn memory_bytes() -> u64 {
    let bytes = meminfo(&read("/proc/meminfo"), "MemTotal").unwrap_or(0);
    u64::try_from(bytes).unwrap_or(0)
}

/// The nice name in os-release(5).
fn os_image(text: &str) -> String {
    text.lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches(['"', '\'']).to_owned())
        .unwrap_or_else(|| "Linux".to_owned())
}

/// Go's name of the architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn disk_bytes(path: &Path) -> Option<i64> {
    let mut here = path;
    loop {
        match rustix::fs::statvfs(here) {
            Ok(stat) => return i64::try_from(stat.f_blocks.checked_mul(stat.f_frsize)?).ok(),
            // Not made yet: it will lie on the same disk as its parent.
            Err(_) => here = here.parent()?,
        }
    }
}

impl Machine {
    pub fn read(config: &KubeletConfig, runtime_name: &str, runtime_version: &str) -> Self {
        let meminfo_text = read("/proc/meminfo");
        let memory_bytes = meminfo(&meminfo_text, "MemTotal").unwrap_or(0);
        let swap = meminfo(&meminfo_text, "SwapTotal").unwrap_or(0);
        let cgroups = sys::cgroup::Hierarchy::detect();
        let mut huge_page_bytes = [0; PAGE_SIZES_MAX];
        if cgroups.as_ref().is_ok_and(|it| it.has("hugetlb")) {
            let sizes = huge_pages().into_iter().map(|(bytes, ..)| bytes);
            huge_page_bytes.iter_mut().zip(sizes).for_each(|(to, bytes)| *to = bytes);
        }
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let disk = disk_bytes(&config.root_dir).unwrap_or(0);
        let mut capacity: ResourceList = [
            ("cpu".to_owned(), Quantity(cpus.to_string())),
            ("memory".to_owned(), quantity::from_bytes(memory_bytes)),
            ("ephemeral-storage".to_owned(), quantity::from_bytes(disk)),
            ("pods".to_owned(), Quantity(config.max_pods.to_string())),
        ]
        .into();
        for (_, name, amount) in huge_pages() {
            capacity.insert(name, amount);
        }
        let allocatable = allocatable(config, &capacity);
        let machine_id = read("/etc/machine-id");
        let boot_id = read("/proc/sys/kernel/random/boot_id");
        let system_uuid = read("/sys/class/dmi/id/product_uuid");
        Self {
            runtime_name: runtime_name.to_owned(),
            memory_bytes,
            has_unified_cgroups: cgroups.is_ok_and(|it| it.is_unified()),
            swap_bytes: u64::try_from(swap).unwrap_or(0),
            huge_page_bytes,
            has_app_armor: read("/sys/module/apparmor/parameters/enabled").starts_with('Y'),
            capacity,
            allocatable,
            info: NodeSystemInfo {
                architecture: architecture().to_owned(),
                boot_id,
                container_runtime_version: format!("{runtime_name}://{runtime_version}"),
                kernel_version: read("/proc/sys/kernel/osrelease"),
                kube_proxy_version: String::new(),
                kubelet_version: KUBELET_VERSION.to_owned(),
                system_uuid: if system_uuid.is_empty() { machine_id.clone() } else { system_uuid },
                machine_id,
                operating_system: "linux".to_owned(),
                os_image: os_image(&read("/etc/os-release")),
                swap: (swap > 0).then_some(NodeSwapStatus { capacity: Some(swap) }),
            },
        }
    }
}

/// What pods can have: the capacity without what is reserved, and without what the hard
/// eviction thresholds keep free.
fn allocatable(config: &KubeletConfig, capacity: &ResourceList) -> ResourceList {
    let mut out = capacity.clone();
    for (name, signal) in [
        ("cpu", None),
        ("memory", Some(Signal::MemoryAvailable)),
        ("ephemeral-storage", Some(Signal::NodeFsAvailable)),
    ] {
        let whole = quantity::milli_of(Some(capacity), name);
        let reserved = quantity::milli_of(Some(&config.kube_reserved), name)
            .saturating_add(quantity::milli_of(Some(&config.system_reserved), name));
        let bytes = u64::try_from(whole / 1000).unwrap_or(0);
        let kept = signal.map_or(0, |signal| config.eviction.kept_free(signal, bytes));
        let kept = i64::try_from(kept).unwrap_or(i64::MAX).saturating_mul(1000);
        if reserved == 0 && kept == 0 {
            continue;
        }
        let left = whole.saturating_sub(reserved).saturating_sub(kept).max(0);
        let amount = match name {
            "cpu" if left % 1000 != 0 => Quantity(format!("{left}m")),
            "cpu" => Quantity((left / 1000).to_string()),
            "memory" => quantity::from_bytes(left / 1000),
            _ => Quantity((left / 1000).to_string()),
        };
        out.insert(name.to_owned(), amount);
    }
    out
}

/// Bytes of a page, `hugepages-2Mi` and so on, and how much there is, for each size that the
/// kernel offers.
fn huge_pages() -> Vec<(u64, String, Quantity)> {
    let mut out = Vec::new();
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return out };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let size =
            name.to_str().and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB"));
        let Some(kib) = size.and_then(|size| size.parse::<i64>().ok()) else { continue };
        let count: i64 = std::fs::read_to_string(entry.path().join("nr_hugepages"))
            .ok()
            .and_then(|count| count.trim().parse().ok())
            .unwrap_or(0);
        let size = match kib {
            kib if kib % (1 << 20) == 0 => format!("{}Gi", kib >> 20),
            kib if kib % 1024 == 0 => format!("{}Mi", kib >> 10),
            kib => format!("{kib}Ki"),
        };
        let bytes = kib.saturating_mul(1024).saturating_mul(count);
        let of_page = u64::try_from(kib).unwrap_or(0) << 10;
        out.push((of_page, format!("hugepages-{size}"), quantity::from_bytes(bytes)));
    }
    out.sort_by_key(|(bytes, ..)| *bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_from_its_files() {
        assert_eq!(meminfo("MemTotal:  16 kB\nMemFree: 2 kB\n", "MemFree"), Some(2048));
        assert_eq!(os_image("ID=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        let machine = Machine::read(&crate::sandbox::samples::config(), "coracle", "0.1.0");
        assert!(machine.memory_bytes > 0);
        assert_eq!(machine.info.container_runtime_version, "coracle://0.1.0");
        assert_eq!(machine.capacity["pods"].0, "110");
    }

    #[test]
    fn pods_get_what_is_neither_reserved_nor_kept_free() {
        let list = |pairs: &[(&str, &str)]| -> ResourceList {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), Quantity((*b).to_owned()))).collect()
        };
        let mut config = crate::sandbox::samples::config();
        config.kube_reserved = list(&[("cpu", "100m"), ("memory", "1Gi")]);
        config.system_reserved = list(&[("memory", "1Gi"), ("ephemeral-storage", "1000")]);
        let capacity = list(&[
            ("cpu", "4"),
            ("memory", "8Gi"),
            ("ephemeral-storage", "100000"),
            ("pods", "5"),
        ]);
        let left = allocatable(&config, &capacity);
        assert_eq!(left["cpu"].0, "3900m");
        assert_eq!(left["memory"].0, format!("{}Ki", 6 * 1024 * 1024 - 100 * 1024));
        assert_eq!(left["ephemeral-storage"].0, "94000");
        assert_eq!(left["pods"].0, "5");
    }
}
