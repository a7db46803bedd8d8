//! What is allowed and yet worth a word: deprecated fields, and ones that do nothing.

use std::collections::HashMap;

use serde_json::Value;

use crate::meta::quantity::Quantity;
use crate::value::{at, has, items, text};

mod pod;

/// Warnings about a kind that is itself deprecated, on every request for it.
pub fn of_kind(group: &str, kind: &str) -> Option<&'static str> {
    match (group, kind) {
        ("", "Endpoints") => {
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        }
        ("", "ComponentStatus") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        _ => None,
    }
}

/// Warnings about an object that is created, or changed from `old`.
pub fn of(group: &str, kind: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
    let template = crate::core::pod_features::template_of(group, kind).unwrap_or_default();
    if !template.is_empty() {
        // A change of something else is no occasion.
        let same =
            old.is_some_and(|old| at(old, "metadata.generation") == at(new, "metadata.generation"));
        if same && has(new, "metadata.generation") {
            return Vec::new();
        }
        let mut out = pod::warnings(at(new, template), &format!("{template}."));
        if kind == "StatefulSet"
            && at(new, "spec.revisionHistoryLimit").as_i64().is_some_and(|n| n < 0)
        {
            out.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".into());
        }
        return out;
    }
    match (group, kind) {
        // Pods are changed by machines, and often.
        ("", "Pod") if old.is_none() => pod::warnings(new, ""),
        ("", "Service") => service(new),
        ("", "ServiceAccount") => annotated(
            new,
            "kubernetes.io/enforce-mountable-secrets",
            "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets",
        ),
        ("", "Secret") => secret(new),
        ("", "PersistentVolume") => volume(new),
        ("", "PersistentVolumeClaim") => claim(new),
        ("storage.k8s.io", "CSIDriver") => driver(new),
        ("node.k8s.io", "RuntimeClass") => {
            let labels = at(new, "scheduling.nodeSelector").as_object().into_iter().flatten();
            labels
                .filter_map(|(key, _)| old_node_label(key))
                .map(|why| format!("scheduling.nodeSelector: {why}"))
                .collect()
        }
        ("networking.k8s.io", "Ingress") if old.is_none() => {
            let deprecated = "kubernetes.io/ingress.class";
            let there = at(new, "metadata.annotations").get(deprecated).is_some();
            let text = format!(
                "annotation {deprecated:?} is deprecated, please use 'spec.ingressClassName' instead"
            );
            there.then_some(text).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// A word about an annotation, if it is there.
fn annotated(object: &Value, annotation: &str, why: &str) -> Vec<String> {
    let there = at(object, "metadata.annotations").get(annotation).is_some();
    there.then(|| format!("metadata.annotations[{annotation}]: {why}")).into_iter().collect()
}

/// Why a label of nodes should not be used any more.
fn old_node_label(label: &str) -> Option<&'static str> {
    Some(match label {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        "app.kubernetes.io/created-by" => "deprecated since v1.9",
        "scheduler.alpha.kubernetes.io/preferAvoidPods" => {
            "deprecated since v1.22; use Taints and Tolerations instead"
        }
        "node-role.kubernetes.io/master" => "use \"node-role.kubernetes.io/control-plane\" instead",
        _ => return None,
    })
}

/// A word about an amount of bytes that is not whole.
fn fraction(amounts: &Value, name: &str, field: &str) -> Option<String> {
    let shown = amounts.get(name)?.as_str()?;
    let amount: Quantity = shown.parse().ok()?;
    (!amount.is_whole()).then(|| {
        format!("{field}[{name}]: fractional byte value {shown:?} is invalid, must be an integer")
    })
}

fn service(service: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let hints = "service.kubernetes.io/topology-aware-hints";
    if at(service, "metadata.annotations").get(hints).is_some() {
        out.push(format!(
            "annotation {hints} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let spec = at(service, "spec");
    let kind = text(spec, "type");
    let headless = matches!(kind, "" | "ClusterIP") && text(spec, "clusterIP") == "None";
    let outside = !items(spec, "externalIPs").is_empty();
    let addresses = |list: &str, out: &mut Vec<String>| {
        for (index, address) in items(spec, list).iter().enumerate() {
            out.extend(odd_address(
                address.as_str().unwrap_or(""),
                &format!("spec.{list}[{index}]"),
            ));
        }
    };
    addresses("clusterIPs", &mut out);
    if headless {
        if has(spec, "loadBalancerIP") {
            out.push("spec.loadBalancerIP is ignored for headless services".into());
        }
        if outside {
            out.push("spec.externalIPs is ignored for headless services".into());
        }
        if !matches!(text(spec, "sessionAffinity"), "" | "None") {
            out.push("spec.SessionAffinity is ignored for headless services".into());
        }
    }
    addresses("externalIPs", &mut out);
    if outside && !headless && kind != "ExternalName" {
        out.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
                .into(),
        );
    }
    out.extend(odd_address(text(spec, "loadBalancerIP"), "spec.loadBalancerIP"));
    if kind == "ExternalName" && outside {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
    }
    if kind != "ExternalName" && has(spec, "externalName") {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if text(spec, "trafficDistribution") == "PreferClose" {
        out.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\""
                .into(),
        );
    }
    out
}

/// A word about an IPv6 address that is not written in the one way (RFC 5952).
fn odd_address(address: &str, field: &str) -> Option<String> {
    let parsed: std::net::Ipv6Addr = address.parse().ok()?;
    let canonical = parsed.to_string();
    (canonical != address).then(|| {
        format!("{field}: IPv6 address {address:?} should be in RFC 5952 canonical format ({canonical:?})")
    })
}

fn secret(secret: &Value) -> Vec<String> {
    if text(secret, "type") != "kubernetes.io/tls" {
        return Vec::new();
    }
    let data = at(secret, "data");
    // `-----BEGIN` in base64, wherever it begins in a group of three bytes.
    let is_pem = |key: &str| {
        let encoded = data.get(key).and_then(Value::as_str).unwrap_or("");
        ["LS0tLS1CRUdJTi", "0tLS0tQkVHSU4g", "tLS0tLUJFR0lOI"]
            .iter()
            .any(|mark| encoded.contains(mark))
    };
    [("tls.crt", "certificate"), ("tls.key", "key")]
        .iter()
        .find(|(key, _)| !is_pem(key))
        .map(|(_, what)| format!("tls: failed to find any PEM data in {what} input"))
        .into_iter()
        .collect()
}

const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const CLASS: &str = "deprecated since v1.8; use \"storageClassName\" attribute instead";

fn volume(volume: &Value) -> Vec<String> {
    let mut out = annotated(volume, OLD_CLASS, CLASS);
    out.extend(annotated(
        volume,
        "volume.beta.kubernetes.io/mount-options",
        "deprecated since v1.31; use \"mountOptions\" attribute instead",
    ));
    if text(volume, "spec.persistentVolumeReclaimPolicy") == "Recycle" {
        out.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".into());
    }
    for (plugin, since) in [
        ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
        ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ] {
        if has(at(volume, "spec"), plugin) {
            out.push(format!("spec.{plugin}: {since}"));
        }
    }
    out.extend(fraction(at(volume, "spec.capacity"), "storage", "spec.capacity"));
    out
}

fn claim(claim: &Value) -> Vec<String> {
    let mut out = annotated(claim, OLD_CLASS, CLASS);
    for half in ["requests", "limits"] {
        let field = format!("spec.resources.{half}");
        out.extend(fraction(at(claim, &field), "storage", &field));
    }
    out
}

fn driver(driver: &Value) -> Vec<String> {
    let spec = at(driver, "spec");
    let asks = !items(spec, "tokenRequests").is_empty();
    let unset = spec.get("serviceAccountTokenInSecrets").is_none_or(Value::is_null);
    (asks && unset)
        .then(|| "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes".into())
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_are_warned_of_what_is_ignored() {
        let warned = |spec: Value| of("", "Service", &json!({"spec": spec}), None);
        assert!(warned(json!({"type": "ClusterIP"})).is_empty());
        assert_eq!(warned(json!({"type": "ClusterIP", "externalName": "x"})).len(), 1);
        assert_eq!(
            warned(json!({"type": "ClusterIP", "clusterIP": "None", "externalIPs": ["1.2.3.4"]})),
            ["spec.externalIPs is ignored for headless services"]
        );
        assert_eq!(warned(json!({"type": "NodePort", "externalIPs": ["2001:DB8::1"]})).len(), 2);
    }

    #[test]
    fn only_a_new_template_is_an_occasion() {
        let deployment = |generation: i64| {
            json!({"metadata": {"generation": generation}, "spec": {"template": {"spec": {
                "nodeSelector": {"beta.kubernetes.io/os": "linux"}, "containers": []}}}})
        };
        let warned = |old: Option<i64>| {
            of("apps", "Deployment", &deployment(2), old.map(deployment).as_ref())
        };
        assert_eq!(
            warned(None),
            [
                "spec.template.spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead"
            ]
        );
        assert_eq!(warned(Some(1)).len(), 1);
        assert!(warned(Some(2)).is_empty());
    }
}
