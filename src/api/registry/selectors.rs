//! Expressions by which claims and classes select devices, compiled before they are stored.

use cel::devices::{SELECTOR_COST_MAX, compile};
use kinds::meta::FieldError;
use kinds::validate::devices::selectors_of;
use serde_json::Value;

/// What cannot be asked, or would cost too much. What was stored before is left as it is.
pub fn check(group: &str, kind: &str, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    if group != "resource.k8s.io" {
        return Vec::new();
    }
    let stored = old.map(|old| selectors_of(kind, old)).unwrap_or_default();
    let fresh = selectors_of(kind, new).into_iter();
    let fresh = fresh.filter(|(_, it)| !stored.iter().any(|(_, stored)| stored == it));
    fresh.filter_map(|(field, expression)| problem(field, expression)).collect()
}

fn problem(field: String, expression: &str) -> Option<FieldError> {
    match compile(expression) {
        Err(why) => Some(FieldError::invalid(field, expression, &why)),
        Ok(program) if program.estimated_cost().max > SELECTOR_COST_MAX => {
            Some(FieldError::forbidden(field, "too complex, exceeds cost limit"))
        }
        Ok(_) => None,
    }
}
