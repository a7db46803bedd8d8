//! What the node did for its own sake, and what containers got for themselves.

use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use base::metrics::{HistogramFamily, histograms, register};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// From a twentieth of a millisecond on, each the double.
const ADMISSION_MILLISECONDS: [f64; 15] =
    [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6, 819.2];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Evicted {
    eviction_signal: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Preempted {
    preemption_signal: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Aligned {
    scope: &'static str,
    boundary: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnNuma {
    numa_node: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnGroups {
    operation_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSource {
    metric_source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVersion {
    server_api_version: &'static str,
}

/// Of the pod resources API.
const API: OfVersion = OfVersion { server_api_version: "v1" };

/// Counters whose names have no `_total` are gauges to the library.
struct Node {
    evictions: Family<Evicted, Gauge>,
    preemptions: Family<Preempted, Gauge>,
    shutdown_begun: Gauge,
    shutdown_ended: Gauge,
    cpu_requests: Counter,
    cpu_errors: Counter,
    cpu_shared: Gauge,
    cpu_own: Gauge,
    memory_requests: Counter,
    memory_errors: Counter,
    topology_requests: Counter,
    topology_errors: Counter,
    topology_took: Histogram,
    aligned: Family<Aligned, Gauge>,
    not_aligned: Family<Aligned, Gauge>,
    cpus_on_numa: Family<OnNuma, Gauge>,
    stats_age: HistogramFamily<Evicted>,
    list_took: Histogram,
    list_interval: Histogram,
    heard_at: Gauge,
    events_missed: Gauge,
    orphans_cleaned: Gauge,
    orphans_not_cleaned: Gauge,
    asked: Family<OfVersion, Counter>,
    /// By call: how often, and how often without success.
    calls: [(Family<OfVersion, Gauge>, Family<OfVersion, Gauge>); 3],
    groups_took: HistogramFamily<OnGroups>,
    volumes_took: HistogramFamily<OfSource>,
    startup: [Gauge<f64, AtomicU64>; 5],
    begun: Instant,
}

static NODE: LazyLock<Node> = LazyLock::new(|| Node {
    evictions: register(
        "kubelet_evictions",
        "Pods that were evicted, by the signal they were evicted for",
        Family::default(),
    ),
    preemptions: register(
        "kubelet_preemptions",
        "Pods that made room for critical ones, by what was short",
        Family::default(),
    ),
    shutdown_begun: register(
        "kubelet_graceful_shutdown_start_time_seconds",
        "When the last graceful shutdown began, since the Unix epoch",
        Gauge::default(),
    ),
    shutdown_ended: register(
        "kubelet_graceful_shutdown_end_time_seconds",
        "When the last graceful shutdown ended, since the Unix epoch",
        Gauge::default(),
    ),
    cpu_requests: register(
        "kubelet_cpu_manager_pinning_requests",
        "Containers that asked for CPUs of their own",
        Counter::default(),
    ),
    cpu_errors: register(
        "kubelet_cpu_manager_pinning_errors",
        "Containers that asked for CPUs of their own and got none",
        Counter::default(),
    ),
    cpu_shared: register(
        "kubelet_cpu_manager_shared_pool_size_millicores",
        "CPUs that could be given away, in thousandths",
        Gauge::default(),
    ),
    cpu_own: register(
        "kubelet_cpu_manager_exclusive_cpu_allocation_count",
        "CPUs that containers have for themselves",
        Gauge::default(),
    ),
    memory_requests: register(
        "kubelet_memory_manager_pinning_requests",
        "Containers that asked for memory of few NUMA nodes",
        Counter::default(),
    ),
    memory_errors: register(
        "kubelet_memory_manager_pinning_errors",
        "Containers that asked for memory of few NUMA nodes and got none",
        Counter::default(),
    ),
    topology_requests: register(
        "kubelet_topology_manager_admission_requests",
        "Pods whose places on the machine were sought",
        Counter::default(),
    ),
    topology_errors: register(
        "kubelet_topology_manager_admission_errors",
        "Pods for which there was no place on the machine",
        Counter::default(),
    ),
    topology_took: register(
        "kubelet_topology_manager_admission_duration_ms",
        "How long a place on the machine is sought, in milliseconds",
        Histogram::new(ADMISSION_MILLISECONDS),
    ),
    aligned: register(
        "kubelet_container_aligned_compute_resources_count",
        "Containers or pods that were given what lies together, by what it lies in",
        Family::default(),
    ),
    not_aligned: register(
        "kubelet_container_aligned_compute_resources_failure_count",
        "Containers or pods that were refused because nothing lay together",
        Family::default(),
    ),
    cpus_on_numa: register(
        "kubelet_cpu_manager_allocation_per_numa",
        "CPUs that containers have for themselves, by NUMA node",
        Family::default(),
    ),
    stats_age: register(
        "kubelet_eviction_stats_age_seconds",
        "How old what was measured is when a pod is evicted for it",
        histograms(&super::SECONDS),
    ),
    list_took: register(
        "kubelet_pleg_relist_duration_seconds",
        "How long it takes to read all that the runtime has",
        Histogram::new(super::SECONDS),
    ),
    list_interval: register(
        "kubelet_pleg_relist_interval_seconds",
        "From one reading of all that the runtime has to the next",
        Histogram::new(super::SECONDS),
    ),
    heard_at: register(
        "kubelet_pleg_last_seen_seconds",
        "When the runtime was last heard or read, since the Unix epoch",
        Gauge::default(),
    ),
    events_missed: register(
        "kubelet_pleg_discard_events",
        "Events of the runtime that were not read in time",
        Gauge::default(),
    ),
    orphans_cleaned: register(
        "kubelet_orphan_pod_cleaned_volumes",
        "Pods of nobody whose files were removed since such were last sought",
        Gauge::default(),
    ),
    orphans_not_cleaned: register(
        "kubelet_orphan_pod_cleaned_volumes_errors",
        "Failures to remove the files of pods of nobody since such were last sought",
        Gauge::default(),
    ),
    asked: register(
        "kubelet_pod_resources_endpoint_requests",
        "Calls of the pod resources API",
        Family::default(),
    ),
    calls: ["list", "get", "get_allocatable"].map(|call| {
        let family = |kind: &str, help: &str| {
            let family: Family<OfVersion, Gauge> = Family::default();
            family.get_or_create(&API).set(0);
            register(&format!("kubelet_pod_resources_endpoint_{kind}_{call}"), help, family)
        };
        (
            family("requests", "Calls of this kind of the pod resources API"),
            family("errors", "Calls of this kind of the pod resources API that failed"),
        )
    }),
    groups_took: register(
        "kubelet_cgroup_manager_duration_seconds",
        "How long it takes to change the groups of the node and of classes of pods",
        histograms(&super::SECONDS),
    ),
    volumes_took: register(
        "kubelet_volume_metric_collection_duration_seconds",
        "How long it takes to measure a pod's volumes, or a driver to measure one",
        histograms(&super::SECONDS),
    ),
    startup: [
        ("pre_kubelet_", "From the machine's boot to the kubelet's start"),
        ("pre_registration_", "From the kubelet's start until it registers its node"),
        ("registration_", "How long it took to register the node"),
        ("post_registration_", "From the node's registration until it is ready"),
        ("", "From the machine's boot until its node is ready"),
    ]
    .map(|(part, help)| {
        register(&format!("kubelet_node_startup_{part}duration_seconds"), help, Gauge::default())
    }),
    begun: Instant::now(),
});

/// Shows what has not happened yet as none.
pub fn begin() {
    LazyLock::force(&NODE);
}

pub fn evicted(eviction_signal: &'static str) {
    NODE.evictions.get_or_create(&Evicted { eviction_signal }).inc();
}

/// `resource` is what the critical pod lacked.
pub fn preempted(resource: &str) {
    let preemption_signal = resource.to_owned();
    NODE.preemptions.get_or_create(&Preempted { preemption_signal }).inc();
}

pub fn shutdown_begun(at: jiff::Timestamp) {
    NODE.shutdown_begun.set(at.as_second());
}

pub fn shutdown_ended(at: jiff::Timestamp) {
    NODE.shutdown_ended.set(at.as_second());
}

pub fn cpus_given(failed: bool) {
    NODE.cpu_requests.inc();
    NODE.cpu_errors.inc_by(u64::from(failed));
}

pub fn cpus_stand(left: usize, own: usize) {
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    NODE.cpu_shared.set(count(left).saturating_mul(1000));
    NODE.cpu_own.set(count(own));
}

/// `own` by NUMA node.
pub fn cpus_lie(own: impl Iterator<Item = (u32, usize)>) {
    NODE.cpus_on_numa.clear();
    for (numa_node, number) in own {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        NODE.cpus_on_numa.get_or_create(&OnNuma { numa_node }).set(number);
    }
}

/// Whom something that lies together was promised to.
#[derive(Debug, Clone, Copy)]
pub enum Scope {
    Container,
    Pod,
}

/// What it lies in.
#[derive(Debug, Clone, Copy)]
pub enum Boundary {
    NumaNode,
    PhysicalCpu,
    UncoreCache,
}

pub fn aligned(scope: Scope, boundary: Boundary, failed: bool) {
    let labels = Aligned {
        scope: match scope {
            Scope::Container => "container",
            Scope::Pod => "pod",
        },
        boundary: match boundary {
            Boundary::NumaNode => "numa_node",
            Boundary::PhysicalCpu => "physical_cpu",
            Boundary::UncoreCache => "uncore_cache",
        },
    };
    let family = if failed { &NODE.not_aligned } else { &NODE.aligned };
    family.get_or_create(&labels).inc();
}

pub fn memory_given(failed: bool) {
    NODE.memory_requests.inc();
    NODE.memory_errors.inc_by(u64::from(failed));
}

pub fn placed(took: Duration, failed: bool) {
    NODE.topology_requests.inc();
    NODE.topology_errors.inc_by(u64::from(failed));
    NODE.topology_took.observe(took.as_secs_f64() * 1e3);
}

/// A pod was evicted for what was measured so long ago.
pub fn evicted_for(eviction_signal: &'static str, age: Duration) {
    NODE.stats_age.get_or_create(&Evicted { eviction_signal }).observe(age.as_secs_f64());
}

/// All that the runtime has was read, `since` after the last time.
pub fn runtime_listed(took: Duration, since: Option<Duration>) {
    NODE.list_took.observe(took.as_secs_f64());
    if let Some(since) = since {
        NODE.list_interval.observe(since.as_secs_f64());
    }
    runtime_heard();
}

pub fn runtime_heard() {
    NODE.heard_at.set(base::time::now().as_second());
}

pub fn events_missed(count: u64) {
    NODE.events_missed.inc_by(i64::try_from(count).unwrap_or(i64::MAX));
}

/// Pods of nobody are sought anew.
pub fn orphans_sought() {
    NODE.orphans_cleaned.set(0);
    NODE.orphans_not_cleaned.set(0);
}

pub fn orphan_files(failed: bool) {
    if failed { &NODE.orphans_not_cleaned } else { &NODE.orphans_cleaned }.inc();
}

/// A call of the pod resources API.
#[derive(Debug, Clone, Copy)]
pub enum ResourcesCall {
    List,
    Get,
    GetAllocatable,
}

pub fn resources_asked(call: ResourcesCall, failed: bool) {
    NODE.asked.get_or_create(&API).inc();
    let (requests, errors) = &NODE.calls[call as usize];
    requests.get_or_create(&API).inc();
    if failed {
        errors.get_or_create(&API).inc();
    }
}

/// The node was registered within `registering`, and is ready `ready` later.
pub fn became_ready(since_boot: Duration, registering: Duration, ready: Duration) {
    let since_start = NODE.begun.elapsed();
    let parts = [
        since_boot.saturating_sub(since_start),
        since_start.saturating_sub(registering + ready),
        registering,
        ready,
    ];
    let all = parts.into_iter().chain([parts.iter().sum()]);
    for (gauge, took) in NODE.startup.iter().zip(all) {
        gauge.set(took.as_secs_f64());
    }
}

/// Groups of the node, of a class of pods or of a pod were given other limits.
pub fn groups_updated(took: Duration) {
    let labels = OnGroups { operation_type: "update" };
    NODE.groups_took.get_or_create(&labels).observe(took.as_secs_f64());
}

/// `source` is the driver that was asked, or `statfs`.
pub fn volumes_measured(source: &str, took: Duration) {
    let labels = OfSource { metric_source: source.to_owned() };
    NODE.volumes_took.get_or_create(&labels).observe(took.as_secs_f64());
}
