//! Sets of field paths, as `managedFields` hold them (FieldsV1).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::scheme::{Type, Typed};

/// One step of a path in its written form: `f:name`, `k:{"name":"c"}`, `v:"x"` or `i:0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step(Box<str>);

impl Step {
    pub fn field(name: &str) -> Self {
        Self(format!("f:{name}").into())
    }

    /// A set element.
    pub fn value(value: &Value) -> Self {
        Self(format!("v:{value}").into())
    }

    /// An element of a keyed list.
    pub fn keys(mut keys: Vec<(&str, Value)>) -> Self {
        keys.sort_by(|a, b| a.0.cmp(b.0));
        let map: Map<String, Value> = keys.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        Self(format!("k:{}", Value::Object(map)).into())
    }

    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "f" => Some(Self(text.into())),
            "i" => rest.parse::<i64>().ok().map(|_| Self(text.into())),
            "v" => serde_json::from_str(rest).ok().map(|v: Value| Self::value(&v)),
            "k" => {
                let map: Map<String, Value> = serde_json::from_str(rest).ok()?;
                Some(Self::keys(map.iter().map(|(k, v)| (k.as_str(), v.clone())).collect()))
            }
            _ => None,
        }
    }

    pub fn field_name(&self) -> Option<&str> {
        self.0.strip_prefix("f:")
    }

    fn is_key(&self) -> bool {
        self.0.starts_with("k:")
    }

    /// The form in messages: `.name`, `[name="c"]`, `[="x"]`, `[0]`.
    pub fn display(&self) -> String {
        if let Some(name) = self.field_name() {
            return format!(".{name}");
        }
        if let Some(rest) = self.0.strip_prefix("k:") {
            let map: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k}={v}")).collect();
            return format!("[{}]", pairs.join(","));
        }
        if let Some(rest) = self.0.strip_prefix("v:") {
            return format!("[={rest}]");
        }
        format!("[{}]", self.0.strip_prefix("i:").unwrap_or_default())
    }
}

/// A set of paths. A path and the paths below it are separate members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    members: BTreeSet<Step>,
    children: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(FieldSet::is_empty)
    }

    pub fn insert(&mut self, path: &[Step]) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut set = self;
        for step in parents {
            set = set.children.entry(step.clone()).or_default();
        }
        set.members.insert(last.clone());
    }

    pub fn has(&self, step: &Step) -> bool {
        self.members.contains(step)
    }

    pub fn below(&self, step: &Step) -> Option<&FieldSet> {
        self.children.get(step)
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.absorb(other.clone());
        out
    }

    /// Adds all of another set.
    pub fn absorb(&mut self, other: Self) {
        self.members.extend(other.members);
        for (step, child) in other.children {
            match self.children.entry(step) {
                Entry::Occupied(mut mine) => mine.get_mut().absorb(child),
                Entry::Vacant(place) => drop(place.insert(child)),
            }
        }
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let children = self.children.iter().filter_map(|(step, child)| {
            let both = child.intersection(other.children.get(step)?);
            (!both.is_empty()).then(|| (step.clone(), both))
        });
        Self {
            members: self.members.intersection(&other.members).cloned().collect(),
            children: children.collect(),
        }
    }

    pub fn difference(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.subtract(other);
        out
    }

    /// Takes out all of another set.
    pub fn subtract(&mut self, other: &Self) {
        if !other.members.is_empty() {
            self.members.retain(|step| !other.members.contains(step));
        }
        self.children.retain(|step, child| {
            if let Some(theirs) = other.children.get(step) {
                child.subtract(theirs);
            }
            !child.is_empty()
        });
    }

    /// Takes out one field, and leaves what is below it.
    pub fn remove(&mut self, field: &str) {
        self.members.remove(&Step::field(field));
    }

    /// Takes out a path and everything below it.
    pub fn remove_below(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        if self.members.is_empty() && self.children.is_empty() {
            return;
        }
        let step = Step::field(first);
        if rest.is_empty() {
            self.members.remove(&step);
            self.children.remove(&step);
        } else if let Some(child) = self.children.get_mut(&step) {
            child.remove_below(rest);
            if child.is_empty() {
                self.children.remove(&step);
            }
        }
    }

    /// Only a path, what is below it and nothing else.
    pub fn only_below(&self, path: &[&str]) -> Self {
        let Some((first, rest)) = path.split_first() else { return self.clone() };
        let step = Step::field(first);
        let mut out = Self::default();
        if rest.is_empty() && self.members.contains(&step) {
            out.members.insert(step.clone());
        }
        if let Some(child) = self.children.get(&step) {
            let kept = child.only_below(rest);
            if !kept.is_empty() {
                out.children.insert(step, kept);
            }
        }
        out
    }

    /// Adds structure fields on the way to members, which sets otherwise leave out.
    pub(super) fn with_named_fields(&self, typed: Option<Typed<'_>>) -> Self {
        let mut out = Self { members: self.members.clone(), children: BTreeMap::new() };
        for (step, child) in &self.children {
            let mut below = None;
            if let (Some(name), Some(typed)) = (step.field_name(), typed) {
                below = typed.child(name);
                if typed.object().is_some_and(|o| o.field(name).is_some()) {
                    out.members.insert(step.clone());
                }
            } else if let (true, Some(Type::List(list))) = (step.is_key(), typed.map(Typed::ty)) {
                below = typed.map(|t| t.at(list.items));
            }
            out.children.insert(step.clone(), child.with_named_fields(below));
        }
        out
    }

    /// All members as messages name them, in order.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect_paths("", &mut out);
        out
    }

    fn collect_paths(&self, prefix: &str, out: &mut Vec<String>) {
        for step in &self.members {
            out.push(format!("{prefix}{}", step.display()));
        }
        for (step, child) in &self.children {
            child.collect_paths(&format!("{prefix}{}", step.display()), out);
        }
    }

    pub fn to_fields_v1(&self) -> Value {
        let mut map = Map::new();
        for step in &self.members {
            map.insert(step.0.to_string(), Value::Object(Map::new()));
        }
        for (step, child) in &self.children {
            if child.is_empty() {
                continue;
            }
            let mut inner = Map::new();
            if self.members.contains(step) {
                inner.insert(".".into(), Value::Object(Map::new()));
            }
            if let Value::Object(fields) = child.to_fields_v1() {
                inner.extend(fields);
            }
            map.insert(step.0.to_string(), Value::Object(inner));
        }
        map.sort_keys();
        Value::Object(map)
    }

    /// Reads FieldsV1; `None` if it is malformed.
    pub fn from_fields_v1(fields: &Map<String, Value>) -> Option<Self> {
        let mut out = Self::default();
        for (key, below) in fields {
            if key == "." {
                continue;
            }
            let step = Step::parse(key)?;
            let below = below.as_object()?;
            if below.is_empty() || below.contains_key(".") {
                out.members.insert(step.clone());
            }
            if below.keys().any(|k| k != ".") {
                let child = Self::from_fields_v1(below)?;
                out.children.insert(step, child);
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_v1_round_trips() {
        let fields = json!({
            "f:data": {".": {}, "f:a": {}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}},
            "f:finalizers": {"v:\"x/y\"": {}}
        });
        let set = FieldSet::from_fields_v1(fields.as_object().unwrap()).unwrap();
        assert_eq!(set.to_fields_v1(), fields);
        assert_eq!(
            set.paths(),
            [
                ".data",
                ".data.a",
                ".finalizers[=\"x/y\"]",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port"
            ]
        );
        assert!(set.difference(&set).is_empty());
        assert_eq!(set.union(&set), set);
        assert_eq!(set.intersection(&set), set);
        assert!(FieldSet::from_fields_v1(json!({"x": {}}).as_object().unwrap()).is_none());
    }
}
