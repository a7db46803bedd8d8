//! Attachable volumes: a node takes no more of a driver's than its CSINode says.
//!
//! Volumes that are attached already, or are used by pods of the node, count once. Inline CSI
//! volumes are never attached and do not count.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::{Reject, Rule};
use crate::facts::{Caches, Facts};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// A driver, and its name of a volume.
type Volume = (String, String);

/// Volumes that a pod brings, and where to look up those that others have.
#[derive(Clone)]
pub struct Wanted {
    new: Vec<Volume>,
    caches: Caches,
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wanted").field("new", &self.new).finish_non_exhaustive()
    }
}

/// None where the pod has no volume that is attached.
pub fn wanted(pod: &PodInfo, caches: &Caches) -> Option<Wanted> {
    let new = volumes_of(pod, caches);
    (!new.is_empty()).then(|| Wanted { new, caches: caches.clone() })
}

fn volumes_of(pod: &PodInfo, caches: &Caches) -> Vec<Volume> {
    let mut out: Vec<Volume> =
        pod.claims.iter().filter_map(|claim| volume_of(&pod.namespace, claim, caches)).collect();
    out.sort();
    out.dedup();
    out
}

/// A claim without a volume counts for the driver that will provision one.
fn volume_of(namespace: &str, claim: &str, caches: &Caches) -> Option<Volume> {
    let held = caches.claims.get(namespace, claim)?;
    match client::volumes::volume_name(&held) {
        Some(volume) => {
            let volume = caches.volumes.get("", volume)?;
            let csi = volume.spec.as_ref()?.csi.as_ref()?;
            Some((csi.driver.clone(), csi.volume_handle.clone()))
        }
        None => {
            let class = caches.classes.get("", client::volumes::class_of_claim(&held)?)?;
            // No driver's name of a volume has this form.
            Some((class.provisioner.clone(), format!("\0{namespace}/{claim}")))
        }
    }
}

pub fn check(facts: &Facts, node: &NodeInfo) -> Result<(), Reject> {
    let Some(Wanted { new, caches }) = &facts.attachable else { return Ok(()) };
    let Some(csi_node) = caches.csi_nodes.get("", &node.name) else { return Ok(()) };
    let limits: BTreeMap<&str, i32> = csi_node
        .spec
        .drivers
        .iter()
        .filter_map(|it| Some((it.name.as_str(), it.allocatable.as_ref()?.count?)))
        .collect();
    if !new.iter().any(|(driver, _)| limits.contains_key(driver.as_str())) {
        return Ok(());
    }
    let mut used: Vec<Volume> = Vec::new();
    for pod in node.pods.values().filter(|pod| !pod.claims.is_empty()) {
        used.extend(volumes_of(pod, caches));
    }
    used.extend(caches.attached_to(&node.name).iter().filter_map(|attachment| {
        let volume = attachment.spec.source.persistent_volume_name.as_deref()?;
        let volume = caches.volumes.get("", volume)?;
        let csi = volume.spec.as_ref()?.csi.as_ref()?;
        Some((csi.driver.clone(), csi.volume_handle.clone()))
    }));
    used.extend(new.iter().cloned());
    used.sort();
    used.dedup();
    let mut counts: HashMap<&str, i32> = HashMap::new();
    for (driver, _) in &used {
        *counts.entry(driver).or_default() += 1;
    }
    // Where all of the pod's volumes are there already, nothing is added.
    let others = |volume: &&Volume| !is_there(volume, node, caches);
    for (driver, _) in new.iter().filter(others) {
        let limit = limits.get(driver.as_str());
        if limit.is_some_and(|limit| counts.get(driver.as_str()).copied().unwrap_or(0) > *limit) {
            let reason = "node(s) exceed max volume count";
            return Err(Reject::for_now(Rule::NodeVolumeLimits, reason));
        }
    }
    Ok(())
}

fn is_there(volume: &Volume, node: &NodeInfo, caches: &Caches) -> bool {
    let with_claims = node.pods.values().filter(|pod| !pod.claims.is_empty());
    let of_attached = |name: &str| {
        let held = caches.volumes.get("", name)?;
        let csi = held.spec.as_ref()?.csi.as_ref()?;
        Some(csi.driver == volume.0 && csi.volume_handle == volume.1)
    };
    with_claims.into_iter().any(|pod| volumes_of(pod, caches).contains(volume))
        || caches.attached_to(&node.name).iter().any(|attachment| {
            let name = attachment.spec.source.persistent_volume_name.as_deref();
            name.and_then(of_attached) == Some(true)
        })
}
