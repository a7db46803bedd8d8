//! The type that server-side apply merges custom objects by, made from their schema.
//!
//! Says how lists and maps merge and which fields there are; values are judged elsewhere.

use super::schema::{ListType, Node};
use crate::scheme::schema::Builder;
use crate::scheme::{Class, Field, List, ListKind, Object, Schema, Type, TypeId, Typed};

/// A schema whose last type is that of the whole object.
pub fn schema_of(node: &Node) -> Schema {
    let mut builder = Builder::default();
    let metadata = builder.graft(super::shape::object_meta());
    let root = type_of(&mut builder, node, Some(metadata), metadata);
    builder.name("root", root);
    builder.finish()
}

pub fn root_of(schema: &Schema) -> Typed<'_> {
    match schema.definition("root") {
        Some(root) => root,
        None => Schema::untyped(),
    }
}

fn field(name: &str, ty: TypeId, default: Option<Box<str>>) -> Field {
    let class = Class::Pointer;
    Field { name: name.into(), ty, class, order: 0, retain_keys: false, atomic: None, default }
}

/// `metadata` is the type of a field that the node has because it is a resource.
fn type_of(builder: &mut Builder, node: &Node, metadata: Option<TypeId>, meta: TypeId) -> TypeId {
    if node.int_or_string {
        return builder.push(Type::Any);
    }
    let ty = match node.ty {
        "string" => Type::String,
        "boolean" => Type::Bool,
        "integer" | "number" => Type::Float,
        "array" => {
            let items = match &node.items {
                Some(items) => type_of(builder, items, items.embedded.then_some(meta), meta),
                None => builder.push(Type::Deduced),
            };
            let kind = match node.list_type {
                ListType::Atomic => ListKind::Atomic,
                ListType::Set => ListKind::Set,
                ListType::Map => ListKind::Map(
                    node.list_map_keys.iter().map(|key| key.as_str().into()).collect(),
                ),
            };
            Type::List(List { items, kind, merge_key: None, merge: false, retain_keys: false })
        }
        "object" => return object(builder, node, metadata, meta),
        _ => Type::Deduced,
    };
    builder.push(ty)
}

fn object(builder: &mut Builder, node: &Node, metadata: Option<TypeId>, meta: TypeId) -> TypeId {
    if let Some(values) = node.additional.node()
        && metadata.is_none()
    {
        let values = type_of(builder, values, values.embedded.then_some(meta), meta);
        return builder.push(Type::Map { values, atomic: node.atomic_map });
    }
    let mut fields: Vec<Field> = Vec::new();
    for (name, below) in node.properties.iter() {
        if metadata.is_some() && matches!(name, "apiVersion" | "kind" | "metadata") {
            continue;
        }
        let ty = type_of(builder, below, below.embedded.then_some(meta), meta);
        let default = below.default.as_ref().and_then(|value| value.as_str()).map(Into::into);
        fields.push(field(name, ty, default));
    }
    if let Some(metadata) = metadata {
        let text = builder.push(Type::String);
        fields.push(field("apiVersion", text, None));
        fields.push(field("kind", text, None));
        fields.push(field("metadata", metadata, None));
    }
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    let open = node.preserve_unknown || node.additional.is_said();
    builder.push(Type::Object(Object {
        fields,
        required: Vec::new(),
        atomic: node.atomic_map,
        open,
    }))
}
