//! Resources left over, used, or used as a shape likes it: the profile says which of these.

use super::{BEST, Contest};
use crate::pod::PodInfo;
use crate::profile::{Fit, Strategy};
use crate::snapshot::NodeInfo;

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let fit = &contest.facts.profile.fit;
    Some(contest.nodes.iter().map(|node| of_node(contest.pod, fit, node)).collect())
}

pub fn of_node(pod: &PodInfo, fit: &Fit, node: &NodeInfo) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for (name, weight) in &fit.resources {
        let Some((used, all)) = used(pod, node, name) else { continue };
        let one = worth(&fit.strategy, used, all);
        // Of a shape only what is worth something counts.
        if one > 0 || !matches!(fit.strategy, Strategy::ByShape(_)) {
            sum += one * weight;
            weights += weight;
        }
    }
    match (weights, &fit.strategy) {
        (0, _) => 0,
        (_, Strategy::ByShape(_)) => (sum as f64 / weights as f64).round() as i64,
        (_, _) => sum / weights,
    }
}

/// What would be used with the pod, and what there is; None where it does not count.
fn used(pod: &PodInfo, node: &NodeInfo, name: &str) -> Option<(i64, i64)> {
    let (requests, all) = (&pod.requests, &node.allocatable);
    let (used, all) = match name {
        "cpu" => (node.weighed_cpu + requests.weighed_cpu, all.cpu),
        "memory" => (node.weighed_memory + requests.weighed_memory, all.memory),
        name => {
            let asked = requests.asked.get(name);
            // Nodes are not compared by what the pod does not want.
            if asked == 0 && name != "ephemeral-storage" {
                return None;
            }
            (node.used.get(name) + asked, all.get(name))
        }
    };
    (all > 0).then_some((used, all))
}

fn worth(strategy: &Strategy, used: i64, all: i64) -> i64 {
    match strategy {
        Strategy::LeastAllocated if used > all => 0,
        Strategy::LeastAllocated => (all - used) * BEST / all,
        Strategy::MostAllocated => used.min(all) * BEST / all,
        Strategy::ByShape(points) => {
            let percent = if used > all { BEST } else { used * BEST / all };
            on_shape(points, percent)
        }
    }
}

/// Straight lines between the points, level beyond them.
fn on_shape(points: &[(i64, i64)], percent: i64) -> i64 {
    let Some(at) = points.iter().position(|(x, _)| percent <= *x) else {
        return points.last().map_or(0, |(_, y)| *y);
    };
    let (x, y) = points[at];
    match at.checked_sub(1).map(|before| points[before]) {
        None => y,
        Some((x0, y0)) => y0 + (y - y0) * (percent - x0) / (x - x0).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_value_use_differently() {
        let rising = Strategy::ByShape(vec![(0, 0), (100, 100)]);
        let hill = Strategy::ByShape(vec![(20, 10), (50, 100), (80, 0)]);
        for (strategy, used, want) in [
            (&Strategy::LeastAllocated, 25, 75),
            (&Strategy::LeastAllocated, 120, 0),
            (&Strategy::MostAllocated, 25, 25),
            (&Strategy::MostAllocated, 120, 100),
            (&rising, 30, 30),
            (&hill, 10, 10),
            (&hill, 35, 55),
            (&hill, 65, 50),
            (&hill, 99, 0),
        ] {
            assert_eq!(worth(strategy, used, 100), want, "{strategy:?} {used}");
        }
    }
}
