//! Evaluation. Every step is charged; errors are absorbed where CEL says so.
//!
//! Recursion is as deep as the tree, which the parser bounds.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ast::Macro;
use crate::budget::{Budget, EvalError};
use crate::charge;
use crate::environment::Environment;
use crate::library;
use crate::lists;
use crate::plan::{FoldNode, Node};
use crate::program::Program;
use crate::value::{Key, Map, Struct, Text, Value};

type Eval<T> = Result<T, EvalError>;

/// The values of an environment's variables.
pub struct Bindings<'a> {
    names: Vec<String>,
    values: Vec<Option<Value<'a>>>,
    composed: Vec<Composed<'a>>,
}

struct Composed<'a> {
    program: &'a Program,
    result: OnceCell<Eval<Value<'a>>>,
}

impl<'a> Bindings<'a> {
    pub fn new(environment: &Environment) -> Self {
        let names: Vec<String> = environment.variables.iter().map(|v| v.name.clone()).collect();
        let values = names.iter().map(|_| None).collect();
        Self { names, values, composed: Vec::new() }
    }

    /// Gives a variable its value; a name the environment does not have is left out.
    pub fn set(&mut self, name: &str, value: Value<'a>) -> &mut Self {
        if let Some(at) = self.names.iter().position(|known| known == name) {
            self.values[at] = Some(value);
        }
        self
    }

    /// The composed expressions, in the order of `Environment::compose`. Each is evaluated
    /// when it is first used, with these bindings, and its result kept.
    pub fn compose(&mut self, programs: impl IntoIterator<Item = &'a Program>) -> &mut Self {
        let entry = |program| Composed { program, result: OnceCell::new() };
        self.composed = programs.into_iter().map(entry).collect();
        self
    }

    fn composed(&self, index: usize, budget: &mut Budget) -> Eval<Value<'a>> {
        let Some(entry) = self.composed.get(index) else {
            return Err(EvalError::new("no such attribute(s): variables"));
        };
        if let Some(result) = entry.result.get() {
            return result.clone();
        }
        let result = entry.program.evaluate(self, budget);
        // A variable only names earlier ones, so nobody filled it in meanwhile.
        entry.result.get_or_init(|| result).clone()
    }
}

pub(crate) struct Machine<'e, 'a> {
    pub(crate) bindings: &'e Bindings<'a>,
    pub(crate) budget: &'e mut Budget,
    pub(crate) locals: Vec<Value<'a>>,
}

impl<'a> Machine<'_, 'a> {
    pub(crate) fn eval(&mut self, node: &Node) -> Eval<Value<'a>> {
        match node {
            Node::Const(value) => Ok(value.clone()),
            Node::Variable(_) | Node::Local(_) | Node::Composed(_) => self.name(node),
            Node::Select { operand, field, optional } => self.select(operand, field, *optional),
            Node::Has { operand, field } => self.has(operand, field),
            Node::Index { operand, index, optional } => self.index(operand, index, *optional),
            Node::And(terms) => self.logical(terms, false),
            Node::Or(terms) => self.logical(terms, true),
            Node::Conditional(parts) => self.conditional(parts),
            Node::Alternative { operand, other, unwrap } => {
                self.alternative(operand, other, *unwrap)
            }
            Node::Call { .. } | Node::Search { .. } => self.call(node),
            Node::List(_) | Node::Map(_) | Node::Struct { .. } => self.aggregate(node),
            Node::Fold(fold) => self.fold(fold),
        }
    }

    fn name(&mut self, node: &Node) -> Eval<Value<'a>> {
        self.budget.charge(1)?;
        match node {
            Node::Variable(index) => match self.bindings.values.get(*index) {
                Some(Some(value)) => Ok(value.clone()),
                _ => {
                    let name = self.bindings.names.get(*index).map_or("", String::as_str);
                    Err(EvalError::new(format!("no such attribute(s): {name}")))
                }
            },
            Node::Composed(index) => {
                self.budget.charge(1)?;
                self.bindings.composed(*index, self.budget)
            }
            Node::Local(index) => {
                let local = self.locals.get(*index).cloned();
                local.ok_or_else(|| EvalError::new("no such attribute(s)"))
            }
            _ => Err(EvalError::no_overload()),
        }
    }

    fn select(&mut self, operand: &Node, field: &str, optional: bool) -> Eval<Value<'a>> {
        let operand = self.eval(operand)?;
        self.budget.charge(1)?;
        let (target, was_optional) = match &operand {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (&**inner, true),
            other => (other, false),
        };
        let found = get_field(target, field)?;
        match found {
            Some(value) if optional || was_optional => Ok(Value::some(value)),
            Some(value) => Ok(value),
            None if optional || was_optional => Ok(Value::Optional(None)),
            None => Err(EvalError::new(format!("no such key: {field}"))),
        }
    }

    fn has(&mut self, operand: &Node, field: &str) -> Eval<Value<'a>> {
        // A test is free, but the way to what is tested is not.
        let operand = self.eval(operand)?;
        let target = match &operand {
            Value::Optional(None) => return Ok(Value::Bool(false)),
            Value::Optional(Some(inner)) => inner,
            other => other,
        };
        Ok(Value::Bool(get_field(target, field)?.is_some()))
    }

    fn index(&mut self, operand: &Node, index: &Node, optional: bool) -> Eval<Value<'a>> {
        let operand = self.eval(operand)?;
        let index = self.eval(index)?;
        self.budget.charge(1)?;
        let (target, was_optional) = match &operand {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (&**inner, true),
            other => (other, false),
        };
        let found = match target {
            Value::List(list) => {
                let at = list_index(&index)?;
                usize::try_from(at).ok().and_then(|at| list.get(at))
            }
            Value::Map(map) => {
                if Key::of(&index).is_none() && !matches!(index, Value::Double(_)) {
                    let message = format!("unsupported key type: {}", index.type_name());
                    return Err(EvalError::new(message));
                }
                map.get(&index)
            }
            _ => return Err(EvalError::no_overload()),
        };
        match (found, target) {
            (Some(value), _) if optional || was_optional => Ok(Value::some(value)),
            (Some(value), _) => Ok(value),
            (None, _) if optional || was_optional => Ok(Value::Optional(None)),
            (None, Value::List(_)) => Err(EvalError::new(format!("index out of bounds: {index}"))),
            (None, _) => Err(EvalError::new(format!("no such key: {index}"))),
        }
    }

    /// `&&` and `||`: one side that decides makes errors of the other not matter.
    fn logical(&mut self, terms: &(Node, Node), decides: bool) -> Eval<Value<'a>> {
        let left = self.eval(&terms.0);
        match &left {
            Ok(Value::Bool(value)) if *value == decides => return left,
            Err(err) if err.is_over_budget() => return left,
            _ => {}
        }
        let right = self.eval(&terms.1);
        match (&left, &right) {
            (_, Ok(Value::Bool(value))) if *value == decides => right,
            (_, Err(err)) if err.is_over_budget() => right,
            (Err(_), _) => left,
            (Ok(Value::Bool(_)), Ok(Value::Bool(_)) | Err(_)) => right,
            _ => Err(EvalError::no_overload()),
        }
    }

    fn conditional(&mut self, parts: &(Node, Node, Node)) -> Eval<Value<'a>> {
        match self.eval(&parts.0)? {
            Value::Bool(true) => self.eval(&parts.1),
            Value::Bool(false) => self.eval(&parts.2),
            _ => Err(EvalError::no_overload()),
        }
    }

    fn alternative(&mut self, operand: &Node, other: &Node, unwrap: bool) -> Eval<Value<'a>> {
        let operand = self.eval(operand)?;
        self.budget.charge(1)?;
        match operand {
            Value::Optional(Some(inner)) if unwrap => Ok((*inner).clone()),
            Value::Optional(Some(inner)) => Ok(Value::Optional(Some(inner))),
            Value::Optional(None) => self.eval(other),
            _ => Err(EvalError::no_overload()),
        }
    }

    fn call(&mut self, node: &Node) -> Eval<Value<'a>> {
        let (name, nodes) = match node {
            Node::Call { name, args, .. } | Node::Search { name, args, .. } => (name, args),
            _ => return Err(EvalError::no_overload()),
        };
        let mut args: [Value<'a>; 4] = [Value::Null, Value::Null, Value::Null, Value::Null];
        let count = nodes.len().min(args.len());
        for (slot, node) in args.iter_mut().zip(nodes) {
            *slot = self.eval(node)?;
        }
        let args = &args[..count];
        let result = match node {
            Node::Call { function, .. } => function(name, self.budget, args)?,
            Node::Search { regex, .. } => library::search(name, regex, self.budget, args)?,
            _ => return Err(EvalError::no_overload()),
        };
        self.budget.charge(charge::call(name, args, &result))?;
        Ok(result)
    }

    fn aggregate(&mut self, node: &Node) -> Eval<Value<'a>> {
        match node {
            Node::List(elements) => {
                let mut out = Vec::with_capacity(elements.len());
                for (element, optional) in elements {
                    let value = self.eval(element)?;
                    out.extend(unwrap_marked(value, *optional)?);
                }
                self.budget.charge(charge::LIST_CREATE)?;
                Ok(Value::list(out))
            }
            Node::Map(entries) => {
                let mut out = BTreeMap::new();
                for (key, value, optional) in entries {
                    let key = self.eval(key)?;
                    let value = self.eval(value)?;
                    if let Some(value) = unwrap_marked(value, *optional)? {
                        insert(&mut out, &key, value)?;
                    }
                }
                self.budget.charge(charge::MAP_CREATE)?;
                Ok(Value::Map(Map::Owned(Arc::new(out))))
            }
            Node::Struct { name, fields } => {
                let mut out: Vec<(Arc<str>, Value<'a>)> = Vec::with_capacity(fields.len());
                for (field, node, optional) in fields {
                    let value = self.eval(node)?;
                    if let Some(value) = unwrap_marked(value, *optional)? {
                        out.push((field.clone(), value));
                    }
                }
                self.budget.charge(charge::STRUCT_CREATE)?;
                Ok(Value::Struct(Arc::new(Struct { name: name.clone(), fields: out })))
            }
            _ => Err(EvalError::no_overload()),
        }
    }

    fn fold(&mut self, fold: &FoldNode) -> Eval<Value<'a>> {
        let before = self.budget.spent();
        let range = self.eval(&fold.range)?;
        match fold.kind {
            Macro::OptMap | Macro::OptFlatMap => {
                let cost = self.budget.spent() - before;
                self.optional_fold(fold, range, cost)
            }
            Macro::Bind => {
                self.budget.charge(charge::LIST_CREATE)?;
                self.with((range, None), &fold.body)
            }
            Macro::All => self.quantifier(fold, &range, false),
            Macro::Exists => self.quantifier(fold, &range, true),
            Macro::SortBy => self.sort_by(fold, range),
            _ => self.collect(fold, &range),
        }
    }

    /// Evaluates with the variables of the macro in place.
    fn with(&mut self, variables: (Value<'a>, Option<Value<'a>>), node: &Node) -> Eval<Value<'a>> {
        let depth = self.locals.len();
        self.locals.push(variables.0);
        self.locals.extend(variables.1);
        let result = self.eval(node);
        self.locals.truncate(depth);
        result
    }

    /// `all` is stopped by a false, `exists` by a true; errors count only if nothing does.
    fn quantifier(&mut self, fold: &FoldNode, range: &Value<'a>, decides: bool) -> Eval<Value<'a>> {
        let mut failed: Option<EvalError> = None;
        // The condition and the result so far are looked at for each element.
        let overhead = if decides { 4 } else { 3 };
        let mut elements = Elements::new(range, fold.two)?;
        while let Some(element) = elements.next() {
            self.budget.charge(overhead)?;
            match self.with(element, &fold.body) {
                Ok(Value::Bool(value)) if value == decides => {
                    self.budget.charge(1)?;
                    return Ok(Value::Bool(decides));
                }
                Ok(Value::Bool(_)) => {}
                Err(err) if err.is_over_budget() => return Err(err),
                Ok(_) => failed = failed.or(Some(EvalError::no_overload())),
                Err(err) => failed = failed.or(Some(err)),
            }
        }
        self.budget.charge(1)?;
        match failed {
            Some(err) => Err(err),
            None => Ok(Value::Bool(!decides)),
        }
    }

    /// The macros that look at every element.
    fn collect(&mut self, fold: &FoldNode, range: &Value<'a>) -> Eval<Value<'a>> {
        let mut list: Vec<Value<'a>> = Vec::new();
        let mut map: BTreeMap<Key<'a>, Value<'a>> = BTreeMap::new();
        let mut holds = 0_u64;
        let mut elements = Elements::new(range, fold.two)?;
        while let Some(element) = elements.next() {
            if let Some(condition) = &fold.condition {
                match self.with(element.clone(), condition)? {
                    Value::Bool(true) => {}
                    Value::Bool(false) => continue,
                    _ => return Err(EvalError::no_overload()),
                }
            }
            let key = element.0.clone();
            let value = self.with(element, &fold.body)?;
            match (fold.kind, value) {
                (Macro::ExistsOne, Value::Bool(true)) => {
                    self.budget.charge(2)?;
                    holds += 1;
                }
                (Macro::Filter, Value::Bool(true)) => {
                    self.budget.charge(charge::LIST_CREATE + 3)?;
                    list.push(key);
                }
                (Macro::ExistsOne | Macro::Filter, Value::Bool(false)) => {}
                (Macro::Map, value) => {
                    self.budget.charge(charge::LIST_CREATE + 2)?;
                    list.push(value);
                }
                (Macro::TransformMap, value) => {
                    self.budget.charge(3)?;
                    insert(&mut map, &key, value)?;
                }
                (Macro::TransformMapEntry, Value::Map(entries)) => {
                    self.budget.charge(2)?;
                    for (key, value) in entries.entries() {
                        self.budget.allocate(64)?;
                        insert(&mut map, &key, value)?;
                    }
                }
                _ => return Err(EvalError::no_overload()),
            }
        }
        self.budget.charge(1)?;
        match fold.kind {
            Macro::ExistsOne => {
                self.budget.charge(1)?;
                Ok(Value::Bool(holds == 1))
            }
            Macro::TransformMap | Macro::TransformMapEntry => {
                Ok(Value::Map(Map::Owned(Arc::new(map))))
            }
            _ => Ok(Value::list(list)),
        }
    }

    fn sort_by(&mut self, fold: &FoldNode, range: Value<'a>) -> Eval<Value<'a>> {
        let mut keys = Vec::new();
        let mut elements = Elements::new(&range, false)?;
        while let Some(element) = elements.next() {
            self.budget.charge(charge::LIST_CREATE + 2)?;
            keys.push(self.with(element, &fold.body)?);
        }
        let Value::List(list) = &range else { return Err(EvalError::no_overload()) };
        let cost = charge::self_compare_cost(keys.len() as u64, keys.first());
        self.budget.charge(cost.saturating_add(3))?;
        lists::sort_by(list, keys, self.budget)
    }

    /// The optional is looked at twice in upstream's expansion, which costs.
    fn optional_fold(
        &mut self,
        fold: &FoldNode,
        range: Value<'a>,
        range_cost: u64,
    ) -> Eval<Value<'a>> {
        self.budget.charge(1)?;
        match range {
            Value::Optional(None) => {
                self.budget.charge(1)?;
                Ok(Value::Optional(None))
            }
            Value::Optional(Some(inner)) => {
                self.budget.charge(range_cost.saturating_add(1))?;
                let result = self.with(((*inner).clone(), None), &fold.body)?;
                if fold.kind == Macro::OptFlatMap {
                    return match result {
                        Value::Optional(_) => Ok(result),
                        _ => Err(EvalError::no_overload()),
                    };
                }
                self.budget.charge(1)?;
                Ok(Value::some(result))
            }
            _ => Err(EvalError::no_overload()),
        }
    }
}

fn get_field<'a>(target: &Value<'a>, field: &str) -> Eval<Option<Value<'a>>> {
    match target {
        Value::Map(map) => Ok(map.select(field)),
        Value::Struct(value) => {
            let found = value.fields.iter().find(|(name, _)| **name == *field);
            Ok(found.map(|(_, value)| value.clone()))
        }
        _ => Err(EvalError::no_overload()),
    }
}

fn list_index(index: &Value<'_>) -> Eval<i64> {
    match index {
        Value::Int(index) => Ok(*index),
        Value::Uint(index) => Ok(i64::try_from(*index).unwrap_or(i64::MAX)),
        Value::Double(index) if index.fract() == 0.0 && index.abs() < 9e15 => Ok(*index as i64),
        _ => Err(EvalError::new(format!("unsupported index type '{}' in list", index.type_name()))),
    }
}

/// What an element marked with `?` contributes: its inner value, or nothing.
fn unwrap_marked(value: Value<'_>, optional: bool) -> Eval<Option<Value<'_>>> {
    match value {
        Value::Optional(inner) if optional => Ok(inner.map(|inner| (*inner).clone())),
        other if optional => {
            let message = format!(
                "cannot initialize optional entry from non-optional value {}",
                other.type_name()
            );
            Err(EvalError::new(message))
        }
        other => Ok(Some(other)),
    }
}

fn insert<'a>(
    map: &mut BTreeMap<Key<'a>, Value<'a>>,
    key: &Value<'a>,
    value: Value<'a>,
) -> Eval<()> {
    let Some(found) = Key::of(key) else {
        return Err(EvalError::new(format!("unsupported key type: {}", key.type_name())));
    };
    if map.insert(found, value).is_some() {
        return Err(EvalError::new(format!("insert failed: key {key} already exists")));
    }
    Ok(())
}

/// The variables of a macro, element by element: the element, or key (index) and value.
struct Elements<'r, 'a> {
    range: &'r Value<'a>,
    keys: Vec<Value<'a>>,
    at: usize,
    two: bool,
}

impl<'r, 'a> Elements<'r, 'a> {
    fn new(range: &'r Value<'a>, two: bool) -> Eval<Self> {
        let keys = match range {
            Value::List(_) => Vec::new(),
            Value::Map(map) => map.keys(),
            _ => return Err(EvalError::no_overload()),
        };
        Ok(Self { range, keys, at: 0, two })
    }

    fn next(&mut self) -> Option<(Value<'a>, Option<Value<'a>>)> {
        let at = self.at;
        self.at += 1;
        match self.range {
            Value::List(list) => {
                let item = list.get(at)?;
                if self.two {
                    return Some((Value::Int(i64::try_from(at).ok()?), Some(item)));
                }
                Some((item, None))
            }
            Value::Map(map) => {
                let key = self.keys.get(at)?.clone();
                if !self.two {
                    return Some((key, None));
                }
                let value = map.entry(&key)?;
                Some((key, Some(value)))
            }
            _ => None,
        }
    }
}

/// Text of a shared string, for callers that make values.
impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Text::Shared(text.into())
    }
}
