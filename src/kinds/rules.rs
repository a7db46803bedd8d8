//! The rules of each kind in one table: defaults, validation, columns, selectable fields.

use serde_json::Value;

use crate::apps::defaults as apps;
use crate::core::{defaults as core, pod_defaults};
use crate::policy::defaults as policy;

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
