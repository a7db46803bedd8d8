//! Types of an expression's parts, and the mistakes found while finding them.

use std::sync::Arc;

use crate::ast::{Expr, Fold, Id, Kind, Literal, Macro, Select};
use crate::environment::{Environment, struct_type, type_constant};
use crate::functions::{self, Function};
use crate::parser::type_name;
use crate::source::{CompileError, Source};
use crate::types::{Object, Type};
use crate::unify::Unifier;

/// Mistakes told of one expression.
const ERRORS_MAX: usize = 100;

/// What the checker found out, by node.
pub(crate) struct Checked {
    pub(crate) types: Vec<Type>,
    pub(crate) notes: Vec<Note>,
}

/// How a node is to be understood.
#[derive(Clone, Debug, Default)]
pub(crate) enum Note {
    #[default]
    None,
    /// A variable of a macro, counted from the outermost.
    Local(usize),
    Variable(usize),
    /// A member of the composed expressions.
    Composed(usize),
    Type(Type),
    /// A function whose name has dots, not a member call.
    Global(Arc<str>),
}

pub(crate) fn check(
    environment: &Environment,
    source: &Source,
    root: &Expr,
    positions: &[usize],
) -> Result<Checked, Vec<CompileError>> {
    let mut checker = Checker {
        environment,
        source,
        positions,
        types: vec![Type::Error; positions.len()],
        notes: vec![Note::None; positions.len()],
        locals: Vec::new(),
        unifier: Unifier::default(),
        errors: Vec::new(),
    };
    checker.check(root);
    if checker.unifier.exhausted() {
        checker.errors = vec![Source::whole("expression types are too complex")];
    }
    if checker.errors.is_empty() {
        let types = checker.types;
        let mut unifier = checker.unifier;
        let types = types.iter().map(|ty| unifier.resolve(ty, true)).collect();
        if unifier.exhausted() {
            return Err(vec![Source::whole("expression types are too complex")]);
        }
        return Ok(Checked { types, notes: checker.notes });
    }
    let mut errors = checker.errors;
    errors.sort_by_key(|error| (error.line, error.column));
    Err(errors)
}

struct Checker<'e> {
    environment: &'e Environment,
    source: &'e Source,
    positions: &'e [usize],
    types: Vec<Type>,
    notes: Vec<Note>,
    locals: Vec<(Arc<str>, Type)>,
    unifier: Unifier,
    errors: Vec<CompileError>,
}

impl Checker<'_> {
    fn error(&mut self, id: Id, message: impl Into<String>) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(self.source.error(self.positions[id], message));
        }
    }

    fn undeclared(&mut self, id: Id, name: &str) -> Type {
        self.error(id, format!("undeclared reference to '{name}' (in container '')"));
        Type::Error
    }

    fn mismatch(&mut self, id: Id, expected: &Type, actual: &Type) {
        let expected = self.unifier.resolve(expected, true);
        let actual = self.unifier.resolve(actual, true);
        self.error(id, format!("expected type '{expected}' but found '{actual}'"));
    }

    fn check(&mut self, expr: &Expr) -> Type {
        let ty = match &expr.kind {
            Kind::Literal(literal) => literal_type(literal),
            Kind::Ident(name) => self.ident(expr.id, name),
            Kind::Select { operand, field, how } => self.select(expr, operand, field, *how),
            Kind::Call { name, target, args } => self.call(expr.id, name, target.as_deref(), args),
            Kind::List(_) | Kind::Map(_) => self.aggregate(expr),
            Kind::Struct { .. } => self.structure(expr),
            Kind::Fold(fold) => self.fold(expr.id, fold),
        };
        self.types[expr.id] = ty.clone();
        ty
    }

    fn ident(&mut self, id: Id, name: &str) -> Type {
        if let Some(index) = self.locals.iter().rposition(|(local, _)| &**local == name) {
            self.notes[id] = Note::Local(index);
            return self.locals[index].1.clone();
        }
        match self.resolve_name(id, name) {
            Some(ty) => ty,
            None => self.undeclared(id, name),
        }
    }

    /// A name of the environment, perhaps with dots.
    fn resolve_name(&mut self, id: Id, name: &str) -> Option<Type> {
        let name = name.strip_prefix('.').unwrap_or(name);
        if let Some(index) = self.environment.find(name) {
            self.notes[id] = Note::Variable(index);
            return self.environment.type_of(name);
        }
        if let Some(ty) = self.environment.type_of(name) {
            return Some(ty);
        }
        let ty = type_constant(name)?;
        self.notes[id] = Note::Type(ty.clone());
        Some(Type::Type(Some(ty.into())))
    }

    fn select(&mut self, expr: &Expr, operand: &Expr, field: &str, how: Select) -> Type {
        if how == Select::Value
            && let Some(name) = type_name(expr)
            && !self.starts_local(&name)
            && let Some(ty) = self.resolve_name(expr.id, &name)
        {
            return ty;
        }
        let operand_type = self.check(operand);
        let operand_type = self.unifier.resolve(&operand_type, false);
        if let (Kind::Ident(name), Some(composed)) = (&operand.kind, &self.environment.composed)
            && *name.trim_start_matches('.') == *composed.name
            && !self.starts_local(name)
            && let Some(index) = self.environment.composed_index(field)
        {
            self.notes[expr.id] = Note::Composed(index);
        }
        let (target, optional) = match &operand_type {
            Type::Optional(inner) => ((**inner).clone(), true),
            _ => (operand_type, false),
        };
        let result = match &target {
            Type::Map(entry) => entry.1.clone(),
            Type::Object(object) => self.field(expr.id, object, field),
            Type::Var(_) => {
                self.unifier.fits(&Type::Dyn, &target);
                Type::Dyn
            }
            Type::Dyn | Type::Error => Type::Dyn,
            other => {
                let message = format!("type '{other}' does not support field selection");
                self.error(expr.id, message);
                Type::Dyn
            }
        };
        match how {
            Select::Test => Type::Bool,
            _ if optional || how == Select::Optional => Type::optional(result),
            _ => self.unifier.resolve(&result, false),
        }
    }

    fn starts_local(&self, name: &str) -> bool {
        let first = name.split('.').next().unwrap_or(name);
        self.locals.iter().any(|(local, _)| &**local == first)
    }

    fn field(&mut self, id: Id, object: &Object, field: &str) -> Type {
        match object.field(field) {
            Some(found) => found.decl.ty().clone(),
            None if object.open => Type::Dyn,
            None => {
                self.error(id, format!("undefined field '{field}'"));
                Type::Error
            }
        }
    }

    fn call(&mut self, id: Id, name: &str, target: Option<&Expr>, args: &[Expr]) -> Type {
        let mut types: Vec<Type> = args.iter().map(|arg| self.check(arg)).collect();
        let mutation = self.environment.mutation;
        let Some(target) = target else {
            let function = (!name.starts_with('@') || name == "@in").then_some(());
            return match function.and_then(|()| functions::find(name, mutation)) {
                Some(function) => self.overload(id, name, function, false, args, types),
                None => self.undeclared(id, name),
            };
        };
        if let Some(prefix) = type_name(target)
            && !self.starts_local(&prefix)
        {
            let full = format!("{}.{name}", prefix.trim_start_matches('.'));
            if let Some(function) = functions::find(&full, mutation) {
                self.notes[id] = Note::Global(full.as_str().into());
                return self.overload(id, &full, function, false, args, types);
            }
        }
        let target_type = self.check(target);
        types.insert(0, target_type);
        match functions::find(name, mutation) {
            Some(function) => self.overload(id, name, function, true, args, types),
            None => self.undeclared(id, name),
        }
    }

    fn overload(
        &mut self,
        id: Id,
        name: &str,
        function: &Function,
        member: bool,
        args: &[Expr],
        types: Vec<Type>,
    ) -> Type {
        if matches!(name, "_&&_" | "_||_") {
            for (arg, ty) in args.iter().zip(&types) {
                if !self.unifier.fits(ty, &Type::Bool) {
                    self.mismatch(arg.id, &Type::Bool, ty);
                }
            }
            return Type::Bool;
        }
        let mut result: Option<Type> = None;
        for overload in &function.overloads {
            if overload.member != member || overload.args.len() != types.len() {
                continue;
            }
            let params: Vec<(char, Type)> =
                overload.params.iter().map(|&name| (name, self.unifier.fresh())).collect();
            let wanted: Vec<Type> =
                overload.args.iter().map(|ty| Unifier::instance(ty, &params)).collect();
            if !self.unifier.fits_all(types.iter().zip(&wanted)) {
                continue;
            }
            let this = Unifier::instance(&overload.result, &params);
            let this = self.unifier.resolve(&this, false);
            result = Some(match result {
                Some(before) if before.is_dyn() || before == this => before,
                Some(_) => Type::Dyn,
                None => this,
            });
        }
        if let Some(result) = result {
            return result;
        }
        let shown: Vec<String> =
            types.iter().map(|ty| self.unifier.resolve(ty, true).to_string()).collect();
        let signature = match (member, shown.split_first()) {
            (true, Some((target, rest))) => format!("{target}.({})", rest.join(", ")),
            _ => format!("({})", shown.join(", ")),
        };
        let message = format!("found no matching overload for '{name}' applied to '{signature}'");
        self.error(id, message);
        Type::Error
    }

    fn join(&mut self, id: Id, before: Option<Type>, next: Type) -> Type {
        let Some(before) = before else { return next };
        if self.unifier.fits(&before, &next) {
            return if self.unifier.as_general(&before, &next) { before } else { next };
        }
        self.mismatch(id, &before, &next);
        Type::Error
    }

    /// The type of an element marked with `?`, which must be optional.
    fn unwrap_optional(&mut self, id: Id, ty: Type) -> Type {
        match self.unifier.resolve(&ty, false) {
            Type::Optional(inner) => (*inner).clone(),
            ty if ty.is_dyn_or_error() => ty,
            ty => {
                self.mismatch(id, &Type::optional(ty.clone()), &ty);
                ty
            }
        }
    }

    fn aggregate(&mut self, expr: &Expr) -> Type {
        match &expr.kind {
            Kind::List(elements) => {
                let mut joined = None;
                for element in elements {
                    let mut ty = self.check(&element.value);
                    if element.optional {
                        ty = self.unwrap_optional(element.value.id, ty);
                    }
                    joined = Some(self.join(element.value.id, joined, ty));
                }
                Type::list(joined.unwrap_or_else(|| self.unifier.fresh()))
            }
            Kind::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for entry in entries {
                    let key = self.check(&entry.key);
                    keys = Some(self.join(entry.key.id, keys, key));
                    let mut value = self.check(&entry.value);
                    if entry.optional {
                        value = self.unwrap_optional(entry.value.id, value);
                    }
                    values = Some(self.join(entry.value.id, values, value));
                }
                let key = keys.unwrap_or_else(|| self.unifier.fresh());
                Type::map(key, values.unwrap_or_else(|| self.unifier.fresh()))
            }
            _ => Type::Error,
        }
    }

    fn structure(&mut self, expr: &Expr) -> Type {
        let Kind::Struct { name, fields } = &expr.kind else { return Type::Error };
        let known = if self.environment.mutation { struct_type(name) } else { None };
        let Some(ty) = known else {
            if type_constant(name).is_some() {
                self.error(expr.id, format!("'{name}' is not a message type"));
                return Type::Error;
            }
            return self.undeclared(expr.id, name);
        };
        let Type::Object(object) = &ty else { return Type::Error };
        for field in fields {
            let mut value = self.check(&field.value);
            if field.optional {
                value = self.unwrap_optional(field.value.id, value);
            }
            let wanted = self.field(field.id, object, &field.name);
            self.nested_name(field.id, object, &field.name, &value);
            if !self.unifier.fits(&wanted, &value) {
                let value = self.unifier.resolve(&value, true);
                let name = &field.name;
                let message = format!(
                    "expected type of field '{name}' is '{wanted}' but provided type is '{value}'"
                );
                self.error(field.id, message);
            }
        }
        ty
    }

    /// A nested `Object.a{}` must stand in the field its name tells.
    fn nested_name(&mut self, id: Id, object: &Object, field: &str, value: &Type) {
        let Type::Object(inner) = value else { return };
        let wanted = format!("{}.{field}", object.name);
        if inner.name.starts_with("Object")
            && object.name.starts_with("Object")
            && inner.name != wanted
        {
            let found = &inner.name;
            let message = format!(
                "expected type of field '{field}' is '{wanted}' but provided type is '{found}'"
            );
            self.error(id, message);
        }
    }

    fn fold(&mut self, id: Id, fold: &Fold) -> Type {
        let range = self.check(&fold.range);
        let range = self.unifier.resolve(&range, false);
        if matches!(fold.kind, Macro::OptMap | Macro::OptFlatMap) {
            return self.optional_fold(id, fold, &range);
        }
        if fold.kind == Macro::Bind {
            self.locals.push((fold.var.clone(), range));
            let body = self.check(&fold.body);
            self.locals.pop();
            return body;
        }
        let (first, second) = match &range {
            Type::List(element) if fold.var2.is_some() => (Type::Int, (**element).clone()),
            Type::List(element) => ((**element).clone(), Type::Error),
            Type::Map(entry) => (entry.0.clone(), entry.1.clone()),
            Type::Dyn | Type::Error | Type::Var(_) => {
                self.unifier.fits(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.error(fold.range.id, message);
                (Type::Error, Type::Error)
            }
        };
        let depth = self.locals.len();
        self.locals.push((fold.var.clone(), first.clone()));
        if let Some(var2) = &fold.var2 {
            self.locals.push((var2.clone(), second));
        }
        if let Some(condition) = &fold.condition {
            let ty = self.check(condition);
            self.boolean(condition.id, &ty);
        }
        let body = self.check(&fold.body);
        let result = match fold.kind {
            Macro::All | Macro::Exists | Macro::ExistsOne => {
                self.boolean(fold.body.id, &body);
                Type::Bool
            }
            Macro::Filter => {
                self.boolean(fold.body.id, &body);
                Type::list(first)
            }
            Macro::Map => Type::list(body),
            Macro::SortBy => self.sorted(id, &range, body),
            Macro::TransformMap => Type::map(first, body),
            Macro::TransformMapEntry => match self.unifier.resolve(&body, false) {
                Type::Map(entry) => Type::Map(entry),
                Type::Dyn | Type::Error => Type::map(Type::Dyn, Type::Dyn),
                other => {
                    let message = format!(
                        "found no matching overload for 'cel.@mapInsert' applied to '(map(dyn, dyn), {other})'"
                    );
                    self.error(id, message);
                    Type::Error
                }
            },
            Macro::OptMap | Macro::OptFlatMap | Macro::Bind => Type::Error,
        };
        self.locals.truncate(depth);
        result
    }

    fn boolean(&mut self, id: Id, ty: &Type) {
        if !self.unifier.fits(&Type::Bool, ty) {
            self.mismatch(id, &Type::Bool, ty);
        }
    }

    fn sorted(&mut self, id: Id, range: &Type, key: Type) -> Type {
        let keys = Type::list(key);
        if let Some(function) = functions::find("@sortKeys", false) {
            let fits = function.overloads.iter().any(|o| self.unifier.fits(&keys, &o.args[0]));
            if !fits {
                let (range, keys) =
                    (self.unifier.resolve(range, true), self.unifier.resolve(&keys, true));
                let message = format!(
                    "found no matching overload for '@sortByAssociatedKeys' applied to '{range}.({keys})'"
                );
                self.error(id, message);
                return Type::Error;
            }
        }
        match range {
            Type::List(_) => range.clone(),
            _ => Type::list(Type::Dyn),
        }
    }

    fn optional_fold(&mut self, id: Id, fold: &Fold, range: &Type) -> Type {
        let inner = match range {
            Type::Optional(inner) => (**inner).clone(),
            ty if ty.is_dyn_or_error() => Type::Dyn,
            other => {
                let message =
                    format!("found no matching overload for 'hasValue' applied to '{other}.()'");
                self.error(id, message);
                Type::Error
            }
        };
        self.locals.push((fold.var.clone(), inner));
        let body = self.check(&fold.body);
        self.locals.pop();
        if fold.kind == Macro::OptMap {
            return Type::optional(body);
        }
        match self.unifier.resolve(&body, false) {
            ty @ Type::Optional(_) => ty,
            ty if ty.is_dyn_or_error() => Type::optional(Type::Dyn),
            other => {
                let message = format!(
                    "found no matching overload for '_?_:_' applied to '(bool, {other}, optional_type(dyn))'"
                );
                self.error(id, message);
                Type::Error
            }
        }
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}
