//! Has drivers make a file system as large as its volume has become: before a container sees
//! it, and while it is used.
//!
//! The volume itself was enlarged elsewhere; its claim says that it waits for its node.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kinds::meta::quantity::Quantity;
use rpc::{Code, Status};
use serde_json::{Value, json};

use super::{CsiVolumes, Failure, Source};
use crate::csi::driver::{self, Driver};
use crate::csi::messages::{self, Ability, CapacityRange, ExpandRequest, Expanded};
use crate::pod;
use crate::volumes::claims;

/// The conditions of a claim that speak of its growth.
const GROWTH: [&str; 4] =
    ["FileSystemResizePending", "Resizing", "ControllerResizeError", "NodeResizeError"];

/// What is known of a published volume's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Nobody has looked since it was published.
    Unknown,
    Looked {
        at: Timestamp,
        /// Bytes that the claim had then; None where that is not known.
        bytes: Option<i64>,
    },
    /// The driver makes no more room while it is used: not before it is published anew.
    Refused,
}

/// What a claim and its volume ask of the node.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Nothing,
    /// Whoever enlarged the volume follows the steps in the claim's status.
    Grow {
        is_followed: bool,
    },
    /// Another node was first, and has told.
    GrowToo,
}

fn bytes(quantity: Option<&Text>) -> Option<i64> {
    quantity?.0.parse::<Quantity>().ok().map(|it| it.value())
}

fn step(claim: &PersistentVolumeClaim) -> Option<&str> {
    let steps = claim.status.as_ref()?.allocated_resource_statuses.as_ref()?;
    steps.get("storage").map(String::as_str).filter(|step| !step.is_empty())
}

fn told_bytes(claim: &PersistentVolumeClaim) -> Option<i64> {
    bytes(claim.status.as_ref()?.capacity.as_ref()?.get("storage"))
}

/// `volume` is what the volume has now, `known` what the claim had at the last look.
fn wish(claim: &PersistentVolumeClaim, volume: i64, known: Option<i64>) -> Wish {
    let Some(told) = told_bytes(claim) else { return Wish::Nothing };
    let is_allocated =
        claim.status.as_ref().is_some_and(|status| status.allocated_resources.is_some());
    match step(claim) {
        Some("NodeResizePending" | "NodeResizeInProgress") => Wish::Grow { is_followed: true },
        Some(_) => Wish::Nothing,
        None if told >= volume && known.is_some_and(|known| known < volume) => Wish::GrowToo,
        None if told < volume && !is_allocated => Wish::Grow { is_followed: false },
        None => Wish::Nothing,
    }
}

fn conditions(claim: &PersistentVolumeClaim, without: &[&str]) -> Vec<Value> {
    let held = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
    held.filter(|it| !without.contains(&it.type_.as_str()))
        .filter_map(|it| client::api::value_of(it).ok())
        .collect()
}

/// The claim's status once its file system is as large as its volume.
fn enlarged(claim: &PersistentVolumeClaim, capacity: &str) -> Value {
    json!({
        "capacity": {"storage": capacity},
        "conditions": conditions(claim, &GROWTH),
        "allocatedResourceStatuses": {"storage": null},
    })
}

/// The claim's status after its driver has said no.
fn refused(claim: &PersistentVolumeClaim, why: &str, is_infeasible: bool, now: Timestamp) -> Value {
    let mut conditions = conditions(claim, &["NodeResizeError"]);
    conditions.push(json!({
        "type": "NodeResizeError",
        "status": "True",
        "lastTransitionTime": base::time::rfc3339(now),
        "message": format!("failed to expand pvc with {why}"),
    }));
    let mut status = json!({"conditions": conditions});
    if is_infeasible {
        status["allocatedResourceStatuses"] = json!({"storage": "NodeResizeInfeasible"});
    }
    status
}

/// Why there is no more room.
enum No {
    /// To be tried again.
    Failed(String),
    /// Not as long as the volume is used.
    InUse,
}

/// Everything that one look is about.
struct Look<'a> {
    pod: &'a Pod,
    uid: &'a str,
    source: &'a Source,
    driver: &'a Driver,
    now: Timestamp,
}

impl CsiVolumes {
    /// Looks, when the volume was published and now and then, whether the claim behind it
    /// waits for more room. Says when to look again; None where it is of no use.
    ///
    /// # Errors
    /// Why there is no more room yet. A volume that was just published is not to be used then.
    pub(super) async fn make_room(
        &self,
        pod: &Pod,
        key: &(String, String),
        source: &Source,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Failure> {
        let volumes = pod::spec(pod).volumes.iter().flatten();
        let claim = volumes.filter(|it| it.name == key.1).find_map(|it| claims::claim_of(pod, it));
        let driver = self.drivers.get(&source.driver).ok();
        let able = driver.filter(|driver| driver.can(Ability::ExpandVolume));
        let room = self.published.lock().get(key).map(|known| known.room);
        let (Some((claim, ..)), Some(driver), Some(room)) = (claim, able, room) else {
            return Ok(None);
        };
        let known = match room {
            Room::Refused => return Ok(None),
            Room::Looked { at, .. } if now < self.later(at) => return Ok(Some(self.later(at))),
            Room::Looked { bytes, .. } => bytes,
            Room::Unknown => None,
        };
        let look = Look { pod, uid: &key.0, source, driver: &driver, now };
        let done = self.look_for_room(&look, &claim, known).await;
        let is_used = room != Room::Unknown;
        let room = match &done {
            Ok(bytes) => Room::Looked { at: now, bytes: *bytes },
            Err(No::Failed(_)) if is_used => Room::Looked { at: now, bytes: known },
            Err(No::Failed(_)) => Room::Unknown,
            Err(No::InUse) => Room::Refused,
        };
        if let Some(known) = self.published.lock().get_mut(key) {
            known.room = room;
        }
        match done {
            Ok(_) => Ok(Some(self.later(now))),
            Err(No::InUse) => Ok(None),
            Err(No::Failed(why)) => {
                let (reason, what) = match is_used {
                    true => ("VolumeResizeFailed", "NodeExpandVolume.NodeExpandVolume failed"),
                    false => ("FailedMount", "MountVolume.Setup failed while expanding volume"),
                };
                let message = format!("{what} for volume \"{}\" : {why}", source.name);
                Err(Failure::new(reason, message))
            }
        }
    }

    /// Says how many bytes the claim has afterwards.
    async fn look_for_room(
        &self,
        look: &Look<'_>,
        claim: &str,
        known: Option<i64>,
    ) -> Result<Option<i64>, No> {
        let Look { pod, source, .. } = look;
        let api = self.client.api::<PersistentVolumeClaim>(Some(pod::namespace(pod)));
        // A server that cannot be reached holds nothing up; it is asked the next time.
        let Ok(mut claim) = api.get(claim).await else { return Ok(known) };
        let Ok(volume) = self.client.all::<PersistentVolume>().get(&source.name).await else {
            return Ok(known);
        };
        let capacity = volume.spec.and_then(|spec| spec.capacity?.get("storage").cloned());
        let wanted = bytes(capacity.as_ref());
        let (Some(capacity), Some(wanted)) = (capacity, wanted) else { return Ok(known) };
        let wish = wish(&claim, wanted, known);
        if wish == Wish::Nothing {
            return Ok(told_bytes(&claim));
        }
        if source.read_only {
            let text = format!(
                "MountVolume.NodeExpandVolume failed for volume \"{}\" requested read-only file \
                 system",
                source.name
            );
            self.recorder.warning(
                &client::recorder::reference(*pod),
                "FileSystemResizeFailed",
                &*text,
            );
            self.recorder.warning(
                &client::recorder::reference(&claim),
                "FileSystemResizeFailed",
                text,
            );
            return Ok(told_bytes(&claim));
        }
        if wish == (Wish::Grow { is_followed: true }) {
            let status = json!({"allocatedResourceStatuses": {"storage": "NodeResizeInProgress"}});
            claim = self.tell_claim(&claim, status).await.map_err(|why| {
                No::Failed(format!("failed to mark node expansion in progress: {why}"))
            })?;
        }
        if let Err(no) = self.expand(look, wanted).await {
            return Err(self.refusal(look, &claim, &wish, no).await);
        }
        let text = format!(
            "MountVolume.NodeExpandVolume succeeded for volume \"{}\" {}",
            source.name, self.node
        );
        self.recorder.normal(
            &client::recorder::reference(*pod),
            "FileSystemResizeSuccessful",
            &*text,
        );
        self.recorder.normal(
            &client::recorder::reference(&claim),
            "FileSystemResizeSuccessful",
            text,
        );
        if wish != Wish::GrowToo {
            self.tell_claim(&claim, enlarged(&claim, &capacity.0)).await.map_err(|why| {
                No::Failed(format!("mountVolume.NodeExpandVolume update pvc status failed: {why}"))
            })?;
        }
        Ok(Some(wanted))
    }

    async fn expand(&self, look: &Look<'_>, wanted: i64) -> Result<(), Status> {
        let Look { source, driver, uid, .. } = look;
        let record = source.record(&self.node, false);
        let secrets = self.secrets(source.expand_secret.as_ref()).await;
        let request = ExpandRequest {
            volume_id: source.handle.clone(),
            volume_path: self.told(&record.target(uid)),
            capacity_range: Some(CapacityRange { required_bytes: wanted, limit_bytes: 0 }),
            staging_target_path: self.staged_at(source, driver, &record),
            volume_capability: Some(source.capability(driver, None)),
            secrets: secrets.map_err(|why| Status::new(Code::Unavailable, why))?,
        };
        driver.call::<Expanded>(messages::NODE_EXPAND, &request).await.map(drop)
    }

    /// Tells the claim why, where the driver has decided, so that whoever follows it can
    /// settle for less.
    async fn refusal(
        &self,
        look: &Look<'_>,
        claim: &PersistentVolumeClaim,
        wish: &Wish,
        error: Status,
    ) -> No {
        let is_infeasible =
            matches!(error.code, Code::InvalidArgument | Code::OutOfRange | Code::NotFound);
        let colon = if is_infeasible { "" } else { " :" };
        let why = format!("Expander.NodeExpand failed to expand the volume{colon} {error}");
        if driver::is_final(&error) && *wish == (Wish::Grow { is_followed: true }) {
            let status = refused(claim, &why, is_infeasible, look.now);
            if let Err(error) = self.tell_claim(claim, status).await {
                tracing::warn!(
                    volume = look.source.name,
                    error,
                    "claim not told why it stays small"
                );
            }
        }
        if error.code == Code::FailedPrecondition {
            tracing::warn!(volume = look.source.name, why, "volume does not grow while it is used");
            return No::InUse;
        }
        No::Failed(why)
    }

    /// Fails if the claim has changed meanwhile.
    async fn tell_claim(
        &self,
        claim: &PersistentVolumeClaim,
        status: Value,
    ) -> Result<PersistentVolumeClaim, String> {
        let meta = &claim.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let api = self.client.api::<PersistentVolumeClaim>(meta.namespace.as_deref());
        let body =
            json!({"metadata": {"resourceVersion": meta.resource_version}, "status": status});
        let told = api.patch_status(name, &client::Patch::Merge(body)).await;
        told.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(status: Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap()
    }

    #[test]
    fn a_claim_grows_as_its_status_says() {
        let steps = |step: &str| {
            claim(json!({"capacity": {"storage": "1Gi"}, "allocatedResources": {"storage": "2Gi"},
                "allocatedResourceStatuses": {"storage": step}}))
        };
        let (small, large) = (1 << 30, 2 << 30);
        for (step, wanted) in [
            ("NodeResizePending", Wish::Grow { is_followed: true }),
            ("NodeResizeInProgress", Wish::Grow { is_followed: true }),
            ("NodeResizeInfeasible", Wish::Nothing),
            ("ControllerResizeInProgress", Wish::Nothing),
        ] {
            assert_eq!(wish(&steps(step), large, None), wanted, "{step}");
        }
        let plain = |size: &str| claim(json!({"capacity": {"storage": size}}));
        assert_eq!(wish(&plain("1Gi"), large, None), Wish::Grow { is_followed: false });
        assert_eq!(wish(&plain("2Gi"), large, None), Wish::Nothing);
        assert_eq!(wish(&plain("2Gi"), large, Some(small)), Wish::GrowToo);
        assert_eq!(wish(&plain("2Gi"), large, Some(large)), Wish::Nothing);
        assert_eq!(wish(&claim(json!({})), large, None), Wish::Nothing);
    }

    #[test]
    fn a_claim_is_told_what_became_of_it() {
        let of = |kind: &str| json!({"type": kind, "status": "True"});
        let waiting = claim(json!({"conditions": [of("FileSystemResizePending"),
            of("NodeResizeError"), of("ModifyingVolume")]}));
        let done = enlarged(&waiting, "2Gi");
        assert_eq!(done["capacity"]["storage"], "2Gi");
        assert_eq!(done["conditions"], json!([of("ModifyingVolume")]));
        let no = refused(&waiting, "no", true, Timestamp::UNIX_EPOCH);
        assert_eq!(no["conditions"].as_array().unwrap().len(), 3);
        assert_eq!(no["conditions"][2]["message"], "failed to expand pvc with no");
        assert_eq!(no["allocatedResourceStatuses"]["storage"], "NodeResizeInfeasible");
        let no = refused(&waiting, "no", false, Timestamp::UNIX_EPOCH);
        assert_eq!(no["allocatedResourceStatuses"], Value::Null);
    }
}
