//! What an evaluation may spend, and how it fails.
//!
//! Cost is what upstream counts. Work and memory are our own bounds besides, for what a cost
//! that is charged after a step cannot stop in time.

use std::borrow::Cow;
use std::fmt;

/// The most one evaluation may cost.
pub const COST_PER_CALL_MAX: u64 = 1_000_000;
/// The most the rules of one object, or the expressions of one policy binding, may cost.
pub const COST_PER_OBJECT_MAX: u64 = 10_000_000;
/// The most the match conditions of one binding or webhook configuration may cost.
pub const COST_MATCH_CONDITIONS_MAX: u64 = COST_PER_OBJECT_MAX / 4;
/// The most one expression of a schema may be estimated to cost.
pub const ESTIMATE_PER_EXPRESSION_MAX: u64 = 10_000_000;
/// The most all expressions of a custom resource definition may be estimated to cost.
pub const ESTIMATE_PER_DEFINITION_MAX: u64 = 100_000_000;

/// Comparisons and the like one evaluation may make: about a tenth of a second.
const WORK_MAX: u64 = 2_000_000;
/// Bytes one evaluation may allocate.
const MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why an evaluation gave no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalError {
    message: Cow<'static, str>,
    over_budget: bool,
}

impl EvalError {
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), over_budget: false }
    }

    pub(crate) fn over_budget() -> Self {
        let message = "operation cancelled: actual cost limit exceeded";
        Self { message: message.into(), over_budget: true }
    }

    pub(crate) fn no_overload() -> Self {
        Self::new("no such overload")
    }

    /// Whether the budget ran out; no operator absorbs this.
    pub fn is_over_budget(&self) -> bool {
        self.over_budget
    }

    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for EvalError {}

/// What is left to one evaluation, or to several that share a budget.
#[derive(Clone, Debug)]
pub struct Budget {
    limit: u64,
    spent: u64,
    work: u64,
    memory: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(COST_PER_CALL_MAX)
    }
}

impl Budget {
    pub fn new(cost_max: u64) -> Self {
        Self { limit: cost_max, spent: 0, work: WORK_MAX, memory: MEMORY_BYTES_MAX }
    }

    /// What was spent so far, in units of cost.
    pub fn spent(&self) -> u64 {
        self.spent
    }

    pub(crate) fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.limit { Err(EvalError::over_budget()) } else { Ok(()) }
    }

    pub(crate) fn work(&mut self, steps: usize) -> Result<(), EvalError> {
        match self.work.checked_sub(steps as u64) {
            Some(left) => {
                self.work = left;
                Ok(())
            }
            None => Err(EvalError::over_budget()),
        }
    }

    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<(), EvalError> {
        match self.memory.checked_sub(bytes as u64) {
            Some(left) => {
                self.memory = left;
                Ok(())
            }
            None => Err(EvalError::over_budget()),
        }
    }
}
