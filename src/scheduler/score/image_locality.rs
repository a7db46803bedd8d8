//! Nodes that hold the pod's images already are better, large images the more; those of its
//! volumes count as well.

use super::{BEST, Contest};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// Below this many bytes nothing is won, above the second (per image) no more.
const BYTES_MIN: i64 = 23 << 20;
const BYTES_MAX: i64 = 1000 << 20;

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let images = images(contest.pod);
    Some(contest.nodes.iter().map(|node| of_node(&images, contest.snapshot, node)).collect())
}

/// The images of the pod's containers and volumes, as nodes name theirs.
pub fn images(pod: &PodInfo) -> Vec<String> {
    let Some(spec) = pod.spec() else { return Vec::new() };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref());
    let mounted = volumes.filter_map(|image| image.reference.as_deref());
    containers.filter_map(|c| c.image.as_deref()).chain(mounted).map(normalised).collect()
}

pub fn of_node(images: &[String], snapshot: &Snapshot, node: &NodeInfo) -> i64 {
    let all = snapshot.nodes().len().max(1) as i64;
    let most = BYTES_MAX * images.len().max(1) as i64;
    let held = images.iter().filter_map(|image| {
        let bytes = node.images.get(image)?;
        // An image that is everywhere draws nobody to a crowded node more.
        Some(bytes * snapshot.nodes_with_image(image) as i64 / all)
    });
    let bytes = held.sum::<i64>().clamp(BYTES_MIN, most.max(BYTES_MIN));
    BEST * (bytes - BYTES_MIN) / (most - BYTES_MIN).max(1)
}

/// Node status names images with their tag.
fn normalised(image: &str) -> String {
    let tail = image.rsplit('/').next().unwrap_or(image);
    if tail.contains(':') || image.contains('@') { image.into() } else { format!("{image}:latest") }
}
