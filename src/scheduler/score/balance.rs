//! CPU and memory used to a like fraction are better than one of them alone.

use super::{BEST, Contest};

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let asked = &contest.pod.requests.asked;
    if asked.cpu == 0 && asked.memory == 0 {
        return None;
    }
    let score = |node: &&crate::snapshot::NodeInfo| {
        let part = |all: i64, used: i64| (all > 0).then(|| (used as f64 / all as f64).min(1.0));
        let cpu = part(node.allocatable.cpu, node.used.cpu + asked.cpu);
        let memory = part(node.allocatable.memory, node.used.memory + asked.memory);
        let deviation = match (cpu, memory) {
            (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
            (_, _) => 0.0,
        };
        ((1.0 - deviation) * BEST as f64) as i64
    };
    Some(contest.nodes.iter().map(score).collect())
}
