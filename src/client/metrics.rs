//! What clients and queues measure, under client-go's names.
//!
//! Handles are found once per client and queue; what is counted often is counted by them.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::{LazyLock, Weak};
use std::time::Duration;

use base::metrics::{HistogramFamily, histograms, register, register_collector};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;

const REQUEST_SECONDS: [f64; 12] =
    [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
const QUEUE_SECONDS: [f64; 12] =
    [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0];
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    code: u16,
    host: String,
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Timed {
    host: String,
    verb: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    name: &'static str,
}

struct Requests {
    answers: Family<Answered, Counter>,
    seconds: HistogramFamily<Timed>,
}

static LEADS: LazyLock<Family<Lease, Gauge>> = LazyLock::new(|| {
    register("leader_election_master_status", "1 where this process leads", Family::default())
});

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lease {
    name: String,
}

/// Whether this process has the lease `name`.
pub fn leads(name: &str, leads: bool) {
    LEADS.get_or_create_owned(&Lease { name: name.to_owned() }).set(i64::from(leads));
}

struct Queues {
    adds: Family<Named, Counter>,
    depth: Family<Named, Gauge>,
    retries: Family<Named, Counter>,
    waited: HistogramFamily<Named>,
    worked: HistogramFamily<Named>,
}

static REQUESTS: LazyLock<Requests> = LazyLock::new(|| Requests {
    answers: register(
        "rest_client_requests",
        "Requests by code, method and host",
        Family::default(),
    ),
    seconds: register(
        "rest_client_request_duration_seconds",
        "How long requests take until they are answered, by verb and host",
        histograms(&REQUEST_SECONDS),
    ),
});

static QUEUES: LazyLock<Queues> = LazyLock::new(|| Queues {
    adds: register("workqueue_adds", "Keys put in line", Family::default()),
    depth: register("workqueue_depth", "Keys in line", Family::default()),
    retries: register("workqueue_retries", "Keys whose work failed", Family::default()),
    waited: register(
        "workqueue_queue_duration_seconds",
        "How long keys wait in line",
        histograms(&QUEUE_SECONDS),
    ),
    worked: register(
        "workqueue_work_duration_seconds",
        "How long the work on a key takes",
        histograms(&QUEUE_SECONDS),
    ),
});

/// Of one client.
pub struct ClientMetrics {
    host: String,
    seconds: [Histogram; METHODS.len()],
    /// Few codes are common, so a short list is searched.
    codes: Mutex<Vec<(usize, u16, Counter)>>,
}

impl ClientMetrics {
    pub fn of(host: &str) -> Self {
        let seconds =
            |verb| REQUESTS.seconds.get_or_create_owned(&Timed { host: host.to_string(), verb });
        Self { host: host.to_string(), seconds: METHODS.map(seconds), codes: Mutex::default() }
    }

    /// Counts an answer; 0 is the code of none.
    pub fn answered(&self, method: &http::Method, code: u16, took: Duration) {
        let Some(at) = METHODS.iter().position(|known| *known == method.as_str()) else { return };
        self.seconds[at].observe(took.as_secs_f64());
        let mut codes = self.codes.lock();
        if let Some((.., counter)) = codes.iter().find(|(m, c, _)| (*m, *c) == (at, code)) {
            counter.inc();
            return;
        }
        let labels = Answered { code, host: self.host.clone(), method: METHODS[at] };
        let counter = REQUESTS.answers.get_or_create_owned(&labels);
        counter.inc();
        codes.push((at, code, counter));
    }
}

/// Of one queue.
pub struct QueueMetrics {
    pub adds: Counter,
    pub depth: Gauge,
    pub retries: Counter,
    pub waited: Histogram,
    pub worked: Histogram,
}

impl QueueMetrics {
    pub fn of(name: &'static str) -> Self {
        let labels = Named { name };
        Self {
            adds: QUEUES.adds.get_or_create_owned(&labels),
            depth: QUEUES.depth.get_or_create_owned(&labels),
            retries: QUEUES.retries.get_or_create_owned(&labels),
            waited: QUEUES.waited.get_or_create_owned(&labels),
            worked: QUEUES.worked.get_or_create_owned(&labels),
        }
    }
}

/// A queue that tells since when each of its keys is worked on.
pub trait Working: Send + Sync {
    fn begun(&self) -> Vec<tokio::time::Instant>;
}

type ByName = Mutex<Vec<(&'static str, Weak<dyn Working>)>>;

/// Queues by their names; no more than there are, for those that are gone are taken out.
static WORKING: LazyLock<ByName> = LazyLock::new(|| {
    register_collector(Box::new(UnderWay));
    Mutex::default()
});

/// Lets the process' metrics tell how long the work on a queue's keys is under way.
pub fn watch(name: &'static str, queue: Weak<dyn Working>) {
    WORKING.lock().push((name, queue));
}

/// The work that has no end yet.
#[derive(Debug)]
struct UnderWay;

impl Collector for UnderWay {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut queues = WORKING.lock();
        queues.retain(|(_, queue)| queue.strong_count() > 0);
        let mut sums: BTreeMap<&'static str, (f64, f64)> = BTreeMap::new();
        for (name, queue) in queues.iter() {
            let (sum, longest) = sums.entry(name).or_default();
            for begun in queue.upgrade().map(|queue| queue.begun()).unwrap_or_default() {
                let seconds = begun.elapsed().as_secs_f64();
                *sum += seconds;
                *longest = longest.max(seconds);
            }
        }
        drop(queues);
        type Of = fn(&(f64, f64)) -> f64;
        let families: [(&str, &str, Of); 2] = [
            (
                "workqueue_unfinished_work_seconds",
                "How long the work that has no end yet is under way, all keys together",
                |sums| sums.0,
            ),
            (
                "workqueue_longest_running_processor_seconds",
                "How long the work on the key that takes longest is under way",
                |sums| sums.1,
            ),
        ];
        for (family, help, of) in families {
            let first = ConstGauge::new(0.0f64);
            let mut family = encoder.encode_descriptor(family, help, None, first.metric_type())?;
            for (name, sums) in &sums {
                ConstGauge::new(of(sums)).encode(family.encode_family(&[("name", *name)])?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Since(Duration);

    impl Working for Since {
        fn begun(&self) -> Vec<tokio::time::Instant> {
            let now = tokio::time::Instant::now();
            vec![now - self.0, now - self.0 / 2]
        }
    }

    #[tokio::test]
    async fn work_without_an_end_is_told_and_queues_that_are_gone_are_not() {
        use std::sync::Arc;

        let queue: Arc<dyn Working> = Arc::new(Since(Duration::from_secs(8)));
        watch("slow", Arc::downgrade(&queue));
        let value = |name: &str| -> Option<f64> {
            let text = base::metrics::render(base::metrics::Format::Prometheus);
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.rsplit_once(' ')?.1.parse().ok()
        };
        let unfinished = value("workqueue_unfinished_work_seconds{name=\"slow\"}").unwrap();
        assert!((12.0..13.0).contains(&unfinished), "{unfinished}");
        let longest = value("workqueue_longest_running_processor_seconds{name=\"slow\"}").unwrap();
        assert!((8.0..9.0).contains(&longest), "{longest}");
        drop(queue);
        assert_eq!(value("workqueue_unfinished_work_seconds{name=\"slow\"}"), None);
    }
}
