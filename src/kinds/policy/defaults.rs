//! Defaults of networking, rbac and admission kinds.

use serde_json::{Value, json};

use crate::value::{fill, fill_zero, has, items, items_mut, object, text};

const RBAC: &str = "rbac.authorization.k8s.io";

/// A certificate lasts for a day unless the request says otherwise.
pub fn pod_certificate_request(request: &mut Value) {
    fill(object(request, "spec"), "maxExpirationSeconds", 86_400);
}

pub fn binding(binding: &mut Value) {
    fill_zero(object(binding, "roleRef"), "apiGroup", RBAC);
    for subject in items_mut(binding, "subjects") {
        let group = match text(subject, "kind") {
            "User" | "Group" => RBAC,
            _ => continue,
        };
        fill_zero(subject, "apiGroup", group);
    }
}

pub fn ingress_class(class: &mut Value) {
    if let Some(parameters) = class.pointer_mut("/spec/parameters").filter(|p| p.is_object()) {
        fill(parameters, "scope", "Cluster");
    }
}

pub fn network_policy(policy: &mut Value) {
    let spec = object(policy, "spec");
    for list in ["ingress", "egress"] {
        for rule in items_mut(spec, list) {
            for port in items_mut(rule, "ports") {
                fill(port, "protocol", "TCP");
            }
        }
    }
    if items(spec, "policyTypes").is_empty() {
        let mut types = vec!["Ingress"];
        if !items(spec, "egress").is_empty() {
            types.push("Egress");
        }
        spec["policyTypes"] = json!(types);
    }
}

fn webhooks(configuration: &mut Value, mutating: bool) {
    for hook in items_mut(configuration, "webhooks") {
        fill(hook, "failurePolicy", "Fail");
        fill(hook, "matchPolicy", "Equivalent");
        fill(hook, "namespaceSelector", json!({}));
        fill(hook, "objectSelector", json!({}));
        fill(hook, "timeoutSeconds", 10);
        if mutating {
            fill(hook, "reinvocationPolicy", "Never");
        }
        rules(hook, "rules");
        if let Some(service) = hook.pointer_mut("/clientConfig/service").filter(|s| s.is_object()) {
            fill(service, "port", 443);
        }
    }
}

fn rules(parent: &mut Value, list: &str) {
    for rule in items_mut(parent, list) {
        fill(rule, "scope", "*");
    }
}

pub fn mutating_webhooks(configuration: &mut Value) {
    webhooks(configuration, true);
}

pub fn validating_webhooks(configuration: &mut Value) {
    webhooks(configuration, false);
}

fn match_resources(resources: &mut Value) {
    fill(resources, "matchPolicy", "Equivalent");
    fill(resources, "namespaceSelector", json!({}));
    fill(resources, "objectSelector", json!({}));
    rules(resources, "resourceRules");
    rules(resources, "excludeResourceRules");
}

pub fn admission_policy(policy: &mut Value) {
    let spec = object(policy, "spec");
    fill(spec, "failurePolicy", "Fail");
    if has(spec, "matchConstraints") {
        match_resources(object(spec, "matchConstraints"));
    }
}

pub fn admission_policy_binding(binding: &mut Value) {
    let spec = object(binding, "spec");
    if has(spec, "matchResources") {
        match_resources(object(spec, "matchResources"));
    }
}
