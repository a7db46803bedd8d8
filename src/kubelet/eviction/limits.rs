//! Who uses more of the node's disk than its own limits allow: pure.

use k8s_openapi::api::core::v1::Pod;

use crate::pod;
use crate::quantity;
use crate::resources;
use crate::usage::PodUsage;

const RESOURCE: &str = "ephemeral-storage";

fn limit_of(container: &k8s_openapi::api::core::v1::Container) -> Option<(u64, &str)> {
    let limit = container.resources.as_ref()?.limits.as_ref()?.get(RESOURCE)?;
    let bytes = u64::try_from(quantity::value(limit)?).ok()?;
    (bytes > 0).then_some((bytes, limit.0.as_str()))
}

/// Directories on disk with a limit of their own: name, bytes, and the limit as written.
fn limited_dirs(pod: &Pod) -> impl Iterator<Item = (&str, u64, &str)> {
    pod::spec(pod).volumes.iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        if source.medium.as_deref().is_some_and(|medium| !medium.is_empty()) {
            return None;
        }
        let limit = source.size_limit.as_ref()?;
        let bytes = u64::try_from(quantity::value(limit)?).ok()?;
        (bytes > 0).then_some((volume.name.as_str(), bytes, limit.0.as_str()))
    })
}

/// Whether the pod's files have to be measured.
pub fn has_any(pod: &Pod) -> bool {
    limited_dirs(pod).next().is_some()
        || pod::spec(pod).containers.iter().any(|it| limit_of(it).is_some())
        || pod::init_containers(pod).iter().any(|it| limit_of(it).is_some())
}

/// Which limit the pod has broken, in the word of metrics, and why it must go; None while it
/// keeps to its limits.
pub fn broken(pod: &Pod, usage: &PodUsage) -> Option<(&'static str, String)> {
    for (name, bytes, limit) in limited_dirs(pod) {
        // One that no container uses is not there.
        let Some(used) = usage.volumes.iter().find(|volume| volume.name == name) else {
            continue;
        };
        if used.used.bytes > bytes {
            let why = format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. ");
            return Some(("emptydirfs.limit", why));
        }
    }
    let mains = &pod::spec(pod).containers;
    // Those that have a limit bound the others too (upstream).
    let total = resources::limit_of_containers_milli(pod, RESOURCE) / 1000;
    let total = u64::try_from(total).unwrap_or(0);
    if total > 0 && usage.ephemeral_storage().bytes > total {
        let why = format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            super::rank::binary(total)
        );
        return Some(("ephemeralpodfs.limit", why));
    }
    for container in mains.iter().chain(pod::init_containers(pod)) {
        let Some((bytes, limit)) = limit_of(container) else { continue };
        let Some(it) = usage.containers.iter().find(|it| it.name == container.name) else {
            continue;
        };
        let used =
            it.stats.writable_layer.unwrap_or_default().bytes + it.logs.unwrap_or_default().bytes;
        if used > bytes {
            let why = format!(
                "Container {} exceeded its local ephemeral storage limit {limit:?}. ",
                container.name
            );
            return Some(("ephemeralcontainerfs.limit", why));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use crate::usage::{ContainerUsage, VolumeUsage};
    use runtime::cri::{ContainerStats, DiskUsage, SandboxStats};
    use serde_json::json;

    fn usage(layer: u64, logs: u64, dir: u64) -> PodUsage {
        let disk = |bytes| DiskUsage { bytes, inodes: 1 };
        PodUsage {
            name: "web".into(),
            namespace: "default".into(),
            uid: "uid-1".into(),
            created_at: 0,
            cpu_nano_cores: None,
            stats: SandboxStats::default(),
            containers: vec![ContainerUsage {
                name: "a".into(),
                image: String::new(),
                started_at: 0,
                cpu_nano_cores: None,
                stats: ContainerStats {
                    writable_layer: Some(disk(layer)),
                    ..ContainerStats::default()
                },
                logs: Some(disk(logs)),
            }],
            volumes: vec![VolumeUsage {
                name: "v".into(),
                claim: None,
                path: "/v".into(),
                of: None,
                used: disk(dir),
                is_ephemeral: true,
            }],
        }
    }

    #[test]
    fn each_limit_is_told_in_its_own_words() {
        let limited = |others: serde_json::Value| {
            let mut containers =
                vec![json!({"name": "a", "resources": {"limits": {"ephemeral-storage": "1Mi"}}})];
            containers.extend(others.as_array().unwrap().clone());
            pod(json!({"containers": containers,
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]}))
        };
        let alone = limited(json!([]));
        let beside = limited(json!([{"name": "b"}]));
        let both = limited(json!([{"name": "b",
            "resources": {"limits": {"ephemeral-storage": "1Mi"}}}]));
        let (some, more) = (600 << 10, 2 << 20);
        let cases = [
            (&alone, usage(some, 0, 0), None),
            (
                &alone,
                usage(0, 0, more),
                Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "),
            ),
            (
                &alone,
                usage(some, 0, some),
                Some(
                    "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ",
                ),
            ),
            (
                &beside,
                usage(some, 0, some),
                Some(
                    "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ",
                ),
            ),
            (
                &both,
                usage(some, some, 0),
                Some("Container a exceeded its local ephemeral storage limit \"1Mi\". "),
            ),
            (&both, usage(some, 0, some), None),
        ];
        for (pod, usage, want) in cases {
            assert_eq!(broken(pod, &usage).map(|(_, why)| why).as_deref(), want);
        }
        assert!(has_any(&alone) && has_any(&beside));
        assert!(!has_any(&pod(json!({"containers": [{"name": "a"}],
            "volumes": [{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]}))));
    }
}
