//! Decides what of a node's attachments is made, kept and taken away.
//!
//! Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::owner::name;
use crate::pod_collector::plan::OUT_OF_SERVICE;

/// A volume of a CSI driver on a node.
#[derive(Debug, Clone)]
pub struct Disk {
    pub driver: String,
    pub handle: String,
    /// Name of the PersistentVolume.
    pub volume: String,
    pub node: String,
    /// Those that use it.
    pub pods: Vec<Arc<Pod>>,
}

/// What a node says of an attached volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    pub name: String,
    pub device_path: String,
}

#[derive(Debug, PartialEq)]
pub enum Step {
    /// Make the attachment of this name.
    Attach(String),
    Detach(Arc<VolumeAttachment>),
    /// The node's status is to hold this.
    Tell(Vec<Attached>),
}

/// The disk behind a volume; None where no CSI driver holds it.
pub fn disk(volume: &PersistentVolume, node: &str) -> Option<Disk> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    Some(Disk {
        driver: csi.driver.clone(),
        handle: csi.volume_handle.clone(),
        volume: name(&volume.metadata).to_owned(),
        node: node.to_owned(),
        pods: Vec::new(),
    })
}

impl Disk {
    /// The attachment's name, as drivers' sidecars know it.
    pub fn attachment(&self) -> String {
        let Self { handle, driver, node, .. } = self;
        let digest = Sha256::digest(format!("{handle}{driver}{node}"));
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("csi-{hex}")
    }

    /// As kubelets name it in `volumesInUse`.
    pub fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }
}

/// The name that `held` has on the node, if its volume is known.
fn name_on_node(
    held: &VolumeAttachment,
    find: &dyn Fn(&str) -> Option<Arc<PersistentVolume>>,
) -> Option<String> {
    let volume = find(held.spec.source.persistent_volume_name.as_deref()?)?;
    Some(disk(&volume, &held.spec.node_name)?.unique_name())
}

/// Whether a volume may be attached to one node only.
pub fn is_exclusive(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref());
    let several = |mode: &String| mode == "ReadWriteMany" || mode == "ReadOnlyMany";
    modes.is_some_and(|modes| !modes.is_empty() && !modes.iter().any(several))
}

/// The attachments that nobody on the node wants and that it still says it uses.
pub fn lingering<'a>(
    wanted: &BTreeMap<String, Disk>,
    held: &'a [Arc<VolumeAttachment>],
    node: Option<&Node>,
    find: &dyn Fn(&str) -> Option<Arc<PersistentVolume>>,
) -> Vec<&'a str> {
    let status = node.and_then(|node| node.status.as_ref());
    let in_use = |name: &String| {
        status.is_some_and(|s| s.volumes_in_use.iter().flatten().any(|used| used == name))
    };
    let unwanted = held.iter().filter(|held| !wanted.contains_key(name(&held.metadata)));
    unwanted
        .filter(|held| name_on_node(held, find).is_some_and(|name| in_use(&name)))
        .map(|held| name(&held.metadata))
        .collect()
}

pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The names of those that the node was not told of before.
pub fn news<'a>(attached: &'a [Attached], node: Option<&Node>) -> Vec<&'a str> {
    let status = node.and_then(|node| node.status.as_ref());
    let told = status.and_then(|status| status.volumes_attached.as_deref()).unwrap_or_default();
    let names = attached.iter().map(|it| it.name.as_str());
    names.filter(|name| !told.iter().any(|it| it.name == *name)).collect()
}

/// `held`: the attachments of the node. `node` is None where it is gone; `overdue` are those
/// that it was long enough waited for to unmount. The node is told before a volume is
/// detached, so that nobody mounts it in between.
pub fn plan(
    wanted: &BTreeMap<String, Disk>,
    held: &[Arc<VolumeAttachment>],
    node: Option<&Node>,
    overdue: &[&str],
    find: &dyn Fn(&str) -> Option<Arc<PersistentVolume>>,
) -> Vec<Step> {
    let status = node.and_then(|node| node.status.as_ref());
    let in_use: Vec<&String> =
        status.iter().flat_map(|status| status.volumes_in_use.iter().flatten()).collect();
    let taints = node.and_then(|node| node.spec.as_ref()).and_then(|spec| spec.taints.as_ref());
    let lost = node.is_none()
        || taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == OUT_OF_SERVICE));
    let mut detach = Vec::new();
    let mut attached = Vec::new();
    for attachment in held {
        let on_node = name_on_node(attachment, find);
        let of = name(&attachment.metadata);
        let used = on_node.as_ref().is_some_and(|name| in_use.contains(&name));
        let ours = of.starts_with("csi-") && attachment.metadata.deletion_timestamp.is_none();
        let free = lost || !used || overdue.contains(&of);
        if ours && !wanted.contains_key(of) && free {
            detach.push(Step::Detach(attachment.clone()));
        } else if let Some(name) = on_node
            && attachment.status.as_ref().is_some_and(|status| status.attached)
        {
            attached.push(Attached { name, device_path: String::new() });
        }
    }
    attached.sort_by(|a, b| a.name.cmp(&b.name));
    attached.dedup();
    let mut told: Vec<&str> = status
        .iter()
        .flat_map(|status| status.volumes_attached.iter().flatten())
        .map(|attached| attached.name.as_str())
        .collect();
    told.sort_unstable();
    let mut out = Vec::new();
    if node.is_some() {
        let missing = wanted.keys().filter(|of| !held.iter().any(|h| name(&h.metadata) == *of));
        out.extend(missing.cloned().map(Step::Attach));
        if !attached.iter().map(|attached| attached.name.as_str()).eq(told) {
            out.push(Step::Tell(attached));
        }
    }
    out.extend(detach);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_was_not_told_before_is_news() {
        let node: Node = serde_json::from_value(json!({"metadata": {},
            "status": {"volumesAttached": [{"name": "a", "devicePath": ""}]}}))
        .unwrap();
        let attached =
            ["a", "b"].map(|name| Attached { name: name.into(), device_path: String::new() });
        assert_eq!(news(&attached, Some(&node)), ["b"]);
        assert_eq!(news(&attached[..1], Some(&node)), [""; 0]);
        assert_eq!(news(&attached, None), ["a", "b"]);
    }
}
