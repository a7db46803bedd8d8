//! Validation of classes of devices, and of claims of them (resource.k8s.io/v1). The expressions
//! by which devices are selected are found here, and compiled by whoever can.

use std::collections::BTreeSet;

use serde_json::Value;

use super::checks::{Errors, form, form_if_any, immutable, one_of};
use crate::meta::{FieldError, name};
use crate::value::{at, has, items, text};

const REQUESTS_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const SELECTORS_MAX: usize = 32;
const CONSTRAINTS_MAX: usize = 32;
const CONFIGS_MAX: usize = 32;
const PARAMETERS_BYTES_MAX: usize = 10 * 1024;
const EXPRESSION_BYTES_MAX: usize = 10 * 1024;
const USERS_MAX: usize = 256;
const TOLD_CONDITIONS_MAX: usize = 8;
const ID_BYTES_MAX: usize = 32;

pub(super) const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

pub(super) fn claim(object: &Value) -> Errors {
    let mut out = Vec::new();
    claim_spec(at(object, "spec"), "spec", &mut out);
    out
}

pub(super) fn claim_template(object: &Value) -> Errors {
    let mut out = Vec::new();
    claim_spec(at(object, "spec.spec"), "spec.spec", &mut out);
    out
}

pub(super) fn claim_update(new: &Value, old: &Value) -> Errors {
    let mut out = Vec::new();
    immutable(&new["spec"], &old["spec"], "spec", &mut out);
    out
}

pub(super) fn too_many(count: usize, most: usize, field: &str, out: &mut Errors) {
    if count > most {
        out.push(FieldError::too_many(field, count, most));
    }
}

/// A name that has to be there.
pub(super) fn named(word: &str, field: &str, problems: fn(&str) -> Vec<String>, out: &mut Errors) {
    match word.is_empty() {
        true => out.push(FieldError::required(field, "")),
        false => form(word, field, problems, out),
    }
}

/// The names by which constraints and configuration speak of requests.
fn request_names(devices: &Value) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for request in items(devices, "requests") {
        let own = text(request, "name");
        out.insert(own.to_owned());
        let alternatives = items(request, "firstAvailable").iter();
        out.extend(alternatives.map(|it| format!("{own}/{}", text(it, "name"))));
    }
    out
}

fn claim_spec(spec: &Value, root: &str, out: &mut Errors) {
    let devices = at(spec, "devices");
    let known = request_names(devices);
    let field = format!("{root}.devices.requests");
    let requests = items(devices, "requests");
    too_many(requests.len(), REQUESTS_MAX, &field, out);
    unique(requests, &field, out);
    for (index, it) in requests.iter().enumerate() {
        request(it, &format!("{field}[{index}]"), out);
    }
    let field = format!("{root}.devices.constraints");
    let constraints = items(devices, "constraints");
    too_many(constraints.len(), CONSTRAINTS_MAX, &field, out);
    for (index, it) in constraints.iter().enumerate() {
        constraint(it, &format!("{field}[{index}]"), &known, out);
    }
    let field = format!("{root}.devices.config");
    let configs = items(devices, "config");
    too_many(configs.len(), CONFIGS_MAX, &field, out);
    for (index, it) in configs.iter().enumerate() {
        let field = format!("{field}[{index}]");
        references(it, &field, &known, out);
        config(it, &field, out);
    }
}

fn unique(entries: &[Value], field: &str, out: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let own = text(entry, "name");
        if seen.contains(&own) {
            out.push(FieldError::duplicate(format!("{field}[{index}]"), own));
        }
        seen.push(own);
    }
}

fn request(request: &Value, field: &str, out: &mut Errors) {
    named(text(request, "name"), &format!("{field}.name"), name::is_dns1123_label, out);
    let (exactly, several) = (&request["exactly"], items(request, "firstAvailable"));
    match (exactly.is_object(), several.is_empty()) {
        (false, true) => {
            let detail = "exactly one of `exactly` or `firstAvailable` is required";
            out.push(FieldError::required(field, detail));
        }
        (true, false) => {
            let detail = "exactly one of `exactly` or `firstAvailable` is required, but multiple \
                          fields are set";
            out.push(FieldError::invalid(field, Value::Null, detail));
        }
        (true, true) => wanted(exactly, &format!("{field}.exactly"), out),
        (false, false) => {
            let field = format!("{field}.firstAvailable");
            too_many(several.len(), ALTERNATIVES_MAX, &field, out);
            unique(several, &field, out);
            for (index, one) in several.iter().enumerate() {
                let field = format!("{field}[{index}]");
                named(text(one, "name"), &format!("{field}.name"), name::is_dns1123_label, out);
                wanted(one, &field, out);
            }
        }
    }
}

/// What a request or an alternative of one asks for.
fn wanted(request: &Value, field: &str, out: &mut Errors) {
    let class = format!("{field}.deviceClassName");
    named(text(request, "deviceClassName"), &class, name::is_dns1123_subdomain, out);
    selectors(request, field, out);
    let count = request["count"].as_i64();
    let at_count = format!("{field}.count");
    match text(request, "allocationMode") {
        "ExactCount" | "" => {
            if let Some(count) = count.filter(|count| *count <= 0) {
                out.push(FieldError::invalid(at_count, count, "must be greater than zero"));
            }
        }
        "All" => {
            if let Some(count) = count.filter(|count| *count != 0) {
                let detail = "must not be specified when allocationMode is 'All'";
                out.push(FieldError::invalid(at_count, count, detail));
            }
        }
        other => {
            let field = format!("{field}.allocationMode");
            out.push(FieldError::not_supported(field, other, &["All", "ExactCount"]));
        }
    }
    for (index, it) in items(request, "tolerations").iter().enumerate() {
        toleration(it, &format!("{field}.tolerations[{index}]"), out);
    }
}

fn selectors(of: &Value, field: &str, out: &mut Errors) {
    let field = format!("{field}.selectors");
    let selectors = items(of, "selectors");
    too_many(selectors.len(), SELECTORS_MAX, &field, out);
    for (index, selector) in selectors.iter().enumerate() {
        let field = format!("{field}[{index}].cel");
        if !selector["cel"].is_object() {
            out.push(FieldError::required(field, ""));
        } else if text(&selector["cel"], "expression").len() > EXPRESSION_BYTES_MAX {
            out.push(FieldError::too_long(format!("{field}.expression"), EXPRESSION_BYTES_MAX));
        }
    }
}

/// The expressions by which an object of this kind selects devices, and where they stand. Those
/// that are too long are not among them: they are refused as they are.
pub fn selectors_of<'v>(kind: &str, object: &'v Value) -> Vec<(String, &'v str)> {
    let mut out = Vec::new();
    let (devices, root) = match kind {
        "DeviceClass" => {
            expressions(at(object, "spec"), "spec", &mut out);
            return out;
        }
        "ResourceClaim" => (at(object, "spec.devices"), "spec.devices"),
        "ResourceClaimTemplate" => (at(object, "spec.spec.devices"), "spec.spec.devices"),
        _ => return out,
    };
    for (index, request) in items(devices, "requests").iter().enumerate() {
        let field = format!("{root}.requests[{index}]");
        expressions(at(request, "exactly"), &format!("{field}.exactly"), &mut out);
        for (index, one) in items(request, "firstAvailable").iter().enumerate() {
            expressions(one, &format!("{field}.firstAvailable[{index}]"), &mut out);
        }
    }
    out
}

fn expressions<'v>(of: &'v Value, field: &str, out: &mut Vec<(String, &'v str)>) {
    for (index, selector) in items(of, "selectors").iter().enumerate() {
        let expression = text(&selector["cel"], "expression");
        if selector["cel"].is_object() && expression.len() <= EXPRESSION_BYTES_MAX {
            out.push((format!("{field}.selectors[{index}].cel.expression"), expression));
        }
    }
}

fn toleration(toleration: &Value, field: &str, out: &mut Errors) {
    form_if_any(text(toleration, "key"), &format!("{field}.key"), name::is_qualified, out);
    let (value, at_value) = (text(toleration, "value"), format!("{field}.value"));
    match text(toleration, "operator") {
        "Exists" if !value.is_empty() => {
            out.push(FieldError::invalid(at_value, value, "must be empty for operator `Exists`"));
        }
        "Exists" => {}
        "Equal" => form(value, &at_value, name::is_label_value, out),
        "" => out.push(FieldError::required(format!("{field}.operator"), "")),
        other => {
            let field = format!("{field}.operator");
            out.push(FieldError::not_supported(field, other, &["Equal", "Exists"]));
        }
    }
    if has(toleration, "effect") {
        one_of(&toleration["effect"], &format!("{field}.effect"), &EFFECTS, out);
    }
}

/// Names of requests of the claim.
fn references(of: &Value, field: &str, known: &BTreeSet<String>, out: &mut Errors) {
    let field = format!("{field}.requests");
    let names = items(of, "requests");
    too_many(names.len(), REQUESTS_MAX, &field, out);
    let mut seen: Vec<&str> = Vec::new();
    for (index, it) in names.iter().enumerate() {
        let (it, field) = (it.as_str().unwrap_or_default(), format!("{field}[{index}]"));
        if !known.contains(it) {
            let detail = "must be the name of a request in the claim or the name of a request and \
                          a subrequest separated by '/'";
            out.push(FieldError::invalid(&field, it, detail));
        }
        if seen.contains(&it) {
            out.push(FieldError::duplicate(field, it));
        }
        seen.push(it);
    }
}

fn constraint(constraint: &Value, field: &str, known: &BTreeSet<String>, out: &mut Errors) {
    references(constraint, field, known, out);
    let same = ["matchAttribute", "distinctAttribute"];
    let given: Vec<&str> = same.into_iter().filter(|key| !constraint[*key].is_null()).collect();
    match given.as_slice() {
        [] => {
            let detail = "exactly one of `matchAttribute` or `distinctAttribute` is required";
            out.push(FieldError::required(field, detail));
        }
        [key] => {
            let (attribute, field) = (text(constraint, key), format!("{field}.{key}"));
            qualified(attribute, &field, out);
            if !attribute.is_empty() && !attribute.contains('/') {
                out.push(FieldError::invalid(field, attribute, "must include a domain"));
            }
        }
        _ => {
            let detail = "exactly one of `matchAttribute` or `distinctAttribute` is required, but \
                          multiple fields are set";
            out.push(FieldError::invalid(field, Value::Null, detail));
        }
    }
}

/// A name of an attribute or a capacity: an identifier, after a domain where it has one.
pub(super) fn qualified(word: &str, field: &str, out: &mut Errors) {
    if word.is_empty() {
        return out.push(FieldError::required(field, "name required"));
    }
    let id = match word.split_once('/') {
        None => word,
        Some((domain, id)) => {
            match domain.is_empty() {
                true => out.push(FieldError::required(field, "the domain must not be empty")),
                false => form(domain, field, name::is_dns1123_subdomain, out),
            }
            if id.is_empty() {
                return out.push(FieldError::required(field, "the name must not be empty"));
            }
            id
        }
    };
    if id.len() > ID_BYTES_MAX {
        out.push(FieldError::too_long(field, ID_BYTES_MAX));
    }
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let is_identifier = id.bytes().next().is_some_and(is_letter)
        && id.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit());
    if !is_identifier {
        let detail = "a valid C identifier must start with alphabetic character or '_', followed \
                      by a string of alphanumeric characters or '_' (e.g. 'my_name',  or \
                      'MY_NAME',  or 'MyName', regex used for validation is \
                      '[A-Za-z_][A-Za-z0-9_]*')";
        out.push(FieldError::type_invalid(field, id, detail));
    }
}

fn config(config: &Value, field: &str, out: &mut Errors) {
    let field = format!("{field}.opaque");
    let opaque = &config["opaque"];
    if !opaque.is_object() {
        return out.push(FieldError::required(field, ""));
    }
    named(text(opaque, "driver"), &format!("{field}.driver"), name::is_dns1123_subdomain, out);
    let (parameters, field) = (&opaque["parameters"], format!("{field}.parameters"));
    match parameters {
        Value::Null => out.push(FieldError::required(field, "")),
        Value::Object(_) if parameters.to_string().len() > PARAMETERS_BYTES_MAX => {
            out.push(FieldError::too_long(field, PARAMETERS_BYTES_MAX));
        }
        Value::Object(_) => {}
        _ => {
            let detail = "parameters must be a valid JSON object";
            out.push(FieldError::invalid(field, "<value omitted>", detail));
        }
    }
}

pub(super) fn class(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    selectors(spec, "spec", &mut out);
    let configs = items(spec, "config");
    too_many(configs.len(), CONFIGS_MAX, "spec.config", &mut out);
    for (index, it) in configs.iter().enumerate() {
        config(it, &format!("spec.config[{index}]"), &mut out);
    }
    if has(spec, "extendedResourceName") {
        let resource = text(spec, "extendedResourceName");
        let field = "spec.extendedResourceName";
        form(resource, field, name::is_qualified, &mut out);
        if !name::is_extended_resource(resource) {
            let detail = "must be a valid extended resource name";
            out.push(FieldError::invalid(field, resource, detail));
        }
    }
    out
}

type Device = (String, String, String);

fn device_of(entry: &Value) -> Device {
    let of = |key: &str| text(entry, key).to_owned();
    (of("driver"), of("pool"), of("device"))
}

/// Checks of a claim's status.
pub fn claim_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let (status, before) = (at(new, "status"), at(old, "status"));
    let users = items(status, "reservedFor");
    let field = "status.reservedFor";
    too_many(users.len(), USERS_MAX, field, &mut out);
    let mut seen: Vec<&str> = Vec::new();
    for (index, user) in users.iter().enumerate() {
        let field = format!("{field}[{index}]");
        for key in ["resource", "name", "uid"] {
            if text(user, key).is_empty() {
                out.push(FieldError::required(format!("{field}.{key}"), ""));
            }
        }
        let uid = text(user, "uid");
        if seen.contains(&uid) {
            out.push(FieldError::duplicate(format!("{field}.uid"), uid));
        }
        seen.push(uid);
    }
    let allocation = &status["allocation"];
    let results = items(allocation, "devices.results");
    let allocated: Vec<Device> = results.iter().map(device_of).collect();
    let told = items(status, "devices");
    for (index, it) in told.iter().enumerate() {
        let field = format!("status.devices[{index}]");
        let (driver, pool, device) = device_of(it);
        let id = format!("{driver}/{pool}/{device}");
        if !allocated.contains(&(driver, pool, device)) {
            let detail = "must be an allocated device in the claim";
            out.push(FieldError::invalid(&field, id, detail));
        }
        let conditions = items(it, "conditions").len();
        too_many(conditions, TOLD_CONDITIONS_MAX, &format!("{field}.conditions"), &mut out);
    }
    if !users.is_empty() && !allocation.is_object() {
        let detail = "may not be specified when `allocated` is not set";
        out.push(FieldError::forbidden(field, detail));
    }
    let known = items(before, "reservedFor");
    let is_going = !text(at(new, "metadata"), "deletionTimestamp").is_empty();
    if is_going && users.iter().any(|user| !known.contains(user)) {
        let detail = "new entries may not be added while `deallocationRequested` or \
                      `deletionTimestamp` are set";
        out.push(FieldError::forbidden(field, detail));
    }
    match before["allocation"].is_object() && allocation.is_object() {
        true => immutable(allocation, &before["allocation"], "status.allocation", &mut out),
        false => {
            let names = request_names(at(new, "spec.devices"));
            for (index, it) in results.iter().enumerate() {
                let field = format!("status.allocation.devices.results[{index}].request");
                let request = text(it, "request");
                if !names.contains(request) {
                    let detail = "must be the name of a request in the claim or the name of a \
                                  request and a subrequest separated by '/'";
                    out.push(FieldError::invalid(field, request, detail));
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(errors: Vec<FieldError>) -> Vec<String> {
        errors.iter().map(|error| error.field.clone()).collect()
    }

    #[test]
    fn claims_speak_of_their_own_requests_and_of_attributes_with_a_domain() {
        let spec = |devices: Value| said(claim(&json!({"spec": {"devices": devices}})));
        let request = json!({"name": "r", "firstAvailable": [
            {"name": "a", "deviceClassName": "gpu"}]});
        for (more, fields) in [
            (json!({}), vec![]),
            (json!({"constraints": [{"requests": ["r/a"], "matchAttribute": "d.io/x"}]}), vec![]),
            (
                json!({"constraints": [{"requests": ["s"], "matchAttribute": "x"}]}),
                vec![
                    "spec.devices.constraints[0].requests[0]",
                    "spec.devices.constraints[0].matchAttribute",
                ],
            ),
            (json!({"constraints": [{}]}), vec!["spec.devices.constraints[0]"]),
            (
                json!({"constraints": [{"matchAttribute": "d.io/x", "distinctAttribute": "d.io/y"}]}),
                vec!["spec.devices.constraints[0]"],
            ),
            (
                json!({"config": [{"opaque": {"driver": "d.io", "parameters": [1]}}]}),
                vec!["spec.devices.config[0].opaque.parameters"],
            ),
            (json!({"config": [{}]}), vec!["spec.devices.config[0].opaque"]),
        ] {
            let mut devices = json!({"requests": [request]});
            for (key, value) in more.as_object().unwrap() {
                devices[key] = value.clone();
            }
            assert_eq!(spec(devices), fields, "{more}");
        }
        let tolerates = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu",
            "tolerations": [{"operator": "Exists", "value": "v", "effect": "Sometimes"}]}}]});
        let at = "spec.devices.requests[0].exactly.tolerations[0]";
        assert_eq!(spec(tolerates), [format!("{at}.value"), format!("{at}.effect")]);
    }

    #[test]
    fn a_status_tells_of_devices_that_the_claim_has_and_an_allocation_stays() {
        let claim = |status: Value| {
            json!({"metadata": {}, "status": status,
                "spec": {"devices": {"requests": [{"name": "r"}]}}})
        };
        let result = json!({"request": "r", "driver": "d", "pool": "p", "device": "x"});
        let allocation = |request: &str| {
            let mut result = result.clone();
            result["request"] = request.into();
            json!({"devices": {"results": [result]}})
        };
        let user = json!({"resource": "pods", "name": "p", "uid": "u"});
        let none = claim(json!({}));
        let has = claim(json!({"allocation": allocation("r")}));
        for (new, old, fields) in [
            (claim(json!({"allocation": allocation("r"), "reservedFor": [user]})), &none, vec![]),
            (claim(json!({"reservedFor": [user]})), &none, vec!["status.reservedFor"]),
            (
                claim(json!({"allocation": allocation("s")})),
                &none,
                vec!["status.allocation.devices.results[0].request"],
            ),
            (claim(json!({"allocation": allocation("s")})), &has, vec!["status.allocation"]),
            (claim(json!({"allocation": allocation("r"), "devices": [result]})), &has, vec![]),
            (claim(json!({"devices": [result]})), &none, vec!["status.devices[0]"]),
        ] {
            assert_eq!(said(claim_status(&new, old)), fields, "{new}");
        }
    }

    #[test]
    fn a_class_stands_for_resources_of_a_domain_that_is_not_ours() {
        for (resource, fits) in [
            ("example.com/gpu", true),
            ("gpu", false),
            ("kubernetes.io/gpu", false),
            ("requests.example.com/gpu", false),
        ] {
            let class = class(&json!({"spec": {"extendedResourceName": resource}}));
            assert_eq!(class.is_empty(), fits, "{resource}");
        }
    }
}
