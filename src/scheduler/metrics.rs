//! What the scheduler measures, under kube-scheduler's names and labels.
//!
//! What happens is counted as it happens; how many pods wait, and for what, is counted when
//! somebody reads the metrics. What single plugins take is measured now and then, of pods that
//! nobody was asked for before, on one node; how often they were asked follows from how often
//! their point was reached. No point of the framework is told of that has no work here:
//! PreFilter is part of Filter, PreScore of Score.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Once, Weak};
use std::time::Duration;

use base::metrics::{HistogramFamily, histograms, register, register_collector};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::filter::Rule;
use crate::profile::Profile;
use crate::run::Inner;
use crate::state::State;

/// Seconds, from 1 ms, each twice the one before.
const ATTEMPT_SECONDS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
    8.192, 16.384,
];
const QUEUED_SECONDS: [f64; 20] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84,
    327.68, 655.36, 1310.72, 2621.44, 5242.88,
];
const POINT_SECONDS: [f64; 12] = [
    0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024, 0.2048,
];
/// From 10 µs, each half as much again.
const PLUGIN_SECONDS: [f64; 20] = [
    0.00001,
    0.000_015,
    0.000_022_5,
    0.000_033_75,
    0.000_050_63,
    0.000_075_94,
    0.000_113_91,
    0.000_170_86,
    0.000_256_29,
    0.000_384_43,
    0.000_576_65,
    0.000_864_98,
    0.001_297_46,
    0.001_946_2,
    0.002_919_29,
    0.004_378_94,
    0.006_568_41,
    0.009_852_61,
    0.014_778_92,
    0.022_168_38,
];
/// Plugins are measured once in so many times (upstream, `pluginMetricsSamplePercent`).
const SAMPLE_OF: u64 = 10;
const ATTEMPTS: [f64; 5] = [1.0, 2.0, 4.0, 8.0, 16.0];
const VICTIMS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// More attempts than this are not told apart.
const ATTEMPTS_TOLD_MAX: u32 = 15;

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Scheduled,
    Unschedulable,
    Failed,
}

/// Where in upstream's framework time is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    Filter,
    PostFilter,
    Score,
    PreBind,
    Bind,
}

impl Point {
    /// Its name, and how it ended.
    fn labels(self, well: bool) -> (&'static str, &'static str) {
        let (name, refused) = match self {
            Point::Filter => ("Filter", "Unschedulable"),
            Point::PostFilter => ("PostFilter", "Unschedulable"),
            Point::Score => ("Score", "Error"),
            Point::PreBind => ("PreBind", "Error"),
            Point::Bind => ("Bind", "Error"),
        };
        (name, if well { "Success" } else { refused })
    }
}

/// How often a pod was tried, and how long it has waited.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tried {
    pub attempts: u32,
    pub waited: Duration,
    /// Nothing had happened that would have woken it; its time in the lot was over.
    pub flushed: bool,
}

/// A line of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    Active,
    Backoff,
    Unschedulable,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempt {
    profile: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Came {
    event: String,
    queue: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AfterAttempts {
    attempts: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AtPoint {
    extension_point: &'static str,
    profile: String,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPlugin {
    extension_point: &'static str,
    plugin: String,
    status: &'static str,
}

struct Metrics {
    attempts: Family<Attempt, Counter>,
    attempt_seconds: HistogramFamily<Attempt>,
    algorithm_seconds: Histogram,
    pod_attempts: Histogram,
    queued_seconds: HistogramFamily<AfterAttempts>,
    after_flush: Counter,
    incoming: Family<Came, Counter>,
    preemptions: Counter,
    victims: Histogram,
    points: HistogramFamily<AtPoint>,
    plugins: HistogramFamily<OfPlugin>,
    /// How often nodes were filtered and scored, by profile.
    reached: Mutex<BTreeMap<String, [u64; 2]>>,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    attempts: register(
        "scheduler_schedule_attempts",
        "Attempts to schedule pods, by what came of them",
        Family::default(),
    ),
    attempt_seconds: register(
        "scheduler_scheduling_attempt_duration_seconds",
        "How long attempts take, from planning to the end of the binding",
        histograms(&ATTEMPT_SECONDS),
    ),
    algorithm_seconds: register(
        "scheduler_scheduling_algorithm_duration_seconds",
        "How long planning takes",
        Histogram::new(ATTEMPT_SECONDS),
    ),
    pod_attempts: register(
        "scheduler_pod_scheduling_attempts",
        "Attempts until a pod was scheduled",
        Histogram::new(ATTEMPTS),
    ),
    queued_seconds: register(
        "scheduler_pod_scheduling_sli_duration_seconds",
        "How long pods wait from when they may be scheduled until they are, by attempts",
        histograms(&QUEUED_SECONDS),
    ),
    after_flush: register(
        "scheduler_pod_scheduled_after_flush",
        "Pods that found a node though nothing had woken them",
        Counter::default(),
    ),
    incoming: register(
        "scheduler_queue_incoming_pods",
        "Pods that came to a queue, by the event that brought them",
        Family::default(),
    ),
    preemptions: register(
        "scheduler_preemption_attempts",
        "How often room was looked for by removing pods",
        Counter::default(),
    ),
    victims: register(
        "scheduler_preemption_victims",
        "Pods that were chosen to make room",
        Histogram::new(VICTIMS),
    ),
    points: register(
        "scheduler_framework_extension_point_duration_seconds",
        "How long all plugins of an extension point take",
        histograms(&POINT_SECONDS),
    ),
    plugins: register(
        "scheduler_plugin_execution_duration_seconds",
        "How long a plugin takes at an extension point",
        histograms(&PLUGIN_SECONDS),
    ),
    reached: Mutex::default(),
});

/// An attempt is over, `took` after its pod was popped.
pub fn ended(profile: &str, how: Ended, took: Duration) {
    let result = match how {
        Ended::Scheduled => "scheduled",
        Ended::Unschedulable => "unschedulable",
        Ended::Failed => "error",
    };
    let labels = Attempt { profile: profile.to_owned(), result };
    METRICS.attempts.get_or_create_owned(&labels).inc();
    METRICS.attempt_seconds.get_or_create_owned(&labels).observe(took.as_secs_f64());
}

/// A pod has got its node.
pub fn scheduled(tried: Tried) {
    METRICS.pod_attempts.observe(f64::from(tried.attempts));
    METRICS.after_flush.inc_by(u64::from(tried.flushed));
    let attempts = match tried.attempts {
        few @ ..=ATTEMPTS_TOLD_MAX => few.to_string(),
        _ => format!("{}+", ATTEMPTS_TOLD_MAX + 1),
    };
    let labels = AfterAttempts { attempts };
    METRICS.queued_seconds.get_or_create_owned(&labels).observe(tried.waited.as_secs_f64());
}

pub fn planned(took: Duration) {
    METRICS.algorithm_seconds.observe(took.as_secs_f64());
}

/// Pods came to a row of the queue.
pub fn came(row: Row, event: &str, pods: u64) {
    let queue = match row {
        Row::Active => "active",
        Row::Backoff => "backoff",
        Row::Unschedulable => "unschedulable",
    };
    let labels = Came { event: event.to_owned(), queue };
    METRICS.incoming.get_or_create_owned(&labels).inc_by(pods);
}

/// Room was looked for; `victims` are to go, if any was found.
pub fn preempted(victims: Option<usize>) {
    METRICS.preemptions.inc();
    if let Some(victims) = victims {
        METRICS.victims.observe(victims as f64);
    }
}

/// Time that plugins took. `well`: they had nothing against the pod.
pub fn spent(point: Point, profile: &str, well: bool, took: Duration) {
    let (extension_point, status) = point.labels(well);
    if let Point::Filter | Point::Score = point {
        let mut reached = METRICS.reached.lock();
        let at = usize::from(point == Point::Score);
        match reached.get_mut(profile) {
            Some(counts) => counts[at] += 1,
            None => reached.entry(profile.to_owned()).or_default()[at] = 1,
        }
    }
    let labels = AtPoint { extension_point, profile: profile.to_owned(), status };
    METRICS.points.get_or_create_owned(&labels).observe(took.as_secs_f64());
}

/// Whether plugins are measured this time that their point is reached.
pub fn is_sample(point: Point) -> bool {
    static TIMES: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];
    TIMES[point as usize].fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE_OF)
}

/// `plugin` is called as it is debugged.
pub fn plugin_took(point: Point, plugin: impl std::fmt::Debug, well: bool, took: Duration) {
    let (extension_point, status) = point.labels(well);
    let labels = OfPlugin { extension_point, plugin: format!("{plugin:?}"), status };
    METRICS.plugins.get_or_create_owned(&labels).observe(took.as_secs_f64());
}

/// The scheduler that acts; of several in a process the last.
static ACTING: Mutex<Weak<Inner>> = Mutex::new(Weak::new());

/// Lets the process' metrics tell of a scheduler, as long as it is there.
pub fn watch(scheduler: Weak<Inner>) {
    static ONCE: Once = Once::new();
    *ACTING.lock() = scheduler;
    LazyLock::force(&METRICS);
    ONCE.call_once(|| register_collector(Box::new(Rows)));
}

/// How many pods wait, and for what.
#[derive(Debug)]
struct Rows;

type Labels<'a> = Vec<(&'static str, &'a str)>;

fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    values: impl Iterator<Item = (Labels<'a>, usize)>,
) -> Result<(), Error> {
    let first = ConstGauge::new(0i64);
    let mut family = encoder.encode_descriptor(name, help, None, first.metric_type())?;
    for (labels, value) in values {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

impl Collector for Rows {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(scheduler) = ACTING.lock().upgrade() else { return Ok(()) };
        // Not held while text is made of it.
        let Seen { queues, cached, refusals, profiles } = Seen::of(&scheduler.state.lock());
        gauges(
            &mut encoder,
            ("scheduler_pending_pods", "Pods that wait for a node, by the queue they are in"),
            queues.iter().map(|(queue, pods)| (vec![("queue", *queue)], *pods)),
        )?;
        gauges(
            &mut encoder,
            ("scheduler_cache_size", "Nodes, pods on them, and pods that are being bound"),
            cached.iter().map(|(kind, count)| (vec![("type", *kind)], *count)),
        )?;
        gauges(
            &mut encoder,
            ("scheduler_unschedulable_pods", "Pods that a plugin has refused the last time"),
            refusals.iter().map(|((profile, plugin), pods)| {
                (vec![("plugin", plugin.as_str()), ("profile", profile.as_str())], *pods)
            }),
        )?;
        evaluations(&mut encoder, &profiles)
    }
}

/// How often each plugin was asked: where its point is reached, all of it are.
fn evaluations(
    encoder: &mut DescriptorEncoder<'_>,
    profiles: &[Arc<Profile>],
) -> Result<(), Error> {
    let help = "How often plugins were asked about pods";
    let first = ConstCounter::new(0u64);
    let name = "scheduler_plugin_evaluation";
    let mut family = encoder.encode_descriptor(name, help, None, first.metric_type())?;
    let reached = METRICS.reached.lock().clone();
    for profile in profiles {
        let name = profile.scheduler_name.as_str();
        let Some([filtered, scored]) = reached.get(name) else { continue };
        let plugins = profile.filters.each().filter(|rule| *rule != Rule::Extender);
        let filters = plugins.map(|rule| ("Filter", format!("{rule:?}"), *filtered));
        let judges = profile.scores.iter();
        let scores = judges.map(|(_, judge)| ("Score", format!("{judge:?}"), *scored));
        for (point, plugin, count) in filters.chain(scores) {
            let labels: Labels<'_> =
                vec![("extension_point", point), ("plugin", &plugin), ("profile", name)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

struct Seen {
    queues: [(&'static str, usize); 4],
    cached: [(&'static str, usize); 3],
    /// By profile and plugin.
    refusals: Vec<((String, String), usize)>,
    profiles: Vec<Arc<Profile>>,
}

impl Seen {
    fn of(state: &State) -> Self {
        let rows = state.line.rows();
        Self {
            queues: [
                ("active", rows.ready),
                ("backoff", rows.backing_off),
                ("unschedulable", rows.parked),
                ("gated", state.gated.len()),
            ],
            cached: [
                ("nodes", state.snapshot.nodes().len()),
                ("pods", state.snapshot.pods_placed()),
                ("assumed_pods", state.assumed.len()),
            ],
            refusals: state.line.refusals().into_iter().collect(),
            profiles: state.profiles().to_vec(),
        }
    }
}
