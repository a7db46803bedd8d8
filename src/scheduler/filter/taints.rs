//! Taints and the tolerations that answer them.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::{Reject, Rule};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// Whether one toleration answers one taint (core/v1, Toleration).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let said = |text: &Option<String>| text.clone().unwrap_or_default();
    let effect = said(&toleration.effect);
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = said(&toleration.key);
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let number = |text: &str| text.parse::<i64>().ok();
    let mine = said(&toleration.value);
    let its = said(&taint.value);
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => mine == its && !key.is_empty(),
        "Exists" => true,
        "Gt" => number(&its).zip(number(&mine)).is_some_and(|(its, mine)| its > mine),
        "Lt" => number(&its).zip(number(&mine)).is_some_and(|(its, mine)| its < mine),
        _ => false,
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(toleration: serde_json::Value, taint: serde_json::Value, want: bool) {
        let (a, b) = (toleration.to_string(), taint.to_string());
        let toleration: Toleration = serde_json::from_value(toleration).expect("a toleration");
        let taint: Taint = serde_json::from_value(taint).expect("a taint");
        assert_eq!(tolerates(&toleration, &taint), want, "{a} {b}");
    }

    #[test]
    fn tolerations_answer_taints() {
        let taint = || json!({"key": "a", "value": "5", "effect": "NoSchedule"});
        check(json!({"operator": "Exists"}), taint(), true);
        check(json!({"key": "a", "operator": "Exists"}), taint(), true);
        check(json!({"key": "b", "operator": "Exists"}), taint(), false);
        check(json!({"key": "a", "value": "5"}), taint(), true);
        check(json!({"key": "a", "value": "6"}), taint(), false);
        check(json!({"key": "a", "operator": "Exists", "effect": "NoExecute"}), taint(), false);
        check(json!({"key": "a", "operator": "Gt", "value": "4"}), taint(), true);
        check(json!({"key": "a", "operator": "Lt", "value": "4"}), taint(), false);
    }
}
