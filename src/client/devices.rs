//! Questions about devices that several components answer alike (resource/v1).

use k8s_openapi::api::resource::v1::{DeviceTaint, DeviceToleration};

/// Whether a toleration is for a taint: an empty key or effect is for all of them.
pub fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let said = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (said(&toleration.effect), said(&toleration.key));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match said(&toleration.operator).as_str() {
            "Exists" => true,
            "" | "Equal" => said(&toleration.value) == said(&taint.value),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_toleration_is_for_what_it_names() {
        let taint = json!({"key": "sick", "value": "very", "effect": "NoExecute"});
        let taint: DeviceTaint = serde_json::from_value(taint).unwrap();
        for (toleration, is) in [
            (json!({"key": "sick", "operator": "Equal", "value": "very"}), true),
            (json!({"key": "sick", "value": "very"}), true),
            (json!({"key": "sick", "operator": "Equal", "value": "bit"}), false),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "dead", "operator": "Exists"}), false),
            (json!({"operator": "Exists", "effect": "NoSchedule"}), false),
            (json!({"key": "sick", "operator": "Almost", "value": "very"}), false),
        ] {
            let read: DeviceToleration = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates(&read, &taint), is, "{toleration}");
        }
    }
}
