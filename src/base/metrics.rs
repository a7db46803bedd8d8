//! One metric registry for the process, rendered as Prometheus' text or as OpenMetrics.
//!
//! Rooms register what they measure once, at start; reading is on demand. What counts often
//! keeps its handle: finding a metric by its labels takes a lock and a search.

use std::sync::OnceLock;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

pub mod build;
mod process;

fn registry() -> &'static Mutex<Registry> {
    static REGISTRY: OnceLock<Mutex<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        Mutex::new(registry)
    })
}

/// Adds `metric` under `name` and hands it back. Registering a name twice shows both. The
/// name of a counter has no `_total`; readers see it with one.
pub fn register<M: Metric + Clone>(name: &str, help: &str, metric: M) -> M {
    registry().lock().register(name, help, metric.clone());
    metric
}

/// Adds something that is asked at every reading.
pub fn register_collector(collector: Box<dyn Collector>) {
    registry().lock().register_collector(collector);
}

/// Makes histograms with these upper bounds.
#[derive(Debug, Clone, Copy)]
pub struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

pub type HistogramFamily<S> = Family<S, Histogram, Buckets>;

/// Histograms by label, with these upper bounds.
pub fn histograms<S: Clone + std::hash::Hash + Eq>(bounds: &'static [f64]) -> HistogramFamily<S> {
    Family::new_with_constructor(Buckets(bounds))
}

/// A text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format that an Accept header asks for.
    pub fn of(accept: Option<&str>) -> Self {
        let mut best = (0.0, Self::Prometheus);
        for offer in accept.unwrap_or_default().split(',') {
            let mut parts = offer.split(';').map(str::trim);
            let format = match parts.next() {
                Some("application/openmetrics-text") => Self::OpenMetrics,
                Some("text/plain" | "text/*" | "*/*") => Self::Prometheus,
                _ => continue,
            };
            let weight = parts.find_map(|part| part.strip_prefix("q="));
            let weight: f64 = weight.and_then(|weight| weight.parse().ok()).unwrap_or(1.0);
            if weight > best.0 {
                best = (weight, format);
            }
        }
        best.1
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All metrics as text.
pub fn render(format: Format) -> String {
    render_of(&registry().lock(), format)
}

/// The metrics of one registry as text.
pub fn render_of(registry: &Registry, format: Format) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut out, registry);
    match format {
        Format::OpenMetrics => out,
        Format::Prometheus => as_prometheus(&out),
    }
}

/// OpenMetrics names a family without the suffix of its counters, and ends with a mark.
fn as_prometheus(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 50);
    let mut help: Option<&str> = None;
    for line in text.lines() {
        if line.starts_with("# HELP ") {
            // Its name depends on the type, which comes next.
            help = Some(line);
            continue;
        }
        if let Some(named) = line.strip_prefix("# TYPE ") {
            let (name, kind) = named.rsplit_once(' ').unwrap_or((named, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            let kind = if kind == "unknown" { "untyped" } else { kind };
            if let Some(help) = help.take() {
                let said = help.trim_start_matches("# HELP ").trim_start_matches(name).trim_start();
                out.push_str(&format!("# HELP {name}{suffix} {said}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with("# ") {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;

    #[test]
    fn both_formats_say_the_same() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        registry.register("requests", "How many", counter.clone());
        let gauge: Gauge = Gauge::default();
        registry.register("waiting", "How many wait", gauge);
        counter.inc();
        assert_eq!(
            render_of(&registry, Format::Prometheus),
            "# HELP requests_total How many.\n# TYPE requests_total counter\nrequests_total 1\n\
             # HELP waiting How many wait.\n# TYPE waiting gauge\nwaiting 0\n"
        );
        let open = render_of(&registry, Format::OpenMetrics);
        assert!(open.contains("# TYPE requests counter\nrequests_total 1\n"));
        assert!(open.ends_with("# EOF\n"));
    }

    #[test]
    fn clients_choose_the_format() {
        use Format::{OpenMetrics, Prometheus};
        let cases = [
            (None, Prometheus),
            (Some("*/*"), Prometheus),
            (Some("text/plain;version=0.0.4"), Prometheus),
            (Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"), OpenMetrics),
            (Some("application/openmetrics-text;q=0.3,text/plain;version=0.0.4;q=0.8"), Prometheus),
            (Some("application/json"), Prometheus),
        ];
        for (accept, format) in cases {
            assert_eq!(Format::of(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn the_process_tells_of_itself() {
        let text = render(Format::Prometheus);
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_virtual_memory_bytes",
            "process_open_fds",
            "process_max_fds",
            "process_start_time_seconds",
        ] {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            let value: f64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
            assert!(value >= 0.0, "{line}");
        }
    }
}
