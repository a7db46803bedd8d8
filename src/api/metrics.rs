//! What the API server measures of requests, under upstream's names.
//!
//! A route (verb, resource, scope) finds its metrics once and keeps them; only resources
//! that are served have routes of their own, so strangers cannot make up labels.

use std::sync::LazyLock;
use std::sync::atomic::AtomicI64;

use base::metrics::{HistogramFamily, histograms, register};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

pub mod admission;
pub mod inflight;
pub mod policy;
pub mod reads;
pub mod reload;
pub mod route;
pub mod state;
pub mod storage;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Resultant {
    pub result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Username {
    pub username: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Of {
    pub group: String,
    pub version: String,
    pub resource: String,
}

const DECISION_SECONDS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
    8.192, 16.384,
];
const FRAME_BYTES: [f64; 8] =
    [1_024.0, 2_048.0, 4_096.0, 8_192.0, 16_384.0, 32_768.0, 65_536.0, 131_072.0];

/// Of authentication and authorization, with the handles of what happens most.
pub struct Access {
    pub authenticated: Family<Username, Counter>,
    pub authentications: Family<Resultant, Counter>,
    pub authentication_seconds: HistogramFamily<Resultant>,
    pub authorizations: Family<Resultant, Counter>,
    pub authorization_seconds: HistogramFamily<Resultant>,
}

pub static ACCESS: LazyLock<Access> = LazyLock::new(|| Access {
    authenticated: register(
        "authenticated_user_requests",
        "Requests by user, in a few words",
        Family::default(),
    ),
    authentications: register(
        "authentication_attempts",
        "Attempts to authenticate by result",
        Family::default(),
    ),
    authentication_seconds: register(
        "authentication_duration_seconds",
        "How long authentication takes",
        histograms(&DECISION_SECONDS),
    ),
    authorizations: register(
        "authorization_attempts",
        "Authorizations by result",
        Family::default(),
    ),
    authorization_seconds: register(
        "authorization_duration_seconds",
        "How long authorization takes",
        histograms(&DECISION_SECONDS),
    ),
});

/// One attempt, by its result.
pub struct Attempt {
    attempts: Counter,
    seconds: prometheus_client::metrics::histogram::Histogram,
}

impl Attempt {
    fn of(
        attempts: &Family<Resultant, Counter>,
        seconds: &HistogramFamily<Resultant>,
        result: &'static str,
    ) -> Self {
        let labels = Resultant { result };
        Self {
            attempts: attempts.get_or_create_owned(&labels),
            seconds: seconds.get_or_create_owned(&labels),
        }
    }

    pub fn took(&self, time: std::time::Duration) {
        self.attempts.inc();
        self.seconds.observe(time.as_secs_f64());
    }
}

fn authentication(result: &'static str) -> Attempt {
    Attempt::of(&ACCESS.authentications, &ACCESS.authentication_seconds, result)
}

fn authorization(result: &'static str) -> Attempt {
    Attempt::of(&ACCESS.authorizations, &ACCESS.authorization_seconds, result)
}

pub static AUTHENTICATED: LazyLock<Attempt> = LazyLock::new(|| authentication("success"));
pub static UNAUTHENTICATED: LazyLock<Attempt> = LazyLock::new(|| authentication("failure"));
pub static ALLOWED: LazyLock<Attempt> = LazyLock::new(|| authorization("allowed"));
pub static NOT_ALLOWED: LazyLock<Attempt> = LazyLock::new(|| authorization("no-opinion"));

pub static DENIED: LazyLock<Attempt> = LazyLock::new(|| authorization("denied"));
pub static UNDECIDED: LazyLock<Attempt> = LazyLock::new(|| authorization("error"));

static USERS: LazyLock<[(&str, Counter); 7]> = LazyLock::new(|| {
    [
        "admin",
        "client",
        "kube_proxy",
        "kubelet",
        "system:serviceaccount:kube-system:default",
        "email_id",
        "other",
    ]
    .map(|username| (username, ACCESS.authenticated.get_or_create_owned(&Username { username })))
});

/// Counts a request of a user; most users are others.
pub fn count_user(name: &str) {
    let [known @ .., email, other] = &*USERS;
    let found = known.iter().find(|(user, _)| *user == name);
    let (_, counter) = found.unwrap_or(if name.contains('@') { email } else { other });
    counter.inc();
}

pub static TLS_HANDSHAKE_ERRORS: LazyLock<Counter> = LazyLock::new(|| {
    register(
        "apiserver_tls_handshake_errors",
        "Requests dropped with a TLS handshake error",
        Counter::default(),
    )
});

/// Of watches: events and their sizes.
pub struct Watches {
    pub events: Family<Of, Counter>,
    pub sizes: HistogramFamily<Of>,
}

pub static WATCHES: LazyLock<Watches> = LazyLock::new(|| Watches {
    events: register("apiserver_watch_events", "Events sent to watchers", Family::default()),
    sizes: register(
        "apiserver_watch_events_sizes",
        "Sizes of events sent to watchers, in bytes",
        histograms(&FRAME_BYTES),
    ),
});

/// What one watch counts.
pub struct WatchCounts {
    events: Counter,
    sizes: prometheus_client::metrics::histogram::Histogram,
}

impl WatchCounts {
    pub fn of(group: &str, version: &str, resource: &str) -> Self {
        let labels = Of { group: group.into(), version: version.into(), resource: resource.into() };
        Self {
            events: WATCHES.events.get_or_create_owned(&labels),
            sizes: WATCHES.sizes.get_or_create_owned(&labels),
        }
    }

    pub fn sent(&self, bytes: usize) {
        self.events.inc();
        self.sizes.observe(bytes as f64);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GroupResource {
    pub group: String,
    pub resource: String,
}

/// `index` names what found the objects; empty where all of them were looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Indexed {
    pub group: String,
    pub resource: String,
    pub index: &'static str,
}

/// Of lists that the watch cache answers.
pub struct Lists {
    pub lists: Family<Indexed, Counter>,
    pub fetched: Family<Indexed, Counter>,
    pub returned: Family<GroupResource, Counter>,
}

pub static LISTS: LazyLock<Lists> = LazyLock::new(|| Lists {
    lists: register("apiserver_cache_list", "Lists served from the watch cache", Family::default()),
    fetched: register(
        "apiserver_cache_list_fetched_objects",
        "Objects read from the watch cache to serve lists",
        Family::default(),
    ),
    returned: register(
        "apiserver_cache_list_returned_objects",
        "Objects returned by lists from the watch cache",
        Family::default(),
    ),
});

/// Of lists that the datastore answers, of states that the watch cache no longer holds.
pub struct StorageLists {
    pub lists: Family<GroupResource, Counter>,
    pub fetched: Family<GroupResource, Counter>,
    pub evaluated: Family<GroupResource, Counter>,
    pub returned: Family<GroupResource, Counter>,
}

pub static STORAGE_LISTS: LazyLock<StorageLists> = LazyLock::new(|| StorageLists {
    lists: register("apiserver_storage_list", "Lists served from storage", Family::default()),
    fetched: register(
        "apiserver_storage_list_fetched_objects",
        "Objects read from storage to serve lists",
        Family::default(),
    ),
    evaluated: register(
        "apiserver_storage_list_evaluated_objects",
        "Objects that selectors were tried on to serve lists from storage",
        Family::default(),
    ),
    returned: register(
        "apiserver_storage_list_returned_objects",
        "Objects returned by lists from storage",
        Family::default(),
    ),
});

/// Counts a list from storage: all that was read is looked at.
pub fn count_storage_list(group: &str, resource: &str, fetched: usize, returned: usize) {
    let labels = GroupResource { group: group.into(), resource: resource.into() };
    STORAGE_LISTS.lists.get_or_create(&labels).inc();
    STORAGE_LISTS.fetched.get_or_create(&labels).inc_by(fetched as u64);
    STORAGE_LISTS.evaluated.get_or_create(&labels).inc_by(fetched as u64);
    STORAGE_LISTS.returned.get_or_create(&labels).inc_by(returned as u64);
}

/// Counts a list.
pub fn count_list(group: &str, resource: &str, fetched: usize, returned: usize) {
    let indexed = Indexed { group: group.into(), resource: resource.into(), index: "" };
    LISTS.lists.get_or_create(&indexed).inc();
    LISTS.fetched.get_or_create(&indexed).inc_by(fetched as u64);
    let labels = GroupResource { group: group.into(), resource: resource.into() };
    LISTS.returned.get_or_create(&labels).inc_by(returned as u64);
}

/// A number that goes up and down, with a handle of its own.
pub type Level = Gauge<i64, AtomicI64>;
