//! What a claim of devices says of those that it has (DRAResourceClaimDeviceStatus).

use serde_json::Value;

use crate::value::{items, text};

/// Driver, pool, device, and which part of it.
fn id(entry: &Value) -> [&str; 4] {
    ["driver", "pool", "device", "shareID"].map(|key| text(entry, key))
}

const ALLOCATED: &str = "status.allocation.devices.results";

/// Devices that the claim has no more are told of no more.
pub fn forget_deallocated(new: &mut Value, old: &Value) {
    let kept: Vec<[String; 4]> =
        items(new, ALLOCATED).iter().map(|it| id(it).map(str::to_owned)).collect();
    let gone: Vec<[&str; 4]> = items(old, ALLOCATED)
        .iter()
        .map(id)
        .filter(|it| !kept.iter().any(|kept| kept == it))
        .collect();
    if gone.is_empty() {
        return;
    }
    let Some(status) = new.get_mut("status").and_then(Value::as_object_mut) else { return };
    let Some(told) = status.get_mut("devices").and_then(Value::as_array_mut) else { return };
    told.retain(|entry| !gone.contains(&id(entry)));
    if told.is_empty() {
        status.shift_remove("devices");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_given_back_is_told_of_no_more() {
        let device = |name: &str| json!({"driver": "d", "pool": "p", "device": name});
        let claim = |has: &[&str], told: &[&str]| {
            let all = |names: &[&str]| names.iter().map(|name| device(name)).collect::<Vec<_>>();
            let mut out = json!({"status": {"devices": all(told)}});
            if !has.is_empty() {
                out["status"]["allocation"] = json!({"devices": {"results": all(has)}});
            }
            out
        };
        for (old, new, want) in [
            (claim(&["a", "b"], &["a"]), claim(&["a", "b"], &["a", "b"]), json!(["a", "b"])),
            (claim(&["a", "b"], &["a", "b"]), claim(&["a"], &["a", "b"]), json!(["a"])),
            (claim(&["a"], &["a"]), claim(&[], &["a"]), json!(null)),
        ] {
            let mut new = new;
            forget_deallocated(&mut new, &old);
            let names: Option<Vec<&str>> = new["status"]["devices"]
                .as_array()
                .map(|all| all.iter().map(|it| text(it, "device")).collect());
            assert_eq!(json!(names), want, "{new}");
        }
    }
}
