//! Has drivers make a file system as large as its volume has become.
//!
//! The volume itself was enlarged elsewhere; a claim that waits for its node says so.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kinds::meta::quantity::Quantity;
use serde_json::{Value, json};

use super::{CsiVolumes, Failure, Source};
use crate::csi::messages::{self, Ability, CapacityRange, ExpandRequest, Expanded};
use crate::pod;
use crate::volumes::claims;

/// Whether the claim waits for its node.
fn waits(claim: &PersistentVolumeClaim) -> bool {
    let Some(status) = &claim.status else { return false };
    let pending = status
        .conditions
        .iter()
        .flatten()
        .any(|it| it.type_ == "FileSystemResizePending" && it.status == "True");
    let step = status.allocated_resource_statuses.as_ref().and_then(|it| it.get("storage"));
    pending
        || matches!(step.map(String::as_str), Some("NodeResizePending" | "NodeResizeInProgress"))
}

/// The claim's status once its file system is as large as its volume.
fn enlarged(claim: &PersistentVolumeClaim, capacity: &str) -> Value {
    let conditions: Vec<Value> = claim
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .filter(|it| !matches!(it.type_.as_str(), "FileSystemResizePending" | "Resizing"))
        .filter_map(|it| serde_json::to_value(it).ok())
        .collect();
    json!({"status": {
        "capacity": {"storage": capacity},
        "conditions": conditions,
        "allocatedResourceStatuses": null,
    }})
}

impl CsiVolumes {
    /// Looks, now and then, whether the claim behind a volume waits for more room. Says when
    /// to look again; None where the driver cannot do it.
    pub(super) async fn make_room(
        &self,
        pod: &Pod,
        key: &(String, String),
        source: &Source,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Failure> {
        let can = |driver: &crate::csi::driver::Driver| driver.can(Ability::ExpandVolume);
        let Some(driver) = self.drivers.get(&source.driver).ok().filter(|it| can(it)) else {
            return Ok(None);
        };
        let volumes = pod::spec(pod).volumes.iter().flatten();
        let claim = volumes.filter(|it| it.name == key.1).find_map(|it| claims::claim_of(pod, it));
        let Some((claim, ..)) = claim else { return Ok(None) };
        {
            let mut published = self.published.lock();
            let Some(known) = published.get_mut(key) else { return Ok(None) };
            let due = self.later(known.looked_for_room);
            if now < due {
                return Ok(Some(due));
            }
            known.looked_for_room = now;
        }
        let failed = |why: String| Failure {
            reason: "VolumeResizeFailed",
            message: format!(
                "NodeExpandVolume.NodeExpandVolume failed for volume \"{}\" : {why}",
                source.name
            ),
        };
        let api = self.client.api::<PersistentVolumeClaim>(Some(pod::namespace(pod)));
        // A server that cannot be reached is asked the next time.
        let Ok(claim) = api.get(&claim).await else { return Ok(Some(self.later(now))) };
        if !waits(&claim) {
            return Ok(Some(self.later(now)));
        }
        let volume = self.client.all::<PersistentVolume>().get(&source.name).await;
        let volume = volume.map_err(|error| failed(error.to_string()))?;
        let capacity =
            volume.spec.and_then(|it| it.capacity?.get("storage").map(|it| it.0.clone()));
        let capacity = capacity.ok_or_else(|| failed("the volume has no capacity".to_owned()))?;
        let bytes = capacity.parse::<Quantity>().ok().map_or(0, |it| it.value());
        let record = source.record(&self.node, false);
        let request = ExpandRequest {
            volume_id: source.handle.clone(),
            volume_path: self.told(&record.target(&key.0)),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            staging_target_path: self.staged_at(source, &driver, &record),
            volume_capability: Some(source.capability(&driver, None)),
            secrets: self.secrets(source.expand_secret.as_ref()).await.map_err(failed)?,
        };
        driver
            .call::<Expanded>(messages::NODE_EXPAND, &request)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let body = client::Patch::Merge(enlarged(&claim, &capacity));
        api.patch_status(name, &body).await.map_err(|error| failed(error.to_string()))?;
        let message =
            format!("MountVolume.NodeExpandVolume succeeded for volume \"{}\"", source.name);
        let about = client::recorder::reference(pod);
        self.recorder.normal(&about, "FileSystemResizeSuccessful", message);
        Ok(Some(self.later(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_waits_for_its_node_until_that_has_made_room() {
        let claim = |status: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap()
        };
        let pending = json!({"type": "FileSystemResizePending", "status": "True"});
        let other = json!({"type": "ModifyingVolume", "status": "True"});
        let waiting = claim(json!({"conditions": [pending, other]}));
        assert!(waits(&waiting));
        assert!(!waits(&claim(json!({"conditions": [other]}))));
        assert!(waits(&claim(
            json!({"allocatedResourceStatuses": {"storage": "NodeResizePending"}})
        )));
        let done = enlarged(&waiting, "2Gi");
        assert_eq!(done["status"]["capacity"]["storage"], "2Gi");
        assert_eq!(done["status"]["conditions"].as_array().unwrap().len(), 1);
    }
}
