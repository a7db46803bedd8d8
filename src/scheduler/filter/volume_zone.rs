//! Volumes that say in labels in which zone or region they are: the node must be there too.
//!
//! A node without any such label is taken to be everywhere, as in a cluster of one zone.

use std::collections::BTreeSet;

use super::{Reject, Rule};
use crate::facts::{Caches, Facts};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// The labels, each with the one that has taken its place.
const LABELS: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];

/// Several zones of one volume stand in one label.
const SEPARATOR: &str = "__";

/// What a volume asks of a label.
#[derive(Debug, Clone)]
pub struct Zone {
    key: &'static str,
    newer: &'static str,
    values: BTreeSet<String>,
}

/// What the pod's bound volumes ask.
pub fn zones(pod: &PodInfo, caches: &Caches) -> Vec<Zone> {
    let mut out = Vec::new();
    for claim in &pod.claims {
        let Some(claim) = caches.claims.get(&pod.namespace, claim) else { continue };
        let volume = client::volumes::volume_name(&claim).and_then(|it| caches.volumes.get("", it));
        let Some(labels) = volume.as_ref().and_then(|it| it.metadata.labels.as_ref()) else {
            continue;
        };
        for (key, newer) in LABELS {
            if let Some(value) = labels.get(key) {
                let values = value.split(SEPARATOR).map(|it| it.trim().to_owned()).collect();
                out.push(Zone { key, newer, values });
            }
        }
    }
    out
}

pub fn check(facts: &Facts, node: &NodeInfo) -> Result<(), Reject> {
    if facts.zones.is_empty() || LABELS.iter().all(|(key, _)| node.label(key).is_none()) {
        return Ok(());
    }
    let suits = |zone: &Zone| {
        let value = node.label(zone.key).or_else(|| node.label(zone.newer));
        value.is_some_and(|value| zone.values.contains(value))
    };
    match facts.zones.iter().all(suits) {
        true => Ok(()),
        false => Err(Reject::for_good(Rule::VolumeZone, "node(s) had no available volume zone")),
    }
}
