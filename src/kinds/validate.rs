//! Validation of the kinds clients write most; the others are checked in their metadata only.

mod config;
mod pod;
mod pod_more;
pub mod pod_parts;
mod service;
mod workload;

use serde_json::Value;

use crate::meta::FieldError;

pub use pod::pod_template;

type Create = fn(&Value) -> Vec<FieldError>;
type Update = fn(&Value, &Value) -> Vec<FieldError>;

/// The checks of a kind for creates and updates.
pub(crate) fn of(group: &str, kind: &str) -> (Create, Update) {
    match (group, kind) {
        ("", "Pod") => (pod::create, pod::update),
        ("", "Service") => (service::create, service::update),
        ("", "ConfigMap") => (config::config_map, config::config_map_update),
        ("", "Secret") => (config::secret, config::secret_update),
        ("", "Node") => (config::node, |new, _| config::node(new)),
        ("coordination.k8s.io", "Lease") => (config::lease, |new, _| config::lease(new)),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => {
            (config::role, |new, _| config::role(new))
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            (config::binding, config::binding_update)
        }
        ("apps", "Deployment") => (workload::deployment, workload::deployment_update),
        ("apps", "ReplicaSet") => (workload::replica_set, workload::replica_set_update),
        ("apps", "StatefulSet") => (workload::stateful_set, workload::stateful_set_update),
        ("apps", "DaemonSet") => (workload::daemon_set, workload::daemon_set_update),
        _ => (|_| Vec::new(), |_, _| Vec::new()),
    }
}
