//! `/healthz`, `/livez`, `/readyz`, `/metrics`, `/version` and componentstatuses.

use std::sync::atomic::{AtomicBool, Ordering};

use client::Body;
use http::{Response, StatusCode};
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

/// Checks by name; the ones of readiness only come last.
const LIVE: [&str; 5] = [
    "ping",
    "log",
    "etcd",
    "poststarthook/start-apiserver-admission-initializer",
    "poststarthook/storage-object-count-tracker-hook",
];
const READY: [&str; 4] = [
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "informer-sync",
    "shutdown",
];

/// The paths of all checks.
pub fn paths() -> Vec<String> {
    let of = |root: &str, checks: &[&str]| -> Vec<String> {
        checks.iter().map(|check| format!("/{root}/{check}")).collect()
    };
    let ready = [&LIVE[..], &READY].concat();
    [of("healthz", &LIVE), of("livez", &LIVE), of("readyz", &ready)].concat()
}

fn passes(server: &Shared, check: &str) -> bool {
    let ready = &server.ready;
    match check {
        "shutdown" => !ready.draining.load(Ordering::Acquire),
        "poststarthook/rbac/bootstrap-roles"
        | "poststarthook/scheduling/bootstrap-system-priority-classes" => {
            ready.bootstrapped.load(Ordering::Acquire)
        }
        // The cache follows the store; if it falls behind, reads would wait.
        "informer-sync" | "etcd" => {
            server.registry.cache.revision()
                >= server.registry.store().revision().saturating_sub(10_000)
        }
        _ => true,
    }
}

/// Answers health, version and metrics paths; None for any other path.
pub async fn serve(server: &Shared, call: &Call) -> Option<Response<Body>> {
    let path = call.info.path.trim_end_matches('/');
    let (root, rest) = match path.trim_start_matches('/').split_once('/') {
        Some((root, rest)) => (root, Some(rest)),
        None => (path.trim_start_matches('/'), None),
    };
    let checks: Vec<&str> = match root {
        "livez" | "healthz" => LIVE.to_vec(),
        "readyz" => LIVE.iter().chain(&READY).copied().collect(),
        "version" if rest.is_none() => return Some(answer::json(StatusCode::OK, &version(server))),
        "metrics" if rest.is_none() => {
            let text = base::metrics::render();
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            return Some(answer::bytes(StatusCode::OK, kind, text));
        }
        _ => return None,
    };
    if let Some(one) = rest {
        if !checks.contains(&one) {
            return Some(answer::bytes(
                StatusCode::NOT_FOUND,
                "text/plain; charset=utf-8",
                "404 page not found\n",
            ));
        }
        let good = passes(server, one);
        let status = if good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
        let text =
            if good { "ok".to_string() } else { format!("internal server error: {one}: failed\n") };
        return Some(answer::bytes(status, "text/plain; charset=utf-8", text));
    }
    let excluded: Vec<&str> = call.query.all("exclude").collect();
    let unknown: Vec<String> = excluded
        .iter()
        .filter(|check| !checks.contains(check))
        .map(|check| format!("{check:?}"))
        .collect();
    let mut lines = String::new();
    let mut good = true;
    for check in checks {
        if excluded.contains(&check) {
            lines.push_str(&format!("[+]{check} excluded: ok\n"));
        } else if passes(server, check) {
            lines.push_str(&format!("[+]{check} ok\n"));
        } else {
            good = false;
            lines.push_str(&format!("[-]{check} failed: reason withheld\n"));
        }
    }
    if !unknown.is_empty() {
        lines.push_str(&format!(
            "warn: some health checks cannot be excluded: no matches for {}\n",
            unknown.join(",")
        ));
    }
    let verbose = call.query.get("verbose").is_some();
    let (status, text) = match (good, verbose) {
        (true, false) => (StatusCode::OK, "ok".to_string()),
        (true, true) => (StatusCode::OK, format!("{lines}{root} check passed\n")),
        (false, _) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{root} check failed\n")),
    };
    Some(answer::bytes(status, "text/plain; charset=utf-8", text))
}

fn version(server: &Shared) -> Value {
    let version = &server.version;
    json!({
        "major": version.major, "minor": version.minor,
        "emulationMajor": version.major, "emulationMinor": version.minor,
        "minCompatibilityMajor": version.major, "minCompatibilityMinor": "35",
        "gitVersion": version.git, "gitCommit": version.commit, "gitTreeState": "clean",
        "buildDate": version.built, "goVersion": "none", "compiler": "rustc",
        "platform": format!("linux/{}", platform()),
    })
}

/// Go's name of this machine's architecture.
pub fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The deprecated statuses of the control plane's parts, which are all this process.
pub fn component_statuses(server: &Shared, call: &Call, target: &Target) -> Result<Response<Body>> {
    let status = |name: &str| {
        let good = name != "etcd-0" || passes(server, "etcd");
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
