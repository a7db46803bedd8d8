//! Pod validation of what fewer pods use: affinity, gates, hooks, profiles, projected volumes.

use serde_json::Value;

use super::checks::one_of;
use super::pod_sources;
use crate::meta::{FieldError, name};
use crate::value::{at, items, number, text};

/// How a pod's volumes are made its own. SELinux labels as a mount option are asked for only
/// where SELinuxMount is on, which it is not in v1.36.
const CHANGE_POLICIES: [(&str, &[&str]); 3] = [
    ("fsGroupChangePolicy", &["Always", "OnRootMismatch"]),
    ("supplementalGroupsPolicy", &["Merge", "Strict"]),
    ("seLinuxChangePolicy", &["Recursive"]),
];

type Errors = Vec<FieldError>;

const FIELD_PATHS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

pub(super) fn spec(spec: &Value, field: &str, out: &mut Errors) {
    let grace = number(spec, "terminationGracePeriodSeconds");
    for list in ["containers", "initContainers"] {
        for (index, one) in items(spec, list).iter().enumerate() {
            container(one, &format!("{field}.{list}[{index}]"), grace, out);
        }
    }
    let (context, path) = (at(spec, "securityContext"), format!("{field}.securityContext"));
    profiles(context, &path, out);
    for (key, words) in CHANGE_POLICIES {
        one_of(at(context, key), &format!("{path}.{key}"), words, out);
    }
    affinity(at(spec, "affinity"), &format!("{field}.affinity"), out);
    let mut seen = Vec::new();
    for (index, gate) in items(spec, "schedulingGates").iter().enumerate() {
        let own = text(gate, "name");
        let path = format!("{field}.schedulingGates[{index}]");
        for problem in name::is_qualified(own) {
            out.push(FieldError::invalid(&path, own, &problem));
        }
        if seen.contains(&own) {
            out.push(FieldError::duplicate(path, own));
        }
        seen.push(own);
    }
    for (index, gate) in items(spec, "readinessGates").iter().enumerate() {
        let own = text(gate, "conditionType");
        for problem in name::is_qualified(own) {
            let path = format!("{field}.readinessGates[{index}].conditionType");
            out.push(FieldError::invalid(path, own, &problem));
        }
    }
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        sources(volume, &format!("{field}.volumes[{index}]"), out);
    }
}

fn container(one: &Value, field: &str, grace: i64, out: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        let sleep = at(at(one, "lifecycle"), hook);
        let seconds = at(sleep, "sleep.seconds").as_i64();
        if let Some(seconds) = seconds.filter(|s| *s < 0 || *s > grace) {
            let detail = format!(
                "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
            );
            let path = format!("{field}.lifecycle.{hook}.sleep");
            out.push(FieldError::invalid(path, seconds, &detail));
        }
    }
    for (index, source) in items(one, "envFrom").iter().enumerate() {
        let prefix = text(source, "prefix");
        if prefix.bytes().any(|b| !(0x20..0x7f).contains(&b) || b == b'=') {
            let detail = "a valid environment variable name must consist only of printable ASCII \
                          characters other than '='";
            let path = format!("{field}.envFrom[{index}].prefix");
            out.push(FieldError::invalid(path, prefix, detail));
        }
    }
    for (index, variable) in items(one, "env").iter().enumerate() {
        let reference = at(variable, "valueFrom.fieldRef");
        let path = text(reference, "fieldPath");
        let keyed =
            path.starts_with("metadata.labels['") || path.starts_with("metadata.annotations['");
        if !reference.is_null() && !keyed && !FIELD_PATHS.contains(&path) {
            let place = format!("{field}.env[{index}].valueFrom.fieldRef.fieldPath");
            if path.is_empty() {
                out.push(FieldError::required(place, ""));
            } else {
                let detail =
                    format!("error converting fieldPath: field label not supported: {path}");
                out.push(FieldError::invalid(place, path, &detail));
            }
        }
    }
    profiles(at(one, "securityContext"), &format!("{field}.securityContext"), out);
}

fn profiles(context: &Value, field: &str, out: &mut Errors) {
    for (key, word) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let profile = at(context, key);
        if text(profile, "type") == "Localhost" && text(profile, "localhostProfile").is_empty() {
            let detail = format!("must be set when {word} type is Localhost");
            let path = format!("{field}.{key}.localhostProfile");
            out.push(FieldError::required(path, &detail));
        }
    }
}

fn affinity(affinity: &Value, field: &str, out: &mut Errors) {
    let node = format!("{field}.nodeAffinity");
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let own = at(affinity, "nodeAffinity");
    for (index, term) in items(own, preferred).iter().enumerate() {
        weight(term, &format!("{node}.{preferred}[{index}]"), out);
    }
    let must = at(own, required);
    let path = format!("{node}.{required}.nodeSelectorTerms");
    if must.is_object() && items(must, "nodeSelectorTerms").is_empty() {
        out.push(FieldError::required(&path, "must have at least one node selector term"));
    }
    let operators = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
    for (index, term) in items(must, "nodeSelectorTerms").iter().enumerate() {
        for (at_, expression) in items(term, "matchExpressions").iter().enumerate() {
            let operator = text(expression, "operator");
            if !operators.contains(&operator) {
                let path = format!("{path}[{index}].matchExpressions[{at_}].operator");
                let detail = "not a valid selector operator";
                out.push(FieldError::invalid(path, operator, detail));
            }
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let own = at(affinity, kind);
        for (index, term) in items(own, required).iter().enumerate() {
            topology(term, &format!("{field}.{kind}.{required}[{index}]"), out);
        }
        for (index, term) in items(own, preferred).iter().enumerate() {
            let path = format!("{field}.{kind}.{preferred}[{index}]");
            weight(term, &path, out);
            topology(at(term, "podAffinityTerm"), &format!("{path}.podAffinityTerm"), out);
        }
    }
}

fn weight(term: &Value, field: &str, out: &mut Errors) {
    let weight = number(term, "weight");
    if !(1..=100).contains(&weight) {
        let detail = "must be in the range 1-100";
        out.push(FieldError::invalid(format!("{field}.weight"), weight, detail));
    }
}

fn topology(term: &Value, field: &str, out: &mut Errors) {
    let key = text(term, "topologyKey");
    let path = format!("{field}.topologyKey");
    if key.is_empty() {
        out.push(FieldError::required(&path, "can not be empty"));
    }
    for problem in name::is_qualified(key) {
        out.push(FieldError::invalid(&path, key, &problem));
    }
}

fn sources(volume: &Value, field: &str, out: &mut Errors) {
    for kind in ["configMap", "secret"] {
        pod_sources::items_paths(at(volume, kind), &format!("{field}.{kind}"), out);
    }
    pod_sources::projected(volume, field, out);
}
