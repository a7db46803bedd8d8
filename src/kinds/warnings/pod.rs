//! Warnings about pods and templates of pods.

use super::*;

const ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];
const VOLUMES: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];
const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";

/// `prefix` is the template's field with a dot, or empty for a pod.
pub(super) fn warnings(pod: &Value, prefix: &str) -> Vec<String> {
    let mut out = Vec::new();
    let spec = at(pod, "spec");
    let field = format!("{prefix}spec");
    placement(spec, &field, &mut out);
    let annotations = at(pod, "metadata.annotations");
    let annotated = |key: &str| annotations.get(key).is_some();
    let about = |key: &str, why: &str| format!("{prefix}metadata.annotations[{key}]: {why}");
    out.extend(
        ANNOTATIONS.iter().filter(|(key, _)| annotated(key)).map(|(key, why)| about(key, why)),
    );
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        for (plugin, since) in VOLUMES.iter().filter(|(plugin, _)| has(volume, plugin)) {
            let plugin = if *plugin == "storageos" { "storageOS" } else { plugin };
            out.push(format!("{field}.volumes[{index}].{plugin}: {since}"));
        }
    }
    doubled(spec, "hostAliases", "ip", &field, &mut out);
    doubled(spec, "imagePullSecrets", "name", &field, &mut out);
    for (index, secret) in items(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            out.push(format!("{field}.imagePullSecrets[{index}].name: invalid empty name \"\""));
        }
    }
    for name in ["memory", "ephemeral-storage"] {
        out.extend(fraction(at(spec, "overhead"), name, &format!("{field}.overhead")));
    }
    let pod_seccomp = "seccomp.security.alpha.kubernetes.io/pod";
    if annotated(pod_seccomp) && !has(spec, "securityContext.seccompProfile") {
        out.push(about(pod_seccomp, SECCOMP));
    }
    let containers = containers(spec, &field);
    for (container, path) in &containers {
        let name = text(container, "name");
        let key = format!("container.seccomp.security.alpha.kubernetes.io/{name}");
        if annotated(&key) && !has(container, "securityContext.seccompProfile") {
            out.push(about(&key, SECCOMP));
        }
        let key = format!("container.apparmor.security.beta.kubernetes.io/{name}");
        let profiled = has(spec, "securityContext.appArmorProfile")
            || has(container, "securityContext.appArmorProfile");
        if annotated(&key) && !profiled && !prefix.is_empty() {
            out.push(about(
                &key,
                "deprecated since v1.30; use the \"appArmorProfile\" field instead",
            ));
        }
        for name in ["memory", "ephemeral-storage"] {
            for half in ["limits", "requests"] {
                let amounts = at(at(container, "resources"), half);
                out.extend(fraction(amounts, name, &format!("{path}.resources.{half}")));
            }
        }
        variables(container, path, &mut out);
    }
    ports(&containers, &mut out);
    if at(spec, "terminationGracePeriodSeconds").as_i64().is_some_and(|seconds| seconds < 0) {
        out.push(format!("{field}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let affinity = at(at(spec, "affinity"), kind);
        let path = format!("{field}.affinity.{kind}");
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        for (index, term) in items(affinity, required).iter().enumerate() {
            if !at(term, "labelSelector").is_object() {
                out.push(format!("{path}.{required}[{index}].labelSelector: {NO_SELECTOR}"));
            }
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for (index, term) in items(affinity, preferred).iter().enumerate() {
            if !at(term, "podAffinityTerm.labelSelector").is_object() {
                out.push(format!(
                    "{path}.{preferred}[{index}].podAffinityTerm.labelSelector: {NO_SELECTOR}"
                ));
            }
        }
    }
    out
}

/// All containers of a pod with their fields.
fn containers<'a>(spec: &'a Value, field: &str) -> Vec<(&'a Value, String)> {
    ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| {
            let named = items(spec, list).iter().enumerate();
            named.map(move |(index, one)| (one, format!("{field}.{list}[{index}]")))
        })
        .collect()
}

/// Labels of nodes that pods are placed by.
fn placement(spec: &Value, field: &str, out: &mut Vec<String>) {
    for (key, _) in at(spec, "nodeSelector").as_object().into_iter().flatten() {
        if let Some(why) = old_node_label(key) {
            out.push(format!("{field}.nodeSelector[{key}]: {why}"));
        }
    }
    let mut term = |term: &Value, path: String| {
        for (index, expression) in items(term, "matchExpressions").iter().enumerate() {
            let key = text(expression, "key");
            if let Some(why) = old_node_label(key) {
                out.push(format!("{path}.matchExpressions[{index}].key: {key} is {why}"));
            }
        }
    };
    let affinity = at(spec, "affinity.nodeAffinity");
    let path = format!("{field}.affinity.nodeAffinity");
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    for (index, one) in items(at(affinity, required), "nodeSelectorTerms").iter().enumerate() {
        term(one, format!("{path}.{required}.nodeSelectorTerms[{index}]"));
    }
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (index, one) in items(affinity, preferred).iter().enumerate() {
        term(at(one, "preference"), format!("{path}.{preferred}[{index}].preference"));
    }
    for (index, constraint) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = format!("{field}.topologySpreadConstraints[{index}]");
        let key = text(constraint, "topologyKey");
        if let Some(why) = old_node_label(key) {
            out.push(format!("{path}.topologyKey: {key} is {why}"));
        }
        if !at(constraint, "labelSelector").is_object() {
            out.push(format!("{path}.labelSelector: {NO_SELECTOR}"));
        }
    }
}

fn doubled(spec: &Value, list: &str, key: &str, field: &str, out: &mut Vec<String>) {
    let mut seen = Vec::new();
    for (index, item) in items(spec, list).iter().enumerate() {
        let word = text(item, key);
        if seen.contains(&word) {
            out.push(format!("{field}.{list}[{index}].{key}: duplicate {key} {word:?}"));
        } else {
            seen.push(word);
        }
    }
}

/// A variable set twice is fine only if the second value holds the first.
fn variables(container: &Value, field: &str, out: &mut Vec<String>) {
    let mut seen = Vec::new();
    for (index, variable) in items(container, "env").iter().enumerate() {
        let name = text(variable, "name");
        if !seen.contains(&name) {
            seen.push(name);
            continue;
        }
        let (value, reference) = (text(variable, "value"), format!("$({name})"));
        if has(variable, "valueFrom") || value == reference || !value.contains(&reference) {
            out.push(format!("{field}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
    }
}

fn ports(containers: &[(&Value, String)], out: &mut Vec<String>) {
    let mut seen: HashMap<(i64, &str), Vec<(&Value, String)>> = HashMap::new();
    for (container, path) in containers {
        for (index, port) in items(container, "ports").iter().enumerate() {
            let field = format!("{path}.ports[{index}]");
            let number = |port: &Value, key: &str| at(port, key).as_i64().unwrap_or(0);
            let (ip, host) = (text(port, "hostIP"), number(port, "hostPort"));
            let protocol = text(port, "protocol");
            if !ip.is_empty() && host == 0 {
                out.push(format!(
                    "{field}: hostIP set without hostPort: {{Name:{} HostPort:{host} ContainerPort:{} Protocol:{protocol} HostIP:{ip}}}",
                    text(port, "name"),
                    number(port, "containerPort")
                ));
            }
            let others = seen.entry((number(port, "containerPort"), protocol)).or_default();
            for (other, other_field) in others.iter() {
                let (other_ip, other_host) = (text(other, "hostIP"), number(other, "hostPort"));
                let what = if ip == other_ip && host == other_host {
                    "duplicate"
                } else if host == 0 || other_host == 0 {
                    "overlapping"
                } else if host == other_host && ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                out.push(format!("{field}: {what} port definition with {other_field}"));
            }
            others.push((port, field));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_and_variables_that_stand_twice_are_told() {
        let pod = json!({"spec": {"containers": [{"name": "c",
            "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}, {"name": "A", "value": "3"}],
            "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"},
                {"containerPort": 80, "protocol": "TCP", "hostPort": 8080}],
        }]}});
        assert_eq!(
            warnings(&pod, ""),
            [
                "spec.containers[0].env[2]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[0].ports[2]: overlapping port definition with spec.containers[0].ports[0]",
                "spec.containers[0].ports[2]: overlapping port definition with spec.containers[0].ports[1]",
            ]
        );
    }
}
