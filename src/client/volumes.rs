//! Which volume suits a claim, out of the typed kinds: what the volume binder and the
//! scheduler must agree on.
//!
//! Pure. Whether a node reaches a volume is the caller's to say.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kinds::meta::quantity::Quantity;

/// The binder has finished with a claim.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The binder, not the user, made this side of a binding.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Who provisioned a volume.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// The node that the scheduler picked for a claim's first consumer.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Who is to provision a claim's volume.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
pub const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// The class of claims and volumes before there was a field.
pub const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// The provisioner of classes whose volumes nobody provisions.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

const IS_DEFAULT: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

fn annotation<'a>(
    meta: &'a k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    key: &str,
) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// None where the claim leaves the class to the cluster; empty where it wants none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> Option<&str> {
    let named = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&claim.metadata, BETA_CLASS).or(named)
}

pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let named = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&volume.metadata, BETA_CLASS).or(named).unwrap_or_default()
}

/// The volume that a claim names; None where it names none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    let name = claim.spec.as_ref()?.volume_name.as_deref()?;
    Some(name).filter(|name| !name.is_empty())
}

pub fn is_bind_completed(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// Whether a reference speaks of a claim; one without a uid was written by a user and
/// speaks of whoever has the name.
pub fn refers_to(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let uid = reference.uid.as_deref().filter(|uid| !uid.is_empty());
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && uid.is_none_or(|uid| claim.metadata.uid.as_deref() == Some(uid))
}

pub fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|reference| refers_to(reference, claim))
}

pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

pub fn is_default_class(class: &StorageClass) -> bool {
    IS_DEFAULT.iter().any(|key| annotation(&class.metadata, key) == Some("true"))
}

/// The newest default class, by name where two are of one second.
pub fn default_class(classes: &[Arc<StorageClass>]) -> Option<&Arc<StorageClass>> {
    classes.iter().filter(|class| is_default_class(class)).max_by(|a, b| {
        let created = |class: &StorageClass| {
            class.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
        };
        created(a).cmp(&created(b)).then_with(|| b.metadata.name.cmp(&a.metadata.name))
    })
}

fn quantity(text: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> Quantity {
    text.and_then(|text| text.0.parse().ok()).unwrap_or_default()
}

/// The storage that a claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    quantity(resources.and_then(|r| r.requests.as_ref()).and_then(|map| map.get("storage")))
}

/// The storage that a volume has.
pub fn capacity(volume: &PersistentVolume) -> Quantity {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    quantity(capacity.and_then(|map| map.get("storage")))
}

/// The storage that a claim was given, as its status says.
pub fn given(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    let capacity = claim.status.as_ref()?.capacity.as_ref()?;
    capacity.get("storage").map(|text| quantity(Some(text)))
}

/// Upstream's short name for who makes such volumes; None where nobody here does.
pub fn maker(spec: &PersistentVolumeSpec) -> Option<&'static str> {
    let kinds = [
        (spec.csi.is_some(), "csi"),
        (spec.host_path.is_some(), "host-path"),
        (spec.local.is_some(), "local-volume"),
        (spec.nfs.is_some(), "nfs"),
        (spec.iscsi.is_some(), "iscsi"),
        (spec.fc.is_some(), "fc"),
    ];
    kinds.into_iter().find(|(is_so, _)| *is_so).map(|(_, name)| name)
}

/// The same in full, with the driver where there is one: `kubernetes.io/csi:DRIVER`.
pub fn plugin(spec: &PersistentVolumeSpec) -> Option<String> {
    let name = maker(spec)?;
    Some(match &spec.csi {
        Some(csi) => format!("kubernetes.io/{name}:{}", csi.driver),
        None => format!("kubernetes.io/{name}"),
    })
}

pub fn is_block(mode: Option<&str>) -> bool {
    mode == Some("Block")
}

fn same_mode(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
    let of_claim = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
    is_block(of_volume) == is_block(of_claim)
}

fn modes(list: Option<&Vec<String>>) -> BTreeSet<&str> {
    list.into_iter().flatten().map(String::as_str).collect()
}

fn has_access_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = modes(volume.spec.as_ref().and_then(|spec| spec.access_modes.as_ref()));
    let wanted = modes(claim.spec.as_ref().and_then(|spec| spec.access_modes.as_ref()));
    wanted.is_subset(&offered)
}

/// An empty name and none are the same.
fn same_attributes_class(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    let of_claim = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    of_volume.unwrap_or_default() == of_claim.unwrap_or_default()
}

/// Why a volume that a claim names cannot be its volume, in upstream's words.
///
/// # Errors
/// The first thing that does not fit.
pub fn satisfies(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Result<(), &'static str> {
    if capacity(volume) < requested(claim) {
        return Err("requested PV is too small");
    }
    if class_of_volume(volume) != class_of_claim(claim).unwrap_or_default() {
        return Err("storageClassName does not match");
    }
    if !same_attributes_class(volume, claim) {
        return Err("volumeAttributesClassName does not match");
    }
    if !same_mode(volume, claim) {
        return Err("incompatible volumeMode");
    }
    if !has_access_modes(volume, claim) {
        return Err("incompatible accessMode");
    }
    Ok(())
}

/// What decides between volumes.
pub struct Wanted<'a> {
    /// Whether the node that the claim is to be used on reaches a volume; without a node
    /// every one does.
    pub reaches: &'a dyn Fn(&PersistentVolume) -> bool,
    /// Only volumes that are bound to the claim already count: the first consumer is not
    /// there yet.
    pub only_bound: bool,
    /// Volumes that others are about to take.
    pub taken: &'a dyn Fn(&PersistentVolume) -> bool,
}

/// The volume for a claim: the one that names it, otherwise the smallest available one
/// that suits, with as few access modes as will do.
pub fn find<'v>(
    claim: &PersistentVolumeClaim,
    volumes: &'v [Arc<PersistentVolume>],
    wanted: &Wanted<'_>,
) -> Option<&'v Arc<PersistentVolume>> {
    let asked = requested(claim);
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selector = selector.map(|typed| crate::labels::selector(Some(typed)));
    let class = class_of_claim(claim).unwrap_or_default();
    let mut best: Option<(usize, Quantity, &Arc<PersistentVolume>)> = None;
    for volume in volumes {
        let bound = is_bound_to(volume, claim);
        if (claim_ref(volume).is_some() && !bound)
            || (wanted.taken)(volume)
            || capacity(volume) < asked
            || !same_mode(volume, claim)
            || !same_attributes_class(volume, claim)
            || volume.metadata.deletion_timestamp.is_some()
        {
            continue;
        }
        if bound {
            return (wanted.reaches)(volume).then_some(volume);
        }
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        if wanted.only_bound
            || phase != Some("Available")
            || selector.as_ref().is_some_and(|s| !s.matches_map(volume.metadata.labels.as_ref()))
            || class_of_volume(volume) != class
            || !has_access_modes(volume, claim)
            || !(wanted.reaches)(volume)
        {
            continue;
        }
        let offered = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_ref());
        let rank = (modes(offered).len(), capacity(volume));
        if best.is_none_or(|(modes, size, _)| rank < (modes, size)) {
            best = Some((rank.0, rank.1, volume));
        }
    }
    best.map(|(_, _, volume)| volume)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn merged(mut base: Value, patch: Value) -> Value {
        for (pointer, value) in patch.as_object().unwrap() {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            base.pointer_mut(parent).unwrap()[key] = value.clone();
        }
        base
    }

    fn claim(patch: Value) -> PersistentVolumeClaim {
        let base = json!({"metadata": {"namespace": "n", "name": "c", "uid": "u"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "s",
            "resources": {"requests": {"storage": "5Gi"}}}});
        serde_json::from_value(merged(base, patch)).unwrap()
    }

    fn volume(name: &str, size: &str, patch: Value) -> Arc<PersistentVolume> {
        let base = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"], "storageClassName": "s"},
            "status": {"phase": "Available"}});
        Arc::new(serde_json::from_value(merged(base, patch)).unwrap())
    }

    fn check(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], want: Option<&str>) {
        let wanted = Wanted { reaches: &|_| true, only_bound: false, taken: &|_| false };
        let found = find(claim, volumes, &wanted);
        assert_eq!(found.and_then(|v| v.metadata.name.as_deref()), want);
    }

    #[test]
    fn the_smallest_that_suits_is_taken() {
        let plain = claim(json!({}));
        check(
            &plain,
            &[
                volume("small", "1Gi", json!({})),
                volume("large", "10Gi", json!({})),
                volume("right", "5Gi", json!({"/status/phase": "Available"})),
            ],
            Some("right"),
        );
        for (why, patch) in [
            ("released", json!({"/status/phase": "Released"})),
            ("of another class", json!({"/spec/storageClassName": "other"})),
            ("without the mode", json!({"/spec/accessModes": ["ReadOnlyMany"]})),
            ("a device", json!({"/spec/volumeMode": "Block"})),
            ("another's", json!({"/spec/claimRef": {"namespace": "n", "name": "x"}})),
            (
                "of an earlier claim",
                json!({"/spec/claimRef":
                {"namespace": "n", "name": "c", "uid": "old"}}),
            ),
            ("going", json!({"/metadata/deletionTimestamp": "2026-01-01T00:00:00Z"})),
            ("with attributes", json!({"/spec/volumeAttributesClassName": "gold"})),
        ] {
            let volumes = [volume(why, "5Gi", patch)];
            check(&plain, &volumes, None);
        }
    }

    #[test]
    fn one_that_names_the_claim_goes_before_all_others() {
        let own = json!({"/spec/claimRef": {"namespace": "n", "name": "c"},
            "/spec/storageClassName": "other"});
        let volumes = [volume("free", "5Gi", json!({})), volume("own", "9Gi", own)];
        check(&claim(json!({})), &volumes, Some("own"));
    }

    #[test]
    fn selectors_and_fewer_access_modes_decide() {
        let both = json!({"/spec/accessModes": ["ReadWriteOnce", "ReadOnlyMany"]});
        let labelled = json!({"/metadata/labels": {"disk": "fast"}});
        let volumes = [
            volume("both", "5Gi", both),
            volume("one", "9Gi", json!({})),
            volume("fast", "20Gi", labelled),
        ];
        check(&claim(json!({})), &volumes, Some("one"));
        let picky = claim(json!({"/spec/selector": {"matchLabels": {"disk": "fast"}}}));
        check(&picky, &volumes, Some("fast"));
    }

    #[test]
    fn a_volume_that_is_named_must_fit() {
        for (size, patch, want) in [
            ("5Gi", json!({}), Ok(())),
            ("1Gi", json!({}), Err("requested PV is too small")),
            ("5Gi", json!({"/spec/storageClassName": ""}), Err("storageClassName does not match")),
            ("5Gi", json!({"/spec/volumeMode": "Block"}), Err("incompatible volumeMode")),
            ("5Gi", json!({"/spec/accessModes": []}), Err("incompatible accessMode")),
        ] {
            assert_eq!(satisfies(&volume("v", size, patch), &claim(json!({}))), want);
        }
    }
}
