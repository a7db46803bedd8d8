//! Failures in Kubernetes' own form: `meta/v1 Status` with upstream's reasons, details
//! and wording (k8s.io/apimachinery, `api/errors`).

use kinds::resources::Resource;
use serde_json::{Map, Value, json};

/// A request's failure. Always answered as a Status body with `code`.
#[derive(Debug, Clone)]
pub struct ApiError {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Box<Value>>,
    /// Seconds, for the `Retry-After` header.
    pub retry_after: Option<u64>,
    /// By which the rest of a list can be had, in `metadata`.
    pub continue_token: Option<Box<str>>,
}

pub type Result<T> = std::result::Result<T, ApiError>;

impl Cause {
    pub fn forbidden(field: &str, why: &str) -> Self {
        Self {
            reason: "FieldValueForbidden".into(),
            message: format!("Forbidden: {why}"),
            field: field.into(),
        }
    }

    pub fn not_supported(field: &str, value: &str, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|word| format!("{word:?}")).collect();
        Self {
            reason: "FieldValueNotSupported".into(),
            message: format!(
                "Unsupported value: {value:?}: supported values: {}",
                supported.join(", ")
            ),
            field: field.into(),
        }
    }
}

/// One field that is wrong, in the form of a Status cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

impl ApiError {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, reason, message, details: None, retry_after: None, continue_token: None }
    }

    /// Sets `details` to what the error is about; empty words are left out.
    pub fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let mut details = Map::new();
        for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
            if !value.is_empty() {
                details.insert(key.into(), value.into());
            }
        }
        self.details = Some(Box::new(Value::Object(details)));
        self
    }

    /// Sets `details.causes`.
    pub fn with_causes(mut self, causes: &[Cause]) -> Self {
        let causes: Vec<Value> = causes
            .iter()
            .map(|cause| {
                let mut out = Map::new();
                for (key, value) in [
                    ("reason", &cause.reason),
                    ("message", &cause.message),
                    ("field", &cause.field),
                ] {
                    if !value.is_empty() {
                        out.insert(key.into(), value.as_str().into());
                    }
                }
                Value::Object(out)
            })
            .collect();
        if !causes.is_empty() {
            self.details.get_or_insert_with(|| Box::new(json!({})))["causes"] =
                Value::Array(causes);
        }
        self
    }

    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", resource.qualified())).about(
            &resource.group,
            &resource.plural,
            name,
        )
    }

    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", resource.qualified());
        Self::new(409, "AlreadyExists", message).about(&resource.group, &resource.plural, name)
    }

    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", resource.qualified());
        Self::new(409, "Conflict", message).about(&resource.group, &resource.plural, name)
    }

    pub fn modified(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422 with the causes; the message lists them as upstream's aggregate does.
    pub fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Self {
        let mut said: Vec<String> = causes
            .iter()
            .map(|cause| {
                if cause.field.is_empty() {
                    cause.message.clone()
                } else {
                    format!("{}: {}", cause.field, cause.message)
                }
            })
            .collect();
        // What is wrong twice is said once.
        let mut seen = std::collections::HashSet::new();
        said.retain(|sentence| seen.insert(sentence.clone()));
        let all = match said.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let kind = if resource.group.is_empty() {
            resource.kind.clone()
        } else {
            format!("{}.{}", resource.kind, resource.group)
        };
        Self::new(422, "Invalid", format!("{kind} {name:?} is invalid: {all}"))
            .about(&resource.group, &resource.kind, name)
            .with_causes(causes)
    }

    /// 422 about the options of a request (`PatchOptions`, `ListOptions`, ...).
    pub fn invalid_options(options: &str, causes: &[Cause]) -> Self {
        let said: Vec<String> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let all = match said.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        Self::new(422, "Invalid", format!("{options}.meta.k8s.io \"\" is invalid: {all}"))
            .about("meta.k8s.io", options, "")
            .with_causes(causes)
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 about one resource; `why` follows the colon.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let qualified =
            if group.is_empty() { plural.to_string() } else { format!("{plural}.{group}") };
        let subject = match (qualified.is_empty(), name.is_empty()) {
            (true, _) => String::new(),
            (false, true) => format!("{qualified} is "),
            (false, false) => format!("{qualified} {name:?} is "),
        };
        Self::new(403, "Forbidden", format!("{subject}forbidden: {why}")).about(group, plural, name)
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self { details: Some(Box::new(json!({}))), ..Self::new(405, "MethodNotAllowed", message) }
    }

    pub fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource";
        Self { details: Some(Box::new(json!({}))), ..Self::new(404, "NotFound", message) }
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Gone", message)
    }

    pub fn unsupported_media_type(accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub fn not_acceptable(accepted: &str) -> Self {
        let message = format!("only the following media types are accepted: {accepted}");
        Self::new(406, "NotAcceptable", message)
    }

    /// 406 of a route none of whose types is acceptable.
    pub fn not_acceptable_route(types: &str) -> Self {
        let message = format!("406: Not Acceptable\n\nAvailable representations: {types}");
        Self { details: Some(Box::new(json!({}))), ..Self::new(406, "NotAcceptable", message) }
    }

    /// 415 of a route that does not take the body's type.
    pub fn unsupported_route() -> Self {
        let message = "415: Unsupported Media Type";
        let details = Some(Box::new(json!({})));
        Self { details, ..Self::new(415, "UnsupportedMediaType", message) }
    }

    pub fn too_large() -> Self {
        Self::new(413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728")
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(504, "Timeout", message) }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        let details = json!({"causes": [{"message": message}]});
        let text = format!("Internal error occurred: {message}");
        Self { details: Some(Box::new(details)), ..Self::new(500, "InternalError", text) }
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// The Status object.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message,
        });
        if !self.reason.is_empty() {
            body["reason"] = self.reason.into();
        }
        if let Some(token) = &self.continue_token {
            body["metadata"]["continue"] = (**token).into();
        }
        if let Some(details) = &self.details {
            body["details"] = (**details).clone();
        }
        if let Some(seconds) = self.retry_after {
            body["details"]["retryAfterSeconds"] = seconds.into();
        }
        body["code"] = self.code.into();
        body
    }
}

impl From<store::Error> for ApiError {
    fn from(err: store::Error) -> Self {
        match err {
            store::Error::Compacted { .. } => {
                Self::expired("The resourceVersion for the provided list is too old.")
            }
            store::Error::Future { asked, newest } => {
                let mut error = Self::timeout(format!(
                    "Too large resource version: {asked}, current: {newest}"
                ));
                error.details = Some(Box::new(json!({"causes": [{
                    "reason": "ResourceVersionTooLarge",
                    "message": "Too large resource version",
                }]})));
                error
            }
            store::Error::Stopped => {
                let error = Self::unavailable("the server is shutting down");
                Self { retry_after: Some(1), ..error }
            }
            store::Error::InUse(_) | store::Error::Disk(_) | store::Error::Open { .. } => {
                Self::internal(base::error::chain(&err).to_string())
            }
        }
    }
}
