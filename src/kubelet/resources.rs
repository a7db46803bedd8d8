//! What a pod and its containers may use, in the kernel's numbers: QoS class, cgroup
//! parent, CPU shares and quota, memory limit, OOM score.
//!
//! Pure. Requests that the scheduler counts are summed by the same rules here.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use runtime::cri::LinuxResources;

use crate::placement::whole_cpus;
use crate::pod::{self, Role};
use crate::quantity::{self, ResourceList};

const CPU_QUOTA_MIN_MICROSECONDS: i64 = 1_000;
const CPU_SHARES_MIN: u64 = 2;
const CPU_SHARES_MAX: u64 = 262_144;
/// Priority from which a pod is node critical.
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

fn requests(container: &Container) -> Option<&ResourceList> {
    container.resources.as_ref().and_then(|resources| resources.requests.as_ref())
}

fn limits(container: &Container) -> Option<&ResourceList> {
    container.resources.as_ref().and_then(|resources| resources.limits.as_ref())
}

/// The container's own limit in thousandths, or its pod's where it has none: what it may use is
/// bounded by that, and whoever looks from within it sees so.
pub fn limit_milli(pod: &Pod, container: &Container, name: &str) -> i64 {
    let own = quantity::milli_of(limits(container), name);
    if own > 0 { own } else { whole_limit_milli(pod, name) }
}

/// Whether the pod asks for resources as a whole.
pub fn has_whole(pod: &Pod) -> bool {
    let level = pod::spec(pod).resources.as_ref();
    level.is_some_and(|it| it.requests.is_some() || it.limits.is_some())
}

/// The limit of the pod as a whole; 0 where it says none.
pub fn whole_limit_milli(pod: &Pod, name: &str) -> i64 {
    let level = pod::spec(pod).resources.as_ref();
    quantity::milli_of(level.and_then(|it| it.limits.as_ref()), name)
}

/// The pod's class; the API server's answer where it already gave one.
pub fn qos(pod: &Pod) -> Qos {
    match pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        Some("Guaranteed") => return Qos::Guaranteed,
        Some("Burstable") => return Qos::Burstable,
        Some("BestEffort") => return Qos::BestEffort,
        _ => {}
    }
    let pairs: Vec<(Option<&ResourceList>, Option<&ResourceList>)> = match &pod::spec(pod).resources
    {
        Some(level) if has_whole(pod) => {
            vec![(level.requests.as_ref(), level.limits.as_ref())]
        }
        _ => pod::spec(pod)
            .containers
            .iter()
            .chain(pod::init_containers(pod))
            .map(|container| (requests(container), limits(container)))
            .collect(),
    };
    let mut any = false;
    let mut guaranteed = true;
    for (requests, limits) in pairs {
        for name in ["cpu", "memory"] {
            let request = quantity::milli_of(requests, name);
            let limit = quantity::milli_of(limits, name);
            any |= request > 0 || limit > 0;
            let requested = if request == 0 { limit } else { request };
            guaranteed &= limit > 0 && requested == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// `kubepods/burstable/podUID`, below `root`.
pub fn cgroup_parent(pod: &Pod, root: &str) -> String {
    let uid = pod::uid(pod);
    match qos(pod) {
        Qos::Guaranteed => format!("{root}/pod{uid}"),
        Qos::Burstable => format!("{root}/burstable/pod{uid}"),
        Qos::BestEffort => format!("{root}/besteffort/pod{uid}"),
    }
}

pub fn cpu_shares(milli: i64) -> u64 {
    if milli <= 0 {
        return CPU_SHARES_MIN;
    }
    (milli as u64 * 1024 / 1000).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX)
}

/// What the pod asks of `name`: containers and sidecars together, or more if an init
/// container needs more while it runs.
pub fn pod_request_milli(pod: &Pod, name: &str) -> i64 {
    let spec = pod::spec(pod);
    let overhead = quantity::milli_of(spec.overhead.as_ref(), name);
    let of = |requests: Option<&ResourceList>, limits: Option<&ResourceList>| {
        let request = quantity::milli_of(requests, name);
        if request == 0 { quantity::milli_of(limits, name) } else { request }
    };
    let level = spec.resources.as_ref();
    let asked = level.map_or(0, |it| of(it.requests.as_ref(), it.limits.as_ref()));
    if asked > 0 {
        return asked + overhead;
    }
    of_containers(pod, |container| of(requests(container), limits(container))) + overhead
}

/// What the containers have together, or more while an init container runs.
fn of_containers(pod: &Pod, of: impl Fn(&Container) -> i64) -> i64 {
    let main: i64 = pod::spec(pod).containers.iter().map(&of).sum();
    let mut sidecars = 0;
    let mut while_starting = 0;
    for container in pod::init_containers(pod) {
        if pod::is_sidecar(container) {
            sidecars += of(container);
            while_starting = while_starting.max(sidecars);
        } else {
            while_starting = while_starting.max(sidecars + of(container));
        }
    }
    (main + sidecars).max(while_starting)
}

/// The limits of `name` that containers have, together, or more while an init container runs.
pub fn limit_of_containers_milli(pod: &Pod, name: &str) -> i64 {
    of_containers(pod, |container| quantity::milli_of(limits(container), name))
}

/// What containers ask for and may have, together; None where none of them says anything.
pub fn of_all_containers(pod: &Pod) -> Option<ResourceRequirements> {
    type Of = fn(&Container) -> Option<&ResourceList>;
    let sum = |of: Of| {
        let all = pod::spec(pod).containers.iter().chain(pod::init_containers(pod));
        let names: BTreeSet<&String> = all.filter_map(of).flat_map(|list| list.keys()).collect();
        let amount = |name: &str| of_containers(pod, |it| quantity::milli_of(of(it), name));
        let list: ResourceList =
            names.into_iter().map(|it| (it.clone(), quantity::shown(it, amount(it)))).collect();
        (!list.is_empty()).then_some(list)
    };
    let whole = ResourceRequirements { requests: sum(requests), limits: sum(limits), claims: None };
    (whole != ResourceRequirements::default()).then_some(whole)
}

/// Some when every container (or the pod itself) has a limit of `name`. What the pod's
/// runtime class needs comes on top.
fn pod_limit_milli(pod: &Pod, name: &str) -> Option<i64> {
    let spec = pod::spec(pod);
    let overhead = quantity::milli_of(spec.overhead.as_ref(), name);
    let whole = whole_limit_milli(pod, name);
    if whole > 0 {
        return Some(whole + overhead);
    }
    let bounded = |container: &Container| quantity::milli_of(limits(container), name) > 0;
    let all = spec.containers.iter().all(bounded)
        && pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c)).all(bounded);
    let sum = limit_of_containers_milli(pod, name);
    (all && sum > 0).then_some(sum + overhead)
}

/// Limits of the pod's own cgroup.
pub fn pod_resources(pod: &Pod, pids_limit: i64, host: Host) -> LinuxResources {
    let class = qos(pod);
    let cpu = pod_request_milli(pod, "cpu");
    let (quota, memory) = match class {
        Qos::BestEffort => (0, 0),
        Qos::Guaranteed | Qos::Burstable => (
            pod_limit_milli(pod, "cpu").map_or(0, |milli| host.cpu.quota(milli)),
            pod_limit_milli(pod, "memory").map(|milli| milli / 1000).unwrap_or(0),
        ),
    };
    let has_own_cpus = pod::containers(pod)
        .iter()
        .any(|(role, it)| *role != Role::Ephemeral && host.is_exclusive(pod, it));
    let mut unified = BTreeMap::new();
    let requested = pod_request_milli(pod, "memory") / 1000;
    if host.has_unified_cgroups
        && requested > 0
        && let Some(file) = host.kept_by(class)
    {
        unified.insert(file.to_owned(), requested.to_string());
    }
    let of_all = |name: &str| {
        let milli = whole_limit_milli(pod, name).max(limit_of_containers_milli(pod, name));
        u64::try_from(milli / 1000).unwrap_or(0)
    };
    LinuxResources {
        cpu_shares: if class == Qos::BestEffort { CPU_SHARES_MIN } else { cpu_shares(cpu) },
        cpu_quota: if has_own_cpus { 0 } else { quota },
        cpu_period: host.cpu.period_micros.unsigned_abs(),
        memory_limit: memory,
        pids_limit,
        huge_pages: huge_pages(host, of_all),
        // The containers' own limits say how much each may swap.
        swap_bytes: host.swap_bytes.filter(|_| host.has_unified_cgroups && memory > 0),
        unified,
        ..LinuxResources::default()
    }
}

/// Sizes of huge pages that a machine can have.
pub const PAGE_SIZES_MAX: usize = 4;

/// What limits depend on besides the pod.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host {
    pub memory_bytes: i64,
    /// What pods together can have.
    pub memory_allocatable_bytes: i64,
    pub has_unified_cgroups: bool,
    /// Sizes of huge pages whose use can be limited, in bytes; 0 is none.
    pub huge_pages: [u64; PAGE_SIZES_MAX],
    /// All swap of the node, where pods may use it.
    pub swap_bytes: Option<u64>,
    /// Slows a container down at this share of the memory that it may have above its request.
    /// cgroup v2 only.
    pub memory_qos: Option<f64>,
    /// Requested memory is kept for who asked for it, where memory QoS is on.
    pub keeps_requests: bool,
    /// Out of memory, one process of a container ends and not all.
    pub ends_one_process: bool,
    pub cpu: CpuTime,
    /// Containers that ask for whole CPUs have them for themselves (the static CPU policy).
    pub gives_cpus_away: bool,
}

/// How limits of CPU time are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTime {
    pub is_limited: bool,
    /// A limit is a part of each such period.
    pub period_micros: i64,
}

impl Default for CpuTime {
    /// Upstream's.
    fn default() -> Self {
        Self { is_limited: true, period_micros: 100_000 }
    }
}

impl CpuTime {
    /// Microseconds of each period; 0 is no limit.
    pub fn quota(self, milli: i64) -> i64 {
        if milli <= 0 || !self.is_limited {
            return 0;
        }
        (milli * self.period_micros / 1000).max(CPU_QUOTA_MIN_MICROSECONDS)
    }
}

impl Host {
    /// The file of cgroup v2 that keeps requested memory: from everybody, or while there is
    /// other memory to be had (KEP-2570, TieredReservation).
    fn kept_by(&self, class: Qos) -> Option<&'static str> {
        let is_on = self.memory_qos.is_some() && self.keeps_requests;
        match class {
            _ if !is_on => None,
            Qos::Guaranteed => Some("memory.min"),
            Qos::Burstable => Some("memory.low"),
            Qos::BestEffort => None,
        }
    }

    /// Whoever has CPUs for himself is bounded by them: a quota on top would only slow him
    /// down at the end of each period (upstream, `DisableCPUQuotaWithExclusiveCPUs`).
    fn is_exclusive(&self, pod: &Pod, container: &Container) -> bool {
        self.gives_cpus_away && whole_cpus(pod, container) > 0
    }
}

/// Bytes of each size of huge page, `of` a resource's name, by the kernel's name of the size.
/// What nobody asks for is none: huge pages are not shared out like other memory.
fn huge_pages(host: Host, of: impl Fn(&str) -> u64) -> BTreeMap<String, u64> {
    host.huge_pages
        .into_iter()
        .filter(|size| *size > 0)
        .map(|size| {
            let (number, unit) = match size {
                size if size.is_multiple_of(1 << 30) => (size >> 30, "G"),
                size if size.is_multiple_of(1 << 20) => (size >> 20, "M"),
                size => (size >> 10, "K"),
            };
            (format!("{number}{unit}B"), of(&format!("hugepages-{number}{unit}i")))
        })
        .collect()
}

/// Limits of one container.
pub fn container_resources(
    pod: &Pod,
    role: Role,
    container: &Container,
    host: Host,
) -> LinuxResources {
    let limit = limit_milli(pod, container, "cpu");
    let has_request = requests(container).is_some_and(|list| list.contains_key("cpu"));
    let request = if has_request { quantity::milli_of(requests(container), "cpu") } else { limit };
    LinuxResources {
        cpu_shares: cpu_shares(request),
        cpu_quota: if host.is_exclusive(pod, container) { 0 } else { host.cpu.quota(limit) },
        cpu_period: host.cpu.period_micros.unsigned_abs(),
        memory_limit: limit_milli(pod, container, "memory") / 1000,
        oom_score_adj: oom_score_adj(pod, role, container, host.memory_bytes),
        huge_pages: huge_pages(host, |name| {
            u64::try_from(limit_milli(pod, container, name) / 1000).unwrap_or(0)
        }),
        swap_bytes: host.has_unified_cgroups.then(|| swap_bytes(pod, role, container, host)),
        unified: if host.has_unified_cgroups {
            unified(qos(pod), container, host)
        } else {
            BTreeMap::new()
        },
        ..LinuxResources::default()
    }
}

/// How much a container may swap: its part of the node's swap is that of its request of the
/// node's memory. Only Burstable pods swap, critical ones never.
fn swap_bytes(pod: &Pod, role: Role, container: &Container, host: Host) -> u64 {
    let Some(swap) = host.swap_bytes else { return 0 };
    let critical =
        pod::spec(pod).priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL_PRIORITY);
    let request = quantity::value_of(requests(container), "memory");
    let limit = quantity::value_of(limits(container), "memory");
    if qos(pod) != Qos::Burstable
        || critical
        || role == Role::Ephemeral
        || request <= 0
        || request == limit
        || host.memory_bytes <= 0
    {
        return 0;
    }
    let share = i128::from(request) * i128::from(swap) / i128::from(host.memory_bytes);
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Files of cgroup v2 that v1 knows nothing of.
fn unified(class: Qos, container: &Container, host: Host) -> BTreeMap<String, String> {
    const PAGE_BYTES: i64 = 4096;
    // Out of memory, a container ends whole and is restarted, instead of living on without
    // one of its processes.
    let group = if host.ends_one_process { "0" } else { "1" };
    let mut out: BTreeMap<String, String> =
        [("memory.oom.group".to_owned(), group.to_owned())].into();
    let Some(factor) = host.memory_qos else { return out };
    let request = quantity::value_of(requests(container), "memory");
    let limit = quantity::value_of(limits(container), "memory");
    if request > 0
        && let Some(file) = host.kept_by(class)
    {
        out.insert(file.to_owned(), request.to_string());
    }
    let most = if limit > 0 { limit } else { host.memory_allocatable_bytes };
    if most > request {
        let high = request as f64 + factor * (most - request) as f64;
        let high = (high as i64) / PAGE_BYTES * PAGE_BYTES;
        if high > request {
            out.insert("memory.high".to_owned(), high.to_string());
        }
    }
    out
}

/// Who dies first when the node runs out of memory (upstream's qos policy).
pub fn oom_score_adj(pod: &Pod, role: Role, container: &Container, capacity_bytes: i64) -> i64 {
    const GUARANTEED: i64 = -997;
    const BEST_EFFORT: i64 = 1000;
    if pod::spec(pod).priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL_PRIORITY) {
        return GUARANTEED;
    }
    let share = unrequested_share(pod);
    let burstable = |container: &Container| {
        let request = quantity::value_of(requests(container), "memory") + share;
        if capacity_bytes <= 0 {
            return BEST_EFFORT - 1;
        }
        let score = 1000 - (1000i128 * i128::from(request) / i128::from(capacity_bytes)) as i64;
        score.clamp(1000 + GUARANTEED, BEST_EFFORT - 1)
    };
    match qos(pod) {
        Qos::Guaranteed => GUARANTEED,
        Qos::BestEffort => BEST_EFFORT,
        Qos::Burstable if role == Role::Sidecar => {
            // A sidecar must not die before the one of those it serves that dies first.
            let served = pod::spec(pod).containers.iter().map(burstable).max();
            burstable(container).min(served.unwrap_or(BEST_EFFORT))
        }
        Qos::Burstable => burstable(container),
    }
}

/// Bytes that the pod requests for itself beyond what its containers do, for each of them.
fn unrequested_share(pod: &Pod) -> i64 {
    let spec = pod::spec(pod);
    let level = spec.resources.as_ref().and_then(|it| it.requests.as_ref());
    let whole = quantity::value_of(level, "memory");
    let count = i64::try_from(spec.containers.len() + pod::init_containers(pod).len()).unwrap_or(0);
    let named = of_containers(pod, |it| quantity::value_of(requests(it), "memory"));
    if whole == 0 || count == 0 { 0 } else { (whole - named).max(0) / count }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::json;

    #[test]
    fn class_parent_and_limits_follow_requests() {
        let best = pod(json!({"containers": [{"name": "a"}]}));
        assert_eq!(qos(&best), Qos::BestEffort);
        assert_eq!(cgroup_parent(&best, "kubepods"), "kubepods/besteffort/poduid-1");
        assert_eq!(pod_resources(&best, 0, Host::default()).cpu_shares, 2);

        let sure = pod(json!({"containers": [{"name": "a",
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}}]}));
        assert_eq!(qos(&sure), Qos::Guaranteed);
        assert_eq!(cgroup_parent(&sure, "kubepods"), "kubepods/poduid-1");
        let limits = pod_resources(&sure, 100, Host::default());
        assert_eq!((limits.cpu_shares, limits.cpu_quota), (512, 50_000));
        assert_eq!((limits.memory_limit, limits.pids_limit), (64 << 20, 100));

        let burst = pod(json!({"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}},
            {"name": "b"}]}));
        assert_eq!(qos(&burst), Qos::Burstable);
        assert_eq!(pod_resources(&burst, 0, Host::default()).cpu_quota, 0);
        let spec = pod::spec(&burst);
        assert_eq!(oom_score_adj(&burst, Role::Main, &spec.containers[0], 4 << 30), 750);
        assert_eq!(oom_score_adj(&burst, Role::Main, &spec.containers[1], 4 << 30), 999);
        let scores = |level: serde_json::Value| -> Vec<i64> {
            let it = pod(json!({
                "resources": level,
                "initContainers": [{"name": "s", "restartPolicy": "Always"}],
                "containers": [
                    {"name": "a", "resources": {"requests": {"memory": "1Gi"}}},
                    {"name": "b", "resources": {"requests": {"memory": "512Mi"}}}]}));
            let of = |(role, container): &(Role, Container)| {
                oom_score_adj(&it, *role, container, 4 << 30)
            };
            pod::containers(&it).iter().map(of).collect()
        };
        // The sidecar as the one with the least; a pod's own request is shared by all.
        assert_eq!(scores(json!(null)), [875, 750, 875]);
        assert_eq!(scores(json!({"requests": {"memory": "3Gi"}})), [750, 625, 750]);
        assert_eq!(scores(json!({"requests": {"cpu": "1"}})), [875, 750, 875]);
        for (has_unified_cgroups, group) in [(false, None), (true, Some("1"))] {
            let host = Host { memory_bytes: 4 << 30, has_unified_cgroups, ..Host::default() };
            let limits = container_resources(&burst, Role::Main, &spec.containers[0], host);
            assert_eq!(limits.unified.get("memory.oom.group").map(String::as_str), group);
        }
    }

    #[test]
    fn who_has_cpus_for_himself_has_no_quota() {
        let of = |cpu: &str| json!({"limits": {"cpu": cpu, "memory": "1Mi"}});
        let whole = json!({"containers": [{"name": "a", "resources": of("2")},
                                          {"name": "b", "resources": of("500m")}]});
        let parts = json!({"containers": [{"name": "a", "resources": of("1500m")},
                                          {"name": "b", "resources": of("500m")}]});
        let mut unsure = whole.clone();
        unsure["containers"][1]["resources"]["requests"] = json!({"cpu": "1m"});
        let cases = [
            (&whole, true, [0, 0, 50_000]),
            (&whole, false, [250_000, 200_000, 50_000]),
            (&parts, true, [200_000, 150_000, 50_000]),
            (&unsure, true, [250_000, 200_000, 50_000]),
        ];
        for (spec, gives_cpus_away, want) in cases {
            let pod = pod(spec.clone());
            let host = Host { gives_cpus_away, ..Host::default() };
            let containers = &pod::spec(&pod).containers;
            let quota =
                |at: usize| container_resources(&pod, Role::Main, &containers[at], host).cpu_quota;
            let got = [pod_resources(&pod, 0, host).cpu_quota, quota(0), quota(1)];
            assert_eq!(got, want, "{spec} {gives_cpus_away}");
        }
    }

    #[test]
    fn huge_pages_are_bounded_by_size_and_those_nobody_asks_for_are_none() {
        let host = Host { huge_pages: [2 << 20, 1 << 30, 64 << 10, 0], ..Host::default() };
        let it = pod(json!({"containers": [
            {"name": "a", "resources": {"limits": {"memory": "1Mi", "hugepages-2Mi": "4Mi"}}},
            {"name": "b", "resources": {"limits": {"memory": "1Mi", "hugepages-2Mi": "2Mi", "hugepages-1Gi": "1Gi"}}}]}));
        let of = |list: LinuxResources| -> Vec<(String, u64)> {
            list.huge_pages.into_iter().map(|(size, bytes)| (size, bytes >> 20)).collect()
        };
        let whole = [("1GB".to_owned(), 1024), ("2MB".to_owned(), 6), ("64KB".to_owned(), 0)];
        assert_eq!(of(pod_resources(&it, 0, host)), whole);
        let a = container_resources(&it, Role::Main, &pod::spec(&it).containers[0], host);
        assert_eq!(of(a), [("1GB".to_owned(), 0), ("2MB".to_owned(), 4), ("64KB".to_owned(), 0)]);
    }

    #[test]
    fn burstable_containers_swap_by_their_part_of_memory() {
        let host = Host {
            memory_bytes: 8 << 30,
            has_unified_cgroups: true,
            swap_bytes: Some(4 << 30),
            ..Host::default()
        };
        let burst = |priority: i32| {
            json!({"priority": priority, "containers": [
                {"name": "a", "resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}},
                {"name": "b", "resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}}},
                {"name": "c"}]})
        };
        let of = |spec: serde_json::Value, host: Host| -> Vec<Option<u64>> {
            let pod = pod(spec);
            let all = pod::spec(&pod).containers.iter();
            all.map(|it| container_resources(&pod, Role::Main, it, host).swap_bytes).collect()
        };
        assert_eq!(of(burst(0), host), [Some(512 << 20), Some(0), Some(0)]);
        assert_eq!(of(burst(2_000_000_000), host)[0], Some(0));
        let sure = json!({"containers": [{"name": "a",
            "resources": {"limits": {"memory": "1Gi", "cpu": "1"}}}]});
        assert_eq!(of(sure, host), [Some(0)]);
        assert_eq!(of(burst(0), Host { swap_bytes: None, ..host })[0], Some(0), "NoSwap");
        assert_eq!(of(burst(0), Host { has_unified_cgroups: false, ..host })[0], None);
    }

    #[test]
    fn memory_qos_slows_near_the_limit_and_keeps_requests_where_it_is_asked_to() {
        let host = Host {
            memory_allocatable_bytes: 10 << 30,
            has_unified_cgroups: true,
            memory_qos: Some(0.9),
            ..Host::default()
        };
        let hosts = [host, Host { keeps_requests: true, ..host }];
        let of = |resources: serde_json::Value, keeps_requests: bool| {
            let pod = pod(json!({"containers": [{"name": "a", "resources": resources}]}));
            let container = &pod::spec(&pod).containers[0];
            let host = hosts[usize::from(keeps_requests)];
            let lists = [
                container_resources(&pod, Role::Main, container, host).unified,
                pod_resources(&pod, 0, host).unified,
            ];
            let [own, pods] = lists.map(|list| {
                ["memory.min", "memory.low", "memory.high"]
                    .map(|name| list.get(name).map_or(0, |it| it.parse::<i64>().unwrap() >> 20))
            });
            (own, pods)
        };
        let burst = json!({"requests": {"memory": "100Mi"}, "limits": {"memory": "200Mi"}});
        let sure = json!({"limits": {"cpu": "1", "memory": "100Mi"}, "requests": {"cpu": "1", "memory": "100Mi"}});
        assert_eq!(of(burst.clone(), false), ([0, 0, 190], [0, 0, 0]));
        assert_eq!(of(burst, true), ([0, 100, 190], [0, 100, 0]));
        assert_eq!(of(sure.clone(), false), ([0, 0, 0], [0, 0, 0]));
        assert_eq!(of(sure, true), ([100, 0, 0], [100, 0, 0]));
        assert_eq!(of(json!({}), true), ([0, 0, 9216], [0, 0, 0]));
    }

    #[test]
    fn limits_of_cpu_time_are_kept_as_the_node_wants_it() {
        let pod = pod(json!({"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "500m", "memory": "1Mi"}}}]}));
        let of = |cpu: CpuTime| {
            let host = Host { cpu, ..Host::default() };
            let container = &pod::spec(&pod).containers[0];
            let all = [
                container_resources(&pod, Role::Main, container, host),
                pod_resources(&pod, 0, host),
            ];
            all.map(|it| (it.cpu_quota, it.cpu_period))
        };
        assert_eq!(of(CpuTime::default()), [(50_000, 100_000); 2]);
        let short = CpuTime { period_micros: 10_000, ..CpuTime::default() };
        assert_eq!(of(short), [(5_000, 10_000); 2]);
        let shortest = CpuTime { period_micros: 1_000, ..CpuTime::default() };
        assert_eq!(of(shortest), [(1_000, 1_000); 2], "the kernel takes no less");
        let none = CpuTime { is_limited: false, ..CpuTime::default() };
        assert_eq!(of(none), [(0, 100_000); 2]);
    }

    #[test]
    fn a_pods_own_resources_bound_it_whatever_its_containers_say() {
        let of = |level: serde_json::Value, container: serde_json::Value| {
            pod(json!({"resources": level, "overhead": {"cpu": "100m", "memory": "1Mi"},
                       "containers": [{"name": "a", "resources": container}]}))
        };
        let none = json!({});
        let it = of(
            json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "64Mi"}}),
            none.clone(),
        );
        assert_eq!(qos(&it), Qos::Burstable);
        assert_eq!(pod_request_milli(&it, "cpu"), 1100);
        let limits = pod_resources(&it, 0, Host::default());
        assert_eq!((limits.cpu_quota, limits.memory_limit), (210_000, 65 << 20));
        let it = of(json!({"requests": {"cpu": "1"}}), json!({"limits": {"cpu": "500m"}}));
        assert_eq!(
            pod_resources(&it, 0, Host::default()).cpu_quota,
            60_000,
            "the containers' limits, not the pod's request"
        );
        let it = of(none, json!({"limits": {"cpu": "500m", "memory": "64Mi"}}));
        let limits = pod_resources(&it, 0, Host::default());
        assert_eq!(
            (limits.cpu_shares, limits.cpu_quota, limits.memory_limit),
            (614, 60_000, 65 << 20)
        );
    }

    #[test]
    fn a_container_without_limits_has_those_of_its_pod() {
        let host = Host { huge_pages: [2 << 20, 0, 0, 0], ..Host::default() };
        let it = pod(json!({
            "resources": {"limits": {"cpu": "2", "memory": "64Mi", "hugepages-2Mi": "4Mi"}},
            "containers": [
                {"name": "none"},
                {"name": "own", "resources": {"requests": {"cpu": "100m"},
                    "limits": {"cpu": "500m", "memory": "16Mi"}}},
                {"name": "some", "resources": {"requests": {"cpu": "100m"}}}]}));
        let of = |container: &Container| {
            let it = container_resources(&it, Role::Main, container, host);
            (it.cpu_shares, it.cpu_quota, it.memory_limit >> 20, it.huge_pages["2MB"] >> 20)
        };
        let all: Vec<_> = pod::spec(&it).containers.iter().map(of).collect();
        assert_eq!(all, [(2048, 200_000, 64, 4), (102, 50_000, 16, 4), (102, 200_000, 64, 4)]);
    }

    #[test]
    fn a_pod_needs_the_larger_of_starting_and_running() {
        let request = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let it = pod(json!({
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": request("100m")},
                {"name": "init", "resources": request("2")}],
            "containers": [{"name": "a", "resources": request("500m")}]}));
        assert_eq!(pod_request_milli(&it, "cpu"), 2100);
    }
}
