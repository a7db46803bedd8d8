//! Devices: those of allocated claims must be reachable, and there must be some for the rest.

use super::{Reject, Rule};
use crate::facts::Facts;
use crate::snapshot::NodeInfo;

pub fn check(facts: &Facts, node: &NodeInfo) -> Result<(), Reject> {
    match &facts.devices {
        None => Ok(()),
        Some(devices) => match devices.grants(node) {
            Ok(_) => Ok(()),
            // Pods that go leave their claims allocated.
            Err(reason) => Err(Reject::for_good(Rule::DynamicResources, reason)),
        },
    }
}
