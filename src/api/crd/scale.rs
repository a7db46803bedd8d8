//! The scale of a custom object, read and written at the paths its definition names.

use serde_json::{Map, Value, json};

use super::instance::{at_path, replicas};
use super::version::Scale;
use crate::error::{ApiError, Result};

/// `autoscaling/v1 Scale` of an object, and whether it says how many replicas it wants.
///
/// # Errors
/// 500 where there is something else than a number.
pub fn of(object: &Value, scale: &Scale) -> Result<(Value, bool)> {
    let metadata = &object["metadata"];
    let failed = |said: String| ApiError::new(500, "", said);
    let wanted = replicas(object, &scale.spec_replicas).map_err(failed)?;
    let is = replicas(object, &scale.status_replicas).map_err(failed)?.unwrap_or(0);
    let mut out = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": metadata["name"]},
        "spec": {}, "status": {"replicas": is},
    });
    for field in ["namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(held) = metadata.get(field) {
            out["metadata"][field] = held.clone();
        }
    }
    if let Some(wanted) = wanted.filter(|n| *n != 0) {
        out["spec"]["replicas"] = wanted.into();
    }
    if let Some(path) = &scale.label_selector
        && let Some(Value::String(selector)) = at_path(object, path)
        && !selector.is_empty()
    {
        out["status"]["selector"] = selector.as_str().into();
    }
    Ok((out, wanted.is_some()))
}

/// # Errors
/// 500 where the object does not say how many replicas it wants.
pub fn read(object: &Value, scale: &Scale) -> Result<Value> {
    match of(object, scale)? {
        (out, true) => Ok(out),
        (_, false) => Err(ApiError::internal(format!(
            "the spec replicas field {:?} does not exist",
            scale.spec_replicas
        ))),
    }
}

/// The object with another number of replicas.
pub fn with_replicas(object: &Value, scale: &Scale, replicas: i64) -> Value {
    let mut new = object.clone();
    let mut place = &mut new;
    for step in scale.spec_replicas.trim_start_matches('.').split('.') {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[step];
    }
    *place = replicas.into();
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_and_written_where_the_definition_says() {
        let scale = Scale {
            spec_replicas: ".spec.deep.count".into(),
            status_replicas: ".status.count".into(),
            label_selector: Some(".status.selector".into()),
        };
        let object = json!({"metadata": {"name": "n"}, "status": {"count": 2, "selector": "a=b"}});
        assert!(read(&object, &scale).is_err());
        let new = with_replicas(&object, &scale, 3);
        let read = read(&new, &scale).unwrap();
        assert_eq!(read["spec"]["replicas"], 3);
        assert_eq!(read["status"], json!({"replicas": 2, "selector": "a=b"}));
        let odd = json!({"spec": {"deep": {"count": "x"}}});
        assert_eq!(of(&odd, &scale).unwrap_err().code, 500);
    }
}
