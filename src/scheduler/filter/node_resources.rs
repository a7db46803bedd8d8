//! Resources: what is asked for must be left on the node.

use super::{Reject, Rule};
use crate::pod::PodInfo;
use crate::profile::Fit;
use crate::snapshot::NodeInfo;

/// Resources that are `brought` by devices are those devices' business.
pub fn check(
    pod: &PodInfo,
    fit: &Fit,
    node: &NodeInfo,
    brought: &dyn Fn(&str) -> bool,
) -> Result<(), Reject> {
    let (asked, used, all) = (&pod.requests.asked, &node.used, &node.allocatable);
    let mut reasons = Vec::new();
    // Where the pod is larger than the whole node, removing others does not help.
    let mut resolvable = true;
    if used.pods + asked.pods > all.pods {
        reasons.push("Too many pods".to_string());
        resolvable &= asked.pods <= all.pods;
    }
    if !asked.is_nothing() {
        let mut compare = |name: &str, asked: i64, used: i64, all: i64| {
            if asked > 0 && asked > all - used {
                reasons.push(format!("Insufficient {name}"));
                resolvable &= asked <= all;
            }
        };
        compare("cpu", asked.cpu, used.cpu, all.cpu);
        compare("memory", asked.memory, used.memory, all.memory);
        compare("ephemeral-storage", asked.storage, used.storage, all.storage);
        for (name, value) in &asked.other {
            if fit.ignores(name) || brought(name) {
                continue;
            }
            let of = |list: &crate::resources::Resources| {
                list.other.get(name).copied().unwrap_or_default()
            };
            compare(name, *value, of(used), of(all));
        }
    }
    if reasons.is_empty() {
        return Ok(());
    }
    Err(Reject { rule: Rule::NodeResourcesFit, reasons, resolvable })
}
