//! Volumes: the node must be able to reach what the pod's claims are bound to.

use super::{Reject, Rule};
use crate::facts::{Facts, VolumeNeed};
use crate::filter::node_affinity::{selects, term_selects};
use crate::snapshot::NodeInfo;

pub fn check(facts: &Facts, node: &NodeInfo) -> Result<(), Reject> {
    for need in &facts.volumes {
        match need {
            VolumeNeed::Reach(selector) => {
                if !selects(selector, node) {
                    return Err(Reject::for_good(
                        Rule::Volumes,
                        "node(s) didn't match PersistentVolume's node affinity",
                    ));
                }
            }
            VolumeNeed::Lost => {
                return Err(Reject::for_good(
                    Rule::Volumes,
                    "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
                ));
            }
            VolumeNeed::Provision { allowed, .. } => {
                if !allowed.is_empty() && !allowed.iter().any(|term| term_selects(term, node)) {
                    return Err(Reject::for_good(
                        Rule::Volumes,
                        "node(s) didn't find available persistent volumes to bind",
                    ));
                }
            }
        }
    }
    Ok(())
}
