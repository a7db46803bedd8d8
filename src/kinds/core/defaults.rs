//! Defaults of the core group besides pods.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::pod_defaults;
use crate::value::{fill, fill_zero, has, items, items_mut, object, text};

pub fn service(service: &mut Value) {
    let spec = object(service, "spec");
    fill_zero(spec, "sessionAffinity", "None");
    if text(spec, "sessionAffinity") == "None"
        && let Some(map) = spec.as_object_mut()
    {
        map.shift_remove("sessionAffinityConfig");
    }
    if text(spec, "sessionAffinity") == "ClientIP" {
        let client = object(object(spec, "sessionAffinityConfig"), "clientIP");
        fill(client, "timeoutSeconds", 10800);
    }
    fill_zero(spec, "type", "ClusterIP");
    for port in items_mut(spec, "ports") {
        fill_zero(port, "protocol", "TCP");
        let number = port["port"].clone();
        fill_zero(port, "targetPort", number);
    }
    let kind = text(spec, "type").to_owned();
    let outside = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    if outside || (kind == "ClusterIP" && !items(spec, "externalIPs").is_empty()) {
        fill_zero(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        fill(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
        super::service::status_defaults(service);
    }
}

pub fn endpoints(endpoints: &mut Value) {
    for subset in items_mut(endpoints, "subsets") {
        for port in items_mut(subset, "ports") {
            fill_zero(port, "protocol", "TCP");
        }
    }
}

pub fn namespace(namespace: &mut Value) {
    fill_zero(object(namespace, "status"), "phase", "Active");
    let name = text(namespace, "metadata.name").to_owned();
    if !name.is_empty() {
        let labels = object(object(namespace, "metadata"), "labels");
        labels["kubernetes.io/metadata.name"] = Value::String(name);
    }
}

/// Also moves the write-only `stringData` into `data`.
pub fn secret(secret: &mut Value) {
    let strings = secret.as_object_mut().and_then(|map| map.shift_remove("stringData"));
    if let Some(Value::Object(strings)) = strings {
        let data = object(secret, "data");
        for (key, value) in strings {
            data[key] = Value::String(STANDARD.encode(value.as_str().unwrap_or_default()));
        }
    }
    fill_zero(secret, "type", "Opaque");
}

pub fn node(node: &mut Value) {
    let status = object(node, "status");
    if has(status, "capacity") {
        let capacity = status["capacity"].clone();
        fill(status, "allocatable", capacity);
    }
}

pub fn persistent_volume(volume: &mut Value) {
    fill_zero(object(volume, "status"), "phase", "Pending");
    let spec = object(volume, "spec");
    fill_zero(spec, "persistentVolumeReclaimPolicy", "Retain");
    fill(spec, "volumeMode", "Filesystem");
    pod_defaults::volume_source(spec);
}

pub fn persistent_volume_claim(claim: &mut Value) {
    fill_zero(object(claim, "status"), "phase", "Pending");
    fill(object(claim, "spec"), "volumeMode", "Filesystem");
}

pub fn pod_template(object_: &mut Value) {
    pod_defaults::template(object(object_, "template"));
}

pub fn replication_controller(controller: &mut Value) {
    let labels = controller.pointer("/spec/template/metadata/labels").cloned();
    if let Some(labels) = labels.filter(|l| l.as_object().is_some_and(|m| !m.is_empty())) {
        fill(object(controller, "spec"), "selector", labels.clone());
        fill(object(controller, "metadata"), "labels", labels);
    }
    let spec = object(controller, "spec");
    fill(spec, "replicas", 1);
    if has(spec, "template") {
        pod_defaults::template(object(spec, "template"));
    }
}

/// Limits fill in one another: `max` gives `default`, which gives `defaultRequest`, as does `min`.
pub fn limit_range(range: &mut Value) {
    for limit in items_mut(object(range, "spec"), "limits") {
        if text(limit, "type") != "Container" {
            continue;
        }
        for (to, from) in
            [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")]
        {
            let Some(Value::Object(source)) = limit.get(from).cloned() else { continue };
            let target = object(limit, to);
            for (name, quantity) in source {
                fill(target, &name, quantity);
            }
        }
    }
}

pub fn endpoint_slice(slice: &mut Value) {
    for port in items_mut(slice, "ports") {
        fill(port, "name", "");
        fill(port, "protocol", "TCP");
    }
}

pub fn flow_schema(schema: &mut Value) {
    fill_zero(object(schema, "spec"), "matchingPrecedence", 1000);
}

pub fn priority_level(level: &mut Value) {
    let spec = object(level, "spec");
    if let Some(limited) = spec.get_mut("limited").filter(|l| l.is_object()) {
        fill(limited, "nominalConcurrencyShares", 30);
        fill(limited, "lendablePercent", 0);
        if let Some(queuing) = limited.pointer_mut("/limitResponse/queuing") {
            fill_zero(queuing, "queues", 64);
            fill_zero(queuing, "handSize", 8);
            fill_zero(queuing, "queueLengthLimit", 50);
        }
    }
    if let Some(exempt) = spec.get_mut("exempt").filter(|l| l.is_object()) {
        fill(exempt, "nominalConcurrencyShares", 0);
        fill(exempt, "lendablePercent", 0);
    } else if text(spec, "type") == "Exempt" {
        spec["exempt"] = json!({"nominalConcurrencyShares": 0, "lendablePercent": 0});
    }
}

pub fn csi_driver(driver: &mut Value) {
    let spec = object(driver, "spec");
    fill(spec, "attachRequired", true);
    fill(spec, "podInfoOnMount", false);
    fill(spec, "storageCapacity", false);
    fill(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if items(spec, "volumeLifecycleModes").is_empty() {
        spec["volumeLifecycleModes"] = json!(["Persistent"]);
    }
    fill(spec, "requiresRepublish", false);
    fill(spec, "seLinuxMount", false);
}

pub fn resource_claim(claim: &mut Value) {
    claim_spec(object(claim, "spec"));
}

pub fn resource_claim_template(template: &mut Value) {
    claim_spec(object(object(template, "spec"), "spec"));
}

fn claim_spec(spec: &mut Value) {
    let Some(devices) = spec.get_mut("devices").filter(|d| d.is_object()) else { return };
    let count = |request: &mut Value| {
        fill_zero(request, "allocationMode", "ExactCount");
        if text(request, "allocationMode") == "ExactCount" {
            fill_zero(request, "count", 1);
        }
        for toleration in items_mut(request, "tolerations") {
            fill_zero(toleration, "operator", "Equal");
        }
    };
    for request in items_mut(devices, "requests") {
        if let Some(exactly) = request.get_mut("exactly").filter(|e| e.is_object()) {
            count(exactly);
        }
        items_mut(request, "firstAvailable").for_each(count);
    }
}

pub fn storage_class(class: &mut Value) {
    fill(class, "reclaimPolicy", "Delete");
    fill(class, "volumeBindingMode", "Immediate");
}

pub fn priority_class(class: &mut Value) {
    fill(class, "preemptionPolicy", "PreemptLowerPriority");
}

pub fn crd(crd: &mut Value) {
    let spec = object(crd, "spec");
    let names = object(spec, "names");
    let kind = text(names, "kind").to_owned();
    if !kind.is_empty() {
        fill_zero(names, "singular", kind.to_lowercase());
        fill_zero(names, "listKind", format!("{kind}List"));
    }
    fill_zero(object(spec, "conversion"), "strategy", "None");
    if let Some(service) = spec.pointer_mut("/conversion/webhook/clientConfig/service") {
        fill(service, "port", 443);
    }
}

pub fn api_service(service: &mut Value) {
    if let Some(reference) = service.pointer_mut("/spec/service").filter(|s| s.is_object()) {
        fill(reference, "port", 443);
    }
}
