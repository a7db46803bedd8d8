//! Reads the cases of claims and volumes. With a `volume`: what becomes of it, given the `claim` that
//! it refers to. Otherwise what a `claim` needs (1Gi, ReadWriteOnce, but for its `spec`): `named` is the volume that
//! it names, `volumes` those that may do, `class` (`mode`, `provisioner`), `default_class`, and `pods`
//! that wait for it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::{Value, json};

use super::claim::{self, World};
use super::{Say, reclaim};
use crate::cases::{lines, object, overlay};
use crate::owner::name;

fn claim(given: &Value) -> PersistentVolumeClaim {
    let mut claim = json!({"is": "c uid=u", "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    overlay(&mut claim, given);
    object(&claim)
}

fn volume(given: &Value) -> PersistentVolume {
    let mut volume = json!({"is": "v", "spec": {"accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "1Gi"}}, "status": {"phase": "Available"}});
    match given {
        Value::String(words) => volume["is"] = words.as_str().into(),
        given => overlay(&mut volume, given),
    }
    object(&volume)
}

fn said(say: &Say) -> String {
    format!("tell {}: {}", say.reason, say.text)
}

pub fn steps(world: &Value) -> Vec<String> {
    if !world["volume"].is_null() {
        return vec![reclaimed(world)];
    }
    let claim = claim(&world["claim"]);
    let class = world["class"].is_object().then(|| {
        Arc::new(object(&json!({"is": "s", "provisioner": world["class"]["provisioner"],
            "volumeBindingMode": world["class"]["mode"]})))
    });
    let candidates = world["volumes"].as_array().into_iter().flatten();
    let step = claim::plan(&World {
        claim: &claim,
        named: (!world["named"].is_null()).then(|| Arc::new(volume(&world["named"]))),
        candidates: candidates.map(|given| Arc::new(volume(given))).collect(),
        class,
        default_class: world["default_class"].as_str().map(str::to_string),
        waiting_pods: lines(&world["pods"]),
    });
    match step {
        claim::Step::Wait(None) => vec!["wait".into()],
        claim::Step::Wait(Some(say)) => vec!["wait".into(), said(&say)],
        claim::Step::Lost(say) => vec!["lost".into(), said(&say)],
        claim::Step::Bind(volume) => vec![format!("bind {}", name(&volume.metadata))],
        claim::Step::Provision { provisioner, say } => {
            vec![format!("leave it to {provisioner}"), said(&say)]
        }
        claim::Step::UseClass(class) => vec![format!("use the class {class}")],
    }
}

fn reclaimed(world: &Value) -> String {
    let claim = (!world["claim"].is_null()).then(|| claim(&world["claim"]));
    match reclaim::plan(&volume(&world["volume"]), claim.as_ref()) {
        reclaim::Step::Nothing => "nothing".into(),
        reclaim::Step::Phase(phase) => format!("is {phase}"),
        reclaim::Step::LookAtClaim => "look at the claim".into(),
        reclaim::Step::Unbind { forget: true } => "unbind, and forget the claim".into(),
        reclaim::Step::Unbind { forget: false } => "unbind".into(),
        reclaim::Step::Fail(say) => said(&say),
        reclaim::Step::Recycle => "recycle".into(),
    }
}
