//! Errors about one field, in the words of upstream's Status causes.

use std::fmt;

use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    Forbidden,
    NotFound,
    TooLong,
    TooMany,
    TypeInvalid,
}

impl Reason {
    /// The `reason` of a Status cause.
    pub fn cause(self) -> &'static str {
        match self {
            Reason::Required => "FieldValueRequired",
            Reason::Invalid => "FieldValueInvalid",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::NotFound => "FieldValueNotFound",
            Reason::TooLong => "FieldValueTooLong",
            Reason::TooMany => "FieldValueTooMany",
            Reason::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

/// `spec.containers[0].name: Required value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    pub field: String,
    pub reason: Reason,
    /// What stands behind the field in the whole message.
    pub message: String,
    /// Two structures, before and after, whose difference belongs to the message.
    pub compared: Option<Box<(Value, Value)>>,
}

impl FieldError {
    fn new(field: impl Into<String>, reason: Reason, start: String, detail: &str) -> Self {
        let message = match detail {
            "" => start,
            detail => format!("{start}: {detail}"),
        };
        Self::saying(field, reason, message)
    }

    /// An error in words of its own.
    pub fn saying(field: impl Into<String>, reason: Reason, message: impl Into<String>) -> Self {
        Self { field: field.into(), reason, message: message.into(), compared: None }
    }

    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new(field, Reason::Required, "Required value".into(), detail)
    }

    /// A value of another type than the field has; quoted as JSON.
    pub fn type_invalid(field: impl Into<String>, value: impl Into<Value>, detail: &str) -> Self {
        let start = format!("Invalid value: {}", value.into());
        Self::new(field, Reason::TypeInvalid, start, detail)
    }

    /// More items or properties than the field may have.
    pub fn too_many(field: impl Into<String>, is: usize, most: usize) -> Self {
        let detail = format!("must have at most {most} item{}", if most == 1 { "" } else { "s" });
        Self::new(field, Reason::TooMany, format!("Too many: {is}"), &detail)
    }

    /// The value is quoted as JSON.
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: &str) -> Self {
        let start = format!("Invalid value: {}", value.into());
        Self::new(field, Reason::Invalid, start, detail)
    }

    pub fn not_supported(
        field: impl Into<String>,
        value: impl Into<Value>,
        supported: &[&str],
    ) -> Self {
        let words: Vec<String> = supported.iter().map(|w| format!("{w:?}")).collect();
        let start = format!("Unsupported value: {}", value.into());
        let detail = format!("supported values: {}", words.join(", "));
        Self::new(field, Reason::NotSupported, start, &detail)
    }

    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(field, Reason::Duplicate, format!("Duplicate value: {}", value.into()), "")
    }

    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new(field, Reason::Forbidden, "Forbidden".into(), detail)
    }

    /// The same error, which shows what was changed.
    pub fn comparing(mut self, before: &Value, after: &Value) -> Self {
        self.compared = Some(Box::new((before.clone(), after.clone())));
        self
    }

    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(field, Reason::NotFound, format!("Not found: {}", value.into()), "")
    }

    pub fn too_long(field: impl Into<String>, bytes: usize) -> Self {
        let detail = format!("may not be more than {bytes} bytes");
        Self::new(field, Reason::TooLong, "Too long".into(), &detail)
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.field, self.message)
    }
}
