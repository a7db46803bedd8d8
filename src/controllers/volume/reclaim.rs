//! Decides what a volume needs next: its phase, and what its claim's end means for it.
//!
//! Pure. Removes no storage; whoever provisioned a volume does.

use client::volumes::{self, BOUND_BY_CONTROLLER, PROVISIONED_BY};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::Say;
use crate::owner::{annotation, name};

#[derive(Debug, PartialEq)]
pub enum Step {
    Nothing,
    Phase(&'static str),
    /// Its claim is to be looked at: it may bind now.
    LookAtClaim,
    /// Its claim took another volume. What the binder wrote is taken back in full, of what
    /// the user wrote only the uid.
    Unbind {
        forget: bool,
    },
    /// It cannot be reclaimed.
    Fail(Say),
    /// What is on it is to be removed.
    Recycle,
}

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

fn policy(volume: &PersistentVolume) -> &str {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    policy.unwrap_or("Retain")
}

/// `claim` is the one with the uid that the volume refers to.
pub fn plan(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> Step {
    let Some(reference) = volumes::claim_ref(volume) else { return towards(volume, "Available") };
    let by_controller = annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some();
    if reference.uid.as_deref().is_none_or(str::is_empty) {
        // Kept for a claim that may come, or that is there.
        return match towards(volume, "Available") {
            Step::Nothing => Step::LookAtClaim,
            step => step,
        };
    }
    let Some(claim) = claim else { return released(volume) };
    match volumes::volume_name(claim) {
        None => Step::LookAtClaim,
        Some(taken) if taken == name(&volume.metadata) => match towards(volume, "Bound") {
            // The claim's side may be unfinished.
            Step::Nothing if !volumes::is_bind_completed(claim) => Step::LookAtClaim,
            step => step,
        },
        Some(_)
            if annotation(&volume.metadata, PROVISIONED_BY).is_some()
                && policy(volume) == "Delete" =>
        {
            released(volume)
        }
        Some(_) => Step::Unbind { forget: by_controller },
    }
}

fn towards(volume: &PersistentVolume, wanted: &'static str) -> Step {
    if phase(volume) == wanted { Step::Nothing } else { Step::Phase(wanted) }
}

/// The claim is gone.
fn released(volume: &PersistentVolume) -> Step {
    match phase(volume) {
        "Released" => reclaim(volume),
        // It is tried again and again.
        "Failed" if policy(volume) == "Recycle" => Step::Recycle,
        "Failed" => Step::Nothing,
        _ => Step::Phase("Released"),
    }
}

fn reclaim(volume: &PersistentVolume) -> Step {
    let provisioner = annotation(&volume.metadata, PROVISIONED_BY).unwrap_or_default();
    match policy(volume) {
        "Delete" if !provisioner.is_empty() && !provisioner.starts_with("kubernetes.io/") => {
            // Whoever provisioned it removes it.
            Step::Nothing
        }
        "Delete" => {
            let of = name(&volume.metadata);
            let host = volume.spec.as_ref().and_then(|spec| spec.host_path.as_ref());
            // Upstream removes what lies below /tmp of its own host; no host is touched here.
            let text = match host.filter(|host| !host.path.contains("/tmp/")) {
                Some(host) => format!(
                    "host_path deleter only supports /tmp/.+ but received provided {}",
                    host.path
                ),
                None => format!(
                    "error getting deleter volume plugin for volume {of:?}: no deletable volume \
                     plugin matched"
                ),
            };
            Step::Fail(Say::warning("VolumeFailedDelete", text))
        }
        "Recycle" => Step::Recycle,
        _ => Step::Nothing,
    }
}
