//! Reads the cases of PodDisruptionBudgets: `spec`, `status`, `pods`, and `scale`, what the pods'
//! owners ask for together (as many as there are pods, if it is not given).

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use super::plan::{plan, stale_in};
use crate::cases::{now, object, objects};
use crate::owner::name;

pub fn steps(world: &Value) -> Vec<String> {
    let mut budget = json!({"is": "budget", "spec": world["spec"]});
    if world["status"].is_object() {
        budget["status"] = world["status"].clone();
    }
    let budget: PodDisruptionBudget = object(&budget);
    let pods: Vec<Arc<Pod>> = objects(&world["pods"]);
    let scale = world["scale"].as_i64().map_or(pods.len() as i32, |scale| scale as i32);
    let plan = plan(&budget, &pods, scale, now());
    let status = &plan.status;
    let number = |number: Option<i32>| number.unwrap_or(0);
    let mut out = vec![format!(
        "{} may go: {} of {} healthy, {} wanted",
        number(status.disruptions_allowed),
        number(status.current_healthy),
        number(status.expected_pods),
        number(status.desired_healthy),
    )];
    let leaving: Vec<&str> =
        status.disrupted_pods.iter().flatten().map(|(name, _)| name.as_str()).collect();
    out.extend((!leaving.is_empty()).then(|| format!("evicted: {}", leaving.join(" "))));
    out.extend(plan.spared.iter().map(|pod| format!("spared {}", name(&pod.metadata))));
    out.extend(plan.look_again_in.map(|wait| format!("look again in {} s", wait.as_secs())));
    for pod in &pods {
        out.extend(stale_in(pod, now()).map(|left| {
            format!("the mark of {} is stale in {} s", name(&pod.metadata), left.as_secs())
        }));
    }
    out
}
