//! How much a request takes of a device's capacity (DRAConsumableCapacity).
//!
//! Pure. Of devices that many claims may have, what their requests take is counted together;
//! others only have to be large enough.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{CapacityRequestPolicy, CapacityRequestPolicyRange, Device};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use kinds::meta::quantity::Quantity;

/// What is taken, by the name of the capacity.
pub type Consumed = BTreeMap<String, Quantity>;

pub fn read(quantity: &Written) -> Quantity {
    quantity.0.parse().unwrap_or_default()
}

/// Adds what is taken to what was.
pub fn add(to: &mut Consumed, more: &Consumed) {
    for (name, value) in more {
        let sum = to.entry(name.clone()).or_default();
        *sum = sum.plus(*value);
    }
}

pub fn subtract(from: &mut Consumed, less: &Consumed) {
    for (name, value) in less {
        let sum = from.entry(name.clone()).or_default();
        *sum = sum.minus(*value);
    }
}

/// What a request takes of each capacity of a device; None where the device has not what is
/// asked for, or its policy does not give that much.
pub fn taken(device: &Device, asked: &[(&str, Quantity)]) -> Option<Consumed> {
    let held = device.capacity.as_ref();
    if !asked.iter().all(|(name, _)| held.is_some_and(|held| held.contains_key(*name))) {
        return None;
    }
    let mut out = Consumed::new();
    for (name, capacity) in held.into_iter().flatten() {
        let policy = capacity.request_policy.as_ref();
        let asked = asked.iter().find(|(asked, _)| asked == name).map(|(_, value)| *value);
        let takes = match (asked, policy) {
            (Some(asked), Some(policy)) => rounded(asked, policy),
            (Some(asked), None) => asked,
            (None, Some(policy)) => policy.default.as_ref().map_or(read(&capacity.value), read),
            (None, None) => read(&capacity.value),
        };
        if policy.is_some_and(|policy| !allows(policy, takes)) {
            return None;
        }
        out.insert(name.clone(), takes);
    }
    Some(out)
}

/// Whether a device has room for what is taken beside the rest.
pub fn suffices(device: &Device, taken: &Consumed, others: [Option<&Consumed>; 2]) -> bool {
    device.capacity.iter().flatten().all(|(name, capacity)| {
        let of = |consumed: &Consumed| consumed.get(name).copied().unwrap_or_default();
        let rest = others.into_iter().flatten().map(of).fold(Quantity::default(), Quantity::plus);
        of(taken).plus(rest) <= read(&capacity.value)
    })
}

/// Up to what the policy can give; what is beyond that stays as it is.
fn rounded(asked: Quantity, policy: &CapacityRequestPolicy) -> Quantity {
    if let Some(range) = &policy.valid_range {
        return in_range(asked, range);
    }
    let valid = policy.valid_values.iter().flatten().map(read);
    valid.into_iter().find(|value| asked <= *value).unwrap_or(asked)
}

fn in_range(asked: Quantity, range: &CapacityRequestPolicyRange) -> Quantity {
    let least = read(&range.min);
    if asked < least {
        return least;
    }
    match range.step.as_ref().map(|step| read(step).value()).filter(|step| *step > 0) {
        None => asked,
        Some(step) => {
            // Whoever asks may ask for as much as a number holds.
            let (asked, least, step) =
                (i128::from(asked.value()), i128::from(least.value()), i128::from(step));
            let up = least + (asked - least + step - 1) / step * step;
            Quantity::from_bytes(i64::try_from(up).unwrap_or(i64::MAX))
        }
    }
}

fn allows(policy: &CapacityRequestPolicy, takes: Quantity) -> bool {
    if policy.default.as_ref().is_some_and(|default| read(default) == takes) {
        return true;
    }
    if let Some(range) = &policy.valid_range {
        let is_within = range.max.as_ref().is_none_or(|most| takes <= read(most));
        let step = range.step.as_ref().map(|step| read(step).value()).filter(|step| *step > 0);
        let above = i128::from(takes.value()) - i128::from(read(&range.min).value());
        let on_step = |step: i64| above % i128::from(step) == 0;
        return is_within && step.is_none_or(on_step);
    }
    match policy.valid_values.as_deref() {
        None | Some([]) => true,
        Some(valid) => valid.iter().any(|value| read(value) == takes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn policies_round_requests_up_to_what_they_give() {
        let range = json!({"default": "1Gi", "validRange": {"min": "2Gi", "step": "2Gi",
            "max": "8Gi"}});
        let open = json!({"default": "2Gi", "validRange": {"min": "2Gi"}});
        let values = json!({"default": "1Gi", "validValues": ["1Gi", "4Gi", "8Gi"]});
        for (policy, asked, want) in [
            (Value::Null, None, Some("16Gi")),
            (Value::Null, Some("3Gi"), Some("3Gi")),
            (range.clone(), None, Some("1Gi")),
            (range.clone(), Some("1"), Some("2Gi")),
            (range.clone(), Some("2Gi"), Some("2Gi")),
            (range.clone(), Some("3Gi"), Some("4Gi")),
            (range.clone(), Some("9Gi"), None),
            (range, Some("9223372036854775807"), None),
            (open.clone(), Some("2500Mi"), Some("2500Mi")),
            (open, Some("32Gi"), Some("32Gi")),
            (values.clone(), None, Some("1Gi")),
            (values.clone(), Some("2Gi"), Some("4Gi")),
            (values.clone(), Some("8Gi"), Some("8Gi")),
            (values, Some("9Gi"), None),
        ] {
            let device: Device = serde_json::from_value(json!({"name": "d", "capacity":
                {"memory": {"value": "16Gi", "requestPolicy": policy}}}))
            .unwrap();
            let asked: Vec<(&str, Quantity)> =
                asked.iter().map(|it| ("memory", it.parse().unwrap())).collect();
            let found = taken(&device, &asked).map(|taken| taken["memory"].to_string());
            assert_eq!(found.as_deref(), want, "{policy} {asked:?}");
        }
        let plain: Device = serde_json::from_value(json!({"name": "d"})).unwrap();
        assert!(taken(&plain, &[]).is_some_and(|taken| taken.is_empty()));
        assert!(taken(&plain, &[("memory", Quantity::from_units(1))]).is_none());
    }
}
