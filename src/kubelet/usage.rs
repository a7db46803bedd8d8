//! What the node, its pods and their files use, read from the kernel when somebody asks.
//!
//! Keeps nothing but the last CPU counters, from which rates are made. Reading files'
//! sizes is asked for apart: it takes as long as there are files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use runtime::cri::{
    ContainerState, ContainerStats, DiskUsage, GroupUsage, InterfaceUsage, PodSandbox,
    PodSandboxMetadata, SandboxStats, StatsQuery,
};
use runtime::images::disk_below;
use rustix::fs::{major, minor};
use sys::cgroup::Hierarchy;

use crate::machine::meminfo;
use crate::metrics::node as metrics;
use crate::node::Node;
use crate::observed::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};
use crate::volumes::OnDisk;
use crate::volumes::csi::Measured;

/// Two readings closer than this make no rate.
const RATE_SECONDS_MIN: f64 = 0.5;

pub struct Usage {
    pub at: Timestamp,
    pub node: NodeUsage,
    pub pods: Vec<PodUsage>,
}

/// A group of the host that is no pod's.
pub struct SystemUsage {
    /// As upstream calls it.
    pub name: &'static str,
    pub started: Option<Timestamp>,
    pub group: GroupUsage,
    pub cpu_nano_cores: Option<u64>,
}

#[derive(Default)]
pub struct NodeUsage {
    pub group: GroupUsage,
    pub cpu_nano_cores: Option<u64>,
    pub memory_total_bytes: u64,
    pub memory_available_bytes: u64,
    pub swap_total_bytes: u64,
    pub booted: Option<Timestamp>,
    pub interfaces: Vec<InterfaceUsage>,
    /// All pods together, and this process with what it started.
    pub system: Vec<SystemUsage>,
    pub default_interface: String,
    pub processes: u64,
    pub processes_max: u64,
}

pub struct PodUsage {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    pub cpu_nano_cores: Option<u64>,
    pub stats: SandboxStats,
    pub containers: Vec<ContainerUsage>,
    /// Empty unless files were asked for.
    pub volumes: Vec<VolumeUsage>,
}

pub struct ContainerUsage {
    pub name: String,
    pub image: String,
    /// Nanoseconds since the Unix epoch.
    pub started_at: i64,
    pub cpu_nano_cores: Option<u64>,
    pub stats: ContainerStats,
    /// None unless files were asked for.
    pub logs: Option<DiskUsage>,
}

#[derive(Clone)]
pub struct VolumeUsage {
    pub name: String,
    /// Namespace and name of the claim it stands for.
    pub claim: Option<(String, String)>,
    pub path: PathBuf,
    pub used: DiskUsage,
    /// What all of it could hold.
    pub of: Option<Filesystem>,
    /// Counts against the pod's share of the node's disk.
    pub is_ephemeral: bool,
}

impl PodUsage {
    /// Writable layers, logs and ephemeral volumes together.
    pub fn ephemeral_storage(&self) -> DiskUsage {
        let mut sum = DiskUsage::default();
        for container in &self.containers {
            sum += container.stats.writable_layer.unwrap_or_default();
            sum += container.logs.unwrap_or_default();
        }
        for volume in self.volumes.iter().filter(|volume| volume.is_ephemeral) {
            sum += volume.used;
        }
        sum
    }
}

/// A CPU counter as it was read, and the rate since the reading before.
#[derive(Clone, Copy)]
struct Read {
    at: Timestamp,
    nanos: u64,
    nano_cores: Option<u64>,
}

/// CPU counters of the last reading, by cgroup; "" is the node.
#[derive(Default)]
pub struct Rates(Mutex<HashMap<String, Read>>);

impl Rates {
    /// Billionths of a core since the reading before. Groups that are gone are forgotten.
    fn advance(&self, at: Timestamp, counters: &HashMap<String, u64>) -> HashMap<String, u64> {
        let mut held = self.0.lock();
        held.retain(|group, _| counters.contains_key(group));
        let mut out = HashMap::new();
        for (group, nanos) in counters {
            let read = match held.get(group) {
                // A reading of the future was before the clock was set back.
                Some(before) if before.at <= at => {
                    let seconds = at.duration_since(before.at).as_secs_f64();
                    if seconds < RATE_SECONDS_MIN {
                        *before
                    } else {
                        let used = nanos.saturating_sub(before.nanos) as f64;
                        let rate = (used / seconds) as u64;
                        Read { at, nanos: *nanos, nano_cores: Some(rate) }
                    }
                }
                Some(_) | None => Read { at, nanos: *nanos, nano_cores: None },
            };
            if let Some(rate) = read.nano_cores {
                out.insert(group.clone(), rate);
            }
            held.insert(group.clone(), read);
        }
        out
    }
}

/// When the volumes of pods were measured last, by uid, and what was found.
#[derive(Default)]
pub struct Measurements(Mutex<HashMap<String, (Instant, Vec<VolumeUsage>)>>);

impl Measurements {
    /// What is no older than `age`.
    fn young(&self, uid: &str, age: Duration, now: Instant) -> Option<Vec<VolumeUsage>> {
        let held = self.0.lock();
        let (at, volumes) = held.get(uid)?;
        (now.saturating_duration_since(*at) < age).then(|| volumes.clone())
    }

    /// Notes what was measured; pods that are gone are forgotten.
    fn note(&self, pods: &[PodUsage], measured: &[usize], now: Instant) {
        let mut held = self.0.lock();
        held.retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
        for pod in measured.iter().filter_map(|index| pods.get(*index)) {
            held.insert(pod.uid.clone(), (now, pod.volumes.clone()));
        }
    }
}

/// Reads the numbers; `with_files` also walks writable layers, logs and volumes.
///
/// # Errors
/// What the runtime says when it cannot be read.
pub async fn read(node: &Node, with_files: bool) -> Result<Usage, String> {
    let query = StatsQuery { pods: None, with_disk: with_files };
    let at = base::time::now();
    let pods = pods(node, &query, node.config.volume_stats_age).await?;
    let mut usage = Usage { at, node: read_node(), pods };
    usage.node.system = system(&node.config.cgroup_root, usage.node.booted).await;
    let mut counters: HashMap<String, u64> = [(String::new(), usage.node.group.cpu_nanos)].into();
    for it in &usage.node.system {
        counters.insert(key_of(it), it.group.cpu_nanos);
    }
    for pod in &usage.pods {
        counters.insert(pod.stats.cgroup.clone(), pod.stats.usage.cpu_nanos);
        for container in &pod.containers {
            counters.insert(container.stats.cgroup.clone(), container.stats.usage.cpu_nanos);
        }
    }
    let rates = node.rates.advance(at, &counters);
    usage.node.cpu_nano_cores = rates.get("").copied();
    for it in &mut usage.node.system {
        it.cpu_nano_cores = rates.get(&key_of(it)).copied();
    }
    for pod in &mut usage.pods {
        pod.cpu_nano_cores = rates.get(&pod.stats.cgroup).copied();
        for container in &mut pod.containers {
            container.cpu_nano_cores = rates.get(&container.stats.cgroup).copied();
        }
    }
    Ok(usage)
}

/// No group has such a path.
fn key_of(it: &SystemUsage) -> String {
    format!("//{}", it.name)
}

/// This process' group, from its `/proc/self/cgroup`. The root is everybody's.
fn own_group(text: &str) -> Option<String> {
    let of = |wanted: &str| {
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            controllers.split(',').any(|it| it == wanted).then(|| path.trim_matches('/').to_owned())
        })
    };
    // Without a tree of its own for memory there is the one tree.
    of("memory").or_else(|| of("")).filter(|path| !path.is_empty())
}

/// When a process began, from its `/proc/PID/stat`: hundredths of a second since the boot.
fn process_started(stat: &str, booted: Option<Timestamp>) -> Option<Timestamp> {
    // Its name, which is in brackets, may have anything in it.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    booted?.checked_add(Duration::from_millis(ticks * 10)).ok()
}

async fn system(pods: &str, booted: Option<Timestamp>) -> Vec<SystemUsage> {
    let pods = pods.to_owned();
    let work = move || {
        let own = own_group(&text("/proc/self/cgroup"));
        let own_start = process_started(&text("/proc/self/stat"), booted);
        let all = [("pods", Some(pods), booted), ("kubelet", own, own_start)];
        let hierarchy = Hierarchy::detect().ok()?;
        let read = all.into_iter().filter_map(|(name, path, started)| {
            let group = hierarchy.group(&path?).usage().ok()?;
            Some(SystemUsage { name, started, group, cpu_nano_cores: None })
        });
        Some(read.collect())
    };
    base::task::spawn_blocking(work).await.ok().flatten().unwrap_or_default()
}

/// Of the pods `uids` alone, files included.
///
/// # Errors
/// What the runtime says when it cannot be read.
pub async fn read_pods(node: &Node, uids: BTreeSet<String>) -> Result<Vec<PodUsage>, String> {
    pods(node, &StatsQuery { pods: Some(uids), with_disk: true }, Some(Duration::ZERO)).await
}

async fn pods(
    node: &Node,
    query: &StatsQuery,
    age_max: Option<Duration>,
) -> Result<Vec<PodUsage>, String> {
    let stats = node.runtime.pod_sandbox_stats(query).await.map_err(|error| error.to_string())?;
    let sandboxes: HashMap<String, PodSandbox> =
        node.observed.sandboxes().into_iter().map(|it| (it.id.clone(), it)).collect();
    let pods: Vec<PodUsage> = stats
        .into_iter()
        .filter_map(|stats| {
            let known = sandboxes.get(&stats.id)?;
            Some(PodUsage {
                name: known.metadata.name.clone(),
                namespace: known.metadata.namespace.clone(),
                uid: known.metadata.uid.clone(),
                created_at: known.created_at,
                cpu_nano_cores: None,
                containers: containers(node, &stats),
                stats,
                volumes: Vec::new(),
            })
        })
        .collect();
    if query.with_disk { files(node, pods, age_max).await } else { Ok(pods) }
}

fn containers(node: &Node, stats: &SandboxStats) -> Vec<ContainerUsage> {
    let mut out = Vec::new();
    for stats in &stats.containers {
        let Some(known) = node.observed.container(&stats.id) else { continue };
        let name = known.labels.get(LABEL_CONTAINER_NAME).unwrap_or(&known.metadata.name);
        out.push(ContainerUsage {
            name: name.clone(),
            image: known.user_specified_image.clone(),
            started_at: known.started_at,
            cpu_nano_cores: None,
            stats: stats.clone(),
            logs: None,
        });
    }
    out
}

/// Fills in the sizes of logs and volumes, off the async threads. Those of volumes may be as old
/// as `age_max`; None leaves them out.
async fn files(
    node: &Node,
    mut pods: Vec<PodUsage>,
    age_max: Option<Duration>,
) -> Result<Vec<PodUsage>, String> {
    let config = node.config.clone();
    let begun = Instant::now();
    let mut known = BTreeSet::new();
    for (index, pod) in pods.iter_mut().enumerate() {
        let young = age_max.map(|age| node.measurements.young(&pod.uid, age, begun));
        match young {
            None => drop(known.insert(index)),
            Some(None) => {}
            Some(Some(volumes)) => {
                pod.volumes = volumes;
                known.insert(index);
            }
        }
    }
    let wanted: Vec<(usize, String, Vec<OnDisk>)> = pods
        .iter()
        .enumerate()
        .filter(|(index, _)| !known.contains(index))
        .filter_map(|(index, usage)| {
            let wanted = node.pods.get(&usage.uid)?;
            let volumes = node.volumes.on_disk(&config, &wanted.pod);
            Some((index, usage.uid.clone(), volumes))
        })
        .collect();
    // Only drivers know how full their volumes are; all are asked at once.
    let now = base::time::now();
    let asked = wanted.iter().map(|(index, uid, volumes)| async move {
        let csi = &node.volumes.csi;
        let each = volumes.iter().map(|volume| csi.measure(uid, &volume.name, now));
        (*index, futures::future::join_all(each).await)
    });
    let mut measured: HashMap<usize, Vec<Option<Measured>>> =
        futures::future::join_all(asked).await.into_iter().collect();
    let fresh: Vec<usize> = wanted.iter().map(|(index, ..)| *index).collect();
    let work = move || {
        for pod in &mut pods {
            let dir = config.log_dir(&pod.namespace, &pod.name, &pod.uid);
            for container in &mut pod.containers {
                container.logs = Some(disk_below(&dir.join(&container.name)));
            }
        }
        for (index, _, volumes) in wanted {
            let measured = measured.remove(&index).unwrap_or_default();
            pods[index].volumes = volumes
                .into_iter()
                .zip(measured)
                .map(|(volume, measured)| VolumeUsage {
                    // A volume of its own is as full as its file system; walking it could
                    // take forever.
                    used: match (&volume.claim, measured) {
                        (_, Some(measured)) => {
                            DiskUsage { bytes: measured.used_bytes, inodes: measured.inodes_used }
                        }
                        (Some(_), None) => room(&volume.path).map(used).unwrap_or_default(),
                        (None, None) => disk_below(&volume.path),
                    },
                    of: measured.map(of_driver).or_else(|| room(&volume.path)),
                    name: volume.name,
                    claim: volume.claim,
                    path: volume.path,
                    is_ephemeral: volume.is_ephemeral,
                })
                .collect();
        }
        pods
    };
    let pods = base::task::spawn_blocking(work).await;
    let pods = pods.map_err(|error| format!("files not read: {error}"))?;
    if age_max.is_some_and(|age| !age.is_zero()) {
        node.measurements.note(&pods, &fresh, begun);
    }
    Ok(pods)
}

/// How full the volumes are that claims stand for, by namespace and name of the claim.
pub async fn claims(node: &Node) -> BTreeMap<(String, String), Filesystem> {
    let now = base::time::now();
    let mut out = BTreeMap::new();
    for wanted in node.pods.list() {
        for volume in node.volumes.on_disk(&node.config, &wanted.pod) {
            let Some(claim) = volume.claim else { continue };
            if out.contains_key(&claim) {
                continue;
            }
            let uid = crate::pod::uid(&wanted.pod);
            let measured = node.volumes.csi.measure(uid, &volume.name, now).await.map(of_driver);
            let statfs = || {
                let begun = Instant::now();
                let found = room(&volume.path);
                metrics::volumes_measured("statfs", begun.elapsed());
                found
            };
            if let Some(fs) = measured.or_else(statfs) {
                out.insert(claim, fs);
            }
        }
    }
    out
}

/// Bytes of the logs of each container, by its pod and name.
pub async fn logs(node: &Node) -> Vec<((PodSandboxMetadata, String), u64)> {
    let pods: HashMap<String, PodSandboxMetadata> =
        node.observed.sandboxes().into_iter().map(|it| (it.id, it.metadata)).collect();
    let containers = node.observed.containers();
    let running = containers.into_iter().filter(|it| it.state == ContainerState::Running);
    let places: Vec<_> = running
        .filter_map(|it| {
            let pod = pods.get(&it.sandbox_id)?.clone();
            let dir = node.config.log_dir(&pod.namespace, &pod.name, &pod.uid);
            let name = it.metadata.name;
            Some((dir.join(&name), (pod, name)))
        })
        .collect();
    let work =
        move || places.into_iter().map(|(dir, whose)| (whose, disk_below(&dir).bytes)).collect();
    base::task::spawn_blocking(work).await.unwrap_or_default()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn read_node() -> NodeUsage {
    let memory = text("/proc/meminfo");
    let bytes = |name: &str| -> u64 {
        meminfo(&memory, name).and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)
    };
    let (total, available) = (bytes("MemTotal"), bytes("MemAvailable"));
    let vm = text("/proc/vmstat");
    let counted = |name: &str| -> u64 {
        vm.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
            .unwrap_or(0)
    };
    let stat = text("/proc/stat");
    let (processes, processes_max) = processes();
    NodeUsage {
        system: Vec::new(),
        group: GroupUsage {
            cpu_nanos: cpu_nanos(&stat),
            memory_bytes: total.saturating_sub(bytes("MemFree")),
            memory_working_set_bytes: total.saturating_sub(available),
            memory_rss_bytes: bytes("AnonPages"),
            memory_cache_bytes: bytes("Cached"),
            page_faults: counted("pgfault"),
            major_page_faults: counted("pgmajfault"),
            swap_bytes: Some(bytes("SwapTotal").saturating_sub(bytes("SwapFree"))),
            oom_kills: counted("oom_kill"),
            processes,
            stalled: sys::cgroup::Stalled::of_machine(),
            ..GroupUsage::default()
        },
        cpu_nano_cores: None,
        memory_total_bytes: total,
        memory_available_bytes: available,
        swap_total_bytes: bytes("SwapTotal"),
        booted: booted(&stat),
        interfaces: runtime::oci::interfaces_of("self"),
        default_interface: default_interface(&text("/proc/net/route")),
        processes,
        processes_max,
    }
}

/// How many tasks there are, and how many there can be.
pub fn processes() -> (u64, u64) {
    let now = text("/proc/loadavg")
        .split_whitespace()
        .nth(3)
        .and_then(|field| field.split('/').nth(1)?.parse().ok())
        .unwrap_or(0);
    let limit = |path: &str| -> u64 { text(path).trim().parse().unwrap_or(u64::MAX) };
    (now, limit("/proc/sys/kernel/pid_max").min(limit("/proc/sys/kernel/threads-max")))
}

/// Time that all CPUs were busy, from /proc/stat's ticks of a hundredth of a second.
fn cpu_nanos(stat: &str) -> u64 {
    let Some(line) = stat.lines().find(|line| line.starts_with("cpu ")) else { return 0 };
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).filter_map(|it| it.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|index| ticks.get(*index)).sum();
    busy.saturating_mul(10_000_000)
}

fn booted(stat: &str) -> Option<Timestamp> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Timestamp::from_second(seconds.trim().parse().ok()?).ok()
}

/// The interface of the route to everywhere in /proc/net/route.
fn default_interface(routes: &str) -> String {
    routes
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000"))
        .and_then(|fields| fields.first().map(|name| (*name).to_owned()))
        .unwrap_or_default()
}

/// Size of a file system and what is left of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filesystem {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

fn of_driver(measured: Measured) -> Filesystem {
    Filesystem {
        capacity_bytes: measured.capacity_bytes,
        available_bytes: measured.available_bytes,
        used_bytes: measured.used_bytes,
        inodes: measured.inodes,
        inodes_free: measured.inodes_free,
    }
}

fn used(fs: Filesystem) -> DiskUsage {
    DiskUsage { bytes: fs.used_bytes, inodes: fs.inodes.saturating_sub(fs.inodes_free) }
}

/// What sysfs counts the size of a block device in, in bytes, however large its own blocks are.
const SECTOR: u64 = 512;

/// How large a volume is and how full; of a device only the size can be told. The device is not
/// opened: that would wake a disk that sleeps, and fail for one that its driver holds alone.
fn room(path: &Path) -> Option<Filesystem> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.file_type().is_block_device() {
        return filesystem(path);
    }
    let device = metadata.rdev();
    let size = format!("/sys/dev/block/{}:{}/size", major(device), minor(device));
    let text = std::fs::read_to_string(size).ok()?;
    let sectors: u64 = text.trim().parse().ok()?;
    Some(Filesystem { capacity_bytes: sectors.saturating_mul(SECTOR), ..Filesystem::default() })
}

/// The file system that `path` lies on; None when it cannot be read.
pub fn filesystem(path: &Path) -> Option<Filesystem> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(Filesystem {
        capacity_bytes: bytes(stat.f_blocks),
        available_bytes: bytes(stat.f_bavail),
        used_bytes: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    })
}

/// A pod of which a container runs, as the runtime knows it.
#[derive(Default)]
pub struct RunningPod {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Names and images.
    pub containers: Vec<(String, String)>,
}

pub fn running(node: &Node) -> Vec<RunningPod> {
    let mut pods: HashMap<String, RunningPod> = HashMap::new();
    for container in node.observed.containers().into_iter().filter(|it| it.pid != 0) {
        let label = |name: &str| container.labels.get(name).cloned().unwrap_or_default();
        let uid = label(LABEL_POD_UID);
        let pod = pods.entry(uid.clone()).or_insert_with(|| RunningPod {
            uid,
            namespace: label(LABEL_POD_NAMESPACE),
            name: label(LABEL_POD_NAME),
            containers: Vec::new(),
        });
        pod.containers.push((label(LABEL_CONTAINER_NAME), container.image_ref.clone()));
    }
    pods.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_the_group_that_counts_its_memory_and_began_when_it_did() {
        let split = "12:pids:/a\n5:cpu,cpuacct:/b\n4:memory:/c/d\n0::/e\n";
        assert_eq!(own_group(split).as_deref(), Some("c/d"));
        assert_eq!(
            own_group("0::/system.slice/coracle.service\n").as_deref(),
            Some("system.slice/coracle.service")
        );
        assert_eq!(own_group("0::/\n"), None);
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 9 0 250 1 1";
        let booted = Timestamp::from_second(1_000).unwrap();
        let began = process_started(stat, Some(booted)).unwrap();
        assert_eq!(began.as_millisecond(), 1_002_500);
    }

    #[tokio::test]
    async fn of_a_device_only_the_size_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let attached = crate::volumes::attached::Attached::new(dir.path());
        let device = attached.file("u1", &file).await.unwrap();
        let size = Filesystem { capacity_bytes: 1 << 20, ..Filesystem::default() };
        assert_eq!(room(&device), Some(size));
        assert!(room(dir.path()).unwrap().inodes > 0);
        attached.release("u1").await.unwrap();
    }

    #[test]
    fn busy_time_leaves_idleness_out() {
        let stat = "cpu  1 2 3 1000 1000 4 5 6 0 0\ncpu0 9 9 9 9\nbtime 1700000000\n";
        assert_eq!(cpu_nanos(stat), 21 * 10_000_000);
        assert_eq!(cpu_nanos(""), 0);
        assert_eq!(booted(stat).unwrap().as_second(), 1_700_000_000);
    }

    #[test]
    fn the_default_route_names_the_nodes_interface() {
        let routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask\n\
                      lan0 0001A8C0 00000000 0001 0 0 0 00FFFFFF\n\
                      wan0 00000000 0101A8C0 0003 0 0 0 00000000\n";
        assert_eq!(default_interface(routes), "wan0");
        assert_eq!(default_interface(""), "");
    }

    #[test]
    fn rates_come_from_two_readings_and_groups_that_are_gone_are_forgotten() {
        let rates = Rates::default();
        let at = |millis: i64| Timestamp::from_millisecond(1_000_000 + millis).unwrap();
        let read =
            |at, nanos: u64| rates.advance(at, &[("a".to_owned(), nanos)].into()).get("a").copied();
        assert_eq!(read(at(0), 100), None);
        assert_eq!(read(at(100), 900), None, "too close together");
        assert_eq!(read(at(2_000), 500_000_100), Some(250_000_000));
        assert_eq!(read(at(2_100), 600_000_000), Some(250_000_000), "the last rate stands");
        rates.advance(at(3_000), &HashMap::new());
        assert_eq!(read(at(4_000), 700_000_000), None);
        // The clock is set back: it is not waited for.
        assert_eq!(read(at(-900_000), 800_000_000), None);
        assert_eq!(read(at(-898_000), 1_300_000_000), Some(250_000_000));
    }
}
