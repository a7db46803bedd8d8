//! `/healthz`, `/livez`, `/readyz`, `/metrics`, `/version` and componentstatuses.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use base::metrics::{Format, build};
use client::Body;
use http::{Response, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::chain::Call;
use super::{Shared, answer};
use crate::error::{ApiError, Result};
use crate::registry::Target;

/// What has to be done before the server counts as ready.
#[derive(Debug, Default)]
pub struct Readiness {
    pub bootstrapped: AtomicBool,
    pub draining: AtomicBool,
}

/// What a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// Done once requests are answered at all: the server is built in that order.
    Built,
    /// The first objects of a cluster are there.
    Bootstrapped,
    /// The datastore answers, and the watch cache follows it.
    Store,
    /// The server has not been told to end.
    Staying,
}

/// Checks under upstream's names, in its order.
const CHECKS: [(&str, Check); 18] = [
    ("ping", Check::Built),
    ("log", Check::Built),
    ("etcd", Check::Store),
    ("poststarthook/start-apiserver-admission-initializer", Check::Built),
    ("poststarthook/generic-apiserver-start-informers", Check::Built),
    ("poststarthook/priority-and-fairness-config-consumer", Check::Bootstrapped),
    ("poststarthook/priority-and-fairness-filter", Check::Built),
    ("poststarthook/storage-object-count-tracker-hook", Check::Built),
    ("poststarthook/start-apiextensions-informers", Check::Built),
    ("poststarthook/start-apiextensions-controllers", Check::Built),
    ("poststarthook/crd-informer-synced", Check::Built),
    ("poststarthook/start-system-namespaces-controller", Check::Bootstrapped),
    ("poststarthook/storage-readiness", Check::Store),
    ("poststarthook/start-service-ip-repair-controllers", Check::Built),
    ("poststarthook/rbac/bootstrap-roles", Check::Bootstrapped),
    ("poststarthook/scheduling/bootstrap-system-priority-classes", Check::Bootstrapped),
    ("poststarthook/priority-and-fairness-config-producer", Check::Bootstrapped),
    ("poststarthook/bootstrap-controller", Check::Bootstrapped),
];
/// Where readiness looks at the caches, and what only it looks at in the end.
const INFORMERS: (&str, Check) = ("informer-sync", Check::Store);
const SHUTDOWN: (&str, Check) = ("shutdown", Check::Staying);
const ROOTS: [&str; 3] = ["healthz", "livez", "readyz"];
/// Revisions by which the cache may be behind the store: more is a cache that does not follow.
const BEHIND_MAX: u64 = 10_000;

fn checks(root: &str) -> Vec<(&'static str, Check)> {
    let mut checks = CHECKS.to_vec();
    if root == "readyz" {
        checks.insert(3, INFORMERS);
        checks.push(SHUTDOWN);
    }
    checks
}

/// The paths of all checks.
pub fn paths() -> Vec<String> {
    let of = |root: &str| -> Vec<String> {
        checks(root).iter().map(|(check, _)| format!("/{root}/{check}")).collect()
    };
    ROOTS.map(of).concat()
}

fn passes(server: &Shared, check: Check) -> bool {
    let ready = &server.ready;
    match check {
        Check::Built => true,
        Check::Bootstrapped => ready.bootstrapped.load(Ordering::Acquire),
        Check::Staying => !ready.draining.load(Ordering::Acquire),
        Check::Store => {
            let behind = server.registry.store().revision().saturating_sub(BEHIND_MAX);
            server.registry.cache.revision() >= behind
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

/// Answers health, version and metrics paths; None for any other path.
pub async fn serve(server: &Shared, call: &Call) -> Option<Response<Body>> {
    let path = call.info.path.trim_end_matches('/');
    let (root, rest) = match path.trim_start_matches('/').split_once('/') {
        Some((root, rest)) => (root, Some(rest)),
        None => (path.trim_start_matches('/'), None),
    };
    let accept = call.request.headers().get(http::header::ACCEPT);
    let format = Format::of(accept.and_then(|accept| accept.to_str().ok()));
    let measured = |text: String| answer::bytes(StatusCode::OK, format.content_type(), text);
    match (root, rest) {
        ("version", None) => Some(answer::json(StatusCode::OK, &version(server))),
        ("metrics", None) => Some(measured(base::metrics::render(format))),
        ("metrics", Some("slis")) => Some(measured(indicators(server, format))),
        (root, Some(one)) if ROOTS.contains(&root) => Some(single(server, root, one)),
        (root, None) if ROOTS.contains(&root) => Some(all(server, call, root)),
        _ => None,
    }
}

fn single(server: &Shared, root: &str, one: &str) -> Response<Body> {
    let Some((name, check)) = checks(root).into_iter().find(|(name, _)| *name == one) else {
        return super::documents::not_found();
    };
    match tell(server, root, name, check) {
        true => answer::bytes(StatusCode::OK, TEXT, "ok"),
        false => answer::bytes(
            StatusCode::INTERNAL_SERVER_ERROR,
            TEXT,
            format!("internal server error: {one}: failed\n"),
        ),
    }
}

fn all(server: &Shared, call: &Call, root: &str) -> Response<Body> {
    let checks = checks(root);
    let excluded: Vec<&str> = call.query.all("exclude").collect();
    let known = |wanted: &&&str| checks.iter().any(|(name, _)| *name == **wanted);
    let mut unknown: Vec<String> =
        excluded.iter().filter(|e| !known(e)).map(|name| format!("{name:?}")).collect();
    unknown.sort();
    let mut lines = String::new();
    let mut good = true;
    for (name, check) in &checks {
        if excluded.contains(name) {
            lines.push_str(&format!("[+]{name} excluded: ok\n"));
        } else if tell(server, root, name, *check) {
            lines.push_str(&format!("[+]{name} ok\n"));
        } else {
            good = false;
            lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    if !unknown.is_empty() {
        let names = unknown.join(", ");
        let said = "warn: some health checks cannot be excluded: no matches for";
        lines.push_str(&format!("{said} {names}\n"));
    }
    let verbose = call.query.get("verbose").is_some();
    let (status, text) = match (good, verbose) {
        (true, false) => (StatusCode::OK, "ok".to_string()),
        (true, true) => (StatusCode::OK, format!("{lines}{root} check passed\n")),
        (false, _) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{root} check failed\n")),
    };
    answer::bytes(status, TEXT, text)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Checked {
    name: &'static str,
    status: &'static str,
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Indicated {
    name: &'static str,
    r#type: &'static str,
}

static CHECKED: LazyLock<Family<Checked, Counter>> = LazyLock::new(Family::default);

/// Looks, and counts what was seen.
fn tell(server: &Shared, root: &str, name: &'static str, check: Check) -> bool {
    let good = passes(server, check);
    let status = if good { "success" } else { "error" };
    let r#type = ROOTS.iter().find(|known| **known == root).copied().unwrap_or("");
    CHECKED.get_or_create(&Checked { name, status, r#type }).inc();
    good
}

/// `/metrics/slis`: the checks as numbers.
fn indicators(server: &Shared, format: Format) -> String {
    let current: Family<Indicated, Gauge> = Family::default();
    for root in ROOTS {
        for (name, check) in checks(root) {
            let good = passes(server, check);
            let gauge = current.get_or_create_owned(&Indicated { name, r#type: root });
            gauge.set(i64::from(good));
        }
    }
    let mut registry = Registry::default();
    registry.register("kubernetes_healthcheck", "Whether a check passes", current);
    registry.register("kubernetes_healthchecks", "Results of checks", CHECKED.clone());
    base::metrics::render_of(&registry, format)
}

fn version(server: &Shared) -> Value {
    let version = &server.version;
    json!({
        "major": version.major, "minor": version.minor,
        "emulationMajor": version.major, "emulationMinor": version.minor,
        "minCompatibilityMajor": version.major, "minCompatibilityMinor": "35",
        "gitVersion": version.git, "gitCommit": version.commit, "gitTreeState": "clean",
        "buildDate": version.built, "goVersion": "none", "compiler": "rustc",
        "platform": format!("linux/{}", build::platform()),
    })
}

/// The deprecated statuses of the control plane's parts, which are all this process.
pub fn component_statuses(server: &Shared, call: &Call, target: &Target) -> Result<Response<Body>> {
    let status = |name: &str| {
        let good = name != "etcd-0" || passes(server, Check::Store);
        json!({
            "metadata": {"name": name},
            "conditions": [{
                "type": "Healthy", "status": if good { "True" } else { "False" },
                "message": if good { "ok" } else { "behind" },
            }],
        })
    };
    let names = ["scheduler", "controller-manager", "etcd-0"];
    let form = super::resources::form(call, target)?;
    match call.info.verb {
        "list" => {
            let items: Vec<Value> = names.iter().map(|name| status(name)).collect();
            let list = answer::list_value(target, serde_json::Map::new(), items.clone());
            if form.view == super::negotiate::View::Table {
                let table = answer::table(form, target, &items, &list, answer::Include::Metadata);
                return answer::plain(StatusCode::OK, form, &table);
            }
            answer::plain(StatusCode::OK, form, &list)
        }
        "get" if names.contains(&target.name.as_str()) => {
            let mut one = status(&target.name);
            one["kind"] = "ComponentStatus".into();
            one["apiVersion"] = "v1".into();
            answer::object(StatusCode::OK, form, target, &one, answer::Include::Metadata)
        }
        "get" => Err(ApiError::not_found(&target.resource, &target.name)),
        _ => Err(ApiError::method_not_allowed()),
    }
}
