//! More CPU and memory left over is better.

use super::{BEST, Contest};

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let requests = &contest.pod.requests;
    let left = |all: i64, used: i64| match all - used {
        ..0 => 0,
        left => left * BEST / all.max(1),
    };
    let score = |node: &&crate::snapshot::NodeInfo| {
        let (cpu, memory) = (node.allocatable.cpu, node.allocatable.memory);
        let (mut sum, mut count) = (0, 0);
        if cpu > 0 {
            sum += left(cpu, node.weighed_cpu + requests.weighed_cpu);
            count += 1;
        }
        if memory > 0 {
            sum += left(memory, node.weighed_memory + requests.weighed_memory);
            count += 1;
        }
        if count == 0 { 0 } else { sum / count }
    };
    Some(contest.nodes.iter().map(score).collect())
}
