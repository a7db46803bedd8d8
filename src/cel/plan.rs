//! A checked tree to one that is quick to evaluate: names resolved, patterns compiled.

use std::sync::Arc;

use regex::Regex;

use crate::ast::{Expr, Id, Kind, Literal, Macro, Select};
use crate::check::{Checked, Note};
use crate::library::{self, Builtin};
use crate::lists;
use crate::regexes;
use crate::source::{CompileError, Source};
use crate::time;
use crate::types::Type;
use crate::value::{Key, List, Map, Value};

pub(crate) enum Node {
    Const(Value<'static>),
    Variable(usize),
    Local(usize),
    Composed(usize),
    Select {
        operand: Box<Node>,
        field: Arc<str>,
        optional: bool,
    },
    Has {
        operand: Box<Node>,
        field: Arc<str>,
    },
    Index {
        operand: Box<Node>,
        index: Box<Node>,
        optional: bool,
    },
    And(Box<(Node, Node)>),
    Or(Box<(Node, Node)>),
    Conditional(Box<(Node, Node, Node)>),
    /// `or` and `orValue`, whose argument may not be evaluated.
    Alternative {
        operand: Box<Node>,
        other: Box<Node>,
        unwrap: bool,
    },
    Call {
        name: Arc<str>,
        function: Builtin,
        args: Vec<Node>,
    },
    Search {
        name: Arc<str>,
        regex: Regex,
        args: Vec<Node>,
    },
    List(Vec<(Node, bool)>),
    Map(Vec<(Node, Node, bool)>),
    Struct {
        name: Arc<str>,
        fields: Vec<(Arc<str>, Node, bool)>,
    },
    Fold(Box<FoldNode>),
}

pub(crate) struct FoldNode {
    pub(crate) kind: Macro,
    pub(crate) range: Node,
    pub(crate) two: bool,
    pub(crate) condition: Option<Node>,
    pub(crate) body: Node,
}

pub(crate) struct Planner<'e> {
    pub(crate) source: &'e Source,
    pub(crate) positions: &'e [usize],
    pub(crate) checked: &'e Checked,
    pub(crate) errors: Vec<CompileError>,
    /// The variables that the expression names, by index.
    pub(crate) variables: Vec<usize>,
    /// The composed expressions that it names.
    pub(crate) composed: Vec<usize>,
}

impl Planner<'_> {
    fn error(&mut self, id: Id, message: impl Into<String>) {
        self.errors.push(self.source.error(self.positions[id], message));
    }

    fn boxed(&mut self, expr: &Expr) -> Box<Node> {
        Box::new(self.plan(expr))
    }

    pub(crate) fn plan(&mut self, expr: &Expr) -> Node {
        if let Some(node) = self.noted(expr.id) {
            return node;
        }
        match &expr.kind {
            Kind::Literal(literal) => Node::Const(literal_value(literal)),
            Kind::Ident(name) => {
                self.error(expr.id, format!("'{name}' can only be used with a field"));
                Node::Const(Value::Null)
            }
            Kind::Select { operand, field, how } => {
                let (operand, field) = (self.boxed(operand), field.clone());
                match how {
                    Select::Test => Node::Has { operand, field },
                    how => Node::Select { operand, field, optional: *how == Select::Optional },
                }
            }
            Kind::Call { name, target, args } => self.call(expr, name, target.as_deref(), args),
            Kind::List(_) | Kind::Map(_) | Kind::Struct { .. } => self.aggregate(expr),
            Kind::Fold(fold) => {
                let range = self.plan(&fold.range);
                let condition = fold.condition.as_ref().map(|condition| self.plan(condition));
                let body = self.plan(&fold.body);
                let two = fold.var2.is_some();
                Node::Fold(Box::new(FoldNode { kind: fold.kind, range, two, condition, body }))
            }
        }
    }

    fn noted(&mut self, id: Id) -> Option<Node> {
        match &self.checked.notes[id] {
            Note::Local(index) => Some(Node::Local(*index)),
            Note::Variable(index) => {
                if !self.variables.contains(index) {
                    self.variables.push(*index);
                }
                Some(Node::Variable(*index))
            }
            Note::Composed(index) => {
                if !self.composed.contains(index) {
                    self.composed.push(*index);
                }
                // Of `has(variables.x)` too: what is declared is there.
                Some(Node::Composed(*index))
            }
            Note::Type(ty) => Some(Node::Const(Value::Type(ty.clone()))),
            Note::None | Note::Global(_) => None,
        }
    }

    fn call(&mut self, expr: &Expr, name: &Arc<str>, target: Option<&Expr>, args: &[Expr]) -> Node {
        let (name, target) = match &self.checked.notes[expr.id] {
            Note::Global(full) => (full.clone(), None),
            _ => (name.clone(), target),
        };
        let mut nodes: Vec<Node> = target.map(|target| self.plan(target)).into_iter().collect();
        nodes.extend(args.iter().map(|arg| self.plan(arg)));
        self.validate(&name, target, args);
        let mut two = |wrap: fn(Box<(Node, Node)>) -> Node| match (nodes.pop(), nodes.pop()) {
            (Some(b), Some(a)) => wrap(Box::new((a, b))),
            _ => Node::Const(Value::Null),
        };
        match &*name {
            "_&&_" => return two(Node::And),
            "_||_" => return two(Node::Or),
            "_[_]" | "_[?_]" | "or" | "orValue" => {
                let (Some(b), Some(a)) = (nodes.pop(), nodes.pop()) else {
                    return Node::Const(Value::Null);
                };
                let (a, b) = (Box::new(a), Box::new(b));
                return match &*name {
                    "_[_]" => Node::Index { operand: a, index: b, optional: false },
                    "_[?_]" => Node::Index { operand: a, index: b, optional: true },
                    name => Node::Alternative { operand: a, other: b, unwrap: name == "orValue" },
                };
            }
            "_?_:_" => {
                return match (nodes.pop(), nodes.pop(), nodes.pop()) {
                    (Some(c), Some(b), Some(a)) => Node::Conditional(Box::new((a, b, c))),
                    _ => Node::Const(Value::Null),
                };
            }
            "sum" => nodes.push(Node::Const(lists::zero(&self.checked.types[expr.id]))),
            "matches" | "find" | "findAll" => {
                if let Some(Node::Const(Value::String(pattern))) = nodes.get(1)
                    && let Ok(regex) = regexes::compile(pattern)
                {
                    return Node::Search { name, regex, args: nodes };
                }
            }
            _ => {}
        }
        match library::find(&name) {
            Some(function) => Node::Call { name, function, args: nodes },
            None => {
                self.error(expr.id, format!("function '{name}' has no implementation"));
                Node::Const(Value::Null)
            }
        }
    }

    /// Literals that can be seen to be wrong are refused now.
    fn validate(&mut self, name: &str, target: Option<&Expr>, args: &[Expr]) {
        let arg = match (name, args) {
            ("matches", [_, pattern]) if target.is_none() => pattern,
            ("matches" | "duration" | "timestamp", [arg]) => arg,
            _ => return,
        };
        let Kind::Literal(Literal::String(text)) = &arg.kind else { return };
        let good = match name {
            "matches" => regexes::compile(text).is_ok(),
            "duration" => time::parse_duration(text).is_some(),
            _ => time::parse_timestamp(text).is_some(),
        };
        if !good {
            self.error(arg.id, format!("invalid {name} argument"));
        }
    }

    fn aggregate(&mut self, expr: &Expr) -> Node {
        match &expr.kind {
            Kind::List(elements) => {
                let nodes: Vec<(Node, bool)> = elements
                    .iter()
                    .map(|element| (self.plan(&element.value), element.optional))
                    .collect();
                let constant = |(node, optional): &(Node, bool)| match node {
                    Node::Const(value) if !optional => Some(value.clone()),
                    _ => None,
                };
                match nodes.iter().map(constant).collect::<Option<Vec<_>>>() {
                    Some(values) => Node::Const(Value::List(List::Owned(Arc::new(values)))),
                    None => Node::List(nodes),
                }
            }
            Kind::Map(entries) => {
                let nodes: Vec<(Node, Node, bool)> = entries
                    .iter()
                    .map(|entry| (self.plan(&entry.key), self.plan(&entry.value), entry.optional))
                    .collect();
                let constant = |(key, value, optional): &(Node, Node, bool)| match (key, value) {
                    (Node::Const(key), Node::Const(value)) if !optional => {
                        Some((Key::of(key)?, value.clone()))
                    }
                    _ => None,
                };
                let constants: Option<std::collections::BTreeMap<_, _>> =
                    nodes.iter().map(constant).collect();
                match constants {
                    Some(map) if map.len() == nodes.len() => {
                        Node::Const(Value::Map(Map::Owned(Arc::new(map))))
                    }
                    _ => Node::Map(nodes),
                }
            }
            Kind::Struct { name, fields } => {
                let fields = fields.iter();
                let fields =
                    fields.map(|f| (f.name.clone(), self.plan(&f.value), f.optional)).collect();
                Node::Struct { name: name.clone(), fields }
            }
            _ => Node::Const(Value::Null),
        }
    }
}

fn literal_value(literal: &Literal) -> Value<'static> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::Uint(value) => Value::Uint(*value),
        Literal::Double(value) => Value::Double(*value),
        Literal::String(text) => Value::string(text.clone()),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}

/// Whether a type is the one a rule must have; `dyn` is not enough.
pub(crate) fn is_boolean(ty: &Type) -> bool {
    matches!(ty, Type::Bool)
}
