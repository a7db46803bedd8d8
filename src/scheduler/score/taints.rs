//! Fewer `PreferNoSchedule` taints that the pod does not tolerate are better.

use super::{Contest, scaled};
use crate::filter::taints::tolerates;

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let tolerations = contest.pod.tolerations();
    let unwelcome = |node: &&crate::snapshot::NodeInfo| {
        let soft = node.taints().iter().filter(|taint| taint.effect == "PreferNoSchedule");
        soft.filter(|taint| !tolerations.iter().any(|t| tolerates(t, taint))).count() as i64
    };
    Some(scaled(contest.nodes.iter().map(unwelcome).collect(), true))
}
