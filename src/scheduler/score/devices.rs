//! Nodes where claims get what they would rather have are better: the earlier an alternative of
//! a request, the more.

use super::{Contest, scaled};
use crate::devices::Grant;

/// Alternatives of a request (resource/v1, FirstAvailableDeviceRequestMaxSize).
const ALTERNATIVES_MAX: usize = 8;

/// None for pods without claims, and where there is nothing to choose from.
pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let devices = contest.facts.devices.as_ref()?;
    let of = |grants: Vec<Grant>| grants.iter().map(of_grant).sum();
    let scores: Vec<i64> =
        contest.nodes.iter().map(|node| devices.grants(node).map_or(0, of)).collect();
    Some(scaled(scores, false))
}

fn of_grant(grant: &Grant) -> i64 {
    let allocated = grant.allocation.as_ref().and_then(|it| it.devices.as_ref());
    let results = allocated.and_then(|it| it.results.as_deref()).unwrap_or_default();
    let devices = grant.claim.spec.devices.as_ref();
    let requests = devices.and_then(|it| it.requests.as_deref()).unwrap_or_default();
    let of_request = |request: &k8s_openapi::api::resource::v1::DeviceRequest| {
        let mut all = request.first_available.iter().flatten();
        all.position(|alternative| {
            let name = format!("{}/{}", request.name, alternative.name);
            results.iter().any(|result| result.request == name)
        })
    };
    let ranks = requests.iter().filter_map(of_request);
    ranks.map(|rank| ALTERNATIVES_MAX.saturating_sub(rank) as i64).sum()
}
