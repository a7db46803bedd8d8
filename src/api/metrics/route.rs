//! Requests by route: how many, how long, how large.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base::metrics::{HistogramFamily, histograms, register};
use kinds::resources::Catalog;
use parking_lot::{Mutex, RwLock};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::Level;
use crate::serve::request::RequestInfo;

/// Routes that are told apart; later ones are counted together.
const ROUTES_MAX: usize = 8_192;
const SECONDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
const BYTES: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Paths outside of the resources that are counted by their name.
const PATHS: [&str; 10] = [
    "/api",
    "/apis",
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/readyz",
    "/version",
    "/",
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Coded {
    verb: &'static str,
    dry_run: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Timed {
    verb: &'static str,
    dry_run: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Plain {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

struct Families {
    requests: Family<Coded, Counter>,
    seconds: HistogramFamily<Timed>,
    sli: HistogramFamily<Plain>,
    sizes: HistogramFamily<Plain>,
    long: Family<Plain, Level>,
    terminated: Family<Coded, Counter>,
}

static FAMILIES: LazyLock<Families> = LazyLock::new(|| Families {
    requests: register(
        "apiserver_request",
        "Requests by verb, resource and code",
        Family::default(),
    ),
    seconds: register(
        "apiserver_request_duration_seconds",
        "How long requests take, by verb and resource",
        histograms(&SECONDS),
    ),
    sli: register(
        "apiserver_request_sli_duration_seconds",
        "How long requests take, without the time spent in webhooks and queues",
        histograms(&SECONDS),
    ),
    sizes: register(
        "apiserver_response_sizes",
        "Sizes of answers to reading requests, in bytes",
        histograms(&BYTES),
    ),
    long: register(
        "apiserver_longrunning_requests",
        "Watches, streams and proxied requests under way",
        Family::default(),
    ),
    terminated: register(
        "apiserver_request_terminations",
        "Requests that the server ended to protect itself",
        Family::default(),
    ),
});

/// What makes a route.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    verb: &'static str,
    dry_run: bool,
    scope: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
}

/// The metrics of one route.
#[derive(Debug)]
pub struct Route {
    key: Key,
    seconds: Histogram,
    sli: Histogram,
    sizes: Option<Histogram>,
    long: Level,
    /// Few codes are common, so a short list is searched.
    codes: Mutex<Vec<(u16, Counter)>>,
}

/// What tells routes apart in a request.
#[derive(Debug, Clone, Copy)]
pub struct Traits {
    pub dry_run: bool,
    /// A patch that is a server-side apply.
    pub apply: bool,
}

struct Routes {
    hasher: RandomState,
    /// By a hash of what makes them; compared in full.
    known: RwLock<HashMap<u64, Arc<Route>>>,
    /// Everything that has no route of its own, by verb.
    others: RwLock<HashMap<&'static str, Arc<Route>>>,
}

static ROUTES: LazyLock<Routes> = LazyLock::new(|| Routes {
    hasher: RandomState::new(),
    known: RwLock::default(),
    others: RwLock::default(),
});

fn verb(info: &RequestInfo, traits: Traits) -> &'static str {
    match info.verb {
        "create" | "get"
            if matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy") =>
        {
            "CONNECT"
        }
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" if traits.apply => "APPLY",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "head" => "HEAD",
        "options" => "OPTIONS",
        _ => "other",
    }
}

fn scope(info: &RequestInfo) -> &'static str {
    if !info.is_resource {
        ""
    } else if !info.name.is_empty() || info.verb == "create" {
        "resource"
    } else if !info.namespace.is_empty() {
        "namespace"
    } else {
        "cluster"
    }
}

/// A path's name among the metrics.
fn path(path: &str) -> &'static str {
    let is = |known: &&&str| {
        path == **known || path.strip_prefix(**known).is_some_and(|rest| rest.starts_with('/'))
    };
    PATHS.iter().find(is).copied().unwrap_or("")
}

/// The route of a request.
pub fn of(
    info: &RequestInfo,
    traits: Traits,
    catalog: impl FnOnce() -> Arc<Catalog>,
) -> Arc<Route> {
    let (verb, scope) = (verb(info, traits), scope(info));
    let subresource = if info.is_resource { info.subresource.as_str() } else { path(&info.path) };
    let parts = [&info.group, &info.version, &info.resource, subresource];
    let hash = ROUTES.hasher.hash_one((verb, scope, traits.dry_run, parts));
    if let Some(route) = ROUTES.known.read().get(&hash) {
        let key = &route.key;
        let same = [&key.group, &key.version, &key.resource, key.subresource.as_str()] == parts
            && (key.verb, key.scope, key.dry_run) == (verb, scope, traits.dry_run);
        return if same { route.clone() } else { other(verb) };
    }
    let served = !info.is_resource || is_served(info, &catalog());
    if !served || ROUTES.known.read().len() >= ROUTES_MAX {
        return other(verb);
    }
    let [group, version, resource, subresource] = parts.map(str::to_string);
    let dry_run = traits.dry_run;
    let key = Key { verb, dry_run, scope, group, version, resource, subresource };
    ROUTES.known.write().entry(hash).or_insert_with(|| Arc::new(Route::new(key))).clone()
}

fn is_served(info: &RequestInfo, catalog: &Catalog) -> bool {
    let Some(resource) = catalog.by_plural(&info.group, &info.version, &info.resource) else {
        return false;
    };
    info.subresource.is_empty() || resource.subresource(&info.subresource, &info.version).is_some()
}

fn other(verb: &'static str) -> Arc<Route> {
    if let Some(route) = ROUTES.others.read().get(verb) {
        return route.clone();
    }
    let key = Key {
        verb,
        dry_run: false,
        scope: "",
        group: String::new(),
        version: String::new(),
        resource: String::new(),
        subresource: String::new(),
    };
    ROUTES.others.write().entry(verb).or_insert_with(|| Arc::new(Route::new(key))).clone()
}

impl Key {
    fn plain(&self) -> Plain {
        Plain {
            verb: self.verb,
            group: self.group.clone(),
            version: self.version.clone(),
            resource: self.resource.clone(),
            subresource: self.subresource.clone(),
            scope: self.scope,
            component: "apiserver",
        }
    }

    fn dry_run(&self) -> &'static str {
        if self.dry_run { "All" } else { "" }
    }

    fn timed(&self) -> Timed {
        let Plain { verb, group, version, resource, subresource, scope, component } = self.plain();
        let dry_run = self.dry_run();
        Timed { verb, dry_run, group, version, resource, subresource, scope, component }
    }

    fn coded(&self, code: u16) -> Coded {
        let Plain { verb, group, version, resource, subresource, scope, component } = self.plain();
        let dry_run = self.dry_run();
        Coded { verb, dry_run, group, version, resource, subresource, scope, component, code }
    }
}

impl Route {
    fn new(key: Key) -> Self {
        let plain = key.plain();
        let reads = matches!(key.verb, "GET" | "LIST");
        Self {
            seconds: FAMILIES.seconds.get_or_create_owned(&key.timed()),
            sli: FAMILIES.sli.get_or_create_owned(&plain),
            sizes: reads.then(|| FAMILIES.sizes.get_or_create_owned(&plain)),
            long: FAMILIES.long.get_or_create_owned(&plain),
            codes: Mutex::default(),
            key,
        }
    }

    /// A request is done. `elsewhere` was spent waiting in queues.
    pub fn done(&self, code: u16, took: Duration, elsewhere: Duration, bytes: Option<usize>) {
        self.counter(code).inc();
        // A watch says how long it was open, which is nobody's delay.
        if self.key.verb != "WATCH" {
            self.seconds.observe(took.as_secs_f64());
            self.sli.observe(took.saturating_sub(elsewhere).as_secs_f64());
        }
        if let (Some(sizes), Some(bytes)) = (&self.sizes, bytes) {
            sizes.observe(bytes as f64);
        }
    }

    fn counter(&self, code: u16) -> Counter {
        let mut codes = self.codes.lock();
        if let Some((_, counter)) = codes.iter().find(|(known, _)| *known == code) {
            return counter.clone();
        }
        let counter = FAMILIES.requests.get_or_create_owned(&self.key.coded(code));
        codes.push((code, counter.clone()));
        counter
    }

    /// The server ended a request: it was too much, or took too long.
    pub fn terminated(&self, code: u16) {
        FAMILIES.terminated.get_or_create(&self.key.coded(code)).inc();
    }

    /// A request without a deadline begins; it ends with what is returned.
    pub fn long(self: &Arc<Self>) -> LongRunning {
        self.long.inc();
        LongRunning(self.clone())
    }
}

#[derive(Debug)]
pub struct LongRunning(Arc<Route>);

impl Drop for LongRunning {
    fn drop(&mut self) {
        self.0.long.dec();
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::serve::request::Query;

    fn route(method: Method, uri: &str) -> Key {
        let (path, query) = uri.split_once('?').map_or((uri, None), |(p, q)| (p, Some(q)));
        let info = RequestInfo::parse(&method, path, &Query::parse(query));
        let traits = Traits { dry_run: false, apply: false };
        of(&info, traits, || Arc::new(Catalog::built_in().clone())).key.clone()
    }

    #[test]
    fn strangers_make_no_labels() {
        let key = route(Method::GET, "/api/v1/namespaces/a/pods/b");
        assert_eq!((key.verb, key.scope, key.resource.as_str()), ("GET", "resource", "pods"));
        let key = route(Method::GET, "/api/v1/namespaces/a/pods");
        assert_eq!((key.verb, key.scope), ("LIST", "namespace"));
        let key = route(Method::POST, "/api/v1/namespaces/a/pods/b/exec");
        assert_eq!((key.verb, key.subresource.as_str()), ("CONNECT", "exec"));
        assert_eq!(route(Method::GET, "/livez/ping").subresource, "/livez");
        for made_up in ["/api/v1/xyz", "/apis/a.b/v1/c", "/api/v1/namespaces/a/pods/b/xyz"] {
            let key = route(Method::GET, made_up);
            assert_eq!((key.group.as_str(), key.resource.as_str(), key.scope), ("", "", ""));
        }
        assert_eq!(route(Method::GET, "/wp-login.php").subresource, "");
    }
}
