//! Empty directories: on disk, in memory, on huge pages. Born with the pod, gone with it.

use std::io;
use std::path::Path;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};

use super::{fs_group, mounts, open_mode, own};
use crate::quantity::{self, ResourceList};
use crate::resources;

/// Size of a directory in memory: what it asks for, but no more than the pod's own limit
/// and what the node gives to pods. 0 leaves it to the kernel.
fn memory_bytes(
    pod: &Pod,
    source: &EmptyDirVolumeSource,
    allocatable: Option<&ResourceList>,
) -> u64 {
    let asked = source.size_limit.as_ref().and_then(quantity::value).unwrap_or(0);
    let of_pod = resources::pod_resources(pod, 0, resources::Host::default()).memory_limit;
    let of_node = quantity::value_of(allocatable, "memory");
    let smallest = [asked, of_pod, of_node].into_iter().filter(|bytes| *bytes > 0).min();
    smallest.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)
}

/// The size of the pages that a huge page directory has: its medium's, or the one size
/// that the pod asks for.
fn page_bytes(pod: &Pod, medium: &str) -> io::Result<i64> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    let read = |text: &str| {
        let size = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
        quantity::value(&size).filter(|bytes| *bytes > 0)
    };
    if let Some(size) = medium.strip_prefix("HugePages-") {
        return read(size).ok_or_else(|| wrong(format!("medium {medium:?} names no page size")));
    }
    let whole = crate::pod::spec(pod).resources.as_ref().and_then(|it| it.requests.as_ref());
    let mut sizes: Vec<i64> = crate::pod::containers(pod)
        .iter()
        .filter_map(|(_, container)| container.resources.as_ref()?.requests.as_ref())
        .chain(whole)
        .flat_map(|requests| requests.keys())
        .filter_map(|name| read(name.strip_prefix("hugepages-")?))
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    match sizes.as_slice() {
        [one] => Ok(*one),
        [] => Err(wrong(
            "hugePages storage requested, but there is no resource request for huge pages".into(),
        )),
        _ => Err(wrong(
            "medium \"HugePages\" can be used only when container is requesting one huge page size"
                .into(),
        )),
    }
}

pub fn make(
    dir: &Path,
    pod: &Pod,
    source: &EmptyDirVolumeSource,
    allocatable: Option<&ResourceList>,
) -> io::Result<()> {
    let group = fs_group(pod);
    let mut fresh = !dir.exists();
    std::fs::create_dir_all(dir)?;
    base::failpoint!("volume/empty-directory");
    match source.medium.as_deref().unwrap_or_default() {
        "" => {}
        "Memory" => {
            fresh |= !mounts::is_mounted(dir)?;
            mounts::tmpfs(dir, memory_bytes(pod, source, allocatable))?;
        }
        medium if medium == "HugePages" || medium.starts_with("HugePages-") => {
            fresh |= !mounts::is_mounted(dir)?;
            mounts::huge_pages(dir, page_bytes(pod, medium)?)?;
        }
        other => {
            let message = format!("unknown storage medium {other:?}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
    }
    base::failpoint!("volume/empty-directory-mounted");
    if fresh {
        let in_memory = source.medium.as_deref() == Some("Memory");
        own(dir, open_mode(in_memory, group.is_some()), group)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use serde_json::json;

    #[test]
    fn memory_is_the_smallest_of_what_is_asked_and_what_may_be_had() {
        let limited = |limit: &str| {
            pod(json!({"containers": [{"name": "a", "resources": {"limits": {"memory": limit}}}]}))
        };
        let node: ResourceList = [("memory".to_owned(), Quantity("1Gi".into()))].into();
        let source = |size: Option<&str>| EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            size_limit: size.map(|size| Quantity(size.into())),
        };
        let cases = [
            (limited("64Mi"), Some("32Mi"), 32 << 20),
            (limited("64Mi"), Some("128Mi"), 64 << 20),
            (limited("64Mi"), None, 64 << 20),
            (pod(json!({"containers": [{"name": "a"}]})), None, 1 << 30),
            (limited("4Gi"), Some("2Gi"), 1 << 30),
        ];
        for (pod, size, want) in cases {
            assert_eq!(memory_bytes(&pod, &source(size), Some(&node)), want);
        }
    }

    #[test]
    fn huge_pages_have_the_size_that_is_asked_for() {
        let asks = |requests| {
            pod(json!({"containers": [{"name": "a", "resources": {"requests": requests}}]}))
        };
        let one = asks(json!({"hugepages-2Mi": "4Mi"}));
        assert_eq!(page_bytes(&one, "HugePages").unwrap(), 2 << 20);
        assert_eq!(page_bytes(&one, "HugePages-1Gi").unwrap(), 1 << 30);
        let two = asks(json!({"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"}));
        assert!(page_bytes(&two, "HugePages").is_err());
        assert!(page_bytes(&asks(json!({})), "HugePages").is_err());
        let whole = pod(json!({"resources": {"requests": {"hugepages-2Mi": "4Mi"}},
            "containers": [{"name": "a"}]}));
        assert_eq!(page_bytes(&whole, "HugePages").unwrap(), 2 << 20);
        assert!(page_bytes(&one, "HugePages-x").is_err());
    }
}
