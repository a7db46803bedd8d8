//! Plays the cases of deployments: `spec` (over three replicas, of image `one` but for `image`),
//! `status`, `annotations`, `sets` (words, with `image`, `wants`, `has` where it says other than
//! that, `available`, `at` a revision, `desired` and `max` replicas as they were when it was last
//! sized, and `fails` for a reason), and `pods_of`: the sets that have pods which run.
//!
//! `play` is what happens: `turn` (one plan; no pod changes), `settle` (plans until nothing
//! changes; all pods become ready at once), `image NAME`, `replicas N`, `pause`, `resume`, `note TEXT`
//! (an annotation), `undo REVISION` (by annotation). What comes out is what is done with the sets, and
//! with `show: status` what the deployment says in the end.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::plan::{Step, World, plan, wanted};
use super::revision;
use crate::cases::{lines, now, object, overlay, time};
use crate::owner::{annotation, uid};

/// Plans until nothing changes, at most.
const TURNS_MAX: usize = 50;

struct Play {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    with_pods: HashSet<String>,
    log: Vec<String>,
    look_again_in: Option<u64>,
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn set(text: &str) -> ReplicaSet {
    let mut words: Vec<&str> = Vec::new();
    let mut out = json!({"metadata": {"generation": 1, "annotations": {}},
        "spec": {"selector": {}, "replicas": 0}, "status": {"observedGeneration": 1}});
    for word in text.split_whitespace() {
        let Some((key, value)) = word.split_once('=') else {
            words.push(word);
            continue;
        };
        let number = || value.parse::<i32>().unwrap();
        let annotations = &mut out["metadata"]["annotations"];
        match key {
            "image" => out["spec"]["template"] = template(value),
            "wants" => {
                out["spec"]["replicas"] = number().into();
                out["status"]["replicas"] = number().into();
            }
            "available" => {
                out["status"]["readyReplicas"] = number().into();
                out["status"]["availableReplicas"] = number().into();
            }
            "has" => out["status"]["replicas"] = number().into(),
            "at" => annotations[revision::REVISION] = value.into(),
            "desired" => annotations[revision::DESIRED] = value.into(),
            "max" => annotations[revision::MAX] = value.into(),
            "fails" => {
                out["status"]["conditions"] = json!([{"type": "ReplicaFailure",
                    "status": "True", "reason": value, "message": "no"}]);
            }
            _ => words.push(word),
        }
    }
    let mut with = json!({"is": words.join(" ")});
    overlay(&mut with, &out);
    object(&with)
}

impl Play {
    fn new(world: &Value) -> Self {
        let image = world["image"].as_str().unwrap_or("one");
        let mut deployment = json!({"is": "web", "metadata": {"generation": 1}, "spec": {
            "replicas": 3, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}}, "template": template(image)}});
        overlay(&mut deployment["spec"], &world["spec"]);
        if world["status"].is_object() {
            deployment["status"] = world["status"].clone();
        }
        if world["annotations"].is_object() {
            deployment["metadata"]["annotations"] = world["annotations"].clone();
        }
        Self {
            deployment: object(&deployment),
            sets: lines(&world["sets"]).iter().map(|text| set(text)).collect(),
            with_pods: lines(&world["pods_of"]).into_iter().collect(),
            log: Vec::new(),
            look_again_in: None,
        }
    }

    fn happen(&mut self, what: &str) {
        let (verb, value) = what.split_once(' ').unwrap_or((what, ""));
        let spec = self.deployment.spec.as_mut().unwrap();
        match verb {
            "turn" => {
                self.turn();
                return;
            }
            "settle" => {
                for _ in 0..TURNS_MAX {
                    if !self.turn() {
                        return;
                    }
                    self.all_become_ready();
                }
                panic!("never settles: {:?}", self.log);
            }
            "undo" => {
                let annotations = self.deployment.metadata.annotations.get_or_insert_default();
                annotations.insert(revision::ROLLBACK_TO.into(), value.into());
            }
            "note" => {
                let annotations = self.deployment.metadata.annotations.get_or_insert_default();
                annotations.insert("note".into(), value.into());
            }
            "image" => spec.template = serde_json::from_value(template(value)).unwrap(),
            "replicas" => spec.replicas = Some(value.parse().unwrap()),
            "pause" => spec.paused = Some(true),
            "resume" => spec.paused = None,
            _ => panic!("nobody knows {what:?}"),
        }
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    /// False if nothing was done.
    fn turn(&mut self) -> bool {
        let world = World {
            deployment: &self.deployment.clone(),
            sets: self.sets.iter().cloned().map(Arc::new).collect(),
            with_pods: self.with_pods.clone(),
            now: now(),
        };
        let plan = plan(&world);
        self.look_again_in = plan.look_again_in;
        let acts = !plan.steps.is_empty();
        plan.steps.into_iter().for_each(|step| self.apply(step));
        acts
    }

    fn all_become_ready(&mut self) {
        for set in &mut self.sets {
            let count = wanted(set);
            set.status = serde_json::from_value(json!({"replicas": count, "readyReplicas": count,
                "availableReplicas": count, "observedGeneration": set.metadata.generation}))
            .unwrap();
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Create(mut set) => {
                let id = format!("s{}", self.sets.len() + 1);
                // In the order in which they were made.
                let age = 60 - self.sets.len();
                set.metadata.creation_timestamp = Some(Time(time(&format!("-{age}s"))));
                set.metadata.uid = Some(id.clone());
                set.metadata.generation = Some(1);
                self.log.push(format!("create {id} {}", wanted(&set)));
                self.sets.push(*set);
            }
            Step::Change { set, from, to, patch } => {
                if from != to {
                    self.log.push(format!("{} {from} to {to}", uid(&set.metadata)));
                }
                let held = self.sets.iter_mut().find(|s| s.metadata.uid == set.metadata.uid);
                let held = held.expect("a set that is there");
                held.spec.as_mut().unwrap().replicas = Some(to);
                let annotations = held.metadata.annotations.get_or_insert_default();
                for (key, value) in patch["metadata"]["annotations"].as_object().unwrap() {
                    annotations.insert(key.clone(), value.as_str().unwrap().into());
                }
            }
            Step::Annotate(patch) => {
                let annotations = self.deployment.metadata.annotations.get_or_insert_default();
                for (key, value) in patch["metadata"]["annotations"].as_object().unwrap() {
                    annotations.insert(key.clone(), value.as_str().unwrap().into());
                }
            }
            Step::Delete(set) => {
                self.log.push(format!("delete {}", uid(&set.metadata)));
                self.sets.retain(|s| s.metadata.uid != set.metadata.uid);
            }
            Step::RollBack(planned) => {
                self.log.push(format!("{}: {}", planned.reason, planned.message));
                self.deployment = *planned.deployment;
            }
            Step::Status(status) => {
                self.deployment.status = serde_json::from_value(status).unwrap();
            }
        }
    }

    fn show(&mut self) {
        let status = self.deployment.status.clone().unwrap_or_default();
        for condition in status.conditions.iter().flatten() {
            let reason = condition.reason.as_deref().unwrap_or_default();
            self.log.push(format!("{} {} {reason}", condition.type_, condition.status));
        }
        let number = |number: Option<i32>| number.unwrap_or(0);
        self.log.push(format!(
            "{} replicas, {} updated, {} available, {} unavailable",
            number(status.replicas),
            number(status.updated_replicas),
            number(status.available_replicas),
            number(status.unavailable_replicas),
        ));
        let revision = annotation(&self.deployment.metadata, revision::REVISION);
        self.log.extend(revision.map(|revision| format!("at revision {revision}")));
        let note = annotation(&self.deployment.metadata, "note");
        self.log.extend(note.map(|note| format!("noted {note}")));
        self.log.extend(self.look_again_in.map(|seconds| format!("look again in {seconds} s")));
    }
}

pub fn steps(world: &Value) -> Vec<String> {
    let mut play = Play::new(world);
    let happens = lines(&world["play"]);
    let happens = if happens.is_empty() { vec!["turn".to_string()] } else { happens };
    happens.iter().for_each(|what| play.happen(what));
    if world["show"] == "status" {
        play.show();
    }
    play.log
}
