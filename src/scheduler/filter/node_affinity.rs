//! `nodeSelector` and required node affinity.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use kinds::meta::selector::{Operator, Requirement};

use super::{Reject, Rule};
use crate::facts::Facts;
use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::snapshot::NodeInfo;

/// Any term suffices (core/v1, NodeSelector).
pub fn selects(selector: &NodeSelector, node: &NodeInfo) -> bool {
    selector.node_selector_terms.iter().any(|term| term_selects(term, node))
}

/// A term without any requirement selects nothing.
pub fn term_selects(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|e| holds(e, node.label(&e.key)))
        && fields.iter().all(|f| f.key == "metadata.name" && holds(f, Some(&node.name)))
}

fn holds(expression: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let operator = match expression.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return false,
    };
    let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
    Requirement { key: String::new(), operator, values }.holds(value)
}

pub fn matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    let Some(spec) = pod.spec() else { return true };
    let mut labels = spec.node_selector.iter().flatten();
    if !labels.all(|(key, value)| node.label(key) == Some(value)) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|selector| selects(selector, node))
}

/// Whether the profile's own affinity, which all pods have, lets pods onto the node.
fn profile_admits(profile: &Profile, node: &NodeInfo) -> bool {
    let added = profile.added_affinity.as_ref();
    let required =
        added.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|selector| selects(selector, node))
}

pub fn admits(pod: &PodInfo, profile: &Profile, node: &NodeInfo) -> bool {
    profile_admits(profile, node) && matches(pod, node)
}

pub fn check(pod: &PodInfo, facts: &Facts, node: &NodeInfo) -> Result<(), Reject> {
    if !profile_admits(&facts.profile, node) {
        let reason = "node(s) didn't match scheduler-enforced node affinity";
        return Err(Reject::for_good(Rule::NodeAffinity, reason));
    }
    if matches(pod, node) {
        return Ok(());
    }
    Err(Reject::for_good(Rule::NodeAffinity, "node(s) didn't match Pod's node affinity/selector"))
}
