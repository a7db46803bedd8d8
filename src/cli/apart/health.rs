//! Whether a component in a process of its own is well, in k8s.io/apiserver's words and numbers.

use std::sync::LazyLock;

use base::metrics::Format;
use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::listen::{Answer, PLAIN, text};

/// Where checks are asked for.
pub const ROOTS: [&str; 3] = ["healthz", "livez", "readyz"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Indicated {
    name: &'static str,
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Checked {
    name: &'static str,
    status: &'static str,
    r#type: &'static str,
}

/// How often each check came out how.
static CHECKED: LazyLock<Family<Checked, Counter>> = LazyLock::new(Family::default);

/// `/metrics/slis`: the checks as numbers.
pub fn indicators(
    all: impl IntoIterator<Item = (&'static str, Vec<(&'static str, bool)>)>,
    format: Format,
) -> String {
    let current: Family<Indicated, Gauge> = Family::default();
    for (root, checks) in all {
        for (name, passes) in checks {
            note(root, name, passes);
            current.get_or_create_owned(&Indicated { name, r#type: root }).set(i64::from(passes));
        }
    }
    let mut registry = Registry::default();
    registry.register("kubernetes_healthcheck", "Whether a check passes", current);
    registry.register("kubernetes_healthchecks", "Results of checks", CHECKED.clone());
    base::metrics::render_of(&registry, format)
}

fn note(root: &str, name: &'static str, passes: bool) {
    let status = if passes { "success" } else { "error" };
    let r#type = ROOTS.into_iter().find(|known| *known == root).unwrap_or_default();
    CHECKED.get_or_create(&Checked { name, status, r#type }).inc();
}

/// The answer to a health check, as k8s.io/apiserver words it.
pub fn answer(
    root: &str,
    one: Option<&str>,
    query: &str,
    checks: &[(&'static str, bool)],
) -> Answer {
    checks.iter().for_each(|(name, passes)| note(root, name, *passes));
    let failed = StatusCode::INTERNAL_SERVER_ERROR;
    if let Some(one) = one.filter(|one| !one.is_empty()) {
        return match checks.iter().find(|(name, _)| *name == one) {
            None => text(StatusCode::NOT_FOUND, PLAIN, "404 page not found\n"),
            Some((_, true)) => text(StatusCode::OK, PLAIN, "ok"),
            Some((_, false)) => {
                text(failed, PLAIN, format!("internal server error: {one}: failed\n"))
            }
        };
    }
    let pairs = || query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let excluded = |name: &str| pairs().any(|pair| pair == ("exclude", name));
    let mut lines = String::new();
    let mut good = true;
    for (name, passes) in checks {
        if excluded(name) {
            lines.push_str(&format!("[+]{name} excluded: ok\n"));
        } else if *passes {
            lines.push_str(&format!("[+]{name} ok\n"));
        } else {
            good = false;
            lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    match (good, pairs().any(|(name, _)| name == "verbose")) {
        (true, false) => text(StatusCode::OK, PLAIN, "ok"),
        (true, true) => text(StatusCode::OK, PLAIN, format!("{lines}{root} check passed\n")),
        (false, _) => text(failed, PLAIN, format!("{lines}{root} check failed\n")),
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn health_is_told_in_upstreams_words() {
        let said = async |root: &str, one: Option<&str>, query: &str, synced: bool| {
            let answer =
                super::answer(root, one, query, &[("leaderElection", true), ("synced", synced)]);
            let status = answer.status().as_u16();
            let body = http_body_util::BodyExt::collect(answer.into_body()).await;
            let bytes = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            (status, String::from_utf8(bytes.to_vec()).unwrap())
        };
        for (one, query, synced, want) in [
            (None, "", true, (200, "ok")),
            (
                None,
                "verbose",
                true,
                (200, "[+]leaderElection ok\n[+]synced ok\nreadyz check passed\n"),
            ),
            (
                None,
                "",
                false,
                (
                    500,
                    "[+]leaderElection ok\n[-]synced failed: reason withheld\nreadyz check \
                     failed\n",
                ),
            ),
            (None, "exclude=synced", false, (200, "ok")),
            (Some("synced"), "", true, (200, "ok")),
            (Some("synced"), "", false, (500, "internal server error: synced: failed\n")),
            (Some("nothing"), "", true, (404, "404 page not found\n")),
        ] {
            let (status, text) = said("readyz", one, query, synced).await;
            assert_eq!((status, text.as_str()), want, "{one:?} {query}");
        }
    }
}
