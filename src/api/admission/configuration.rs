//! Checks of policies, bindings and webhooks when they are written: upstream's sentences
//! (`pkg/apis/admissionregistration/validation`), with the expressions compiled.
//!
//! What the other checks of a kind leave to the room `kinds` is done there.

use cel::{Environment, Type};
use kinds::meta::selector::validate_label_selector;
use kinds::meta::{FieldError, name};
use serde_json::Value;

use super::policy::compile::{
    Expression, compile, composed, environment, mutation_type, with_authorizer,
};
use super::{Attributes, Operation};
use crate::error::{ApiError, Result};
use crate::registry::causes;

const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
const REINVOCATION_POLICIES: [&str; 2] = ["IfNeeded", "Never"];
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
const CONDITIONS_MAX: usize = 64;
const ANNOTATIONS_MAX: usize = 20;
/// Of an audit annotation's expression.
const EXPRESSION_BYTES_MAX: usize = 5 * 1024;
/// A webhook is waited for this long at most, in seconds.
const TIMEOUT_SECONDS_MAX: i64 = 30;

type Errors = Vec<FieldError>;

/// Refuses configuration that could not work.
pub fn validate(request: &Attributes<'_>, object: &Value) -> Result<()> {
    if request.resource.group != "admissionregistration.k8s.io"
        || request.operation == Operation::Delete
        || request.subresource == "status"
    {
        return Ok(());
    }
    let errors = match request.resource.kind.as_str() {
        "ValidatingAdmissionPolicy" => policy(object, request.old, false),
        "MutatingAdmissionPolicy" => policy(object, request.old, true),
        "ValidatingAdmissionPolicyBinding" => binding(object, false),
        "MutatingAdmissionPolicyBinding" => binding(object, true),
        "ValidatingWebhookConfiguration" => webhooks(object, request.old, false),
        "MutatingWebhookConfiguration" => webhooks(object, request.old, true),
        _ => return Ok(()),
    };
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(request.resource, request.name, &causes(errors)))
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

fn items<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

fn required(field: impl Into<String>) -> FieldError {
    FieldError::required(field, "")
}

/// A word that must be one of a few, where it is given.
fn one_of(value: &Value, field: &str, path: &str, allowed: &[&str], errors: &mut Errors) {
    if let Some(word) = value[field].as_str()
        && !allowed.contains(&word)
    {
        errors.push(FieldError::not_supported(format!("{path}.{field}"), word, allowed));
    }
}

fn policy(object: &Value, old: Option<&Value>, mutating: bool) -> Errors {
    let mut errors = Errors::new();
    let spec = &object["spec"];
    if spec["failurePolicy"].is_null() {
        errors.push(required("spec.failurePolicy"));
    }
    one_of(spec, "failurePolicy", "spec", &FAILURE_POLICIES, &mut errors);
    if spec["paramKind"].is_object() {
        param_kind(&spec["paramKind"], "spec.paramKind", &mut errors);
    }
    let constraints = &spec["matchConstraints"];
    if constraints.is_null() {
        errors.push(required("spec.matchConstraints"));
    } else {
        match_resources(constraints, "spec.matchConstraints", &mut errors);
        if items(constraints, "resourceRules").is_empty() {
            errors.push(required("spec.matchConstraints.resourceRules"));
        }
    }
    let base = environment(spec["paramKind"].is_object());
    let same = |field: &str| old.is_some_and(|old| old["spec"][field] == spec[field]);
    if !(same("paramKind") && same("matchConditions")) {
        let environment = with_authorizer(base);
        conditions(spec, "spec.matchConditions", &environment, &mut errors);
    }
    let variables = items(spec, "variables");
    for (index, variable) in variables.iter().enumerate() {
        let path = format!("spec.variables[{index}]");
        let name = text(variable, "name");
        if name.trim().is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), "name is not specified"));
        } else if !is_identifier(name) {
            let why = "name is not a valid CEL identifier";
            errors.push(FieldError::invalid(format!("{path}.name"), name, why));
        }
    }
    let [full, plain] = composed(spec, mutating, |index, text, program| {
        let path = format!("spec.variables[{index}].expression");
        if text.trim().is_empty() {
            errors.push(FieldError::required(path, "expression is not specified"));
        } else if let Err(why) = program {
            errors.push(FieldError::invalid(path, text, &why));
        }
    });
    if mutating {
        mutations(spec, &full, &mut errors);
    } else {
        validations(object, &full, &plain, &mut errors);
    }
    errors
}

fn is_identifier(name: &str) -> bool {
    let good = |b: u8| b == b'_' || b.is_ascii_alphanumeric();
    !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(good)
        // A word of the language would have to be escaped.
        && cel::escape(&name.replace("__", "_")).is_some_and(|escaped| !escaped.starts_with("__"))
}

fn expression(
    environment: &Environment,
    text: &str,
    wanted: &[Type],
    path: String,
    errors: &mut Errors,
) {
    if let Err(why) = compile(environment, text, wanted) {
        errors.push(FieldError::invalid(path, text, &why));
    }
}

fn validations(object: &Value, full: &Environment, plain: &Environment, errors: &mut Errors) {
    let spec = &object["spec"];
    let (validations, annotations) = (items(spec, "validations"), items(spec, "auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        errors.push(FieldError::required("spec.validations", why));
        errors.push(FieldError::required("spec.auditAnnotations", why));
    }
    for (index, validation) in validations.iter().enumerate() {
        let path = format!("spec.validations[{index}]");
        let rule = text(validation, "expression");
        if rule.trim().is_empty() {
            let why = "expression is not specified";
            errors.push(FieldError::required(format!("{path}.expression"), why));
        } else {
            expression(full, rule, &[Type::Bool], format!("{path}.expression"), errors);
        }
        let said = text(validation, "messageExpression");
        if !said.is_empty() && said.trim().is_empty() {
            let why = "must be non-empty if specified";
            errors.push(FieldError::invalid(format!("{path}.messageExpression"), said, why));
        } else if !said.is_empty() {
            let path = format!("{path}.messageExpression");
            expression(plain, said, &[Type::String], path, errors);
        }
        let message = text(validation, "message");
        if !message.is_empty() && message.trim().is_empty() {
            let why = "message must be non-empty if specified";
            errors.push(FieldError::invalid(format!("{path}.message"), message, why));
        } else if message.trim().contains(['\n', '\r']) {
            let why = "message must not contain line breaks";
            errors.push(FieldError::invalid(format!("{path}.message"), message, why));
        }
        one_of(validation, "reason", &path, &REASONS, errors);
    }
    if annotations.len() > ANNOTATIONS_MAX {
        let why = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        let value = spec["auditAnnotations"].clone();
        errors.push(FieldError::invalid("spec.auditAnnotations", value, &why));
    }
    let mut keys: Vec<&str> = Vec::new();
    for (index, annotation) in annotations.iter().enumerate() {
        let path = format!("spec.auditAnnotations[{index}]");
        let key = text(annotation, "key");
        let full_key = format!("{}/{key}", text(&object["metadata"], "name"));
        for why in name::is_qualified(&full_key) {
            errors.push(FieldError::invalid(format!("{path}.key"), full_key.as_str(), &why));
        }
        let value = text(annotation, "valueExpression");
        let at = format!("{path}.valueExpression");
        if value.trim().is_empty() {
            errors.push(FieldError::required(at, "valueExpression is not specified"));
        } else if value.trim().len() > EXPRESSION_BYTES_MAX {
            let why = format!("must not exceed {EXPRESSION_BYTES_MAX} bytes in length");
            errors.push(FieldError::required(at, &why));
        } else {
            expression(full, value, &[Type::String, Type::Null], at, errors);
        }
        if keys.contains(&key) {
            errors.push(FieldError::duplicate(format!("{path}.key"), key));
        }
        keys.push(key);
    }
}

fn mutations(spec: &Value, environment: &Environment, errors: &mut Errors) {
    let mutations = items(spec, "mutations");
    if mutations.is_empty() {
        let why = "mutations must contain at least one item";
        errors.push(FieldError::required("spec.mutations", why));
    }
    for (index, mutation) in mutations.iter().enumerate() {
        let path = format!("spec.mutations[{index}]");
        let kind = text(mutation, "patchType");
        let (field, other) = match kind {
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            "" => {
                errors.push(required(format!("{path}.patchType")));
                continue;
            }
            other => {
                let allowed = ["ApplyConfiguration", "JSONPatch"];
                errors.push(FieldError::not_supported(
                    format!("{path}.patchType"),
                    other,
                    &allowed,
                ));
                continue;
            }
        };
        if mutation[other].is_object() {
            let why = format!("must not be specified when patchType is {kind}");
            let value = "{}";
            errors.push(FieldError::invalid(format!("{path}.{other}"), value, &why));
        }
        if !mutation[field].is_object() {
            let why = format!("must be specified when patchType is {kind}");
            errors.push(FieldError::required(format!("{path}.{field}"), &why));
            continue;
        }
        let made = text(&mutation[field], "expression");
        let at = format!("{path}.{field}.expression");
        if made.trim().is_empty() {
            errors.push(FieldError::required(at, "expression is not specified"));
            continue;
        }
        let wanted = [mutation_type(kind == "JSONPatch")];
        if let Err(why) = Expression::compile(environment, made, &wanted).program {
            errors.push(FieldError::invalid(at, made, &why));
        }
    }
    if spec["reinvocationPolicy"].is_null() || text(spec, "reinvocationPolicy").is_empty() {
        errors.push(required("spec.reinvocationPolicy"));
    } else {
        one_of(spec, "reinvocationPolicy", "spec", &REINVOCATION_POLICIES, errors);
    }
}

fn param_kind(kind: &Value, path: &str, errors: &mut Errors) {
    let version = text(kind, "apiVersion");
    let at = format!("{path}.apiVersion");
    match version.split('/').collect::<Vec<_>>()[..] {
        _ if version.is_empty() => errors.push(required(at)),
        [version] => group_version("", version, &at, errors),
        [group, version] => group_version(group, version, &at, errors),
        _ => {
            let why = format!("unexpected GroupVersion string: {version}");
            errors.push(FieldError::invalid(at, version, &why));
        }
    }
    let name = text(kind, "kind");
    let at = format!("{path}.kind");
    if name.is_empty() {
        return errors.push(required(at));
    }
    let problems = name::is_dns1035_label(&name.to_lowercase());
    if !problems.is_empty() {
        let why =
            format!("may have mixed case, but should otherwise match: {}", problems.join(","));
        errors.push(FieldError::invalid(at, name, &why));
    }
}

fn group_version(group: &str, version: &str, at: &str, errors: &mut Errors) {
    if !group.is_empty() {
        let problems = name::is_dns1123_subdomain(group);
        if !problems.is_empty() {
            errors.push(FieldError::invalid(at, group, &problems.join(",")));
        }
    }
    if version.is_empty() {
        return errors.push(FieldError::invalid(
            at,
            format!("{group}/"),
            "version must be specified",
        ));
    }
    let problems = name::is_dns1035_label(version);
    if !problems.is_empty() {
        errors.push(FieldError::invalid(at, version, &problems.join(",")));
    }
}

fn match_resources(value: &Value, path: &str, errors: &mut Errors) {
    if value["matchPolicy"].is_null() {
        errors.push(required(format!("{path}.matchPolicy")));
    }
    one_of(value, "matchPolicy", path, &MATCH_POLICIES, errors);
    for field in ["namespaceSelector", "objectSelector"] {
        if value[field].is_null() {
            errors.push(required(format!("{path}.{field}")));
        } else {
            errors.extend(validate_label_selector(&value[field], &format!("{path}.{field}")));
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (index, rule) in items(value, field).iter().enumerate() {
            let path = format!("{path}.{field}[{index}]");
            let mut names: Vec<&str> = Vec::new();
            for (index, name) in items(rule, "resourceNames").iter().enumerate() {
                let name = name.as_str().unwrap_or_default();
                let at = format!("{path}.resourceNames[{index}]");
                for why in name::is_path_segment(name) {
                    errors.push(FieldError::invalid(&at, name, &why));
                }
                if names.contains(&name) {
                    errors.push(FieldError::duplicate(&at, name));
                }
                names.push(name);
            }
            rule_with_operations(rule, &path, errors);
        }
    }
}

fn rule_with_operations(rule: &Value, path: &str, errors: &mut Errors) {
    let wildcard = |field: &str, what: &str, errors: &mut Errors| {
        let list = items(rule, field);
        if list.is_empty() {
            errors.push(required(format!("{path}.{field}")));
        } else if list.len() > 1 && list.iter().any(|item| item == "*") {
            let why = format!("if '*' is present, must not specify other {what}");
            errors.push(FieldError::invalid(format!("{path}.{field}"), rule[field].clone(), &why));
        }
    };
    wildcard("operations", "operations", errors);
    for (index, operation) in items(rule, "operations").iter().enumerate() {
        let operation = operation.as_str().unwrap_or_default();
        if !OPERATIONS.contains(&operation) {
            let at = format!("{path}.operations[{index}]");
            errors.push(FieldError::not_supported(at, operation, &OPERATIONS));
        }
    }
    wildcard("apiGroups", "API groups", errors);
    wildcard("apiVersions", "API versions", errors);
    for (index, version) in items(rule, "apiVersions").iter().enumerate() {
        if version == "" {
            errors.push(required(format!("{path}.apiVersions[{index}]")));
        }
    }
    resources(rule, &format!("{path}.resources"), errors);
    one_of(rule, "scope", path, &SCOPES, errors);
}

fn resources(rule: &Value, path: &str, errors: &mut Errors) {
    let list = items(rule, "resources");
    if list.is_empty() {
        errors.push(required(path));
    }
    let (mut whole, mut everywhere): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut plain = false;
    for (index, resource) in list.iter().enumerate() {
        let full = resource.as_str().unwrap_or_default();
        let at = format!("{path}[{index}]");
        if full.is_empty() {
            errors.push(required(at));
            continue;
        }
        let Some((name, sub)) = full.split_once('/') else {
            plain = full != "*";
            continue;
        };
        if whole.contains(&name) {
            let why = format!("if '{name}/*' is present, must not specify {full}");
            errors.push(FieldError::invalid(&at, full, &why));
        }
        if everywhere.contains(&sub) {
            let why = format!("if '*/{sub}' is present, must not specify {full}");
            errors.push(FieldError::invalid(&at, full, &why));
        }
        if sub == "*" {
            whole.push(name);
        }
        if name == "*" {
            everywhere.push(sub);
        }
    }
    let value = || rule["resources"].clone();
    if list.len() > 1 && list.iter().any(|item| item == "*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        errors.push(FieldError::invalid(path, value(), why));
    }
    if plain && list.iter().any(|item| item == "*") {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.push(FieldError::invalid(path, value(), why));
    }
}

fn conditions(value: &Value, path: &str, environment: &Environment, errors: &mut Errors) {
    let list = items(value, "matchConditions");
    if list.len() > CONDITIONS_MAX {
        errors.push(FieldError::too_many(path, list.len(), CONDITIONS_MAX));
    }
    let mut names: Vec<&str> = Vec::new();
    for (index, condition) in list.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let rule = text(condition, "expression").trim();
        if rule.is_empty() {
            errors.push(required(format!("{path}.expression")));
        } else {
            expression(environment, rule, &[Type::Bool], format!("{path}.expression"), errors);
        }
        let own = text(condition, "name");
        let at = format!("{path}.name");
        if own.is_empty() {
            errors.push(required(at));
            continue;
        }
        for why in name::is_qualified(own) {
            errors.push(FieldError::invalid(&at, own, &why));
        }
        if names.contains(&own) {
            errors.push(FieldError::duplicate(&at, own));
        }
        names.push(own);
    }
}

fn binding(object: &Value, mutating: bool) -> Errors {
    let mut errors = Errors::new();
    let spec = &object["spec"];
    let policy = text(spec, "policyName");
    if policy.is_empty() {
        errors.push(required("spec.policyName"));
    } else {
        for why in name::is_dns1123_subdomain(policy) {
            errors.push(FieldError::invalid("spec.policyName", policy, &why));
        }
    }
    if spec["paramRef"].is_object() {
        param_ref(&spec["paramRef"], "spec.paramRef", &mut errors);
    }
    if spec["matchResources"].is_object() {
        // The path is spelled so upstream.
        match_resources(&spec["matchResources"], "spec.matchResouces", &mut errors);
    }
    if mutating {
        return errors;
    }
    let path = "spec.validationActions";
    let actions: Vec<&str> =
        items(spec, "validationActions").iter().filter_map(Value::as_str).collect();
    for (index, action) in actions.iter().enumerate() {
        let at = format!("{path}[{index}]");
        if !ACTIONS.contains(action) {
            errors.push(FieldError::not_supported(&at, *action, &ACTIONS));
        }
        if actions[..index].contains(action) {
            errors.push(FieldError::duplicate(&at, *action));
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.push(FieldError::invalid(path, spec["validationActions"].clone(), why));
    }
    if actions.is_empty() {
        errors.push(FieldError::required(path, "at least one validation action is required"));
    }
    errors
}

fn param_ref(value: &Value, path: &str, errors: &mut Errors) {
    let own = text(value, "name");
    let selects = value["selector"].is_object();
    let exclusive = "name and selector are mutually exclusive";
    if !own.is_empty() {
        for why in name::is_path_segment(own) {
            errors.push(FieldError::invalid(format!("{path}.name"), own, &why));
        }
        if selects {
            errors.push(FieldError::forbidden(format!("{path}.name"), exclusive));
        }
    }
    if selects {
        errors.extend(validate_label_selector(&value["selector"], &format!("{path}.selector")));
        if !own.is_empty() {
            errors.push(FieldError::forbidden(format!("{path}.selector"), exclusive));
        }
    }
    if own.is_empty() && !selects {
        errors.push(FieldError::required(path, "one of name or selector must be specified"));
    }
    let missing = text(value, "parameterNotFoundAction");
    let at = format!("{path}.parameterNotFoundAction");
    if missing.is_empty() {
        errors.push(required(at));
    } else if !["Deny", "Allow"].contains(&missing) {
        errors.push(FieldError::not_supported(at, missing, &["Deny", "Allow"]));
    }
}

fn webhooks(object: &Value, old: Option<&Value>, mutating: bool) -> Errors {
    let mut errors = Errors::new();
    let environment = with_authorizer(environment(false));
    let hooks = items(object, "webhooks");
    let old_hooks = old.map(|old| items(old, "webhooks"));
    let same_conditions = old_hooks.is_some_and(|old| {
        old.len() == hooks.len()
            && old.iter().zip(hooks).all(|(a, b)| a["matchConditions"] == b["matchConditions"])
    });
    let mut names: Vec<&str> = Vec::new();
    for (index, hook) in hooks.iter().enumerate() {
        let path = format!("webhooks[{index}]");
        let own = text(hook, "name");
        qualified_name(own, &format!("{path}.name"), &mut errors);
        for (index, rule) in items(hook, "rules").iter().enumerate() {
            rule_with_operations(rule, &format!("{path}.rules[{index}]"), &mut errors);
        }
        one_of(hook, "failurePolicy", &path, &FAILURE_POLICIES, &mut errors);
        one_of(hook, "matchPolicy", &path, &MATCH_POLICIES, &mut errors);
        if hook["sideEffects"].is_null() {
            let why = format!("must specify one of {}", SIDE_EFFECTS.join(", "));
            errors.push(FieldError::required(format!("{path}.sideEffects"), &why));
        }
        one_of(hook, "sideEffects", &path, &SIDE_EFFECTS, &mut errors);
        if let Some(seconds) = hook["timeoutSeconds"].as_i64()
            && !(1..=TIMEOUT_SECONDS_MAX).contains(&seconds)
        {
            let why = "the timeout value must be between 1 and 30 seconds";
            errors.push(FieldError::invalid(format!("{path}.timeoutSeconds"), seconds, why));
        }
        for field in ["namespaceSelector", "objectSelector"] {
            if hook[field].is_object() {
                errors.extend(validate_label_selector(&hook[field], &format!("{path}.{field}")));
            }
        }
        if mutating {
            one_of(hook, "reinvocationPolicy", &path, &REINVOCATION_POLICIES, &mut errors);
        }
        client_config(&hook["clientConfig"], &format!("{path}.clientConfig"), &mut errors);
        if !same_conditions {
            conditions(hook, &format!("{path}.matchConditions"), &environment, &mut errors);
        }
        review_versions(hook, &format!("{path}.admissionReviewVersions"), &mut errors);
        if !own.is_empty() && names.contains(&own) {
            errors.push(FieldError::duplicate(format!("{path}.name"), own));
        }
        names.push(own);
    }
    errors
}

/// A name of at least three labels, such as `hook.example.com`.
fn qualified_name(own: &str, path: &str, errors: &mut Errors) {
    if own.is_empty() {
        return errors.push(required(path));
    }
    let problems = name::is_dns1123_subdomain(own);
    if !problems.is_empty() {
        return errors.push(FieldError::invalid(path, own, &problems.join(",")));
    }
    if own.split('.').count() < 3 {
        let why = "should be a domain with at least three segments separated by dots";
        errors.push(FieldError::invalid(path, own, why));
    }
}

fn review_versions(hook: &Value, path: &str, errors: &mut Errors) {
    let versions: Vec<&str> =
        items(hook, "admissionReviewVersions").iter().filter_map(Value::as_str).collect();
    if versions.is_empty() {
        let why = format!("must specify one of {}", REVIEW_VERSIONS.join(", "));
        return errors.push(FieldError::required(path, &why));
    }
    for (index, version) in versions.iter().enumerate() {
        let at = format!("{path}[{index}]");
        if versions[..index].contains(version) {
            errors.push(FieldError::invalid(at, *version, "duplicate version"));
            continue;
        }
        for why in name::is_dns1035_label(version) {
            errors.push(FieldError::invalid(&at, *version, &why));
        }
    }
    if !versions.iter().any(|version| REVIEW_VERSIONS.contains(version)) {
        let why = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        errors.push(FieldError::invalid(path, hook["admissionReviewVersions"].clone(), &why));
    }
}

fn client_config(config: &Value, path: &str, errors: &mut Errors) {
    let (url, service) = (config["url"].as_str(), config["service"].is_object());
    match url {
        Some(_) if service => {}
        None if !service => {}
        Some(url) => return webhook_url(url, &format!("{path}.url"), errors),
        None => return webhook_service(&config["service"], &format!("{path}.service"), errors),
    }
    errors.push(FieldError::required(path, "exactly one of url or service is required"));
}

fn webhook_url(url: &str, path: &str, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_end);
    if scheme != "https" {
        let why = format!("'https' is the only allowed URL scheme{FORM}");
        errors.push(FieldError::invalid(path, scheme, &why));
    }
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.is_empty() || scheme.is_empty() {
        let why = format!("host must be specified{FORM}");
        errors.push(FieldError::invalid(path, host, &why));
    }
    if let Some((user, _)) = authority.rsplit_once('@') {
        errors.push(FieldError::invalid(
            path,
            user,
            "user information is not permitted in the URL",
        ));
    }
    let (before, fragment) = tail.split_once('#').unwrap_or((tail, ""));
    if !fragment.is_empty() {
        errors.push(FieldError::invalid(path, fragment, "fragments are not permitted in the URL"));
    }
    if let Some((_, query)) = before.split_once('?')
        && !query.is_empty()
    {
        let why = "query parameters are not permitted in the URL";
        errors.push(FieldError::invalid(path, query, why));
    }
}

fn webhook_service(service: &Value, path: &str, errors: &mut Errors) {
    if text(service, "name").is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), "service name is required"));
    }
    if text(service, "namespace").is_empty() {
        let why = "service namespace is required";
        errors.push(FieldError::required(format!("{path}.namespace"), why));
    }
    if let Some(port) = service["port"].as_i64()
        && !(1..=65_535).contains(&port)
    {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.push(FieldError::invalid(format!("{path}.port"), port, why));
    }
    let Some(way) = service["path"].as_str().filter(|way| !way.is_empty()) else { return };
    let at = format!("{path}.path");
    if !way.starts_with('/') {
        errors.push(FieldError::invalid(&at, way, "must start with a '/'"));
    }
    let trimmed = way.strip_prefix('/').unwrap_or(way);
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    if way == "/" {
        return;
    }
    for (index, step) in trimmed.split('/').enumerate() {
        if step.is_empty() {
            let why = format!("segment[{index}] may not be empty");
            errors.push(FieldError::invalid(&at, way, &why));
            continue;
        }
        for why in name::is_dns1123_subdomain(step) {
            let why = format!("segment[{index}]: {why}");
            errors.push(FieldError::invalid(&at, way, &why));
        }
    }
}
