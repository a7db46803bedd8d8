//! Defaults of pods and of the pod templates in other kinds.

use serde_json::{Map, Value, json};

use crate::value::{fill, fill_zero, flag, has, items_mut, object, text};

/// Defaults of a Pod.
pub fn pod(pod: &mut Value) {
    let spec = object(pod, "spec");
    if flag(spec, "hostNetwork") {
        for list in ["initContainers", "containers"] {
            items_mut(spec, list).flat_map(|c| items_mut(c, "ports")).for_each(host_port);
        }
    }
    pod_spec(spec);
    fill(spec, "enableServiceLinks", true);
    for list in ["initContainers", "containers"] {
        items_mut(spec, list).for_each(requests_from_limits);
    }
    if has(spec, "resources") {
        pod_requests(spec);
    }
}

/// Defaults of a PodTemplateSpec.
pub fn template(template: &mut Value) {
    pod_spec(object(template, "spec"));
}

fn requests_from_limits(container: &mut Value) {
    let Some(Value::Object(limits)) = container.pointer("/resources/limits").cloned() else {
        return;
    };
    let requests = object(object(container, "resources"), "requests");
    for (name, quantity) in limits {
        fill(requests, &name, quantity);
    }
}

/// A pod-level limit without request stands for the request unless containers request it.
fn pod_requests(spec: &mut Value) {
    let Some(Value::Object(limits)) = spec.pointer("/resources/limits").cloned() else { return };
    let mut sums: Map<String, Value> = Map::new();
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            let requests = container.pointer("/resources/requests").and_then(Value::as_object);
            for (name, quantity) in requests.into_iter().flatten() {
                let parse = |v: &Value| {
                    v.as_str().and_then(|t| t.parse::<crate::meta::quantity::Quantity>().ok())
                };
                let Some(add) = parse(quantity) else { continue };
                let sum = sums.get(name).and_then(parse).unwrap_or_default().plus(add);
                sums.insert(name.clone(), Value::String(sum.to_string()));
            }
        }
    }
    let requests = object(object(spec, "resources"), "requests");
    for (name, quantity) in limits {
        let request = sums.get(&name).cloned().unwrap_or(quantity);
        fill(requests, &name, request);
    }
}

fn pod_spec(spec: &mut Value) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        items_mut(spec, list).for_each(container);
    }
    // One field under an old and a new name.
    for (to, from) in
        [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")]
    {
        let name = text(spec, from).to_owned();
        if !name.is_empty() {
            fill_zero(spec, to, name);
        }
    }
    items_mut(spec, "volumes").for_each(volume);
    fill_zero(spec, "restartPolicy", "Always");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill_zero(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "securityContext", json!({}));
    fill_zero(spec, "schedulerName", "default-scheduler");
}

fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').unwrap_or((image, ""));
    let name = name.rsplit('/').next().unwrap_or(name);
    match name.split_once(':') {
        Some((_, "latest")) => "Always",
        None if digest.is_empty() => "Always",
        _ => "IfNotPresent",
    }
}

/// In a pod of the host's network, ports are the host's.
fn host_port(port: &mut Value) {
    let number = port["containerPort"].clone();
    fill_zero(port, "hostPort", number);
}

fn container(container: &mut Value) {
    let policy = pull_policy(text(container, "image"));
    fill_zero(container, "imagePullPolicy", policy);
    fill_zero(container, "terminationMessagePath", "/dev/termination-log");
    fill_zero(container, "terminationMessagePolicy", "File");
    for port in items_mut(container, "ports") {
        fill_zero(port, "protocol", "TCP");
    }
    for variable in items_mut(container, "env") {
        if let Some(source) = variable.get_mut("valueFrom") {
            field_ref(source);
            if let Some(file) = source.get_mut("fileKeyRef") {
                fill(file, "optional", false);
            }
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).filter(|p| p.is_object()) else { continue };
        fill_zero(probe, "timeoutSeconds", 1);
        fill_zero(probe, "periodSeconds", 10);
        fill_zero(probe, "successThreshold", 1);
        fill_zero(probe, "failureThreshold", 3);
        http_get(probe);
        if let Some(grpc) = probe.get_mut("grpc").filter(|g| g.is_object()) {
            fill(grpc, "service", "");
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get_mut(hook) {
                http_get(hook);
            }
        }
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet").filter(|g| g.is_object()) {
        fill_zero(get, "path", "/");
        fill_zero(get, "scheme", "HTTP");
    }
}

fn field_ref(source: &mut Value) {
    if let Some(field) = source.get_mut("fieldRef").filter(|f| f.is_object()) {
        fill_zero(field, "apiVersion", "v1");
    }
}

/// Defaults of the sources volumes and persistent volumes share.
pub fn volume_source(source: &mut Value) {
    if let Some(path) = source.get_mut("hostPath").filter(|p| p.is_object()) {
        fill(path, "type", "");
    }
    if let Some(iscsi) = source.get_mut("iscsi").filter(|p| p.is_object()) {
        fill_zero(iscsi, "iscsiInterface", "default");
    }
    if let Some(rbd) = source.get_mut("rbd").filter(|p| p.is_object()) {
        fill_zero(rbd, "pool", "rbd");
        fill_zero(rbd, "user", "admin");
        fill_zero(rbd, "keyring", "/etc/ceph/keyring");
    }
    if let Some(disk) = source.get_mut("azureDisk").filter(|p| p.is_object()) {
        fill(disk, "cachingMode", "ReadWrite");
        fill(disk, "kind", "Shared");
        fill(disk, "fsType", "ext4");
        fill(disk, "readOnly", false);
    }
    if let Some(io) = source.get_mut("scaleIO").filter(|p| p.is_object()) {
        fill_zero(io, "storageMode", "ThinProvisioned");
        fill_zero(io, "fsType", "xfs");
    }
}

fn volume(volume: &mut Value) {
    let empty = volume.as_object().is_some_and(|map| map.keys().all(|key| key == "name"));
    if empty {
        fill(volume, "emptyDir", json!({}));
        return;
    }
    volume_source(volume);
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(kind).filter(|s| s.is_object()) {
            fill(source, "defaultMode", 420);
        }
    }
    if let Some(downward) = volume.get_mut("downwardAPI") {
        items_mut(downward, "items").for_each(field_ref);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in items_mut(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken").filter(|t| t.is_object()) {
                fill(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = source.get_mut("downwardAPI") {
                items_mut(downward, "items").for_each(field_ref);
            }
        }
    }
    if let Some(spec) = volume.pointer_mut("/ephemeral/volumeClaimTemplate/spec") {
        fill(spec, "volumeMode", "Filesystem");
    }
    if let Some(image) = volume.get_mut("image").filter(|i| i.is_object()) {
        let policy = pull_policy(text(image, "reference"));
        fill_zero(image, "pullPolicy", policy);
    }
}
