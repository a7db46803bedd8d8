//! Reads the cases of StatefulSets: `spec`, `pods` (with `nameless`, a pod whose labels do not say
//! who it is), `claims` (words, with `by=KIND/NAME` for each owner). Revisions are `old` and
//! `new`; `show: status` has the status come out as well.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use super::identity;
use super::plan::{Held, World, plan};
use crate::cases::{now, object, objects, overlay};
use crate::owner::name;

fn held(set: &StatefulSet, value: &Value) -> Held {
    let text = value.as_str().unwrap();
    let plain: Vec<&str> = text.split_whitespace().filter(|word| *word != "nameless").collect();
    let mut pod: Pod = object(&plain.join(" ").into());
    if !text.contains("nameless")
        && let Some((_, ordinal)) = identity::parse(name(&pod.metadata))
    {
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.extend(identity::labels(set, ordinal));
    }
    let going = pod.metadata.deletion_timestamp.is_some();
    Held { pod: Arc::new(pod), going }
}

pub fn steps(world: &Value) -> Vec<String> {
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}});
    let mut set = json!({"is": "web", "spec": {"serviceName": "web", "selector": {},
        "template": {}, "replicas": 3, "updateStrategy": rolling}});
    overlay(&mut set["spec"], &world["spec"]);
    if world["set"].is_string() {
        set["is"] = world["set"].clone();
    }
    let set: StatefulSet = object(&set);
    let pods = world["pods"].as_array().into_iter().flatten();
    let pods: Vec<Held> = pods.map(|pod| held(&set, pod)).collect();
    let claims: Vec<Arc<PersistentVolumeClaim>> = objects(&world["claims"]);
    let claim = |of: &str| claims.iter().find(|claim| name(&claim.metadata) == of).cloned();
    let plan = plan(&World {
        set: &set,
        pods: &pods,
        current: "old",
        update: "new",
        claim: &claim,
        now: now().as_second(),
    });
    let mut out: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
    if world["show"] == "status" {
        let status = plan.status;
        let number = |number: Option<i32>| number.unwrap_or(0);
        out.push(format!(
            "{} replicas, {} ready, {} available, {} current, {} updated, at {}",
            status.replicas,
            number(status.ready_replicas),
            number(status.available_replicas),
            number(status.current_replicas),
            number(status.updated_replicas),
            status.current_revision.unwrap_or_default(),
        ));
    }
    out.extend(plan.look_again_in.map(|seconds| format!("look again in {seconds} s")));
    out
}
