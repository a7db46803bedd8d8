//! What a control group has used and may use, under cAdvisor's names: those that dashboards
//! know, and that CRI asks of a runtime (KEP-2371).
//!
//! Tables; who reads the groups and how it is told is others' matter.

use sys::cgroup::{Details, Disk, Stall};

use crate::cri::GroupUsage;

/// A name with what it is; `of` is None where a group has nothing to tell.
pub struct Figure {
    pub name: &'static str,
    pub is_counter: bool,
    pub help: &'static str,
    pub of: fn(&GroupUsage, &Details) -> Option<f64>,
}

/// As [`Figure`], of a block device.
pub struct DiskFigure {
    pub name: &'static str,
    pub help: &'static str,
    pub of: fn(&Disk) -> u64,
}

const fn counter(
    name: &'static str,
    help: &'static str,
    of: fn(&GroupUsage, &Details) -> Option<f64>,
) -> Figure {
    Figure { name, is_counter: true, help, of }
}

const fn gauge(
    name: &'static str,
    help: &'static str,
    of: fn(&GroupUsage, &Details) -> Option<f64>,
) -> Figure {
    Figure { name, is_counter: false, help, of }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn waited(stall: Stall) -> f64 {
    stall.total_micros as f64 / 1e6
}

/// Limits are 0 where there are none.
pub const FIGURES: [Figure; 32] = [
    counter("container_cpu_cfs_periods_total", "Periods with a CPU quota", |it, _| {
        (it.cpu_periods > 0).then_some(it.cpu_periods as f64)
    }),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the CPU quota was used up",
        |it, _| (it.cpu_periods > 0).then_some(it.cpu_throttled_periods as f64),
    ),
    counter("container_cpu_cfs_throttled_seconds_total", "Time waited for CPU quota", |it, _| {
        (it.cpu_periods > 0).then_some(seconds(it.cpu_throttled_nanos))
    }),
    counter("container_cpu_system_seconds_total", "CPU time of the kernel", |_, more| {
        Some(seconds(more.cpu_system_nanos))
    }),
    counter("container_cpu_user_seconds_total", "CPU time of programs", |_, more| {
        Some(seconds(more.cpu_user_nanos))
    }),
    gauge("container_file_descriptors", "Open files", |_, more| Some(more.descriptors as f64)),
    gauge("container_memory_cache", "Page cache", |it, _| Some(it.memory_cache_bytes as f64)),
    counter("container_memory_failcnt", "How often the limit was met", |_, more| {
        Some(more.memory_failures as f64)
    }),
    gauge("container_memory_kernel_usage", "Memory of the kernel", |_, more| {
        Some(more.memory_kernel_bytes as f64)
    }),
    gauge("container_memory_mapped_file", "Mapped files", |_, more| {
        Some(more.memory_mapped_bytes as f64)
    }),
    gauge("container_memory_max_usage_bytes", "Most memory so far", |_, more| {
        Some(more.memory_max_used_bytes as f64)
    }),
    gauge("container_memory_rss", "Anonymous memory", |it, _| Some(it.memory_rss_bytes as f64)),
    gauge("container_memory_swap", "Swap", |it, _| it.swap_bytes.map(|bytes| bytes as f64)),
    gauge("container_memory_usage_bytes", "All memory", |it, _| Some(it.memory_bytes as f64)),
    gauge("container_memory_working_set_bytes", "Memory that cannot be freed", |it, _| {
        Some(it.memory_working_set_bytes as f64)
    }),
    counter("container_oom_events_total", "Processes killed for memory", |it, _| {
        Some(it.oom_kills as f64)
    }),
    counter("container_pressure_cpu_stalled_seconds_total", "All tasks waited for CPU", |it, _| {
        it.stalled.cpu.map(|it| waited(it.full))
    }),
    counter("container_pressure_cpu_waiting_seconds_total", "Tasks waited for CPU", |it, _| {
        it.stalled.cpu.map(|it| waited(it.some))
    }),
    counter("container_pressure_io_stalled_seconds_total", "All tasks waited for IO", |it, _| {
        it.stalled.io.map(|it| waited(it.full))
    }),
    counter("container_pressure_io_waiting_seconds_total", "Tasks waited for IO", |it, _| {
        it.stalled.io.map(|it| waited(it.some))
    }),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "All tasks waited for memory",
        |it, _| it.stalled.memory.map(|it| waited(it.full)),
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        "Tasks waited for memory",
        |it, _| it.stalled.memory.map(|it| waited(it.some)),
    ),
    gauge("container_processes", "Processes", |it, _| Some(it.processes as f64)),
    gauge("container_sockets", "Open sockets", |_, more| Some(more.sockets as f64)),
    gauge("container_spec_cpu_period", "Microseconds of a period with a quota", |_, more| {
        Some(more.cpu_period_micros as f64)
    }),
    gauge("container_spec_cpu_quota", "Microseconds of CPU in a period", |_, more| {
        more.cpu_quota_micros.map(|it| it as f64)
    }),
    gauge("container_spec_cpu_shares", "Share of CPU", |_, more| Some(more.cpu_shares as f64)),
    gauge("container_spec_memory_limit_bytes", "Most memory; 0 is unlimited", |it, _| {
        Some(it.memory_limit_bytes.unwrap_or(0) as f64)
    }),
    gauge("container_spec_memory_reservation_limit_bytes", "Memory that is kept", |_, more| {
        Some(more.memory_reserved_bytes as f64)
    }),
    gauge("container_spec_memory_swap_limit_bytes", "Most swap; 0 is unlimited", |_, more| {
        Some(more.swap_limit_bytes.unwrap_or(0) as f64)
    }),
    gauge("container_threads", "Threads", |it, _| Some(it.processes as f64)),
    gauge("container_threads_max", "Most threads; 0 is unlimited", |_, more| {
        Some(more.threads_max.unwrap_or(0) as f64)
    }),
];

pub const DISK_FIGURES: [DiskFigure; 4] = [
    DiskFigure {
        name: "container_fs_reads_bytes_total",
        help: "Bytes read",
        of: |it| it.read_bytes,
    },
    DiskFigure { name: "container_fs_reads_total", help: "Reads", of: |it| it.reads },
    DiskFigure {
        name: "container_fs_writes_bytes_total",
        help: "Bytes written",
        of: |it| it.written_bytes,
    },
    DiskFigure { name: "container_fs_writes_total", help: "Writes", of: |it| it.writes },
];
