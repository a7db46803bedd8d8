//! Directories of the node that several pods have at once: the group of their files is that of
//! who came first, for as long as he is there.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::mounts;

/// The group of what is mounted at `place`, a pod's own directory below `root`, where other pods
/// have mounted the same; None where nobody has.
pub fn group_of_others(root: &Path, place: &Path) -> Option<u32> {
    let below = place.strip_prefix(root.join("pods")).ok()?;
    let mut parts = below.components();
    let own = parts.next()?.as_os_str().to_owned();
    let inner = parts.as_path();
    let pods = std::fs::read_dir(root.join("pods")).ok()?.flatten();
    let others = pods.filter(|pod| pod.file_name() != own).map(|pod| pod.path().join(inner));
    let is_shared = others.into_iter().any(|it| mounts::is_mounted(&it).unwrap_or(false));
    is_shared.then(|| std::fs::metadata(place).ok()).flatten().map(|it| it.gid())
}

/// Upstream's words.
pub fn warning(wanted: u32, volume: &str, held: u32) -> String {
    format!(
        "The requested fsGroup is {wanted}, but the volume {volume} has GID {held}. The volume may \
         not be shareable."
    )
}
