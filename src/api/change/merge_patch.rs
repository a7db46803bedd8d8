//! JSON merge patch (RFC 7386): null removes, objects merge, everything else replaces.

use serde_json::{Map, Value};

use super::PatchError;

/// Applies a decoded merge patch, which must be an object.
pub fn merge_patch(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Decode(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            json_kind(patch)
        )));
    }
    merge(object, patch);
    Ok(())
}

pub(super) fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.shift_remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn null_removes_and_nested_nulls_do_not_stay() {
        let mut object = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        merge_patch(&mut object, &json!({"a": {"b": null}, "d": [2], "e": {"f": null}})).unwrap();
        assert_eq!(object, json!({"a": {"c": 2}, "d": [2], "e": {}}));
        let error = merge_patch(&mut object, &json!([1])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "error decoding patch: json: cannot unmarshal array into Go value of type \
             map[string]interface {}"
        );
    }
}
