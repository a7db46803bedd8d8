//! Reads the cases of pods that nobody else removes: a `pod`, and its `node`, if it is there.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::Value;

use super::plan::{Verdict, judge};
use crate::cases::object;

pub fn steps(world: &Value) -> Vec<String> {
    let pod: Pod = object(&world["pod"]);
    let node: Option<Node> = world["node"].is_string().then(|| object(&world["node"]));
    match judge(&pod, node.as_ref()) {
        Verdict::Keep => Vec::new(),
        Verdict::Homeless => vec!["remove if the node stays away".into()],
        Verdict::Unplaced => vec!["remove if nobody else does".into()],
        Verdict::Remove => vec!["remove".into()],
    }
}
