//! Removes what belongs to nobody: pods that the API server no longer knows, their
//! directories and logs, and images that nothing uses when the disk fills up.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::backoff::Backoff;
use base::drain::Drain;
use parking_lot::Mutex;
use runtime::cri::{self, ContainerState, ErrorKind, SandboxState};
use tracing::{info, warn};

use crate::metrics;
use crate::node::Node;
use crate::observed::{ANNOTATION_GRACE, LABEL_POD_UID, PodRuntime};

/// How often what ended containers left is looked for, and how often the disk is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Periods {
    pub containers: Duration,
    pub images: Duration,
}

impl Default for Periods {
    /// Upstream's.
    fn default() -> Self {
        Self { containers: Duration::from_secs(60), images: Duration::from_secs(300) }
    }
}

/// First and longest wait before the volumes of an orphan are taken away again.
const VOLUME_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(122));
const ORPHAN_GRACE_SECONDS: u64 = 30;

/// Ends pods that run but are wanted by nobody, and removes what they left. Called once
/// the API server's list and the static pods are known, and when the runtime was read
/// anew.
pub async fn remove_orphans(node: &Arc<Node>) {
    let wanted: BTreeSet<String> =
        node.pods.list().into_iter().filter_map(|it| it.pod.metadata.uid.clone()).collect();
    node.placements.retain(|uid| wanted.contains(uid));
    node.dynamic.retain(|uid| wanted.contains(uid));
    let mut orphans: BTreeSet<String> = node.observed.pods().into_iter().collect();
    if let Ok(entries) = std::fs::read_dir(node.config.root_dir.join("pods")) {
        orphans.extend(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()));
    }
    orphans.extend(node.volumes.attached.pods());
    metrics::node::orphans_sought();
    for uid in orphans.difference(&wanted) {
        let (node, uid) = (node.clone(), uid.clone());
        base::task::spawn(async move { remove_orphan(&node, &uid).await });
    }
    // What a process that died had staged for pods that are gone.
    node.volumes.csi.unstage_unused();
}

async fn remove_orphan(node: &Node, uid: &str) {
    let runtime = node.observed.pod(uid);
    if !runtime.sandboxes.is_empty() || !runtime.containers.is_empty() {
        metrics::pods::orphan_found();
    }
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
        metrics::node::orphan_files(true);
        // Its driver may have to come first.
        if node.drain.until(tokio::time::sleep(backoff.next_delay())).await.is_none() {
            return;
        }
    }
    if node.pods.get(uid).is_none() {
        metrics::node::orphan_files(false);
        node.users.release(uid);
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
pub fn remove_dead_links(node: &Node) {
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

/// Looks for what may go until the drain begins.
pub async fn run(node: Arc<Node>, drain: Drain) {
    let periods = node.config.garbage_periods;
    let containers = async {
        loop {
            tokio::time::sleep(periods.containers).await;
            if let Err(error) = collect_containers(&node).await {
                warn!(error, "containers not collected");
                node.recorder.warning(&node.reference(), "ContainerGCFailed", error);
            }
        }
    };
    let images = async {
        let mut has_failed = false;
        loop {
            tokio::time::sleep(periods.images).await;
            let collected = collect_images(&node).await;
            if let Err(error) = &collected {
                warn!(error, "images not collected");
                // Once may be chance.
                if has_failed {
                    node.recorder.warning(&node.reference(), "ImageGCFailed", error.clone());
                }
            }
            has_failed = collected.is_err();
        }
    };
    let both = async {
        tokio::join!(containers, images);
    };
    drain.until(both).await;
}

/// Ended containers that two of their name came after: their pod's worker removes them as they
/// come to be, and what could not be removed then is tried again.
fn left_over(mut containers: Vec<cri::Container>) -> Vec<cri::Container> {
    containers.sort_by_key(|it| Reverse(it.created_at));
    let mut seen: HashMap<(String, String), u32> = HashMap::new();
    containers.retain(|it| {
        let pod = it.labels.get(LABEL_POD_UID).cloned().unwrap_or_default();
        let later = seen.entry((pod, it.metadata.name.clone())).or_default();
        *later += 1;
        *later > 2 && it.state == ContainerState::Exited
    });
    containers
}

async fn collect_containers(node: &Node) -> Result<(), String> {
    remove_dead_links(node);
    let mut failed = Vec::new();
    for container in left_over(node.observed.containers()) {
        match node.runtime.remove_container(&container.id).await {
            Err(error) if error.kind != ErrorKind::NotFound => {
                let why = base::error::chain(&error).to_string();
                failed.push(format!("failed to remove container {:?}: {why}", container.id));
            }
            _ => node.observed.forget(&container.id),
        }
    }
    // As Go tells of several errors.
    match failed.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
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

/// When an image was first seen, and when something last used it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Age {
    first_seen: Instant,
    last_used: Option<Instant>,
}

/// What is known of the ages of images. It begins anew with the process, so that nothing is
/// thought unused for longer than this process has watched.
#[derive(Default)]
pub struct Ages(Mutex<HashMap<String, Age>>);

impl Ages {
    /// Notes what is there and what is used now; images that are gone are forgotten.
    fn look(&self, images: &[cri::Image], is_used: impl Fn(&cri::Image) -> bool, now: Instant) {
        let mut held = self.0.lock();
        held.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in images {
            let age =
                held.entry(image.id.clone()).or_insert(Age { first_seen: now, last_used: None });
            if is_used(image) {
                age.last_used = Some(now);
            }
        }
    }

    fn of(&self, id: &str) -> Option<Age> {
        self.0.lock().get(id).copied()
    }
}

/// Which unused images may go, the longest unused first; those that were never used go
/// before the others, and none that is younger than `minimum`.
fn order(images: Vec<(cri::Image, Age)>, minimum: Duration, now: Instant) -> Vec<cri::Image> {
    let mut images: Vec<_> = images
        .into_iter()
        .filter(|(_, age)| now.saturating_duration_since(age.first_seen) >= minimum)
        .collect();
    images.sort_by_key(|(image, age)| (age.last_used, age.first_seen, Reverse(image.size)));
    images.into_iter().map(|(image, _)| image).collect()
}

/// Whether an image has been unused for so long that it goes without a need of its room.
fn is_too_old(age: Age, maximum: Duration, now: Instant) -> bool {
    !maximum.is_zero()
        && now.saturating_duration_since(age.last_used.unwrap_or(age.first_seen)) > maximum
}

async fn collect_images(node: &Node) -> Result<(), String> {
    remove_old_images(node).await?;
    let dir = node.images.service.image_dir();
    let stat = rustix::fs::statvfs(&dir).map_err(|error| error.to_string())?;
    if stat.f_blocks == 0 {
        let error = "invalid capacity 0 on image filesystem".to_owned();
        node.recorder.warning(&node.reference(), "InvalidDiskCapacity", error.clone());
        return Err(error);
    }
    let (high, low) = node.config.image_gc_percent;
    let wanted =
        bytes_to_free(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize, high, low);
    let left = remove_images(node, wanted).await?;
    if left > 0 {
        let error = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, \
             but only found {} bytes eligible to free.",
            wanted - left
        );
        node.recorder.warning(&node.reference(), "FreeDiskSpaceFailed", error.clone());
        return Err(error);
    }
    Ok(())
}

/// Removes every image that nothing uses, however young: the node is short of room.
///
/// # Errors
/// When the images cannot be listed.
pub async fn remove_unused_images(node: &Node) -> Result<(), String> {
    remove(node, unused(node).await?, SPACE, (u64::MAX, Duration::ZERO)).await.map(drop)
}

/// The images that nothing uses, with what is known of their ages.
async fn unused(node: &Node) -> Result<Vec<(cri::Image, Age)>, String> {
    let containers = node.observed.containers();
    let images = node.images.service.list_images().await.map_err(|error| error.to_string())?;
    node.images.prune_records(&images);
    let is_used = |image: &cri::Image| containers.iter().any(|it| uses(it, image));
    node.image_ages.look(&images, is_used, Instant::now());
    Ok(images
        .into_iter()
        .filter(|image| !image.pinned && !is_used(image))
        .filter_map(|image| node.image_ages.of(&image.id).map(|age| (image, age)))
        .collect())
}

async fn remove_old_images(node: &Node) -> Result<(), String> {
    let now = Instant::now();
    let maximum = node.config.image_age_max;
    let images = unused(node).await?;
    let old = images.into_iter().filter(|(_, age)| is_too_old(*age, maximum, now)).collect();
    remove(node, old, AGE, (u64::MAX, node.config.image_age_min)).await.map(drop)
}

/// Removes images that nothing uses until `wanted` bytes are free; what is still missing.
async fn remove_images(node: &Node, wanted: u64) -> Result<u64, String> {
    let images = unused(node).await?;
    remove(node, images, SPACE, (wanted, node.config.image_age_min)).await
}

/// What images are removed for.
const SPACE: &str = "space";
const AGE: &str = "age";

/// How many bytes are wanted, and how old images are at least that go for it.
async fn remove(
    node: &Node,
    images: Vec<(cri::Image, Age)>,
    reason: &'static str,
    (mut wanted, age_min): (u64, Duration),
) -> Result<u64, String> {
    for image in order(images, age_min, Instant::now()) {
        if wanted == 0 {
            break;
        }
        match node.images.service.remove_image(&image.id).await {
            Ok(()) => {
                info!(image = image.id, bytes = image.size, "unused image removed");
                metrics::pods::image_collected(reason);
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

    fn image(id: &str, size: u64) -> cri::Image {
        cri::Image { id: id.into(), size, ..cri::Image::default() }
    }

    #[test]
    fn the_longest_unused_image_goes_first_and_a_young_one_stays() {
        let begin = Instant::now();
        let at = |second: u64| begin + Duration::from_secs(second);
        let ages = Ages::default();
        let all = [image("old", 1), image("used", 2), image("never", 3), image("never-large", 9)];
        ages.look(&all, |it| ["old", "used"].contains(&it.id.as_str()), at(0));
        ages.look(&all, |it| it.id == "used", at(60));
        let with_young: Vec<cri::Image> = all.iter().cloned().chain([image("young", 5)]).collect();
        ages.look(&with_young, |_| false, at(120));
        let known: Vec<_> =
            with_young.iter().map(|it| (it.clone(), ages.of(&it.id).unwrap())).collect();
        let ids = |minimum: u64| -> Vec<String> {
            let minimum = Duration::from_secs(minimum);
            order(known.clone(), minimum, at(180)).into_iter().map(|it| it.id).collect()
        };
        assert_eq!(ids(0), ["never-large", "never", "young", "old", "used"]);
        assert_eq!(ids(120), ["never-large", "never", "old", "used"]);
        let too_old = |id: &str, maximum: u64| {
            is_too_old(ages.of(id).unwrap(), Duration::from_secs(maximum), at(180))
        };
        assert!(too_old("old", 150) && !too_old("used", 150) && too_old("never", 150));
        assert!(!too_old("never", 0), "0 keeps images whatever their age");
        ages.look(&[], |_| false, at(200));
        assert_eq!(ages.of("old"), None);
    }

    #[test]
    fn of_each_name_the_two_newest_containers_stay() {
        let container = |id: i64, pod: &str, name: &str, state| cri::Container {
            id: format!("{pod}{name}{id}"),
            created_at: id,
            labels: [(LABEL_POD_UID.to_owned(), pod.to_owned())].into(),
            ..crate::plan::samples::container(name, state, 0)
        };
        let (ended, runs) = (ContainerState::Exited, ContainerState::Running);
        let all = vec![
            container(1, "p", "a", ended),
            container(2, "p", "a", ended),
            container(4, "p", "a", runs),
            container(3, "p", "a", ended),
            container(1, "p", "b", ended),
            container(2, "p", "b", ended),
            container(1, "q", "a", ended),
            container(5, "q", "b", ended),
            container(3, "q", "b", runs),
            container(4, "q", "b", ended),
        ];
        let ids: Vec<String> = left_over(all).into_iter().map(|it| it.id).collect();
        assert_eq!(ids, ["pa2", "pa1"]);
    }

    #[test]
    fn the_disk_is_freed_from_the_high_to_the_low_mark() {
        assert_eq!(bytes_to_free(1000, 200, 85, 80), 0);
        assert_eq!(bytes_to_free(1000, 100, 85, 80), 100);
        assert_eq!(bytes_to_free(0, 0, 85, 80), 0);
    }
}
