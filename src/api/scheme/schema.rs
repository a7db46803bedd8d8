//! The types of all built-in kinds, decoded once from `embedded/schema-1.36.json.gz`.
//!
//! Holds no descriptions (those are read on demand by `openapi`) and never changes after loading.

use std::collections::HashMap;
use std::io::Read;
use std::sync::LazyLock;

use flate2::read::GzDecoder;
use serde_json::{Map, Value, json};

const TABLE: &[u8] = include_bytes!("../../../embedded/schema-1.36.json.gz");

/// Index of a type in its schema.
pub type TypeId = u32;

/// How a field's zero value is written, as Go's encoder does it for upstream's structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Left out when absent, kept when present even if zero.
    Pointer,
    /// Null when absent.
    NullPointer,
    /// Left out when zero.
    OmitZero,
    /// Always written.
    Always,
    /// A structure by value: always written.
    Struct,
    /// A structure by value, left out when empty.
    OmitStruct,
}

#[derive(Clone, Debug)]
pub enum Type {
    Any,
    String,
    Bytes,
    Bool,
    Int32,
    Int64,
    Float,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// Whatever is there: maps merge by key, and all else changes as a whole (what the schema
    /// of a custom resource leaves open).
    Deduced,
    Object(Object),
    Map {
        values: TypeId,
        atomic: bool,
    },
    List(List),
}

#[derive(Clone, Debug, Default)]
pub struct Object {
    /// Sorted by name.
    pub fields: Vec<Field>,
    pub required: Vec<Box<str>>,
    pub atomic: bool,
    /// Unknown fields are kept and untyped (custom resources only).
    pub open: bool,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: Box<str>,
    pub ty: TypeId,
    pub class: Class,
    /// The field's place when the object is written.
    pub order: u16,
    /// Patch strategy `retainKeys`.
    pub retain_keys: bool,
    /// Whether the field's value is replaced as a whole, where the field overrides its type.
    pub atomic: Option<bool>,
    /// What an absent key of a list-map element stands for.
    pub default: Option<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    /// Elements are told apart by these fields.
    Map(Vec<Box<str>>),
}

#[derive(Clone, Debug)]
pub struct List {
    pub items: TypeId,
    pub kind: ListKind,
    /// The key of strategic merge patches.
    pub merge_key: Option<Box<str>>,
    /// Patch strategy `merge`.
    pub merge: bool,
    /// Patch strategy `retainKeys` of the elements.
    pub retain_keys: bool,
}

impl Object {
    pub fn field(&self, name: &str) -> Option<&Field> {
        let at = self.fields.binary_search_by(|f| (*f.name).cmp(name)).ok()?;
        self.fields.get(at)
    }
}

/// Group, version, kind.
type KindKey = (Box<str>, Box<str>, Box<str>);

/// A set of types and the kinds among them.
#[derive(Debug)]
pub struct Schema {
    types: Vec<Type>,
    names: Vec<(Box<str>, TypeId)>,
    /// Sorted.
    kinds: Vec<(KindKey, TypeId)>,
    /// Objects stay as they are sent: nulls and zeros mean something (custom resources).
    pub(super) free: bool,
    /// The type of fields that an open object does not name.
    unknown: TypeId,
}

/// A type together with the schema it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Typed<'a> {
    pub schema: &'a Schema,
    pub id: TypeId,
}

impl<'a> Typed<'a> {
    pub fn ty(self) -> &'a Type {
        self.schema.get(self.id)
    }

    pub fn at(self, id: TypeId) -> Typed<'a> {
        Typed { schema: self.schema, id }
    }

    /// The type of what nothing is known about, in the same schema.
    pub fn any(self) -> Typed<'a> {
        self.at(self.schema.unknown)
    }

    /// The type's definition by its short name, such as `api.core.v1.PodSpec`; None for
    /// types without a name. Looks through all names: for messages.
    pub fn name(self) -> Option<&'a str> {
        let names = &self.schema.names;
        names.iter().find(|(_, id)| *id == self.id).map(|(name, _)| &**name)
    }

    pub fn object(self) -> Option<&'a Object> {
        match self.ty() {
            Type::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The type under a field of an object or any key of a map.
    pub fn child(self, name: &str) -> Option<Typed<'a>> {
        match self.ty() {
            Type::Object(object) => match object.field(name) {
                Some(field) => Some(self.at(field.ty)),
                None => object.open.then(|| self.any()),
            },
            Type::Map { values, .. } => Some(self.at(*values)),
            Type::Any | Type::Deduced => Some(self),
            _ => None,
        }
    }
}

const ANY: TypeId = 0;
const LEAVES: [(&str, Type); 11] = [
    ("*", Type::Any),
    ("s", Type::String),
    ("y", Type::Bytes),
    ("b", Type::Bool),
    ("i", Type::Int32),
    ("l", Type::Int64),
    ("f", Type::Float),
    ("t", Type::Time),
    ("u", Type::MicroTime),
    ("q", Type::Quantity),
    ("x", Type::IntOrString),
];

impl Schema {
    /// The schema of every built-in kind; decoded at the first call.
    pub fn built_in() -> &'static Schema {
        static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
            let table = table();
            let mut loader = Loader::default();
            loader.load(&table);
            loader.schema.kinds.sort();
            loader.schema
        });
        &SCHEMA
    }

    pub fn get(&self, id: TypeId) -> &Type {
        self.types.get(id as usize).unwrap_or(&Type::Any)
    }

    /// The type of a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<Typed<'_>> {
        let wanted = (group, version, kind);
        let at = self.kinds.binary_search_by(|((g, v, k), _)| (&**g, &**v, &**k).cmp(&wanted));
        Some(Typed { schema: self, id: self.kinds.get(at.ok()?)?.1 })
    }

    /// A definition by its OpenAPI name, such as `io.k8s.api.core.v1.PodSpec`.
    pub fn definition(&self, name: &str) -> Option<Typed<'_>> {
        let short = name.strip_prefix("io.k8s.").unwrap_or(name);
        let at = self.names.binary_search_by(|(n, _)| (**n).cmp(short)).ok()?;
        Some(Typed { schema: self, id: self.names.get(at)?.1 })
    }

    /// The type for objects of which nothing is known.
    pub fn untyped() -> Typed<'static> {
        Typed { schema: Self::built_in(), id: ANY }
    }
}

/// The decoded table as JSON; used once for loading and again for OpenAPI documents.
pub(crate) fn table() -> Map<String, Value> {
    decode(TABLE)
}

/// Unpacks one of the embedded JSON objects.
pub(crate) fn decode(data: &[u8]) -> Map<String, Value> {
    let mut text = Vec::new();
    GzDecoder::new(data).read_to_end(&mut text).expect("embedded data is tested to unpack");
    serde_json::from_slice(&text).expect("embedded data is tested to be a JSON object")
}

/// Makes the schema of a custom resource.
#[derive(Default)]
pub struct Builder(Schema);

impl Builder {
    pub fn push(&mut self, ty: Type) -> TypeId {
        self.0.types.push(ty);
        (self.0.types.len() - 1) as TypeId
    }

    /// Gives a type a name that [`Schema::definition`] finds.
    pub fn name(&mut self, name: &str, id: TypeId) {
        self.0.names.push((name.into(), id));
        self.0.names.sort();
    }

    /// Copies a type, and what it refers to, from another schema.
    pub fn graft(&mut self, from: Typed<'_>) -> TypeId {
        self.graft_known(from, &mut HashMap::new())
    }

    fn graft_known(&mut self, from: Typed<'_>, known: &mut HashMap<TypeId, TypeId>) -> TypeId {
        if let Some(&id) = known.get(&from.id) {
            return id;
        }
        // The place is taken first, so that a type may refer to itself.
        let id = self.push(Type::Any);
        known.insert(from.id, id);
        let mut ty = from.ty().clone();
        match &mut ty {
            Type::Object(object) => {
                for field in &mut object.fields {
                    field.ty = self.graft_known(from.at(field.ty), known);
                }
            }
            Type::Map { values, .. } => *values = self.graft_known(from.at(*values), known),
            Type::List(list) => list.items = self.graft_known(from.at(list.items), known),
            _ => {}
        }
        self.0.types[id as usize] = ty;
        id
    }

    pub fn finish(mut self) -> Schema {
        self.0.unknown = self.push(Type::Deduced);
        self.0.free = true;
        self.0
    }
}

#[derive(Default)]
struct Loader {
    schema: Schema,
    ids: HashMap<String, TypeId>,
    composed: HashMap<String, TypeId>,
}

impl Default for Schema {
    fn default() -> Self {
        let types = LEAVES.iter().map(|(_, t)| t.clone()).collect();
        Self { types, names: Vec::new(), kinds: Vec::new(), free: false, unknown: ANY }
    }
}

impl Loader {
    fn load(&mut self, table: &Map<String, Value>) {
        for name in table.keys() {
            let id = self.push(Type::Any);
            self.ids.insert(name.clone(), id);
            self.schema.names.push((name.as_str().into(), id));
        }
        self.schema.names.sort();
        for (name, definition) in table {
            let id = self.ids[name];
            let ty = if let Some(fields) = definition.get("p").and_then(Value::as_object) {
                Type::Object(self.object(name, definition, fields))
            } else if let Some(other) = definition.get("o") {
                let other = self.resolve(other);
                self.schema.get(other).clone()
            } else {
                Type::Any
            };
            self.schema.types[id as usize] = ty;
            for gvk in definition.get("gvk").and_then(Value::as_array).into_iter().flatten() {
                let word = |at: usize| gvk.get(at).and_then(Value::as_str).unwrap_or_default();
                let key = (word(0).into(), word(1).into(), word(2).into());
                self.schema.kinds.push((key, id));
            }
        }
        self.schema.types.shrink_to_fit();
    }

    fn push(&mut self, ty: Type) -> TypeId {
        self.schema.types.push(ty);
        (self.schema.types.len() - 1) as TypeId
    }

    fn object(&mut self, name: &str, definition: &Value, fields: &Map<String, Value>) -> Object {
        let mut out = Object {
            fields: Vec::with_capacity(fields.len()),
            required: strings(definition.get("r")),
            atomic: definition.get("t").and_then(Value::as_str) == Some("atomic"),
            open: false,
        };
        for (order, (field, spec)) in fields.iter().enumerate() {
            let (class, ty, extra) = match spec {
                Value::String(text) => {
                    let (class, ty) = text.split_at(1);
                    (class, self.resolve(&Value::from(ty)), None)
                }
                other => {
                    let class = other.get("c").and_then(Value::as_str).unwrap_or("o");
                    let ty = match other.get("@") {
                        Some(reference) => self.resolve(reference),
                        None => self.resolve(other),
                    };
                    (class, ty, other.get("@").is_some().then_some(other))
                }
            };
            let word = |key| extra.and_then(|e| e.get(key)).and_then(Value::as_str).unwrap_or("");
            let protocol = field == "protocol"
                && (name.ends_with(".ContainerPort") || name.ends_with(".ServicePort"));
            out.fields.push(Field {
                name: field.as_str().into(),
                ty,
                class: class_of(class),
                order: order as u16,
                retain_keys: word("ps").contains("retainKeys"),
                atomic: match word("t") {
                    "" => None,
                    kind => Some(kind == "atomic"),
                },
                default: protocol.then(|| "TCP".into()),
            });
        }
        out.fields.sort_by(|a, b| a.name.cmp(&b.name));
        out
    }

    fn resolve(&mut self, spec: &Value) -> TypeId {
        if let Some(text) = spec.as_str() {
            if let Some(name) = text.strip_prefix('@') {
                return self.ids.get(name).copied().unwrap_or(ANY);
            }
            return LEAVES.iter().position(|(l, _)| *l == text).unwrap_or(0) as TypeId;
        }
        let mut key = spec.clone();
        if let Some(map) = key.as_object_mut() {
            map.remove("c");
        }
        let key = key.to_string();
        if let Some(&id) = self.composed.get(&key) {
            return id;
        }
        let word = |name| spec.get(name).and_then(Value::as_str);
        let ty = if let Some(items) = spec.get("l") {
            let items = self.resolve(items);
            Type::List(List {
                items,
                kind: match word("t") {
                    Some("set") => ListKind::Set,
                    Some("map") => ListKind::Map(strings(spec.get("k"))),
                    _ => ListKind::Atomic,
                },
                merge_key: word("mk").map(Into::into),
                merge: word("ps").is_some_and(|s| s.contains("merge")),
                retain_keys: word("ps").is_some_and(|s| s.contains("retainKeys")),
            })
        } else {
            let values = self.resolve(spec.get("m").unwrap_or(&json!("*")));
            Type::Map { values, atomic: word("t") == Some("atomic") }
        };
        let id = self.push(ty);
        self.composed.insert(key, id);
        id
    }
}

fn class_of(letter: &str) -> Class {
    match letter {
        "p" => Class::Pointer,
        "n" => Class::NullPointer,
        "z" => Class::Always,
        "s" => Class::Struct,
        "Z" => Class::OmitStruct,
        _ => Class::OmitZero,
    }
}

fn strings(list: Option<&Value>) -> Vec<Box<str>> {
    list.and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Into::into)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stored_built_in_resource_has_a_type() {
        let schema = Schema::built_in();
        for resource in kinds::resources::Catalog::known().resources() {
            for version in &resource.versions {
                let typed = schema.kind(&resource.group, version, &resource.kind);
                assert!(typed.is_some(), "{} {version} {}", resource.group, resource.kind);
            }
        }
    }

    #[test]
    fn list_keys_and_defaults_are_known() {
        let schema = Schema::built_in();
        let port = schema.definition("io.k8s.api.core.v1.ContainerPort").unwrap();
        let protocol = port.object().unwrap().field("protocol").unwrap();
        assert_eq!(protocol.default.as_deref(), Some("TCP"));
        let container = schema.definition("io.k8s.api.core.v1.Container").unwrap();
        let Type::List(list) = container.child("ports").unwrap().ty() else { panic!() };
        assert_eq!(list.kind, ListKind::Map(vec!["containerPort".into(), "protocol".into()]));
        assert_eq!(list.merge_key.as_deref(), Some("containerPort"));
    }
}
