//! Nodes that hold the pod's images already are better, large images the more.

use super::{BEST, Contest};

/// Below this many bytes nothing is won, above the second (per container) no more.
const BYTES_MIN: i64 = 23 << 20;
const BYTES_MAX: i64 = 1000 << 20;

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let spec = contest.pod.spec()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let images: Vec<String> =
        containers.filter_map(|c| c.image.as_deref()).map(normalised).collect();
    let all = contest.snapshot.nodes().len().max(1) as i64;
    let most = BYTES_MAX * images.len().max(1) as i64;
    let score = |node: &&crate::snapshot::NodeInfo| {
        let held = images.iter().filter_map(|image| {
            let bytes = node.images.get(image)?;
            // An image that is everywhere draws nobody to a crowded node more.
            Some(bytes * contest.snapshot.nodes_with_image(image) as i64 / all)
        });
        let bytes = held.sum::<i64>().clamp(BYTES_MIN, most.max(BYTES_MIN));
        BEST * (bytes - BYTES_MIN) / (most - BYTES_MIN).max(1)
    };
    Some(contest.nodes.iter().map(score).collect())
}

/// Node status names images with their tag.
fn normalised(image: &str) -> String {
    let tail = image.rsplit('/').next().unwrap_or(image);
    if tail.contains(':') || image.contains('@') { image.into() } else { format!("{image}:latest") }
}
