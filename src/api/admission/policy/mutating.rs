//! MutatingAdmissionPolicy: apply configurations and JSON patches that expressions make.
//!
//! The mutated object is defaulted again by the registry, not here.

use std::time::Instant;

use cel::Budget;
use serde_json::Value;

use super::compile::{Binding, Mutation, Policy};
use super::evaluate::{
    self, Asker, Purse, View, bind, conditions_hold, in_version, object_type, params,
};
use super::matching::Matched;
use super::{MUTATING, is_exempt, namespace_of};
use crate::admission::{Attributes, Operation};
use crate::change::{json_patch, merge_fields};
use crate::error::{ApiError, Cause, Result};
use crate::metrics::policy::{Trouble, mutated};
use crate::registry::{Registry, Target, convert};
use crate::scheme::schema::{ListKind, Type};
use crate::scheme::{Typed, shape};

/// Refusals of one request, of which the first gives the message.
#[derive(Default)]
struct Refusals {
    messages: Vec<String>,
}

impl Refusals {
    fn add(&mut self, policy: &Policy, binding: Option<&Binding>, message: &str) {
        if policy.ignores_failure {
            return;
        }
        let by = match binding {
            Some(binding) => format!(" with binding '{}'", binding.name),
            None => String::new(),
        };
        self.messages.push(format!("policy '{}'{by} denied request: {message}", policy.name));
    }

    fn finish(self, request: &Attributes<'_>) -> Result<()> {
        let Some(first) = self.messages.first().cloned() else { return Ok(()) };
        let mut error = request.forbidden("admission request denied by policy");
        (error.code, error.reason) = (403, "Invalid");
        error.message = first;
        let causes: Vec<Cause> = self
            .messages
            .into_iter()
            .map(|message| Cause { reason: String::new(), message, field: String::new() })
            .collect();
        Err(error.with_causes(&causes))
    }
}

/// Lets all policies change the object; whether one did. A second round asks only the
/// policies that want to see what others changed.
///
/// # Errors
/// The refusal of a policy whose expressions failed.
pub fn mutate(
    registry: &Registry,
    request: &Attributes<'_>,
    object: &mut Value,
    again: bool,
) -> Result<bool> {
    if is_exempt(request) || object.is_null() || request.operation == Operation::Connect {
        return Ok(false);
    }
    let hooks = registry.admission.policies.hooks(registry, MUTATING, true);
    if hooks.is_empty() {
        return Ok(false);
    }
    let mut refusals = Refusals::default();
    let mut changed = false;
    for hook in hooks.iter().filter(|hook| !again || hook.policy.reinvoked) {
        let policy = &*hook.policy;
        let matched = match &policy.matching {
            Some(matching) => matching.matches(registry, request, object),
            None => Ok(None),
        };
        let matched = match matched {
            Ok(Some(matched)) => matched,
            Ok(None) => continue,
            Err(err) => {
                let message = format!("failed to configure policy: {}", err.message);
                refusals.add(policy, None, &message);
                continue;
            }
        };
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
            let params = match params {
                Ok(params) => params,
                Err(err) => {
                    let message = format!("failed to configure binding: {err}");
                    refusals.add(policy, Some(binding), &message);
                    continue;
                }
            };
            for param in &params {
                let begun = Instant::now();
                let done = run(registry, request, policy, &matched, param, object);
                let count = |trouble| {
                    mutated((&policy.name, &binding.name), trouble, begun.elapsed());
                };
                match done {
                    Ok(new) => {
                        count(Trouble::None);
                        changed |= new;
                    }
                    Err(Failure::Policy(message, trouble)) => {
                        count(trouble);
                        refusals.add(policy, Some(binding), &message);
                    }
                    Err(Failure::Request(error)) => return Err(error),
                }
            }
        }
    }
    refusals.finish(request)?;
    Ok(changed)
}

enum Failure {
    Policy(String, Trouble),
    Request(ApiError),
}

fn invalid(message: String) -> Failure {
    Failure::Policy(message, Trouble::Invalid)
}

/// One policy with one parameter; whether it changed the object.
fn run(
    registry: &Registry,
    request: &Attributes<'_>,
    policy: &Policy,
    matched: &Matched,
    param: &Value,
    object: &mut Value,
) -> std::result::Result<bool, Failure> {
    if let Some(error) = &policy.error {
        return Err(Failure::Policy(error.clone(), Trouble::Compile));
    }
    let namespace = namespace_of(registry, request).map_err(Failure::Request)?;
    let asker = Asker { authorizer: &registry.authorizer, user: request.user };
    let target = Target {
        resource: matched.resource.clone(),
        version: matched.version.clone(),
        namespace: request.namespace.to_owned(),
        name: request.name.to_owned(),
        subresource: request.subresource.to_owned(),
    };
    let mut changed = false;
    let mut asked = false;
    for mutation in &policy.mutations {
        let view = View::new(matched, request, object, namespace.as_ref());
        let bindings = bind(policy, &view, param, &asker, request);
        if !asked {
            asked = true;
            if !conditions_hold(&policy.conditions, &bindings).map_err(invalid)? {
                return Ok(false);
            }
        }
        let mut purse = Purse::new(cel::COST_PER_OBJECT_MAX);
        let value = purse.evaluate(&mutation.expression, &bindings).map_err(|failure| {
            let trouble = match &failure {
                evaluate::Failure::OutOfBudget(_) => Trouble::OutOfBudget,
                _ if mutation.expression.program.is_err() => Trouble::Compile,
                evaluate::Failure::Expression(_) => Trouble::Invalid,
            };
            Failure::Policy(failure.message(), trouble)
        })?;
        let made = value.to_json(&mut Budget::default()).map_err(|err| invalid(err.to_string()))?;
        let (typed, _) = object_type(request, &target);
        let mut new = patched(mutation, &view.object, made, typed).map_err(invalid)?;
        if !target.resource.custom {
            shape::normalise(&mut new, typed);
        }
        if new == view.object {
            continue;
        }
        keep_identity(&mut new, &view.object).map_err(invalid)?;
        *object = if matched.version == request.version {
            new
        } else {
            let stored = convert::to_storage(new, &matched.resource);
            let own = Matched { version: request.version.to_owned(), ..matched.clone() };
            let from = Attributes { version: &matched.version, ..request.clone() };
            in_version(
                &convert::from_storage(stored, &matched.resource, &matched.version),
                &own,
                &from,
            )
        };
        changed = true;
    }
    Ok(changed)
}

/// The object with one mutation done.
fn patched(
    mutation: &Mutation,
    object: &Value,
    made: Value,
    typed: Typed<'_>,
) -> std::result::Result<Value, String> {
    if !mutation.is_patch {
        let mut atomics = Vec::new();
        find_atomics(&made, typed, String::new(), &mut atomics);
        if !atomics.is_empty() {
            let message = format!(
                "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
                atomics.join(", ")
            );
            return Err(message);
        }
        return Ok(merge_fields(object, &made, typed));
    }
    let mut new = object.clone();
    if fails_a_test(object, &made) {
        // A patch whose test fails is not made, which is no failure.
        return Ok(new);
    }
    json_patch::json_patch(&mut new, &made).map_err(|err| format!("JSON Patch: {err}"))?;
    Ok(new)
}

/// Whether a `test` of the patch does not hold once the operations before it are done.
fn fails_a_test(object: &Value, patch: &Value) -> bool {
    let operations = patch.as_array().map_or(&[][..], Vec::as_slice);
    operations.iter().enumerate().any(|(index, operation)| {
        if operation["op"] != "test" {
            return false;
        }
        let mut before = object.clone();
        let earlier = Value::Array(operations[..index].to_vec());
        if json_patch::json_patch(&mut before, &earlier).is_err() {
            return false;
        }
        let path = operation["path"].as_str().unwrap_or_default();
        before.pointer(path).unwrap_or(&Value::Null) != &operation["value"]
    })
}

/// Paths of what is set as a whole, where setting a part would drop the rest.
fn find_atomics(value: &Value, typed: Typed<'_>, path: String, out: &mut Vec<String>) {
    match (value, typed.ty()) {
        (Value::Object(fields), Type::Object(object)) => {
            if object.atomic && !path.is_empty() {
                out.push(path);
                return;
            }
            for (name, field) in fields {
                if let Some(child) = typed.child(name) {
                    find_atomics(field, child, format!("{path}.{name}"), out);
                }
            }
        }
        (Value::Array(items), Type::List(list)) => {
            if list.kind == ListKind::Atomic {
                out.push(path);
                return;
            }
            for (index, item) in items.iter().enumerate() {
                find_atomics(item, typed.at(list.items), format!("{path}[{index}]"), out);
            }
        }
        _ => {}
    }
}

/// What an object is may not be changed by a policy.
fn keep_identity(new: &mut Value, old: &Value) -> std::result::Result<(), String> {
    if !new.is_object() {
        return Err("the patched object is not an object".to_owned());
    }
    for field in ["apiVersion", "kind"] {
        new[field] = old[field].clone();
    }
    Ok(())
}
