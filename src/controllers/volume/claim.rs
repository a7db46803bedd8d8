//! Decides what a claim needs next.
//!
//! Pure: `binder.rs` gathers what is asked for here, `write.rs` does what is answered.

use std::sync::Arc;

use client::volumes::{self, NO_PROVISIONER, SELECTED_NODE, Wanted};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::Say;
use crate::owner::{annotation, name};

pub struct World<'a> {
    pub claim: &'a PersistentVolumeClaim,
    /// The volume that the claim names, if it is there.
    pub named: Option<Arc<PersistentVolume>>,
    /// Volumes of the claim's class, and those that name the claim.
    pub candidates: Vec<Arc<PersistentVolume>>,
    /// The claim's class, if it is there.
    pub class: Option<Arc<StorageClass>>,
    pub default_class: Option<String>,
    /// Pods that use the claim and have no node yet.
    pub waiting_pods: Vec<String>,
}

#[derive(Debug, PartialEq)]
pub enum Step {
    /// Pending, and why.
    Wait(Option<Say>),
    /// Its volume is gone.
    Lost(Say),
    Bind(Arc<PersistentVolume>),
    /// Leave it to this provisioner.
    Provision {
        provisioner: String,
        say: Say,
    },
    /// A default class came after the claim.
    UseClass(String),
}

pub fn plan(world: &World<'_>) -> Step {
    match (volumes::is_bind_completed(world.claim), volumes::volume_name(world.claim)) {
        (true, None) => Step::Lost(Say::warning(
            "ClaimLost",
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
        )),
        (true, Some(_)) => bound(world),
        (false, Some(volume)) => named(world, volume),
        (false, None) => unbound(world),
    }
}

/// Binding was finished once; it is repeated, which mends what was taken apart.
fn bound(world: &World<'_>) -> Step {
    let Some(volume) = &world.named else {
        return Step::Lost(Say::warning(
            "ClaimLost",
            "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
        ));
    };
    let uid = volumes::claim_ref(volume).map(|reference| reference.uid.as_deref());
    match uid {
        None => Step::Bind(volume.clone()),
        Some(uid) if uid.is_some() && uid == world.claim.metadata.uid.as_deref() => {
            Step::Bind(volume.clone())
        }
        Some(_) => Step::Lost(Say::warning(
            "ClaimMisbound",
            "Two claims are bound to the same volume, this one is bound incorrectly",
        )),
    }
}

/// The user chose the volume.
fn named(world: &World<'_>, wanted: &str) -> Step {
    // It may come yet.
    let Some(volume) = &world.named else { return Step::Wait(None) };
    if volumes::claim_ref(volume).is_some() && !volumes::is_bound_to(volume, world.claim) {
        let text = format!("volume {wanted:?} already bound to a different claim.");
        return Step::Wait(Some(Say::warning("FailedBinding", text)));
    }
    if volumes::claim_ref(volume).is_none()
        && let Err(why) = volumes::satisfies(volume, world.claim)
    {
        let text = format!("Cannot bind to requested volume {wanted:?}: {why}");
        return Step::Wait(Some(Say::warning("VolumeMismatch", text)));
    }
    Step::Bind(volume.clone())
}

fn unbound(world: &World<'_>) -> Step {
    let claim = world.claim;
    let delayed = world.class.as_deref().is_some_and(volumes::waits_for_consumer);
    let wanted = Wanted { reaches: &|_| true, only_bound: delayed, taken: &|_| false };
    if let Some(volume) = volumes::find(claim, &world.candidates, &wanted) {
        return Step::Bind(volume.clone());
    }
    let class = match (volumes::class_of_claim(claim), &world.default_class) {
        (None, Some(default)) => return Step::UseClass(default.clone()),
        (class, _) => class.unwrap_or_default(),
    };
    if delayed && annotation(&claim.metadata, SELECTED_NODE).is_none() {
        return Step::Wait(Some(first_consumer(&world.waiting_pods)));
    }
    if class.is_empty() {
        return Step::Wait(Some(Say::normal(
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        )));
    }
    provision(world, class)
}

fn first_consumer(pods: &[String]) -> Say {
    if pods.is_empty() {
        let text = "waiting for first consumer to be created before binding";
        return Say::normal("WaitForFirstConsumer", text);
    }
    Say::normal(
        "WaitForPodScheduled",
        format!("waiting for pod {} to be scheduled", pods.join(",")),
    )
}

fn provision(world: &World<'_>, class: &str) -> Step {
    let failed = |text: String| Step::Wait(Some(Say::warning("ProvisioningFailed", text)));
    let Some(class) = &world.class else {
        return failed(format!("storageclass.storage.k8s.io {class:?} not found"));
    };
    let provisioner = class.provisioner.as_str();
    if provisioner == NO_PROVISIONER || provisioner.starts_with("kubernetes.io/") {
        return failed(format!("no volume plugin matched name: {provisioner}"));
    }
    let text = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' \
         or manually by the system administrator. If volume creation is delayed, please verify \
         that the provisioner is running and correctly registered."
    );
    let say = Say::normal("ExternalProvisioning", text);
    Step::Provision { provisioner: provisioner.into(), say }
}

/// Whether a claim waits for a volume that is not there or for a class.
pub fn is_open(claim: &PersistentVolumeClaim) -> bool {
    !volumes::is_bind_completed(claim) && !name(&claim.metadata).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim(spec: Value, annotations: Value) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"namespace": "n", "name": "c", "uid": "u",
            "annotations": annotations}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
        for (key, value) in spec.as_object().unwrap() {
            claim["spec"][key] = value.clone();
        }
        serde_json::from_value(claim).unwrap()
    }

    fn volume(spec: Value) -> Arc<PersistentVolume> {
        let mut volume = json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"}}, "status": {"phase": "Available"}});
        for (key, value) in spec.as_object().unwrap() {
            volume["spec"][key] = value.clone();
        }
        Arc::new(serde_json::from_value(volume).unwrap())
    }

    fn class(mode: &str, provisioner: &str) -> Arc<StorageClass> {
        let class = json!({"metadata": {"name": "s"}, "provisioner": provisioner,
            "volumeBindingMode": mode});
        Arc::new(serde_json::from_value(class).unwrap())
    }

    fn world(claim: &PersistentVolumeClaim) -> World<'_> {
        World {
            claim,
            named: None,
            candidates: Vec::new(),
            class: None,
            default_class: None,
            waiting_pods: Vec::new(),
        }
    }

    fn said(step: &Step) -> (&'static str, String) {
        match step {
            Step::Wait(Some(say)) | Step::Lost(say) | Step::Provision { say, .. } => {
                (say.reason, say.text.clone())
            }
            Step::Wait(None) | Step::Bind(_) | Step::UseClass(_) => ("", String::new()),
        }
    }

    #[test]
    fn a_claim_without_a_class_takes_a_volume_without_one_or_waits() {
        let claim = claim(json!({"storageClassName": ""}), json!({}));
        let mut world = world(&claim);
        let expected = "no persistent volumes available for this claim and no storage class is set";
        assert_eq!(said(&plan(&world)), ("FailedBinding", expected.into()));
        world.default_class = Some("s".into());
        assert_eq!(said(&plan(&world)).0, "FailedBinding", "it wants no class");
        world.candidates = vec![volume(json!({}))];
        assert_eq!(plan(&world), Step::Bind(world.candidates[0].clone()));
    }

    #[test]
    fn a_default_class_that_comes_later_is_taken() {
        let claim = claim(json!({}), json!({}));
        let mut world = world(&claim);
        world.default_class = Some("s".into());
        assert_eq!(plan(&world), Step::UseClass("s".into()));
    }

    #[test]
    fn a_delayed_claim_waits_for_its_pod_and_then_for_its_provisioner() {
        let waits = claim(json!({"storageClassName": "s"}), json!({}));
        let mut world = world(&waits);
        world.class = Some(class("WaitForFirstConsumer", "a.example/b"));
        world.candidates = vec![volume(json!({"storageClassName": "s"}))];
        let expected = "waiting for first consumer to be created before binding";
        assert_eq!(said(&plan(&world)), ("WaitForFirstConsumer", expected.into()));
        world.waiting_pods = vec!["p".into()];
        let expected = "waiting for pod p to be scheduled";
        assert_eq!(said(&plan(&world)), ("WaitForPodScheduled", expected.into()));
        let selected = claim(json!({"storageClassName": "s"}), json!({SELECTED_NODE: "n"}));
        world.claim = &selected;
        let step = plan(&world);
        assert!(said(&step).1.starts_with(
            "Waiting for a volume to be created either by the external provisioner 'a.example/b' or"
        ));
        assert!(
            matches!(step, Step::Provision { provisioner, .. } if provisioner == "a.example/b")
        );
    }

    #[test]
    fn what_cannot_be_provisioned_says_why() {
        let claim = claim(json!({"storageClassName": "s"}), json!({}));
        let mut world = world(&claim);
        let expected = "storageclass.storage.k8s.io \"s\" not found";
        assert_eq!(said(&plan(&world)), ("ProvisioningFailed", expected.into()));
        world.class = Some(class("Immediate", NO_PROVISIONER));
        let expected = "no volume plugin matched name: kubernetes.io/no-provisioner";
        assert_eq!(said(&plan(&world)), ("ProvisioningFailed", expected.into()));
    }

    #[test]
    fn a_volume_that_is_named_is_taken_if_it_fits_and_is_free() {
        let claim = claim(json!({"storageClassName": "", "volumeName": "v"}), json!({}));
        let mut world = world(&claim);
        assert_eq!(plan(&world), Step::Wait(None));
        world.named = Some(volume(json!({"claimRef": {"namespace": "n", "name": "other"}})));
        let expected = "volume \"v\" already bound to a different claim.";
        assert_eq!(said(&plan(&world)), ("FailedBinding", expected.into()));
        world.named = Some(volume(json!({"capacity": {"storage": "1Mi"}})));
        let expected = "Cannot bind to requested volume \"v\": requested PV is too small";
        assert_eq!(said(&plan(&world)), ("VolumeMismatch", expected.into()));
        world.named = Some(volume(json!({"claimRef": {"namespace": "n", "name": "c"}})));
        assert!(matches!(plan(&world), Step::Bind(_)));
    }

    #[test]
    fn a_bound_claim_keeps_its_volume_or_is_lost() {
        let done = json!({volumes::BIND_COMPLETED: "yes"});
        let nowhere = claim(json!({}), done.clone());
        assert_eq!(said(&plan(&world(&nowhere))).0, "ClaimLost");
        let bound = claim(json!({"volumeName": "v"}), done);
        let mut world = world(&bound);
        assert_eq!(said(&plan(&world)).0, "ClaimLost");
        for (claim_ref, want) in [
            (json!({"namespace": "n", "name": "c", "uid": "u"}), ""),
            (json!({"namespace": "n", "name": "c", "uid": "other"}), "ClaimMisbound"),
            (Value::Null, ""),
        ] {
            world.named = Some(volume(json!({"claimRef": claim_ref})));
            assert_eq!(said(&plan(&world)).0, want);
        }
    }
}
