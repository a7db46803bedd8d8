//! Volumes: the node must be able to reach what the pod's claims are bound to, and there
//! must be something for those that are not.

use std::sync::Arc;

use client::volumes::{self as claims, Wanted};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{Reject, Rule};
use crate::facts::{Facts, Provisioned, Unbound, VolumeNeed};
use crate::filter::node_affinity::{selects, term_selects};
use crate::snapshot::NodeInfo;

const NO_VOLUMES: &str = "node(s) didn't find available persistent volumes to bind";
const NO_ROOM: &str = "node(s) did not have enough free storage";
const OUT_OF_REACH: &str = "node(s) didn't match PersistentVolume's node affinity";
const LOST: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

/// How a claim gets its volume on a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// This volume is there.
    Take { claim: Arc<PersistentVolumeClaim>, volume: Arc<PersistentVolume> },
    /// One is to be provisioned there.
    Provision { claim: Arc<PersistentVolumeClaim> },
}

impl Choice {
    pub fn claim(&self) -> &PersistentVolumeClaim {
        match self {
            Choice::Take { claim, .. } | Choice::Provision { claim } => claim,
        }
    }
}

pub fn check(facts: &Facts, node: &NodeInfo) -> Result<(), Reject> {
    if facts.volumes.is_empty() {
        return Ok(());
    }
    choose(facts, node).map(drop)
}

/// How the pod's claims get their volumes on `node`.
///
/// # Errors
/// Why they cannot: those that are bound, and those that are not, each for themselves.
pub fn choose(facts: &Facts, node: &NodeInfo) -> Result<Vec<Choice>, Reject> {
    let bound = facts.volumes.iter().find_map(|need| match need {
        VolumeNeed::Reach(selector) if !selects(selector, node) => Some(OUT_OF_REACH),
        VolumeNeed::Lost => Some(LOST),
        VolumeNeed::Reach(_) | VolumeNeed::Bind(_) => None,
    });
    let mut reasons: Vec<&str> = bound.into_iter().collect();
    let mut unbound: Vec<&Unbound> = facts
        .volumes
        .iter()
        .filter_map(|need| match need {
            VolumeNeed::Bind(claim) => Some(&**claim),
            VolumeNeed::Reach(_) | VolumeNeed::Lost => None,
        })
        .collect();
    // The small ones first, so that they leave the large volumes to the large.
    unbound.sort_by_key(|unbound| claims::requested(&unbound.claim));
    let mut out: Vec<Choice> = Vec::new();
    for unbound in unbound {
        match for_claim(unbound, node, &out) {
            Ok(choice) => out.push(choice),
            Err(reason) => {
                reasons.push(reason);
                break;
            }
        }
    }
    if reasons.is_empty() {
        return Ok(out);
    }
    let reasons = reasons.into_iter().map(str::to_owned).collect();
    Err(Reject { rule: Rule::VolumeBinding, reasons, resolvable: false })
}

fn for_claim(
    unbound: &Unbound,
    node: &NodeInfo,
    before: &[Choice],
) -> Result<Choice, &'static str> {
    let claim = unbound.claim.clone();
    // It is being provisioned already, for one node.
    if let Some(selected) = &unbound.selected {
        return match *selected == node.name {
            true => Ok(Choice::Provision { claim }),
            false => Err(NO_VOLUMES),
        };
    }
    let reaches = |volume: &PersistentVolume| {
        let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
        let required = affinity.and_then(|affinity| affinity.required.as_ref());
        required.is_none_or(|required| selects(required, node))
    };
    let taken = |volume: &PersistentVolume| {
        before.iter().any(|choice| match choice {
            Choice::Take { volume: other, .. } => other.metadata.name == volume.metadata.name,
            Choice::Provision { .. } => false,
        })
    };
    let wanted = Wanted { reaches: &reaches, only_bound: false, taken: &taken };
    if let Some(volume) = claims::find(&claim, &unbound.candidates, &wanted) {
        return Ok(Choice::Take { claim, volume: volume.clone() });
    }
    let Some(provisioned) = &unbound.provisioned else { return Err(NO_VOLUMES) };
    can_provision(provisioned, &claim, node)?;
    Ok(Choice::Provision { claim })
}

fn can_provision(
    provisioned: &Provisioned,
    claim: &PersistentVolumeClaim,
    node: &NodeInfo,
) -> Result<(), &'static str> {
    let Provisioned { allowed, room } = provisioned;
    if !allowed.is_empty() && !allowed.iter().any(|term| term_selects(term, node)) {
        return Err(NO_VOLUMES);
    }
    let Some(room) = room else { return Ok(()) };
    let asked = claims::requested(claim);
    let labels = node.node.metadata.labels.as_ref();
    match room.iter().any(|(nodes, size)| *size >= asked && nodes.matches_map(labels)) {
        true => Ok(()),
        false => Err(NO_ROOM),
    }
}
