//! Writes what was planned for claims and volumes.
//!
//! Every write names the revision that was looked at: who was faster wins, and the key comes
//! again. A binding is four writes, each of which is skipped where it is done already.

use client::recorder::reference;
use client::volumes::{
    self, BETA_STORAGE_PROVISIONER, BIND_COMPLETED, BOUND_BY_CONTROLLER, STORAGE_PROVISIONER,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::Say;
use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{annotation, name, namespace};

/// Binds both sides.
pub async fn bind(
    context: &Context,
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Outcome {
    let volumes = context.client.all::<PersistentVolume>();
    let of = name(&volume.metadata);
    let volume = match volume_side(volume, claim) {
        None => volume.clone(),
        Some(bound) => {
            let written = volumes.replace(of, &bound).await;
            written.doing(|| format!("bind volume {of} to its claim"))?
        }
    };
    let volume = phase(context, volume, "Bound", "").await?;
    let claims = context.client.api::<PersistentVolumeClaim>(Some(namespace(&claim.metadata)));
    let claim_name = name(&claim.metadata);
    let claim = match claim_side(claim, of) {
        None => claim.clone(),
        Some(bound) => {
            let written = claims.replace(claim_name, &bound).await;
            written.doing(|| format!("bind claim {claim_name} to volume {of}"))?
        }
    };
    match bound_status(&claim, &volume) {
        None => Ok(()),
        Some(told) => {
            let written = claims.replace_status(claim_name, &told).await;
            written.doing(|| format!("tell claim {claim_name} that it is bound")).or_gone()
        }
    }
}

/// The volume with its reference to the claim; None where it has that.
fn volume_side(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Option<PersistentVolume> {
    let held = volumes::claim_ref(volume);
    if held.is_some_and(|held| held.uid.is_some() && held.uid == claim.metadata.uid) {
        return None;
    }
    let mut bound = volume.clone();
    let mut to = reference(claim);
    to.field_path = None;
    bound.spec.get_or_insert_default().claim_ref = Some(to);
    // A reference that a user wrote stays the user's.
    if held.is_none() {
        let annotations = bound.metadata.annotations.get_or_insert_default();
        annotations.insert(BOUND_BY_CONTROLLER.into(), "yes".into());
    }
    Some(bound)
}

fn claim_side(claim: &PersistentVolumeClaim, volume: &str) -> Option<PersistentVolumeClaim> {
    let named = volumes::volume_name(claim) == Some(volume);
    if named && volumes::is_bind_completed(claim) {
        return None;
    }
    let mut bound = claim.clone();
    let annotations = bound.metadata.annotations.get_or_insert_default();
    annotations.insert(BIND_COMPLETED.into(), "yes".into());
    if !named {
        annotations.insert(BOUND_BY_CONTROLLER.into(), "yes".into());
        bound.spec.get_or_insert_default().volume_name = Some(volume.into());
    }
    Some(bound)
}

/// The size is told when the claim becomes bound; later the file system may rightly be
/// smaller than the volume.
fn bound_status(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Option<PersistentVolumeClaim> {
    let mut told = claim.clone();
    let status = told.status.get_or_insert_default();
    let spec = volume.spec.as_ref();
    if status.phase.as_deref() != Some("Bound") {
        status.phase = Some("Bound".into());
        status.capacity = spec.and_then(|spec| spec.capacity.clone());
        let class = spec.and_then(|spec| spec.volume_attributes_class_name.clone());
        status.current_volume_attributes_class_name = class.filter(|name| !name.is_empty());
    }
    status.access_modes = spec.and_then(|spec| spec.access_modes.clone());
    (told.status != claim.status).then_some(told)
}

/// Writes a claim's phase where it has another.
pub async fn claim_phase(
    context: &Context,
    claim: &PersistentVolumeClaim,
    wanted: &str,
) -> Result<bool, Failed> {
    let held = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    if held == Some(wanted) {
        return Ok(false);
    }
    let mut told = claim.clone();
    let status = told.status.get_or_insert_default();
    status.phase = Some(wanted.into());
    if wanted == "Pending" {
        (status.access_modes, status.capacity) = (None, None);
    }
    let api = context.client.api::<PersistentVolumeClaim>(Some(namespace(&claim.metadata)));
    let written = api.replace_status(name(&claim.metadata), &told).await;
    written.doing(|| format!("tell the claim that it is {wanted}"))?;
    Ok(true)
}

/// Writes a volume's phase where it has another, and returns the volume as it is then.
pub async fn phase(
    context: &Context,
    volume: PersistentVolume,
    wanted: &str,
    message: &str,
) -> Result<PersistentVolume, Failed> {
    let held = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    if held == Some(wanted) {
        return Ok(volume);
    }
    let mut told = volume;
    let status = told.status.get_or_insert_default();
    status.phase = Some(wanted.into());
    status.message = Some(message.to_owned()).filter(|message| !message.is_empty());
    let of = name(&told.metadata).to_owned();
    let written = context.client.all::<PersistentVolume>().replace_status(&of, &told).await;
    written.doing(|| format!("tell volume {of} that it is {wanted}"))
}

/// Says who is to provision a claim's volume.
pub async fn ask_provisioner(
    context: &Context,
    claim: &PersistentVolumeClaim,
    provisioner: &str,
    say: &Say,
) -> Outcome {
    let asked = |key: &str| annotation(&claim.metadata, key) == Some(provisioner);
    if !asked(STORAGE_PROVISIONER) || !asked(BETA_STORAGE_PROVISIONER) {
        let mut asks = claim.clone();
        let annotations = asks.metadata.annotations.get_or_insert_default();
        for key in [BETA_STORAGE_PROVISIONER, STORAGE_PROVISIONER] {
            annotations.insert(key.into(), provisioner.into());
        }
        let api = context.client.api::<PersistentVolumeClaim>(Some(namespace(&claim.metadata)));
        let written = api.replace(name(&claim.metadata), &asks).await;
        written.doing(|| format!("ask {provisioner} for a volume"))?;
        say.to(&context.recorder, &reference(claim));
        return Ok(());
    }
    claim_phase(context, claim, "Pending").await?;
    Ok(())
}

pub async fn use_class(context: &Context, claim: &PersistentVolumeClaim, class: &str) -> Outcome {
    let mut changed = claim.clone();
    changed.spec.get_or_insert_default().storage_class_name = Some(class.into());
    let api = context.client.api::<PersistentVolumeClaim>(Some(namespace(&claim.metadata)));
    let written = api.replace(name(&claim.metadata), &changed).await;
    written.doing(|| format!("give the claim the default class {class}")).or_gone()
}

/// Takes a binding back that the claim did not make.
pub async fn unbind(context: &Context, volume: &PersistentVolume, forget: bool) -> Outcome {
    let mut freed = volume.clone();
    let spec = freed.spec.get_or_insert_default();
    if forget {
        spec.claim_ref = None;
        if let Some(annotations) = &mut freed.metadata.annotations {
            annotations.remove(BOUND_BY_CONTROLLER);
        }
    } else if let Some(held) = &mut spec.claim_ref {
        (held.uid, held.resource_version) = (None, None);
    }
    let of = name(&volume.metadata);
    let api = context.client.all::<PersistentVolume>();
    let freed = api.replace(of, &freed).await.doing(|| format!("take volume {of} back"))?;
    phase(context, freed, "Available", "").await.map(drop)
}
