//! What admission policies decided, and how long their expressions took.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use base::metrics::{HistogramFamily, histograms, register};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

const SECONDS: [f64; 5] = [0.000_000_5, 0.001, 0.01, 0.1, 1.0];
/// Policies under bindings that are told apart; those beyond are counted as one without names.
const NAMES_MAX: usize = 1_024;

/// How an evaluation went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    None,
    Compile,
    Invalid,
    OutOfBudget,
}

impl Trouble {
    fn word(self) -> &'static str {
        match self {
            Self::None => "no_error",
            Self::Compile => "compile_error",
            Self::Invalid => "invalid_error",
            Self::OutOfBudget => "out_of_budget",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Validated {
    policy: String,
    policy_binding: String,
    error_type: &'static str,
    enforcement_action: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Mutated {
    policy: String,
    policy_binding: String,
    error_type: &'static str,
}

struct Families {
    validated: Family<Validated, Counter>,
    validated_seconds: HistogramFamily<Validated>,
    mutated: Family<Mutated, Counter>,
    mutated_seconds: HistogramFamily<Mutated>,
}

static FAMILIES: LazyLock<Families> = LazyLock::new(|| Families {
    validated: register(
        "apiserver_validating_admission_policy_check",
        "Checks of validating policies by what was done about them",
        Family::default(),
    ),
    validated_seconds: register(
        "apiserver_validating_admission_policy_check_duration_seconds",
        "How long expressions of validating policies take",
        histograms(&SECONDS),
    ),
    mutated: register(
        "apiserver_mutating_admission_policy_check",
        "Evaluations of mutating policies",
        Family::default(),
    ),
    mutated_seconds: register(
        "apiserver_mutating_admission_policy_check_duration_seconds",
        "How long mutating policies take",
        histograms(&SECONDS),
    ),
});

/// The names that stand in labels.
fn names(policy: &str, binding: &str) -> (String, String) {
    static KNOWN: LazyLock<Mutex<HashSet<(String, String)>>> = LazyLock::new(Mutex::default);
    let names = (policy.to_owned(), binding.to_owned());
    let mut known = KNOWN.lock();
    if known.contains(&names) {
        return names;
    }
    if known.len() >= NAMES_MAX {
        return (String::new(), String::new());
    }
    known.insert(names.clone());
    names
}

/// One validation under a binding; `action` is `allow`, `deny`, `audit` or `warn`.
pub fn validated(
    (policy, binding): (&str, &str),
    action: &'static str,
    trouble: Trouble,
    took: Duration,
) {
    let (policy, policy_binding) = names(policy, binding);
    let (error_type, enforcement_action) = (trouble.word(), action);
    let labels = Validated { policy, policy_binding, error_type, enforcement_action };
    FAMILIES.validated.get_or_create(&labels).inc();
    FAMILIES.validated_seconds.get_or_create(&labels).observe(took.as_secs_f64());
}

/// One evaluation of a mutating policy under a binding.
pub fn mutated((policy, binding): (&str, &str), trouble: Trouble, took: Duration) {
    let (policy, policy_binding) = names(policy, binding);
    let labels = Mutated { policy, policy_binding, error_type: trouble.word() };
    FAMILIES.mutated.get_or_create(&labels).inc();
    FAMILIES.mutated_seconds.get_or_create(&labels).observe(took.as_secs_f64());
}
