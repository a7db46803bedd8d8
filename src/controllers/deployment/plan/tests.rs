//! Deployments played step by step against a cluster of values.

use super::*;

/// Applies the steps of plans to values, and lets all pods become ready at once.
struct Play {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    log: Vec<String>,
    next: i64,
}

impl Play {
    fn new(replicas: i32, strategy: Value) -> Self {
        let deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
            "spec": {"replicas": replicas, "strategy": strategy, "revisionHistoryLimit": 1,
                "progressDeadlineSeconds": 600, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "one"}]}}}}))
        .expect("a deployment");
        Self { deployment, sets: Vec::new(), log: Vec::new(), next: 0 }
    }

    fn image(&mut self, image: &str) {
        let spec = self.deployment.spec.as_mut().unwrap();
        spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    /// Plans and applies until nothing changes.
    fn settle(&mut self) {
        for _ in 0..50 {
            let world = World {
                deployment: &self.deployment.clone(),
                sets: self.sets.iter().cloned().map(Arc::new).collect(),
                with_pods: HashSet::new(),
                now: base::time::parse("2026-01-01T00:00:00Z").unwrap(),
            };
            let steps = plan(&world).steps;
            if steps.is_empty() {
                return;
            }
            for step in steps {
                self.apply(step);
            }
            for set in &mut self.sets {
                let n = wanted(set);
                set.status = serde_json::from_value(json!({"replicas": n, "readyReplicas": n,
                    "availableReplicas": n, "observedGeneration": set.metadata.generation}))
                .unwrap();
            }
        }
        panic!("never settles: {:?}", self.log);
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Create(mut set) => {
                self.next += 1;
                set.metadata.uid = Some(format!("s{}", self.next));
                let at = base::time::parse(&format!("2025-01-01T00:00:{:02}Z", self.next));
                set.metadata.creation_timestamp =
                    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at.unwrap()));
                self.log.push(format!("create s{} {}", self.next, wanted(&set)));
                self.sets.push(*set);
            }
            Step::Change { set, from, to, patch } => {
                if from != to {
                    self.log.push(format!("{} {from}>{to}", uid(&set.metadata)));
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
            Step::Status(status) => {
                self.deployment.status = serde_json::from_value(status).unwrap();
            }
        }
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let conditions = self.deployment.status.as_ref().unwrap().conditions.as_ref().unwrap();
        let found = conditions.iter().find(|c| c.type_ == kind).expect("a condition");
        (found.status.clone(), found.reason.clone().unwrap_or_default())
    }

    fn revision(&self) -> &str {
        annotation(&self.deployment.metadata, revision::REVISION).unwrap_or_default()
    }
}

fn rolling(surge: Value, unavailable: Value) -> Value {
    json!({"type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

#[test]
fn a_new_deployment_comes_up_and_says_so() {
    let mut play = Play::new(3, rolling(json!("25%"), json!("25%")));
    play.settle();
    assert_eq!(play.log, ["create s1 3"]);
    assert_eq!(play.condition("Available"), ("True".into(), "MinimumReplicasAvailable".into()));
    assert_eq!(play.condition("Progressing"), ("True".into(), "NewReplicaSetAvailable".into()));
    let status = play.deployment.status.clone().unwrap();
    assert_eq!(status.available_replicas, Some(3));
    assert_eq!(status.unavailable_replicas, None);
    assert_eq!(play.revision(), "1");
}

#[test]
fn a_rollout_an_undo_and_the_history() {
    let mut play = Play::new(2, rolling(json!(1), json!(0)));
    play.settle();
    play.image("two");
    play.log.clear();
    play.settle();
    assert_eq!(play.log, ["create s2 1", "s1 2>1", "s2 1>2", "s1 1>0"]);
    assert_eq!(play.revision(), "2");
    play.image("one");
    play.log.clear();
    play.settle();
    assert_eq!(play.log, ["s1 0>1", "s2 2>1", "s1 1>2", "s2 1>0"]);
    assert_eq!(play.revision(), "3");
    play.image("three");
    play.log.clear();
    play.settle();
    assert_eq!(play.log.last().unwrap(), "delete s2", "one old set is kept");
}

#[test]
fn scaling_touches_the_one_active_set() {
    let mut play = Play::new(2, rolling(json!(1), json!(0)));
    play.settle();
    play.log.clear();
    play.deployment.spec.as_mut().unwrap().replicas = Some(5);
    play.settle();
    assert_eq!(play.log, ["s1 2>5"]);
    play.deployment.spec.as_mut().unwrap().replicas = Some(0);
    play.settle();
    assert_eq!(play.log, ["s1 2>5", "s1 5>0"]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut play = Play::new(2, rolling(json!(1), json!(0)));
    play.settle();
    play.log.clear();
    play.image("two");
    play.deployment.spec.as_mut().unwrap().paused = Some(true);
    play.deployment.spec.as_mut().unwrap().replicas = Some(3);
    play.settle();
    assert_eq!(play.log, ["s1 2>3"]);
    assert_eq!(play.condition("Progressing").1, "DeploymentPaused");
}

#[test]
fn recreate_removes_the_old_before_it_makes_the_new() {
    let mut play = Play::new(2, json!({"type": "Recreate"}));
    play.settle();
    play.log.clear();
    play.image("two");
    play.settle();
    assert_eq!(play.log, ["s1 2>0", "create s2 2"]);
}
