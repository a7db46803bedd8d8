//! Validation of what bounds others: budgets, quotas, limit ranges, priorities, runtimes,
//! autoscalers.

use serde_json::{Map, Value};

use super::checks::{
    Errors, NOT_NEGATIVE, count_or_percent, form, immutable, not_more_than_all, not_negative,
    one_of, positive, quantity, quantity_not_negative, required,
};
use crate::meta::{FieldError, name, selector};
use crate::value::{at, has, items, number, text};

pub(super) fn disruption_budget(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        let detail = "minAvailable and maxUnavailable cannot be both set";
        out.push(FieldError::invalid("spec", spec.clone(), detail));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        let field = format!("spec.{key}");
        count_or_percent(&spec[key], &field, &mut out);
        not_more_than_all(&spec[key], &field, &mut out);
    }
    if has(spec, "selector") {
        out.extend(selector::validate_label_selector(&spec["selector"], "spec.selector"));
    }
    let policies = ["AlwaysAllow", "IfHealthyBudget"];
    let policy = &spec["unhealthyPodEvictionPolicy"];
    one_of(policy, "spec.unhealthyPodEvictionPolicy", &policies, &mut out);
    out
}

const QUOTA_RESOURCES: [&str; 21] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
    "storage",
    "hugepages-",
];
const INTEGER_RESOURCES: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const CONTAINER_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

fn is_huge_pages(name: &str) -> bool {
    name.strip_prefix("requests.").unwrap_or(name).starts_with("hugepages-")
}

/// An amount of a resource: not below zero, and whole where only whole ones exist.
fn amount(resource: &str, value: &Value, field: &str, out: &mut Errors) {
    let Some(parsed) = quantity(value) else { return };
    if parsed.is_negative() {
        out.push(FieldError::invalid(field, value.clone(), NOT_NEGATIVE));
    }
    let whole = INTEGER_RESOURCES.contains(&resource) || name::is_extended_resource(resource);
    if whole && parsed.millis() % 1000 != 0 {
        out.push(FieldError::invalid(field, value.clone(), "must be an integer"));
    }
}

pub(super) fn quota(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    for (resource, value) in spec["hard"].as_object().into_iter().flatten() {
        let field = format!("spec.hard[{resource}]");
        form(resource, &field, name::is_qualified, &mut out);
        let known = QUOTA_RESOURCES.contains(&resource.as_str()) || is_huge_pages(resource);
        if !resource.contains('/') && !known {
            for detail in [
                "must be a standard resource type or fully qualified",
                "must be a standard resource for quota",
            ] {
                out.push(FieldError::invalid(&field, resource.as_str(), detail));
            }
        }
        amount(resource, value, &field, &mut out);
    }
    scopes(spec, &mut out);
    scope_selector(spec, &mut out);
    out
}

fn scopes(spec: &Value, out: &mut Errors) {
    let all = items(spec, "scopes");
    let shown = || Value::from(all.to_vec());
    let field = "spec.scopes";
    let mut wrong = |detail: &str| out.push(FieldError::invalid(field, shown(), detail));
    for scope in all.iter().filter_map(Value::as_str) {
        if !SCOPES.contains(&scope) {
            wrong("unsupported scope");
        }
        for resource in spec["hard"].as_object().into_iter().flat_map(Map::keys) {
            if SCOPES.contains(&scope) && !scope_fits(scope, resource) {
                wrong("unsupported scope applied to resource");
            }
        }
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|one| all.iter().any(|scope| scope == one)) {
            wrong("conflicting scopes");
        }
    }
}

/// Whether the scope says anything about the resource.
fn scope_fits(scope: &str, resource: &str) -> bool {
    let is_of_pods = resource == "pods" || resource == "count/pods";
    let compute =
        ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
    match scope {
        "BestEffort" => is_of_pods,
        "VolumeAttributesClass" => {
            resource == "persistentvolumeclaims"
                || resource == "count/persistentvolumeclaims"
                || resource == "requests.storage"
        }
        _ => {
            is_of_pods
                || compute.contains(&resource)
                || is_huge_pages(resource)
                || name::is_extended_resource(resource)
        }
    }
}

fn scope_selector(spec: &Value, out: &mut Errors) {
    let root = "spec.scopeSelector.matchExpressions";
    for expression in items(spec, "scopeSelector.matchExpressions") {
        let (scope, operator) = (text(expression, "scopeName"), text(expression, "operator"));
        let values = items(expression, "values");
        if !SCOPES.contains(&scope) {
            let field = format!("{root}.scopeName");
            out.push(FieldError::invalid(field, scope, "unsupported scope"));
        }
        for resource in spec["hard"].as_object().into_iter().flat_map(Map::keys) {
            if SCOPES.contains(&scope) && !scope_fits(scope, resource) {
                let detail = "unsupported scope applied to resource";
                out.push(FieldError::invalid(root, expression.clone(), detail));
            }
        }
        let has_values = matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if SCOPES.contains(&scope) && !has_values && operator != "Exists" {
            let detail = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
                          ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                          ResourceQuotaScopeNotBestEffort or \
                          ResourceQuotaScopeCrossNamespacePodAffinity";
            out.push(FieldError::invalid(format!("{root}.operator"), operator, detail));
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => out.push(FieldError::required(
                format!("{root}.values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "must be no value when `operator` is 'Exists' or 'DoesNotExist' for \
                              scope selector";
                out.push(FieldError::invalid(format!("{root}.values"), values.to_vec(), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                let detail = "not a valid selector operator";
                out.push(FieldError::invalid(format!("{root}.operator"), other, detail));
            }
        }
    }
}

pub(super) fn quota_update(new: &Value, old: &Value) -> Errors {
    let mut out = quota(new);
    let mut sorted = [new, old].map(|object| {
        let mut scopes: Vec<&str> =
            items(object, "spec.scopes").iter().filter_map(Value::as_str).collect();
        scopes.sort_unstable();
        scopes
    });
    let [now, was] = &mut sorted;
    if now != was {
        let shown = items(new, "spec.scopes").to_vec();
        out.push(FieldError::invalid("spec.scopes", shown, super::checks::IMMUTABLE));
    }
    out
}

pub(super) fn limit_range(object: &Value) -> Errors {
    let mut out = Vec::new();
    let mut kinds: Vec<&str> = Vec::new();
    for (index, limit) in items(object, "spec.limits").iter().enumerate() {
        let field = format!("spec.limits[{index}]");
        let kind = text(limit, "type");
        form(kind, &format!("{field}.type"), name::is_qualified, &mut out);
        if !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
            let detail = "must be a standard limit type or fully qualified";
            out.push(FieldError::invalid(format!("{field}.type"), kind, detail));
        }
        if kinds.contains(&kind) {
            out.push(FieldError::duplicate(format!("{field}.type"), kind));
        }
        kinds.push(kind);
        limit_keys(limit, kind, &field, &mut out);
        if kind == "PersistentVolumeClaim"
            && limit["min"]["storage"].is_null()
            && limit["max"]["storage"].is_null()
        {
            let detail = "either minimum or maximum storage value is required, but neither was \
                          provided";
            out.push(FieldError::required(format!("{field}.limits"), detail));
        }
        limit_bounds(limit, &field, &mut out);
    }
    out
}

fn limit_keys(limit: &Value, kind: &str, field: &str, out: &mut Errors) {
    for key in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        let Some(map) = limit[key].as_object() else { continue };
        if kind == "Pod" && key.starts_with("default") {
            if !map.is_empty() {
                let detail = "may not be specified when `type` is 'Pod'";
                out.push(FieldError::forbidden(format!("{field}.{key}"), detail));
            }
            continue;
        }
        for resource in map.keys() {
            let field = format!("{field}.{key}[{resource}]");
            form(resource, &field, name::is_qualified, out);
            let of_containers = matches!(kind, "Pod" | "Container");
            let known = CONTAINER_RESOURCES.contains(&resource.as_str()) || is_huge_pages(resource);
            if of_containers && !resource.contains('/') && !known {
                let detail = "must be a standard resource for containers";
                out.push(FieldError::invalid(field, resource.as_str(), detail));
            }
        }
    }
}

fn limit_bounds(limit: &Value, field: &str, out: &mut Errors) {
    let keys = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
    let mut resources: Vec<&String> =
        keys.iter().filter_map(|key| limit[*key].as_object()).flat_map(Map::keys).collect();
    resources.sort();
    resources.dedup();
    for resource in resources {
        let of = |key: &str| quantity(&limit[key][resource]);
        let shown = |key: &str| limit[key][resource].clone();
        let word = |key: &str| limit[key][resource].as_str().unwrap_or_default();
        let mut greater =
            |low: &str, high: &str, at: &str, value: &str, low_is: &str, high_is: &str| {
                if let (Some(a), Some(b)) = (of(low), of(high))
                    && a > b
                {
                    let detail = format!(
                        "{low_is} value {} is greater than {high_is} value {}",
                        word(low),
                        word(high)
                    );
                    let field = format!("{field}.{at}[{resource}]");
                    out.push(FieldError::invalid(field, shown(value), &detail));
                }
            };
        greater("min", "max", "min", "min", "min", "max");
        let request = "defaultRequest";
        greater("min", request, request, request, "min", "default request");
        greater(request, "max", request, request, "default request", "max");
        greater(request, "default", request, request, "default request", "default limit");
        greater("min", "default", "default", "min", "min", "default");
        greater("default", "max", "default", "max", "default", "max");
        let Some(ratio) = of("maxLimitRequestRatio") else { continue };
        let at = format!("{field}.maxLimitRequestRatio[{resource}]");
        let said = word("maxLimitRequestRatio");
        if ratio.as_f64() < 1.0 {
            let detail = format!("ratio {said} is less than 1");
            out.push(FieldError::invalid(&at, shown("maxLimitRequestRatio"), &detail));
        }
        if let (Some(min), Some(max)) = (of("min"), of("max"))
            && !min.is_zero()
            && ratio.as_f64() > max.as_f64() / min.as_f64()
        {
            let most = max.as_f64() / min.as_f64();
            let detail = format!("ratio {said} is greater than max/min = {most:.6}");
            out.push(FieldError::invalid(&at, shown("maxLimitRequestRatio"), &detail));
        }
    }
}

/// Priorities above are the cluster's own.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;

pub(super) fn priority_class(object: &Value) -> Errors {
    let mut out = Vec::new();
    let (own, value) = (text(object, "metadata.name"), number(object, "value"));
    let system = match own {
        "system-node-critical" => Some(2_000_001_000),
        "system-cluster-critical" => Some(2_000_000_000),
        _ => None,
    };
    if own.starts_with("system-") {
        if system != Some(value) {
            let detail = "priority class names with 'system-' prefix are reserved for system use only. error: ".to_owned()
                + &match system {
                    Some(expected) => format!("value of {own} PriorityClass must be {expected}"),
                    None => format!("{own} is not a known system priority class"),
                };
            out.push(FieldError::forbidden("metadata.name", &detail));
        }
    } else if value > USER_PRIORITY_MAX {
        let detail =
            format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
        out.push(FieldError::forbidden("value", &detail));
    }
    let policies = ["PreemptLowerPriority", "Never"];
    one_of(&object["preemptionPolicy"], "preemptionPolicy", &policies, &mut out);
    out
}

pub(super) fn priority_class_update(new: &Value, old: &Value) -> Errors {
    let mut out = Vec::new();
    if new["value"] != old["value"] {
        let detail = "may not be changed in an update.";
        out.push(FieldError::forbidden("value", detail));
    }
    let (now, was) = (&new["preemptionPolicy"], &old["preemptionPolicy"]);
    immutable(now, was, "preemptionPolicy", &mut out);
    out
}

pub(super) fn runtime_class(object: &Value) -> Errors {
    let mut out = Vec::new();
    if required(object, "handler", "", &mut out) {
        form(text(object, "handler"), "handler", name::is_dns1123_label, &mut out);
    }
    for (resource, value) in object["overhead"]["podFixed"].as_object().into_iter().flatten() {
        // The path is upstream's.
        quantity_not_negative(value, &format!("overhead.limits[{resource}]"), &mut out);
    }
    if let Some(labels) = object["scheduling"]["nodeSelector"].as_object() {
        out.extend(selector::validate_labels(labels, "scheduling.nodeSelector"));
    }
    let tolerations = items(object, "scheduling.tolerations");
    for (index, toleration) in tolerations.iter().enumerate() {
        if tolerations[..index].contains(toleration) {
            let field = format!("scheduling.tolerations[{index}]");
            out.push(FieldError::duplicate(field, toleration.clone()));
        }
    }
    out
}

pub(super) fn runtime_class_update(new: &Value, old: &Value) -> Errors {
    let mut out = runtime_class(new);
    immutable(&new["handler"], &old["handler"], "handler", &mut out);
    out
}

const PERIOD_SECONDS_MAX: i64 = 1800;
const STABILIZATION_SECONDS_MAX: i64 = 3600;

pub(super) fn autoscaler(object: &Value) -> Errors {
    let mut out = Vec::new();
    let spec = at(object, "spec");
    let (least, most) = (spec["minReplicas"].as_i64(), number(spec, "maxReplicas"));
    // Zero needs the HPAScaleToZero feature, which is alpha.
    if let Some(least) = least.filter(|least| *least < 1) {
        let detail = "must be greater than or equal to 1";
        out.push(FieldError::invalid("spec.minReplicas", least, detail));
    }
    if most < 1 {
        let detail = "must be set and greater than 0";
        out.push(FieldError::required("spec.maxReplicas", detail));
    }
    if least.is_some_and(|least| most < least) {
        let detail = "must be greater than or equal to `minReplicas`";
        out.push(FieldError::invalid("spec.maxReplicas", most, detail));
    }
    reference(&spec["scaleTargetRef"], "spec.scaleTargetRef", false, &mut out);
    if text(object, "apiVersion").ends_with("/v1") {
        let target = &spec["targetCPUUtilizationPercentage"];
        let field = "spec.metrics[0].resource.target.averageUtilization";
        positive(target, field, "must be greater than 0", &mut out);
    }
    metrics(spec, &mut out);
    for side in ["scaleUp", "scaleDown"] {
        let rules = &spec["behavior"][side];
        if rules.is_object() {
            scaling_rules(rules, &format!("spec.behavior.{side}"), &mut out);
        }
    }
    out
}

/// `of_object`: of a metric, which may be of any kind.
fn reference(target: &Value, field: &str, of_object: bool, out: &mut Errors) {
    for key in ["kind", "name"] {
        if required(target, key, field, out) {
            form(text(target, key), &format!("{field}.{key}"), name::is_path_segment, out);
        }
    }
    let version = text(target, "apiVersion");
    let at = format!("{field}.apiVersion");
    match version.matches('/').count() {
        // Replication controllers live in the group without a name.
        0 if version == "v1" && (of_object || text(target, "kind") == "ReplicationController") => {}
        0 => out.push(FieldError::invalid(at, version, "apiVersion must specify API group")),
        1 => {}
        _ => {
            let detail = format!("unexpected GroupVersion string: {version}");
            out.push(FieldError::invalid(at, version, &detail));
        }
    }
}

const METRIC_SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn metrics(spec: &Value, out: &mut Errors) {
    for (index, metric) in items(spec, "metrics").iter().enumerate() {
        let field = format!("spec.metrics[{index}]");
        let kind = text(metric, "type");
        let kinds = METRIC_SOURCES.map(|(kind, _)| kind);
        if kind.is_empty() {
            out.push(FieldError::required(
                format!("{field}.type"),
                "must specify a metric source type",
            ));
        } else if !kinds.contains(&kind) {
            out.push(FieldError::not_supported(format!("{field}.type"), kind, &kinds));
        }
        let wanted = METRIC_SOURCES.iter().find(|(own, _)| *own == kind).map(|(_, key)| *key);
        for (_, key) in METRIC_SOURCES {
            if has(metric, key) && wanted.is_some_and(|wanted| wanted != key) {
                let detail = "must populate the given metric source only";
                out.push(FieldError::forbidden(format!("{field}.{key}"), detail));
            }
        }
        let Some(key) = wanted else { continue };
        let field = format!("{field}.{key}");
        let source = &metric[key];
        if !source.is_object() {
            let detail = "must populate information for the given metric source";
            out.push(FieldError::required(field, detail));
            continue;
        }
        metric_source(key, source, &field, out);
    }
}

fn metric_source(key: &str, source: &Value, field: &str, out: &mut Errors) {
    match key {
        "resource" | "containerResource" => {
            if text(source, "name").is_empty() {
                let detail = "must specify a resource name";
                out.push(FieldError::required(format!("{field}.name"), detail));
            }
            if key == "containerResource" && text(source, "container").is_empty() {
                let detail = "must specify a container";
                out.push(FieldError::required(format!("{field}.container"), detail));
            }
        }
        _ => {
            if key == "object" {
                let at = format!("{field}.describedObject");
                reference(&source["describedObject"], &at, true, out);
            }
            let at = format!("{field}.metric");
            if text(source, "metric.name").is_empty() {
                out.push(FieldError::required(format!("{at}.name"), "must specify a metric name"));
            } else {
                let own = text(source, "metric.name");
                form(own, &format!("{at}.name"), name::is_path_segment, out);
            }
            if has(source, "metric.selector") {
                let own = &source["metric"]["selector"];
                out.extend(selector::validate_label_selector(own, &format!("{at}.selector")));
            }
        }
    }
    let target = &source["target"];
    let at = format!("{field}.target");
    if text(target, "type").is_empty() {
        out.push(FieldError::required(format!("{at}.type"), "must specify a metric target type"));
    } else {
        one_of(
            &target["type"],
            &format!("{at}.type"),
            &["AverageValue", "Utilization", "Value"],
            out,
        );
    }
    positive(
        &target["averageUtilization"],
        &format!("{at}.averageUtilization"),
        "must be greater than 0",
        out,
    );
    for key in ["value", "averageValue"] {
        if quantity(&target[key]).is_some_and(|amount| amount.is_negative() || amount.is_zero()) {
            let detail = "must be positive";
            out.push(FieldError::invalid(format!("{at}.{key}"), target[key].clone(), detail));
        }
    }
    let given = |key: &str| has(target, key);
    if matches!(key, "resource" | "containerResource") {
        match (given("averageUtilization"), given("averageValue")) {
            (true, true) => out.push(FieldError::forbidden(
                format!("{at}.averageValue"),
                "may not set both a target raw value and a target utilization",
            )),
            (false, false) => out.push(FieldError::required(
                format!("{at}.averageUtilization"),
                "must set either a target raw value or a target utilization",
            )),
            _ => {}
        }
    } else if key == "pods" && !given("averageValue") {
        out.push(FieldError::required(
            format!("{at}.averageValue"),
            "must specify a positive target averageValue",
        ));
    } else if key != "pods" && !given("averageValue") && !given("value") {
        let detail = if key == "object" {
            "must set either a target value or averageValue"
        } else {
            "must set either a target value for metric or a per-pod target"
        };
        out.push(FieldError::required(format!("{at}.averageValue"), detail));
    }
}

fn scaling_rules(rules: &Value, field: &str, out: &mut Errors) {
    let window = &rules["stabilizationWindowSeconds"];
    let at = format!("{field}.stabilizationWindowSeconds");
    not_negative(window, &at, out);
    if let Some(seconds) = window.as_i64().filter(|it| *it > STABILIZATION_SECONDS_MAX) {
        let detail = format!("must be less than or equal to {STABILIZATION_SECONDS_MAX}");
        out.push(FieldError::invalid(&at, seconds, &detail));
    }
    let choices = ["Disabled", "Max", "Min"];
    one_of(&rules["selectPolicy"], &format!("{field}.selectPolicy"), &choices, out);
    let policies = items(rules, "policies");
    let at = format!("{field}.policies");
    if policies.is_empty() {
        out.push(FieldError::required(&at, "must specify at least one Policy"));
    }
    for (index, policy) in policies.iter().enumerate() {
        let at = format!("{at}[{index}]");
        one_of(&policy["type"], &format!("{at}.type"), &["Percent", "Pods"], out);
        for key in ["value", "periodSeconds"] {
            positive(&policy[key], &format!("{at}.{key}"), "must be greater than zero", out);
        }
        let seconds = number(policy, "periodSeconds");
        if seconds > PERIOD_SECONDS_MAX {
            let detail = format!("must be less than or equal to {PERIOD_SECONDS_MAX}");
            out.push(FieldError::invalid(format!("{at}.periodSeconds"), seconds, &detail));
        }
    }
    if quantity(&rules["tolerance"]).is_some_and(|it| it.is_negative()) {
        let field = format!("{field}.tolerance");
        out.push(FieldError::invalid(
            field,
            rules["tolerance"].clone(),
            "must be greater or equal to zero",
        ));
    }
}
