//! Questions to an authorizer that an expression builds step by step.
//!
//! Who answers is the caller's matter (`Authorizer`).

use std::fmt;
use std::sync::Arc;

use crate::budget::EvalError;
use crate::functions as names;
use crate::value::Value;

/// Answers whether somebody may do something.
pub trait Authorizer: Sync {
    fn authorize(&self, question: &Question) -> Decision;
}

/// What an expression asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// The service account asked for (namespace and name), or whoever makes the request.
    pub service_account: Option<(String, String)>,
    pub verb: String,
    /// A path that is no resource; then the fields of resources are empty.
    pub path: Option<String>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: Option<String>,
    pub label_selector: Option<String>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

/// A question on its way, or its answer.
#[derive(Clone)]
pub struct Authz<'a> {
    stage: Stage,
    by: &'a dyn Authorizer,
    question: Question,
    decision: Decision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Authorizer,
    Path,
    Group,
    Resource,
    Decision,
}

impl fmt::Debug for Authz<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authz").field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl<'a> Value<'a> {
    /// The `authorizer` variable, which asks for whoever makes the request.
    pub fn authorizer(by: &'a dyn Authorizer) -> Self {
        Self::authz(by, Stage::Authorizer, Question::default())
    }

    /// The `authorizer.requestResource` variable: a check whose resource is filled in.
    pub fn request_resource(by: &'a dyn Authorizer, question: Question) -> Self {
        Self::authz(by, Stage::Resource, question)
    }

    fn authz(by: &'a dyn Authorizer, stage: Stage, question: Question) -> Self {
        let decision = Decision::default();
        Value::Authz(Arc::new(Authz { stage, by, question, decision }))
    }
}

impl<'a> Authz<'a> {
    pub(crate) fn type_name(&self) -> &'static str {
        match self.stage {
            Stage::Authorizer => names::AUTHORIZER,
            Stage::Path => names::PATH_CHECK,
            Stage::Group => names::GROUP_CHECK,
            Stage::Resource => names::RESOURCE_CHECK,
            Stage::Decision => names::DECISION,
        }
    }

    /// The next step of a question.
    pub(crate) fn step(&self, function: &str, args: &[&str]) -> Result<Value<'a>, EvalError> {
        let mut next = self.clone();
        let question = &mut next.question;
        let first = args.first().copied().unwrap_or_default();
        let text = first.to_owned();
        match (self.stage, function) {
            (Stage::Authorizer, "path") => {
                if first.is_empty() {
                    return Err(EvalError::new("path must not be empty"));
                }
                question.path = Some(text);
                next.stage = Stage::Path;
            }
            (Stage::Authorizer, "group") => {
                question.group = text;
                next.stage = Stage::Group;
            }
            (Stage::Authorizer, "serviceAccount") => {
                let name = args.get(1).copied().unwrap_or_default();
                if !kinds::meta::name::is_dns1123_subdomain(name).is_empty() {
                    return Err(EvalError::new("Invalid service account name"));
                }
                if !kinds::meta::name::is_dns1123_label(first).is_empty() {
                    return Err(EvalError::new("Invalid service account namespace"));
                }
                question.service_account = Some((text, name.to_owned()));
            }
            (Stage::Group, "resource") => {
                if first.is_empty() {
                    return Err(EvalError::new("resource must not be empty"));
                }
                question.resource = text;
                next.stage = Stage::Resource;
            }
            (Stage::Resource, "subresource") => question.subresource = text,
            (Stage::Resource, "namespace") => question.namespace = text,
            (Stage::Resource, "name") => question.name = text,
            (Stage::Resource, "fieldSelector") => question.field_selector = Some(text),
            (Stage::Resource, "labelSelector") => question.label_selector = Some(text),
            (Stage::Path | Stage::Resource, "check") => {
                question.verb = text;
                next.decision = self.by.authorize(question);
                next.stage = Stage::Decision;
            }
            (Stage::Decision, "allowed") => return Ok(Value::Bool(self.decision.allowed)),
            (Stage::Decision, "errored") => return Ok(Value::Bool(self.decision.error.is_some())),
            (Stage::Decision, "reason") => return Ok(Value::string(&*self.decision.reason)),
            (Stage::Decision, "error") => {
                return Ok(Value::string(self.decision.error.as_deref().unwrap_or_default()));
            }
            _ => {
                let message = format!("no such overload: {}.{function}", self.type_name());
                return Err(EvalError::new(message));
            }
        }
        Ok(Value::Authz(Arc::new(next)))
    }
}
