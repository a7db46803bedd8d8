//! Kinds that are answered and never stored: who a token is, what somebody may do, and
//! the binding of a pod by its own resource.

use std::sync::Arc;

use client::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::chain::Call;
use super::resources::{read_object, write_options};
use super::{Shared, answer, health, subresources};
use crate::authn::{User, user_info};
use crate::authz::selection::Selection;
use crate::authz::{Action, Decision, Mode};
use crate::change::apply::{Writer, update_managed_fields};
use crate::error::{ApiError, Cause, Result};
use crate::registry::{Target, metadata_str};
use crate::scheme::Typed;

pub async fn serve(server: &Shared, call: &Call, target: &Target) -> Result<Response<Body>> {
    if target.resource.plural == "componentstatuses" {
        return health::component_statuses(server, call, target);
    }
    if call.info.verb != "create" {
        return Err(ApiError::method_not_allowed());
    }
    let form = call.asked.answer_form()?;
    let (mut body, _) = read_object(call, target)?;
    if target.resource.plural == "bindings" {
        let pods = server.registry.resource("", "pods").ok_or_else(ApiError::no_such_resource)?;
        let pod = Target {
            resource: pods,
            name: metadata_str(&body, "name").to_string(),
            ..target.clone()
        };
        return subresources::bind(server, call, target, &pod, body).await;
    }
    let user = &call.user;
    let plural = target.resource.plural.as_str();
    body["status"] = match plural {
        "tokenreviews" => token_review(server, &body).await?,
        "selfsubjectreviews" => json!({"userInfo": user_info(user)}),
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            check_metadata(call, target, &body)?;
            let spec = &body["spec"];
            if target.resource.namespaced {
                check_local(target, spec)?;
            }
            access(server, target, spec, &reviewed_user(target, spec)?).await?
        }
        "selfsubjectaccessreviews" => {
            check_metadata(call, target, &body)?;
            access(server, target, &body["spec"], user).await?
        }
        "selfsubjectrulesreviews" => rules(server, &body["spec"], user)?,
        _ => return Err(ApiError::method_not_allowed()),
    };
    match plural {
        // These two answer with an object of the server's own.
        "selfsubjectreviews" => {
            let now = base::time::rfc3339(base::time::now());
            body["metadata"] = json!({"creationTimestamp": now});
        }
        "selfsubjectrulesreviews" => {
            body["metadata"] = json!({});
            body["spec"] = json!({});
        }
        _ => body = written(call, (&target.api_version(), target.typed()), "", body)?,
    }
    answer::plain(StatusCode::CREATED, form, &body)
}

/// The body with its writer recorded, as with any object that is created.
pub fn written(
    call: &Call,
    (api_version, typed): (&str, Typed<'_>),
    subresource: &str,
    mut body: Value,
) -> Result<Value> {
    let options = write_options(call)?;
    let now = base::time::rfc3339(base::time::now());
    let writer = Writer {
        manager: &options.manager,
        api_version,
        subresource,
        now: &now,
        reset: &[&["status"]],
    };
    update_managed_fields(None, &mut body, typed, &writer);
    Ok(body)
}

/// What is wrong with the spec of a review; upstream names no kind here.
fn invalid(target: &Target, field: &str, message: String) -> ApiError {
    let group = &target.resource.group;
    let cause = Cause { reason: "FieldValueInvalid".into(), message, field: field.into() };
    let text = format!(".{group} \"\" is invalid: {field}: {}", cause.message);
    ApiError::new(422, "Invalid", text).about(group, "", "").with_causes(&[cause])
}

/// A review has no name and nothing else of an object; a local one has its namespace.
fn check_metadata(call: &Call, target: &Target, body: &Value) -> Result<()> {
    let said = body["metadata"].as_object().into_iter().flatten();
    let mut said = said.filter(|(field, value)| {
        let is_place = *field == "namespace" && target.resource.namespaced;
        !is_place && *field != "managedFields" && !value.is_null() && *value != ""
    });
    if said.next().is_none() {
        return Ok(());
    }
    let shown = written(call, (&target.api_version(), target.typed()), "", body.clone())?;
    let message = format!("Invalid value: {}: must be empty", shown["metadata"]);
    Err(invalid(target, "metadata", message))
}

/// A local review asks about its own namespace only.
fn check_local(target: &Target, spec: &Value) -> Result<()> {
    let path = &spec["nonResourceAttributes"];
    if path.is_object() {
        let text = |field: &str| path[field].as_str().unwrap_or("");
        return Err(invalid(
            target,
            "spec.nonResourceAttributes",
            format!(
                "Invalid value: {{\"Path\":{:?},\"Verb\":{:?}}}: disallowed on this kind of request",
                text("path"),
                text("verb")
            ),
        ));
    }
    let namespace = spec["resourceAttributes"]["namespace"].as_str().unwrap_or("");
    if spec["resourceAttributes"].is_object() && namespace != target.namespace {
        return Err(invalid(
            target,
            "spec.resourceAttributes.namespace",
            format!("Invalid value: {namespace:?}: must match metadata.namespace"),
        ));
    }
    Ok(())
}

fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|item| item.as_str().map(str::to_string)).collect()
}

async fn token_review(server: &Shared, body: &Value) -> Result<Value> {
    let token = body["spec"]["token"].as_str().unwrap_or("");
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = strings(&body["spec"]["audiences"]);
    let found = server.authenticator.token(&server.registry.cache, token, &audiences).await;
    Ok(match found {
        Ok((user, granted)) => {
            json!({"authenticated": true, "user": user_info(&user), "audiences": granted})
        }
        Err(why) => json!({"user": {}, "error": crate::authn::aggregate(&why)}),
    })
}

fn reviewed_user(target: &Target, spec: &Value) -> Result<User> {
    let text = |field: &str| spec[field].as_str().unwrap_or("").to_string();
    let user = User {
        name: text("user"),
        uid: text("uid"),
        groups: strings(&spec["groups"]),
        extra: spec["extra"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, values)| (key.to_lowercase(), strings(values)))
            .collect(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(invalid(
            target,
            "spec.user",
            "Invalid value: \"\": at least one of user or group must be specified".into(),
        ));
    }
    Ok(user)
}

async fn access(server: &Shared, target: &Target, spec: &Value, user: &User) -> Result<Value> {
    let resource = &spec["resourceAttributes"];
    let path = &spec["nonResourceAttributes"];
    let text = |of: &Value, field: &str| of[field].as_str().unwrap_or("").to_string();
    let action = match (resource.is_object(), path.is_object()) {
        (true, false) => Action {
            verb: text(resource, "verb"),
            is_resource: true,
            group: text(resource, "group"),
            version: Some(text(resource, "version"))
                .filter(|v| !v.is_empty())
                .unwrap_or("*".into()),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            path: String::new(),
            selection: Selection::of_review(resource),
        },
        (false, true) => {
            Action { verb: text(path, "verb"), path: text(path, "path"), ..Action::default() }
        }
        (true, true) => {
            return Err(invalid(
                target,
                "spec.nonResourceAttributes",
                format!(
                    "Invalid value: {{\"Path\":{:?},\"Verb\":{:?}}}: cannot be specified in combination with resourceAttributes",
                    text(path, "path"),
                    text(path, "verb")
                ),
            ));
        }
        (false, false) => {
            return Err(invalid(
                target,
                "spec.resourceAttributes",
                "Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified".into(),
            ));
        }
    };
    let mut status = json!({});
    let mut errors = Vec::new();
    let reason = match server.authorizer.decide(user, &action).await {
        Decision::Allow(why) => {
            status["allowed"] = true.into();
            why
        }
        Decision::Deny(why) => {
            status = json!({"allowed": false, "denied": true});
            why
        }
        Decision::NoOpinion(why) => {
            status["allowed"] = false.into();
            why
        }
        Decision::Failed { error, denied } => {
            status["allowed"] = false.into();
            if denied {
                status["denied"] = true.into();
            }
            errors.push(error);
            String::new()
        }
    };
    errors.extend(action.selection.ignored());
    if !errors.is_empty() {
        status["evaluationError"] = errors.join("; ").into();
    }
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    Ok(status)
}

fn rules(server: &Shared, spec: &Value, user: &Arc<User>) -> Result<Value> {
    let namespace = spec["namespace"].as_str().unwrap_or("");
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    let mut error = None;
    for mode in server.authorizer.modes().iter() {
        match mode {
            Mode::Rbac => rbac_rules(server, user, namespace, &mut resources, &mut paths),
            Mode::Abac(abac) => {
                for policy in abac.of(user, namespace) {
                    if let Some((group, resource)) = policy.resource() {
                        resources.push(json!({"verbs": policy.verbs(), "apiGroups": [group],
                            "resources": [resource]}));
                    }
                    if let Some(path) = policy.path() {
                        paths.push(json!({"verbs": policy.verbs(), "nonResourceURLs": [path]}));
                    }
                }
            }
            Mode::Webhook(_) => {
                error = Some("webhook authorizer does not support user rule resolution");
            }
            Mode::Node | Mode::AlwaysDeny => {}
        }
    }
    let mut status = json!({"resourceRules": resources, "nonResourceRules": paths,
        "incomplete": error.is_some()});
    if let Some(error) = error {
        status["evaluationError"] = error.into();
    }
    Ok(status)
}

/// What the roles of a user let it do.
fn rbac_rules(
    server: &Shared,
    user: &User,
    namespace: &str,
    resources: &mut Vec<Value>,
    paths: &mut Vec<Value>,
) {
    server.authorizer.rbac().visit(user, namespace, |rule, _| {
        if !rule.resources.is_empty() {
            let mut shown = json!({
                "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources,
            });
            if !rule.resource_names.is_empty() {
                shown["resourceNames"] = json!(rule.resource_names);
            }
            resources.push(shown);
        }
        if !rule.non_resource_urls.is_empty() {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
        true
    });
}
