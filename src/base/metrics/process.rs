//! What the kernel says of this process, under Prometheus' usual names. A figure that it
//! does not tell is left out.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// The kernel counts processor time in hundredths of a second for user space.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| -> Result<(), Error> {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)
        };
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The second field may hold blanks; what follows its parenthesis does not.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().collect())
            .unwrap_or_default();
        let field = |number: usize| fields.get(number - 3).and_then(|f| f.parse::<f64>().ok());
        gauge("process_virtual_memory_bytes", "Virtual memory size in bytes", field(23))?;
        gauge("process_resident_memory_bytes", "Resident memory size in bytes", resident())?;
        gauge(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds",
            field(22).and_then(|ticks| Some(booted()? + ticks / TICKS_PER_SECOND)),
        )?;
        let open = std::fs::read_dir("/proc/self/fd").ok().map(|all| all.count() as f64);
        gauge("process_open_fds", "Number of open file descriptors", open)?;
        gauge("process_max_fds", "Maximum number of open file descriptors", descriptors_max())?;
        if let (Some(user), Some(system)) = (field(14), field(15)) {
            let counter = ConstCounter::new((user + system) / TICKS_PER_SECOND);
            let help = "Total user and system CPU time spent in seconds";
            let kind = counter.metric_type();
            let encoder = encoder.encode_descriptor("process_cpu_seconds", help, None, kind)?;
            counter.encode(encoder)?;
        }
        Ok(())
    }
}

fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1_024.0)
}

/// When the machine booted, in seconds since 1970.
fn booted() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn descriptors_max() -> Option<f64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}
