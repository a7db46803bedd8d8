//! A pod that names its node goes there or nowhere.

use super::{Reject, Rule};
use crate::pod::{PodInfo, node_of};
use crate::snapshot::NodeInfo;

pub fn check(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
    match node_of(&pod.pod) {
        Some(name) if name != node.name => {
            Err(Reject::for_good(Rule::NodeName, "node(s) didn't match the requested node name"))
        }
        Some(_) | None => Ok(()),
    }
}
