//! What the parser makes of the text. Macros are nodes of their own (`Fold`).
//!
//! The depth of a tree is bounded by the parser, so walking one by recursion is safe.

use std::sync::Arc;

/// Names a node; an index into the tables that the checker fills.
pub(crate) type Id = usize;

#[derive(Clone, Debug)]
pub(crate) struct Expr {
    pub(crate) id: Id,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Literal(Literal),
    Ident(Arc<str>),
    Select { operand: Box<Expr>, field: Arc<str>, how: Select },
    Call { name: Arc<str>, target: Option<Box<Expr>>, args: Vec<Expr> },
    List(Vec<Element>),
    Map(Vec<Entry>),
    Struct { name: Arc<str>, fields: Vec<Field> },
    Fold(Box<Fold>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Select {
    Value,
    /// `has(a.b)`
    Test,
    /// `a.?b`
    Optional,
}

#[derive(Clone, Debug)]
pub(crate) struct Element {
    pub(crate) value: Expr,
    pub(crate) optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Expr,
    pub(crate) value: Expr,
    pub(crate) optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) id: Id,
    pub(crate) name: Arc<str>,
    pub(crate) value: Expr,
    pub(crate) optional: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Macro {
    All,
    Exists,
    ExistsOne,
    /// `map(x, e)`, `map(x, p, e)`, and with two variables `transformList`.
    Map,
    Filter,
    TransformMap,
    TransformMapEntry,
    OptMap,
    OptFlatMap,
    SortBy,
    /// `cel.bind(x, e, body)`: the range is the value, and there is no loop.
    Bind,
}

/// A macro that names one or two variables for a body.
#[derive(Clone, Debug)]
pub(crate) struct Fold {
    pub(crate) kind: Macro,
    pub(crate) range: Expr,
    pub(crate) var: Arc<str>,
    pub(crate) var2: Option<Arc<str>>,
    pub(crate) condition: Option<Expr>,
    pub(crate) body: Expr,
}
