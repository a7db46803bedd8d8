//! Taints and the tolerations that answer them.

use client::fit::tolerates;
use k8s_openapi::api::core::v1::Taint;

use super::{Reject, Rule};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// The first taint that keeps new pods away and is not tolerated.
pub fn untolerated<'a>(pod: &PodInfo, node: &'a NodeInfo) -> Option<&'a Taint> {
    let bars = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    let answered = |taint: &Taint| pod.tolerations().iter().any(|t| tolerates(t, taint));
    node.taints().iter().filter(bars).find(|taint| !answered(taint))
}

pub fn check(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
    match untolerated(pod, node) {
        None => Ok(()),
        Some(_) => Err(Reject::for_good(Rule::TaintToleration, "node(s) had untolerated taint(s)")),
    }
}
