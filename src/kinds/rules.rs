//! The rules of each kind in one table: defaults, validation, columns, selectable fields.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::apps::defaults as apps;
use crate::core::{defaults as core, devices, pod_defaults, service};
use crate::meta::object::NameRule;
use crate::meta::{FieldError, object};
use crate::policy::defaults as policy;
use crate::resources::Catalog;
use crate::table::{Table, table};
use crate::validate;
use crate::value::{at, fill, flag, has, items, items_mut, text};

/// Where the `scale` subresource finds its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// JSON pointers.
    pub spec_replicas: &'static str,
    pub status_replicas: &'static str,
    /// A label selector, or a plain map of labels for replication controllers.
    pub selector: &'static str,
}

/// Everything the API server asks about a kind. Kinds nothing is known about (custom ones) have
/// rules, too: metadata is checked and `metadata.name` and `metadata.namespace` can be selected.
#[derive(Clone, Copy)]
pub struct Rules {
    /// Wants a normalised object and repeats safely.
    pub default: fn(&mut Value),
    /// The kind's own checks, without those of the metadata.
    pub validate_create: fn(&Value) -> Vec<FieldError>,
    /// None: an update is checked as a create.
    pub validate_update: Option<fn(&Value, &Value) -> Vec<FieldError>>,
    pub name: NameRule,
    pub namespaced: bool,
    /// What may stand in field selectors, with the object's values.
    pub selectable: fn(&Value) -> Vec<(&'static str, String)>,
    pub table: Table,
    /// What upstream's strategy does to a new object after admission. The metadata is complete.
    pub prepare_create: fn(&mut Value),
    /// What a write of the resource itself cannot change comes back from the old object.
    pub prepare_update: fn(&mut Value, &Value),
    /// The same for a write of `status`.
    pub prepare_status_update: fn(&mut Value, &Value),
    /// A change below one of these fields makes a new generation; empty: no generation is kept.
    pub generation_fields: &'static [&'static str],
    pub has_status: bool,
    pub scale: Option<Scale>,
    /// Whether PUT may create.
    pub create_on_update: bool,
    /// Whether an update without resourceVersion is allowed.
    pub unconditional_update: bool,
}

impl Rules {
    pub fn of(group: &str, kind: &str) -> Rules {
        // Every request asks, and many an object.
        static BUILT_IN: LazyLock<HashMap<&str, HashMap<&str, Rules>>> = LazyLock::new(|| {
            let mut all: HashMap<&str, HashMap<&str, Rules>> = HashMap::new();
            for it in Catalog::known().resources() {
                all.entry(&it.group)
                    .or_default()
                    .insert(&it.kind, Rules::find(&it.group, &it.kind));
            }
            all
        });
        let known = BUILT_IN.get(group).and_then(|kinds| kinds.get(kind));
        known.copied().unwrap_or_else(|| Self::find(group, kind))
    }

    fn find(group: &str, kind: &str) -> Rules {
        let resource = Catalog::known().by_kind(group, kind);
        let (validate_create, validate_update) = validate::of(group, kind);
        Rules {
            default: default_of(group, kind),
            validate_create,
            validate_update,
            name: name_rule(group, kind),
            namespaced: resource.is_none_or(|r| r.namespaced),
            selectable: selectable_of(group, kind),
            table: table(group, kind),
            prepare_create: prepare_of(group, kind),
            prepare_update: match resource {
                Some(_) if (group, kind) == ("", "Service") => |new, old| {
                    restore(new, old, "status");
                    service::drop_dependent(new, old);
                },
                Some(_) if (group, kind) == ("apps", "DaemonSet") => |new, old| {
                    restore(new, old, "status");
                    count_templates(new, old);
                },
                Some(_) if (group, kind) == ("", "PersistentVolumeClaim") => |new, old| {
                    restore(new, old, "status");
                    mirror_sources(crate::value::object(new, "spec"));
                },
                Some(r) if r.subresources.iter().any(|s| s.name == "status") => {
                    |new, old| restore(new, old, "status")
                }
                _ => |_, _| {},
            },
            prepare_status_update: match (group, kind) {
                ("apps", "Deployment") => |new, old| {
                    restore(new, old, "spec");
                    if let (Some(new), Some(old)) = (new.get_mut("metadata"), old.get("metadata")) {
                        restore(new, old, "labels");
                    }
                },
                ("", "Pod") => |new, old| {
                    restore(new, old, "spec");
                    first_address(new);
                },
                ("resource.k8s.io", "ResourceClaim") => |new, old| {
                    restore(new, old, "spec");
                    devices::forget_deallocated(new, old);
                },
                _ => |new, old| restore(new, old, "spec"),
            },
            generation_fields: generation_fields(group, kind),
            has_status: resource.is_some_and(|r| r.subresources.iter().any(|s| s.name == "status")),
            scale: scale_of(group, kind),
            create_on_update: create_on_update(group, kind),
            unconditional_update: !matches!(
                (group, kind),
                ("coordination.k8s.io", "Lease")
                    | ("certificates.k8s.io", "ClusterTrustBundle" | "PodCertificateRequest")
                    | ("apiextensions.k8s.io", "CustomResourceDefinition")
                    | ("apiregistration.k8s.io", "APIService")
                    | ("admissionregistration.k8s.io" | "flowcontrol.apiserver.k8s.io", _)
            ),
        }
    }

    /// All checks of a new object.
    pub fn check_create(&self, new: &Value) -> Vec<FieldError> {
        let mut out = object::validate(new, self.namespaced, self.name);
        out.extend((self.validate_create)(new));
        out
    }

    /// The checks of a changed object's metadata that are the same for all kinds.
    pub fn check_metadata_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut out = object::validate(new, self.namespaced, self.name);
        out.extend(object::validate_update(new, old));
        out
    }

    /// All checks of a changed object.
    pub fn check_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut out = object::validate(new, self.namespaced, self.name);
        out.extend(object::validate_update(new, old));
        out.extend(match self.validate_update {
            Some(check) => check(new, old),
            None => (self.validate_create)(new),
        });
        out
    }

    /// Whether a write of the resource itself makes a new generation.
    pub fn is_new_generation(&self, new: &Value, old: &Value) -> bool {
        let differs = |field: &&str| at(new, field) != at(old, field);
        let deleted =
            has(new, "metadata.deletionTimestamp") && !has(old, "metadata.deletionTimestamp");
        !self.generation_fields.is_empty()
            && (deleted || self.generation_fields.iter().any(differs))
    }
}

/// Fills in what upstream's defaulting fills in. Wants a normalised object and repeats safely.
pub fn default_of(group: &str, kind: &str) -> fn(&mut Value) {
    match (group, kind) {
        ("", "Pod") => pod_defaults::pod,
        ("", "PodTemplate") => core::pod_template,
        ("", "ReplicationController") => core::replication_controller,
        ("", "Service") => core::service,
        ("", "Endpoints") => core::endpoints,
        ("", "Namespace") => core::namespace,
        ("", "Secret") => core::secret,
        ("", "Node") => core::node,
        ("", "PersistentVolume") => core::persistent_volume,
        ("", "PersistentVolumeClaim") => core::persistent_volume_claim,
        ("", "LimitRange") => core::limit_range,
        ("discovery.k8s.io", "EndpointSlice") => core::endpoint_slice,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => core::flow_schema,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => core::priority_level,
        ("storage.k8s.io", "StorageClass") => core::storage_class,
        ("resource.k8s.io", "ResourceClaim") => core::resource_claim,
        ("resource.k8s.io", "ResourceClaimTemplate") => core::resource_claim_template,
        ("storage.k8s.io", "CSIDriver") => core::csi_driver,
        ("scheduling.k8s.io", "PriorityClass") => core::priority_class,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => core::crd,
        ("apiregistration.k8s.io", "APIService") => core::api_service,
        ("apps", "Deployment") => apps::deployment,
        ("apps", "ReplicaSet") => apps::replica_set,
        ("apps", "StatefulSet") => apps::stateful_set,
        ("apps", "DaemonSet") => apps::daemon_set,
        ("batch", "Job") => apps::job,
        ("batch", "CronJob") => apps::cron_job,
        ("autoscaling", "HorizontalPodAutoscaler") => apps::autoscaler,
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => policy::binding,
        ("certificates.k8s.io", "PodCertificateRequest") => policy::pod_certificate_request,
        ("networking.k8s.io", "IngressClass") => policy::ingress_class,
        ("networking.k8s.io", "NetworkPolicy") => policy::network_policy,
        ("admissionregistration.k8s.io", kind) => match kind {
            "MutatingWebhookConfiguration" => policy::mutating_webhooks,
            "ValidatingWebhookConfiguration" => policy::validating_webhooks,
            "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => policy::admission_policy,
            "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => {
                policy::admission_policy_binding
            }
            _ => nothing,
        },
        _ => nothing,
    }
}

fn nothing(_: &mut Value) {}

fn restore(new: &mut Value, old: &Value, key: &str) {
    if let Some(map) = new.as_object_mut() {
        match old.get(key) {
            Some(value) => {
                map.insert(key.to_owned(), value.clone());
            }
            None => {
                map.shift_remove(key);
            }
        }
    }
}

/// Whether what an object owns stays when the deletion does not say. Both kinds are older than
/// the garbage collector, and their clients expect that nobody else removes the pods.
pub fn orphans_by_default(group: &str, kind: &str) -> bool {
    matches!((group, kind), ("", "ReplicationController") | ("batch", "Job"))
}

/// Whether the answer to a deletion is what was removed, which differs between kinds.
pub fn answers_with_removed(group: &str, kind: &str) -> bool {
    let kinds: &[&str] = match group {
        "" => &[
            "PersistentVolume",
            "PersistentVolumeClaim",
            "Pod",
            "PodTemplate",
            "ResourceQuota",
            "Service",
            "ServiceAccount",
        ],
        "resource.k8s.io" => {
            &["DeviceClass", "ResourceClaim", "ResourceClaimTemplate", "ResourceSlice"]
        }
        "storage.k8s.io" => {
            &["CSIDriver", "CSINode", "StorageClass", "VolumeAttachment", "VolumeAttributesClass"]
        }
        _ => &[],
    };
    kinds.contains(&kind)
}

fn name_rule(group: &str, kind: &str) -> NameRule {
    match (group, kind) {
        ("", "Namespace") => NameRule::Label,
        // Since 1.34 services are named like any DNS label.
        ("", "Service") => NameRule::Label,
        ("rbac.authorization.k8s.io" | "apiregistration.k8s.io", _) => NameRule::PathSegment,
        // A bundle's name begins with its signer's.
        ("certificates.k8s.io", "ClusterTrustBundle") => NameRule::Own,
        _ => NameRule::Subdomain,
    }
}

fn create_on_update(group: &str, kind: &str) -> bool {
    matches!(
        (group, kind),
        ("", "Endpoints" | "Event" | "LimitRange")
            | ("events.k8s.io", "Event")
            | ("coordination.k8s.io", "Lease")
            | ("rbac.authorization.k8s.io", _)
    )
}

fn generation_fields(group: &str, kind: &str) -> &'static [&'static str] {
    match (group, kind) {
        ("", "Pod" | "ReplicationController") => &["spec"],
        ("", "PodTemplate") => &["template"],
        ("apps", "ControllerRevision") => &[],
        // Annotations of a deployment reach its replica sets.
        ("apps", "Deployment") => &["spec", "metadata.annotations"],
        ("apps" | "batch" | "policy" | "flowcontrol.apiserver.k8s.io", _) => &["spec"],
        ("networking.k8s.io", "Ingress" | "IngressClass" | "NetworkPolicy") => &["spec"],
        ("discovery.k8s.io", "EndpointSlice") => &["addressType", "endpoints", "ports"],
        ("apiextensions.k8s.io", "CustomResourceDefinition") => &["spec"],
        ("resource.k8s.io", "DeviceClass" | "ResourceSlice") => &["spec"],
        ("scheduling.k8s.io", "PriorityClass") => {
            &["value", "globalDefault", "description", "preemptionPolicy"]
        }
        ("admissionregistration.k8s.io", kind) if kind.ends_with("WebhookConfiguration") => {
            &["webhooks"]
        }
        ("admissionregistration.k8s.io", _) => &["spec"],
        _ => &[],
    }
}

fn scale_of(group: &str, kind: &str) -> Option<Scale> {
    let scale = |selector| {
        Some(Scale {
            spec_replicas: "/spec/replicas",
            status_replicas: "/status/replicas",
            selector,
        })
    };
    match (group, kind) {
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet") | ("", "ReplicationController") => {
            scale("/spec/selector")
        }
        _ => None,
    }
}

type Selectable = Vec<(&'static str, String)>;

fn named(object: &Value) -> Selectable {
    ["metadata.name", "metadata.namespace"]
        .into_iter()
        .map(|path| (path, text(object, path).to_owned()))
        .collect()
}

fn with(object: &Value, paths: &[&'static str]) -> Selectable {
    let mut out = named(object);
    for path in paths {
        let value = match at(object, path) {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        out.push((path, value));
    }
    out
}

fn selectable_of(group: &str, kind: &str) -> fn(&Value) -> Selectable {
    match (group, kind) {
        ("", "Pod") => |o| {
            let mut out = with(
                o,
                &[
                    "spec.nodeName",
                    "spec.restartPolicy",
                    "spec.schedulerName",
                    "spec.serviceAccountName",
                    "status.phase",
                    "status.nominatedNodeName",
                ],
            );
            out.push(("spec.hostNetwork", flag(o, "spec.hostNetwork").to_string()));
            let address = items(o, "status.podIPs").first().map_or("", |ip| text(ip, "ip"));
            let address = if address.is_empty() { text(o, "status.podIP") } else { address };
            out.push(("status.podIP", address.to_owned()));
            out
        },
        ("", "Node") => |o| {
            let mut out = named(o);
            out.push(("spec.unschedulable", flag(o, "spec.unschedulable").to_string()));
            out
        },
        ("", "Namespace") => |o| {
            let mut out = with(o, &["status.phase"]);
            out.push(("name", text(o, "metadata.name").to_owned()));
            out
        },
        ("", "Secret") => |o| with(o, &["type"]),
        ("", "Service") => |o| with(o, &["spec.clusterIP", "spec.type"]),
        ("", "PersistentVolume" | "PersistentVolumeClaim") => |o| {
            let mut out = named(o);
            out.push(("name", text(o, "metadata.name").to_owned()));
            out
        },
        ("", "ReplicationController") | ("apps", "ReplicaSet") => |o| {
            let mut out = named(o);
            let replicas = at(o, "status.replicas").as_i64().unwrap_or_default();
            out.push(("status.replicas", replicas.to_string()));
            out
        },
        ("batch", "Job") => |o| {
            let mut out = named(o);
            let done = at(o, "status.succeeded").as_i64().unwrap_or_default();
            out.push(("status.successful", done.to_string()));
            out
        },
        ("certificates.k8s.io", "CertificateSigningRequest" | "ClusterTrustBundle") => {
            |o| with(o, &["spec.signerName"])
        }
        ("certificates.k8s.io", "PodCertificateRequest") => {
            |o| with(o, &["spec.signerName", "spec.podName", "spec.nodeName"])
        }
        ("resource.k8s.io", "ResourceSlice") => |o| with(o, &["spec.nodeName", "spec.driver"]),
        ("networking.k8s.io", "IPAddress") => named,
        ("" | "events.k8s.io", "Event") => event_fields,
        _ => named,
    }
}

fn event_fields(event: &Value) -> Selectable {
    let mut out = with(
        event,
        &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "type",
        ],
    );
    let mut source = text(event, "source.component");
    if source.is_empty() {
        source = text(event, "reportingComponent");
    }
    out.push(("source", source.to_owned()));
    out
}

fn prepare_of(group: &str, kind: &str) -> fn(&mut Value) {
    match (group, kind) {
        ("", "Pod") => prepare_pod,
        ("", "Namespace") => |o| {
            o["status"] = json!({"phase": "Active"});
            let finalizers = &mut crate::value::object(o, "spec")["finalizers"];
            let kept = finalizers.as_array().cloned().unwrap_or_default();
            if !kept.contains(&json!("kubernetes")) {
                *finalizers = [kept, vec![json!("kubernetes")]].concat().into();
            }
        },
        ("", "Service") => |o| o["status"] = json!({"loadBalancer": {}}),
        ("", "Node" | "Event") => nothing,
        ("", "PersistentVolume" | "PersistentVolumeClaim") => |o| {
            o["status"] = json!({"phase": "Pending"});
            if text(o, "kind") == "PersistentVolumeClaim" {
                data_source(o);
            } else {
                let now = at(o, "metadata.creationTimestamp").clone();
                o["status"]["lastPhaseTransitionTime"] = now;
            }
        },
        ("networking.k8s.io", "Ingress") => |o| o["status"] = json!({"loadBalancer": {}}),
        ("apiregistration.k8s.io", "APIService") => |o| {
            let now = at(o, "metadata.creationTimestamp").clone();
            o["status"] = json!({});
            // What this server serves itself is there at once.
            if !at(o, "spec.service").is_object() {
                o["status"]["conditions"] = json!([{
                    "type": "Available", "status": "True", "lastTransitionTime": now,
                    "reason": "Local", "message": "Local APIServices are always available",
                }]);
            }
        },
        ("batch", "Job") => prepare_job,
        ("apps", "DaemonSet") => |o| {
            if let Some(map) = o.as_object_mut() {
                map.shift_remove("status");
            }
            set_template_generation(o, 1);
        },
        ("apiextensions.k8s.io", "CustomResourceDefinition") => |o| {
            let stored: Vec<Value> = items(o, "spec.versions")
                .iter()
                .filter(|v| flag(v, "storage"))
                .map(|v| v["name"].clone())
                .take(1)
                .collect();
            o["status"] = json!({
                "conditions": null,
                "acceptedNames": {"plural": "", "kind": ""},
                "storedVersions": stored
            });
        },
        ("authentication.k8s.io" | "authorization.k8s.io", _) => nothing,
        _ => |o| {
            // The caller normalises afterwards, which writes what an empty status looks like.
            if let Some(map) = o.as_object_mut() {
                map.shift_remove("status");
            }
        },
    }
}

fn template_generation(set: &Value) -> i64 {
    let annotation = at(set, "metadata.annotations").get(crate::apps::TEMPLATE_GENERATION);
    annotation.and_then(Value::as_str).and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn set_template_generation(set: &mut Value, count: i64) {
    let metadata = crate::value::object(set, "metadata");
    let annotations = crate::value::object(metadata, "annotations");
    annotations[crate::apps::TEMPLATE_GENERATION] = json!(count.to_string());
}

/// The server counts a DaemonSet's templates, whatever a client says.
fn count_templates(new: &mut Value, old: &Value) {
    let changed = at(new, "spec.template") != at(old, "spec.template");
    set_template_generation(new, template_generation(old) + i64::from(changed));
}

/// What a new claim is to be filled from. With `dataSource` alone only claims and snapshots were
/// ever possible, and the rest was overlooked; another namespace needs a feature that is off
/// (`CrossNamespaceVolumeDataSource`).
fn data_source(claim: &mut Value) {
    let spec = crate::value::object(claim, "spec");
    let is_far = !text(&spec["dataSourceRef"], "namespace").is_empty();
    let is_named = !is_far && spec["dataSourceRef"].is_object();
    let source = &spec["dataSource"];
    let is_old = matches!(
        (text(source, "apiGroup"), text(source, "kind")),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    );
    if let Some(map) = spec.as_object_mut() {
        if is_far {
            map.shift_remove("dataSourceRef");
        }
        if !is_named && !is_old {
            map.shift_remove("dataSource");
        }
    }
    mirror_sources(spec);
}

/// Both fields of a claim say what it is filled from, unless a namespace is named.
pub(crate) fn mirror_sources(spec: &mut Value) {
    let both = [("dataSource", "dataSourceRef"), ("dataSourceRef", "dataSource")];
    for (key, other) in both {
        let other = &spec[other];
        if !spec[key].is_object() && other.is_object() && text(other, "namespace").is_empty() {
            spec[key] = other.clone();
        }
    }
    for (key, _) in both {
        if spec[key].is_object() {
            fill(&mut spec[key], "apiGroup", Value::Null);
        } else if let Some(map) = spec.as_object_mut() {
            map.shift_remove(key);
        }
    }
}

fn prepare_pod(pod: &mut Value) {
    let class = qos_class(pod);
    pod["status"] = json!({"phase": "Pending", "qosClass": class});
    // Before 1.0 a pod without patience was written so.
    if at(pod, "spec.terminationGracePeriodSeconds").as_i64().is_some_and(|grace| grace < 0) {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    }
    if !items(pod, "spec.schedulingGates").is_empty() {
        pod["status"]["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "lastProbeTime": null,
            "lastTransitionTime": at(pod, "metadata.creationTimestamp"),
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    let labels = at(pod, "metadata.labels").clone();
    let spec = &mut pod["spec"];
    for constraint in items_mut(spec, "topologySpreadConstraints") {
        own_values(constraint, &labels);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = spec.pointer_mut(&format!("/affinity/{kind}")) else { continue };
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        items_mut(affinity, required).for_each(|term| own_values(term, &labels));
        let preferred = items_mut(affinity, "preferredDuringSchedulingIgnoredDuringExecution");
        preferred
            .filter_map(|it| it.get_mut("podAffinityTerm"))
            .for_each(|term| own_values(term, &labels));
    }
}

/// Labels whose values are the pod's own, or are not, become part of the selector.
fn own_values(of: &mut Value, labels: &Value) {
    if !has(of, "labelSelector") {
        return;
    }
    let mut more = Vec::new();
    for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in items(of, list).iter().filter_map(Value::as_str) {
            if let Some(value) = labels.get(key) {
                more.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    if !more.is_empty() {
        let list = &mut of["labelSelector"]["matchExpressions"];
        let old = list.as_array().cloned().unwrap_or_default();
        *list = [old, more].concat().into();
    }
}

/// Who knows one address of a pod only means that it is the first of all.
fn first_address(pod: &mut Value) {
    for (one, all) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
        let address = text(at(pod, "status"), one).to_owned();
        let first = items(at(pod, "status"), all).first().map(|entry| text(entry, "ip").to_owned());
        if !address.is_empty() && first.as_deref() != Some(&*address) {
            pod["status"][all] = json!([{"ip": address}]);
        }
    }
}

/// Guaranteed, Burstable or BestEffort, from requests and limits of cpu and memory.
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = at(pod, "spec");
    let positive = |value: &Value| {
        value
            .as_str()
            .and_then(|t| t.parse::<crate::meta::quantity::Quantity>().ok())
            .filter(|q| !q.is_zero())
    };
    let (mut any, mut guaranteed) = (false, true);
    let mut look = |resources: &Value| {
        for name in ["cpu", "memory"] {
            let request = positive(at(resources, "requests").get(name).unwrap_or(&Value::Null));
            let limit = positive(at(resources, "limits").get(name).unwrap_or(&Value::Null));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    };
    if has(spec, "resources") {
        look(at(spec, "resources"));
    } else {
        for list in ["containers", "initContainers"] {
            items(spec, list).iter().for_each(|c| look(at(c, "resources")));
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// A job selects its pods by its own uid unless it brings a selector.
fn prepare_job(job: &mut Value) {
    if let Some(map) = job.as_object_mut() {
        map.shift_remove("status");
    }
    if flag(job, "spec.manualSelector") {
        return;
    }
    let uid = text(job, "metadata.uid").to_owned();
    let name = text(job, "metadata.name").to_owned();
    let template = crate::value::object(crate::value::object(job, "spec"), "template");
    let labels = crate::value::object(crate::value::object(template, "metadata"), "labels");
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        fill(labels, key, value.as_str());
    }
    let mut own = Map::new();
    own.insert("batch.kubernetes.io/controller-uid".into(), json!(uid));
    let selector = crate::value::object(crate::value::object(job, "spec"), "selector");
    match selector.get_mut("matchLabels").and_then(Value::as_object_mut) {
        Some(labels) => labels.extend(own),
        None => selector["matchLabels"] = Value::Object(own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_fields_of_a_claim_say_what_it_is_filled_from() {
        let of = |group: &str, kind: &str| json!({"apiGroup": group, "kind": kind, "name": "s"});
        let snapshot = of("snapshot.storage.k8s.io", "VolumeSnapshot");
        let other = of("hello.example", "Hello");
        let claim = json!({"kind": "PersistentVolumeClaim", "name": "s"});
        let shown = json!({"apiGroup": null, "kind": "PersistentVolumeClaim", "name": "s"});
        let mut far = other.clone();
        far["namespace"] = "elsewhere".into();
        for (source, reference, want) in [
            (Some(&snapshot), None, Some(&snapshot)),
            (Some(&claim), None, Some(&shown)),
            (None, Some(&other), Some(&other)),
            // As if nobody had said so.
            (Some(&other), None, None),
            (None, Some(&far), None),
        ] {
            let mut claim = json!({"kind": "PersistentVolumeClaim", "spec": {}});
            for (key, value) in [("dataSource", source), ("dataSourceRef", reference)] {
                if let Some(value) = value {
                    claim["spec"][key] = value.clone();
                }
            }
            (Rules::of("", "PersistentVolumeClaim").prepare_create)(&mut claim);
            for key in ["dataSource", "dataSourceRef"] {
                assert_eq!(claim["spec"].get(key), want, "{key} of {claim}");
            }
        }
        let sent = json!({"kind": "PersistentVolumeClaim", "spec": {"dataSource": claim}});
        let mut updated = sent.clone();
        (Rules::of("", "PersistentVolumeClaim").prepare_update)(&mut updated, &sent);
        assert_eq!(updated["spec"], json!({"dataSource": shown, "dataSourceRef": shown}));
    }

    #[test]
    fn selectors_of_new_pods_take_values_of_their_own_labels() {
        let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}},
            "matchLabelKeys": ["hash", "none"], "mismatchLabelKeys": ["tenant"]});
        let all = json!({"topologyKey": "zone", "matchLabelKeys": ["hash"]});
        let mut pod = json!({"metadata": {"labels": {"hash": "1", "tenant": "t"}}, "spec": {
            "topologySpreadConstraints": [
                {"labelSelector": {}, "matchLabelKeys": ["hash"], "topologyKey": "zone"}],
            "affinity": {
                "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term, all]},
                "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "podAffinityTerm": term}]}}}});
        (Rules::of("", "Pod").prepare_create)(&mut pod);
        let own = json!({"key": "hash", "operator": "In", "values": ["1"]});
        let other = json!({"key": "tenant", "operator": "NotIn", "values": ["t"]});
        let (near, far) = ("/spec/affinity/podAffinity", "/spec/affinity/podAntiAffinity");
        let (required, preferred) = (
            "requiredDuringSchedulingIgnoredDuringExecution/0",
            "preferredDuringSchedulingIgnoredDuringExecution/0/podAffinityTerm",
        );
        for (path, want) in [
            ("/spec/topologySpreadConstraints/0".to_owned(), json!([own])),
            (format!("{near}/{required}"), json!([own, other])),
            (format!("{far}/{preferred}"), json!([own, other])),
        ] {
            let path = format!("{path}/labelSelector/matchExpressions");
            assert_eq!(pod.pointer(&path), Some(&want), "{path}");
        }
        let second = &pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            [1];
        assert!(second.get("labelSelector").is_none(), "{second}");
    }
}
