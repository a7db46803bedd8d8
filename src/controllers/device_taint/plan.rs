//! When a claim's users have to go. Pure.

use std::sync::Arc;

use client::devices::tolerates;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, ResourceClaim, ResourceSlice};

const EFFECT: &str = "NoExecute";

pub fn pool_of(slice: &ResourceSlice) -> String {
    format!("{}/{}", slice.spec.driver, slice.spec.pool.name)
}

fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    devices.and_then(|devices| devices.results.as_ref()).into_iter().flatten()
}

/// The pools that the claim has devices of, each once.
pub fn pools_of(claim: &ResourceClaim) -> Vec<String> {
    let mut pools: Vec<String> =
        results(claim).map(|result| format!("{}/{}", result.driver, result.pool)).collect();
    pools.sort();
    pools.dedup();
    pools
}

pub fn is_tainted(slice: &ResourceSlice) -> bool {
    let mut devices = slice.spec.devices.iter().flatten();
    devices.any(|device| device.taints.iter().flatten().any(|taint| taint.effect == EFFECT))
}

/// When the pods of the claim have to go; None: never. `slices` gives those of a pool.
pub fn ends_at(
    claim: &ResourceClaim,
    slices: &dyn Fn(&str) -> Vec<Arc<ResourceSlice>>,
) -> Option<Timestamp> {
    results(claim).filter_map(|result| device_ends_at(result, slices)).min()
}

fn device_ends_at(
    result: &DeviceRequestAllocationResult,
    slices: &dyn Fn(&str) -> Vec<Arc<ResourceSlice>>,
) -> Option<Timestamp> {
    let pool = slices(&format!("{}/{}", result.driver, result.pool));
    // Slices of an older generation say nothing any more.
    let newest = pool.iter().map(|slice| slice.spec.pool.generation).max()?;
    let current = pool.iter().filter(|slice| slice.spec.pool.generation == newest);
    let mut devices = current.flat_map(|slice| slice.spec.devices.iter().flatten());
    let device = devices.find(|device| device.name == result.device)?;
    let taints = device.taints.iter().flatten().filter(|taint| taint.effect == EFFECT);
    let ends = taints.filter_map(|taint| {
        let begun = taint.time_added.as_ref().map_or_else(base::time::now, |time| time.0);
        let tolerations = result.tolerations.iter().flatten();
        let tolerated: Vec<Option<i64>> = tolerations
            .filter(|toleration| tolerates(toleration, taint))
            .map(|toleration| toleration.toleration_seconds)
            .collect();
        if tolerated.is_empty() {
            return Some(begun);
        }
        // The shortest of those that end counts.
        let seconds = tolerated.into_iter().flatten().min()?.max(0);
        begun.checked_add(SignedDuration::from_secs(seconds)).ok()
    });
    ends.min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slice(generation: i64, taints: Value) -> Arc<ResourceSlice> {
        let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "d.example",
            "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1},
            "devices": [{"name": "one", "taints": taints}, {"name": "two"}]}});
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    fn claim(device: &str, tolerations: Value) -> ResourceClaim {
        let result = json!({"driver": "d.example", "pool": "p", "device": device,
            "request": "r", "tolerations": tolerations});
        let claim = json!({"metadata": {"name": "c"}, "spec": {},
            "status": {"allocation": {"devices": {"results": [result]}}}});
        serde_json::from_value(claim).unwrap()
    }

    #[test]
    fn pods_go_when_what_they_tolerate_is_over() {
        let taint = |key: &str, effect: &str| {
            json!({"key": key, "value": "v", "effect": effect,
                "timeAdded": "2026-01-01T12:00:00Z"})
        };
        let sick = || json!([taint("sick", "NoExecute")]);
        let for_a_minute = json!([{"key": "sick", "operator": "Exists", "tolerationSeconds": 60}]);
        let for_ever = json!([{"key": "sick", "operator": "Equal", "value": "v"}]);
        let both = json!([for_a_minute[0], for_ever[0]]);
        for (taints, device, tolerations, wanted) in [
            (sick(), "one", json!([]), Some("2026-01-01T12:00:00Z")),
            (sick(), "two", json!([]), None),
            (json!([taint("sick", "NoSchedule")]), "one", json!([]), None),
            (sick(), "one", for_a_minute, Some("2026-01-01T12:01:00Z")),
            (sick(), "one", for_ever.clone(), None),
            (sick(), "one", both, Some("2026-01-01T12:01:00Z")),
            (
                json!([taint("sick", "NoExecute"), taint("dead", "NoExecute")]),
                "one",
                for_ever,
                Some("2026-01-01T12:00:00Z"),
            ),
        ] {
            let slices = [slice(2, taints.clone()), slice(1, sick())];
            let claim = claim(device, tolerations);
            let ends = ends_at(&claim, &|pool| {
                assert_eq!(pool, "d.example/p");
                slices.to_vec()
            });
            let wanted = wanted.map(|at| at.parse::<Timestamp>().unwrap());
            assert_eq!(ends, wanted, "{taints} {device}");
        }
        assert!(is_tainted(&slice(1, sick())));
        assert!(!is_tainted(&slice(1, json!([taint("sick", "NoSchedule")]))));
        assert_eq!(pools_of(&claim("one", json!([]))), ["d.example/p"]);
    }
}
