//! What the node did for its own sake, and what containers got for themselves.

use std::sync::LazyLock;
use std::time::Duration;

use base::metrics::register;
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

pub fn memory_given(failed: bool) {
    NODE.memory_requests.inc();
    NODE.memory_errors.inc_by(u64::from(failed));
}

pub fn placed(took: Duration, failed: bool) {
    NODE.topology_requests.inc();
    NODE.topology_errors.inc_by(u64::from(failed));
    NODE.topology_took.observe(took.as_secs_f64() * 1e3);
}
