//! Who owns the number of replicas: the record of an object, as its `scale` shows it and
//! takes it back.

use serde_json::Value;

use super::field_set::{FieldSet, Step};
use super::managed::{Entry, Managed, Manager, Operation};

const SCALE: &str = "autoscaling/v1";

fn replicas() -> FieldSet {
    let mut set = FieldSet::default();
    set.insert(&[Step::field("spec"), Step::field("replicas")]);
    set
}

fn owns(set: &FieldSet) -> bool {
    set.below(&Step::field("spec")).is_some_and(|spec| spec.has(&Step::field("replicas")))
}

/// Writes the owners of an object's replicas into its scale.
pub fn show_owners(parent: &Value, scale: &mut Value) {
    let managed = Managed::decode(parent).unwrap_or_default();
    let entries = managed.0.into_iter().filter(|entry| owns(&entry.set)).map(|entry| Entry {
        manager: Manager { api_version: SCALE.into(), ..entry.manager },
        time: entry.time,
        set: replicas(),
    });
    Managed(entries.collect()).encode(scale);
}

/// Takes the owners of a changed scale over into its object: who is not among them any
/// more has lost the replicas, who is new has them in the object's version.
pub fn take_owners(scale: &Value, parent: &mut Value, api_version: &str) {
    let before = Managed::decode(parent).unwrap_or_default();
    let mut owners = Managed::decode(scale).unwrap_or_default();
    owners.0.retain(|entry| owns(&entry.set));
    let same = |a: &Manager, b: &Manager| {
        a.name == b.name && a.operation == b.operation && a.subresource == b.subresource
    };
    let mut out = Managed::default();
    for mut entry in before.0 {
        if owns(&entry.set) {
            match owners.0.iter().position(|owner| same(&owner.manager, &entry.manager)) {
                Some(at) => drop(owners.0.remove(at)),
                None => entry.set = entry.set.difference(&replicas()),
            }
        }
        if !entry.set.is_empty() {
            out.0.push(entry);
        }
    }
    for owner in owners.0 {
        let manager = Manager { api_version: api_version.into(), ..owner.manager };
        let set = match out.find(&manager) {
            Some(there) => there.set.union(&replicas()),
            None => replicas(),
        };
        // Upstream knows no time for who comes to own by the scale.
        let time = match (out.find(&manager), manager.operation) {
            (Some(there), _) => there.time.clone(),
            (None, Operation::Apply | Operation::Update) => None,
        };
        out.put(Entry { manager, time, set });
    }
    out.encode(parent);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(name: &str, operation: &str, subresource: &str, fields: Value) -> Value {
        let mut out = json!({"manager": name, "operation": operation, "apiVersion": "apps/v1",
            "time": "2024-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields});
        if !subresource.is_empty() {
            out["subresource"] = subresource.into();
        }
        out
    }

    #[test]
    fn replicas_go_over_to_who_scales() {
        let fields = json!({"f:spec": {"f:replicas": {}, "f:paused": {}}});
        let mut parent = json!({"metadata": {"managedFields": [entry("a", "Update", "", fields)]}});
        let mut scale = json!({"metadata": {}});
        show_owners(&parent, &mut scale);
        assert_eq!(scale["metadata"]["managedFields"][0]["apiVersion"], SCALE);
        let only = json!({"f:spec": {"f:replicas": {}}});
        scale["metadata"]["managedFields"] = json!([entry("b", "Update", "scale", only.clone())]);
        take_owners(&scale, &mut parent, "apps/v1");
        let managed = &parent["metadata"]["managedFields"];
        assert_eq!(managed[1]["fieldsV1"], json!({"f:spec": {"f:paused": {}}}));
        assert_eq!(managed[0]["fieldsV1"], only);
        assert_eq!(managed[0].get("time"), None);
    }
}
