//! What flow control measures, under upstream's names.

use std::sync::LazyLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use base::metrics::{HistogramFamily, histograms};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfSchema {
    pub priority_level: String,
    pub flow_schema: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    priority_level: String,
    flow_schema: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Waited {
    priority_level: String,
    flow_schema: String,
    execute: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Executed {
    priority_level: String,
    flow_schema: String,
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfLevel {
    pub priority_level: String,
}

const SECONDS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
const SEATS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0];
const WATCHERS: [f64; 6] = [0.0, 1.0, 10.0, 100.0, 1_000.0, 10_000.0];
const LENGTHS: [f64; 8] = [0.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0];
const REASONS: [&str; 4] = ["queue-full", "concurrency-limit", "time-out", "cancelled"];

struct Families {
    dispatched: Family<OfSchema, Counter>,
    refused: Family<Refused, Counter>,
    waited: HistogramFamily<Waited>,
    executed: HistogramFamily<Executed>,
    estimated: HistogramFamily<OfSchema>,
    lengths: HistogramFamily<OfSchema>,
    watchers: HistogramFamily<OfSchema>,
    in_queue: Family<OfSchema, Gauge>,
    seats_in_queue: Family<OfSchema, Gauge>,
    executing: Family<OfSchema, Gauge>,
    seats: Family<OfSchema, Gauge>,
}

/// Gauges of a level, set when limits are adjusted.
pub struct Limits {
    pub nominal: Family<OfLevel, Gauge>,
    pub min: Family<OfLevel, Gauge>,
    pub max: Family<OfLevel, Gauge>,
    pub current: Family<OfLevel, Gauge>,
    pub demand: Family<OfLevel, Real>,
    pub peak: Family<OfLevel, Real>,
    pub average: Family<OfLevel, Real>,
    pub deviation: Family<OfLevel, Real>,
    pub target: Family<OfLevel, Real>,
    /// Of the whole server.
    pub fair: Real,
}

type Real = Gauge<f64, std::sync::atomic::AtomicU64>;

fn family<M: prometheus_client::registry::Metric + Clone>(name: &str, help: &str, metric: M) -> M {
    base::metrics::register(&format!("apiserver_flowcontrol_{name}"), help, metric)
}

static FAMILIES: LazyLock<Families> = LazyLock::new(|| Families {
    dispatched: family("dispatched_requests", "Requests that were executed", Family::default()),
    refused: family("rejected_requests", "Requests that were turned away", Family::default()),
    waited: family(
        "request_wait_duration_seconds",
        "How long requests waited in their queue",
        histograms(&SECONDS),
    ),
    executed: family(
        "request_execution_seconds",
        "How long requests were executed, watches until they were initialised",
        histograms(&SECONDS),
    ),
    estimated: family(
        "work_estimated_seats",
        "Seats that requests were estimated to take",
        histograms(&SEATS),
    ),
    lengths: family(
        "request_queue_length_after_enqueue",
        "Length of the queue as each request that waits sees it",
        histograms(&LENGTHS),
    ),
    watchers: family(
        "watch_count_samples",
        "Watchers of what is changed, as each change sees them",
        histograms(&WATCHERS),
    ),
    in_queue: family("current_inqueue_requests", "Requests that wait", Family::default()),
    seats_in_queue: family("current_inqueue_seats", "Seats that are waited for", Family::default()),
    executing: family(
        "current_executing_requests",
        "Requests that are executed, watches until they are initialised",
        Family::default(),
    ),
    seats: family("current_executing_seats", "Seats that are occupied", Family::default()),
});

pub static LIMITS: LazyLock<Limits> = LazyLock::new(|| Limits {
    nominal: family("nominal_limit_seats", "Seats by configuration", Family::default()),
    min: family("lower_limit_seats", "Seats that are never lent", Family::default()),
    max: family("upper_limit_seats", "Seats with all that may be borrowed", Family::default()),
    current: family("current_limit_seats", "Seats at the moment", Family::default()),
    demand: family(
        "demand_seats_smoothed",
        "Seats that are expected to be wanted",
        Family::default(),
    ),
    peak: family(
        "demand_seats_high_watermark",
        "Most seats wanted in the last period of adjustment",
        Family::default(),
    ),
    average: family(
        "demand_seats_average",
        "Seats wanted on average in the last period of adjustment",
        Family::default(),
    ),
    deviation: family(
        "demand_seats_stdev",
        "Standard deviation of the seats wanted in the last period of adjustment",
        Family::default(),
    ),
    target: family("target_seats", "Seats that each level is meant to have", Family::default()),
    fair: family(
        "seat_fair_frac",
        "The part of its target that each level gets that can use it",
        Real::default(),
    ),
});

/// The metrics of one schema, found once.
#[derive(Debug)]
pub struct SchemaMetrics {
    labels: OfSchema,
    pub dispatched: Counter,
    pub waited: Histogram,
    pub waited_in_vain: Histogram,
    pub executed: Histogram,
    pub watches: Histogram,
    pub estimated: Histogram,
    pub lengths: Histogram,
    pub watchers: Histogram,
    pub in_queue: Gauge,
    pub seats_in_queue: Gauge,
    pub executing: Gauge,
    pub seats: Gauge,
}

impl SchemaMetrics {
    pub fn of(schema: &str, level: &str) -> Self {
        let (priority_level, flow_schema) = (level.to_string(), schema.to_string());
        let labels = OfSchema { priority_level, flow_schema };
        let waited = |execute| {
            let OfSchema { priority_level, flow_schema } = labels.clone();
            let labels = Waited { priority_level, flow_schema, execute };
            FAMILIES.waited.get_or_create(&labels).clone()
        };
        let executed = |r#type| {
            let OfSchema { priority_level, flow_schema } = labels.clone();
            let labels = Executed { priority_level, flow_schema, r#type };
            FAMILIES.executed.get_or_create(&labels).clone()
        };
        Self {
            dispatched: FAMILIES.dispatched.get_or_create_owned(&labels),
            waited: waited("true"),
            waited_in_vain: waited("false"),
            executed: executed("regular"),
            watches: executed("watch"),
            estimated: FAMILIES.estimated.get_or_create(&labels).clone(),
            lengths: FAMILIES.lengths.get_or_create(&labels).clone(),
            watchers: FAMILIES.watchers.get_or_create(&labels).clone(),
            in_queue: FAMILIES.in_queue.get_or_create_owned(&labels),
            seats_in_queue: FAMILIES.seats_in_queue.get_or_create_owned(&labels),
            executing: FAMILIES.executing.get_or_create_owned(&labels),
            seats: FAMILIES.seats.get_or_create_owned(&labels),
            labels,
        }
    }

    /// A request that waited for so many seats waits no more.
    pub fn left_queue(&self, seats: u32) {
        self.in_queue.dec();
        self.seats_in_queue.dec_by(i64::from(seats));
    }

    pub fn refused(&self, reason: &'static str) {
        let OfSchema { priority_level, flow_schema } = self.labels.clone();
        let labels = Refused { priority_level, flow_schema, reason };
        FAMILIES.refused.get_or_create(&labels).inc();
    }

    /// A schema is gone: so are its lines.
    pub fn remove(&self) {
        let labels = &self.labels;
        FAMILIES.dispatched.remove(labels);
        FAMILIES.estimated.remove(labels);
        FAMILIES.lengths.remove(labels);
        FAMILIES.watchers.remove(labels);
        FAMILIES.in_queue.remove(labels);
        FAMILIES.seats_in_queue.remove(labels);
        FAMILIES.executing.remove(labels);
        FAMILIES.seats.remove(labels);
        let OfSchema { priority_level, flow_schema } = labels.clone();
        for reason in REASONS {
            let (priority_level, flow_schema) = (priority_level.clone(), flow_schema.clone());
            FAMILIES.refused.remove(&Refused { priority_level, flow_schema, reason });
        }
        for execute in ["true", "false"] {
            let (priority_level, flow_schema) = (priority_level.clone(), flow_schema.clone());
            FAMILIES.waited.remove(&Waited { priority_level, flow_schema, execute });
        }
        for r#type in ["regular", "watch"] {
            let (priority_level, flow_schema) = (priority_level.clone(), flow_schema.clone());
            FAMILIES.executed.remove(&Executed { priority_level, flow_schema, r#type });
        }
    }
}
