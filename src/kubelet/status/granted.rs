//! What a container was given, as its status tells: resources and mounts.

use k8s_openapi::api::core::v1::{Container, ResourceRequirements, VolumeMountStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use runtime::cri;

use super::Inputs;
use crate::pod::Role;
use crate::resources;
use crate::volumes::readonly;

/// What a running container has, where that is not yet what it was granted.
pub(super) fn actual(
    inputs: &Inputs<'_>,
    role: Role,
    container: &Container,
    current: &cri::Container,
    granted: &ResourceRequirements,
) -> ResourceRequirements {
    let mut out = granted.clone();
    let wanted = resources::container_resources(inputs.pod, role, container, inputs.host);
    let have = &current.resources;
    // A runtime that tells nothing is believed to have done what it was told.
    if current.state != cri::ContainerState::Running || have.cpu_shares == 0 {
        return out;
    }
    let mut put = |of_limits: bool, name: &str, amount: String| {
        let list = if of_limits { &mut out.limits } else { &mut out.requests };
        list.get_or_insert_default().insert(name.to_owned(), Quantity(amount));
    };
    if have.cpu_shares != wanted.cpu_shares {
        put(false, "cpu", format!("{}m", (have.cpu_shares * 1000).div_ceil(1024)));
    }
    if have.cpu_quota != wanted.cpu_quota && have.cpu_quota > 0 {
        let period = i64::try_from(have.cpu_period).unwrap_or(0).max(1);
        put(true, "cpu", format!("{}m", have.cpu_quota * 1000 / period));
    }
    if have.memory_limit != wanted.memory_limit && have.memory_limit > 0 {
        put(true, "memory", have.memory_limit.to_string());
    }
    out
}

pub(super) fn volume_mounts(
    container: &Container,
    features: cri::Features,
) -> Option<Vec<VolumeMountStatus>> {
    let mounts: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only.filter(|read_only| *read_only),
            recursive_read_only: (mount.read_only == Some(true)).then(|| {
                match readonly::is_recursive(mount, features.recursive_read_only_mounts) {
                    Ok(true) => "Enabled".to_owned(),
                    _ => "Disabled".to_owned(),
                }
            }),
            ..VolumeMountStatus::default()
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}
