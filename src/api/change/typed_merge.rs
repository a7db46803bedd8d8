//! Structured merge on typed values: merging, comparing, field sets, removal of fields.
//!
//! Lists merge by their keys or as sets where the schema says so; everything else that is not
//! an object or map is a leaf. Values the type does not fit are leaves, too.

use serde_json::{Map, Value};

use super::field_set::{FieldSet, Step};
use super::go_format::go_syntax;
use crate::scheme::shape::zero;
use crate::scheme::{Class, List, ListKind, Type, Typed};

/// A place in a type: what is there, and whether it changes only as a whole.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    typed: Typed<'a>,
    atomic: Option<bool>,
}

enum Form<'a> {
    Leaf,
    Fields(Place<'a>),
    Items(&'a List, Typed<'a>),
}

impl<'a> Place<'a> {
    pub(super) fn root(typed: Typed<'a>) -> Self {
        Self { typed, atomic: None }
    }

    fn form(self) -> Form<'a> {
        let whole = |atomic: bool| self.atomic.unwrap_or(atomic);
        match self.typed.ty() {
            Type::Object(object) if !whole(object.atomic) => Form::Fields(self),
            Type::Map { atomic, .. } if !whole(*atomic) => Form::Fields(self),
            Type::Deduced if !whole(false) => Form::Fields(self),
            Type::List(list) if !whole(list.kind == ListKind::Atomic) => {
                Form::Items(list, self.typed.at(list.items))
            }
            _ => Form::Leaf,
        }
    }

    /// The place of a field, and whether it is a named field of a structure.
    fn child(self, name: &str) -> (Place<'a>, bool) {
        if let Some(field) = self.typed.object().and_then(|o| o.field(name)) {
            return (Place { typed: self.typed.at(field.ty), atomic: field.atomic }, true);
        }
        let typed = self.typed.child(name).unwrap_or_else(|| self.typed.any());
        (Place { typed, atomic: None }, false)
    }
}

fn step_of(list: &List, items: Typed<'_>, item: &Value) -> Step {
    let ListKind::Map(keys) = &list.kind else { return Step::value(item) };
    let object = items.object();
    let pairs = keys.iter().filter_map(|key| {
        let value = item.get(&**key).filter(|v| !v.is_null()).cloned().or_else(|| {
            let field = object?.field(key)?;
            match (&field.default, field.class) {
                (Some(default), _) => Some(Value::String(default.to_string())),
                (None, Class::Always) => Some(zero(items.at(field.ty))),
                _ => None,
            }
        });
        value.map(|value| (&**key, value))
    });
    Step::keys(pairs.collect())
}

/// Numbers are equal by value.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => one == other,
    }
}

/// What an applied configuration says: the paths of its leaves, map keys and list elements.
pub(super) fn to_set(value: &Value, typed: Typed<'_>) -> FieldSet {
    let mut out = FieldSet::default();
    collect(value, Place::root(typed), &mut Vec::new(), &mut out);
    out
}

fn collect(value: &Value, place: Place<'_>, path: &mut Vec<Step>, out: &mut FieldSet) {
    match (place.form(), value) {
        (Form::Fields(place), Value::Object(map)) => {
            for (key, child) in map {
                let (below, named) = place.child(key);
                path.push(Step::field(key));
                collect(child, below, path, out);
                let empty = child.is_null() || child.as_object().is_some_and(Map::is_empty);
                if empty || !named {
                    out.insert(path);
                }
                path.pop();
            }
        }
        (Form::Items(list, items), Value::Array(values)) => {
            for item in values {
                path.push(step_of(list, items, item));
                collect(item, Place::root(items), path, out);
                out.insert(path);
                path.pop();
            }
        }
        (Form::Fields(_) | Form::Items(..), Value::Null) => {}
        _ => out.insert(path),
    }
}

/// The live object with the configuration laid over it.
pub(crate) fn merge(live: &Value, config: &Value, typed: Typed<'_>) -> Value {
    merge_at(Some(live), config, Place::root(typed))
}

fn merge_at(live: Option<&Value>, config: &Value, place: Place<'_>) -> Value {
    match (place.form(), live, config) {
        (Form::Fields(place), Some(Value::Object(live)), Value::Object(config)) => {
            let mut out = live.clone();
            for (key, value) in config {
                let merged = merge_at(live.get(key), value, place.child(key).0);
                out.insert(key.clone(), merged);
            }
            Value::Object(out)
        }
        (Form::Items(list, items), Some(Value::Array(live)), Value::Array(config)) => {
            Value::Array(merge_items(live, config, list, items))
        }
        // The configuration says nothing about a list or map it gives as null.
        (Form::Fields(_) | Form::Items(..), Some(live), Value::Null) => live.clone(),
        _ => config.clone(),
    }
}

/// Keeps the configuration's order and weaves in the elements only the live list has, each
/// behind its predecessor.
fn merge_items(live: &[Value], config: &[Value], list: &List, items: Typed<'_>) -> Vec<Value> {
    let live_steps: Vec<Step> = live.iter().map(|i| step_of(list, items, i)).collect();
    let config_steps: Vec<Step> = config.iter().map(|i| step_of(list, items, i)).collect();
    let mut out = Vec::with_capacity(live.len() + config.len());
    let mut next = 0;
    let take = |next: usize, out: &mut Vec<Value>| {
        let at = live_steps.iter().position(|s| *s == config_steps[next]);
        out.push(merge_at(at.map(|at| &live[at]), &config[next], Place::root(items)));
    };
    for (at, step) in live_steps.iter().enumerate() {
        match config_steps.iter().position(|s| s == step) {
            None => out.push(live[at].clone()),
            Some(found) => {
                while next <= found {
                    take(next, &mut out);
                    next += 1;
                }
            }
        }
    }
    while next < config.len() {
        take(next, &mut out);
        next += 1;
    }
    out
}

/// How one object differs from another.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Comparison {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

/// A step on the way to a difference, written down only where there is one.
enum Mark<'a> {
    Field(&'a str),
    Item(Step),
}

fn steps(path: &[Mark<'_>]) -> Vec<Step> {
    let step = |mark: &Mark<'_>| match mark {
        Mark::Field(name) => Step::field(name),
        Mark::Item(step) => step.clone(),
    };
    path.iter().map(step).collect()
}

pub(super) fn compare(old: &Value, new: &Value, typed: Typed<'_>) -> Comparison {
    let mut out = Comparison::default();
    compare_at(Some(old), Some(new), Place::root(typed), &mut Vec::new(), &mut out);
    out
}

/// Both are there and nothing differs, so that there is nothing to look into.
fn same(old: Option<&Value>, new: Option<&Value>) -> bool {
    matches!((old, new), (Some(old), Some(new)) if equal(old, new))
}

fn compare_at<'a>(
    old: Option<&'a Value>,
    new: Option<&'a Value>,
    place: Place<'_>,
    path: &mut Vec<Mark<'a>>,
    out: &mut Comparison,
) {
    let form = place.form();
    let map = |v: Option<&Value>| v.is_none_or(|v| v.is_object() || v.is_null());
    let list = |v: Option<&Value>| v.is_none_or(|v| v.is_array() || v.is_null());
    match form {
        Form::Fields(place) if map(old) && map(new) => {
            let a = old.and_then(Value::as_object);
            let b = new.and_then(Value::as_object);
            if a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty) {
                return leaf(old, new, path, out);
            }
            let pairs = a.into_iter().flatten().map(|(key, old)| {
                let new = b.and_then(|b| b.get(key));
                (key, Some(old), new)
            });
            let only_b =
                b.into_iter().flatten().filter(|(key, _)| a.is_none_or(|a| !a.contains_key(*key)));
            for (key, old, new) in pairs.chain(only_b.map(|(key, new)| (key, None, Some(new)))) {
                if !same(old, new) {
                    path.push(Mark::Field(key));
                    compare_at(old, new, place.child(key).0, path, out);
                    path.pop();
                }
            }
        }
        Form::Items(kind, items) if list(old) && list(new) => {
            let a = old.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let b = new.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            if a.is_empty() && b.is_empty() {
                return leaf(old, new, path, out);
            }
            compare_items(a, b, kind, items, path, out);
        }
        _ => return leaf(old, new, path, out),
    }
    match (old, new) {
        (None, Some(_)) => out.added.insert(&steps(path)),
        (Some(_), None) => out.removed.insert(&steps(path)),
        _ => {}
    }
}

fn compare_items<'a>(
    old: &'a [Value],
    new: &'a [Value],
    list: &List,
    items: Typed<'_>,
    path: &mut Vec<Mark<'a>>,
    out: &mut Comparison,
) {
    let mut by_step: std::collections::BTreeMap<Step, (Vec<&Value>, Vec<&Value>)> =
        std::collections::BTreeMap::new();
    for item in old {
        by_step.entry(step_of(list, items, item)).or_default().0.push(item);
    }
    for item in new {
        by_step.entry(step_of(list, items, item)).or_default().1.push(item);
    }
    for (step, (a, b)) in by_step {
        path.push(Mark::Item(step));
        if a.len() <= 1 && b.len() <= 1 {
            let (a, b) = (a.first().copied(), b.first().copied());
            if !same(a, b) {
                compare_at(a, b, Place::root(items), path, out);
            }
        } else if a.is_empty() {
            out.added.insert(&steps(path));
        } else if b.is_empty() {
            out.removed.insert(&steps(path));
        } else if a.len() != b.len() || !a.iter().zip(&b).all(|(a, b)| equal(a, b)) {
            out.modified.insert(&steps(path));
        }
        path.pop();
    }
}

fn leaf(old: Option<&Value>, new: Option<&Value>, path: &[Mark<'_>], out: &mut Comparison) {
    match (old, new) {
        (None, Some(_)) => out.added.insert(&steps(path)),
        (Some(_), None) => out.removed.insert(&steps(path)),
        (Some(old), Some(new)) if !equal(old, new) => out.modified.insert(&steps(path)),
        _ => {}
    }
}

/// Takes fields out; containers that become empty go with them.
pub(super) fn remove(value: &Value, set: &FieldSet, typed: Typed<'_>) -> Value {
    remove_at(value, set, Place::root(typed)).unwrap_or(Value::Null)
}

fn remove_at(value: &Value, set: &FieldSet, place: Place<'_>) -> Option<Value> {
    match (place.form(), value) {
        (Form::Fields(place), Value::Object(map)) => {
            let mut out = Map::new();
            for (key, child) in map {
                let step = Step::field(key);
                if set.has(&step) {
                    continue;
                }
                let kept = match set.below(&step) {
                    Some(below) if !below.is_empty() => remove_at(child, below, place.child(key).0),
                    _ => Some(child.clone()),
                };
                if let Some(kept) = kept {
                    out.insert(key.clone(), kept);
                }
            }
            (!out.is_empty()).then_some(Value::Object(out))
        }
        (Form::Items(list, items), Value::Array(values)) => {
            let mut out = Vec::with_capacity(values.len());
            for item in values {
                let step = step_of(list, items, item);
                if set.has(&step) {
                    continue;
                }
                match set.below(&step) {
                    Some(below) if !below.is_empty() => {
                        out.extend(remove_at(item, below, Place::root(items)));
                    }
                    _ => out.push(item.clone()),
                }
            }
            (!out.is_empty()).then_some(Value::Array(out))
        }
        _ => Some(value.clone()),
    }
}

/// Checks a configuration as upstream does before it applies it; one sentence per problem.
pub(super) fn validate(value: &Value, typed: Typed<'_>) -> Vec<String> {
    let mut out = Vec::new();
    validate_at(value, typed, &mut String::new(), &mut out);
    out
}

fn validate_at(value: &Value, typed: Typed<'_>, path: &mut String, out: &mut Vec<String>) {
    if value.is_null() {
        return;
    }
    let mut expected = |what: &str| {
        let got = go_syntax(value);
        out.push(format!("{path}: expected {what}, got &value.valueUnstructured{{Value:{got}}}"));
    };
    match (typed.ty(), value) {
        (Type::Object(object), Value::Object(map)) => {
            for (key, child) in map {
                let length = path.len();
                path.push('.');
                path.push_str(key);
                match object.field(key) {
                    Some(field) => validate_at(child, typed.at(field.ty), path, out),
                    None if object.open => {}
                    None => out.push(format!("{path}: field not declared in schema")),
                }
                path.truncate(length);
            }
        }
        (Type::Map { values, .. }, Value::Object(map)) => {
            for (key, child) in map {
                let length = path.len();
                path.push('.');
                path.push_str(key);
                validate_at(child, typed.at(*values), path, out);
                path.truncate(length);
            }
        }
        (Type::Object(_) | Type::Map { .. }, _) => expected("map"),
        (Type::List(list), Value::Array(items)) => {
            let element = typed.at(list.items);
            let mut seen = std::collections::BTreeSet::new();
            for (index, item) in items.iter().enumerate() {
                let length = path.len();
                if list.kind == ListKind::Atomic {
                    path.push_str(&format!("[{index}]"));
                } else {
                    let step = step_of(list, element, item);
                    let shown = step.display();
                    if !seen.insert(step) {
                        out.push(format!("{path}: duplicate entries for key {shown}"));
                    }
                    path.push_str(&shown);
                }
                validate_at(item, element, path, out);
                path.truncate(length);
            }
        }
        (Type::List(_), _) => expected("list"),
        (Type::String | Type::Bytes | Type::Time | Type::MicroTime, v) if !v.is_string() => {
            expected("string");
        }
        (Type::Bool, v) if !v.is_boolean() => expected("boolean"),
        (Type::Int32 | Type::Int64 | Type::Float, v) if !v.is_number() => {
            expected("numeric (int or float)");
        }
        _ => {}
    }
}
