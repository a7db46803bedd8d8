//! Reads the cases of ReplicaSets: `spec`, `pods`, and `ranks`, how many kin share each pod's
//! node.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::plan::{Counts, Scale, plan};
use crate::cases::{now, object, objects, overlay};
use crate::owner::name;

pub fn steps(world: &Value) -> Vec<String> {
    let labels = json!({"app": "web"});
    let mut set = json!({"is": "web", "spec": {"selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": []}}}});
    overlay(&mut set["spec"], &world["spec"]);
    if world["set"].is_string() {
        set["is"] = world["set"].clone();
    }
    let set: ReplicaSet = object(&set);
    let mut pods: Vec<Arc<Pod>> = objects(&world["pods"]);
    for pod in &mut pods {
        let labels = Arc::make_mut(pod).metadata.labels.get_or_insert_default();
        labels.entry("app".into()).or_insert_with(|| "web".into());
    }
    let ranks = || serde_json::from_value(world["ranks"].clone()).unwrap_or_default();
    let plan = plan(&set, &pods, &ranks, now().as_second());
    let mut out = match &plan.scale {
        Scale::Nothing => Vec::new(),
        Scale::Create(count) => vec![format!("create {count}")],
        Scale::Delete(pods) => {
            pods.iter().map(|pod| format!("delete {}", name(&pod.metadata))).collect()
        }
    };
    let Counts { replicas, fully_labeled, ready, available, terminating } = plan.counts;
    let numbers = [
        ("replicas", replicas),
        ("labeled", fully_labeled),
        ("ready", ready),
        ("available", available),
        ("terminating", terminating),
    ];
    let some = numbers.into_iter().filter(|(_, number)| *number > 0);
    let some: Vec<String> = some.map(|(what, number)| format!("{number} {what}")).collect();
    out.extend((!some.is_empty()).then(|| some.join(", ")));
    out.extend(plan.look_again_in.map(|seconds| format!("look again in {seconds} s")));
    out
}
