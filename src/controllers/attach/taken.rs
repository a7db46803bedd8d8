//! Volumes of one node at a time: a second node waits until the first has let go, and its
//! pods hear why.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use client::recorder::reference;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::VolumeAttachment;

use super::plan::{self, Disk};
use super::{Attacher, BY_NODE, BY_VOLUME};
use crate::owner::{name, namespace};
use crate::pod;
use crate::volume::{PODS_BY_CLAIM, claims_of};

#[derive(Default)]
pub struct Taken {
    /// Nodes by volume, for attachments on their way into the cache; by attachment, so that
    /// they can be forgotten.
    making: HashMap<String, (String, String)>,
    /// Attachments whose pods were told that they have to wait, and their nodes.
    told: HashMap<String, String>,
}

impl Taken {
    /// An attachment is in the cache, or will never be.
    pub fn seen(&mut self, attachment: &str) {
        self.making.remove(attachment);
        self.told.remove(attachment);
    }

    /// Forgets whom nobody on a node waits for any more.
    pub fn keep(&mut self, node: &str, wanted: &BTreeMap<String, Disk>) {
        self.told.retain(|attachment, of| of != node || wanted.contains_key(attachment));
    }
}

impl Attacher {
    /// Whether a disk may be attached now; if not, its pods are told.
    pub(super) fn take(&self, disk: &Disk) -> bool {
        let exclusive =
            self.volumes.get("", &disk.volume).is_some_and(|it| plan::is_exclusive(&it));
        if !exclusive {
            return true;
        }
        let held = self.attachments.indexed(BY_VOLUME, &disk.volume);
        let mut others: BTreeSet<String> =
            held.iter().map(|held| held.spec.node_name.clone()).collect();
        let mut taken = self.taken.lock();
        let making = taken.making.values().filter(|(volume, _)| *volume == disk.volume);
        others.extend(making.map(|(_, node)| node.clone()));
        others.remove(&disk.node);
        if others.is_empty() {
            taken.making.insert(disk.attachment(), (disk.volume.clone(), disk.node.clone()));
            return true;
        }
        if taken.told.insert(disk.attachment(), disk.node.clone()).is_none() {
            let users = others.iter().flat_map(|node| self.users(disk, node)).collect::<Vec<_>>();
            for pod in &disk.pods {
                let text =
                    format!("Multi-Attach error for volume {:?} {}", disk.volume, why(pod, &users));
                self.context.recorder.warning(&reference(&**pod), "FailedAttachVolume", text);
            }
        }
        false
    }

    /// The pods of a node that use the disk's volume.
    fn users(&self, disk: &Disk, node: &str) -> Vec<Arc<Pod>> {
        let Some(claim) = self.claim_of(&disk.volume) else { return Vec::new() };
        let mut pods = self.pods.indexed(BY_NODE, node);
        pods.retain(|pod| !pod::is_finished(pod) && claims_of(pod).contains(&claim));
        pods
    }

    /// Namespace and name of the claim that a volume is bound to.
    fn claim_of(&self, volume: &str) -> Option<String> {
        let volume = self.volumes.get("", volume)?;
        let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
        Some(format!("{}/{}", claim.namespace.as_deref()?, claim.name.as_deref()?))
    }

    /// Nodes with pods that may have waited for an attachment to go.
    pub(super) fn nodes_that_wait_for(&self, gone: &VolumeAttachment) -> BTreeSet<String> {
        let volume = gone.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
        let Some(claim) = self.claim_of(volume) else { return BTreeSet::new() };
        let pods = self.pods.indexed(PODS_BY_CLAIM, &claim);
        pods.iter().map(|pod| pod::node(pod).to_owned()).collect()
    }
}

/// In upstream's words; pods of other namespaces are counted, not named.
fn why(waiting: &Pod, users: &[Arc<Pod>]) -> String {
    let is_near = |pod: &&Arc<Pod>| namespace(&pod.metadata) == namespace(&waiting.metadata);
    let near: Vec<&str> = users.iter().filter(is_near).map(|pod| name(&pod.metadata)).collect();
    let far = users.len() - near.len();
    match (near.as_slice(), far) {
        ([], 0) => "Volume is already exclusively attached to one node and can't be attached to \
                    another"
            .into(),
        ([], far) => format!("Volume is already used by {far} pod(s) in different namespaces"),
        (near, 0) => format!("Volume is already used by pod(s) {}", near.join(", ")),
        (near, far) => format!(
            "Volume is already used by pod(s) {} and {far} pod(s) in different namespaces",
            near.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_hear_who_has_their_volume() {
        let pod = |namespace: &str, name: &str| -> Arc<Pod> {
            let pod = json!({"metadata": {"namespace": namespace, "name": name}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let me = pod("a", "me");
        for (users, wanted) in [
            (vec![], "exclusively attached to one node"),
            (vec![pod("a", "x"), pod("a", "y")], "used by pod(s) x, y"),
            (vec![pod("b", "x")], "used by 1 pod(s) in different namespaces"),
            (vec![pod("a", "x"), pod("b", "y")], "pod(s) x and 1 pod(s) in different"),
        ] {
            let is = why(&me, &users);
            assert!(is.contains(wanted), "{is}");
        }
    }
}
