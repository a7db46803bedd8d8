//! Rules of a schema in CEL: whether they may be stored, and what they say of an object.

use kinds::meta::FieldError;
use serde_json::Value;

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

    pub fn broken_at(&self) -> Option<&str> {
        self.broken_at.as_deref()
    }
}

/// Rules of one schema, from a place in it downwards.
pub struct Scope<'a> {
    _schema: &'a Value,
}

impl<'s> Scope<'s> {
    pub fn root(schema: &'s Value) -> Self {
        Self { _schema: schema }
    }

    pub fn total(&self, _: &str) -> Vec<FieldError> {
        Vec::new()
    }

    pub fn additional<'a>(&self, schema: &'a Value) -> Scope<'a> {
        Scope { _schema: schema }
    }

    pub fn property<'a>(&self, schema: &'a Value, _: &str) -> Scope<'a> {
        Scope { _schema: schema }
    }

    pub fn items<'a>(&self, schema: &'a Value) -> Scope<'a> {
        Scope { _schema: schema }
    }

    pub fn check(&self, _: &Value, _: &str, _: &Correlation) -> Vec<FieldError> {
        Vec::new()
    }
}

pub fn of_default(_: &Value, _: &Value, _: &str) -> Vec<FieldError> {
    Vec::new()
}

pub fn check(_: &super::Version, _: &Value, _: Option<&Value>, _: &mut [FieldError]) {}
