//! Reads the cases of attachments of the volume `v` to the node `n`: whether it is `wanted`, `held`
//! (`attached`, or `not yet`), what the `node` says (`is` and `uses` it, `told` that it has it; null: it is
//! gone), and whether it is `overdue`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use serde_json::{Value, json};

use super::plan::{Disk, Step, disk, is_exclusive, lingering, plan};
use crate::cases::object;

fn volume(spec: &Value) -> Arc<PersistentVolume> {
    let csi = json!({"driver": "d.example", "volumeHandle": "h"});
    Arc::new(object(&json!({"is": "v", "spec": {"csi": csi, "accessModes": spec["modes"]}})))
}

fn node(given: &Value, unique: &str) -> Option<Node> {
    if given.is_null() {
        return None;
    }
    let mut status = json!({});
    if given["uses"] == true {
        status["volumesInUse"] = json!([unique]);
    }
    if given["told"] == true {
        status["volumesAttached"] = json!([{"name": unique, "devicePath": ""}]);
    }
    Some(object(&json!({"is": given["is"].as_str().unwrap_or("n"), "status": status})))
}

pub fn steps(world: &Value) -> Vec<String> {
    let volume = volume(world);
    if world["modes"].is_array() {
        return vec![if is_exclusive(&volume) { "one node" } else { "several nodes" }.into()];
    }
    let disk = disk(&volume, "n").unwrap();
    let (of, unique) = (disk.attachment(), disk.unique_name());
    let wanted: BTreeMap<String, Disk> =
        (world["wanted"] == true).then(|| (of.clone(), disk)).into_iter().collect();
    let held = world["held"].as_str().map(|state| -> Arc<VolumeAttachment> {
        Arc::new(object(&json!({"is": of, "spec": {"attacher": "d.example", "nodeName": "n",
            "source": {"persistentVolumeName": "v"}},
            "status": {"attached": state == "attached"}})))
    });
    let held: Vec<Arc<VolumeAttachment>> = held.into_iter().collect();
    let node = node(&world["node"], &unique);
    let overdue: Vec<&str> = (world["overdue"] == true).then_some(&*of).into_iter().collect();
    let find = |_: &str| Some(volume.clone());
    let line = |step: &Step| match step {
        Step::Attach(_) => "attach".to_string(),
        Step::Detach(_) => "detach".into(),
        Step::Tell(attached) if attached.is_empty() => "tell the node that it has nothing".into(),
        Step::Tell(_) => "tell the node that it has it".into(),
    };
    let steps = plan(&wanted, &held, node.as_ref(), &overdue, &find);
    let mut out: Vec<String> = steps.iter().map(line).collect();
    let lingers = !lingering(&wanted, &held, node.as_ref(), &find).is_empty();
    out.extend(lingers.then(|| "wait until it is unmounted".to_string()));
    out
}
