//! Decides what the provisioner does for a claim and with a volume.
//!
//! Pure.

use client::volumes::{self, SELECTED_NODE, STORAGE_PROVISIONER};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kinds::meta::quantity::Quantity;
use serde_json::json;

use super::disk::Disk;
use super::{DISK, FINALIZER, FOLDER, HOSTNAME, NODE, PROVISIONER, has_finalizer, policy};

/// What a claim needs.
#[derive(Debug, PartialEq)]
pub enum ForClaim {
    Nothing,
    Provision(Box<PersistentVolume>),
    /// It cannot be provisioned, as it is.
    Refuse(String),
    /// Its node is not fit: the scheduler is to choose again.
    Elsewhere(String),
}

/// What a volume needs.
#[derive(Debug, PartialEq)]
pub enum ForVolume {
    Nothing,
    /// Its claim is gone, and it is not to be kept.
    Delete,
    /// Its node is gone, and the data with it.
    Release,
    /// Its claim asks for more.
    Grow(String),
    /// Its claim asks for more than its disk could ever hold.
    TooLarge(String),
    /// The claim is to hear of its volume's size.
    Tell(String),
}

fn annotation<'a>(
    meta: &'a k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    key: &str,
) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether a claim waits for us.
pub fn is_asked(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, STORAGE_PROVISIONER) == Some(PROVISIONER)
        && volumes::volume_name(claim).is_none()
        && claim.metadata.deletion_timestamp.is_none()
}

pub fn is_ours(volume: &PersistentVolume) -> bool {
    annotation(&volume.metadata, volumes::PROVISIONED_BY) == Some(PROVISIONER)
}

/// `node` is the one that was selected, if it is there.
pub fn for_claim(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    node: Option<&Node>,
) -> ForClaim {
    let (true, Some(class)) = (is_asked(claim), class) else { return ForClaim::Nothing };
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.access_modes.iter().flatten().any(|m| m != "ReadWriteOnce" && m != "ReadWriteOncePod") {
        return ForClaim::Refuse(
            "NodePath only supports ReadWriteOnce and ReadWriteOncePod (1.22+) access modes".into(),
        );
    }
    if spec.selector.is_some() {
        return ForClaim::Refuse("claim.Spec.Selector is not supported".into());
    }
    if volumes::is_block(spec.volume_mode.as_deref()) {
        return ForClaim::Refuse("a directory cannot be a volume of mode Block".into());
    }
    let Some(selected) = annotation(&claim.metadata, SELECTED_NODE) else {
        return ForClaim::Refuse("configuration error, no node was specified".into());
    };
    let folder = node.and_then(|node| annotation(&node.metadata, FOLDER));
    let (Some(node), Some(folder)) = (node, folder) else {
        return ForClaim::Elsewhere(format!("node {selected} offers no local storage"));
    };
    ForClaim::Provision(Box::new(volume(claim, class, node, folder)))
}

fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    folder: &str,
) -> PersistentVolume {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (namespace, name) = (text(&claim.metadata.namespace), text(&claim.metadata.name));
    let volume = format!("pvc-{}", text(&claim.metadata.uid));
    let node_name = text(&node.metadata.name);
    let hostname = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME));
    let directory = format!("{}/{volume}_{namespace}_{name}", folder.trim_end_matches('/'));
    let made = json!({
        "metadata": {
            "name": volume,
            "labels": {NODE: node_name},
            "annotations": {
                volumes::PROVISIONED_BY: PROVISIONER, "local.path.provisioner/selected-node": node_name,
            },
            "finalizers": [FINALIZER, "kubernetes.io/pv-protection"],
        },
        "spec": {
            "accessModes": claim.spec.as_ref().and_then(|spec| spec.access_modes.clone()),
            "capacity": {"storage": volumes::requested(claim).to_string()},
            "volumeMode": "Filesystem",
            "storageClassName": class.metadata.name,
            "mountOptions": class.mount_options,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": namespace, "name": name, "uid": claim.metadata.uid,
                "resourceVersion": claim.metadata.resource_version},
            "local": {"path": directory},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": HOSTNAME, "operator": "In", "values": [hostname.unwrap_or(&node_name)]}]}]}},
        },
    });
    // Every field above is of that kind and type.
    client::api::typed(&made).unwrap_or_default()
}

/// `node` is the one that holds the volume, if the cluster knows it.
pub fn for_volume(
    volume: &PersistentVolume,
    claim: Option<&PersistentVolumeClaim>,
    node: Option<&Node>,
) -> ForVolume {
    if !is_ours(volume) {
        return ForVolume::Nothing;
    }
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    if volume.metadata.deletion_timestamp.is_some() {
        let unused = !has_finalizer(volume, "kubernetes.io/pv-protection");
        return match has_finalizer(volume, FINALIZER) && unused && node.is_none() {
            true => ForVolume::Release,
            false => ForVolume::Nothing,
        };
    }
    if phase == Some("Released") && policy(volume) == "Delete" {
        return ForVolume::Delete;
    }
    let Some(claim) = claim.filter(|claim| volumes::is_bound_to(volume, claim)) else {
        return ForVolume::Nothing;
    };
    let (asked, has) = (volumes::requested(claim), volumes::capacity(volume));
    if phase == Some("Bound") && asked > has {
        let disk = node.and_then(|node| annotation(&node.metadata, DISK)?.parse::<Disk>().ok());
        return match disk.filter(|disk| asked.value().unsigned_abs() > disk.total) {
            Some(disk) => ForVolume::TooLarge(format!(
                "{asked} are more than the {} bytes of the disk that the volume lies on",
                disk.total
            )),
            None => ForVolume::Grow(asked.to_string()),
        };
    }
    let told: Option<Quantity> = volumes::given(claim);
    match told.is_some_and(|told| told < has) {
        true => ForVolume::Tell(has.to_string()),
        false => ForVolume::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn read<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn claim(spec: Value, selected: Option<&str>) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"namespace": "n", "name": "c", "uid": "u", "annotations":
            {STORAGE_PROVISIONER: PROVISIONER}}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Bound",
            "capacity": {"storage": "1Gi"}}});
        for (key, value) in spec.as_object().unwrap() {
            claim["spec"][key] = value.clone();
        }
        if let Some(node) = selected {
            claim["metadata"]["annotations"][SELECTED_NODE] = node.into();
        }
        read(claim)
    }

    #[test]
    fn a_claim_gets_a_directory_on_its_node() {
        let class: StorageClass = read(json!({"metadata": {"name": "local-path"},
            "provisioner": PROVISIONER, "reclaimPolicy": "Delete"}));
        let node: Node = read(json!({"metadata": {"name": "m", "labels": {HOSTNAME: "host"},
            "annotations": {FOLDER: "/data/storage"}}}));
        let good = claim(json!({}), Some("m"));
        let ForClaim::Provision(made) = for_claim(&good, Some(&class), Some(&node)) else {
            panic!("a volume")
        };
        let made = serde_json::to_value(&made).unwrap();
        assert_eq!(made["spec"]["local"]["path"], "/data/storage/pvc-u_n_c");
        assert_eq!(made["spec"]["capacity"]["storage"], "1Gi");
        let term = &made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0];
        assert_eq!(term["matchExpressions"][0]["values"], json!(["host"]));
        assert_eq!(made["spec"]["claimRef"]["uid"], "u");
        let bare: Node = read(json!({"metadata": {"name": "m"}}));
        for (claim, class, node, want) in [
            (&good, None, Some(&node), ForClaim::Nothing),
            (
                &good,
                Some(&class),
                Some(&bare),
                ForClaim::Elsewhere("node m offers no local storage".into()),
            ),
            (
                &claim(json!({"volumeName": "v"}), Some("m")),
                Some(&class),
                Some(&node),
                ForClaim::Nothing,
            ),
            (
                &claim(json!({}), None),
                Some(&class),
                None,
                ForClaim::Refuse("configuration error, no node was specified".into()),
            ),
            (
                &claim(json!({"accessModes": ["ReadWriteMany"]}), Some("m")),
                Some(&class),
                Some(&node),
                ForClaim::Refuse(
                    "NodePath only supports ReadWriteOnce and ReadWriteOncePod (1.22+) access modes"
                        .into(),
                ),
            ),
        ] {
            assert_eq!(for_claim(claim, class, node), want);
        }
    }

    #[test]
    fn a_volume_goes_with_its_claim_and_grows_with_it() {
        let volume = |phase: &str, policy: &str, going: bool| -> PersistentVolume {
            let at = going.then_some("2026-01-01T00:00:00Z");
            read(
                json!({"metadata": {"name": "v", "deletionTimestamp": at, "finalizers": [FINALIZER],
                "annotations": {volumes::PROVISIONED_BY: PROVISIONER}},
                "spec": {"persistentVolumeReclaimPolicy": policy, "capacity": {"storage": "1Gi"},
                    "claimRef": {"namespace": "n", "name": "c", "uid": "u"}},
                "status": {"phase": phase}}),
            )
        };
        let more = claim(json!({"resources": {"requests": {"storage": "2Gi"}}}), None);
        let mut large = volume("Bound", "Delete", false);
        large.spec.as_mut().unwrap().capacity = read(json!({"storage": "2Gi"}));
        let node = |disk: &str| -> Node {
            read(json!({"metadata": {"name": "m", "annotations": {DISK: disk}}}))
        };
        let (wide, small) = (node("9999999999/0"), node("1073741824/0"));
        let too_large =
            "2Gi are more than the 1073741824 bytes of the disk that the volume lies on";
        let grown = || ForVolume::Grow("2Gi".into());
        for (volume, claim, node, want) in [
            (volume("Released", "Delete", false), None, Some(&wide), ForVolume::Delete),
            (volume("Released", "Retain", false), None, Some(&wide), ForVolume::Nothing),
            (volume("Released", "Delete", true), None, Some(&wide), ForVolume::Nothing),
            (volume("Released", "Delete", true), None, None, ForVolume::Release),
            (volume("Bound", "Delete", false), Some(&more), Some(&wide), grown()),
            (volume("Bound", "Delete", false), Some(&more), None, grown()),
            (
                volume("Bound", "Delete", false),
                Some(&more),
                Some(&small),
                ForVolume::TooLarge(too_large.into()),
            ),
            (large, Some(&more), Some(&wide), ForVolume::Tell("2Gi".into())),
        ] {
            assert_eq!(for_volume(&volume, claim, node), want);
        }
    }
}
