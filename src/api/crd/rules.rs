//! Rules of a schema in CEL (`x-kubernetes-validations`): whether they may be stored, and
//! what they say of an object (apiextensions-apiserver, `schema/cel`).
//!
//! Rules are compiled once for a revision of a definition. What they may cost is bounded
//! twice: by an estimate when they are stored, and by a budget when they run.

use std::cell::RefCell;
use std::rc::Rc;

use cel::{
    Budget, COST_PER_CALL_MAX, COST_PER_OBJECT_MAX, CompileErrors, Decl,
    ESTIMATE_PER_DEFINITION_MAX, ESTIMATE_PER_EXPRESSION_MAX, Environment, FieldDecl, Format,
    ListKind, Program, REQUEST_BYTES_MAX, Type,
};
use kinds::meta::{FieldError, error::Reason};
use serde_json::Value;

use super::go_json;
use super::schema_rules::field_at;
use super::structural::{any, properties};

mod run;

pub use run::{Rules, check, of_default};

/// Rules that contribute less than a hundredth of what all may cost are not told.
const TOLD_COST_MIN: u64 = ESTIMATE_PER_DEFINITION_MAX / 100;
/// The most expensive rules that are told where all together are too expensive.
const TOLD_MAX: usize = 4;

/// Whether a place can be found again in the object before a change. It cannot below the
/// first list or map whose elements have no identity.
#[derive(Debug, Clone, Default)]
pub struct Correlation {
    broken_at: Option<String>,
}

impl Correlation {
    pub fn break_at(&mut self, path: &str) {
        self.broken_at.get_or_insert_with(|| path.to_string());
    }
}

/// What all rules of a schema are estimated to cost.
#[derive(Default)]
struct Costs {
    total: u64,
    expensive: Vec<(String, u64)>,
}

impl Costs {
    fn observe(&mut self, path: String, cost: u64) {
        self.total = self.total.saturating_add(cost);
        if cost < TOLD_COST_MIN {
            return;
        }
        self.expensive.push((path, cost));
        self.expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        self.expensive.truncate(TOLD_MAX);
    }
}

/// A place of a schema whose rules are judged.
pub struct Scope<'s> {
    schema: &'s Value,
    root: bool,
    /// How often the place can be in one object; None where nothing bounds it.
    cardinality: Option<u64>,
    costs: Rc<RefCell<Costs>>,
}

impl<'s> Scope<'s> {
    pub fn root(schema: &'s Value) -> Self {
        Self { schema, root: true, cardinality: Some(1), costs: Rc::default() }
    }

    pub fn property<'a>(&self, schema: &'a Value) -> Scope<'a> {
        self.below(schema)
    }

    pub fn items<'a>(&self, schema: &'a Value) -> Scope<'a> {
        self.below(schema)
    }

    pub fn additional<'a>(&self, schema: &'a Value) -> Scope<'a> {
        self.below(schema)
    }

    fn below<'a>(&self, schema: &'a Value) -> Scope<'a> {
        let cardinality = self.cardinality.zip(elements_max(self.schema));
        Scope {
            schema,
            root: false,
            cardinality: cardinality.map(|(outer, inner)| outer.saturating_mul(inner)),
            costs: self.costs.clone(),
        }
    }

    /// Judges the rules of this place.
    pub fn check(&self, path: &str, correlation: &Correlation) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let resource = self.root || self.schema["x-kubernetes-embedded-resource"] == true;
        let Some(declared) = declare(self.schema, resource, "selfType") else {
            let said = "Internal error: internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations";
            let at = format!("{path}.x-kubernetes-validations");
            return vec![FieldError::saying(at, Reason::Invalid, said)];
        };
        // Where nothing bounds how often a place is there, the size of a request does.
        let fit = REQUEST_BYTES_MAX / declared.bytes_min.saturating_add(1);
        let times = self.cardinality.unwrap_or(fit);
        let environments = Environments::new(&declared.decl);
        for (index, rule) in rules_of(self.schema).iter().enumerate() {
            let at = format!("{path}.x-kubernetes-validations[{index}]");
            self.check_rule(rule, &at, &environments, times, correlation, &mut errors);
        }
        errors
    }

    fn check_rule(
        &self,
        rule: &Value,
        at: &str,
        environments: &Environments,
        times: u64,
        correlation: &Correlation,
        errors: &mut Vec<FieldError>,
    ) {
        let compiled = Compiled::of(self.schema, rule, environments);
        let rule_at = format!("{at}.rule");
        let cost = match &compiled.program {
            Ok(program) => program.estimated_cost().max.saturating_mul(times),
            Err(_) => 0,
        };
        if cost > ESTIMATE_PER_EXPRESSION_MAX {
            let said = too_costly("estimated rule cost", cost, ESTIMATE_PER_EXPRESSION_MAX);
            errors.push(FieldError::forbidden(rule_at.as_str(), &said));
        }
        self.costs.borrow_mut().observe(rule_at.clone(), cost);
        if let Err(why) = &compiled.program {
            errors.push(FieldError::invalid(rule_at.as_str(), go_json::rule(rule), why));
        }
        let message_at = format!("{at}.messageExpression");
        match &compiled.message {
            Some(Err(why)) => {
                errors.push(FieldError::invalid(message_at, go_json::rule(rule), why));
            }
            Some(Ok(program)) => {
                let cost = program.estimated_cost().max;
                if cost > ESTIMATE_PER_EXPRESSION_MAX {
                    let what = "estimated messageExpression cost";
                    let said = too_costly(what, cost, ESTIMATE_PER_EXPRESSION_MAX);
                    errors.push(FieldError::forbidden(message_at.as_str(), &said));
                }
                self.costs.borrow_mut().observe(message_at, cost);
            }
            None => {}
        }
        if compiled.uses_old() {
            if let Some(broken) = &correlation.broken_at {
                let said = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {broken}"
                );
                errors.push(FieldError::invalid(rule_at, rule["rule"].clone(), &said));
            }
        } else if let Some(optional) = rule["optionalOldSelf"].as_bool() {
            let said = "may not be set if oldSelf is not used in rule";
            errors.push(FieldError::invalid(format!("{at}.optionalOldSelf"), optional, said));
        }
    }

    /// Judges what all rules together are estimated to cost.
    pub fn total(&self, path: &str) -> Vec<FieldError> {
        let costs = self.costs.borrow();
        if costs.total <= ESTIMATE_PER_DEFINITION_MAX {
            return Vec::new();
        }
        let said = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
        let mut errors: Vec<FieldError> = costs
            .expensive
            .iter()
            .map(|(path, _)| FieldError::forbidden(path.as_str(), said))
            .collect();
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        let said = too_costly(what, costs.total, ESTIMATE_PER_DEFINITION_MAX);
        errors.push(FieldError::forbidden(path, &said));
        errors
    }
}

fn rules_of(schema: &Value) -> &[Value] {
    schema["x-kubernetes-validations"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Whether there are rules at a place or below it.
fn has_rules(schema: &Value) -> bool {
    any(schema, &|schema| !rules_of(schema).is_empty())
}

fn too_costly(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_string()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

fn elements_max(schema: &Value) -> Option<u64> {
    let bound = |name: &str| schema[name].as_i64().map(|n| n.max(0) as u64);
    match schema["type"].as_str() {
        Some("object") if !schema["additionalProperties"].is_null() => bound("maxProperties"),
        Some("array") => bound("maxItems"),
        _ => Some(1),
    }
}

/// A declaration, and the fewest bytes that its data takes.
struct Declared {
    decl: Decl,
    bytes_min: u64,
}

/// What expressions outside of the schema know of its objects, with all of their metadata.
pub fn declare_whole(schema: &Value, name: &str, metadata: Decl) -> Option<Decl> {
    let own = properties(schema).into_iter();
    let own =
        own.filter(|(field, _)| !matches!(field.as_str(), "kind" | "apiVersion" | "metadata"));
    let mut fields: Vec<FieldDecl> = own
        .filter_map(|(field, property)| {
            let embedded = property["x-kubernetes-embedded-resource"] == true;
            let below = declare(property, embedded, &format!("{name}.{field}"))?;
            Some(FieldDecl::new(field, below.decl))
        })
        .collect();
    for field in ["kind", "apiVersion"] {
        fields.push(FieldDecl::new(field, Decl::string(None, None)));
    }
    fields.push(FieldDecl::new("metadata", metadata));
    (schema["type"] == "object").then(|| Decl::object(name, fields))
}

/// What expressions know of the data of a schema; None where they know nothing.
fn declare(schema: &Value, resource: bool, name: &str) -> Option<Declared> {
    let length = |field: &str| schema[field].as_i64().map(|n| n.max(0) as u64);
    let made = |decl: Decl, bytes_min: u64| Some(Declared { decl, bytes_min });
    if schema["x-kubernetes-int-or-string"] == true {
        return made(Decl::int_or_string(None), 1);
    }
    match schema["type"].as_str()? {
        "array" => {
            let items = schema.get("items").filter(|items| items.is_object())?;
            let embedded = items["x-kubernetes-embedded-resource"] == true;
            let items = declare(items, embedded, &format!("{name}.@idx"))?;
            let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
            let kind = match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => ListKind::Set,
                Some("map") => {
                    ListKind::Map(keys.filter_map(|k| k.as_str().map(str::to_string)).collect())
                }
                _ => ListKind::Atomic,
            };
            made(Decl::list(items.decl, kind, length("maxItems")), 2)
        }
        "object" => {
            let values = &schema["additionalProperties"];
            if values.is_object() && !resource {
                let embedded = values["x-kubernetes-embedded-resource"] == true;
                let values = declare(values, embedded, &format!("{name}.@elem"))?;
                return made(Decl::map(values.decl, length("maxProperties")), 2);
            }
            object(schema, resource, name)
        }
        "string" => text(schema),
        "boolean" => made(Decl::bool(), 4),
        "integer" => made(Decl::int(), 1),
        "number" => made(Decl::double(), 1),
        _ => None,
    }
}

fn text(schema: &Value) -> Option<Declared> {
    let length = schema["maxLength"].as_i64().map(|n| n.max(0) as u64);
    let (decl, bytes_min) = match schema["format"].as_str() {
        Some("byte") => (Decl::formatted(Format::Bytes, length), 2),
        Some("duration") => (Decl::formatted(Format::Duration, length), 3),
        Some("date") => (Decl::formatted(Format::Date, length), 12),
        Some("date-time") => (Decl::formatted(Format::DateTime, length), 21),
        _ => {
            let values = schema["enum"].as_array().into_iter().flatten();
            let longest = values.filter_map(Value::as_str).map(|text| text.len() as u64).max();
            (Decl::string(length, longest), 2)
        }
    };
    Some(Declared { decl, bytes_min })
}

fn object(schema: &Value, resource: bool, name: &str) -> Option<Declared> {
    let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut fields = Vec::new();
    let mut bytes_min: u64 = 2;
    for (field, property) in properties(schema) {
        if resource && matches!(field.as_str(), "kind" | "apiVersion" | "metadata") {
            continue;
        }
        let embedded = property["x-kubernetes-embedded-resource"] == true;
        let Some(below) = declare(property, embedded, &format!("{name}.{field}")) else { continue };
        let sent = required.iter().any(|name| name == field) && property["default"].is_null();
        if sent {
            let bytes = (field.len() as u64).saturating_add(below.bytes_min).saturating_add(4);
            bytes_min = bytes_min.saturating_add(bytes);
        }
        fields.push(FieldDecl { name: field.clone(), decl: below.decl, always_sent: sent });
    }
    if resource {
        // Every resource has these, whatever its schema says.
        let word = || Decl::string(None, None);
        let named = [FieldDecl::new("name", word()), FieldDecl::new("generateName", word())];
        fields.push(FieldDecl::new("kind", word()));
        fields.push(FieldDecl::new("apiVersion", word()));
        fields.push(FieldDecl::new("metadata", Decl::object(&format!("{name}.metadata"), named)));
    }
    Some(Declared { decl: Decl::object(name, fields), bytes_min })
}

/// Where the rules of one place are compiled: with an old value, and with one that may be
/// missing.
struct Environments {
    plain: Environment,
    optional: Environment,
}

impl Environments {
    fn new(decl: &Decl) -> Self {
        let with =
            |old: Decl| Environment::new().variable("self", decl.clone()).variable("oldSelf", old);
        Self { plain: with(decl.clone()), optional: with(Decl::optional(decl.clone())) }
    }
}

/// One rule, compiled. What is wrong with it is kept in its place.
struct Compiled {
    program: Result<Program, String>,
    message: Option<Result<Program, String>>,
    optional_old: bool,
    /// Below the place of the rule; empty for the place itself.
    field_path: String,
    reason: String,
    /// The fixed message.
    said: String,
    /// The rule's own text, for messages without better words.
    text: String,
    /// The text of the message's expression.
    message_text: String,
}

impl Compiled {
    fn of(schema: &Value, rule: &Value, environments: &Environments) -> Self {
        let text = |name: &str| rule[name].as_str().unwrap_or("").to_string();
        let optional_old = rule["optionalOldSelf"] == true;
        let environment = if optional_old { &environments.optional } else { &environments.plain };
        let failed = |start: &str, errors: &CompileErrors| format!("{start}{errors}");
        let program = match cel::compile(environment, &text("rule")) {
            Err(errors) => Err(failed("compilation failed: ", &errors)),
            Ok(program) if *program.result_type() != Type::Bool => {
                Err("cel expression must evaluate to a bool".into())
            }
            Ok(program) => Ok(program),
        };
        let expression = text("messageExpression");
        let message = (!expression.is_empty() && program.is_ok()).then(|| {
            match cel::compile(environment, &expression) {
                Err(errors) => Err(failed("messageExpression compilation failed: ", &errors)),
                Ok(program) if *program.result_type() != Type::String => {
                    Err("messageExpression must evaluate to a string".into())
                }
                Ok(program) => Ok(program),
            }
        });
        let field_path = text("fieldPath");
        let field_path = match field_path.as_str() {
            "" => String::new(),
            path => field_at(path, schema, true).map(|(path, _)| path).unwrap_or_default(),
        };
        Self {
            program,
            message,
            optional_old,
            field_path,
            reason: text("reason"),
            said: text("message").trim().to_string(),
            text: text("rule").trim().to_string(),
            message_text: expression,
        }
    }

    fn uses_old(&self) -> bool {
        self.program.as_ref().is_ok_and(|program| program.uses("oldSelf"))
    }
}

/// A budget for one call that spends no more than what is left to the object.
fn budget() -> Budget {
    Budget::new(COST_PER_CALL_MAX)
}

/// What the rules of one object may spend.
const OBJECT_BUDGET: u64 = COST_PER_OBJECT_MAX;
