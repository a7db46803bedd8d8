//! Validation of the kinds that steer the API server itself: flow control, aggregated
//! services, certificate requests. Webhooks and policies have expressions and are checked where
//! these are compiled, in `api`.

use base64::Engine;
use serde_json::Value;

use super::checks::{Errors, child, form, form_if_any, must_be_one_of, one_of, required};
use crate::meta::{FieldError, name};
use crate::value::{at, has, items, number, text};

const VERBS: [&str; 10] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
    "*",
];
const PATH_VERBS: [&str; 8] = ["delete", "get", "head", "options", "patch", "post", "put", "*"];
const PRECEDENCE_MAX: i64 = 10_000;

pub(super) fn flow_schema(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    let (own, precedence) = (text(object, "metadata.name"), number(spec, "matchingPrecedence"));
    if precedence <= 0 {
        let detail = "must be a positive value";
        out.push(FieldError::invalid("spec.matchingPrecedence", precedence, detail));
    }
    if precedence > PRECEDENCE_MAX {
        let detail = format!("must not be greater than {PRECEDENCE_MAX}");
        out.push(FieldError::invalid("spec.matchingPrecedence", precedence, &detail));
    }
    if precedence == 1 && own != "exempt" {
        let detail = "only the schema named 'exempt' may have matchingPrecedence 1";
        out.push(FieldError::invalid("spec.matchingPrecedence", precedence, detail));
    }
    let method = &spec["distinguisherMethod"]["type"];
    if spec["distinguisherMethod"].is_object() {
        let methods = ["ByNamespace", "ByUser"];
        must_be_one_of(method, "spec.distinguisherMethod", &methods, &mut out);
    }
    let level = text(spec, "priorityLevelConfiguration.name");
    let field = "spec.priorityLevelConfiguration.name";
    if level.is_empty() {
        out.push(FieldError::required(field, "must reference a priority level"));
    } else {
        form(level, field, name::is_dns1123_subdomain, &mut out);
    }
    for (index, rule) in items(spec, "rules").iter().enumerate() {
        flow_rule(rule, &format!("spec.rules[{index}]"), &mut out);
    }
    out
}

fn flow_rule(rule: &Value, field: &str, out: &mut Errors) {
    let subjects = items(rule, "subjects");
    if subjects.is_empty() {
        let detail = "subjects must contain at least one value";
        out.push(FieldError::required(format!("{field}.subjects"), detail));
    }
    for (index, subject) in subjects.iter().enumerate() {
        flow_subject(subject, &format!("{field}.subjects[{index}]"), out);
    }
    let (resources, paths) = (items(rule, "resourceRules"), items(rule, "nonResourceRules"));
    if resources.is_empty() && paths.is_empty() {
        let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
        out.push(FieldError::required(field, detail));
    }
    for (index, rule) in resources.iter().enumerate() {
        let field = format!("{field}.resourceRules[{index}]");
        wildcard_list(rule, "verbs", "verbs", &VERBS, &field, out);
        wildcard_list(rule, "apiGroups", "apiGroups", &[], &field, out);
        wildcard_list(rule, "resources", "resources", &[], &field, out);
        let namespaces = items(rule, "namespaces");
        let cluster = at(rule, "clusterScope").as_bool() == Some(true);
        let at = format!("{field}.namespaces");
        if namespaces.is_empty() && !cluster {
            let detail = "resource rules that are not cluster scoped must supply at least one \
                          namespace";
            out.push(FieldError::required(&at, detail));
        }
        if namespaces.len() > 1 && namespaces.iter().any(|one| one == "*") {
            let detail = "may not contain other entries if '*' is present";
            out.push(FieldError::invalid(&at, namespaces.to_vec(), detail));
        }
        for (index, one) in namespaces.iter().enumerate().filter(|(_, one)| *one != "*") {
            let own = one.as_str().unwrap_or_default();
            form(own, &format!("{at}[{index}]"), name::is_dns1123_label, out);
        }
    }
    for (index, rule) in paths.iter().enumerate() {
        let field = format!("{field}.nonResourceRules[{index}]");
        wildcard_list(rule, "verbs", "verbs", &PATH_VERBS, &field, out);
        wildcard_list(rule, "nonResourceURLs", "non-resource URLs", &[], &field, out);
        for (index, path) in items(rule, "nonResourceURLs").iter().enumerate() {
            path_pattern(
                path.as_str().unwrap_or_default(),
                &format!("{field}.nonResourceURLs[{index}]"),
                out,
            );
        }
    }
}

fn path_pattern(path: &str, field: &str, out: &mut Errors) {
    if path == "*" {
        return;
    }
    let mut wrong = |detail: &str| out.push(FieldError::invalid(field, path, detail));
    if path.is_empty() {
        wrong("must not be empty");
        return;
    }
    if path.contains(' ') {
        wrong("must not contain white-space");
    }
    if !path.starts_with('/') {
        wrong("must start with slash");
    }
    if path.trim_start_matches('/').contains("//") || path.starts_with("//") {
        wrong("must not contain double slash");
    }
    let stars = path.matches('*').count();
    if stars > 0 && !(stars == 1 && path.ends_with("/*")) {
        wrong("wildcard can only do suffix matching");
    }
}

/// A list that must name something, and nothing beside `*`.
fn wildcard_list(
    rule: &Value,
    key: &str,
    word: &str,
    known: &[&str],
    root: &str,
    out: &mut Errors,
) {
    let (all, field) = (items(rule, key), child(root, key));
    if all.is_empty() {
        let detail = format!("{word} must contain at least one value");
        let word = match key {
            "apiGroups" => "resource rules must supply at least one api group".to_owned(),
            "resources" => "resource rules must supply at least one resource".to_owned(),
            "nonResourceURLs" => "nonResourceURLs must contain at least one value".to_owned(),
            _ => detail,
        };
        out.push(FieldError::required(field, &word));
    } else if all.len() > 1 && all.iter().any(|one| one == "*") {
        let detail = match key {
            "verbs" => "if '*' is present, must not specify other verbs",
            "apiGroups" => "if '*' is present, must not specify other api groups",
            "resources" => "if '*' is present, must not specify other resources",
            _ => "if '*' is present, must not specify other non-resource URLs",
        };
        out.push(FieldError::invalid(field, all.to_vec(), detail));
    } else if !known.is_empty()
        && all.iter().any(|one| !known.contains(&one.as_str().unwrap_or_default()))
    {
        let mut sorted = known.to_vec();
        sorted.sort_unstable();
        out.push(FieldError::not_supported(field, all.to_vec(), &sorted));
    }
}

fn flow_subject(subject: &Value, field: &str, out: &mut Errors) {
    let kinds = [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];
    let kind = text(subject, "kind");
    let Some((_, wanted)) = kinds.iter().find(|(own, _)| *own == kind) else {
        let words = kinds.map(|(own, _)| own);
        out.push(FieldError::not_supported(format!("{field}.kind"), kind, &words));
        return;
    };
    for (own, key) in kinds {
        if key != *wanted && subject[key].is_object() {
            let detail = format!("{} is forbidden when subject kind is not '{own}'", key);
            out.push(FieldError::forbidden(child(field, key), &detail));
        }
    }
    let (inner, at) = (&subject[*wanted], child(field, wanted));
    if !inner.is_object() {
        let detail = format!("{wanted} is required when subject kind is '{kind}'");
        out.push(FieldError::required(at, &detail));
        return;
    }
    required(inner, "name", &at, out);
    if kind == "ServiceAccount" {
        let own = text(inner, "name");
        if own != "*" {
            form_if_any(own, &child(&at, "name"), name::is_dns1123_subdomain, out);
        }
        if text(inner, "namespace").is_empty() {
            let detail = "must specify namespace for service account";
            out.push(FieldError::required(child(&at, "namespace"), detail));
        } else {
            let namespace = text(inner, "namespace");
            form(namespace, &child(&at, "namespace"), name::is_dns1123_label, out);
        }
    }
}

pub(super) fn priority_level(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    let kind = text(spec, "type");
    if text(object, "metadata.name") == "exempt" && kind != "Exempt" {
        let detail = "must be 'Exempt' if `name` is 'exempt'";
        out.push(FieldError::invalid("spec.type", kind, detail));
    }
    match kind {
        "Exempt" => {
            if has(spec, "limited") {
                let detail = "must be nil if the type is not Limited";
                out.push(FieldError::forbidden("spec.limited", detail));
            }
            shares(&spec["exempt"], "spec.exempt", &mut out);
        }
        "Limited" => {
            if has(spec, "exempt") {
                let detail = "must be nil if the type is Limited";
                out.push(FieldError::forbidden("spec.exempt", detail));
            }
            if !spec["limited"].is_object() {
                let detail = "must not be empty when type is Limited";
                out.push(FieldError::required("spec.limited", detail));
            } else {
                limited(&spec["limited"], &mut out);
            }
        }
        other => {
            out.push(FieldError::not_supported("spec.type", other, &["Exempt", "Limited"]));
        }
    }
    out
}

fn shares(side: &Value, field: &str, out: &mut Errors) {
    if let Some(count) = side["nominalConcurrencyShares"].as_i64().filter(|count| *count < 0) {
        let detail = "must be a non-negative integer";
        out.push(FieldError::invalid(child(field, "nominalConcurrencyShares"), count, detail));
    }
    let lendable = side["lendablePercent"].as_i64();
    if let Some(percent) = lendable.filter(|percent| !(0..=100).contains(percent)) {
        let detail = "must be between 0 and 100, inclusive";
        out.push(FieldError::invalid(child(field, "lendablePercent"), percent, detail));
    }
}

fn limited(side: &Value, out: &mut Errors) {
    let field = "spec.limited";
    shares(side, field, out);
    if let Some(percent) = side["borrowingLimitPercent"].as_i64().filter(|percent| *percent < 0) {
        let detail = "if specified, must be a non-negative integer";
        out.push(FieldError::invalid(child(field, "borrowingLimitPercent"), percent, detail));
    }
    let response = &side["limitResponse"];
    let at = "spec.limited.limitResponse";
    match text(response, "type") {
        "Reject" => {
            if has(response, "queuing") {
                let detail = "must be nil if limited.limitResponse.type is not Limited";
                out.push(FieldError::forbidden(child(at, "queuing"), detail));
            }
        }
        "Queue" => {
            let queuing = &response["queuing"];
            let at = child(at, "queuing");
            if !queuing.is_object() {
                let detail = "must not be empty if limited.limitResponse.type is Limited";
                out.push(FieldError::required(at, detail));
                return;
            }
            queues(queuing, &at, out);
        }
        other => {
            out.push(FieldError::not_supported(child(at, "type"), other, &["Queue", "Reject"]));
        }
    }
}

const QUEUES_MAX: i64 = 10_000_000;

fn queues(queuing: &Value, field: &str, out: &mut Errors) {
    for key in ["queueLengthLimit", "queues", "handSize"] {
        let count = number(queuing, key);
        if count <= 0 {
            out.push(FieldError::invalid(child(field, key), count, "must be positive"));
        }
    }
    let (all, hand) = (number(queuing, "queues"), number(queuing, "handSize"));
    if all > QUEUES_MAX {
        let detail = format!("must not be greater than {QUEUES_MAX}");
        out.push(FieldError::invalid(child(field, "queues"), all, &detail));
    }
    if hand > all {
        let detail = format!("should not be greater than queues ({all})");
        out.push(FieldError::invalid(child(field, "handSize"), hand, &detail));
    }
}

pub(super) fn api_service(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    let (group, version) = (text(spec, "group"), text(spec, "version"));
    let (own, expected) = (text(object, "metadata.name"), format!("{version}.{group}"));
    if own != expected {
        let detail = format!("must be `spec.version+\".\"+spec.group`: {expected:?}");
        out.push(FieldError::invalid("metadata.name", own, &detail));
    }
    if !group.is_empty() {
        form(group, "spec.group", name::is_dns1123_subdomain, &mut out);
    }
    form(version, "spec.version", name::is_dns1035_label, &mut out);
    for (key, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let value = number(spec, key);
        if value <= 0 || value > most {
            let detail = format!("must be positive and less than {most}");
            out.push(FieldError::invalid(child("spec", key), value, &detail));
        }
    }
    let insecure = at(spec, "insecureSkipTLSVerify").as_bool() == Some(true);
    if spec["service"].is_object() {
        required(&spec["service"], "namespace", "spec.service", &mut out);
        required(&spec["service"], "name", "spec.service", &mut out);
    } else {
        if !text(spec, "caBundle").is_empty() {
            let detail = "local APIServices may not have a caBundle";
            out.push(FieldError::invalid("spec.caBundle", "", detail));
        }
        if insecure {
            let detail = "local APIServices may not have insecureSkipTLSVerify";
            out.push(FieldError::invalid("spec.insecureSkipTLSVerify", true, detail));
        }
    }
    if insecure && !text(spec, "caBundle").is_empty() {
        let detail = "may not be true if caBundle is present";
        out.push(FieldError::invalid("spec.insecureSkipTLSVerify", true, detail));
    }
    out
}

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const CERTIFICATE_SECONDS_MIN: i64 = 600;

pub(super) fn signing_request(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    let request = text(spec, "request");
    let pem = base64::engine::general_purpose::STANDARD.decode(request).unwrap_or_default();
    let pem = String::from_utf8_lossy(&pem);
    if !pem.contains("-----BEGIN CERTIFICATE REQUEST-----") {
        let detail = "PEM block type must be CERTIFICATE REQUEST";
        out.push(FieldError::invalid("spec.request", request, detail));
    }
    let usages = items(spec, "usages");
    if usages.is_empty() {
        out.push(FieldError::required("spec.usages", ""));
    }
    for (index, usage) in usages.iter().enumerate() {
        let field = format!("spec.usages[{index}]");
        one_of(usage, &field, &USAGES, &mut out);
        if usages[..index].contains(usage) {
            out.push(FieldError::duplicate(&field, usage.clone()));
        }
    }
    let signer = text(spec, "signerName");
    match signer {
        "" => out.push(FieldError::required("spec.signerName", "")),
        "kubernetes.io/legacy-unknown" => {
            let detail = "the legacy signerName is not allowed via this API version";
            out.push(FieldError::invalid("spec.signerName", signer, detail));
        }
        _ => super::certificates::signer_name(signer, "spec.signerName", &mut out),
    }
    let seconds = spec["expirationSeconds"].as_i64();
    if let Some(seconds) = seconds.filter(|seconds| *seconds < CERTIFICATE_SECONDS_MIN) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        out.push(FieldError::invalid("spec.expirationSeconds", seconds, detail));
    }
    let conditions = items(object, "status.conditions");
    for (index, condition) in conditions.iter().enumerate() {
        let kind = text(condition, "type");
        let field = format!("status.conditions[{index}]");
        if kind.is_empty() {
            out.push(FieldError::required(format!("{field}.type"), ""));
        }
        let status = text(condition, "status");
        if matches!(kind, "Approved" | "Denied" | "Failed") && status != "True" {
            out.push(FieldError::not_supported(format!("{field}.status"), status, &["True"]));
        }
        let earlier = conditions[..index].iter().any(|other| text(other, "type") == kind);
        if earlier && matches!(kind, "Approved" | "Denied" | "Failed") {
            out.push(FieldError::duplicate(format!("{field}.type"), kind));
        }
    }
    let given = |kind: &str| conditions.iter().any(|one| text(one, "type") == kind);
    if given("Approved") && given("Denied") {
        let detail = "Approved and Denied conditions are mutually exclusive";
        out.push(FieldError::invalid("status.conditions", conditions.to_vec(), detail));
    }
    out
}

/// What somebody asks for stays as it was asked.
pub(super) fn signing_request_update(new: &Value, old: &Value) -> Errors {
    let mut out = Vec::new();
    if new["spec"] != old["spec"] {
        let detail = "field is immutable";
        out.push(FieldError::invalid("spec", new["spec"].clone(), detail));
    }
    let mut checked = signing_request(new);
    checked.retain(|error| error.field.starts_with("status"));
    out.extend(checked);
    out
}
