//! From text to a program, and what callers do with one.

use crate::ast::Expr;
use crate::budget::{Budget, EvalError};
use crate::check;
use crate::cost;
use crate::environment::Environment;
use crate::eval::{Bindings, Machine};
use crate::parser;
use crate::plan::{Node, Planner, is_boolean};
use crate::source::{CompileErrors, Source};
use crate::types::Type;
use crate::value::Value;

/// The least and the most something may cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostEstimate {
    pub min: u64,
    pub max: u64,
}

/// An expression that was parsed, checked and prepared.
pub struct Program {
    node: Node,
    result: Type,
    cost: CostEstimate,
    variables: Vec<String>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("result", &self.result).finish_non_exhaustive()
    }
}

/// Compiles an expression. All mistakes the checker finds are told together.
pub fn compile(environment: &Environment, text: &str) -> Result<Program, CompileErrors> {
    let source = Source::new(text);
    let parsed =
        parser::parse(&source, environment.binds).map_err(|err| CompileErrors(vec![*err]))?;
    let positions = &parsed.positions;
    let root: &Expr = &parsed.root;
    let checked = check::check(environment, &source, root, positions).map_err(CompileErrors)?;
    let mut planner = Planner {
        source: &source,
        positions,
        checked: &checked,
        errors: Vec::new(),
        variables: Vec::new(),
        composed: Vec::new(),
    };
    let node = planner.plan(root);
    if !planner.errors.is_empty() {
        return Err(CompileErrors(planner.errors));
    }
    let mut variables: Vec<String> =
        planner.variables.iter().map(|&at| environment.variables[at].name.clone()).collect();
    if let Some(composed) = environment.composed.as_ref().filter(|_| !planner.composed.is_empty()) {
        variables.push(composed.name.clone());
    }
    let cost = cost::estimate(environment, &checked, root);
    Ok(Program { node, result: checked.types[root.id].clone(), cost, variables })
}

impl Program {
    /// The type of what it gives; `dyn` if that shows only when it runs.
    pub fn result_type(&self) -> &Type {
        &self.result
    }

    /// Whether it is known to give a boolean.
    pub fn is_boolean(&self) -> bool {
        is_boolean(&self.result)
    }

    /// The estimate from the sizes in the environment's declarations.
    pub fn estimated_cost(&self) -> CostEstimate {
        self.cost
    }

    /// Whether it names this variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.variables.iter().any(|name| name == variable)
    }

    /// Evaluates it. The bindings must be of the environment it was compiled in.
    pub fn evaluate<'a>(
        &self,
        bindings: &Bindings<'a>,
        budget: &mut Budget,
    ) -> Result<Value<'a>, EvalError> {
        Machine { bindings, budget, locals: Vec::new() }.eval(&self.node)
    }
}
