//! What the subresources of a pod may change: ephemeral containers, resources, status.

use serde_json::Value;

use super::pod;
use crate::meta::FieldError;
use crate::rules::qos_class;
use crate::value::{at, has, items, text};

type Errors = Vec<FieldError>;

/// Fields that make no sense in a container that comes and goes.
const NOT_EPHEMERAL: [&str; 8] = [
    "ports",
    "resources",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "resizePolicy",
    "restartPolicy",
];

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Object(map) => map.values().any(is_set),
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}

/// Ephemeral containers are only ever added. `diff` shows how one was changed.
pub fn ephemeral_containers(
    new: &Value,
    old: &Value,
    diff: impl Fn(&Value, &Value) -> String,
) -> Errors {
    let field = "spec.ephemeralContainers";
    let mut out = Vec::new();
    let mut volumes = Vec::new();
    volumes.extend(items(new, "spec.volumes").iter().map(|volume| text(volume, "name")));
    let lasting: Vec<&str> = ["spec.containers", "spec.initContainers"]
        .iter()
        .flat_map(|list| items(new, list).iter().map(|container| text(container, "name")))
        .collect();
    let mut names = lasting.clone();
    for (at_, container) in items(new, field).iter().enumerate() {
        let path = format!("{field}[{at_}]");
        pod::container(container, &path, &volumes, false, &mut out);
        let own = text(container, "name");
        if names.contains(&own) && !own.is_empty() {
            out.push(FieldError::duplicate(format!("{path}.name"), own));
        }
        names.push(own);
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !lasting.contains(&target) {
            out.push(FieldError::not_found(format!("{path}.targetContainerName"), target));
        }
        let detail = "cannot be set for an Ephemeral Container";
        for key in NOT_EPHEMERAL.iter().filter(|key| is_set(at(container, key))) {
            out.push(FieldError::forbidden(format!("{path}.{key}"), detail));
        }
        for (mount_at, mount) in items(container, "volumeMounts").iter().enumerate() {
            for key in ["subPath", "subPathExpr"].iter().filter(|key| has(mount, key)) {
                let path = format!("{path}.volumeMounts[{mount_at}].{key}");
                out.push(FieldError::forbidden(path, detail));
            }
        }
    }
    for before in items(old, field) {
        let name = text(before, "name");
        let now = items(new, field).iter().find(|container| text(container, "name") == name);
        let quoted = Value::from(name);
        match now {
            None => out.push(FieldError::forbidden(
                field,
                &format!("existing ephemeral containers {quoted} may not be removed\n"),
            )),
            Some(now) if now != before => out.push(FieldError::forbidden(
                field,
                &format!(
                    "existing ephemeral containers {quoted} may not be changed\n{}",
                    diff(before, now)
                ),
            )),
            Some(_) => {}
        }
    }
    out
}

/// A resize changes cpu and memory only, takes none away, and keeps the quality of service.
pub fn resize(new: &Value, old: &Value) -> Errors {
    let mut out = pod::spec(at(new, "spec"), "spec");
    if qos_class(new) != qos_class(old) {
        out.push(FieldError::invalid(
            "spec",
            text(old, "status.qosClass"),
            "Pod QOS Class may not change as a result of resizing",
        ));
    }
    if has(old, "metadata.annotations")
        && at(old, "metadata.annotations").get("kubernetes.io/config.mirror").is_some()
    {
        out.push(FieldError::forbidden("", "static pods cannot be resized"));
    }
    let mut others = false;
    for list in ["containers", "initContainers"] {
        let path = format!("spec.{list}");
        if items(new, &path).len() != items(old, &path).len() {
            let detail = format!("{list} may not be added or removed on resize");
            out.push(FieldError::forbidden(&*path, &detail));
            continue;
        }
        for (index, (now, before)) in items(new, &path).iter().zip(items(old, &path)).enumerate() {
            if text(now, "name") != text(before, "name") {
                let detail = format!("{list} may not be renamed or reordered on resize");
                out.push(FieldError::forbidden(format!("{path}[{index}].name"), &detail));
                continue;
            }
            for (half, word) in [("requests", "requests"), ("limits", "limits")] {
                let part = |container: &Value| {
                    at(at(container, "resources"), half).as_object().cloned().unwrap_or_default()
                };
                let (now, before) = (part(now), part(before));
                let mine = |name: &str| matches!(name, "cpu" | "memory");
                if before.keys().any(|name| mine(name) && !now.contains_key(name)) {
                    out.push(FieldError::forbidden(
                        format!("{path}[{index}].resources.{half}"),
                        &format!("resource {word} cannot be removed"),
                    ));
                }
                others |= now
                    .keys()
                    .chain(before.keys())
                    .any(|name| !mine(name) && now.get(name) != before.get(name));
            }
        }
    }
    if others {
        out.push(FieldError::forbidden("spec", "only cpu and memory resources are mutable"));
    }
    out
}

/// Addresses in a status have to be ones.
pub fn status(new: &Value) -> Errors {
    let mut out = Vec::new();
    for list in ["podIPs", "hostIPs"] {
        let mut seen = Vec::new();
        for (index, entry) in items(new, &format!("status.{list}")).iter().enumerate() {
            let address = text(entry, "ip");
            if address.parse::<std::net::IpAddr>().is_err() {
                let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                out.push(FieldError::invalid(format!("status.{list}[{index}]"), address, detail));
            }
            if seen.contains(&address) {
                out.push(FieldError::duplicate(format!("status.{list}[{index}]"), entry.clone()));
            }
            seen.push(address);
        }
    }
    out
}

/// Gates are taken away one by one and never come back.
pub(super) fn gates(new: &Value, old: &Value) -> Errors {
    let before = items(old, "schedulingGates");
    let added = items(new, "schedulingGates").iter().enumerate();
    added
        .filter(|(_, gate)| !before.contains(gate))
        .map(|(index, gate)| {
            FieldError::forbidden(
                format!("spec.schedulingGates[{index}].name"),
                &format!(
                    "only deletion is allowed, but found new scheduling gate '{}'",
                    text(gate, "name")
                ),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn pod(resources: &Value) -> Value {
        json!({"spec": {"containers": [{"name": "c", "image": "i", "imagePullPolicy": "Always",
            "terminationMessagePolicy": "File", "resources": resources}],
            "dnsPolicy": "Default", "restartPolicy": "Always"}, "status": {"qosClass": "Burstable"}})
    }

    #[test]
    fn ephemeral_containers_are_added_and_never_changed() {
        let container = |name: &str, image: &str| {
            json!({"name": name, "image": image, "imagePullPolicy": "Always",
                "terminationMessagePolicy": "File"})
        };
        let mut old = pod(&json!({}));
        old["spec"]["ephemeralContainers"] = json!([container("e", "a")]);
        let with = |list: Value| {
            let mut new = old.clone();
            new["spec"]["ephemeralContainers"] = list;
            said(&ephemeral_containers(&new, &old, |_, _| "diff".into()))
        };
        assert!(with(json!([container("f", "b"), container("e", "a")])).is_empty());
        assert_eq!(with(json!([])).len(), 1);
        assert_eq!(with(json!([container("e", "b")])).len(), 1);
        assert_eq!(with(json!([container("e", "a"), container("c", "b")])).len(), 1);
    }

    #[test]
    fn a_resize_is_of_cpu_and_memory_only() {
        let old = pod(&json!({"requests": {"cpu": "1"}}));
        assert!(resize(&pod(&json!({"requests": {"cpu": "2"}})), &old).is_empty());
        let more = pod(&json!({"requests": {"cpu": "1", "ephemeral-storage": "1Gi"}}));
        assert_eq!(said(&resize(&more, &old)).len(), 1);
        assert_eq!(said(&resize(&pod(&json!({})), &old)).len(), 2);
        let mut other = old.clone();
        other["spec"]["containers"][0]["name"] = "d".into();
        let detail = "containers may not be renamed or reordered on resize";
        assert_eq!(
            said(&resize(&other, &old)),
            [format!("spec.containers[0].name: Forbidden: {detail}")]
        );
        let another = other["spec"]["containers"][0].clone();
        let mut more = old.clone();
        more["spec"]["containers"].as_array_mut().unwrap().push(another);
        let detail = "containers may not be added or removed on resize";
        assert_eq!(said(&resize(&more, &old)), [format!("spec.containers: Forbidden: {detail}")]);
    }
}
