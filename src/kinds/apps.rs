//! Workloads: the groups `apps`, `batch` and `autoscaling`.

pub mod defaults;
