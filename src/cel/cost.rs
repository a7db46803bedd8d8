//! The static estimate: what an expression may cost for data of the declared sizes.
//!
//! Follows cel-go's rules, and Kubernetes' for its libraries, on the expansion that upstream's
//! macros have: whether a definition is accepted depends on it.

use std::collections::HashMap;

use crate::ast::{Expr, Fold, Id, Kind, Literal, Macro, Select};
use crate::charge::{
    CHECK, LIST_CREATE, MAP_CREATE, REGEX_FACTOR, REQUIREMENT, STRING_FACTOR, STRUCT_CREATE,
};
use crate::check::{Checked, Note};
use crate::environment::Environment;
use crate::functions;
use crate::program::CostEstimate;
use crate::types::{Decl, Type};

/// The least and the most of a size, or of a cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    min: u64,
    max: u64,
}

const UNKNOWN: Range = Range { min: 0, max: u64::MAX };

fn fixed(value: u64) -> Range {
    Range { min: value, max: value }
}

impl Range {
    fn plus(self, other: Range) -> Range {
        Range { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Range) -> Range {
        Range { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn scaled(self, factor: f64) -> Range {
        // Casting saturates.
        let scale = |value: u64| (value as f64 * factor).ceil() as u64;
        Range { min: scale(self.min), max: scale(self.max) }
    }

    fn union(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// Sizes of what a list or map holds.
#[derive(Clone, Copy, Debug)]
struct Entries {
    is_list: bool,
    key: Range,
    value: Range,
}

impl Place<'_> {
    fn max_size(self) -> Option<u64> {
        match self {
            Place::Computed => None,
            Place::Data(decl) => decl.and_then(Decl::max_size),
        }
    }
}

impl Entries {
    fn union(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        let (a, b) = (a?, b?);
        let (key, value) = (a.key.union(b.key), a.value.union(b.value));
        Some(Self { is_list: a.is_list, key, value })
    }
}

/// Where a value stands in the data. Upstream looks sizes up by a path whose first step it
/// takes for `self`, whatever it is: what an expression computes has no path, and the first
/// step away from it leads to the declaration of `self`. Rules are accepted or not by that.
#[derive(Clone, Copy)]
enum Place<'e> {
    /// No path.
    Computed,
    /// A path to this declaration, or to none that is known.
    Data(Option<&'e Decl>),
}

struct Local<'e> {
    place: Place<'e>,
    size: Option<Range>,
    entries: Option<Entries>,
}

/// What a call costs itself, and the size of its result if that is known.
struct Call {
    cost: Range,
    size: Option<Range>,
}

impl Call {
    fn of(cost: Range) -> Self {
        Self { cost, size: None }
    }

    fn sized(cost: Range, size: Range) -> Self {
        Self { cost, size: Some(size) }
    }
}

pub(crate) fn estimate(environment: &Environment, checked: &Checked, root: &Expr) -> CostEstimate {
    let mut coster = Coster {
        environment,
        checked,
        root: environment.find("self").map(|at| &environment.variables[at].decl),
        places: HashMap::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
        locals: Vec::new(),
    };
    let cost = coster.cost(root);
    CostEstimate { min: cost.min, max: cost.max }
}

struct Coster<'e> {
    environment: &'e Environment,
    checked: &'e Checked,
    /// The declaration of `self`.
    root: Option<&'e Decl>,
    places: HashMap<Id, Place<'e>>,
    sizes: HashMap<Id, Range>,
    entries: HashMap<Id, Entries>,
    locals: Vec<Local<'e>>,
}

impl<'e> Coster<'e> {
    fn ty(&self, expr: &Expr) -> &Type {
        &self.checked.types[expr.id]
    }

    fn local(&self, expr: &Expr) -> Option<&Local<'e>> {
        match self.checked.notes[expr.id] {
            Note::Local(index) => self.locals.get(index),
            _ => None,
        }
    }

    fn place(&self, expr: &Expr) -> Place<'e> {
        self.places.get(&expr.id).copied().unwrap_or(Place::Computed)
    }

    /// The place one step from that of an expression.
    fn step(&self, expr: &Expr, name: &str) -> Place<'e> {
        Place::Data(match self.place(expr) {
            Place::Computed => self.root,
            Place::Data(decl) => decl.and_then(|decl| decl.step(name)),
        })
    }

    fn size(&self, expr: &Expr) -> Range {
        self.known_size(expr).unwrap_or(UNKNOWN)
    }

    fn known_size(&self, expr: &Expr) -> Option<Range> {
        if let Some(size) = self.sizes.get(&expr.id) {
            return Some(*size);
        }
        match &expr.kind {
            Kind::Literal(Literal::String(text)) => {
                return Some(fixed(text.chars().count() as u64));
            }
            Kind::Literal(Literal::Bytes(bytes)) => return Some(fixed(bytes.len() as u64)),
            Kind::Literal(_) => return Some(fixed(1)),
            Kind::List(elements) => return Some(fixed(elements.len() as u64)),
            Kind::Map(entries) => return Some(fixed(entries.len() as u64)),
            _ => {}
        }
        if let Some(max) = self.place(expr).max_size() {
            return Some(Range { min: 0, max });
        }
        if self.ty(expr).is_scalar() {
            return Some(fixed(1));
        }
        self.local(expr).and_then(|local| local.size)
    }

    fn known_entries(&self, expr: &Expr) -> Option<Entries> {
        let own = self.entries.get(&expr.id).copied();
        own.or_else(|| self.local(expr).and_then(|local| local.entries))
    }

    fn set_entries(&mut self, id: Id, entries: Option<Entries>) {
        if let Some(entries) = entries {
            self.entries.insert(id, entries);
        }
    }

    fn cost(&mut self, expr: &Expr) -> Range {
        match &self.checked.notes[expr.id] {
            Note::Local(index) => {
                if let Some(place) = self.locals.get(*index).map(|local| local.place) {
                    self.places.insert(expr.id, place);
                }
                return fixed(1);
            }
            Note::Variable(index) => {
                let decl = &self.environment.variables[*index].decl;
                self.places.insert(expr.id, Place::Data(Some(decl)));
                return fixed(1);
            }
            Note::Composed(_) => return fixed(2),
            Note::Type(_) => return fixed(1),
            Note::None | Note::Global(_) => {}
        }
        match &expr.kind {
            Kind::Literal(_) => fixed(0),
            Kind::Ident(_) => fixed(1),
            Kind::Select { operand, field, how } => self.select(expr, operand, field, *how),
            Kind::Call { name, target, args } => {
                let full = match &self.checked.notes[expr.id] {
                    Note::Global(full) => Some(full.clone()),
                    _ => None,
                };
                match full {
                    Some(full) => self.call(expr, &full, None, args),
                    None => self.call(expr, name, target.as_deref(), args),
                }
            }
            Kind::List(_) | Kind::Map(_) | Kind::Struct { .. } => self.aggregate(expr),
            Kind::Fold(fold) => self.fold(expr.id, fold),
        }
    }

    fn select(&mut self, expr: &Expr, operand: &Expr, field: &str, how: Select) -> Range {
        let mut sum = self.cost(operand);
        if how == Select::Test {
            return sum;
        }
        if how == Select::Optional {
            return sum.plus(fixed(1));
        }
        if matches!(self.ty(operand), Type::Map(_) | Type::Object(_)) {
            sum = sum.plus(fixed(1));
        }
        self.places.insert(expr.id, self.step(operand, field));
        sum
    }

    fn call(&mut self, expr: &Expr, name: &str, target: Option<&Expr>, args: &[Expr]) -> Range {
        if name == "dyn"
            && let [arg] = args
        {
            let cost = self.cost(arg);
            let (size, entries) = (self.known_size(arg), self.known_entries(arg));
            if let Some(size) = size {
                self.sizes.insert(expr.id, size);
            }
            self.set_entries(expr.id, entries);
            return cost.plus(fixed(1));
        }
        let costs: Vec<Range> = args.iter().map(|arg| self.cost(arg)).collect();
        let mut sum = target.map_or(fixed(0), |target| self.cost(target));
        match (name, &costs[..]) {
            ("_&&_" | "_||_", [left, right]) => {
                let cost = Range { min: left.min, max: left.plus(*right).max };
                return sum.plus(cost);
            }
            ("_?_:_", [condition, yes, no]) => {
                let size = self.size(&args[1]).union(self.size(&args[2]));
                let entries =
                    Entries::union(self.known_entries(&args[1]), self.known_entries(&args[2]));
                self.set_entries(expr.id, entries);
                self.sizes.insert(expr.id, size);
                return sum.plus(*condition).plus(yes.union(*no));
            }
            _ => {}
        }
        for cost in costs {
            sum = sum.plus(cost);
        }
        let call = self.function(expr, name, target, args);
        if let Some(size) = call.size.or_else(|| self.known_size(expr)) {
            self.sizes.insert(expr.id, size);
        }
        sum.plus(call.cost)
    }

    /// The size of the elements of a list, if it is one.
    fn element_size(&self, list: &Expr) -> Option<Range> {
        if !matches!(self.ty(list), Type::List(_)) {
            return None;
        }
        let place = match self.place(list) {
            Place::Computed => Place::Computed,
            Place::Data(_) => self.step(list, "@items"),
        };
        Some(place.max_size().map_or(UNKNOWN, |max| Range { min: 0, max }))
    }

    fn function(&mut self, expr: &Expr, name: &str, target: Option<&Expr>, args: &[Expr]) -> Call {
        let size = |index: usize| args.get(index).map_or(UNKNOWN, |arg| self.size(arg));
        let target_size = target.map_or(UNKNOWN, |target| self.size(target));
        let one = Call::of(fixed(1));
        match name {
            "check" => Call::of(fixed(CHECK)),
            "fieldSelector" | "labelSelector" => {
                let length = size(0);
                let requirements = length.scaled(0.5).scaled(REQUIREMENT as f64);
                Call::of(fixed(LIST_CREATE).plus(length.scaled(STRING_FACTOR)).plus(requirements))
            }
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
                let Some(target) = target else { return one };
                let element = self.element_size(target);
                match (self.ty(target), element) {
                    (Type::List(ty), Some(element)) => {
                        let mut each = fixed(1);
                        if matches!(**ty, Type::String | Type::Bytes) {
                            each = each.plus(element.scaled(STRING_FACTOR));
                        }
                        Call::of(target_size.times(each))
                    }
                    _ => Call::of(target_size.scaled(STRING_FACTOR)),
                }
            }
            "url" | "jsonpatch.escapeKey" => Call::sized(size(0).scaled(STRING_FACTOR), size(0)),
            "lowerAscii" | "upperAscii" | "substring" | "trim" => {
                Call::sized(target_size.scaled(STRING_FACTOR), target_size)
            }
            "replace" => {
                let cost = target_size.scaled(2.0 * STRING_FACTOR);
                Call::sized(cost, replaced_size(target_size, size(0), size(1)))
            }
            "split" => {
                let limit = match args.get(1).map(|arg| &arg.kind) {
                    Some(Kind::Literal(Literal::Int(limit))) => *limit as u64,
                    _ => target_size.max,
                };
                let cost = target_size.scaled(2.0 * STRING_FACTOR);
                Call::sized(cost, Range { min: 0, max: limit })
            }
            "join" => {
                let Some(target) = target else { return one };
                let mut total = fixed(0);
                if let Some(element) = self.element_size(target) {
                    total = target_size.times(element);
                }
                if !args.is_empty() {
                    let separators = Range {
                        min: target_size.min.saturating_sub(1),
                        max: target_size.max.saturating_sub(1),
                    };
                    total = total.plus(size(0).times(separators));
                }
                Call::sized(total.scaled(STRING_FACTOR), total)
            }
            "find" | "findAll" | "matches" => {
                // `matches` can be called as a function; upstream's estimate then is one.
                if target.is_none() {
                    return one;
                }
                let text = target_size.plus(fixed(1)).scaled(STRING_FACTOR);
                let cost = text.times(size(0).scaled(REGEX_FACTOR));
                if name == "matches" {
                    return Call::of(cost);
                }
                Call::sized(cost, Range { min: 0, max: target_size.max })
            }
            "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => {
                Call::of(size(0).scaled(STRING_FACTOR))
            }
            "ip" if target.is_none() => Call::of(size(0).scaled(STRING_FACTOR)),
            "ip.isCanonical" => Call::of(size(0).scaled(2.0 * STRING_FACTOR)),
            "containsIP" | "containsCIDR" => {
                let address = Range { min: 4, max: 16 };
                let mut cost = address.plus(address).scaled(STRING_FACTOR);
                if name == "containsCIDR" {
                    cost = cost.plus(address.scaled(STRING_FACTOR)).plus(fixed(1));
                }
                if args.first().is_some_and(|arg| matches!(self.ty(arg), Type::String | Type::Dyn))
                {
                    cost = cost.plus(size(0).scaled(STRING_FACTOR));
                }
                Call::of(cost)
            }
            "validate" => {
                let pattern = 128.0 * REGEX_FACTOR;
                Call::of(size(0).scaled(STRING_FACTOR).scaled(pattern))
            }
            "format" => Call::of(target_size.scaled(STRING_FACTOR)),
            "bytes"
                if matches!(args.first().map(|a| self.ty(a)), Some(Type::String | Type::Dyn)) =>
            {
                let length = size(0);
                let bytes = Range { min: length.min, max: length.max.saturating_mul(4) };
                Call::sized(length.scaled(STRING_FACTOR), bytes)
            }
            "string" if matches!(args.first().map(|a| self.ty(a)), Some(Type::Bytes)) => {
                let length = size(0);
                let chars = Range { min: length.min / 4, max: length.max };
                Call::sized(length.scaled(STRING_FACTOR), chars)
            }
            "strings.quote" => {
                let length = size(0);
                let max = length.max.saturating_mul(2).saturating_add(2);
                let quoted = Range { min: length.min.saturating_add(2), max };
                Call::sized(length.scaled(STRING_FACTOR), quoted)
            }
            "startsWith" | "endsWith" => Call::of(size(0).scaled(STRING_FACTOR)),
            "@in" => match args.get(1).map(|arg| self.ty(arg)) {
                Some(Type::Map(_)) => one,
                Some(Type::List(_)) => Call::of(size(1)),
                _ => Call::of(fixed(1).union(size(1))),
            },
            "contains" => {
                Call::of(target_size.scaled(STRING_FACTOR).times(size(0).scaled(STRING_FACTOR)))
            }
            "_+_" => self.add(expr, args),
            "_==_" | "_!=_" => {
                let opaque = |arg: &Expr| matches!(self.ty(arg), Type::Opaque(name) if *name != functions::URL);
                if name == "_==_" && args.iter().all(opaque) {
                    return one;
                }
                Call::of(comparison(size(0), size(1)))
            }
            "_<_" | "_<=_" | "_>_" | "_>=_" => {
                let kinds = [args.first(), args.get(1)].map(|arg| arg.map(|arg| self.ty(arg)));
                let text =
                    kinds.iter().flatten().any(|ty| matches!(ty, Type::String | Type::Bytes));
                let open = kinds.iter().flatten().all(|ty| matches!(ty, Type::Dyn));
                if text {
                    Call::of(comparison(size(0), size(1)))
                } else if open {
                    Call::of(comparison(size(0), size(1)).union(fixed(1)))
                } else {
                    one
                }
            }
            "_[_]" | "_[?_]" => self.index(expr, args),
            _ => self.list_function(name, target, args).unwrap_or(one),
        }
    }

    fn add(&mut self, expr: &Expr, args: &[Expr]) -> Call {
        let [left, right] = args else { return Call::of(fixed(1)) };
        let result = self.size(left).plus(self.size(right));
        let text = |ty: &Type| matches!(ty, Type::String | Type::Bytes);
        let (a, b) = (self.ty(left), self.ty(right));
        let is_text = text(a) || text(b);
        let open = a.is_dyn() && b.is_dyn();
        let is_list = matches!(a, Type::List(_)) || matches!(b, Type::List(_));
        if is_text || open || is_list {
            let entries = Entries::union(self.known_entries(left), self.known_entries(right));
            self.set_entries(expr.id, entries);
        }
        if is_text {
            Call::sized(result.scaled(STRING_FACTOR), result)
        } else if open {
            Call::sized(result.scaled(STRING_FACTOR).union(fixed(1)), result)
        } else if is_list {
            Call::sized(fixed(1), result)
        } else {
            Call::of(fixed(1))
        }
    }

    fn index(&mut self, expr: &Expr, args: &[Expr]) -> Call {
        let Some(container) = args.first() else { return Call::of(fixed(1)) };
        let step = match self.ty(container) {
            Type::List(_) => "@items",
            Type::Map(_) => "@values",
            _ => return Call::of(fixed(1)),
        };
        self.places.insert(expr.id, self.step(container, step));
        let size = self.known_entries(container).map(|entries| entries.value);
        Call { cost: fixed(1), size }
    }

    /// Functions that build or compare whole lists.
    fn list_function(&self, name: &str, target: Option<&Expr>, args: &[Expr]) -> Option<Call> {
        let allocating = |factor: f64, size: Range| {
            Call::sized(size.scaled(factor).plus(fixed(1 + LIST_CREATE)), size)
        };
        let literal = |index: usize, default: u64| match args.get(index).map(|arg| &arg.kind) {
            Some(Kind::Literal(Literal::Int(value))) => (*value).max(0) as u64,
            _ => default,
        };
        let target_size = target.map_or(UNKNOWN, |target| self.size(target));
        let text = |expr: &Expr| matches!(self.ty(expr), Type::List(ty) if matches!(**ty, Type::String | Type::Bytes));
        Some(match name {
            "slice" => {
                let end = literal(1, target_size.max);
                allocating(1.0, fixed(end.saturating_sub(literal(0, 0))))
            }
            "lists.range" => allocating(1.0, fixed(literal(0, u64::MAX))),
            "reverse" => allocating(1.0, target_size),
            "flatten" if args.is_empty() => allocating(1.0, target_size),
            "flatten" => allocating(literal(0, u64::MAX) as f64, target_size),
            "distinct" => allocating(2.0, target_size.times(target_size)),
            "sort" => {
                let factor = if target.is_some_and(text) { 2.0 + STRING_FACTOR } else { 2.0 };
                allocating(factor, target_size.times(target_size))
            }
            "sets.contains" | "sets.intersects" | "sets.equivalent" => {
                let [a, b] = args else { return None };
                let factor = if name == "sets.equivalent" { 2.0 } else { 1.0 };
                let cost = self.size(a).times(self.size(b)).scaled(factor);
                Call::of(cost.plus(fixed(1)))
            }
            _ => return None,
        })
    }

    fn aggregate(&mut self, expr: &Expr) -> Range {
        let empty = Range { min: u64::MAX, max: 0 };
        match &expr.kind {
            Kind::List(elements) => {
                let mut sum = fixed(LIST_CREATE);
                let mut value = if elements.is_empty() { fixed(0) } else { empty };
                for element in elements {
                    sum = sum.plus(self.cost(&element.value));
                    value = value.union(self.size(&element.value));
                }
                let entries = Entries { is_list: true, key: fixed(1), value };
                self.entries.insert(expr.id, entries);
                sum
            }
            Kind::Map(entries) => {
                let mut sum = fixed(MAP_CREATE);
                let start = if entries.is_empty() { fixed(0) } else { empty };
                let (mut key, mut value) = (start, start);
                for entry in entries {
                    sum = sum.plus(self.cost(&entry.key)).plus(self.cost(&entry.value));
                    key = key.union(self.size(&entry.key));
                    value = value.union(self.size(&entry.value));
                }
                self.entries.insert(expr.id, Entries { is_list: false, key, value });
                sum
            }
            Kind::Struct { fields, .. } => {
                let mut sum = fixed(STRUCT_CREATE);
                for field in fields {
                    sum = sum.plus(self.cost(&field.value));
                }
                sum
            }
            _ => fixed(0),
        }
    }

    /// The variables of a macro over this range.
    fn push_variables(&mut self, range: &Expr, two: bool) {
        let entries = self.known_entries(range);
        let is_list = match entries {
            Some(entries) => entries.is_list,
            None => matches!(self.ty(range), Type::List(_)),
        };
        let keys = Local {
            place: self.step(range, if is_list { "@indices" } else { "@keys" }),
            size: entries.map(|entries| entries.key),
            entries: None,
        };
        let values = Local {
            place: self.step(range, if is_list { "@items" } else { "@values" }),
            size: entries.map(|entries| entries.value),
            entries: None,
        };
        if two {
            self.locals.push(keys);
            self.locals.push(values);
        } else {
            self.locals.push(if is_list { values } else { keys });
        }
    }

    /// The size of a macro's variable over the elements of a range.
    fn local_size(&self, index: usize, range: &Expr) -> Range {
        let Some(local) = self.locals.get(index) else { return UNKNOWN };
        if let Some(max) = local.place.max_size() {
            return Range { min: 0, max };
        }
        match self.ty(range) {
            Type::List(element) if element.is_scalar() => fixed(1),
            _ => local.size.unwrap_or(UNKNOWN),
        }
    }

    /// A macro, as the loop that upstream expands it to.
    fn fold(&mut self, id: Id, fold: &Fold) -> Range {
        let range = self.cost(&fold.range);
        if matches!(fold.kind, Macro::OptMap | Macro::OptFlatMap) {
            return self.optional_fold(fold, range);
        }
        if fold.kind == Macro::Bind {
            return self.bind(id, fold, range);
        }
        let depth = self.locals.len();
        self.push_variables(&fold.range, fold.var2.is_some());
        let condition = fold.condition.as_ref().map(|condition| self.cost(condition));
        let body = self.cost(&fold.body);
        let element_size = match fold.kind {
            Macro::Filter => self.local_size(depth, &fold.range),
            _ => self.size(&fold.body),
        };
        self.locals.truncate(depth);
        let count = self.size(&fold.range);
        // The step when the condition holds, and when it does not.
        let guarded = |step: Range, guard: Option<Range>| match guard {
            Some(guard) => guard.plus(step.union(fixed(1))),
            None => step,
        };
        let logical = Range { min: 1, max: body.plus(fixed(1)).max };
        let (start, step, end) = match fold.kind {
            Macro::All => (0, logical.plus(fixed(2)), 1),
            Macro::Exists => (0, logical.plus(fixed(3)), 1),
            Macro::ExistsOne => (0, guarded(fixed(2), Some(body)), 2),
            Macro::Filter => (LIST_CREATE, guarded(fixed(LIST_CREATE + 3), Some(body)), 1),
            Macro::TransformMap => (MAP_CREATE, guarded(body.plus(fixed(3)), condition), 1),
            Macro::TransformMapEntry => (MAP_CREATE, guarded(body.plus(fixed(2)), condition), 1),
            _ => (LIST_CREATE, guarded(body.plus(fixed(LIST_CREATE + 2)), condition), 1),
        };
        let is_list = !matches!(fold.kind, Macro::TransformMap | Macro::TransformMapEntry);
        match fold.kind {
            Macro::All | Macro::Exists | Macro::ExistsOne => {
                self.sizes.insert(id, fixed(1));
            }
            _ => {
                self.sizes.insert(id, count);
                let value = fixed(0).union(element_size);
                let entries = Entries { is_list, key: fixed(1), value };
                if fold.kind != Macro::SortBy {
                    self.entries.insert(id, entries);
                }
            }
        }
        let looped = count.times(step);
        let mut sum = range.plus(fixed(start)).plus(fixed(end)).plus(looped);
        if fold.kind == Macro::SortBy {
            // Bound to a name first, then sorted by the list of keys.
            let text = matches!(self.ty(&fold.body), Type::String | Type::Bytes);
            let factor = if text { 2.0 + STRING_FACTOR } else { 2.0 };
            let sorting = count.times(count).scaled(factor);
            sum = sum.plus(sorting).plus(fixed(1 + LIST_CREATE + LIST_CREATE + 2));
        }
        sum
    }

    /// What is named is as large as its value; the list is the one that upstream's expansion
    /// loops over, which is empty.
    fn bind(&mut self, id: Id, fold: &Fold, value: Range) -> Range {
        let size = self.known_size(&fold.range);
        let entries = self.known_entries(&fold.range);
        self.locals.push(Local { place: self.place(&fold.range), size, entries });
        let body = self.cost(&fold.body);
        self.locals.pop();
        if let Some(size) = self.known_size(&fold.body) {
            self.sizes.insert(id, size);
        }
        self.set_entries(id, self.known_entries(&fold.body));
        value.plus(fixed(LIST_CREATE)).plus(body)
    }

    fn optional_fold(&mut self, fold: &Fold, range: Range) -> Range {
        let size = self.known_size(&fold.range);
        let local = Local { place: Place::Computed, size, entries: None };
        self.locals.push(local);
        let body = self.cost(&fold.body);
        self.locals.pop();
        let wrap = u64::from(fold.kind == Macro::OptMap);
        let present = range.plus(body).plus(fixed(1 + LIST_CREATE + wrap));
        range.plus(fixed(1)).plus(present.union(fixed(1)))
    }
}

fn comparison(a: Range, b: Range) -> Range {
    let max = a.max.min(b.max);
    Range { min: u64::from(max > 0), max }.scaled(STRING_FACTOR)
}

/// How long a text may be after replacing.
fn replaced_size(text: Range, old: Range, new: Range) -> Range {
    let ratio = |a: u64, b: u64| (a as f64 / b as f64).ceil() as u64;
    let (most, kept_max) = if old.min == 0 {
        // Nothing can be replaced around every character.
        (text.max.saturating_add(1), text.max)
    } else if new.max <= old.min {
        (0, text.max)
    } else {
        (ratio(text.max, old.min), 0)
    };
    let (least, kept_min) = if old.max == 0 {
        (text.min.saturating_add(1), text.min)
    } else if old.max <= new.min {
        (0, text.min)
    } else {
        (ratio(text.min, old.max), 0)
    };
    Range { min: least, max: most }.times(new).plus(Range { min: kept_min, max: kept_max })
}
