//! Validation of pods and pod templates.
//!
//! Covers what a kubelet relies on: names, images, ports, variables, probes, resources, volumes
//! and their mounts, policies, tolerations. Windows and device claims are not looked into.

use serde_json::Value;

use super::checks::form;
use super::service::{IP, port_problems};
use super::{pod_restart, pod_whole};
use crate::meta::quantity::Quantity;
use crate::meta::{FieldError, name, object, selector};
use crate::value::{at, flag, has, items, number, text};

type Errors = Vec<FieldError>;

pub(super) fn create(pod: &Value) -> Errors {
    let mut out = spec(at(pod, "spec"), "spec");
    if !items(pod, "spec.ephemeralContainers").is_empty() {
        out.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
    out
}

/// What may change in a pod: images, a shorter deadline, more tolerations, fewer gates.
pub(super) fn update(new: &Value, old: &Value) -> Errors {
    let mut out = spec(at(new, "spec"), "spec");
    let mut expected = at(old, "spec").clone();
    let actual = at(new, "spec");
    for list in ["containers", "initContainers"] {
        for (index, container) in crate::value::items_mut(&mut expected, list).enumerate() {
            if let Some(image) = items(actual, list).get(index).and_then(|c| c.get("image")) {
                container["image"] = image.clone();
            }
        }
    }
    let deadline = |spec: &Value| at(spec, "activeDeadlineSeconds").as_i64();
    match (deadline(actual), deadline(&expected)) {
        (Some(new), Some(old)) if new > old => out.push(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            new,
            "must be less than or equal to previous value",
        )),
        (None, Some(old)) => out.push(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            Value::Null,
            &format!("must not update from a positive integer to nil value, was {old}"),
        )),
        _ => {}
    }
    let old_tolerations = items(&expected, "tolerations").to_vec();
    let kept = old_tolerations.iter().all(|t| items(actual, "tolerations").contains(t));
    let gates = super::pod_parts::gates(actual, &expected);
    out.extend(gates);
    for (key, allowed) in [
        ("activeDeadlineSeconds", true),
        ("tolerations", kept),
        // Said above, gate by gate.
        ("schedulingGates", true),
        // Only ever one second less than zero is taken back to one.
        ("terminationGracePeriodSeconds", number(&expected, "terminationGracePeriodSeconds") < 0),
    ] {
        if allowed && let Some(map) = expected.as_object_mut() {
            match actual.get(key) {
                Some(value) => map.insert(key.to_owned(), value.clone()),
                None => map.shift_remove(key),
            };
        }
    }
    // The node and ephemeral containers come by subresources, which do not ask here.
    if expected != *actual {
        let error = FieldError::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,\
             `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` \
             (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` \
             (allow it to be set to 1 if it was previously negative)",
        );
        out.push(error.comparing(&expected, actual));
    }
    out
}

/// Checks a PodTemplateSpec under `field`.
pub fn pod_template(template: &Value, field: &str) -> Errors {
    let mut out = Vec::new();
    if let Some(labels) = at(template, "metadata.labels").as_object() {
        out.extend(selector::validate_labels(labels, &format!("{field}.labels")));
    }
    let meta = at(template, "metadata");
    out.extend(object::annotations(meta, &format!("{field}.annotations")));
    let path = format!("{field}.spec");
    out.extend(spec(at(template, "spec"), &path));
    if !items(template, "spec.ephemeralContainers").is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        out.push(FieldError::forbidden(format!("{path}.ephemeralContainers"), detail));
    }
    out
}

fn one_of(parent: &Value, key: &str, field: &str, supported: &[&str], out: &mut Errors) {
    let word = text(parent, key);
    if word.is_empty() {
        out.push(FieldError::required(format!("{field}.{key}"), ""));
    } else if !supported.contains(&word) {
        out.push(FieldError::not_supported(format!("{field}.{key}"), word, supported));
    }
}

pub(super) fn spec(spec: &Value, field: &str) -> Errors {
    let mut out = Vec::new();
    let volumes = volumes(spec, field, &mut out);
    if items(spec, "containers").is_empty() {
        out.push(FieldError::required(format!("{field}.containers"), ""));
    }
    let mut names = Vec::new();
    for list in ["containers", "initContainers"] {
        for (index, one) in items(spec, list).iter().enumerate() {
            let path = format!("{field}.{list}[{index}]");
            container(one, &path, &volumes, flag(spec, "hostNetwork"), &mut out);
            let own = text(one, "name");
            if names.contains(&own) && !own.is_empty() {
                out.push(FieldError::duplicate(format!("{path}.name"), own));
            }
            names.push(own);
            pod_restart::validate(one, &path, &mut out);
        }
    }
    super::pod_sources::file_volumes(spec, field, &mut out);
    pod_whole::resources(spec, field, &mut out);
    host_ports(spec, field, &mut out);
    one_of(spec, "restartPolicy", field, &["Always", "OnFailure", "Never"], &mut out);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(spec, "dnsPolicy", field, &policies, &mut out);
    dns(spec, field, &mut out);
    if let Some(labels) = spec.get("nodeSelector").and_then(Value::as_object) {
        out.extend(selector::validate_labels(labels, &format!("{field}.nodeSelector")));
    }
    for (key, check) in [
        ("serviceAccountName", name::is_dns1123_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", name::is_dns1123_subdomain),
        ("hostname", name::is_dns1123_label),
        ("subdomain", name::is_dns1123_label),
        ("priorityClassName", name::is_dns1123_subdomain),
    ] {
        let word = text(spec, key);
        if !word.is_empty() {
            for problem in check(word) {
                out.push(FieldError::invalid(format!("{field}.{key}"), word, &problem));
            }
        }
    }
    let deadline = at(spec, "activeDeadlineSeconds").as_i64();
    if let Some(seconds) = deadline.filter(|s| !(1..=i64::from(i32::MAX)).contains(s)) {
        let detail = "must be between 1 and 2147483647, inclusive";
        out.push(FieldError::invalid(format!("{field}.activeDeadlineSeconds"), seconds, detail));
    }
    for (index, alias) in items(spec, "hostAliases").iter().enumerate() {
        if text(alias, "ip").parse::<std::net::IpAddr>().is_err() {
            let path = format!("{field}.hostAliases[{index}].ip");
            out.push(FieldError::invalid(path, text(alias, "ip"), IP));
        }
    }
    let context = at(spec, "securityContext");
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        let id = at(context, key).as_i64();
        if let Some(id) = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
            let detail = "must be between 0 and 2147483647, inclusive";
            out.push(FieldError::invalid(format!("{field}.securityContext.{key}"), id, detail));
        }
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        out.push(FieldError::invalid(
            format!("{field}.securityContext.shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    tolerations(spec, field, &mut out);
    spreading(spec, field, &mut out);
    super::pod_more::spec(spec, field, &mut out);
    super::pod_host::spec(spec, field, &mut out);
    out
}

fn dns(spec: &Value, field: &str, out: &mut Errors) {
    let config = at(spec, "dnsConfig");
    let servers = items(config, "nameservers");
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            let detail = "must provide `dnsConfig` when `dnsPolicy` is None";
            out.push(FieldError::required(format!("{field}.dnsConfig"), detail));
        } else if servers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            out.push(FieldError::required(format!("{field}.dnsConfig.nameservers"), detail));
        }
    }
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        let path = format!("{field}.dnsConfig.nameservers");
        out.push(FieldError::invalid(path, servers.to_vec(), detail));
    }
}

fn tolerations(spec: &Value, field: &str, out: &mut Errors) {
    for (index, one) in items(spec, "tolerations").iter().enumerate() {
        let path = format!("{field}.tolerations[{index}]");
        let (key, value) = (text(one, "key"), text(one, "value"));
        if !key.is_empty() {
            for problem in name::is_qualified(key) {
                out.push(FieldError::invalid(format!("{path}.key"), key, &problem));
            }
        } else if text(one, "operator") != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all \
                          values and all keys\"";
            let path = format!("{path}.operator");
            out.push(FieldError::invalid(path, text(one, "operator"), detail));
        }
        if has(one, "tolerationSeconds") && text(one, "effect") != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            let path = format!("{path}.effect");
            out.push(FieldError::invalid(path, text(one, "effect"), detail));
        }
        match text(one, "operator") {
            "" | "Equal" => {
                for problem in name::is_label_value(value) {
                    out.push(FieldError::invalid(format!("{path}.operator"), value, &problem));
                }
            }
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                out.push(FieldError::invalid(format!("{path}.operator"), value, detail));
            }
            "Exists" => {}
            other => out.push(FieldError::not_supported(
                format!("{path}.operator"),
                other,
                &["Equal", "Exists"],
            )),
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        let effect = text(one, "effect");
        if !effect.is_empty() && !effects.contains(&effect) {
            out.push(FieldError::not_supported(format!("{path}.effect"), effect, &effects));
        }
    }
}

fn spreading(spec: &Value, field: &str, out: &mut Errors) {
    for (index, one) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = format!("{field}.topologySpreadConstraints[{index}]");
        if number(one, "maxSkew") <= 0 {
            let detail = "must be greater than zero";
            out.push(FieldError::invalid(
                format!("{path}.maxSkew"),
                number(one, "maxSkew"),
                detail,
            ));
        }
        if text(one, "topologyKey").is_empty() {
            out.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        let supported = ["DoNotSchedule", "ScheduleAnyway"];
        if !supported.contains(&text(one, "whenUnsatisfiable")) {
            let shown = text(one, "whenUnsatisfiable");
            let path = format!("{path}.whenUnsatisfiable");
            out.push(FieldError::not_supported(path, shown, &supported));
        }
    }
}

fn host_ports(spec: &Value, field: &str, out: &mut Errors) {
    let mut seen = Vec::new();
    for (index, container) in items(spec, "containers").iter().enumerate() {
        for (at_, port) in items(container, "ports").iter().enumerate() {
            let host = number(port, "hostPort");
            if host == 0 {
                continue;
            }
            let key = format!("{}/{}/{host}", text(port, "protocol"), text(port, "hostIP"));
            if seen.contains(&key) {
                let path = format!("{field}.containers[{index}].ports[{at_}].hostPort");
                out.push(FieldError::duplicate(path, key.as_str()));
            }
            seen.push(key);
        }
    }
}

fn volumes<'a>(spec: &'a Value, field: &str, out: &mut Errors) -> Vec<&'a str> {
    let mut names = Vec::new();
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        let path = format!("{field}.volumes[{index}]");
        let own = text(volume, "name");
        if own.is_empty() {
            out.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            for problem in name::is_dns1123_label(own) {
                out.push(FieldError::invalid(format!("{path}.name"), own, &problem));
            }
            if names.contains(&own) {
                out.push(FieldError::duplicate(format!("{path}.name"), own));
            }
            names.push(own);
        }
        let sources: Vec<&String> = volume
            .as_object()
            .into_iter()
            .flat_map(|map| map.keys())
            .filter(|key| *key != "name")
            .collect();
        if sources.len() > 1 {
            let detail = "may not specify more than 1 volume type";
            for source in &sources[1..] {
                out.push(FieldError::forbidden(format!("{path}.{source}"), detail));
            }
        }
        for (source, key) in [
            ("secret", "secretName"),
            ("configMap", "name"),
            ("persistentVolumeClaim", "claimName"),
            ("hostPath", "path"),
            ("nfs", "server"),
            ("nfs", "path"),
        ] {
            if has(volume, source) && text(at(volume, source), key).is_empty() {
                out.push(FieldError::required(format!("{path}.{source}.{key}"), ""));
            }
        }
        let kinds = [
            "",
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ];
        if has(volume, "hostPath") && !kinds.contains(&text(volume, "hostPath.type")) {
            let shown = text(volume, "hostPath.type");
            let path = format!("{path}.hostPath.type");
            out.push(FieldError::not_supported(path, shown, &kinds));
        }
        for source in ["secret", "configMap", "downwardAPI", "projected"] {
            let mode = at(at(volume, source), "defaultMode").as_i64();
            if let Some(mode) = mode.filter(|m| !(0..=0o777).contains(m)) {
                let detail = "must be a number between 0 and 0777 (octal), both inclusive";
                let path = format!("{path}.{source}.defaultMode");
                out.push(FieldError::invalid(path, mode, detail));
            }
        }
    }
    names
}

pub(super) fn container(
    one: &Value,
    field: &str,
    volumes: &[&str],
    host_network: bool,
    out: &mut Errors,
) {
    let own = text(one, "name");
    if own.is_empty() {
        out.push(FieldError::required(format!("{field}.name"), ""));
    } else {
        for problem in name::is_dns1123_label(own) {
            out.push(FieldError::invalid(format!("{field}.name"), own, &problem));
        }
    }
    let image = text(one, "image");
    if image.is_empty() {
        out.push(FieldError::required(format!("{field}.image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        out.push(FieldError::invalid(format!("{field}.image"), image, detail));
    }
    let kept = ["File", "FallbackToLogsOnError"];
    one_of(one, "terminationMessagePolicy", field, &kept, out);
    ports(one, field, host_network, out);
    variables(one, field, out);
    mounts(one, field, volumes, out);
    one_of(one, "imagePullPolicy", field, &["Always", "IfNotPresent", "Never"], out);
    for (key, alone) in [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)]
    {
        if has(one, key) {
            probe(at(one, key), &format!("{field}.{key}"), alone, out);
        }
    }
    resources(at(one, "resources"), &format!("{field}.resources"), out);
}

fn ports(container: &Value, field: &str, host_network: bool, out: &mut Errors) {
    let mut names = Vec::new();
    for (index, port) in items(container, "ports").iter().enumerate() {
        let path = format!("{field}.ports[{index}]");
        let own = text(port, "name");
        if !own.is_empty() {
            for problem in name::is_port_name(own) {
                out.push(FieldError::invalid(format!("{path}.name"), own, &problem));
            }
            if names.contains(&own) {
                out.push(FieldError::duplicate(format!("{path}.name"), own));
            }
            names.push(own);
        }
        let (inner, host) = (number(port, "containerPort"), number(port, "hostPort"));
        if inner == 0 {
            out.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else {
            for problem in name::is_port_number(inner) {
                out.push(FieldError::invalid(format!("{path}.containerPort"), inner, &problem));
            }
        }
        if host != 0 {
            for problem in name::is_port_number(host) {
                out.push(FieldError::invalid(format!("{path}.hostPort"), host, &problem));
            }
            if host_network && host != inner {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                out.push(FieldError::invalid(format!("{path}.hostPort"), host, detail));
            }
        }
        one_of(port, "protocol", &path, &["SCTP", "TCP", "UDP"], out);
    }
}

fn variables(container: &Value, field: &str, out: &mut Errors) {
    for (index, variable) in items(container, "env").iter().enumerate() {
        let path = format!("{field}.env[{index}]");
        let own = text(variable, "name");
        if own.is_empty() {
            out.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            form(own, &format!("{path}.name"), name::is_variable, out);
        }
        let source = at(variable, "valueFrom");
        if source.is_null() {
            continue;
        }
        let path = format!("{path}.valueFrom");
        match source.as_object().map_or(0, serde_json::Map::len) {
            0 => out.push(FieldError::invalid(
                &path,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, \
                 `secretKeyRef` or `fileKeyRef`",
            )),
            1 => {}
            _ => {
                let detail = "may not have more than one field specified at a time";
                out.push(FieldError::invalid(&path, "", detail));
            }
        }
        if has(source, "fileKeyRef") {
            let file = at(source, "fileKeyRef");
            super::pod_sources::file_key(file, &format!("{path}.fileKeyRef"), out);
        }
        if !text(variable, "value").is_empty() {
            let detail = "may not be specified when `value` is not empty";
            out.push(FieldError::invalid(&path, "", detail));
        }
    }
}

fn mounts(container: &Value, field: &str, volumes: &[&str], out: &mut Errors) {
    let mut paths = Vec::new();
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        let path = format!("{field}.volumeMounts[{index}]");
        let (own, target) = (text(mount, "name"), text(mount, "mountPath"));
        if own.is_empty() {
            out.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains(&own) {
            out.push(FieldError::not_found(format!("{path}.name"), own));
        }
        if target.is_empty() {
            out.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if paths.contains(&target) {
            out.push(FieldError::invalid(format!("{path}.mountPath"), target, "must be unique"));
        }
        paths.push(target);
        let sub = text(mount, "subPath");
        if sub.split('/').any(|part| part == "..") {
            let path = format!("{field}.volumeMounts.subPath");
            out.push(FieldError::invalid(path, sub, "must not contain '..'"));
        }
        let expression = text(mount, "subPathExpr");
        if !sub.is_empty() && !expression.is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            out.push(FieldError::invalid(format!("{path}.subPathExpr"), expression, detail));
        }
    }
}

fn probe(probe: &Value, field: &str, once: bool, out: &mut Errors) {
    let handlers: Vec<&str> = ["exec", "httpGet", "tcpSocket", "grpc"]
        .into_iter()
        .filter(|handler| has(probe, handler))
        .collect();
    match handlers.as_slice() {
        [] => out.push(FieldError::required(field, "must specify a handler type")),
        [_] => {}
        [_, more @ ..] => {
            let detail = "may not specify more than 1 handler type";
            for handler in more {
                out.push(FieldError::forbidden(format!("{field}.{handler}"), detail));
            }
        }
    }
    if has(probe, "exec") && items(probe, "exec.command").is_empty() {
        out.push(FieldError::required(format!("{field}.exec.command"), ""));
    }
    for handler in ["httpGet", "tcpSocket", "grpc"] {
        if has(probe, handler) {
            let port = at(probe, handler)["port"].clone();
            for problem in port_problems(&port) {
                let path = format!("{field}.{handler}.port");
                out.push(FieldError::invalid(path, port.clone(), &problem));
            }
        }
    }
    if has(probe, "httpGet") {
        let path = format!("{field}.httpGet");
        one_of(at(probe, "httpGet"), "scheme", &path, &["HTTP", "HTTPS"], out);
    }
    for key in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        if number(probe, key) < 0 {
            let detail = "must be greater than or equal to 0";
            out.push(FieldError::invalid(format!("{field}.{key}"), number(probe, key), detail));
        }
    }
    let grace = at(probe, "terminationGracePeriodSeconds").as_i64();
    if let Some(seconds) = grace.filter(|s| *s <= 0) {
        let path = format!("{field}.terminationGracePeriodSeconds");
        out.push(FieldError::invalid(path, seconds, "must be greater than 0"));
    }
    let successes = number(probe, "successThreshold");
    if once && successes != 1 {
        let path = format!("{field}.successThreshold");
        out.push(FieldError::invalid(path, successes, "must be 1"));
    }
}

pub(super) fn resources(resources: &Value, field: &str, out: &mut Errors) {
    let parse = |value: &Value| value.as_str().and_then(|t| t.parse::<Quantity>().ok());
    for list in ["limits", "requests"] {
        for (key, value) in at(resources, list).as_object().into_iter().flatten() {
            let path = format!("{field}.{list}[{key}]");
            let standard = matches!(key.as_str(), "cpu" | "memory" | "ephemeral-storage")
                || key.starts_with("hugepages-");
            if !standard && !key.contains('/') {
                let detail = "must be a standard resource type or fully qualified";
                out.push(FieldError::invalid(&path, key.as_str(), detail));
                let detail = "must be a standard resource for containers";
                out.push(FieldError::invalid(&path, key.as_str(), detail));
            }
            let Some(quantity) = parse(value) else { continue };
            if quantity.is_negative() {
                let detail = "must be greater than or equal to 0";
                out.push(FieldError::invalid(&path, quantity.to_string(), detail));
            }
            if !standard && key.contains('/') && quantity.millis() % 1000 != 0 {
                out.push(FieldError::invalid(&path, quantity.to_string(), "must be an integer"));
            }
        }
    }
    for (key, request) in at(resources, "requests").as_object().into_iter().flatten() {
        let Some(limit) = at(resources, "limits").get(key).and_then(parse) else { continue };
        let Some(request) = parse(request) else { continue };
        let path = format!("{field}.requests");
        let overcommit = matches!(key.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if !overcommit && request != limit {
            let detail = format!("must be equal to {key} limit of {limit}");
            out.push(FieldError::invalid(path, request.to_string(), &detail));
        } else if request > limit {
            let detail = format!("must be less than or equal to {key} limit of {limit}");
            out.push(FieldError::invalid(path, request.to_string(), &detail));
        }
    }
}
