//! Persistent volumes: binding claims and volumes, what happens to a volume when its claim
//! goes, protection of what is in use, claims of ephemeral volumes, and growth.
//!
//! Makes and removes no storage: provisioners do, and pods that empty volumes for the next claim.

mod attributes;
mod binder;
#[cfg(test)]
pub(crate) mod cases;
mod claim;
mod ephemeral;
mod expand;
mod protect;
mod reclaim;
mod recycle;
mod write;

pub use attributes::run as run_attributes_protection;
pub use binder::run as run_binder;
pub use ephemeral::run as run_ephemeral;
pub use expand::run as run_expand;
pub use protect::{run_claims as run_claim_protection, run_volumes as run_volume_protection};
pub use recycle::{Recycler, Recycling};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};

use client::Recorder;

/// An event of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Say {
    pub warning: bool,
    pub reason: &'static str,
    pub text: String,
}

impl Say {
    fn normal(reason: &'static str, text: impl Into<String>) -> Self {
        Self { warning: false, reason, text: text.into() }
    }

    fn warning(reason: &'static str, text: impl Into<String>) -> Self {
        Self { warning: true, reason, text: text.into() }
    }

    fn to(&self, recorder: &Recorder, about: &ObjectReference) {
        match self.warning {
            true => recorder.warning(about, self.reason, self.text.clone()),
            false => recorder.normal(about, self.reason, self.text.clone()),
        }
    }
}

/// Index of pods by the claims that they use, as `namespace/name`.
pub(crate) const PODS_BY_CLAIM: &str = "claim";

/// The claims that a pod uses, those of its ephemeral volumes among them.
pub(crate) fn claims_of(pod: &Pod) -> Vec<String> {
    let meta = &pod.metadata;
    let namespace = crate::owner::namespace(meta);
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(format!("{namespace}/{}", claim.claim_name)),
            (None, Some(_)) => {
                Some(format!("{namespace}/{}-{}", crate::owner::name(meta), volume.name))
            }
            (None, None) => None,
        })
        .collect()
}
