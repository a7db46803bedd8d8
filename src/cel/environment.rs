//! What an expression may name: variables with their declarations, and constructible types.

use std::collections::HashMap;
use std::sync::Arc;

use crate::types::{Decl, FieldDecl, Type};

/// The variables of expressions, each with what is known of its data.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    pub(crate) variables: Vec<Variable>,
    by_name: HashMap<String, usize>,
    /// Expressions kept under one name, as `variables.x`, evaluated when they are used.
    pub(crate) composed: Option<Composed>,
    pub(crate) mutation: bool,
    pub(crate) binds: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) decl: Decl,
}

#[derive(Clone, Debug)]
pub(crate) struct Composed {
    pub(crate) name: String,
    pub(crate) fields: Vec<(String, Type)>,
    pub(crate) decl: Decl,
}

impl Environment {
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a variable; a second one of the same name takes the first one's place.
    pub fn variable(mut self, name: &str, decl: Decl) -> Self {
        let variable = Variable { name: name.to_owned(), decl };
        match self.by_name.get(name) {
            Some(&index) => self.variables[index] = variable,
            None => {
                self.by_name.insert(name.to_owned(), self.variables.len());
                self.variables.push(variable);
            }
        }
        self
    }

    /// Lets expressions construct `Object{...}` and `JSONPatch{...}`, for mutations.
    pub fn with_mutation(mut self) -> Self {
        self.mutation = true;
        self
    }

    /// Lets expressions name a value, by `cel.bind(name, value, expression)`.
    pub fn with_bindings(mut self) -> Self {
        self.binds = true;
        self
    }

    /// Makes `name.field` stand for a further expression, in the order of `Bindings::compose`.
    pub fn compose(&mut self, name: &str, field: &str, ty: Type) {
        let mut fields = self.composed.take().map(|composed| composed.fields).unwrap_or_default();
        fields.push((field.to_owned(), ty));
        let declared = fields.iter().map(|(name, ty)| FieldDecl::new(name, Decl::of(ty.clone())));
        let decl = Decl::object(&format!("kubernetes.{name}"), declared);
        self.composed = Some(Composed { name: name.to_owned(), fields, decl });
    }

    /// Makes `name` an object of composed expressions even before there is one.
    pub fn with_composed(mut self, name: &str) -> Self {
        let decl = Decl::object(&format!("kubernetes.{name}"), []);
        self.composed = Some(Composed { name: name.to_owned(), fields: Vec::new(), decl });
        self
    }

    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn composed_index(&self, field: &str) -> Option<usize> {
        let fields = &self.composed.as_ref()?.fields;
        // The latest of a name is the one that counts.
        fields.iter().rposition(|(name, _)| crate::types::escape(name).as_deref() == Some(field))
    }

    pub(crate) fn type_of(&self, name: &str) -> Option<Type> {
        if let Some(index) = self.find(name) {
            return Some(self.variables[index].decl.ty().clone());
        }
        self.composed.as_ref().filter(|c| c.name == name).map(|c| c.decl.ty().clone())
    }
}

/// The type that a name stands for, as in `type(x) == int`.
pub(crate) fn type_constant(name: &str) -> Option<Type> {
    use crate::functions as f;
    let opaque = [f::IP, f::CIDR, f::URL, f::QUANTITY, f::SEMVER];
    Some(match name {
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "double" => Type::Double,
        "duration" | "google.protobuf.Duration" => Type::Duration,
        "int" => Type::Int,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "null_type" => Type::Null,
        "string" => Type::String,
        "timestamp" | "google.protobuf.Timestamp" => Type::Timestamp,
        "type" => Type::Type(None),
        "uint" => Type::Uint,
        "optional_type" => Type::optional(Type::Dyn),
        _ => Type::Opaque(opaque.into_iter().find(|opaque| *opaque == name)?),
    })
}

/// The type a struct literal makes: `JSONPatch`, or `Object` with a path of fields.
pub(crate) fn struct_type(name: &str) -> Option<Type> {
    if name == "JSONPatch" {
        let fields = [
            FieldDecl::new("op", Decl::string(None, None)),
            FieldDecl::new("path", Decl::string(None, None)),
            FieldDecl::new("from", Decl::string(None, None)),
            FieldDecl::new("value", Decl::any()),
        ];
        return Some(Decl::object(name, fields).ty().clone());
    }
    if name == "Object" || name.starts_with("Object.") {
        return Some(Type::Object(Arc::new(crate::types::Object {
            name: name.to_owned(),
            fields: HashMap::new(),
            open: true,
        })));
    }
    None
}
