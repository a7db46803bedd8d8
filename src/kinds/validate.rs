//! Validation of the built-in kinds, with upstream's causes and messages.
//!
//! Absent: what needs the outside of the object (quotas, expressions in CEL, addresses that
//! are taken) is admission's and the registry's business.

mod batch;
pub mod certificates;
mod checks;
mod config;
pub mod devices;
mod networking;
mod pod;
mod pod_host;
mod pod_more;
pub mod pod_parts;
mod pod_restart;
mod pod_sources;
mod pod_whole;
mod policy;
mod service;
mod serving;
mod slices;
mod storage;
mod workload;

use serde_json::Value;

use crate::meta::FieldError;

pub use pod::pod_template;

type Create = fn(&Value) -> Vec<FieldError>;
type Update = fn(&Value, &Value) -> Vec<FieldError>;

/// The checks of a kind for creates and updates; None: an update is checked as a create.
pub(crate) fn of(group: &str, kind: &str) -> (Create, Option<Update>) {
    match (group, kind) {
        ("", "Pod") => (pod::create, Some(pod::update)),
        ("", "Service") => (service::create, Some(service::update)),
        ("", "ConfigMap") => (config::config_map, Some(config::config_map_update)),
        ("", "Secret") => (config::secret, Some(config::secret_update)),
        ("", "Node") => (config::node, None),
        ("coordination.k8s.io", "Lease") => (config::lease, None),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => (config::role, None),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            (config::binding, Some(config::binding_update))
        }
        ("apps", "Deployment") => (workload::deployment, Some(workload::deployment_update)),
        ("apps", "ReplicaSet") => (workload::replica_set, Some(workload::replica_set_update)),
        ("apps", "StatefulSet") => (workload::stateful_set, Some(workload::stateful_set_update)),
        ("apps", "DaemonSet") => (workload::daemon_set, Some(workload::daemon_set_update)),
        ("", "ReplicationController") => (workload::replication_controller, None),
        ("", "PodTemplate") => (workload::template, None),
        ("batch", "Job") => (batch::job, Some(batch::job_update)),
        ("batch", "CronJob") => (batch::cron_job, Some(batch::cron_job_update)),
        ("", "PersistentVolumeClaim") => (storage::claim, Some(storage::claim_update)),
        ("", "PersistentVolume") => (storage::volume, Some(storage::volume_update)),
        ("", "ResourceQuota") => (policy::quota, Some(policy::quota_update)),
        ("", "LimitRange") => (policy::limit_range, None),
        ("", "Endpoints") => (networking::endpoints, None),
        ("storage.k8s.io", kind) => match kind {
            "StorageClass" => (storage::class, Some(storage::class_update)),
            "CSIDriver" => (storage::driver, Some(storage::driver_update)),
            "CSINode" => (storage::csi_node, Some(storage::csi_node_update)),
            "VolumeAttachment" => (storage::attachment, Some(storage::attachment_update)),
            "CSIStorageCapacity" => (storage::capacity, Some(storage::capacity_update)),
            "VolumeAttributesClass" => {
                (storage::attributes_class, Some(storage::attributes_class_update))
            }
            _ => NONE,
        },
        ("policy", "PodDisruptionBudget") => (policy::disruption_budget, None),
        ("scheduling.k8s.io", "PriorityClass") => {
            (policy::priority_class, Some(policy::priority_class_update))
        }
        ("node.k8s.io", "RuntimeClass") => {
            (policy::runtime_class, Some(policy::runtime_class_update))
        }
        ("autoscaling", "HorizontalPodAutoscaler") => (policy::autoscaler, None),
        ("networking.k8s.io", kind) => match kind {
            "Ingress" => (networking::ingress, None),
            "IngressClass" => (networking::ingress_class, Some(networking::ingress_class_update)),
            "NetworkPolicy" => (networking::network_policy, None),
            "ServiceCIDR" => (networking::service_cidr, Some(networking::service_cidr_update)),
            "IPAddress" => (networking::ip_address, Some(networking::ip_address_update)),
            _ => NONE,
        },
        ("discovery.k8s.io", "EndpointSlice") => {
            (networking::endpoint_slice, Some(networking::endpoint_slice_update))
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => (serving::flow_schema, None),
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => {
            (serving::priority_level, None)
        }
        ("apiregistration.k8s.io", "APIService") => (serving::api_service, None),
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            (serving::signing_request, Some(serving::signing_request_update))
        }
        ("certificates.k8s.io", "ClusterTrustBundle") => {
            (certificates::bundle, Some(certificates::bundle_update))
        }
        ("certificates.k8s.io", "PodCertificateRequest") => {
            (certificates::request, Some(certificates::request_update))
        }
        ("resource.k8s.io", kind) => match kind {
            "DeviceClass" => (devices::class, None),
            "ResourceClaim" => (devices::claim, Some(devices::claim_update)),
            "ResourceClaimTemplate" => (devices::claim_template, Some(devices::claim_update)),
            "ResourceSlice" => (slices::slice, Some(slices::slice_update)),
            _ => NONE,
        },
        _ => NONE,
    }
}

const NONE: (Create, Option<Update>) = (|_| Vec::new(), None);
