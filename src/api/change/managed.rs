//! `metadata.managedFields`: reading, writing, and the fields no manager is recorded for.

use serde_json::{Map, Value, json};

use super::field_set::FieldSet;

/// More `Update` entries than this are merged into one, oldest first.
const UPDATE_MANAGERS_MAX: usize = 10;
/// The manager old entries are merged into.
const OLDEST: &str = "ancient-changes";

/// Fields the server itself owns.
const STRIPPED: [&[&str]; 11] = [
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

/// Who wrote fields: what tells two entries apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    pub name: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
}

impl Manager {
    /// Appliers are the same whatever version they apply in.
    pub fn is(&self, other: &Self) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// `"name" with subresource "status" using apps/v1`.
    pub fn describe(&self, time: Option<&str>) -> String {
        let mut out = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            out.push_str(&format!(" using {}", self.api_version));
            if let Some(time) = time {
                out.push_str(&format!(" at {time}"));
            }
        }
        out
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub manager: Manager,
    pub time: Option<String>,
    pub set: FieldSet,
}

/// The decoded entries of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managed(pub Vec<Entry>);

impl Managed {
    /// Reads `metadata.managedFields`; `None` if an entry is malformed.
    pub fn decode(object: &Value) -> Option<Self> {
        Self::read(object.get("metadata")?.get("managedFields").unwrap_or(&Value::Null))
    }

    /// Reads the value of the field.
    pub fn read(list: &Value) -> Option<Self> {
        let mut out = Self::default();
        for entry in list.as_array().into_iter().flatten() {
            let word = |key| entry.get(key).and_then(Value::as_str).unwrap_or_default();
            let operation = match word("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            if word("fieldsType") != "FieldsV1" {
                return None;
            }
            let set = match entry.get("fieldsV1") {
                Some(fields) => FieldSet::from_fields_v1(fields.as_object()?)?,
                None => FieldSet::default(),
            };
            out.put(Entry {
                manager: Manager {
                    name: word("manager").to_owned(),
                    operation,
                    api_version: word("apiVersion").to_owned(),
                    subresource: word("subresource").to_owned(),
                },
                time: entry.get("time").and_then(Value::as_str).map(str::to_owned),
                set,
            });
        }
        Some(out)
    }

    /// Whether a client asks to drop all entries by sending a single empty one.
    pub fn is_reset(list: &Value) -> bool {
        list.as_array().is_some_and(|list| match list.as_slice() {
            [only] => only
                .as_object()
                .is_some_and(|entry| entry.values().all(|v| v.is_null() || v.as_str() == Some(""))),
            _ => false,
        })
    }

    pub fn find(&self, manager: &Manager) -> Option<&Entry> {
        self.0.iter().find(|e| e.manager.is(manager))
    }

    /// Adds an entry or replaces the manager's.
    pub fn put(&mut self, entry: Entry) {
        match self.0.iter_mut().find(|e| e.manager.is(&entry.manager)) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
    }

    /// Takes the server's own fields from a manager, and the manager if nothing is left.
    pub(super) fn strip(&mut self, manager: &Manager) {
        if let Some(entry) = self.0.iter_mut().find(|e| e.manager.is(manager)) {
            strip(&mut entry.set);
        }
        self.0.retain(|e| !e.set.is_empty());
    }

    /// Merges the oldest update entries when there are too many.
    pub(super) fn cap(&mut self) {
        let updates = |e: &Entry| {
            e.manager.operation == Operation::Update && e.manager.subresource.is_empty()
        };
        let mut order: Vec<usize> = (0..self.0.len()).filter(|&i| updates(&self.0[i])).collect();
        if order.len() <= UPDATE_MANAGERS_MAX {
            return;
        }
        order.sort_by(|&a, &b| self.0[a].time.cmp(&self.0[b].time));
        let surplus = order.len() - UPDATE_MANAGERS_MAX;
        let mut oldest: Vec<usize> = order.into_iter().take(surplus + 1).collect();
        oldest.sort_unstable_by(|a, b| b.cmp(a));
        let merged: Vec<Entry> = oldest.into_iter().map(|at| self.0.remove(at)).collect();
        for entry in merged {
            let manager = Manager { name: OLDEST.into(), ..entry.manager };
            let (set, time) = match self.find(&manager) {
                Some(old) => (old.set.union(&entry.set), old.time.clone().max(entry.time)),
                None => (entry.set, entry.time),
            };
            self.put(Entry { manager, time, set });
        }
    }

    /// Writes the entries into the object, sorted as upstream sorts them.
    pub fn encode(mut self, object: &mut Value) {
        fn key(entry: &Entry) -> (Operation, Option<&str>, &str, &str, &str) {
            let Manager { name, operation, api_version, subresource } = &entry.manager;
            (*operation, entry.time.as_deref(), name, api_version, subresource)
        }
        self.0.sort_by(|a, b| key(a).cmp(&key(b)));
        let list: Vec<Value> = self.0.iter().map(Entry::to_value).collect();
        let Some(object) = object.as_object_mut() else { return };
        let metadata = object.entry("metadata").or_insert_with(|| json!({}));
        let Some(metadata) = metadata.as_object_mut() else { return };
        metadata.shift_remove("managedFields");
        if !list.is_empty() {
            metadata.insert("managedFields".into(), Value::Array(list));
        }
    }
}

impl Entry {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        let manager = &self.manager;
        if !manager.name.is_empty() {
            out.insert("manager".into(), json!(manager.name));
        }
        let operation = match manager.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        out.insert("operation".into(), json!(operation));
        out.insert("apiVersion".into(), json!(manager.api_version));
        if let Some(time) = &self.time {
            out.insert("time".into(), json!(time));
        }
        out.insert("fieldsType".into(), json!("FieldsV1"));
        out.insert("fieldsV1".into(), self.set.to_fields_v1());
        if !manager.subresource.is_empty() {
            out.insert("subresource".into(), json!(manager.subresource));
        }
        Value::Object(out)
    }
}

pub(super) fn strip(set: &mut FieldSet) {
    for path in STRIPPED {
        set.remove_below(path);
    }
    set.remove("metadata");
}

/// Takes `metadata.managedFields` out; null where there is none.
pub(super) fn take_managed(object: &mut Value) -> Value {
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
    metadata.and_then(|it| it.shift_remove("managedFields")).unwrap_or_default()
}

/// A copy that lacks `metadata.managedFields`.
pub(super) fn without_managed(object: &Value) -> Value {
    let mut out = object.clone();
    take_managed(&mut out);
    out
}
