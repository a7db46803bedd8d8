//! Which persistent volume a pod's claim stands for, read from the API server.
//!
//! Reads and judges; makes nothing. A claim that is bound stays bound to its volume, so an
//! answer is kept for the pod's life, on disk as well: a restart asks nobody.

use std::collections::BTreeMap;

use client::Client;
use client::fit::Place;
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod, Volume,
};
use serde::{Deserialize, Serialize};

use crate::pod;

/// A volume that a pod gets through a claim.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Bound {
    pub claim: String,
    /// Name of the PersistentVolume.
    pub name: String,
    pub spec: PersistentVolumeSpec,
    /// The pod asked for no more than reading.
    pub read_only: bool,
    /// The group that may use the volume: the pod's processes join it.
    #[serde(default)]
    pub group: Option<i64>,
}

/// Upstream's annotation of a PersistentVolume for the group that owns what is on it.
const GROUP_ANNOTATION: &str = "pv.beta.kubernetes.io/gid";

/// None for one that is no number, as upstream has it.
fn group_of(volume: &PersistentVolume) -> Option<i64> {
    volume.metadata.annotations.as_ref()?.get(GROUP_ANNOTATION)?.parse().ok()
}

impl Bound {
    pub fn is_block(&self) -> bool {
        self.spec.volume_mode.as_deref() == Some("Block")
    }
}

/// The claim's name, whether it is made for this pod alone, and whether it is only read.
pub fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), false, source.read_only == Some(true)));
    }
    volume.ephemeral.as_ref()?;
    Some((format!("{}-{}", pod::name(pod), volume.name), true, false))
}

fn is_owned_by(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    claim
        .metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true) && owner.uid == pod::uid(pod))
}

/// The name of the volume that the claim is bound to.
fn volume_name(pod: &Pod, claim: &PersistentVolumeClaim, own: bool) -> Result<String, String> {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod::namespace(pod);
    if own && !is_owned_by(claim, pod) {
        return Err(format!(
            "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
            pod::name(pod)
        ));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted".to_owned());
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let to = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
    match to.filter(|to| !to.is_empty() && phase == Some("Bound")) {
        Some(to) => Ok(to),
        None => Err("PVC is not bound".to_owned()),
    }
}

fn judge(
    claim: &PersistentVolumeClaim,
    volume: PersistentVolume,
) -> Result<(String, PersistentVolumeSpec), String> {
    let name = volume.metadata.name.unwrap_or_default();
    let spec = volume.spec.ok_or_else(|| format!("PV {name} has no spec"))?;
    let Some(reference) = &spec.claim_ref else {
        return Err(format!("PV object {name:?} is not bound to any claim (pv.ClaimRef is nil)"));
    };
    if reference.uid != claim.metadata.uid {
        return Err(format!(
            "PV object {name:?} has unexpected claim UID: found {:?}, expected {:?}",
            reference.uid.as_deref().unwrap_or_default(),
            claim.metadata.uid.as_deref().unwrap_or_default(),
        ));
    }
    Ok((name, spec))
}

/// Whether a node with such a name and labels reaches the volume.
pub fn is_reached_from(bound: &Bound, node: &str, labels: &BTreeMap<String, String>) -> bool {
    let place = Place { name: node, label: |key: &str| labels.get(key).map(String::as_str) };
    let affinity = bound.spec.node_affinity.as_ref();
    affinity.and_then(|it| it.required.as_ref()).is_none_or(|it| place.is_selected(it))
}

/// How the pod's containers want to use the volume must be what it offers.
fn check_mode(pod: &Pod, volume: &Volume, bound: &Bound) -> Result<(), String> {
    for (_, container) in pod::containers(pod) {
        let mounts = container.volume_mounts.iter().flatten().any(|it| it.name == volume.name);
        let devices = container.volume_devices.iter().flatten().any(|it| it.name == volume.name);
        if mounts && bound.is_block() {
            return Err(format!(
                "volume {} has volumeMode Block, but is specified in volumeMounts",
                volume.name
            ));
        }
        if devices && !bound.is_block() {
            return Err(format!(
                "volume {} has volumeMode Filesystem, but is specified in volumeDevices",
                volume.name
            ));
        }
    }
    Ok(())
}

/// Finds the volume of a claim.
///
/// # Errors
/// Why there is none yet, as FailedMount says it.
pub async fn resolve(client: &Client, pod: &Pod, volume: &Volume) -> Result<Option<Bound>, String> {
    let Some((claim_name, own, read_only)) = claim_of(pod, volume) else { return Ok(None) };
    let namespace = pod::namespace(pod);
    let about = |why: String| format!("error processing PVC {namespace}/{claim_name}: {why}");
    let claim = client
        .api::<PersistentVolumeClaim>(Some(namespace))
        .get(&claim_name)
        .await
        .map_err(|error| about(format!("failed to fetch PVC from API server: {error}")))?;
    let name = volume_name(pod, &claim, own).map_err(about)?;
    let object =
        client.all::<PersistentVolume>().get(&name).await.map_err(|error| {
            about(format!("failed to fetch PV {name} from API server: {error}"))
        })?;
    let group = group_of(&object);
    let (name, spec) = judge(&claim, object).map_err(about)?;
    let bound = Bound { claim: claim_name.clone(), name, spec, read_only, group };
    check_mode(pod, volume, &bound)?;
    Ok(Some(bound))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::{Value, json};

    fn claim(change: Value) -> PersistentVolumeClaim {
        let mut whole = json!({"metadata": {"name": "web-v", "uid": "c1"},
            "spec": {"volumeName": "pv1"}, "status": {"phase": "Bound"}});
        for (key, value) in change.as_object().unwrap() {
            whole[key] = value.clone();
        }
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn a_volume_is_reached_from_the_nodes_that_it_names() {
        let bound = |affinity: Value| Bound {
            claim: "c".into(),
            name: "pv1".into(),
            spec: serde_json::from_value(json!({"nodeAffinity": affinity})).unwrap(),
            read_only: false,
            group: None,
        };
        let of = |rack: &str| {
            bound(json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "rack", "operator": "In", "values": [rack]}]}]}}))
        };
        let labels = [("rack".to_owned(), "r7".to_owned())].into();
        assert!(is_reached_from(&bound(json!(null)), "n1", &labels));
        assert!(is_reached_from(&of("r7"), "n1", &labels));
        assert!(!is_reached_from(&of("r8"), "n1", &labels));
    }

    #[test]
    fn a_claim_names_its_volume_only_when_all_is_well() {
        let pod = pod(json!({"containers": [], "volumes": [{"name": "v", "ephemeral": {}}]}));
        let volume = &pod::spec(&pod).volumes.as_ref().unwrap()[0];
        assert_eq!(claim_of(&pod, volume), Some(("web-v".to_owned(), true, false)));
        let owned = json!({"name": "web-v", "uid": "c1", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "uid-1", "controller": true}]});
        let gone = json!({"name": "web-v", "deletionTimestamp": "2026-01-02T00:00:00Z"});
        let cases = [
            (json!({}), false, Ok("pv1")),
            (json!({"status": {"phase": "Pending"}}), false, Err("PVC is not bound")),
            (json!({"spec": {}}), false, Err("PVC is not bound")),
            (json!({"metadata": gone}), false, Err("PVC is being deleted")),
            (json!({"metadata": owned}), true, Ok("pv1")),
            (
                json!({}),
                true,
                Err("PVC default/web-v was not created for pod default/web (pod is not owner)"),
            ),
        ];
        for (change, own, want) in cases {
            let got = volume_name(&pod, &claim(change), own);
            assert_eq!(got.as_deref().map_err(String::as_str), want);
        }
    }

    #[test]
    fn a_volume_must_know_its_claim_and_fit_its_use() {
        let volume = |spec: Value| {
            serde_json::from_value(json!({"metadata": {"name": "pv1"}, "spec": spec})).unwrap()
        };
        let mine = claim(json!({}));
        assert!(judge(&mine, volume(json!({}))).unwrap_err().contains("pv.ClaimRef is nil"));
        assert!(judge(&mine, volume(json!({"claimRef": {"uid": "c2"}}))).is_err());
        let (name, spec) =
            judge(&mine, volume(json!({"claimRef": {"uid": "c1"}, "volumeMode": "Block"})))
                .unwrap();
        let bound = Bound { claim: "c".into(), name, spec, read_only: false, group: None };
        let pod = pod(json!({
            "containers": [{"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}));
        assert_eq!(
            check_mode(&pod, &pod::spec(&pod).volumes.as_ref().unwrap()[0], &bound).unwrap_err(),
            "volume v has volumeMode Block, but is specified in volumeMounts"
        );
    }
}
