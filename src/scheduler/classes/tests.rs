//! What a class picks is what the plan picks, whatever happens to the cluster in between.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::Classes;
use crate::classes::Found;
use crate::devices::Pending;
use crate::facts::{Caches, Taken, observe};
use crate::plan::{Chance, Plan, plan};
use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::snapshot::Snapshot;
use crate::testing::{node_with, pod_of};

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }

    fn happens(&mut self, in_a_hundred: u64) -> bool {
        self.below(100) < in_a_hundred
    }
}

fn node(dice: &mut Dice, number: u64) -> k8s_openapi::api::core::v1::Node {
    let mut labels = json!({"disk": dice.one_of(&["ssd", "hdd"])});
    if dice.happens(90) {
        labels[ZONE] = format!("z{}", dice.below(3)).into();
    }
    let mut spec = json!({});
    if dice.happens(20) {
        let effect = dice.one_of(&["NoSchedule", "PreferNoSchedule"]);
        spec["taints"] = json!([{"key": "t", "value": "v", "effect": effect}]);
    }
    if dice.happens(5) {
        spec["unschedulable"] = true.into();
    }
    let cpu = dice.one_of(&["2", "4", "8"]);
    let mut out = node_with(&format!("n{number}"), labels, spec, cpu, "16Gi");
    if dice.happens(30) {
        let images = json!([{"names": ["i:latest"], "sizeBytes": 300_000_000}]);
        out.status.as_mut().unwrap().images = serde_json::from_value(images).unwrap();
    }
    out
}

/// What all pods of one kind have in common.
fn template(dice: &mut Dice) -> (Value, Value) {
    let app = json!({"app": dice.one_of(&["a", "b"])});
    let select = |dice: &mut Dice| match dice.below(4) {
        0 => json!({"matchExpressions": [{"key": "own", "operator": "In", "values": ["0", "1"]}]}),
        _ => json!({"matchLabels": {"app": dice.one_of(&["a", "b"])}}),
    };
    let mut spec = json!({"priority": dice.below(2), "containers": [{"name": "c", "image": "i",
        "resources": {"requests": {"cpu": dice.one_of(&["100m", "500m", "1"])}}}]});
    if dice.happens(30) {
        spec["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 80}]);
    }
    if dice.happens(30) {
        spec["tolerations"] = json!([{"key": "t", "operator": "Exists"}]);
    }
    if dice.happens(20) {
        spec["nodeSelector"] = json!({"disk": "ssd"});
    }
    let key = |dice: &mut Dice| dice.one_of(&[ZONE, HOST, "disk"]);
    if dice.happens(50) {
        let constraints: Vec<Value> = (0..=dice.below(2))
            .map(|_| {
                json!({"maxSkew": 1 + dice.below(3), "topologyKey": key(dice),
                    "whenUnsatisfiable": dice.one_of(&["DoNotSchedule", "ScheduleAnyway"]),
                    "nodeTaintsPolicy": dice.one_of(&["Honor", "Ignore"]),
                    "nodeAffinityPolicy": dice.one_of(&["Honor", "Ignore"]),
                    "labelSelector": select(dice)})
            })
            .collect();
        spec["topologySpreadConstraints"] = constraints.into();
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let term =
            |dice: &mut Dice| json!({"topologyKey": key(dice), "labelSelector": select(dice)});
        if dice.happens(20) {
            spec["affinity"][kind]["requiredDuringSchedulingIgnoredDuringExecution"] =
                json!([term(dice)]);
        }
        if dice.happens(30) {
            spec["affinity"][kind]["preferredDuringSchedulingIgnoredDuringExecution"] =
                json!([{"weight": 1 + dice.below(100), "podAffinityTerm": term(dice)}]);
        }
    }
    if dice.happens(20) {
        spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([{"weight": 10, "preference": {"matchExpressions": [
                {"key": "disk", "operator": "In", "values": ["hdd"]}]}}]);
    }
    (app, spec)
}

struct World {
    dice: Dice,
    snapshot: Snapshot,
    caches: Caches,
    classes: Classes,
    profile: Arc<Profile>,
    placed: Vec<(Arc<PodInfo>, String)>,
    start: usize,
    made: u64,
}

impl World {
    fn new(seed: u64, nodes: u64) -> Self {
        let mut dice = Dice(seed);
        let mut snapshot = Snapshot::default();
        for number in 0..nodes {
            snapshot.set_node(Arc::new(node(&mut dice, number)));
        }
        let caches = Caches::empty();
        let service = json!({"metadata": {"namespace": "default", "name": "s"},
            "spec": {"selector": {"app": "a"}}});
        caches.services.put(serde_json::from_value(service).unwrap());
        Self {
            dice,
            snapshot,
            caches,
            classes: Classes::default(),
            profile: Arc::default(),
            placed: Vec::new(),
            start: 0,
            made: 0,
        }
    }

    fn pod(&mut self, (labels, spec): &(Value, Value)) -> Pod {
        self.made += 1;
        let mut labels = labels.clone();
        // Sometimes it matters to others, and mostly it does not.
        if self.dice.happens(50) {
            labels["own"] = self.dice.below(4).to_string().into();
        }
        pod_of(&format!("p{}", self.made), labels, spec.clone())
    }

    /// Asks both, and places the pod where they say.
    fn compare(&mut self, pod: Pod) {
        let pod = Arc::new(PodInfo::new(Arc::new(pod)));
        let (taken, pending) = (Taken::new(), Pending::new());
        let observe = || observe(&pod, &self.profile, &self.caches, &taken, &pending);
        let throw = self.dice.below(1 << 30);
        let facts = observe();
        let mut slow_start = self.start;
        let mut chance = Chance { start: &mut slow_start, below: &mut |bound| throw % bound };
        let slow =
            plan(&pod, facts.as_ref(), &self.profile, &self.snapshot, &Vec::new, &mut chance);
        let found =
            self.classes.of(&pod, &self.profile, (&self.caches, &self.snapshot), || observe().ok());
        let Found { class, columns } = found.expect("a pod without volumes has a class");
        let mut chance = Chance { start: &mut self.start, below: &mut |bound| throw % bound };
        let quick = class.pick(&pod, &self.snapshot, columns, &mut chance);
        let quick = quick.map(|at| self.snapshot.nodes()[at].name.clone());
        match slow {
            Plan::Bind { node } => {
                assert_eq!(quick, Some(node.clone()), "{:?}", pod.pod);
                assert_eq!(self.start, slow_start);
                self.snapshot.place(pod.clone(), &node);
                self.placed.push((pod, node));
            }
            Plan::Wait(refusal) => {
                assert_eq!(quick, None, "{}: {:?}", refusal.message, pod.pod);
                if let Some(victims) = &refusal.victims {
                    self.snapshot.nominate(pod.clone(), &victims.node);
                } else {
                    class.refuse(&pod, &self.snapshot, &refusal);
                    let held = class.refusal(&pod, &self.snapshot).expect("nothing has changed");
                    assert_eq!(held.message, refusal.message);
                }
            }
        }
    }

    /// Something happens that no plan is about.
    fn happen(&mut self, nodes: u64) {
        let number = self.dice.below(nodes);
        match self.dice.below(12) {
            0 => {
                let changed = node(&mut self.dice, number);
                self.snapshot.set_node(Arc::new(changed));
            }
            1 => self.snapshot.remove_node(&format!("n{number}")),
            2..=5 if !self.placed.is_empty() => {
                let gone = self.dice.below(self.placed.len() as u64) as usize;
                let (pod, _) = self.placed.swap_remove(gone);
                self.snapshot.remove_pod(&pod.uid);
            }
            6 if !self.placed.is_empty() => {
                let at = self.dice.below(self.placed.len() as u64) as usize;
                let (pod, node) = &mut self.placed[at];
                let mut changed = (*pod.pod).clone();
                changed.metadata.labels = Some([("app".into(), "b".into())].into());
                *pod = Arc::new(PodInfo::new(Arc::new(changed)));
                self.snapshot.place(pod.clone(), node);
            }
            7 if !self.placed.is_empty() => {
                let at = self.dice.below(self.placed.len() as u64) as usize;
                let (pod, node) = &mut self.placed[at];
                let mut changed = serde_json::to_value(&*pod.pod).unwrap();
                changed["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
                let changed: Pod = serde_json::from_value(changed).unwrap();
                *pod = Arc::new(PodInfo::new(Arc::new(changed)));
                self.snapshot.place(pod.clone(), node);
            }
            8 => {
                let name = self.dice.one_of(&["a", "b"]);
                let service = json!({"metadata": {"namespace": "default", "name": name},
                    "spec": {"selector": {"app": self.dice.one_of(&["a", "b"])}}});
                self.caches.services.put(serde_json::from_value(service).unwrap());
            }
            9 => {
                let waiting: Vec<String> = (0..self.made).map(|it| format!("p{it}")).collect();
                self.snapshot.forget_nomination(&self.dice.one_of(&waiting));
            }
            _ => {}
        }
    }
}

fn check(seeds: std::ops::Range<u64>, nodes: u64, pods: usize) {
    for seed in seeds {
        let mut world = World::new(seed, nodes);
        let templates: Vec<(Value, Value)> = (0..4).map(|_| template(&mut world.dice)).collect();
        for _ in 0..pods {
            let of = world.dice.one_of(&templates);
            let pod = world.pod(&of);
            world.compare(pod);
            if world.dice.happens(30) {
                world.happen(nodes);
            }
        }
    }
}

#[test]
fn in_small_clusters_a_class_picks_what_the_plan_picks() {
    check(0..60, 6, 60);
}

#[test]
fn in_large_clusters_where_a_part_suffices_it_does_so_too() {
    check(100..103, 230, 150);
}

#[test]
fn labels_that_nobody_selects_by_make_no_class() {
    let mut world = World::new(1, 5);
    for number in 0..5 {
        let labels = json!({"app": "a", "number": number.to_string()});
        let pod = pod_of(&format!("own-{number}"), labels, json!({}));
        world.compare(pod);
    }
    assert_eq!(world.classes.held.len(), 1);
    let anti = json!({"affinity": {"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": HOST,
            "labelSelector": {"matchLabels": {"number": "7"}}}]}}});
    let pod = pod_of("apart", json!({}), anti);
    world.compare(pod);
    for number in 6..9 {
        let labels = json!({"app": "a", "number": number.to_string()});
        world.compare(pod_of(&format!("own-{number}"), labels, json!({})));
    }
    assert_eq!(world.classes.held.len(), 5, "three more, and the one that stays apart");
}

#[test]
fn pods_that_all_look_different_are_remembered_up_to_a_bound() {
    let mut world = World::new(11, 5);
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": HOST,
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}}]});
    let of = (json!({"app": "a"}), spread);
    for number in 0..300 {
        // Fewer than the moves that are remembered, for each question.
        for own in 0..8 {
            let labels = json!({"app": "a", "number": format!("{number}-{own}")});
            let passing = world.pod(&(labels, json!({})));
            let passing = Arc::new(PodInfo::new(Arc::new(passing)));
            world.snapshot.place(passing.clone(), "n1");
            world.snapshot.remove_pod(&passing.uid);
        }
        let pod = world.pod(&of);
        world.compare(pod);
    }
}

#[test]
fn who_is_forgotten_or_far_behind_counts_anew() {
    let mut world = World::new(7, 5);
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": HOST,
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}}]});
    let of = (json!({"app": "a"}), spread);
    let pod = world.pod(&of);
    world.compare(pod);
    // More pods come and go than are remembered.
    for _ in 0..3_000 {
        let passing = world.pod(&(json!({"app": "a"}), json!({})));
        let passing = Arc::new(PodInfo::new(Arc::new(passing)));
        world.snapshot.place(passing.clone(), "n1");
        world.snapshot.remove_pod(&passing.uid);
    }
    for _ in 0..4 {
        let pod = world.pod(&of);
        world.compare(pod);
    }
    // More classes come than are remembered.
    for number in 0..200 {
        let asks = json!({"requests": {"memory": number.to_string()}});
        let spec = json!({"containers": [{"name": "c", "image": "i", "resources": asks}]});
        let pod = world.pod(&(json!({}), spec));
        world.compare(pod);
    }
    assert_eq!(world.classes.held.len(), super::CLASSES_MAX);
    let pod = world.pod(&of);
    world.compare(pod);
}
