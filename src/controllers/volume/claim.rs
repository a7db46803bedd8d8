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
