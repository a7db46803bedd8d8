//! What every pod gets: a service account and its token, a priority, and tolerations for
//! nodes that are gone for a moment.

use serde_json::{Value, json};

use super::node::MIRROR;
use super::{Attributes, Operation, mountable};
use crate::error::Result;
use crate::registry::Registry;

const ACCOUNTS: &str = "/registry/serviceaccounts/";
const PRIORITY_CLASSES: &str = "/registry/priorityclasses/";
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds a pod stays on a node that is not ready or not reachable.
const TOLERATION_SECONDS: i64 = 300;
/// An hour and seven seconds: the kubelet's mark for the account's default token.
const TOKEN_SECONDS: i64 = 3_607;

fn is_new_pod(request: &Attributes<'_>) -> bool {
    request.operation == Operation::Create && request.is("", "pods")
}

/// The mirror of a static pod has neither account nor token.
fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"].get(MIRROR).is_some()
}

pub fn service_account(
    registry: &Registry,
    request: &Attributes<'_>,
    pod: &mut Value,
) -> Result<()> {
    if !is_new_pod(request) || is_mirror(pod) {
        return Ok(());
    }
    let spec = &mut pod["spec"];
    if spec["serviceAccountName"].as_str().unwrap_or("").is_empty() {
        spec["serviceAccountName"] = "default".into();
    }
    let name = spec["serviceAccountName"].as_str().unwrap_or("default").to_string();
    spec["serviceAccount"] = name.as_str().into();
    let key = format!("{ACCOUNTS}{}/{name}", request.namespace);
    let Some(account) = registry.cache.get(ACCOUNTS, &key) else { return Ok(()) };
    let account = account.value();
    if spec["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
        && let Some(secrets) = account["imagePullSecrets"].as_array().filter(|s| !s.is_empty())
    {
        spec["imagePullSecrets"] = json!(secrets);
    }
    let wanted = spec["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if wanted {
        mount_token(spec);
    }
    Ok(())
}

fn mount_token(spec: &mut Value) {
    let volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    let existing = volumes.iter().find_map(|volume| {
        let name = volume["name"].as_str()?;
        name.starts_with("kube-api-access-").then(|| name.to_string())
    });
    let name =
        existing.clone().unwrap_or_else(|| format!("kube-api-access-{}", base::rng::suffix(5)));
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mounts = &mut container["volumeMounts"];
            if !mounts.is_array() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().any(|mount| mount["mountPath"] == TOKEN_PATH) {
                continue;
            }
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH}));
            mounted = true;
        }
    }
    if !mounted || existing.is_some() {
        return;
    }
    let mut volumes = volumes;
    volumes.push(json!({"name": name, "projected": {"sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ], "defaultMode": 420}}));
    spec["volumes"] = volumes.into();
}

pub fn service_account_exists(
    registry: &Registry,
    request: &Attributes<'_>,
    pod: &Value,
) -> Result<()> {
    let is_debugging = request.operation == Operation::Update
        && request.resource.group.is_empty()
        && request.resource.plural == "pods"
        && request.subresource == "ephemeralcontainers";
    if !(is_new_pod(request) || is_debugging) || is_mirror(pod) {
        return Ok(());
    }
    let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or("");
    let key = format!("{ACCOUNTS}{}/{name}", request.namespace);
    let account = registry.cache.get(ACCOUNTS, &key);
    match account {
        Some(account) if mountable::is_enforced(&account.value()) => {
            mountable::check(request, &account.value(), pod)
        }
        None if !is_debugging => Err(request.forbidden(format!(
            "error looking up service account {}/{name}: serviceaccount {name:?} not found",
            request.namespace
        ))),
        _ => Ok(()),
    }
}

fn find_class(registry: &Registry, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
    let (classes, _) = registry.cache.list(PRIORITY_CLASSES, PRIORITY_CLASSES, None);
    classes
        .iter()
        .map(|class| class.value())
        .filter(|class| wanted(class))
        // Where several claim to be the default, the lowest is.
        .min_by_key(|class| class["value"].as_i64().unwrap_or(0))
}

pub fn priority(registry: &Registry, request: &Attributes<'_>, pod: &mut Value) -> Result<()> {
    if !is_new_pod(request) {
        return Ok(());
    }
    let spec = &mut pod["spec"];
    let name = spec["priorityClassName"].as_str().unwrap_or("").to_string();
    let class = if name.is_empty() {
        find_class(registry, |class| class["globalDefault"] == true)
    } else {
        let class = find_class(registry, |class| class["metadata"]["name"] == name.as_str());
        if class.is_none() {
            return Err(request.forbidden(format!("no PriorityClass with name {name} was found")));
        }
        class
    };
    let (value, policy) = match &class {
        Some(class) => {
            if name.is_empty() {
                spec["priorityClassName"] = class["metadata"]["name"].clone();
            }
            let policy = class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority");
            (class["value"].as_i64().unwrap_or(0), policy.to_string())
        }
        None => (0, "PreemptLowerPriority".into()),
    };
    if let Some(given) = spec["priority"].as_i64()
        && given != value
        && !is_mirror_spec(spec)
    {
        return Err(request.forbidden(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        )));
    }
    spec["priority"] = value.into();
    if let Some(given) = spec["preemptionPolicy"].as_str()
        && given != policy
    {
        return Err(request.forbidden(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        )));
    }
    spec["preemptionPolicy"] = policy.into();
    Ok(())
}

/// Static pods carry their priority along.
fn is_mirror_spec(spec: &Value) -> bool {
    spec["nodeName"].is_string() && spec["priorityClassName"].is_string()
}

/// Only one class may be the default of pods that name none.
pub fn priority_class(registry: &Registry, request: &Attributes<'_>, class: &Value) -> Result<()> {
    if !request.is("scheduling.k8s.io", "priorityclasses")
        || request.operation == Operation::Delete
        || class["globalDefault"] != true
    {
        return Ok(());
    }
    let other = find_class(registry, |other| {
        other["globalDefault"] == true && other["metadata"]["name"] != class["metadata"]["name"]
    });
    match other {
        Some(other) => Err(request.forbidden(format!(
            "PriorityClass {} is already marked as default. Only one default can exist",
            other["metadata"]["name"].as_str().unwrap_or("")
        ))),
        None => Ok(()),
    }
}

pub fn default_tolerations(_: &Registry, request: &Attributes<'_>, pod: &mut Value) -> Result<()> {
    if !is_new_pod(request) {
        return Ok(());
    }
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = tolerations.iter().any(|toleration| {
            let its_key = toleration["key"].as_str().unwrap_or("");
            let effect = toleration["effect"].as_str().unwrap_or("");
            (its_key == key || its_key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !covered {
            tolerations.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
    pod["spec"]["tolerations"] = tolerations.into();
    Ok(())
}

/// Lists of containers in a pod.
const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Whether AlwaysPullImages looks at a request: one that brings images.
fn brings_images(request: &Attributes<'_>, pod: &Value) -> bool {
    if request.resource.plural != "pods"
        || !request.resource.group.is_empty()
        || !matches!(request.operation, Operation::Create | Operation::Update)
        || !matches!(request.subresource, "" | "ephemeralcontainers")
    {
        return false;
    }
    let images = |pod: &Value| -> std::collections::BTreeSet<String> {
        let all = CONTAINERS.iter().flat_map(|list| pod["spec"][*list].as_array());
        all.flatten().filter_map(|c| c["image"].as_str().map(str::to_string)).collect()
    };
    request.old.is_none_or(|old| !images(pod).is_subset(&images(old)))
}

/// AlwaysPullImages: who may not pull an image does not get it from the node, either.
pub fn always_pull(_: &Registry, request: &Attributes<'_>, pod: &mut Value) -> Result<()> {
    if !brings_images(request, pod) {
        return Ok(());
    }
    for list in CONTAINERS {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            container["imagePullPolicy"] = "Always".into();
        }
    }
    let volumes = pod["spec"].get_mut("volumes").and_then(Value::as_array_mut);
    for volume in volumes.into_iter().flatten() {
        if volume["image"].is_object() {
            volume["image"]["pullPolicy"] = "Always".into();
        }
    }
    Ok(())
}

/// # Errors
/// 403 where somebody after us wants images not to be pulled.
pub fn always_pulled(_: &Registry, request: &Attributes<'_>, pod: &Value) -> Result<()> {
    if !brings_images(request, pod) {
        return Ok(());
    }
    for list in CONTAINERS {
        for (index, container) in pod["spec"][list].as_array().into_iter().flatten().enumerate() {
            let policy = container["imagePullPolicy"].as_str().unwrap_or_default();
            if policy != "Always" {
                return Err(request.forbidden(format!(
                    "spec.{list}[{index}].imagePullPolicy: Unsupported value: {policy:?}: supported values: \"Always\""
                )));
            }
        }
    }
    Ok(())
}
