//! The volume claims of pods: their names, and who owns them, which decides when they
//! go. Pure.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::identity;
use crate::owner::{self, name, uid};

pub fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|s| s.volume_claim_templates.as_deref()).unwrap_or_default()
}

pub fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", name(&template.metadata), name(&set.metadata))
}

/// Whether claims go with the set, and whether they go when it is scaled down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    when_deleted: bool,
    when_scaled: bool,
}

fn policy(set: &StatefulSet) -> Policy {
    let spec = set.spec.as_ref();
    let policy = spec.and_then(|s| s.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |value: Option<&String>| value.is_some_and(|value| value == "Delete");
    Policy {
        when_deleted: deletes(policy.and_then(|p| p.when_deleted.as_ref())),
        when_scaled: deletes(policy.and_then(|p| p.when_scaled.as_ref())),
    }
}

/// A claim as it is made for a pod that stays.
pub fn new_claim(
    set: &StatefulSet,
    template: &PersistentVolumeClaim,
    ordinal: i32,
) -> PersistentVolumeClaim {
    let mut labels = template.metadata.labels.clone().unwrap_or_default();
    let selector = set.spec.as_ref().and_then(|s| s.selector.match_labels.clone());
    labels.extend(selector.unwrap_or_default());
    let owners = policy(set).when_deleted.then(|| vec![owner::reference_to(set)]);
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(claim_name(set, template, ordinal)),
            namespace: set.metadata.namespace.clone(),
            labels: (!labels.is_empty()).then_some(labels),
            annotations: template.metadata.annotations.clone(),
            finalizers: template.metadata.finalizers.clone(),
            owner_references: owners,
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// The claim goes with an earlier pod of this name: a new pod waits until it is gone.
pub fn is_stale(set: &StatefulSet, claim: &PersistentVolumeClaim, ordinal: i32) -> bool {
    let pod = identity::pod_name(set, ordinal);
    policy(set).when_scaled
        && claim.metadata.owner_references.iter().flatten().any(|o| is_pod(o) && o.name == pod)
}

fn is_pod(owner: &OwnerReference) -> bool {
    owner.kind == "Pod" && owner.api_version == "v1"
}

fn is_set(owner: &OwnerReference) -> bool {
    owner.kind == "StatefulSet" && owner.api_version.starts_with("apps/")
}

/// The owners that a claim of `pod` should have; None where it has them or must be left
/// alone. `leaves`: the set is scaled below the pod.
pub fn owners(
    set: &StatefulSet,
    pod: &Pod,
    claim: &PersistentVolumeClaim,
    leaves: bool,
) -> Option<Vec<OwnerReference>> {
    let held = claim.metadata.owner_references.as_deref().unwrap_or_default();
    let (set_uid, pod_uid) = (uid(&set.metadata), uid(&pod.metadata));
    let earlier = |owner: &OwnerReference| {
        (is_set(owner) && owner.name == name(&set.metadata) && owner.uid != set_uid)
            || (is_pod(owner) && owner.name == name(&pod.metadata) && owner.uid != pod_uid)
    };
    if held.iter().any(earlier) {
        return None;
    }
    let ours = |owner: &&OwnerReference| owner.uid == set_uid || owner.uid == pod_uid;
    let mut wanted: Vec<OwnerReference> = held.iter().filter(|o| !ours(o)).cloned().collect();
    let Policy { when_deleted, when_scaled } = policy(set);
    if wanted.iter().any(|owner| owner.controller == Some(true)) {
        // Another controller decides.
    } else if when_scaled && leaves {
        wanted.push(owner::reference_to(pod));
    } else if when_deleted {
        wanted.push(owner::reference_to(set));
    }
    let key = |o: &OwnerReference| (o.uid.clone(), o.controller == Some(true));
    let same = wanted.len() == held.len()
        && wanted.iter().all(|want| held.iter().any(|have| key(have) == key(want)));
    (!same).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(when_deleted: &str, when_scaled: &str) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "uid": "set"},
            "spec": {"serviceName": "", "selector": {}, "template": {},
                "persistentVolumeClaimRetentionPolicy":
                    {"whenDeleted": when_deleted, "whenScaled": when_scaled}},
        }))
        .unwrap()
    }

    fn claim(owners: Value) -> PersistentVolumeClaim {
        let claim = json!({"metadata": {"name": "www-web-0", "ownerReferences": owners}});
        serde_json::from_value(claim).unwrap()
    }

    fn reference(kind: &str, name: &str, uid: &str) -> Value {
        let version = if kind == "Pod" { "v1" } else { "apps/v1" };
        json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true,
            "blockOwnerDeletion": true})
    }

    #[test]
    fn owners_follow_the_retention_policy() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "web-0", "uid": "pod"}})).unwrap();
        for (deleted, scaled, leaves, expected) in [
            ("Retain", "Retain", false, None),
            ("Retain", "Retain", true, None),
            ("Delete", "Retain", false, Some("set")),
            ("Delete", "Retain", true, Some("set")),
            ("Retain", "Delete", false, None),
            ("Retain", "Delete", true, Some("pod")),
            ("Delete", "Delete", false, Some("set")),
            ("Delete", "Delete", true, Some("pod")),
        ] {
            let set = set(deleted, scaled);
            let case = format!("{deleted} {scaled} {leaves}");
            let wanted = owners(&set, &pod, &claim(json!([])), leaves);
            let uids = wanted.map(|w| w.into_iter().map(|o| o.uid).collect::<Vec<_>>());
            assert_eq!(uids, expected.map(|uid| vec![uid.to_string()]), "{case}");
            // What is not wanted goes, and nothing else does.
            let other = json!({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "other"});
            let all = json!([
                other,
                reference("StatefulSet", "web", "set"),
                reference("Pod", "web-0", "pod")
            ]);
            let left = owners(&set, &pod, &claim(all), leaves).expect("one of them is wrong");
            let uids: Vec<&str> = left.iter().map(|o| o.uid.as_str()).collect();
            assert_eq!(uids, ["other"].into_iter().chain(expected).collect::<Vec<_>>(), "{case}");
        }
    }

    #[test]
    fn claims_of_others_are_left_alone() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "web-0", "uid": "pod"}})).unwrap();
        let set = set("Delete", "Delete");
        let earlier = claim(json!([reference("Pod", "web-0", "earlier")]));
        assert_eq!(owners(&set, &pod, &earlier, false), None);
        assert!(is_stale(&set, &earlier, 0) && !is_stale(&set, &earlier, 1));
        let theirs = claim(json!([reference("Database", "db", "theirs")]));
        assert_eq!(owners(&set, &pod, &theirs, false), None);
    }
}
