//! CEL expressions that choose devices, compiled once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cel::devices::{ENVIRONMENT, SELECTOR_COST_MAX, compile};
use cel::{Bindings, Budget, Program, Value};
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};
use kinds::meta::quantity::Quantity;
use parking_lot::Mutex;

/// Expressions kept; with more all are forgotten, and compiled again as they are used.
const PROGRAMS_MAX: usize = 256;
type Compiled = Result<Program, String>;

/// Expressions that were used lately.
#[derive(Debug, Default)]
pub struct Programs(Mutex<HashMap<String, Arc<Compiled>>>);

/// Why an expression says nothing.
pub enum Failure {
    Compile(String),
    Run(String),
}

impl Programs {
    fn get(&self, expression: &str) -> Arc<Compiled> {
        let mut held = self.0.lock();
        if let Some(program) = held.get(expression) {
            return program.clone();
        }
        if held.len() >= PROGRAMS_MAX {
            held.clear();
        }
        let program = Arc::new(compile(expression));
        held.insert(expression.to_owned(), program.clone());
        program
    }

    /// Whether `device`, a value of [`value`], is one that the expression wants.
    ///
    /// # Errors
    /// When it cannot be compiled, or fails.
    pub fn matches(&self, expression: &str, device: &Value<'static>) -> Result<bool, Failure> {
        let program = self.get(expression);
        let program = match &*program {
            Ok(program) => program,
            Err(why) => return Err(Failure::Compile(why.clone())),
        };
        let mut bindings = Bindings::new(&ENVIRONMENT);
        bindings.set("device", device.clone());
        let result = program.evaluate(&bindings, &mut Budget::new(SELECTOR_COST_MAX));
        let result = result.map_err(|err| Failure::Run(err.to_string()))?;
        result.as_bool().ok_or_else(|| {
            let kind = result.type_name();
            Failure::Run(format!("CEL result of type {kind} could not be converted to bool"))
        })
    }
}

fn attribute(it: &DeviceAttribute) -> Result<Value<'static>, String> {
    if let Some(value) = it.int {
        return Ok(Value::Int(value));
    }
    if let Some(value) = it.bool {
        return Ok(Value::Bool(value));
    }
    if let Some(value) = &it.string {
        return Ok(Value::string(value.as_str()));
    }
    match &it.version {
        Some(value) => Value::semver(value).map_err(|why| format!("parse semantic version: {why}")),
        None => Err("unsupported attribute value".into()),
    }
}

/// A device as expressions see it. A name without a domain is of the driver's.
///
/// # Errors
/// An attribute that cannot be read.
pub fn value(driver: &str, device: &Device) -> Result<Value<'static>, String> {
    let split = |name: &str| match name.split_once('/') {
        Some((domain, id)) => (domain.to_owned(), id.to_owned()),
        None => (driver.to_owned(), name.to_owned()),
    };
    let mut attributes: BTreeMap<String, Vec<(String, Value<'static>)>> = BTreeMap::new();
    for (name, it) in device.attributes.iter().flatten() {
        let (domain, id) = split(name);
        let value = attribute(it).map_err(|why| format!("attribute {name}: {why}"))?;
        attributes.entry(domain).or_default().push((id, value));
    }
    let mut capacity: BTreeMap<String, Vec<(String, Value<'static>)>> = BTreeMap::new();
    for (name, it) in device.capacity.iter().flatten() {
        let (domain, id) = split(name);
        let quantity: Quantity = it.value.0.parse().unwrap_or_default();
        capacity.entry(domain).or_default().push((id, Value::Quantity(quantity)));
    }
    let shared = device.allow_multiple_allocations.unwrap_or_default();
    let fields = [
        ("driver".to_owned(), Value::string(driver)),
        ("attributes".to_owned(), by_domain(attributes)),
        ("capacity".to_owned(), by_domain(capacity)),
        ("allowMultipleAllocations".to_owned(), Value::Bool(shared)),
    ];
    Ok(Value::map(fields, None))
}

/// A domain that is not there is an empty map.
fn by_domain(entries: BTreeMap<String, Vec<(String, Value<'static>)>>) -> Value<'static> {
    let inner = entries.into_iter().map(|(domain, entries)| (domain, Value::map(entries, None)));
    Value::map(inner.collect::<Vec<_>>(), Some(Value::map([], None)))
}
