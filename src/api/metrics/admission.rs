//! What admission costs, plugin by plugin and webhook by webhook.

use std::sync::LazyLock;
use std::time::Instant;

use base::metrics::{HistogramFamily, histograms, register};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::admission::Operation;

const PLUGIN_SECONDS: [f64; 5] = [0.005, 0.025, 0.1, 0.5, 1.0];
const WEBHOOK_SECONDS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Plugin {
    name: &'static str,
    r#type: &'static str,
    operation: &'static str,
    rejected: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    r#type: &'static str,
    operation: &'static str,
    rejected: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Webhook {
    name: String,
    r#type: &'static str,
    operation: &'static str,
    rejected: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    name: String,
    r#type: &'static str,
    operation: &'static str,
    code: u16,
    rejected: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejection {
    name: String,
    r#type: &'static str,
    operation: &'static str,
    error_type: &'static str,
    rejection_code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailOpen {
    name: String,
    r#type: &'static str,
}

struct Families {
    plugins: HistogramFamily<Plugin>,
    steps: HistogramFamily<Step>,
    webhooks: HistogramFamily<Webhook>,
    answers: Family<Answered, Counter>,
    rejections: Family<Rejection, Counter>,
    open: Family<FailOpen, Counter>,
}

static FAMILIES: LazyLock<Families> = LazyLock::new(|| Families {
    plugins: register(
        "apiserver_admission_controller_admission_duration_seconds",
        "How long each admission plugin takes",
        histograms(&PLUGIN_SECONDS),
    ),
    steps: register(
        "apiserver_admission_step_admission_duration_seconds",
        "How long each step of admission takes",
        histograms(&PLUGIN_SECONDS),
    ),
    webhooks: register(
        "apiserver_admission_webhook_admission_duration_seconds",
        "How long each admission webhook takes",
        histograms(&WEBHOOK_SECONDS),
    ),
    answers: register(
        "apiserver_admission_webhook_request",
        "Requests to admission webhooks by the code of the answer",
        Family::default(),
    ),
    rejections: register(
        "apiserver_admission_webhook_rejection_count",
        "Requests that admission webhooks rejected",
        Family::default(),
    ),
    open: register(
        "apiserver_admission_webhook_fail_open_count",
        "Failed calls of admission webhooks that were let pass",
        Family::default(),
    ),
});

fn word(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// Times the plugins of one step, one after the other.
pub struct Watch {
    kind: &'static str,
    operation: &'static str,
    begun: Instant,
    last: Instant,
}

impl Watch {
    /// `kind` is `admit` or `validate`.
    pub fn start(kind: &'static str, operation: Operation) -> Self {
        let now = Instant::now();
        Self { kind, operation: word(operation), begun: now, last: now }
    }

    pub fn plugin(&mut self, name: &'static str, rejected: bool) {
        let now = Instant::now();
        let labels = Plugin { name, r#type: self.kind, operation: self.operation, rejected };
        let took = now.duration_since(self.last).as_secs_f64();
        FAMILIES.plugins.get_or_create(&labels).observe(took);
        self.last = now;
    }

    pub fn step(&self, rejected: bool) {
        let labels = Step { r#type: self.kind, operation: self.operation, rejected };
        FAMILIES.steps.get_or_create(&labels).observe(self.begun.elapsed().as_secs_f64());
    }
}

/// Of one call of a webhook. `kind` is `admit` or `validating`.
pub struct Call<'a> {
    pub name: &'a str,
    pub kind: &'static str,
    pub operation: Operation,
    pub begun: Instant,
}

impl Call<'_> {
    fn took(&self, rejected: bool, code: u16) {
        let (name, r#type, operation) = (self.name.to_string(), self.kind, word(self.operation));
        let labels = Webhook { name: name.clone(), r#type, operation, rejected };
        FAMILIES.webhooks.get_or_create(&labels).observe(self.begun.elapsed().as_secs_f64());
        let labels = Answered { name, r#type, operation, code, rejected };
        FAMILIES.answers.get_or_create(&labels).inc();
    }

    pub fn allowed(&self) {
        self.took(false, 200);
    }

    fn rejected(&self, error_type: &'static str, rejection_code: u16) {
        self.took(true, rejection_code);
        let (name, r#type, operation) = (self.name.to_string(), self.kind, word(self.operation));
        let labels = Rejection { name, r#type, operation, error_type, rejection_code };
        FAMILIES.rejections.get_or_create(&labels).inc();
    }

    pub fn refused(&self, code: u16) {
        self.rejected("no_error", code);
    }

    /// No answer came, or none that is one; `open` is how it is let pass.
    pub fn failed(&self, open: bool) {
        self.rejected("calling_webhook_error", if open { 0 } else { 500 });
        if open {
            let labels = FailOpen { name: self.name.to_string(), r#type: self.kind };
            FAMILIES.open.get_or_create(&labels).inc();
        }
    }
}
