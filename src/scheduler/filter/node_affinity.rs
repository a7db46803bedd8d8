//! `nodeSelector` and required node affinity.

use client::fit::Place;
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorTerm};

use super::{Reject, Rule};
use crate::facts::Facts;
use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::snapshot::NodeInfo;

fn place<'a>(node: &'a NodeInfo) -> Place<'a, impl Fn(&str) -> Option<&'a str>> {
    Place { name: &node.name, label: |key: &str| node.label(key) }
}

pub fn selects(selector: &NodeSelector, node: &NodeInfo) -> bool {
    place(node).is_selected(selector)
}

pub fn term_selects(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    place(node).is_of_term(term)
}

pub fn matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.spec().is_none_or(|spec| place(node).is_for(spec))
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
