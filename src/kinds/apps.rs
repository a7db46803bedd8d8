//! Workloads: the groups `apps`, `batch` and `autoscaling`.

pub mod defaults;

/// The annotation in which a DaemonSet counts its templates, as apps/v1 shows it.
pub(crate) const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
