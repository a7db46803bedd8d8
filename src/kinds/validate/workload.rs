//! Validation of deployments, replica sets, stateful sets and daemon sets.

use serde_json::{Value, json};

use super::{checks, pod_template, storage};
use crate::meta::{FieldError, LabelSelector, name, selector};
use crate::value::{at, has, items, number, text};

fn not_negative(spec: &Value, key: &str, out: &mut Vec<FieldError>) {
    let count = number(spec, key);
    if count < 0 {
        let detail = "must be greater than or equal to 0";
        out.push(FieldError::invalid(format!("spec.{key}"), count, detail));
    }
}

/// The selector, the template, and that they fit; `kind` is the word in messages.
fn selector_and_template(spec: &Value, kind: &str, out: &mut Vec<FieldError>) {
    let own = at(spec, "selector");
    let labels = at(spec, "template.metadata.labels");
    let mut selects = true;
    if own.is_null() {
        out.push(FieldError::required("spec.selector", ""));
    } else {
        let problems = selector::validate_label_selector(own, "spec.selector");
        let wrong = !problems.is_empty();
        out.extend(problems);
        let parsed = LabelSelector::from_value(own);
        if parsed.is_everything() {
            let detail = format!("empty selector is invalid for {kind}");
            out.push(FieldError::invalid("spec.selector", own.clone(), &detail));
            selects = false;
        }
        if wrong {
            out.push(FieldError::invalid("spec.selector", own.clone(), "invalid label selector"));
            selects = false;
        }
    }
    if selects && !LabelSelector::from_value(own).matches(labels) {
        let detail = "`selector` does not match template `labels`";
        out.push(FieldError::invalid("spec.template.metadata.labels", labels.clone(), detail));
    }
    match items(spec, "volumeClaimTemplates") {
        [] => out.extend(pod_template(at(spec, "template"), "spec.template")),
        claims => out.extend(pod_template(&with_claims(spec, claims), "spec.template")),
    }
    match text(spec, "template.spec.restartPolicy") {
        "Always" | "" => {}
        other => out.push(FieldError::not_supported(
            "spec.template.spec.restartPolicy",
            other,
            &["Always"],
        )),
    }
}

/// The template as its pods will be: a claim of their own is a volume that they may mount.
fn with_claims(spec: &Value, claims: &[Value]) -> Value {
    let mut template = at(spec, "template").clone();
    let mut volumes = items(&template, "spec.volumes").to_vec();
    for claim in claims {
        let own = text(claim, "metadata.name");
        let is_there = volumes.iter().any(|volume| text(volume, "name") == own);
        // A name that cannot be one of a volume is told where it stands.
        if !is_there && name::is_dns1123_label(own).is_empty() {
            volumes.push(json!({"name": own, "persistentVolumeClaim": {"claimName": own}}));
        }
    }
    if template["spec"].is_object() {
        template["spec"]["volumes"] = volumes.into();
    }
    template
}

fn immutable_selector(new: &Value, old: &Value, out: &mut Vec<FieldError>) {
    if at(new, "spec.selector") != at(old, "spec.selector") {
        let value = at(new, "spec.selector").clone();
        out.push(FieldError::invalid("spec.selector", value, "field is immutable"));
    }
}

/// A count or a percentage; gives its value against a hundred replicas, to compare with zero.
fn share(value: &Value, field: &str, out: &mut Vec<FieldError>) -> Option<i64> {
    match value {
        Value::String(word) => {
            let digits = word.strip_suffix('%').filter(|d| !d.is_empty());
            let digits = digits.filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
            let Some(percent) = digits.and_then(|d| d.parse().ok()) else {
                let detail = "a valid percent string must be a numeric string followed by an \
                              ending '%' (e.g. '1%',  or '93%', regex used for validation is \
                              '[0-9]+%')";
                out.push(FieldError::invalid(field, word.as_str(), detail));
                return None;
            };
            Some(percent)
        }
        other => {
            let count = other.as_i64()?;
            if count < 0 {
                let detail = "must be greater than or equal to 0";
                out.push(FieldError::invalid(field, count, detail));
            }
            Some(count)
        }
    }
}

fn rolling(strategy: &Value, root: &str, out: &mut Vec<FieldError>) {
    let rolling = at(strategy, "rollingUpdate");
    let field = |key: &str| format!("{root}.rollingUpdate.{key}");
    let unavailable = share(&rolling["maxUnavailable"], &field("maxUnavailable"), out);
    let surge = share(&rolling["maxSurge"], &field("maxSurge"), out);
    if unavailable == Some(0) && surge == Some(0) {
        let value = rolling["maxUnavailable"].clone();
        let detail = "may not be 0 when `maxSurge` is 0";
        out.push(FieldError::invalid(field("maxUnavailable"), value, detail));
    }
    if rolling["maxUnavailable"].is_string() && unavailable.is_some_and(|u| u > 100) {
        let value = rolling["maxUnavailable"].clone();
        let detail = "must not be greater than 100%";
        out.push(FieldError::invalid(field("maxUnavailable"), value, detail));
    }
}

pub(super) fn deployment(object: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    not_negative(spec, "replicas", &mut out);
    selector_and_template(spec, "deployment", &mut out);
    no_deadline(spec, "Deployment", &mut out);
    let strategy = at(spec, "strategy");
    match text(strategy, "type") {
        "Recreate" if has(strategy, "rollingUpdate") => out.push(FieldError::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        )),
        "Recreate" => {}
        "RollingUpdate" => rolling(strategy, "spec.strategy", &mut out),
        other => {
            let shown = serde_json::json!({
                "Type": other, "RollingUpdate": strategy.get("rollingUpdate")
            });
            let supported = ["Recreate", "RollingUpdate"];
            out.push(FieldError::not_supported("spec.strategy", shown, &supported));
        }
    }
    not_negative(spec, "minReadySeconds", &mut out);
    not_negative(spec, "revisionHistoryLimit", &mut out);
    if let Some(deadline) = at(spec, "progressDeadlineSeconds").as_i64() {
        not_negative(spec, "progressDeadlineSeconds", &mut out);
        if deadline <= number(spec, "minReadySeconds") {
            let detail = "must be greater than minReadySeconds";
            out.push(FieldError::invalid("spec.progressDeadlineSeconds", deadline, detail));
        }
    }
    out
}

pub(super) fn deployment_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = deployment(new);
    immutable_selector(new, old, &mut out);
    out
}

pub(super) fn replica_set(object: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    not_negative(spec, "replicas", &mut out);
    not_negative(spec, "minReadySeconds", &mut out);
    selector_and_template(spec, "replicaset", &mut out);
    no_deadline(spec, "ReplicaSet", &mut out);
    out
}

pub(super) fn replica_set_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = replica_set(new);
    immutable_selector(new, old, &mut out);
    out
}

pub(super) fn stateful_set(object: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    let modes = ["OrderedReady", "Parallel"];
    if !modes.contains(&text(spec, "podManagementPolicy")) {
        let shown = text(spec, "podManagementPolicy");
        let detail = "must be 'OrderedReady' or 'Parallel'";
        out.push(FieldError::invalid("spec.podManagementPolicy", shown, detail));
    }
    update_strategy(spec, &["OnDelete", "RollingUpdate"], &mut out);
    let kept = at(spec, "persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        let field = format!("spec.persistentVolumeClaimRetentionPolicy.{key}");
        checks::one_of(&kept[key], &field, &["Retain", "Delete"], &mut out);
    }
    not_negative(spec, "replicas", &mut out);
    not_negative(spec, "minReadySeconds", &mut out);
    checks::not_negative(at(spec, "ordinals.start"), "spec.ordinals.start", &mut out);
    let host = text(spec, "serviceName");
    checks::form_if_any(host, "spec.serviceName", name::is_dns1123_label, &mut out);
    selector_and_template(spec, "statefulset", &mut out);
    let claims = items(spec, "volumeClaimTemplates");
    storage::claim_templates(claims, "spec.volumeClaimTemplates", &mut out);
    no_deadline(spec, "StatefulSet", &mut out);
    out
}

fn update_strategy(spec: &Value, known: &[&str], out: &mut Vec<FieldError>) {
    let strategy = at(spec, "updateStrategy");
    let field = "spec.updateStrategy";
    match text(strategy, "type") {
        "" => out.push(FieldError::required(field, "")),
        "OnDelete" if has(strategy, "rollingUpdate.partition") => {
            let detail = "only allowed for updateStrategy 'RollingUpdate'";
            let shown = at(strategy, "rollingUpdate").clone();
            out.push(FieldError::invalid(format!("{field}.rollingUpdate"), shown, detail));
        }
        "RollingUpdate" => {
            let rolling = at(strategy, "rollingUpdate");
            let partition = format!("{field}.rollingUpdate.partition");
            checks::not_negative(&rolling["partition"], &partition, out);
            let (value, most) =
                (&rolling["maxUnavailable"], format!("{field}.rollingUpdate.maxUnavailable"));
            if !value.is_null() {
                let unavailable = share(value, &most, out);
                checks::not_more_than_all(value, &most, out);
                if unavailable == Some(0) {
                    out.push(FieldError::invalid(most, value.clone(), "cannot be 0"));
                }
            }
        }
        word if known.contains(&word) => {}
        word => {
            let detail = "must be 'RollingUpdate' or 'OnDelete'";
            out.push(FieldError::invalid(field, word, detail));
        }
    }
}

/// Pods that are replaced for ever have no deadline.
fn no_deadline(spec: &Value, kind: &str, out: &mut Vec<FieldError>) {
    if has(spec, "template.spec.activeDeadlineSeconds") {
        let field = "spec.template.spec.activeDeadlineSeconds";
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        out.push(FieldError::forbidden(field, &detail));
    }
}

pub(super) fn stateful_set_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = stateful_set(new);
    let fixed = ["selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates"];
    let differs = |key: &&str| at(at(new, "spec"), key) != at(at(old, "spec"), key);
    if fixed.iter().any(differs) {
        out.push(FieldError::forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', \
             'template', 'updateStrategy', 'revisionHistoryLimit', \
             'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
    out
}

pub(super) fn daemon_set(object: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    selector_and_template(spec, "daemonset", &mut out);
    no_deadline(spec, "DaemonSet", &mut out);
    not_negative(spec, "minReadySeconds", &mut out);
    daemon_strategy(at(spec, "updateStrategy"), &mut out);
    not_negative(spec, "revisionHistoryLimit", &mut out);
    out
}

pub(super) fn daemon_set_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = daemon_set(new);
    immutable_selector(new, old, &mut out);
    out
}

fn daemon_strategy(strategy: &Value, out: &mut Vec<FieldError>) {
    let field = "spec.updateStrategy";
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = at(strategy, "rollingUpdate");
            if rolling.is_null() {
                out.push(FieldError::required(format!("{field}.rollingUpdate"), ""));
                return;
            }
            let at = |key: &str| format!("{field}.rollingUpdate.{key}");
            let unavailable = share(&rolling["maxUnavailable"], &at("maxUnavailable"), out);
            let surge = share(&rolling["maxSurge"], &at("maxSurge"), out);
            for key in ["maxUnavailable", "maxSurge"] {
                checks::not_more_than_all(&rolling[key], &at(key), out);
            }
            let (none, one) = (unavailable.unwrap_or(0) == 0, surge.unwrap_or(0) == 0);
            if none && one {
                let detail = "cannot be 0 when maxSurge is 0";
                out.push(FieldError::required(at("maxUnavailable"), detail));
            }
            if !none && !one {
                let detail = "may not be set when maxUnavailable is non-zero";
                out.push(FieldError::invalid(at("maxSurge"), rolling["maxSurge"].clone(), detail));
            }
        }
        other => {
            let known = ["RollingUpdate", "OnDelete"];
            out.push(FieldError::not_supported(format!("{field}.type"), other, &known));
        }
    }
}

pub(super) fn replication_controller(object: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    not_negative(spec, "minReadySeconds", &mut out);
    let own = spec.get("selector").and_then(Value::as_object).filter(|map| !map.is_empty());
    if own.is_none() {
        out.push(FieldError::required("spec.selector", ""));
    }
    not_negative(spec, "replicas", &mut out);
    let template = at(spec, "template");
    if template.is_null() {
        out.push(FieldError::required("spec.template", ""));
        return out;
    }
    let labels = at(template, "metadata.labels");
    if let Some(own) = own
        && !LabelSelector::from_map(own).matches(labels)
    {
        let detail = "`selector` does not match template `labels`";
        out.push(FieldError::invalid("spec.template.metadata.labels", labels.clone(), detail));
    }
    out.extend(pod_template(template, "spec.template"));
    match text(template, "spec.restartPolicy") {
        "Always" | "" => {}
        other => out.push(FieldError::not_supported(
            "spec.template.spec.restartPolicy",
            other,
            &["Always"],
        )),
    }
    no_deadline(spec, "ReplicationController", &mut out);
    out
}

pub(super) fn template(object: &Value) -> Vec<FieldError> {
    pod_template(at(object, "template"), "template")
}
