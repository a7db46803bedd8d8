//! Validation of jobs and cron jobs.

use serde_json::{Value, json};

use super::checks::{Errors, immutable, must_be_one_of, not_negative, one_of, required};
use super::pod_template;
use crate::meta::{FieldError, LabelSelector, cron, name, selector};
use crate::value::{at, flag, has, items, number, text};

const PARALLELISM_INDEXED_MAX: i64 = 100_000;
const COMPLETIONS_PER_INDEX_MAX: i64 = 100_000;
const FAILED_INDEXES_LARGE_MAX: i64 = 10_000;
const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const PATTERNS_MAX: usize = 20;
/// What a job's pods get behind its name: `-` and five characters.
const CRON_NAME_BYTES_MAX: usize = 52;
const MANAGED_BY_BYTES_MAX: usize = 63;

pub(super) fn job(job: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(job, "spec");
    generated_selector(job, &mut out);
    let own = at(spec, "selector");
    if own.is_null() {
        out.push(FieldError::required("spec.selector", ""));
    } else {
        out.extend(selector::validate_label_selector(own, "spec.selector"));
    }
    let labels = at(spec, "template.metadata.labels");
    if !LabelSelector::from_value(own).matches(labels) {
        let detail = "`selector` does not match template `labels`";
        out.push(FieldError::invalid("spec.template.metadata.labels", labels.clone(), detail));
    }
    job_spec(spec, "spec", &mut out);
    if text(spec, "completionMode") == "Indexed" && number(spec, "completions") > 0 {
        indexed_name(job, number(spec, "completions"), &mut out);
    }
    out
}

/// A job that does not bring its selector selects by its uid, and by nothing else.
fn generated_selector(job: &Value, out: &mut Errors) {
    let spec = at(job, "spec");
    if flag(spec, "manualSelector") || at(spec, "selector").is_null() {
        return;
    }
    let uid = text(job, "metadata.uid");
    let expected = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    let legacy = json!({"matchLabels": {"controller-uid": uid}});
    let own = at(spec, "selector");
    if *own != expected && *own != legacy {
        out.push(FieldError::invalid(
            "spec.selector",
            own.clone(),
            "`selector` not auto-generated",
        ));
    }
}

/// The last pod's name, `NAME-INDEX`, must be a host name.
fn indexed_name(job: &Value, completions: i64, out: &mut Errors) {
    let host = format!("{}-{}", text(job, "metadata.name"), completions - 1);
    for problem in name::is_dns1123_label(&host) {
        let detail =
            format!("will not able to create pod with invalid DNS label: {host}: {problem}");
        out.push(FieldError::invalid("metadata.name", text(job, "metadata.name"), &detail));
    }
}

fn job_spec(spec: &Value, root: &str, out: &mut Errors) {
    let path = |key: &str| format!("{root}.{key}");
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
    ] {
        not_negative(&spec[key], &path(key), out);
    }
    not_negative(&spec["maxFailedIndexes"], &path("maxFailedIndexes"), out);
    if has(spec, "maxFailedIndexes") && !has(spec, "backoffLimitPerIndex") {
        let detail = "when maxFailedIndexes is specified";
        out.push(FieldError::required(path("backoffLimitPerIndex"), detail));
    }
    if let Some(manager) = spec["managedBy"].as_str() {
        if !manager.contains('/') {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            out.push(FieldError::invalid(path("managedBy"), manager, detail));
        } else if manager.len() > MANAGED_BY_BYTES_MAX {
            out.push(FieldError::too_long(path("managedBy"), MANAGED_BY_BYTES_MAX));
        }
    }
    completion_mode(spec, root, out);
    if has(spec, "podFailurePolicy") {
        failure_policy(spec, root, out);
    }
    success_policy(spec, root, out);
    replacement(spec, root, out);
    out.extend(pod_template(at(spec, "template"), &path("template")));
    let policy = text(spec, "template.spec.restartPolicy");
    let field = path("template.spec.restartPolicy");
    // Pods' defaults make it Always, which a job cannot have.
    if matches!(policy, "" | "Always") {
        let detail = "valid values: \"OnFailure\", \"Never\"";
        out.push(FieldError::required(field, detail));
    } else if !matches!(policy, "OnFailure" | "Never") {
        out.push(FieldError::not_supported(field, policy, &["OnFailure", "Never"]));
    } else if has(spec, "podFailurePolicy") && policy != "Never" {
        let detail = "only \"Never\" is supported when podFailurePolicy is specified";
        out.push(FieldError::invalid(field, policy, detail));
    }
}

fn completion_mode(spec: &Value, root: &str, out: &mut Errors) {
    let path = |key: &str| format!("{root}.{key}");
    let completions = spec["completions"].as_i64();
    match text(spec, "completionMode") {
        "Indexed" => {
            if completions.is_none() {
                let detail = "when completion mode is Indexed";
                out.push(FieldError::required(path("completions"), detail));
            }
            let parallelism = number(spec, "parallelism");
            if parallelism > PARALLELISM_INDEXED_MAX {
                let detail = format!(
                    "must be less than or equal to {PARALLELISM_INDEXED_MAX} when completion mode is Indexed"
                );
                out.push(FieldError::invalid(path("parallelism"), parallelism, &detail));
            }
            failed_indexes(spec, root, out);
        }
        "NonIndexed" | "" => {
            for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
                if let Some(count) = spec[key].as_i64() {
                    let detail = "requires indexed completion mode";
                    out.push(FieldError::invalid(path(key), count, detail));
                }
            }
        }
        other => {
            let modes = ["Indexed", "NonIndexed"];
            out.push(FieldError::not_supported(path("completionMode"), other, &modes));
        }
    }
}

fn failed_indexes(spec: &Value, root: &str, out: &mut Errors) {
    let path = |key: &str| format!("{root}.{key}");
    let Some(completions) = spec["completions"].as_i64() else { return };
    let most = spec["maxFailedIndexes"].as_i64();
    if let Some(most) = most.filter(|most| *most > completions) {
        let detail = "must be less than or equal to completions";
        out.push(FieldError::invalid(path("maxFailedIndexes"), most, detail));
    }
    if !has(spec, "backoffLimitPerIndex") || completions <= COMPLETIONS_PER_INDEX_MAX {
        return;
    }
    let parallelism = number(spec, "parallelism");
    if parallelism > FAILED_INDEXES_LARGE_MAX {
        let detail = format!(
            "must be less than or equal to {FAILED_INDEXES_LARGE_MAX} when completions are above \
             {COMPLETIONS_PER_INDEX_MAX} and used with backoff limit per index"
        );
        out.push(FieldError::invalid(path("parallelism"), parallelism, &detail));
    }
    match most {
        None => {
            let detail =
                format!("must be specified when completions is above {COMPLETIONS_PER_INDEX_MAX}");
            out.push(FieldError::required(path("maxFailedIndexes"), &detail));
        }
        Some(most) if most > FAILED_INDEXES_LARGE_MAX => {
            let detail = format!(
                "must be less than or equal to {FAILED_INDEXES_LARGE_MAX} when completions are above \
                 {COMPLETIONS_PER_INDEX_MAX} and used with backoff limit per index"
            );
            out.push(FieldError::invalid(path("maxFailedIndexes"), most, &detail));
        }
        Some(_) => {}
    }
}

fn replacement(spec: &Value, root: &str, out: &mut Errors) {
    let supported: &[&str] = if has(spec, "podFailurePolicy") {
        &["Failed"]
    } else {
        &["Failed", "TerminatingOrFailed"]
    };
    one_of(&spec["podReplacementPolicy"], &format!("{root}.podReplacementPolicy"), supported, out);
}

fn failure_policy(spec: &Value, root: &str, out: &mut Errors) {
    let rules = items(spec, "podFailurePolicy.rules");
    let field = format!("{root}.podFailurePolicy.rules");
    if rules.len() > RULES_MAX {
        out.push(FieldError::too_many(&field, rules.len(), RULES_MAX));
    }
    let template = at(spec, "template.spec");
    let containers: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| items(template, list))
        .map(|container| text(container, "name"))
        .collect();
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let action = format!("{field}.action");
        match text(rule, "action") {
            "" => out.push(FieldError::required(
                &action,
                "valid values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\"",
            )),
            "FailIndex" if !has(spec, "backoffLimitPerIndex") => {
                let detail = "requires the backoffLimitPerIndex to be set";
                out.push(FieldError::invalid(&action, "FailIndex", detail));
            }
            _ => {
                let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
                one_of(&rule["action"], &action, &actions, out);
            }
        }
        let (codes, conditions) = (&rule["onExitCodes"], items(rule, "onPodConditions"));
        if codes.is_object() {
            exit_codes(codes, &format!("{field}.onExitCodes"), &containers, out);
        }
        if conditions.len() > PATTERNS_MAX {
            let field = format!("{field}.onPodConditions");
            out.push(FieldError::too_many(field, conditions.len(), PATTERNS_MAX));
        }
        for (at, condition) in conditions.iter().enumerate() {
            let field = format!("{field}.onPodConditions[{at}]");
            if let Some(kind) = condition["type"].as_str() {
                let problems = name::is_qualified(kind);
                out.extend(
                    problems.iter().map(|p| FieldError::invalid(format!("{field}.type"), kind, p)),
                );
            }
            let words = ["False", "True", "Unknown"];
            must_be_one_of(&condition["status"], &format!("{field}.status"), &words, out);
        }
        match (codes.is_object(), conditions.is_empty()) {
            (true, false) => {
                let detail = "specifying both OnExitCodes and OnPodConditions is not supported";
                out.push(FieldError::invalid(&field, rule.clone(), detail));
            }
            (false, true) => {
                let detail = "specifying one of OnExitCodes and OnPodConditions is required";
                out.push(FieldError::invalid(&field, rule.clone(), detail));
            }
            _ => {}
        }
    }
}

fn exit_codes(codes: &Value, field: &str, containers: &[&str], out: &mut Errors) {
    if let Some(own) = codes["containerName"].as_str()
        && !containers.contains(&own)
    {
        let detail = "must be one of the container or initContainer names in the pod template";
        out.push(FieldError::invalid(format!("{field}.containerName"), own, detail));
    }
    let operators = ["In", "NotIn"];
    if text(codes, "operator").is_empty() {
        let detail = "valid values: \"In\", \"NotIn\"";
        out.push(FieldError::required(format!("{field}.operator"), detail));
    } else {
        one_of(&codes["operator"], &format!("{field}.operator"), &operators, out);
    }
    let values = items(codes, "values");
    let field = format!("{field}.values");
    if values.is_empty() {
        let detail = "at least one value is required";
        out.push(FieldError::invalid(&field, codes["values"].clone(), detail));
    } else if values.len() > EXIT_CODES_MAX {
        out.push(FieldError::too_many(&field, values.len(), EXIT_CODES_MAX));
    }
    for (index, value) in values.iter().enumerate() {
        let at = format!("{field}[{index}]");
        if text(codes, "operator") == "In" && value.as_i64() == Some(0) {
            let detail = "must not be 0 for the In operator";
            out.push(FieldError::invalid(&at, 0, detail));
        }
        if values[..index].contains(value) {
            out.push(FieldError::duplicate(&at, value.clone()));
        }
    }
    let ordered = values.windows(2).all(|pair| pair[0].as_i64() <= pair[1].as_i64());
    if !ordered {
        let detail = "must be ordered";
        out.push(FieldError::invalid(&field, values.to_vec(), detail));
    }
}

fn success_policy(spec: &Value, root: &str, out: &mut Errors) {
    let policy = at(spec, "successPolicy");
    if policy.is_null() {
        return;
    }
    let field = format!("{root}.successPolicy");
    let rules = items(policy, "rules");
    if text(spec, "completionMode") != "Indexed" {
        // Upstream shows its own form of the value.
        let shown: Vec<Value> = rules
            .iter()
            .map(|rule| {
                json!({"SucceededIndexes": rule["succeededIndexes"], "SucceededCount": rule["succeededCount"]})
            })
            .collect();
        let detail = "requires indexed completion mode";
        out.push(FieldError::invalid(field, json!({"Rules": shown}), detail));
        return;
    }
    let field = format!("{field}.rules");
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        out.push(FieldError::required(&field, detail));
    } else if rules.len() > RULES_MAX {
        out.push(FieldError::too_many(&field, rules.len(), RULES_MAX));
    }
    let completions = number(spec, "completions");
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if !has(rule, "succeededIndexes") && !has(rule, "succeededCount") {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            out.push(FieldError::required(&field, detail));
        }
        let mut total = None;
        if let Some(indexes) = rule["succeededIndexes"].as_str() {
            match count_indexes(indexes, completions) {
                Ok(count) => total = Some(count),
                Err(problem) => {
                    let detail = format!("error parsing succeededIndexes: {problem}");
                    out.push(FieldError::invalid(
                        format!("{field}.succeededIndexes"),
                        indexes,
                        &detail,
                    ));
                }
            }
        }
        if let Some(count) = rule["succeededCount"].as_i64() {
            let field = format!("{field}.succeededCount");
            not_negative(&rule["succeededCount"], &field, out);
            if count > completions {
                let detail = format!(
                    "must be less than or equal to {completions} (the number of specified completions)"
                );
                out.push(FieldError::invalid(&field, count, &detail));
            }
            if let Some(total) = total.filter(|total| count > *total) {
                let detail = format!(
                    "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
                );
                out.push(FieldError::invalid(&field, count, &detail));
            }
        }
    }
}

/// How many indexes `1,3-5` names; they must rise and lie below `completions`.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let (mut total, mut last) = (0, -1i64);
    for part in text.split(',') {
        let (first, end) = part.split_once('-').unwrap_or((part, part));
        let parse = |word: &str| {
            word.parse::<i64>()
                .map_err(|_| format!("cannot convert string to integer for index: {word:?}"))
        };
        let (first, end) = (parse(first)?, parse(end)?);
        if end >= completions {
            return Err(format!("too large index: \"{end}\""));
        }
        if first <= last {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        if first > end || (part.contains('-') && first == end) {
            return Err(format!("non-increasing order, previous: {first}, current: {end}"));
        }
        total += end - first + 1;
        last = end;
    }
    Ok(total)
}

pub(super) fn job_update(new: &Value, old: &Value) -> Errors {
    let mut out = job(new);
    let (now, was) = (at(new, "spec"), at(old, "spec"));
    // An indexed job may be resized as long as both numbers stay the same.
    let resized = text(was, "completionMode") == "Indexed"
        && has(now, "completions")
        && now["completions"] == now["parallelism"]
        && was["completions"] == was["parallelism"];
    if !resized {
        immutable(&now["completions"], &was["completions"], "spec.completions", &mut out);
    }
    immutable(&now["selector"], &was["selector"], "spec.selector", &mut out);
    template_update(now, was, old, &mut out);
    for key in
        ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        immutable(&now[key], &was[key], &format!("spec.{key}"), &mut out);
    }
    out
}

/// What a queue may still decide about where a job's pods run while it is suspended.
const SCHEDULING: [&str; 3] = ["nodeSelector", "tolerations", "schedulingGates"];

fn template_update(new: &Value, old: &Value, old_job: &Value, out: &mut Errors) {
    let (mut expected, actual) = (new["template"].clone(), &old["template"]);
    if flag(old, "suspend") && is_idle(old_job) && expected.is_object() {
        for key in SCHEDULING {
            copy(&mut expected["spec"], &actual["spec"], key);
        }
        for list in ["initContainers", "containers"] {
            let held = expected.get_mut("spec").and_then(|spec| spec.get_mut(list));
            if let Some(held) = held {
                copy_resources(held, &actual["spec"][list]);
            }
        }
        let affinity = actual["spec"]["affinity"]["nodeAffinity"].clone();
        if !affinity.is_null() || !expected["spec"]["affinity"]["nodeAffinity"].is_null() {
            expected["spec"]["affinity"]["nodeAffinity"] = affinity;
        }
        for key in ["labels", "annotations"] {
            copy(&mut expected["metadata"], &actual["metadata"], key);
        }
    }
    if expected != *actual {
        out.push(FieldError::invalid(
            "spec.template",
            new["template"].clone(),
            "field is immutable",
        ));
    }
}

/// Whether a suspended job has no pods, and gets none before it is resumed (KEP-5440): it never
/// ran, or its controller says that it is suspended.
fn is_idle(job: &Value) -> bool {
    let conditions = at(job, "status.conditions").as_array().into_iter().flatten();
    let mut told = conditions.filter(|it| it["type"] == "Suspended" && it["status"] == "True");
    let active = at(job, "status.active").as_i64().unwrap_or(0);
    active == 0 && (!has(job, "status.startTime") || told.next().is_some())
}

/// What containers ask for may change as well; what devices they use may not.
fn copy_resources(to: &mut Value, from: &Value) {
    let (Some(to), Some(from)) = (to.as_array_mut(), from.as_array()) else { return };
    for (to, from) in to.iter_mut().zip(from) {
        let (new, old) = (&to["resources"], &from["resources"]);
        if new["claims"] == old["claims"] {
            copy(to, from, "resources");
        }
    }
}

fn copy(to: &mut Value, from: &Value, key: &str) {
    if let Some(map) = to.as_object_mut() {
        match from.get(key) {
            Some(value) => map.insert(key.to_owned(), value.clone()),
            None => map.shift_remove(key),
        };
    }
}

pub(super) fn cron_job(cron_job: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(cron_job, "spec");
    let job = at(spec, "jobTemplate.spec");
    if !has(spec, "timeZone") || text(spec, "timeZone").is_empty() {
        schedule(spec, false, &mut out);
    } else {
        schedule(spec, true, &mut out);
    }
    not_negative(&spec["startingDeadlineSeconds"], "spec.startingDeadlineSeconds", &mut out);
    let policies = ["Allow", "Forbid", "Replace"];
    if required(spec, "concurrencyPolicy", "spec", &mut out) {
        one_of(&spec["concurrencyPolicy"], "spec.concurrencyPolicy", &policies, &mut out);
    }
    for (key, root) in [("spec.jobTemplate.spec.manualSelector", job)] {
        if flag(root, "manualSelector") {
            out.push(FieldError::not_supported(key, true, &["nil", "false"]));
        }
    }
    if !at(job, "selector").is_null() {
        let detail = "`selector` will be auto-generated";
        let field = "spec.jobTemplate.spec.selector";
        out.push(FieldError::invalid(field, job["selector"].clone(), detail));
    }
    job_spec(job, "spec.jobTemplate.spec", &mut out);
    for key in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        not_negative(&spec[key], &format!("spec.{key}"), &mut out);
    }
    let own = text(cron_job, "metadata.name");
    if own.len() > CRON_NAME_BYTES_MAX {
        let detail = format!("must be no more than {CRON_NAME_BYTES_MAX} characters");
        out.push(FieldError::invalid("metadata.name", own, &detail));
    }
    out
}

fn schedule(spec: &Value, has_zone: bool, out: &mut Errors) {
    let line = text(spec, "schedule");
    if line.is_empty() {
        out.push(FieldError::required("spec.schedule", ""));
    } else if line.contains("TZ") {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        out.push(FieldError::invalid("spec.schedule", line, detail));
    } else if let Err(problem) = cron::Schedule::parse(line) {
        out.push(FieldError::invalid("spec.schedule", line, &problem));
    }
    if let Some("") = spec["timeZone"].as_str() {
        let detail = "timeZone must be nil or non-empty string";
        out.push(FieldError::invalid("spec.timeZone", "", detail));
    }
    if !has_zone {
        return;
    }
    let zone = text(spec, "timeZone");
    if zone.eq_ignore_ascii_case("local") {
        let detail = "timeZone must be an explicit time zone as defined in \
                      https://www.iana.org/time-zones";
        out.push(FieldError::invalid("spec.timeZone", zone, detail));
    } else if jiff::tz::TimeZone::get(zone).is_err() {
        let detail = format!("unknown time zone {zone}");
        out.push(FieldError::invalid("spec.timeZone", zone, &detail));
    }
}

pub(super) fn cron_job_update(new: &Value, old: &Value) -> Errors {
    let mut out = cron_job(new);
    // A schedule with a zone that was accepted in its time stays.
    if text(new, "spec.schedule") == text(old, "spec.schedule") {
        out.retain(|error| {
            error.field != "spec.schedule" || !error.message.contains("CRON_TZ in schedule")
        });
    }
    // Its name came before the limit, or could not have been taken.
    out.retain(|error| error.field != "metadata.name");
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_template_of_a_job_changes_while_it_is_suspended_and_has_no_pods() {
        let asks = |cpu: &str| {
            let resources = json!({"requests": {"cpu": cpu}});
            json!({"containers": [{"name": "c", "resources": resources}]})
        };
        let told = json!([{"type": "Suspended", "status": "True"}]);
        let started = "2026-01-01T00:00:00Z";
        let on = json!({"nodeSelector": {"a": "b"}, "containers": asks("1")["containers"]});
        let other = json!({"containers": [{"name": "c", "image": "other",
            "resources": {"requests": {"cpu": "1"}}}]});
        let claims = json!({"containers": [{"name": "c", "resources": {
            "requests": {"cpu": "2"}, "claims": [{"name": "gpu"}]}}]});
        for (suspended, status, new, allowed) in [
            (true, json!({}), asks("2"), true),
            (true, json!({}), on.clone(), true),
            (true, json!({}), other, false),
            (true, json!({}), claims, false),
            (false, json!({}), asks("2"), false),
            (true, json!({"startTime": started}), asks("2"), false),
            (true, json!({"startTime": started, "conditions": told}), asks("2"), true),
            (true, json!({"startTime": started, "conditions": told}), on, true),
            (
                true,
                json!({"startTime": started, "conditions": told, "active": 1}),
                asks("2"),
                false,
            ),
        ] {
            let meta = json!({"labels": {"a": "b"}});
            let spec = |pod: &Value| json!({"suspend": suspended, "template": {"metadata": meta, "spec": pod}});
            let (old, new) = (spec(&asks("1")), spec(&new));
            let job = json!({"spec": old, "status": status});
            let mut out = Errors::new();
            template_update(&new, &old, &job, &mut out);
            assert_eq!(out.is_empty(), allowed, "{suspended} {status} {new}");
        }
    }
}
