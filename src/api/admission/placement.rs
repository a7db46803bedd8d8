//! What namespaces and nodes have to say about where pods run: PodNodeSelector,
//! PodTolerationRestriction, ExtendedResourceToleration, LimitPodHardAntiAffinityTopology,
//! PodTopologyLabels.

use std::collections::{BTreeMap, BTreeSet};

use kinds::meta::name::is_extended_resource;
use serde_json::{Map, Value, json};

use super::settings::Settings;
use super::{Attributes, Operation};
use crate::cache::prefix::{NAMESPACES, NODES};
use crate::error::Result;
use crate::registry::{Registry, metadata_mut};

const SELECTOR: &str = "scheduler.alpha.kubernetes.io/node-selector";
const DEFAULT_TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const ALLOWED_TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";
const CLUSTER_DEFAULT: &str = "clusterDefaultNodeSelector";
const HOSTNAME: &str = "kubernetes.io/hostname";
/// The labels of a node that its pods get.
const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

type Labels = BTreeMap<String, String>;

/// What the configuration says where namespaces say nothing.
#[derive(Debug, Default)]
pub struct Defaults {
    /// By namespace, and the cluster's default.
    selectors: BTreeMap<String, Labels>,
    tolerations: Vec<Value>,
    allowed_tolerations: Vec<Value>,
}

impl Defaults {
    /// # Errors
    /// What is wrong with the configuration.
    pub fn read(settings: &Settings) -> std::result::Result<Self, String> {
        let mut selectors = BTreeMap::new();
        let configured = settings.of("PodNodeSelector");
        let configured = configured.and_then(|all| all["podNodeSelectorPluginConfig"].as_object());
        for (namespace, selector) in configured.into_iter().flatten() {
            let text = selector.as_str().unwrap_or_default();
            let labels = labels(text).ok_or(format!("{namespace}: no node selector: {text:?}"))?;
            selectors.insert(namespace.clone(), labels);
        }
        let restriction = settings.of("PodTolerationRestriction");
        let list = |field: &str| {
            restriction.and_then(|all| all[field].as_array()).cloned().unwrap_or_default()
        };
        let (tolerations, allowed_tolerations) = (list("default"), list("whitelist"));
        Ok(Self { selectors, tolerations, allowed_tolerations })
    }
}

/// `a=b,c=d` as a map.
fn labels(text: &str) -> Option<Labels> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        let (key, value) = (key.trim(), value.trim_start_matches('=').trim());
        Some((key.to_string(), value.to_string()))
    };
    pairs.map(pair).collect()
}

fn is_new_pod(request: &Attributes<'_>) -> bool {
    request.operation == Operation::Create && request.is("", "pods")
}

fn annotation(registry: &Registry, namespace: &str, key: &str) -> Option<String> {
    let object = registry.cache.get(NAMESPACES, &format!("{NAMESPACES}{namespace}"))?.value();
    object["metadata"]["annotations"][key].as_str().map(str::to_string)
}

fn own_selector(pod: &Value) -> Labels {
    let own = pod["spec"]["nodeSelector"].as_object().into_iter().flatten();
    own.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_string())).collect()
}

/// PodNodeSelector: the selector of the namespace, or of the cluster.
fn namespace_selector(registry: &Registry, request: &Attributes<'_>) -> Result<Labels> {
    match annotation(registry, request.namespace, SELECTOR) {
        Some(text) => labels(&text).ok_or_else(|| {
            request.forbidden(format!("couldn't parse the selector string {text:?}"))
        }),
        None => {
            let defaults = &registry.admission.configured.placement;
            Ok(defaults.selectors.get(CLUSTER_DEFAULT).cloned().unwrap_or_default())
        }
    }
}

/// # Errors
/// 403 for a pod that wants something else than its namespace.
pub fn merge_selector(
    registry: &Registry,
    request: &Attributes<'_>,
    pod: &mut Value,
) -> Result<()> {
    if !is_new_pod(request) {
        return Ok(());
    }
    let wanted = namespace_selector(registry, request)?;
    conflict(request, &wanted, &own_selector(pod))?;
    for (key, value) in wanted {
        pod["spec"]["nodeSelector"][key] = value.into();
    }
    Ok(())
}

fn conflict(request: &Attributes<'_>, wanted: &Labels, own: &Labels) -> Result<()> {
    let differs = |(key, value): (&String, &String)| own.get(key).is_some_and(|own| own != value);
    if wanted.iter().any(differs) {
        let why = "pod node label selector conflicts with its namespace node label selector";
        return Err(request.forbidden(why));
    }
    Ok(())
}

/// # Errors
/// 403 for labels that are not among those of the namespace's configuration.
pub fn check_selector(registry: &Registry, request: &Attributes<'_>, pod: &Value) -> Result<()> {
    if !is_new_pod(request) {
        return Ok(());
    }
    let own = own_selector(pod);
    conflict(request, &namespace_selector(registry, request)?, &own)?;
    let configured = &registry.admission.configured.placement.selectors;
    let Some(allowed) = configured.get(request.namespace).filter(|all| !all.is_empty()) else {
        return Ok(());
    };
    if own.iter().all(|(key, value)| allowed.get(key) == Some(value)) {
        return Ok(());
    }
    let why = "pod node label selector labels conflict with its namespace whitelist";
    Err(request.forbidden(why))
}

/// A namespace's list of tolerations, or the configuration's.
fn tolerations(
    registry: &Registry,
    request: &Attributes<'_>,
    key: &str,
    default: &[Value],
) -> Result<Vec<Value>> {
    let Some(text) = annotation(registry, request.namespace, key) else {
        return Ok(default.to_vec());
    };
    if text.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&text).map_err(|err| request.forbidden(err.to_string()))
}

fn own_tolerations(pod: &Value) -> Vec<Value> {
    pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default()
}

/// Whether everything that `narrow` tolerates `wide` tolerates as well.
fn covers(wide: &Value, narrow: &Value) -> bool {
    let text = |toleration: &Value, field: &str| {
        toleration[field].as_str().unwrap_or_default().to_string()
    };
    let same_or_open = |field: &str| {
        let wide = text(wide, field);
        wide.is_empty() || wide == text(narrow, field)
    };
    if !same_or_open("key") || !same_or_open("effect") {
        return false;
    }
    let exists = |toleration: &Value| text(toleration, "operator") == "Exists";
    let longer = match (wide["tolerationSeconds"].as_i64(), narrow["tolerationSeconds"].as_i64()) {
        (None, _) => true,
        (Some(wide), Some(narrow)) => wide >= narrow,
        (Some(_), None) => false,
    };
    longer && (exists(wide) || (!exists(narrow) && text(wide, "value") == text(narrow, "value")))
}

/// PodTolerationRestriction: the namespace's tolerations, and one for pods that have asked
/// for something.
///
/// # Errors
/// 403 for annotations that are no tolerations.
pub fn merge_tolerations(
    registry: &Registry,
    request: &Attributes<'_>,
    pod: &mut Value,
) -> Result<()> {
    if !is_new_pod(request) {
        return Ok(());
    }
    let defaults = &registry.admission.configured.placement.tolerations;
    let mut more = tolerations(registry, request, DEFAULT_TOLERATIONS, defaults)?;
    if asks_for_something(pod) {
        more.push(json!({
            "key": "node.kubernetes.io/memory-pressure", "operator": "Exists",
            "effect": "NoSchedule",
        }));
    }
    let mut all = own_tolerations(pod);
    for toleration in more {
        if !all.iter().any(|own| covers(own, &toleration)) {
            all.retain(|own| !covers(&toleration, own));
            all.push(toleration);
        }
    }
    if !all.is_empty() {
        pod["spec"]["tolerations"] = all.into();
    }
    Ok(())
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["initContainers", "containers"];
    lists.into_iter().flat_map(|list| pod["spec"][list].as_array()).flatten()
}

/// Whether a pod is of another class than BestEffort.
fn asks_for_something(pod: &Value) -> bool {
    let kinds = ["requests", "limits"];
    containers(pod).any(|container| {
        kinds.iter().any(|kind| {
            let resources = container["resources"][*kind].as_object();
            resources.is_some_and(|all| all.contains_key("cpu") || all.contains_key("memory"))
        })
    })
}

/// # Errors
/// 403 for a toleration that the namespace does not allow.
pub fn check_tolerations(registry: &Registry, request: &Attributes<'_>, pod: &Value) -> Result<()> {
    if !is_new_pod(request) {
        return Ok(());
    }
    let defaults = &registry.admission.configured.placement.allowed_tolerations;
    let allowed = tolerations(registry, request, ALLOWED_TOLERATIONS, defaults)?;
    let is_allowed = |own: &Value| allowed.iter().any(|allowed| covers(allowed, own));
    if allowed.is_empty() || own_tolerations(pod).iter().all(is_allowed) {
        return Ok(());
    }
    Err(request.forbidden(
        "pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist",
    ))
}

/// ExtendedResourceToleration: who asks for a special resource may run where it is.
pub fn tolerate_resources(_: &Registry, request: &Attributes<'_>, pod: &mut Value) -> Result<()> {
    if !is_new_pod(request) {
        return Ok(());
    }
    let wanted: BTreeSet<String> = containers(pod)
        .filter_map(|container| container["resources"]["requests"].as_object())
        .flat_map(|requests| requests.keys())
        .filter(|name| is_extended_resource(name))
        .cloned()
        .collect();
    let mut all = own_tolerations(pod);
    for key in wanted {
        let toleration = json!({"key": key, "operator": "Exists", "effect": "NoSchedule"});
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    if !all.is_empty() {
        pod["spec"]["tolerations"] = all.into();
    }
    Ok(())
}

/// LimitPodHardAntiAffinityTopology: nobody keeps others off a whole zone.
///
/// # Errors
/// 403 for another topology than the host.
pub fn hard_anti_affinity(_: &Registry, request: &Attributes<'_>, pod: &Value) -> Result<()> {
    let writes = matches!(request.operation, Operation::Create | Operation::Update);
    if !writes || !request.is("", "pods") {
        return Ok(());
    }
    let field = "requiredDuringSchedulingIgnoredDuringExecution";
    let terms = pod["spec"]["affinity"]["podAntiAffinity"][field].as_array();
    for term in terms.into_iter().flatten() {
        let key = term["topologyKey"].as_str().unwrap_or_default();
        if key != HOSTNAME {
            return Err(request.forbidden(format!(
                "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOSTNAME} is allowed"
            )));
        }
    }
    Ok(())
}

/// PodTopologyLabels, for a pod that comes with its node and for a binding.
pub fn topology_labels(
    registry: &Registry,
    request: &Attributes<'_>,
    object: &mut Value,
) -> Result<()> {
    let node = if is_new_pod(request) {
        &object["spec"]["nodeName"]
    } else if is_binding(request) {
        &object["target"]["name"]
    } else {
        return Ok(());
    };
    let labels = of_node(registry, node.as_str().unwrap_or_default());
    add_labels(object, labels);
    Ok(())
}

fn is_binding(request: &Attributes<'_>) -> bool {
    let Attributes { resource, subresource, .. } = request;
    resource.group.is_empty() && (resource.plural.as_str(), *subresource) == ("pods", "binding")
}

fn of_node(registry: &Registry, node: &str) -> Map<String, Value> {
    let Some(node) = registry.cache.get(NODES, &format!("{NODES}{node}")) else {
        return Map::new();
    };
    let labels = node.labels().as_object().into_iter().flatten();
    let told = labels.filter(|(key, _)| TOPOLOGY.contains(&key.as_str()));
    told.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn add_labels(object: &mut Value, labels: Map<String, Value>) {
    if labels.is_empty() {
        return;
    }
    let own = metadata_mut(object).entry("labels").or_insert_with(|| json!({}));
    if let Some(own) = own.as_object_mut() {
        own.extend(labels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toleration_covers_narrower_ones() {
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| json!({"key": key, "operator": operator, "value": value, "effect": effect});
        let all = json!({"operator": "Exists"});
        let a_exists = toleration("a", "Exists", "", "NoSchedule");
        let a_is_b = toleration("a", "Equal", "b", "NoSchedule");
        assert!(covers(&all, &a_is_b));
        assert!(covers(&a_exists, &a_is_b));
        assert!(!covers(&a_is_b, &a_exists));
        assert!(!covers(&a_exists, &all));
        assert!(!covers(&a_exists, &toleration("a", "Exists", "", "NoExecute")));
        let brief = json!({"key": "a", "operator": "Exists", "tolerationSeconds": 5});
        let long = json!({"key": "a", "operator": "Exists", "tolerationSeconds": 9});
        assert!(covers(&long, &brief) && !covers(&brief, &long));
    }

    #[test]
    fn selectors_and_resources_are_read() {
        assert_eq!(labels("a=b, c=d").unwrap().len(), 2);
        assert_eq!(labels("").unwrap().len(), 0);
        assert!(labels("a").is_none());
        assert!(is_extended_resource("example.com/gpu"));
        assert!(!is_extended_resource("cpu") && !is_extended_resource("a.kubernetes.io/b"));
    }
}
