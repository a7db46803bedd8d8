//! Reads the cases of DaemonSets: `set` (words), `spec`, `nodes`, `pods` (`node=N revision=new`);
//! the present revision is `new`, and `show: status` has the status come out as well.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::plan::{Held, plan};
use crate::cases::{now, object, objects, overlay};
use crate::owner::name;

pub fn steps(world: &Value) -> Vec<String> {
    let mut set = json!({"is": "agent", "spec": {"selector": {},
        "template": {"spec": {"containers": []}}}});
    overlay(&mut set["spec"], &world["spec"]);
    if world["set"].is_string() {
        set["is"] = world["set"].clone();
    }
    let set: DaemonSet = object(&set);
    let nodes: Vec<Arc<Node>> = objects(&world["nodes"]);
    let held = |pod: Arc<Pod>| Held { going: pod.metadata.deletion_timestamp.is_some(), pod };
    let held: Vec<Held> = objects(&world["pods"]).into_iter().map(held).collect();
    let plan = plan(&set, &nodes, &held, "new", now().as_second());
    let named = |verb: &str, pods: &[Arc<Pod>]| -> Vec<String> {
        pods.iter().map(|pod| format!("{verb} {}", name(&pod.metadata))).collect()
    };
    let mut out: Vec<String> = plan.create.iter().map(|node| format!("create on {node}")).collect();
    out.extend(named("delete", &plan.delete));
    out.extend(named("replace", &plan.finished));
    if world["show"] == "status" {
        let number = |field: &str| plan.status[field].as_i64().unwrap_or(0);
        out.push(format!(
            "{} desired, {} scheduled, {} ready, {} available, {} updated, {} misplaced",
            number("desiredNumberScheduled"),
            number("currentNumberScheduled"),
            number("numberReady"),
            number("numberAvailable"),
            number("updatedNumberScheduled"),
            number("numberMisscheduled"),
        ));
    }
    out.extend(plan.look_again_in.map(|seconds| format!("look again in {seconds} s")));
    out
}
