//! Cordoned nodes take only pods that tolerate it.

use client::fit::tolerates;
use k8s_openapi::api::core::v1::Taint;

use super::{Reject, Rule};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

pub fn check(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
    if !node.is_unschedulable() {
        return Ok(());
    }
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    if pod.tolerations().iter().any(|toleration| tolerates(toleration, &taint)) {
        return Ok(());
    }
    Err(Reject::for_good(Rule::NodeUnschedulable, "node(s) were unschedulable"))
}
