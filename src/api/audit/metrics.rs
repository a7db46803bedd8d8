//! What is counted of the audit log, under upstream's names.

use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::policy::Level;

type Labels = [(&'static str, &'static str); 1];

struct Metrics {
    events: Counter,
    errors: Family<Labels, Counter>,
    levels: Family<Labels, Counter>,
    rejected: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    events: base::metrics::register(
        "apiserver_audit_event",
        "Counter of audit events generated and sent to the audit backend",
        Counter::default(),
    ),
    errors: base::metrics::register(
        "apiserver_audit_error",
        "Counter of audit events that failed to be audited properly, by plugin",
        Family::default(),
    ),
    levels: base::metrics::register(
        "apiserver_audit_level",
        "Counter of policy levels for audit events, one a request",
        Family::default(),
    ),
    rejected: base::metrics::register(
        "apiserver_audit_requests_rejected",
        "Counter of requests rejected because the audit backend failed",
        Counter::default(),
    ),
});

pub fn event() {
    METRICS.events.inc();
}

/// Events that a backend did not take.
pub fn dropped(plugin: &'static str, count: u64) {
    METRICS.errors.get_or_create(&[("plugin", plugin)]).inc_by(count);
}

pub fn level(level: Level) {
    METRICS.levels.get_or_create(&[("level", level.name())]).inc();
}

pub fn rejected() {
    METRICS.rejected.inc();
}
