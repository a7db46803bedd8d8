//! Removes what belongs to nobody: pods that the API server no longer knows, their
//! directories and logs, and images that nothing uses when the disk fills up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Backoff;
use base::drain::Drain;
use runtime::cri::{self, ContainerState, ErrorKind, SandboxState};
use tracing::{info, warn};

use crate::node::Node;
use crate::observed::{ANNOTATION_GRACE, PodRuntime};

/// How often the disk is looked at (upstream's image collection period).
const IMAGE_PERIOD: Duration = Duration::from_secs(300);
/// First and longest wait before the volumes of an orphan are taken away again.
const VOLUME_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(122));
const ORPHAN_GRACE_SECONDS: u64 = 30;

/// Ends pods that run but are wanted by nobody, and removes what they left. Called once
/// the API server's list and the static pods are known, and when the runtime was read
/// anew.
pub async fn remove_orphans(node: &Arc<Node>) {
    let wanted: BTreeSet<String> =
        node.pods.list().into_iter().filter_map(|it| it.pod.metadata.uid.clone()).collect();
    let mut orphans: BTreeSet<String> = node.observed.pods().into_iter().collect();
    if let Ok(entries) = std::fs::read_dir(node.config.root_dir.join("pods")) {
        orphans.extend(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()));
    }
    for uid in orphans.difference(&wanted) {
        let (node, uid) = (node.clone(), uid.clone());
        tokio::spawn(async move { remove_orphan(&node, &uid).await });
    }
    // What a process that died had staged for pods that are gone.
    node.volumes.csi.unstage_unused();
}

async fn remove_orphan(node: &Node, uid: &str) {
    let runtime = node.observed.pod(uid);
    let is_running =
        !runtime.is_stopped() || runtime.sandboxes.iter().any(|it| it.state == SandboxState::Ready);
    if is_running {
        info!(pod = uid, "ending a pod that nobody wants");
    }
    stop(node, &runtime).await;
    for sandbox in &runtime.sandboxes {
        if let Err(error) = node.runtime.remove_pod_sandbox(&sandbox.id).await
            && error.kind != ErrorKind::NotFound
        {
            warn!(pod = uid, error = %base::error::chain(&error), "sandbox not removed");
            return;
        }
        node.observed.forget(&sandbox.id);
        let meta = &sandbox.metadata;
        let logs = node.config.log_dir(&meta.namespace, &meta.name, &meta.uid);
        if let Err(error) = std::fs::remove_dir_all(&logs)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(path = %logs.display(), %error, "logs not removed");
        }
    }
    for container in &runtime.containers {
        node.observed.forget(&container.id);
    }
    remove_dead_links(node);
    // It may have become wanted in the meantime, as a static pod that came back.
    let mut backoff = Backoff::new(VOLUME_RETRY.0, VOLUME_RETRY.1);
    while node.pods.get(uid).is_none()
        && let Err(error) = node.volumes.remove(&node.config, uid).await
    {
        warn!(pod = uid, error, "pod directory not removed");
        // Its driver may have to come first.
        if node.drain.until(tokio::time::sleep(backoff.next_delay())).await.is_none() {
            return;
        }
    }
}

async fn stop(node: &Node, runtime: &PodRuntime) {
    let stops =
        runtime.containers.iter().filter(|it| it.state == ContainerState::Running).map(|it| {
            let grace = it
                .annotations
                .get(ANNOTATION_GRACE)
                .and_then(|grace| grace.parse().ok())
                .unwrap_or(ORPHAN_GRACE_SECONDS);
            node.runtime.stop_container(&it.id, grace)
        });
    for result in futures::future::join_all(stops).await {
        if let Err(error) = result {
            warn!(error = %base::error::chain(&error), "container not stopped");
        }
    }
    for sandbox in &runtime.sandboxes {
        if let Err(error) = node.runtime.stop_pod_sandbox(&sandbox.id).await {
            warn!(error = %base::error::chain(&error), "sandbox not stopped");
        }
    }
}

/// Links in `/var/log/containers` whose log is gone.
fn remove_dead_links(node: &Node) {
    let Ok(entries) = std::fs::read_dir(&node.config.container_log_dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_dead = path.is_symlink() && !path.exists();
        let ours =
            std::fs::read_link(&path).is_ok_and(|it| it.starts_with(&node.config.pod_log_dir));
        if is_dead
            && ours
            && let Err(error) = std::fs::remove_file(&path)
        {
            warn!(path = %path.display(), %error, "dead link not removed");
        }
    }
}

/// Looks at the disk until the drain begins.
pub async fn run(node: Arc<Node>, drain: Drain) {
    while drain.until(tokio::time::sleep(IMAGE_PERIOD)).await.is_some() {
        remove_dead_links(&node);
        if let Err(error) = collect_images(&node).await {
            warn!(error, "images not collected");
        }
    }
}

/// Bytes to free so that usage falls from above `high` percent to `low` percent.
fn bytes_to_free(total: u64, free: u64, high: u8, low: u8) -> u64 {
    let used = total.saturating_sub(free);
    if total == 0 || used * 100 / total < u64::from(high) {
        return 0;
    }
    used.saturating_sub(total / 100 * u64::from(low))
}

async fn collect_images(node: &Node) -> Result<(), String> {
    let dir = node.images.service.image_dir();
    let stat = rustix::fs::statvfs(&dir).map_err(|error| error.to_string())?;
    let (high, low) = node.config.image_gc_percent;
    let wanted =
        bytes_to_free(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize, high, low);
    let left = remove_images(node, wanted).await?;
    if left > 0 {
        return Err(format!("{left} bytes more should be freed, but nothing unused is left"));
    }
    Ok(())
}

/// Removes every image that nothing uses.
///
/// # Errors
/// When the images cannot be listed.
pub async fn remove_unused_images(node: &Node) -> Result<(), String> {
    remove_images(node, u64::MAX).await.map(drop)
}

/// Removes images that nothing uses until `wanted` bytes are free; what is still missing.
async fn remove_images(node: &Node, mut wanted: u64) -> Result<u64, String> {
    if wanted == 0 {
        return Ok(0);
    }
    let service = &node.images.service;
    let containers = node.observed.containers();
    let mut images = service.list_images().await.map_err(|error| error.to_string())?;
    images.retain(|image| !image.pinned && !containers.iter().any(|it| uses(it, image)));
    // The largest first: fewest images have to be pulled again.
    images.sort_by_key(|image| std::cmp::Reverse(image.size));
    for image in images {
        if wanted == 0 {
            break;
        }
        match service.remove_image(&image.id).await {
            Ok(()) => {
                info!(image = image.id, bytes = image.size, "image removed to free the disk");
                wanted = wanted.saturating_sub(image.size);
            }
            Err(error) => warn!(image = image.id, error = %error, "image not removed"),
        }
    }
    Ok(wanted)
}

fn uses(container: &cri::Container, image: &cri::Image) -> bool {
    container.image == image.id
        || container.image_ref == image.id
        || image.repo_tags.contains(&container.image)
        || image.repo_tags.contains(&container.user_specified_image)
        || image.repo_digests.contains(&container.image_ref)
        || container
            .mounts
            .iter()
            .any(|mount| mount.image.as_ref().is_some_and(|tree| tree.image == image.id))
}

/// Removes ended containers that another one of their name has followed.
pub async fn remove_dead_containers(node: &Node) {
    let all = node.observed.containers();
    for container in all.iter().filter(|it| crate::eviction::is_superseded(&all, it)) {
        match node.runtime.remove_container(&container.id).await {
            Ok(()) => node.observed.forget(&container.id),
            Err(error) if error.kind == ErrorKind::NotFound => {
                node.observed.forget(&container.id);
            }
            Err(error) => warn!(container = container.id, error = %error, "container not removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_freed_from_the_high_to_the_low_mark() {
        assert_eq!(bytes_to_free(1000, 200, 85, 80), 0);
        assert_eq!(bytes_to_free(1000, 100, 85, 80), 100);
        assert_eq!(bytes_to_free(0, 0, 85, 80), 0);
    }
}
