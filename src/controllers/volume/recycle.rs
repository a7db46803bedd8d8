//! What becomes of a volume whose claim is gone and that is to be used again: a pod removes
//! what is on it (upstream's deprecated reclaim policy `Recycle`).
//!
//! Pure. `binder.rs` gathers what is asked for here and does what is answered; storage is
//! touched by the pod alone.

use client::volumes;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use serde_json::json;

use super::Say;
use crate::owner::{annotation, name, uid};
use crate::pod;

/// What pods that remove what is on a volume are called, before the volume's name.
pub const PREFIX: &str = "recycler-for-";
/// On such a pod: the volume and the claim that it was made for, by uid. Whatever else has its
/// name is none of ours.
const ROUND: &str = "coracle.io/recycles";
/// Upstream's.
const IMAGE: &str = "registry.k8s.io/build-image/debian-base:bookworm-v1.0.6";
const GIB: i64 = 1 << 30;

/// How volumes are emptied (`pv-recycler-...`).
#[derive(Debug, Clone)]
pub struct Recycling {
    pub nfs: Recycler,
    pub host_path: Recycler,
}

/// How those of one kind are.
#[derive(Debug, Clone)]
pub struct Recycler {
    /// Its first volume becomes the one that is emptied.
    pub template: Pod,
    /// How long a pod may take at least, and for each GiB of its volume.
    pub seconds_min: i64,
    pub seconds_per_gib: i64,
}

impl Default for Recycling {
    fn default() -> Self {
        let with =
            |seconds_min| Recycler { template: template(), seconds_min, seconds_per_gib: 30 };
        Self { nfs: with(300), host_path: with(60) }
    }
}

fn template() -> Pod {
    let script = "test -e /scrub && find /scrub -mindepth 1 -delete && test -z \"$(ls -A /scrub)\" \
                  || exit 1";
    let pod = json!({"metadata": {"namespace": "default"}, "spec": {
        "restartPolicy": "Never",
        "containers": [{"name": "pv-recycler", "image": IMAGE, "command": ["/bin/sh"],
            "args": ["-c", script], "volumeMounts": [{"name": "vol", "mountPath": "/scrub"}]}],
        "volumes": [{"name": "vol"}]}});
    // Written here: a test reads it.
    client::api::typed(&pod).expect("the template is a pod")
}

impl Recycling {
    /// None where nobody here can empty such a volume.
    fn of(&self, volume: &PersistentVolume) -> Option<&Recycler> {
        let spec = volume.spec.as_ref()?;
        match (&spec.host_path, &spec.nfs) {
            (Some(_), _) => Some(&self.host_path),
            (None, Some(_)) => Some(&self.nfs),
            (None, None) => None,
        }
    }

    /// Namespace and name of the pod for a volume.
    pub fn pod_of(&self, volume: &PersistentVolume) -> Option<(String, String)> {
        let template = &self.of(volume)?.template.metadata;
        let namespace = template.namespace.as_deref().filter(|it| !it.is_empty());
        let of = format!("{PREFIX}{}", name(&volume.metadata));
        Some((namespace.unwrap_or("default").to_owned(), of))
    }
}

fn round(volume: &PersistentVolume) -> String {
    let claim = volumes::claim_ref(volume).and_then(|it| it.uid.as_deref()).unwrap_or_default();
    format!("{}/{claim}", uid(&volume.metadata))
}

/// What to do for a volume that is to be emptied.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Not now, and why.
    Wait(Say),
    /// Nobody can.
    Fail(Say),
    Begin(Box<Pod>),
    /// The pod is at work.
    Follow,
    /// A pod has gone, or is going: its end is waited for.
    Nothing,
    /// Somebody else's pod stands in the way.
    Clear,
    Done,
    /// The pod failed; it goes, and another comes later.
    Failed(String),
}

/// `pod` has the name that [`Recycling::pod_of`] says; `users` are pods that use the claim that is
/// gone, as `namespace/name`.
pub fn plan(
    volume: &PersistentVolume,
    recycling: &Recycling,
    users: &[String],
    pod: Option<&Pod>,
) -> Step {
    if !users.is_empty() {
        let text = format!("Volume is used by pods: {}", users.join(","));
        return Step::Wait(Say::normal("VolumeFailedRecycle", text));
    }
    let Some(recycler) = recycling.of(volume) else {
        let text = "No recycler plugin found for the volume!";
        return Step::Fail(Say::warning("VolumeFailedRecycle", text));
    };
    let Some(pod) = pod else { return Step::Begin(Box::new(make(volume, recycling, recycler))) };
    if pod.metadata.deletion_timestamp.is_some() {
        return Step::Nothing;
    }
    if annotation(&pod.metadata, ROUND) != Some(&round(volume)) {
        return Step::Clear;
    }
    match pod::phase(pod) {
        "Succeeded" => Step::Done,
        "Failed" => {
            let said = pod.status.as_ref().and_then(|status| status.message.as_deref());
            let said = said.filter(|it| !it.is_empty());
            let said = said.unwrap_or("pod failed, pod.Status.Message unknown.");
            Step::Failed(format!("Recycle failed: failed to recycle volume: {said}"))
        }
        _ => Step::Follow,
    }
}

fn make(volume: &PersistentVolume, recycling: &Recycling, recycler: &Recycler) -> Pod {
    let mut pod = recycler.template.clone();
    if let Some((namespace, name)) = recycling.pod_of(volume) {
        (pod.metadata.namespace, pod.metadata.name) = (Some(namespace), Some(name));
    }
    pod.metadata.generate_name = None;
    pod.metadata.annotations.get_or_insert_default().insert(ROUND.into(), round(volume));
    let spec = pod.spec.get_or_insert_default();
    let gib = volumes::capacity(volume).value() / GIB;
    let seconds = gib.saturating_mul(recycler.seconds_per_gib).max(recycler.seconds_min);
    spec.active_deadline_seconds = Some(seconds);
    let source = volume.spec.as_ref();
    if let (Some(first), Some(source)) = (spec.volumes.iter_mut().flatten().next(), source) {
        *first = k8s_openapi::api::core::v1::Volume {
            name: std::mem::take(&mut first.name),
            nfs: source.nfs.clone(),
            // Whatever lies there; nothing is made.
            host_path: source.host_path.clone().map(|mut it| {
                it.type_ = None;
                it
            }),
            ..Default::default()
        };
    }
    // On another node the same path is something else.
    let required = source.and_then(|it| it.node_affinity.as_ref()?.required.clone());
    if let (None, Some(required)) = (&spec.affinity, required) {
        let affinity = spec.affinity.get_or_insert_default();
        affinity
            .node_affinity
            .get_or_insert_default()
            .required_during_scheduling_ignored_during_execution = Some(required);
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn volume(spec: Value) -> PersistentVolume {
        let mut volume = json!({"metadata": {"name": "v", "uid": "u"},
            "spec": {"capacity": {"storage": "20Gi"}, "claimRef": {"uid": "c"}}});
        for (key, value) in spec.as_object().unwrap() {
            volume["spec"][key] = value.clone();
        }
        serde_json::from_value(volume).unwrap()
    }

    #[test]
    fn a_pod_gets_the_volume_the_time_and_the_place_that_it_needs() {
        let recycling = Recycling::default();
        let nfs = json!({"nfs": {"server": "s", "path": "/x"}});
        let place = json!({"required": {"nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": ["n"]}]}]}});
        let path = json!({"hostPath": {"path": "/d", "type": "DirectoryOrCreate"},
            "nodeAffinity": place});
        for (spec, seconds, source, affinity) in [
            (nfs, 600, json!({"name": "vol", "nfs": {"server": "s", "path": "/x"}}), Value::Null),
            (
                path,
                600,
                json!({"name": "vol", "hostPath": {"path": "/d"}}),
                place["required"].clone(),
            ),
        ] {
            let Step::Begin(pod) = plan(&volume(spec), &recycling, &[], None) else { panic!() };
            let pod = serde_json::to_value(pod).unwrap();
            assert_eq!(
                pod["metadata"],
                json!({"name": "recycler-for-v", "namespace": "default",
                "annotations": {"coracle.io/recycles": "u/c"}})
            );
            assert_eq!(pod["spec"]["activeDeadlineSeconds"], seconds);
            assert_eq!(pod["spec"]["volumes"], json!([source]));
            let node = &pod["spec"]["affinity"]["nodeAffinity"];
            assert_eq!(node["requiredDuringSchedulingIgnoredDuringExecution"], affinity);
            assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], "/scrub");
        }
        let mut small = volume(json!({"hostPath": {"path": "/d"}}));
        small.spec.as_mut().unwrap().capacity = None;
        let Step::Begin(pod) = plan(&small, &recycling, &[], None) else { panic!() };
        assert_eq!(pod.spec.unwrap().active_deadline_seconds, Some(60));
    }

    #[test]
    fn only_the_pod_of_this_round_says_how_it_went() {
        let (volume, recycling) =
            (volume(json!({"hostPath": {"path": "/d"}})), Recycling::default());
        let pod = |round: &str, phase: &str, message: &str, going: bool| -> Pod {
            let at = going.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({"metadata": {"name": "recycler-for-v",
                "deletionTimestamp": at, "annotations": {"coracle.io/recycles": round}},
                "status": {"phase": phase, "message": message}}))
            .unwrap()
        };
        let failed =
            |why: &str| Step::Failed(format!("Recycle failed: failed to recycle volume: {why}"));
        for (given, want) in [
            (pod("u/c", "Pending", "", false), Step::Follow),
            (pod("u/c", "Succeeded", "", false), Step::Done),
            (pod("u/c", "Succeeded", "", true), Step::Nothing),
            (pod("u/old", "Succeeded", "", false), Step::Clear),
            (pod("u/c", "Failed", "too slow", false), failed("too slow")),
            (pod("u/c", "Failed", "", false), failed("pod failed, pod.Status.Message unknown.")),
        ] {
            assert_eq!(plan(&volume, &recycling, &[], Some(&given)), want);
        }
        let users = ["a/b".to_owned(), "a/c".to_owned()];
        let said = Say::normal("VolumeFailedRecycle", "Volume is used by pods: a/b,a/c");
        assert_eq!(plan(&volume, &recycling, &users, None), Step::Wait(said));
        let disk = super::tests::volume(json!({"local": {"path": "/d"}}));
        let said = Say::warning("VolumeFailedRecycle", "No recycler plugin found for the volume!");
        assert_eq!(plan(&disk, &recycling, &[], None), Step::Fail(said));
    }
}
