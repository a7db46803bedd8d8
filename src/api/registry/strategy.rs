//! How the registry treats each kind beyond defaulting and validation: what a writer may
//! not set, whether a PUT may create, which fields can be selected.

use kinds::meta::object::NameRule;
use serde_json::{Value, json};

/// The registry's rules for one kind (k8s.io/kubernetes, `pkg/registry/*/strategy`).
pub struct Strategy {
    pub has_generation: bool,
    pub create_on_update: bool,
    pub unconditional_update: bool,
    /// Deleting answers with the object instead of a Status.
    pub returns_deleted: bool,
    /// Metadata that a write to the status subresource may change.
    pub status_metadata: &'static [&'static str],
}

const GENERATION: &[(&str, &str)] = &[
    ("", "Pod"),
    ("", "ReplicationController"),
    ("apps", "DaemonSet"),
    ("apps", "Deployment"),
    ("apps", "ReplicaSet"),
    ("apps", "StatefulSet"),
    ("batch", "CronJob"),
    ("batch", "Job"),
    ("networking.k8s.io", "Ingress"),
    ("networking.k8s.io", "IngressClass"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("policy", "PodDisruptionBudget"),
    ("scheduling.k8s.io", "PriorityClass"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"),
    ("resource.k8s.io", "DeviceClass"),
    ("resource.k8s.io", "ResourceSlice"),
];

const CREATE_ON_UPDATE: &[(&str, &str)] = &[
    ("", "Endpoints"),
    ("", "Event"),
    ("", "LimitRange"),
    ("", "PodTemplate"),
    ("", "ResourceQuota"),
    ("", "Service"),
    ("coordination.k8s.io", "Lease"),
    ("events.k8s.io", "Event"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
];

const CONDITIONAL_UPDATE_ONLY: &[(&str, &str)] = &[
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("apiregistration.k8s.io", "APIService"),
    ("coordination.k8s.io", "Lease"),
    ("node.k8s.io", "RuntimeClass"),
    ("policy", "PodDisruptionBudget"),
    ("storage.k8s.io", "CSINode"),
    ("storage.k8s.io", "VolumeAttachment"),
];

const RETURNS_DELETED: &[(&str, &str)] = &[
    ("", "PersistentVolume"),
    ("", "PersistentVolumeClaim"),
    ("", "Pod"),
    ("", "PodTemplate"),
    ("", "ResourceQuota"),
    ("", "Service"),
    ("", "ServiceAccount"),
];

pub fn of(group: &str, kind: &str, custom: bool) -> Strategy {
    let listed = |list: &[(&str, &str)]| list.contains(&(group, kind));
    Strategy {
        has_generation: custom || listed(GENERATION),
        create_on_update: listed(CREATE_ON_UPDATE),
        unconditional_update: !custom && !listed(CONDITIONAL_UPDATE_ONLY),
        returns_deleted: listed(RETURNS_DELETED),
        status_metadata: match (group, kind) {
            ("", "Node") => &["labels", "annotations"],
            ("", "Pod") => &["labels", "annotations", "finalizers"],
            _ if custom => &[],
            _ => &["labels", "annotations", "finalizers", "ownerReferences"],
        },
    }
}

/// How the names of a kind look.
pub fn name_rule(group: &str, kind: &str) -> NameRule {
    match (group, kind) {
        ("", "Namespace") => NameRule::Label,
        ("", "Service") => NameRule::Dns1035,
        ("rbac.authorization.k8s.io", _) => NameRule::PathSegment,
        _ => NameRule::Subdomain,
    }
}

/// Takes out of a new object what its creator may not decide.
pub fn prepare_create(group: &str, kind: &str, has_status: bool, object: &mut Value) {
    // A Node's creator is its kubelet, which reports the status in the same request.
    let keeps_status = (group, kind) == ("", "Node");
    if has_status
        && !keeps_status
        && let Value::Object(map) = object
    {
        map.shift_remove("status");
    }
    match (group, kind) {
        ("", "Pod") => {
            object["status"] = json!({"phase": "Pending", "qosClass": qos_class(object)})
        }
        ("", "Namespace") => {
            object["status"] = json!({"phase": "Active"});
            let finalizers = &mut object["spec"]["finalizers"];
            let list = finalizers.as_array().cloned().unwrap_or_default();
            if !list.iter().any(|f| f == "kubernetes") {
                let mut list = list;
                list.push("kubernetes".into());
                *finalizers = list.into();
            }
        }
        ("", "PersistentVolume" | "PersistentVolumeClaim") => {
            object["status"] = json!({"phase": "Pending"});
        }
        ("", "Service") => object["status"] = json!({"loadBalancer": {}}),
        ("networking.k8s.io", "Ingress") => object["status"] = json!({"loadBalancer": {}}),
        ("batch", "Job" | "CronJob") | ("apps", "Deployment") => object["status"] = json!({}),
        ("apps", "ReplicaSet" | "StatefulSet") | ("", "ReplicationController") => {
            object["status"] = json!({"replicas": 0});
        }
        ("apps", "DaemonSet") => {
            object["status"] = json!({
                "currentNumberScheduled": 0, "desiredNumberScheduled": 0,
                "numberMisscheduled": 0, "numberReady": 0,
            });
        }
        ("policy", "PodDisruptionBudget") => {
            object["status"] = json!({
                "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0,
                "expectedPods": 0,
            });
        }
        ("autoscaling", "HorizontalPodAutoscaler") => {
            object["status"] = json!({"currentMetrics": null, "desiredReplicas": 0});
        }
        ("certificates.k8s.io", "CertificateSigningRequest")
        | ("", "ResourceQuota")
        | ("flowcontrol.apiserver.k8s.io", "FlowSchema" | "PriorityLevelConfiguration") => {
            object["status"] = json!({});
        }
        _ => {}
    }
}

/// The quality of service class of a pod (documentation, "Pod Quality of Service
/// Classes").
fn qos_class(pod: &Value) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    let mut look = |resources: &Value| {
        for resource in ["cpu", "memory"] {
            let positive = |list: &str| {
                let text = match &resources[list][resource] {
                    Value::String(text) => text.clone(),
                    Value::Number(number) => number.to_string(),
                    _ => return None,
                };
                let quantity: kinds::meta::quantity::Quantity = text.parse().ok()?;
                (!quantity.is_zero()).then_some(quantity)
            };
            let (request, limit) = (positive("requests"), positive("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    };
    if pod["spec"]["resources"].is_object() {
        look(&pod["spec"]["resources"]);
    } else {
        for list in ["initContainers", "containers"] {
            for container in pod["spec"][list].as_array().into_iter().flatten() {
                look(&container["resources"]);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Fields that selectors may name, with their values; an absent one is the zero of its
/// type.
pub fn fields(group: &str, kind: &str, object: &Value) -> Vec<(&'static str, String)> {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_string();
    let mut fields = own_fields(group, kind, object);
    fields.push(("metadata.name", text("name")));
    fields.push(("metadata.namespace", text("namespace")));
    fields
}

fn own_fields(group: &str, kind: &str, object: &Value) -> Vec<(&'static str, String)> {
    let text = |pointer: &str| match object.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(flag)) => flag.to_string(),
        _ => String::new(),
    };
    let flag = |pointer: &str| {
        object.pointer(pointer).and_then(Value::as_bool).unwrap_or(false).to_string()
    };
    let number =
        |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0).to_string();
    match (group, kind) {
        ("", "Pod") => vec![
            ("spec.nodeName", text("/spec/nodeName")),
            ("spec.restartPolicy", text("/spec/restartPolicy")),
            ("spec.schedulerName", text("/spec/schedulerName")),
            ("spec.serviceAccountName", text("/spec/serviceAccountName")),
            ("spec.hostNetwork", flag("/spec/hostNetwork")),
            ("status.phase", text("/status/phase")),
            ("status.podIP", text("/status/podIP")),
            ("status.podIPs", text("/status/podIP")),
            ("status.nominatedNodeName", text("/status/nominatedNodeName")),
        ],
        ("" | "events.k8s.io", "Event") => vec![
            ("involvedObject.kind", text("/involvedObject/kind")),
            ("involvedObject.namespace", text("/involvedObject/namespace")),
            ("involvedObject.name", text("/involvedObject/name")),
            ("involvedObject.uid", text("/involvedObject/uid")),
            ("involvedObject.apiVersion", text("/involvedObject/apiVersion")),
            ("involvedObject.resourceVersion", text("/involvedObject/resourceVersion")),
            ("involvedObject.fieldPath", text("/involvedObject/fieldPath")),
            ("reason", text("/reason")),
            ("reportingComponent", text("/reportingComponent")),
            ("source", {
                let component = text("/source/component");
                if component.is_empty() { text("/reportingComponent") } else { component }
            }),
            ("type", text("/type")),
        ],
        ("", "Namespace") => {
            vec![("status.phase", text("/status/phase")), ("name", text("/metadata/name"))]
        }
        ("", "Node") => vec![("spec.unschedulable", flag("/spec/unschedulable"))],
        ("", "Secret") => vec![("type", text("/type"))],
        ("", "Service") => {
            vec![("spec.clusterIP", text("/spec/clusterIP")), ("spec.type", text("/spec/type"))]
        }
        ("", "PersistentVolume" | "PersistentVolumeClaim") => {
            vec![("name", text("/metadata/name"))]
        }
        ("", "ReplicationController") | ("apps", "ReplicaSet") => {
            vec![("status.replicas", number("/status/replicas"))]
        }
        ("batch", "Job") => vec![("status.successful", number("/status/succeeded"))],
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            vec![("spec.signerName", text("/spec/signerName"))]
        }
        ("resource.k8s.io", "ResourceSlice") => {
            vec![("spec.nodeName", text("/spec/nodeName")), ("spec.driver", text("/spec/driver"))]
        }
        _ => Vec::new(),
    }
}
