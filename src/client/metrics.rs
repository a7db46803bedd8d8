//! What clients and queues measure, under client-go's names.
//!
//! Handles are found once per client and queue; what is counted often is counted by them.

use std::sync::LazyLock;
use std::time::Duration;

use base::metrics::{HistogramFamily, histograms, register};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

const REQUEST_SECONDS: [f64; 12] =
    [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
const QUEUE_SECONDS: [f64; 10] = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];
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
