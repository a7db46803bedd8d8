//! The Common Expression Language as Kubernetes 1.36 uses it: parse, check, estimate, evaluate.
//!
//! Expressions come from strangers: length, depth, cost, work and memory are all bounded, and
//! no input makes a panic. Nothing here does IO; an authorizer's answers come through a trait.
//! Environments are their owners', but for those that several rooms share ([`devices`]).
//!
//! A caller declares variables in an [`Environment`], compiles once with [`compile`], and
//! evaluates the [`Program`] with [`Bindings`] of that environment and a [`Budget`].

mod ast;
mod authorizer;
mod budget;
mod charge;
mod check;
mod cost;
pub mod devices;
mod environment;
mod eval;
mod formats;
mod functions;
mod lexer;
mod library;
mod lists;
mod macros;
mod net;
mod operators;
mod parser;
mod plan;
mod program;
mod regexes;
mod semver;
mod source;
mod strings;
mod time;
mod types;
mod unify;
mod value;

pub use authorizer::{Authorizer, Decision, Question};
pub use budget::{
    Budget, COST_MATCH_CONDITIONS_MAX, COST_PER_CALL_MAX, COST_PER_OBJECT_MAX,
    ESTIMATE_PER_DEFINITION_MAX, ESTIMATE_PER_EXPRESSION_MAX, EvalError,
};
pub use environment::Environment;
pub use eval::Bindings;
pub use parser::{DEPTH_MAX, EXPRESSION_CHARS_MAX};
pub use program::{CostEstimate, Program, compile};
pub use source::{CompileError, CompileErrors};
pub use time::Time;
pub use types::{Decl, FieldDecl, Format, ListKind, REQUEST_BYTES_MAX, Type, escape, unescape};
pub use value::{List, Map, Struct, Text, Value};

impl Type {
    /// The type of the `authorizer` variable.
    pub fn authorizer() -> Self {
        Type::Opaque(functions::AUTHORIZER)
    }

    /// The type of `authorizer.requestResource`.
    pub fn resource_check() -> Self {
        Type::Opaque(functions::RESOURCE_CHECK)
    }
}
