//! Whether the devices of a claim are ready for the pods that use them: those with binding
//! conditions have to be said to be, within a time.
//!
//! Pure; `bind.rs` waits.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, AllocationResult, DeviceRequestAllocationResult, ResourceClaim,
};

use super::allocation;

fn results(allocation: &AllocationResult) -> &[DeviceRequestAllocationResult] {
    let devices = allocation.devices.as_ref();
    devices.and_then(|it| it.results.as_deref()).unwrap_or_default()
}

fn has_conditions(result: &DeviceRequestAllocationResult) -> bool {
    result.binding_conditions.as_ref().is_some_and(|it| !it.is_empty())
}

/// Whether pods have to wait for a device of it.
pub fn is_waited_for(allocation: &AllocationResult) -> bool {
    results(allocation).iter().any(has_conditions)
}

/// Whether all devices of a claim are said to be ready.
///
/// # Errors
/// In upstream's words, that one of them never will be.
pub fn is_ready(claim: &ResourceClaim) -> Result<bool, String> {
    let Some(allocation) = allocation(claim) else { return Ok(false) };
    let told = claim.status.as_ref().and_then(|it| it.devices.as_deref()).unwrap_or_default();
    for result in results(allocation).iter().filter(|it| has_conditions(it)) {
        let is_it = |it: &&AllocatedDeviceStatus| {
            it.driver == result.driver && it.pool == result.pool && it.device == result.device
        };
        let Some(told) = told.iter().find(is_it) else { return Ok(false) };
        let is_true = |name: &String| {
            let mut all = told.conditions.iter().flatten();
            all.find(|it| it.type_ == *name && it.status == "True")
        };
        if let Some(failed) = result.binding_failure_conditions.iter().flatten().find_map(is_true) {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let (reason, message) = (&failed.reason, &failed.message);
            return Err(format!(
                "claim {name} binding failed: reason={reason}, message={message:?}"
            ));
        }
        if !result.binding_conditions.iter().flatten().all(|name| is_true(name).is_some()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the time is over in which its devices had to be ready.
pub fn is_late(claim: &ResourceClaim, patience: Duration, now: Timestamp) -> bool {
    let Some(allocation) = allocation(claim) else { return false };
    let Some(since) = &allocation.allocation_timestamp else { return false };
    let end = since.0.checked_add(patience);
    is_waited_for(allocation) && end.is_ok_and(|end| end < now)
}

/// Pods may not count on its devices any more.
pub fn is_given_up(claim: &ResourceClaim, patience: Duration, now: Timestamp) -> bool {
    match is_ready(claim) {
        Err(_) => true,
        Ok(ready) => !ready && is_late(claim, patience, now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-01-01T00:10:00Z";

    #[test]
    fn devices_are_ready_when_all_conditions_say_so_and_given_up_when_they_cannot_be() {
        let condition = |kind: &str, status: &str| {
            json!({"type": kind, "status": status, "reason": "Why", "message": "so",
                "lastTransitionTime": NOW})
        };
        let (up, wired) = (condition("Up", "True"), condition("Wired", "True"));
        let broken = condition("Broken", "True");
        let soon = "2026-01-01T00:09:30Z";
        let failed = "claim c binding failed: reason=Why, message=\"so\"";
        for (conditions, since, want, gives_up) in [
            (json!([]), soon, Ok(false), false),
            (json!([up]), soon, Ok(false), false),
            (json!([up, condition("Wired", "False")]), soon, Ok(false), false),
            (json!([up, wired]), soon, Ok(true), false),
            (json!([up, wired]), "2026-01-01T00:00:00Z", Ok(true), false),
            (json!([up]), "2026-01-01T00:00:00Z", Ok(false), true),
            (json!([up, wired, broken]), soon, Err(failed.to_owned()), true),
            (json!([up, wired, condition("Broken", "False")]), soon, Ok(true), false),
        ] {
            let claim = |devices: Value| -> ResourceClaim {
                let result = json!({"request": "r", "driver": "d", "pool": "p", "device": "x",
                    "bindingConditions": ["Up", "Wired"], "bindingFailureConditions": ["Broken"]});
                serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {}, "status": {
                    "devices": devices, "allocation": {"allocationTimestamp": since,
                        "devices": {"results": [result]}}}}))
                .unwrap()
            };
            let told = json!([{"driver": "d", "pool": "p", "device": "x",
                "conditions": conditions}]);
            let claim = claim(told);
            assert_eq!(is_ready(&claim), want, "{conditions}");
            let now = NOW.parse().unwrap();
            let patience = Duration::from_secs(60);
            assert_eq!(is_given_up(&claim, patience, now), gives_up, "{conditions} {since}");
        }
    }
}
