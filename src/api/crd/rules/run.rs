//! Runs the rules of a schema on an object.

use std::collections::BTreeMap;
use std::sync::Arc;

use cel::{Bindings, Decl, EvalError, Program};
use kinds::meta::{FieldError, error::Reason};
use serde_json::Value;

use super::{Compiled, Environments, OBJECT_BUDGET, budget, declare, has_rules, rules_of};
use crate::crd::schema::Node;
use crate::crd::{Version, instance, value};

/// Bytes of a message that an expression makes.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
const BUDGET_SPENT: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// The compiled rules of a place and of everything below it.
pub struct Rules {
    /// Of the schema's place: `object`, `string`, ...
    ty: String,
    own: Option<Own>,
    items: Option<Box<Rules>>,
    properties: BTreeMap<String, Rules>,
    additional: Option<Box<Rules>>,
    correlatable: bool,
}

struct Own {
    decl: Arc<Decl>,
    environments: Environments,
    rules: Vec<Compiled>,
}

impl Rules {
    /// Compiles the rules of a schema; None where there are none.
    pub fn compile(schema: &Value, resource: bool) -> Option<Self> {
        if !has_rules(schema) {
            return None;
        }
        let embedded = |schema: &Value| schema["x-kubernetes-embedded-resource"] == true;
        let below = |name: &str| {
            let schema = schema.get(name).filter(|schema| schema.is_object())?;
            Self::compile(schema, embedded(schema)).map(Box::new)
        };
        let listed = rules_of(schema);
        let own = if listed.is_empty() { None } else { declare(schema, resource, "selfType") };
        let own = own.map(|declared| {
            let environments = Environments::new(&declared.decl);
            let rules = listed.iter().map(|rule| Compiled::of(schema, rule, &environments));
            let rules = rules.collect();
            Own { decl: Arc::new(declared.decl), environments, rules }
        });
        let properties = schema["properties"].as_object().into_iter().flatten();
        let properties = properties.filter_map(|(name, schema)| {
            Some((name.clone(), Self::compile(schema, embedded(schema))?))
        });
        let map_type = schema["x-kubernetes-map-type"].as_str();
        Some(Self {
            ty: schema["type"].as_str().unwrap_or("").into(),
            own,
            items: below("items"),
            properties: properties.collect(),
            additional: below("additionalProperties"),
            correlatable: matches!(map_type, None | Some("granular" | "atomic")),
        })
    }
}

/// Asks the rules of a version, and adds what they say to what is known to be wrong. What
/// was as wrong before is let through; it is returned, in sentences.
pub fn check(
    version: &Version,
    new: &Value,
    old: Option<&Value>,
    errors: &mut Vec<FieldError>,
) -> Vec<String> {
    let Some(rules) = version.rules() else { return Vec::new() };
    if instance::blocks_rules(errors) {
        let said = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
        errors.push(FieldError::invalid("<nil>", Value::Null, said));
        return Vec::new();
    }
    let mut run = Run::new(OBJECT_BUDGET);
    let ratchet = Ratchet { before: old.map(Some), parent: None, root: true };
    run.place(rules, version.node(), new, old, ratchet, &mut String::new());
    errors.extend(run.errors);
    run.let_through
}

/// Asks the rules of a schema about a default of it. `left` is what may still be spent.
pub fn of_default(schema: &Value, default: &Value, at: &str, left: &mut u64) -> Vec<FieldError> {
    let resource = schema["x-kubernetes-embedded-resource"] == true;
    let Some(rules) = Rules::compile(schema, resource) else { return Vec::new() };
    let node = Node::compile(schema);
    for old in [Some(default), None] {
        let mut run = Run::new(*left);
        let ratchet = Ratchet { before: None, parent: None, root: false };
        run.place(&rules, &node, default, old, ratchet, &mut at.to_string());
        *left = run.left.unwrap_or(0);
        if !run.errors.is_empty() {
            return run.errors;
        }
    }
    Vec::new()
}

/// What was in the object before, for the question whether something new went wrong.
#[derive(Clone, Copy)]
struct Ratchet<'a> {
    /// The value at this place before, if the place corresponds to one of before at all.
    before: Option<Option<&'a Value>>,
    /// The nearest place above that corresponds: before, and now.
    parent: Option<(Option<&'a Value>, &'a Value)>,
    root: bool,
}

impl<'a> Ratchet<'a> {
    fn lets_through(&self, now: &Value) -> bool {
        match (self.before, self.parent) {
            (Some(before), _) => before == Some(now),
            (None, Some((before, now))) => before == Some(now),
            (None, None) => false,
        }
    }

    fn below(self, now: &'a Value, before: Option<Option<&'a Value>>) -> Self {
        match self.before {
            None => Self { root: false, ..self },
            Some(own) => Self { before, parent: Some((own, now)), root: false },
        }
    }

    fn key(self, now: &'a Value, name: &str) -> Self {
        if self.root && matches!(name, "apiVersion" | "kind") {
            return Self { before: None, parent: None, root: false };
        }
        let before = match self.before {
            // Only an object of before has something that corresponds.
            Some(Some(Value::Object(map))) => Some(map.get(name)),
            _ => None,
        };
        self.below(now, before)
    }

    fn index(self, now: &'a Value, before: Option<&'a Value>) -> Self {
        self.below(now, before.map(Some))
    }
}

struct Run {
    /// What may still be spent; None when it is spent.
    left: Option<u64>,
    errors: Vec<FieldError>,
    let_through: Vec<String>,
}

/// Sentences about what is let through; more would not be read.
const LET_THROUGH_MAX: usize = 20;

impl Run {
    fn new(left: u64) -> Self {
        Self { left: Some(left), errors: Vec::new(), let_through: Vec::new() }
    }

    fn add(&mut self, error: FieldError, lets_through: bool) {
        if !lets_through {
            self.errors.push(error);
        } else if self.let_through.len() < LET_THROUGH_MAX {
            self.let_through.push(error.to_string());
        }
    }

    fn place<'a>(
        &mut self,
        rules: &Rules,
        node: &Node,
        now: &'a Value,
        old: Option<&'a Value>,
        ratchet: Ratchet<'a>,
        path: &mut String,
    ) {
        if now.is_null() {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        if let Some(own) = &rules.own {
            self.own(rules, own, now, old, ratchet, path);
        }
        if self.left.is_none() {
            return;
        }
        match now {
            Value::Array(items) => {
                let (Some(rules), Some(below)) = (&rules.items, &node.items) else { return };
                for (at, item) in items.iter().enumerate() {
                    let before = old.and_then(|old| value::counterpart(node, item, old));
                    let ratchet = ratchet.index(now, before);
                    let length = path.len();
                    path.push_str(&format!("[{at}]"));
                    self.place(rules, below, item, before, ratchet, path);
                    path.truncate(length);
                    if self.left.is_none() {
                        return;
                    }
                }
            }
            Value::Object(map) => {
                let mut names: Vec<&String> = map.keys().collect();
                names.sort_unstable();
                for name in names {
                    let named = rules.properties.get(name);
                    let (below, step) = match (named, &rules.additional) {
                        (Some(below), _) => {
                            let dot = if path.is_empty() { "" } else { "." };
                            (below, format!("{dot}{name}"))
                        }
                        (None, Some(below)) => (&**below, format!("[{name}]")),
                        (None, None) => continue,
                    };
                    let Some(node) = node.field(name) else { continue };
                    let before = old.filter(|_| rules.correlatable).and_then(|old| old.get(name));
                    let ratchet = ratchet.key(now, name);
                    let length = path.len();
                    path.push_str(&step);
                    self.place(below, node, &map[name], before, ratchet, path);
                    path.truncate(length);
                    if self.left.is_none() {
                        return;
                    }
                }
            }
            _ => {}
        }
    }

    fn invalid(&mut self, path: &str, rules: &Rules, said: &str) {
        let field = if path.is_empty() { "<nil>" } else { path };
        self.errors.push(FieldError::invalid(field, rules.ty.as_str(), said));
    }

    fn own<'a>(
        &mut self,
        rules: &Rules,
        own: &Own,
        now: &'a Value,
        old: Option<&'a Value>,
        ratchet: Ratchet<'a>,
        path: &str,
    ) {
        let bindings = |optional: bool| {
            let environment =
                if optional { &own.environments.optional } else { &own.environments.plain };
            let mut bindings = Bindings::new(environment);
            bindings.set("self", cel::Value::from_json(now, &own.decl));
            let held = old.map(|old| cel::Value::from_json(old, &own.decl));
            if optional {
                bindings.set("oldSelf", cel::Value::Optional(held.map(Arc::new)));
            } else if let Some(held) = held {
                bindings.set("oldSelf", held);
            }
            bindings
        };
        let plain = bindings(false);
        for rule in &own.rules {
            if self.left.is_none_or(|left| left == 0) {
                self.invalid(path, rules, BUDGET_SPENT);
                self.left = None;
                return;
            }
            let program = match &rule.program {
                Ok(program) => program,
                Err(why) => {
                    self.invalid(path, rules, &format!("rule compile error: {why}"));
                    continue;
                }
            };
            if rule.uses_old() && old.is_none() && !rule.optional_old {
                continue;
            }
            let told = if rule.said.is_empty() { &rule.text } else { &rule.said };
            let optional = rule.optional_old.then(|| bindings(true));
            let Some(result) = self.evaluate(program, optional.as_ref().unwrap_or(&plain)) else {
                self.invalid(path, rules, BUDGET_SPENT);
                return;
            };
            match result {
                Ok(cel::Value::Bool(true)) => continue,
                Ok(_) => {}
                Err(error) if error.is_over_budget() => {
                    let said = format!(
                        "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {told}"
                    );
                    self.invalid(path, rules, &said);
                    self.left = None;
                    return;
                }
                Err(error) if error.message().starts_with("no such overload") => {
                    let said = format!(
                        "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {told}"
                    );
                    self.invalid(path, rules, &said);
                    continue;
                }
                Err(error) => {
                    self.invalid(path, rules, &format!("{error} evaluating rule: {told}"));
                    continue;
                }
            }
            let lets_through = !rule.uses_old() && ratchet.lets_through(now);
            let message = match &rule.message {
                Some(Ok(program)) => self.message(program, &rule.message_text, &plain),
                Some(Err(_)) | None => Ok(None),
            };
            let at = match (path.is_empty(), rule.field_path.is_empty()) {
                (true, true) => "<nil>".to_string(),
                (false, true) => path.to_string(),
                (true, false) => rule.field_path.clone(),
                (false, false) => format!("{path}.{}", rule.field_path),
            };
            let detail = match message {
                Ok(Some(message)) => message,
                Ok(None) if rule.said.is_empty() => format!("failed rule: {}", rule.text),
                Ok(None) => rule.said.clone(),
                Err(said) => {
                    self.add(FieldError::invalid(at, rules.ty.as_str(), &said), lets_through);
                    self.left = None;
                    return;
                }
            };
            self.add(finding(at, rules, now, &detail, &rule.reason), lets_through);
        }
    }

    /// Evaluates one expression; None if that was more than what is left.
    fn evaluate<'a>(
        &mut self,
        program: &Program,
        bindings: &Bindings<'a>,
    ) -> Option<Result<cel::Value<'a>, EvalError>> {
        let mut budget = budget();
        let result = program.evaluate(bindings, &mut budget);
        self.left = self.left.and_then(|left| left.checked_sub(budget.spent()));
        self.left.map(|_| result)
    }

    /// The message that an expression makes; None where it makes none.
    ///
    /// # Errors
    /// What ends all rules: too much was spent.
    fn message(
        &mut self,
        program: &Program,
        text: &str,
        bindings: &Bindings<'_>,
    ) -> Result<Option<String>, String> {
        match self.evaluate(program, bindings) {
            None => Err("messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".into()),
            Some(Err(error)) if error.is_over_budget() => Err(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {text:?}"
            )),
            Some(Err(_)) => Ok(None),
            Some(Ok(value)) => {
                let message = value.as_str().unwrap_or("").trim().to_string();
                let good = !message.is_empty()
                    && message.len() <= MESSAGE_BYTES_MAX
                    && !message.contains('\n');
                Ok(good.then_some(message))
            }
        }
    }
}

/// A finding with the reason that the rule names. Objects and lists are not quoted.
fn finding(at: String, rules: &Rules, now: &Value, detail: &str, reason: &str) -> FieldError {
    let quoted = !matches!(rules.ty.as_str(), "object" | "array");
    match (reason, quoted) {
        ("FieldValueForbidden", _) => FieldError::forbidden(at, detail),
        ("FieldValueRequired", _) => FieldError::required(at, detail),
        ("FieldValueDuplicate", true) => FieldError::duplicate(at, now.clone()),
        ("FieldValueDuplicate", false) => {
            FieldError::saying(at, Reason::Duplicate, "Duplicate value")
        }
        (_, true) => FieldError::invalid(at, now.clone(), detail),
        (_, false) => FieldError::saying(at, Reason::Invalid, format!("Invalid value: {detail}")),
    }
}
