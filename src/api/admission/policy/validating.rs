//! ValidatingAdmissionPolicy: decisions, and what a binding does about them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::compile::{Binding, Policy};
use super::evaluate::{Asker, Failure, Purse, View, bind, conditions_hold, params};
use super::{VALIDATING, is_exempt, namespace_of};
use crate::admission::Attributes;
use crate::error::{ApiError, Cause, Result};
use crate::metrics::policy::{Trouble, validated};
use crate::registry::Registry;

/// The longest message an expression may make, in bytes; a longer one is not used.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
/// The longest value of an audit annotation, in bytes; what is longer is cut.
const ANNOTATION_BYTES_MAX: usize = 10 * 1024;
/// Failures told in one audit annotation.
const FAILURES_MAX: usize = 50;

/// A refusal, and who refuses.
struct Denial {
    policy: String,
    binding: Option<String>,
    message: String,
    reason: Option<String>,
}

/// What came of one validation, and what it took.
struct Decision {
    /// Why not, with the reason that the answer gives; None where it holds.
    refused: Option<(String, Option<String>)>,
    trouble: Trouble,
    took: Duration,
}

#[derive(Default)]
struct Outcome {
    denials: Vec<Denial>,
    failures: Vec<Value>,
}

/// Asks all policies. The first refusal is told.
pub fn validate(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    if is_exempt(request) {
        return Ok(());
    }
    let hooks = registry.admission.policies.hooks(registry, VALIDATING, false);
    if hooks.is_empty() {
        return Ok(());
    }
    let mut outcome = Outcome::default();
    for hook in &hooks {
        let policy = &*hook.policy;
        let matched = match &policy.matching {
            Some(matching) => matching.matches(registry, request, object),
            None => Ok(None),
        };
        let matched = match matched {
            Ok(Some(matched)) => matched,
            Ok(None) => continue,
            Err(err) => {
                outcome.misconfigured(policy, None, &err.message);
                continue;
            }
        };
        let namespace = namespace_of(registry, request)?;
        let view = View::new(&matched, request, object, namespace.as_ref());
        // By key, the values that the bindings gave.
        let mut annotations: Vec<(String, Vec<String>)> = Vec::new();
        for binding in &hook.bindings {
            let bound = match &binding.matching {
                Some(matching) => matching.matches(registry, request, object),
                None => Ok(Some(matched.clone())),
            };
            let params = match bound {
                Ok(Some(_)) => params(registry, policy, binding.params.as_ref(), request.namespace),
                Ok(None) => continue,
                Err(err) => Err(err.message),
            };
            match params {
                Ok(params) => {
                    for param in &params {
                        let one = One { registry, request, policy, binding, view: &view, param };
                        one.run(&mut outcome, &mut annotations);
                    }
                }
                Err(err) => outcome.misconfigured(policy, Some(binding), &err),
            }
        }
        for (key, values) in annotations {
            let key = format!("{}/{key}", policy.name);
            request.notes.annotate(key, values.join(", "));
        }
    }
    outcome.finish(request)
}

impl Outcome {
    fn misconfigured(&mut self, policy: &Policy, binding: Option<&Binding>, why: &str) {
        if policy.ignores_failure {
            return;
        }
        let what = if binding.is_some() { "binding" } else { "policy" };
        self.denials.push(Denial {
            policy: policy.name.clone(),
            binding: binding.map(|binding| binding.name.clone()),
            message: format!("failed to configure {what}: {why}"),
            reason: None,
        });
    }

    fn finish(mut self, request: &Attributes<'_>) -> Result<()> {
        if !self.failures.is_empty() {
            self.failures.truncate(FAILURES_MAX);
            let value = Value::Array(self.failures).to_string();
            request.notes.annotate("validation.policy.admission.k8s.io/validation_failure", value);
        }
        match self.denials.into_iter().next() {
            Some(denial) => Err(denial.into_error(request)),
            None => Ok(()),
        }
    }
}

impl Denial {
    fn into_error(self, request: &Attributes<'_>) -> ApiError {
        let by = match &self.binding {
            Some(binding) => format!(" with binding '{binding}'"),
            None => String::new(),
        };
        let message = format!(
            "ValidatingAdmissionPolicy '{}'{by} denied request: {}",
            self.policy, self.message
        );
        let mut error = request.forbidden(message.clone());
        (error.code, error.reason) = code_and_reason(self.reason.as_deref());
        error.with_causes(&[Cause { reason: String::new(), message, field: String::new() }])
    }
}

fn code_and_reason(reason: Option<&str>) -> (u16, &'static str) {
    match reason {
        Some("Unauthorized") => (401, "Unauthorized"),
        Some("Forbidden") => (403, "Forbidden"),
        Some("RequestEntityTooLarge") => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    }
}

/// One policy under one binding with one parameter.
struct One<'a> {
    registry: &'a Registry,
    request: &'a Attributes<'a>,
    policy: &'a Policy,
    binding: &'a Binding,
    view: &'a View,
    param: &'a Value,
}

impl One<'_> {
    fn run(&self, outcome: &mut Outcome, annotations: &mut Vec<(String, Vec<String>)>) {
        let asker = Asker { authorizer: &self.registry.authorizer, user: self.request.user };
        let bindings = bind(self.policy, self.view, self.param, &asker, self.request);
        if let Some(error) = &self.policy.error {
            return self.act(outcome, 0, self.failed(error.clone(), Trouble::Compile));
        }
        match conditions_hold(&self.policy.conditions, &bindings) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return self.act(outcome, 0, self.failed(error, Trouble::Invalid)),
        }
        let mut purse = Purse::new(cel::COST_PER_OBJECT_MAX);
        let mut results = Vec::new();
        for validation in &self.policy.validations {
            let begun = Instant::now();
            let result = match purse.evaluate(&validation.expression, &bindings) {
                Ok(value) => Ok(value.as_bool() == Some(true)),
                Err(Failure::OutOfBudget(message)) => {
                    let decision = self.failed(message, Trouble::OutOfBudget);
                    return self.act(outcome, 0, Decision { took: begun.elapsed(), ..decision });
                }
                Err(Failure::Expression(message)) => Err(message),
            };
            results.push((result, begun.elapsed()));
        }
        let results = self.policy.validations.iter().zip(results);
        for (index, (validation, (result, took))) in results.enumerate() {
            let decision = match result {
                Ok(true) => continue,
                Err(message) => {
                    let compiled = validation.expression.program.is_ok();
                    let trouble = if compiled { Trouble::Invalid } else { Trouble::Compile };
                    self.failed(message, trouble)
                }
                Ok(false) => {
                    let said = validation.message_expression.as_ref().and_then(|expression| {
                        let value = purse.evaluate(expression, &bindings).ok()?;
                        usable(value.as_str()?)
                    });
                    let own =
                        || Some(validation.message.trim().to_owned()).filter(|m| !m.is_empty());
                    let expression = validation.expression.text.trim();
                    let message = said
                        .or_else(own)
                        .unwrap_or_else(|| format!("failed expression: {expression}"));
                    let refused = Some((message, validation.reason.clone()));
                    Decision { refused, trouble: Trouble::None, took }
                }
            };
            self.act(outcome, index, Decision { took, ..decision });
        }
        self.annotate(outcome, annotations, &bindings);
    }

    /// What an error decides, by the failure policy.
    fn failed(&self, message: String, trouble: Trouble) -> Decision {
        let refused = (!self.policy.ignores_failure).then_some((message, None));
        Decision { refused, trouble, took: Duration::ZERO }
    }

    fn act(&self, outcome: &mut Outcome, index: usize, decision: Decision) {
        let (policy, binding) = (&self.policy.name, &self.binding.name);
        let count = |action| validated((policy, binding), action, decision.trouble, decision.took);
        let Some((message, reason)) = decision.refused else { return count("allow") };
        for action in &self.binding.actions {
            match action.as_str() {
                "Deny" => count("deny"),
                "Warn" => count("warn"),
                "Audit" => count("audit"),
                _ => {}
            }
            match action.as_str() {
                "Deny" => outcome.denials.push(Denial {
                    policy: policy.clone(),
                    binding: Some(binding.clone()),
                    message: message.clone(),
                    reason: reason.clone(),
                }),
                "Warn" => self.request.notes.warn(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {message}"
                )),
                "Audit" => outcome.failures.push(json!({
                    "message": message,
                    "policy": policy,
                    "binding": binding,
                    "expressionIndex": index,
                    "validationActions": self.binding.actions,
                })),
                _ => {}
            }
        }
    }

    fn annotate(
        &self,
        outcome: &mut Outcome,
        annotations: &mut Vec<(String, Vec<String>)>,
        bindings: &cel::Bindings<'_>,
    ) {
        let mut purse = Purse::new(cel::COST_PER_OBJECT_MAX);
        for (key, expression) in &self.policy.annotations {
            match purse.evaluate(expression, bindings) {
                Ok(value) => {
                    let Some(text) = value.as_str().map(str::trim).filter(|text| !text.is_empty())
                    else {
                        continue;
                    };
                    let text = cut(text, ANNOTATION_BYTES_MAX).to_owned();
                    match annotations.iter_mut().find(|(known, _)| known == key) {
                        Some((_, values)) if values.contains(&text) => {}
                        Some((_, values)) => values.push(text),
                        None => annotations.push((key.clone(), vec![text])),
                    }
                }
                // An annotation that must be made and cannot is a refusal, whatever the
                // binding does about failures.
                Err(failure) if !self.policy.ignores_failure => outcome.denials.push(Denial {
                    policy: self.policy.name.clone(),
                    binding: Some(self.binding.name.clone()),
                    message: failure.message(),
                    reason: None,
                }),
                Err(_) => {}
            }
        }
    }
}

/// A message made by an expression, if it is one line and not too long.
fn usable(text: &str) -> Option<String> {
    let text = text.trim();
    let good = !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n');
    good.then(|| text.to_owned())
}

fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
