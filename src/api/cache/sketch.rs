//! The small parts of an object: all that field selectors look into.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// What makes objects large and is in no selectable field of any built-in kind; passed over
/// wherever it stands.
const BULKY: [&str; 16] = [
    "managedFields",
    "annotations",
    "labels",
    "ownerReferences",
    "containers",
    "initContainers",
    "volumes",
    "tolerations",
    "affinity",
    "topologySpreadConstraints",
    "template",
    "conditions",
    "containerStatuses",
    "images",
    "data",
    "binaryData",
];

/// Reads an object without what is bulky; null for what is not JSON.
pub fn sketch(bytes: &[u8]) -> Value {
    let mut decoder = serde_json::Deserializer::from_slice(bytes);
    decoder.disable_recursion_limit();
    Sketch::deserialize(&mut decoder).map_or(Value::Null, |Sketch(value)| value)
}

struct Sketch(Value);

impl<'de> Deserialize<'de> for Sketch {
    fn deserialize<D: Deserializer<'de>>(decoder: D) -> Result<Self, D::Error> {
        decoder.deserialize_any(Draw).map(Self)
    }
}

struct Draw;

impl<'de> Visitor<'de> for Draw {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Sketch(item)) = items.next_element()? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = entries.next_key::<Cow<'_, str>>()? {
            if BULKY.contains(&key.as_ref()) {
                entries.next_value::<IgnoredAny>()?;
            } else {
                let Sketch(value) = entries.next_value()?;
                out.insert(key.into_owned(), value);
            }
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinds::rules::Rules;
    use serde_json::json;

    #[test]
    fn what_can_be_selected_by_is_in_the_sketch() {
        let pod = json!({"metadata": {"name": "a", "namespace": "b", "labels": {"c": "d"},
                "managedFields": [{"manager": "m"}]},
            "spec": {"nodeName": "n", "schedulerName": "s", "restartPolicy": "Always",
                "serviceAccountName": "x", "hostNetwork": true, "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [{"type": "Ready"}]}});
        let event = json!({"metadata": {"name": "e"}, "reason": "R", "type": "Normal",
            "involvedObject": {"kind": "Pod", "name": "a", "uid": "u", "fieldPath": "spec"},
            "source": {"component": "k"}});
        let job = json!({"metadata": {"name": "j"}, "status": {"succeeded": 3}});
        for (group, kind, object) in [("", "Pod", pod), ("", "Event", event), ("batch", "Job", job)]
        {
            let selectable = Rules::of(group, kind).selectable;
            let drawn = sketch(object.to_string().as_bytes());
            assert_eq!(selectable(&drawn), selectable(&object));
            assert!(drawn["metadata"].get("labels").is_none());
        }
        assert_eq!(sketch(b"{"), Value::Null);
    }
}
