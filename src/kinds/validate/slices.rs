//! Validation of the devices that drivers offer (resource.k8s.io/v1, ResourceSlice).

use serde_json::{Map, Value};

use super::checks::{Errors, NOT_NEGATIVE, form, form_if_any, immutable, must_be_one_of, quantity};
use super::devices::{EFFECTS, named, qualified, too_many};
use crate::meta::quantity::Quantity;
use crate::meta::{FieldError, name};
use crate::value::{at, items, number, text};

const DEVICES_MAX: usize = 128;
/// Of those that have taints or consume counters.
const DEVICES_WITH_MORE_MAX: usize = 64;
const ATTRIBUTES_MAX: usize = 32;
const BINDING_CONDITIONS_MAX: usize = 4;
const VALID_VALUES_MAX: usize = 10;

pub(super) fn slice(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    let choices = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    let given: Vec<&str> = choices
        .into_iter()
        .filter(|key| match &spec[*key] {
            Value::String(word) => !word.is_empty(),
            Value::Bool(on) => *on,
            Value::Null => false,
            _ => true,
        })
        .collect();
    named(text(spec, "driver"), "spec.driver", name::is_dns1123_subdomain, &mut out);
    let pool = &spec["pool"];
    if text(pool, "name").is_empty() {
        out.push(FieldError::required("spec.pool.name", ""));
    }
    if number(pool, "resourceSliceCount") <= 0 {
        let count = number(pool, "resourceSliceCount");
        let field = "spec.pool.resourceSliceCount";
        out.push(FieldError::invalid(field, count, "must be greater than zero"));
    }
    if number(pool, "generation") < 0 {
        let field = "spec.pool.generation";
        out.push(FieldError::invalid(field, number(pool, "generation"), NOT_NEGATIVE));
    }
    let all = "`nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection`";
    match given.len() {
        0 => {
            let detail = format!("exactly one of {all} is required");
            out.push(FieldError::required("spec", &detail));
        }
        1 => {}
        _ => {
            let detail = format!("exactly one of {all} is required, but multiple fields are set");
            let words: Vec<String> = given.iter().map(|key| format!("`{key}`")).collect();
            out.push(FieldError::invalid("spec", format!("{{{}}}", words.join(", ")), &detail));
        }
    }
    let devices = items(spec, "devices");
    let has_more =
        |it: &Value| !items(it, "taints").is_empty() || !items(it, "consumesCounters").is_empty();
    let most = match devices.iter().any(has_more) {
        true => DEVICES_WITH_MORE_MAX,
        false => DEVICES_MAX,
    };
    too_many(devices.len(), most, "spec.devices", &mut out);
    let mut names: Vec<&str> = Vec::new();
    for (index, it) in devices.iter().enumerate() {
        let field = format!("spec.devices[{index}]");
        device(it, &field, &mut out);
        let own = text(it, "name");
        if names.contains(&own) {
            out.push(FieldError::duplicate(&field, own));
        }
        names.push(own);
    }
    out
}

/// What a slice may not change once it is there.
pub(super) fn slice_update(new: &Value, old: &Value) -> Errors {
    let mut out = slice(new);
    let (new, old) = (at(new, "spec"), at(old, "spec"));
    immutable(&new["pool"]["name"], &old["pool"]["name"], "spec.pool.name", &mut out);
    for key in ["driver", "nodeName"] {
        immutable(&new[key], &old[key], &format!("spec.{key}"), &mut out);
    }
    out
}

fn device(device: &Value, field: &str, out: &mut Errors) {
    named(text(device, "name"), &format!("{field}.name"), name::is_dns1123_label, out);
    let attributes = device["attributes"].as_object();
    let capacities = device["capacity"].as_object();
    for (name, attribute) in attributes.into_iter().flatten() {
        let field = format!("{field}.attributes[{name}]");
        qualified(name, &field, out);
        let kinds = ["bool", "int", "string", "version"];
        match kinds.into_iter().filter(|key| !attribute[*key].is_null()).count() {
            0 => out.push(FieldError::required(field, "exactly one value must be specified")),
            1 => {}
            _ => {
                let detail = "exactly one value must be specified";
                out.push(FieldError::invalid(field, attribute.clone(), detail));
            }
        }
    }
    let is_shared = device["allowMultipleAllocations"] == true;
    for (name, capacity) in capacities.into_iter().flatten() {
        let field = format!("{field}.capacity[{name}]");
        qualified(name, &field, out);
        let policy = &capacity["requestPolicy"];
        if policy.is_object() {
            let field = format!("{field}.requestPolicy");
            match is_shared {
                true => request_policy(policy, &capacity["value"], &field, out),
                false => {
                    let detail = "allowMultipleAllocations must be true";
                    out.push(FieldError::forbidden(field, detail));
                }
            }
        }
    }
    let count = attributes.map_or(0, Map::len) + capacities.map_or(0, Map::len);
    if count > ATTRIBUTES_MAX {
        let detail = "the total number of attributes and capacities must not exceed 32";
        out.push(FieldError::invalid(field, count, detail));
    }
    for (index, taint) in items(device, "taints").iter().enumerate() {
        let field = format!("{field}.taints[{index}]");
        named(text(taint, "key"), &format!("{field}.key"), name::is_qualified, out);
        form_if_any(text(taint, "value"), &format!("{field}.value"), name::is_label_value, out);
        match text(taint, "effect") {
            "" => out.push(FieldError::required(format!("{field}.effect"), "")),
            _ => must_be_one_of(&taint["effect"], &format!("{field}.effect"), &EFFECTS, out),
        }
    }
    binding(device, field, out);
}

/// What has to be said of a device before pods that use it are bound.
fn binding(device: &Value, field: &str, out: &mut Errors) {
    let lists = ["bindingConditions", "bindingFailureConditions"];
    for (key, other) in [(lists[0], lists[1]), (lists[1], lists[0])] {
        let (all, at_key) = (items(device, key), format!("{field}.{key}"));
        too_many(all.len(), BINDING_CONDITIONS_MAX, &at_key, out);
        for (index, condition) in all.iter().enumerate() {
            let condition = condition.as_str().unwrap_or_default();
            form(condition, &format!("{at_key}[{index}]"), name::is_qualified, out);
        }
        if all.is_empty() && !items(device, other).is_empty() {
            let detail = format!("{key} are required to use {other}");
            out.push(FieldError::required(at_key, &detail));
        }
    }
}

/// How requests of a shared device's capacity are rounded.
fn request_policy(policy: &Value, value: &Value, field: &str, out: &mut Errors) {
    let range = &policy["validRange"];
    let values = items(policy, "validValues");
    let default = quantity(&policy["default"]);
    let most = quantity(value).unwrap_or_default();
    if default.is_none() && (range.is_object() || !values.is_empty()) {
        let detail = "required when validRange or validValues is defined";
        out.push(FieldError::required(format!("{field}.default"), detail));
    }
    if range.is_object() && !values.is_empty() {
        let detail = "exactly one policy can be specified, cannot specify `validValues` and \
                      `validRange` at the same time";
        out.push(FieldError::forbidden(field, detail));
    }
    let mut larger = |amount: Option<Quantity>, value: &Value, field: String| {
        if amount.is_some_and(|amount| amount > most) {
            let detail = format!("value is larger than capacity value {most}");
            out.push(FieldError::invalid(field, value.clone(), &detail));
        }
    };
    larger(default, &policy["default"], format!("{field}.default"));
    for key in ["min", "max"] {
        larger(quantity(&range[key]), &range[key], format!("{field}.validRange.{key}"));
    }
    for (index, it) in values.iter().enumerate() {
        larger(quantity(it), it, format!("{field}.validValues[{index}]"));
    }
    too_many(values.len(), VALID_VALUES_MAX, &format!("{field}.validValues"), out);
    let amounts: Vec<Quantity> = values.iter().filter_map(quantity).collect();
    if !amounts.is_sorted() {
        let field = format!("{field}.validValues");
        let detail = "values must be sorted in ascending order";
        out.push(FieldError::invalid(field, policy["validValues"].clone(), detail));
    }
    if let Some(default) = default
        && !amounts.is_empty()
        && !amounts.contains(&default)
    {
        let field = format!("{field}.default");
        let detail = "default value is not valid according to the requestPolicy";
        out.push(FieldError::invalid(field, policy["default"].clone(), detail));
    }
    if range.is_object() {
        let field = format!("{field}.validRange");
        let least = quantity(&range["min"]);
        if least.is_none() {
            out.push(FieldError::required(format!("{field}.min"), ""));
        }
        if let (Some(least), Some(most)) = (least, quantity(&range["max"]))
            && least > most
        {
            let detail = format!("min is larger than max: {most}");
            out.push(FieldError::invalid(format!("{field}.min"), range["min"].clone(), &detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(errors: Vec<FieldError>) -> Vec<String> {
        errors.iter().map(|error| error.field.clone()).collect()
    }

    #[test]
    fn devices_say_how_they_are_shared_and_when_they_are_ready() {
        let slice = |device: Value| {
            let mut device = device;
            device["name"] = "x".into();
            said(slice(&json!({"spec": {"driver": "d.io", "nodeName": "n", "devices": [device],
                "pool": {"name": "n", "resourceSliceCount": 1}}})))
        };
        let policy = |policy: Value| {
            json!({"allowMultipleAllocations": true,
                "capacity": {"memory": {"value": "8Gi", "requestPolicy": policy}}})
        };
        let at = "spec.devices[0].capacity[memory].requestPolicy";
        let range = json!({"default": "1Gi", "validRange": {"min": "1Gi", "max": "4Gi"}});
        for (device, fields) in [
            (policy(range.clone()), vec![]),
            (policy(json!({"default": "9Gi"})), vec![format!("{at}.default")]),
            (policy(json!({"validValues": ["1Gi"]})), vec![format!("{at}.default")]),
            (
                policy(json!({"default": "1Gi", "validValues": ["2Gi", "1Gi"]})),
                vec![format!("{at}.validValues")],
            ),
            (
                policy(json!({"default": "1Gi", "validRange": {"min": "5Gi", "max": "4Gi"}})),
                vec![format!("{at}.validRange.min")],
            ),
            (
                json!({"capacity": {"memory": {"value": "8Gi", "requestPolicy": range}}}),
                vec![at.to_owned()],
            ),
            (
                json!({"bindingConditions": ["d.io/up"],
                "bindingFailureConditions": ["d.io/down"]}),
                vec![],
            ),
            (
                json!({"bindingConditions": ["d.io/up"]}),
                vec!["spec.devices[0].bindingFailureConditions".to_owned()],
            ),
            (
                json!({"attributes": {"a-b": {"int": 1}}}),
                vec!["spec.devices[0].attributes[a-b]".to_owned()],
            ),
            (
                json!({"taints": [{"key": "k", "effect": "Never"}]}),
                vec!["spec.devices[0].taints[0].effect".to_owned()],
            ),
        ] {
            assert_eq!(slice(device.clone()), fields, "{device}");
        }
    }
}
