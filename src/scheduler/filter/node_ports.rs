//! Host ports: one pod each.

use super::{Reject, Rule};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

pub fn check(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
    if pod.ports.is_empty() || !pod.ports.iter().any(|port| node.ports().any(|p| p.clashes(port))) {
        return Ok(());
    }
    Err(Reject::for_now(
        Rule::NodePorts,
        "node(s) didn't have free ports for the requested pod ports",
    ))
}
