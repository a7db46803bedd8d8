//! Measures the datastore from outside, under the names that clusters' dashboards know.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use async_trait::async_trait;
use base::metrics::{HistogramFamily, histograms, register};
use parking_lot::RwLock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use store::{Backend, Durability, KeyValue, Outcome, Range, RangeRequest, Result, Watch, Write};

const SECONDS: [f64; 21] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0,
    15.0, 20.0, 30.0, 60.0,
];
/// Resources whose requests are told apart; the others are counted as one.
const RESOURCES_MAX: usize = 2_048;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    operation: &'static str,
    group: String,
    resource: String,
}

struct Families {
    seconds: HistogramFamily<Asked>,
    requests: Family<Asked, Counter>,
    errors: Family<Asked, Counter>,
}

static FAMILIES: LazyLock<Families> = LazyLock::new(|| Families {
    seconds: register(
        "etcd_request_duration_seconds",
        "How long the datastore takes for each operation and resource",
        histograms(&SECONDS),
    ),
    requests: register("etcd_requests", "Requests to the datastore", Family::default()),
    errors: register("etcd_request_errors", "Failed requests to the datastore", Family::default()),
});

/// A datastore whose answers are timed.
pub struct Measured {
    inner: Arc<dyn Backend>,
    handles: RwLock<HashMap<Place, Arc<Handles>>>,
}

/// Operation and resource.
type Place = (&'static str, Box<str>);

struct Handles {
    seconds: Histogram,
    requests: Counter,
    errors: Counter,
}

impl Measured {
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, handles: RwLock::default() }
    }

    fn handles(&self, operation: &'static str, key: &str) -> Arc<Handles> {
        let place = place(key);
        if let Some(known) = self.handles.read().get(&(operation, place.into())) {
            return known.clone();
        }
        let mut handles = self.handles.write();
        let place = if handles.len() < RESOURCES_MAX { place } else { "" };
        let (group, resource) = place.rsplit_once('/').unwrap_or(("", place));
        let labels = Asked { operation, group: group.into(), resource: resource.into() };
        let made = || {
            Arc::new(Handles {
                seconds: FAMILIES.seconds.get_or_create_owned(&labels),
                requests: FAMILIES.requests.get_or_create_owned(&labels),
                errors: FAMILIES.errors.get_or_create_owned(&labels),
            })
        };
        handles.entry((operation, place.into())).or_insert_with(made).clone()
    }

    async fn timed<T>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let handles = self.handles(operation, key);
        let begun = Instant::now();
        let done = work.await;
        handles.seconds.observe(begun.elapsed().as_secs_f64());
        handles.requests.inc();
        if done.is_err() {
            handles.errors.inc();
        }
        done
    }
}

/// Group and resource of a key: `/registry/pods/a/b` is of `pods`, and
/// `/registry/example.com/things/a/b` of `example.com/things`.
fn place(key: &str) -> &str {
    let rest = key.strip_prefix("/registry/").unwrap_or(key);
    let mut slashes = rest.match_indices('/').map(|(at, _)| at);
    let first = slashes.next().unwrap_or(rest.len());
    // Only groups have dots, and only services have two names of their own.
    let two = rest[..first].contains('.') || &rest[..first] == "services";
    match slashes.next() {
        Some(second) if two => &rest[..second],
        _ => &rest[..first],
    }
}

#[async_trait]
impl Backend for Measured {
    fn revision(&self) -> u64 {
        self.inner.revision()
    }

    fn oldest(&self) -> u64 {
        self.inner.oldest()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        self.timed("get", key, self.inner.get(key)).await
    }

    async fn range(&self, request: RangeRequest) -> Result<Range> {
        let prefix = request.prefix.clone();
        self.timed("list", &prefix, self.inner.range(request)).await
    }

    async fn write(&self, write: Write, durability: Durability) -> Result<Outcome> {
        let operation = match &write {
            Write::Create { .. } => "create",
            Write::Update { .. } => "update",
            Write::Delete { .. } => "delete",
        };
        let key = write.key().to_string();
        self.timed(operation, &key, self.inner.write(write, durability)).await
    }

    async fn watch(&self, after: u64) -> Result<Watch> {
        self.inner.watch(after).await
    }

    async fn compact(&self, revision: u64) -> Result<u64> {
        self.timed("compact", "", self.inner.compact(revision)).await
    }

    async fn flush(&self) -> Result<()> {
        self.inner.flush().await
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_tell_their_resource() {
        let cases = [
            ("/registry/pods/a/b", "pods"),
            ("/registry/services/specs/a/b", "services/specs"),
            ("/registry/example.com/things/a/b", "example.com/things"),
            ("/registry/namespaces/a", "namespaces"),
            ("/registry/", ""),
        ];
        for (key, place) in cases {
            assert_eq!(super::place(key), place, "{key}");
        }
    }
}
