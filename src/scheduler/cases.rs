//! Reads the files in `cases/`: each case has a world and a pod, and says what the plan makes of
//! them. `cases/README.md` says how a case is written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::Config;
use crate::devices::Pending;
use crate::facts::{Caches, Facts, Nowhere, Taken, observe};
use crate::filter::volumes;
use crate::plan::{self, Chance, Plan, Unschedulable};
use crate::pod::PodInfo;
use crate::preempt::{Budget, Budgets};
use crate::profile::Profile;
use crate::snapshot::Snapshot;
use crate::testing::pod_of;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// By name, for cases that share one.
    #[serde(default)]
    worlds: BTreeMap<String, World>,
    cases: Vec<Case>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct World {
    nodes: BTreeMap<String, Has>,
    running: Vec<Runs>,
    objects: Vec<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Has {
    labels: Map<String, Value>,
    taints: Vec<Value>,
    unschedulable: bool,
    /// What can be allocated, besides or instead of 8 CPUs, 16Gi and 110 pods.
    allocatable: Map<String, Value>,
    images: Vec<Value>,
    declares: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Runs {
    name: String,
    namespace: Option<String>,
    /// None where the pod is promised a node only.
    node: Option<String>,
    nominated: Option<String>,
    /// It is going to end.
    leaving: bool,
    labels: Map<String, Value>,
    /// What its only container asks for.
    asks: Map<String, Value>,
    spec: Map<String, Value>,
    status: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    case: String,
    #[serde(default)]
    world: Option<String>,
    #[serde(default)]
    nodes: BTreeMap<String, Has>,
    #[serde(default)]
    running: Vec<Runs>,
    #[serde(default)]
    objects: Vec<Value>,
    #[serde(default)]
    profile: Option<Value>,
    pod: Runs,
    /// Nodes that will do.
    #[serde(default)]
    able: Option<BTreeSet<String>>,
    /// Nodes that are the best, all equally good.
    #[serde(default, rename = "goes to")]
    goes_to: Option<OneOrMore>,
    /// What `FailedScheduling` says.
    #[serde(default)]
    says: Option<String>,
    /// Pods that are removed to make room, and from where.
    #[serde(default)]
    evicts: Vec<String>,
    #[serde(default)]
    from: Option<String>,
    /// By claim, `request=device`, and `request=device:capacity` of devices that are shared.
    #[serde(default)]
    gets: BTreeMap<String, Vec<String>>,
    /// Claims whose devices are freed.
    #[serde(default)]
    frees: Option<String>,
    /// By claim, the volume; nothing where one is to be provisioned.
    #[serde(default)]
    volumes: BTreeMap<String, Option<String>>,
    /// The weighted sum of all scores, by node.
    #[serde(default)]
    scores: BTreeMap<String, i64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(BTreeSet<String>),
}

fn read<K: DeserializeOwned>(value: Value) -> K {
    let shown = value.to_string();
    serde_json::from_value(value).unwrap_or_else(|err| panic!("{err}: {shown}"))
}

fn node(name: &str, has: &Has) -> Node {
    let mut labels = has.labels.clone();
    labels.entry("kubernetes.io/hostname").or_insert_with(|| name.into());
    let mut allocatable = json!({"cpu": "8", "memory": "16Gi", "pods": "110"});
    for (resource, value) in &has.allocatable {
        allocatable[resource] = text(value);
    }
    read(json!({"metadata": {"name": name, "labels": labels},
        "spec": {"taints": has.taints, "unschedulable": has.unschedulable},
        "status": {"allocatable": allocatable, "images": has.images,
            "declaredFeatures": has.declares}}))
}

/// Quantities may be written as numbers.
fn text(value: &Value) -> Value {
    match value {
        Value::Number(number) => number.to_string().into(),
        other => other.clone(),
    }
}

fn pod(of: &Runs) -> Pod {
    let mut spec = Value::Object(of.spec.clone());
    if !of.asks.is_empty() {
        let asks: Map<String, Value> =
            of.asks.iter().map(|(name, value)| (name.clone(), text(value))).collect();
        spec["containers"] = json!([{"name": "c", "image": "i", "resources": {"requests": asks}}]);
    }
    let name = if of.name.is_empty() { "mypod" } else { &of.name };
    let mut pod = pod_of(name, Value::Object(of.labels.clone()), spec);
    if let Some(namespace) = &of.namespace {
        pod.metadata.namespace = Some(namespace.clone());
    }
    if of.leaving {
        pod.metadata.deletion_timestamp = Some(read("2026-01-01T00:00:00Z".into()));
    }
    let mut status = of.status.clone();
    if let Some(node) = &of.nominated {
        status.insert("nominatedNodeName".into(), node.clone().into());
    }
    pod.status = Some(read(Value::Object(status)));
    pod
}

/// Everything that a plan looks at.
struct Scene {
    snapshot: Snapshot,
    caches: Caches,
    budgets: Budgets,
    profile: Arc<Profile>,
}

impl Scene {
    fn new(worlds: &BTreeMap<String, World>, case: &Case) -> Self {
        let base = case.world.as_ref().map(|name| {
            worlds.get(name).unwrap_or_else(|| panic!("{}: no world {name}", case.case)).clone()
        });
        let mut world = base.unwrap_or_default();
        world.nodes.extend(case.nodes.clone());
        world.running.extend(case.running.iter().cloned());
        world.objects.extend(case.objects.iter().cloned());
        let profile = case.profile.as_ref().map_or_else(Arc::default, |profile| {
            let text = json!({"apiVersion": "kubescheduler.config.k8s.io/v1",
                "kind": "KubeSchedulerConfiguration", "profiles": [profile]});
            let config = Config::parse(&text.to_string()).expect("a configuration");
            Arc::new(config.profiles[0].clone())
        });
        let mut out = Self {
            snapshot: Snapshot::default(),
            caches: Caches::empty(),
            budgets: Budgets::new(),
            profile,
        };
        for (name, has) in &world.nodes {
            out.snapshot.set_node(Arc::new(node(name, has)));
        }
        for of in &world.running {
            let pod = Arc::new(PodInfo::new(Arc::new(pod(of))));
            match (&of.node, &of.nominated) {
                (Some(node), _) => drop(out.snapshot.place(pod, node)),
                (None, Some(node)) => out.snapshot.nominate(pod, node),
                (None, None) => panic!("{}: pod {} is nowhere", case.case, of.name),
            }
        }
        for object in world.objects {
            out.put(object);
        }
        out
    }

    fn put(&mut self, object: Value) {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let mut object = object;
        let meta = &mut object["metadata"];
        if meta["uid"].is_null() {
            meta["uid"] = meta["name"].clone();
        }
        const CLUSTERED: [&str; 7] = [
            "DeviceClass",
            "ResourceSlice",
            "StorageClass",
            "PersistentVolume",
            "CSIDriver",
            "CSINode",
            "Namespace",
        ];
        if !CLUSTERED.contains(&kind.as_str()) && meta["namespace"].is_null() {
            meta["namespace"] = "default".into();
        }
        let caches = &self.caches;
        match kind.as_str() {
            "DeviceClass" => caches.devices.classes.put(read(object)),
            "ResourceSlice" => caches.devices.slices.put(read(object)),
            "ResourceClaim" => caches.devices.claims.put(read(object)),
            "Namespace" => caches.namespaces.put(read(object)),
            "Service" => caches.services.put(read(object)),
            "StorageClass" => caches.classes.put(read(object)),
            "PersistentVolume" => caches.volumes.put(read(object)),
            "PersistentVolumeClaim" => caches.claims.put(read(object)),
            "CSINode" => caches.csi_nodes.put(read(object)),
            "CSIStorageCapacity" => caches.capacities.put(read(object)),
            "CSIDriver" => caches.drivers.put(read(object)),
            "PodDisruptionBudget" => {
                self.budgets.push(Budget::new(&read::<PodDisruptionBudget>(object)));
            }
            other => panic!("objects of kind {other:?} are not looked at"),
        }
    }

    fn facts(&self, pod: &PodInfo) -> Result<Facts, Nowhere> {
        observe(pod, &self.profile, &self.caches, &Taken::new(), &Pending::new())
    }

    /// The plan where the dice say `dice`.
    fn plan(&self, pod: &PodInfo, dice: u64) -> Plan {
        let facts = self.facts(pod);
        let budgets = || self.budgets.clone();
        let (mut start, mut below) = (0, |bound: u64| dice.min(bound.saturating_sub(1)));
        let mut chance = Chance { start: &mut start, below: &mut below };
        plan::plan(pod, facts.as_ref(), &self.profile, &self.snapshot, &budgets, &mut chance)
    }

    /// Every node that the dice can choose.
    fn winners(&self, pod: &PodInfo) -> Result<BTreeSet<String>, Box<Unschedulable>> {
        let all = self.snapshot.nodes().len().max(1) as u64;
        (0..all)
            .map(|dice| match self.plan(pod, dice) {
                Plan::Bind { node } => Ok(node),
                Plan::Wait(refusal) => Err(Box::new(refusal)),
            })
            .collect()
    }

    fn check(&self, case: &Case) {
        let name = &case.case;
        let pod = PodInfo::new(Arc::new(pod(&case.pod)));
        let found = self.winners(&pod);
        if let Ok(facts) = self.facts(&pod) {
            self.check_survey(case, &pod, &facts);
            if let Ok(nodes) = &found {
                self.check_gains(case, &facts, nodes);
            }
        }
        match (&case.goes_to, found) {
            (Some(OneOrMore::One(want)), found) => {
                assert_eq!(found.map_err(|it| it.message), Ok([want.clone()].into()), "{name}");
            }
            (Some(OneOrMore::More(want)), found) => {
                assert_eq!(found.as_ref().map_err(|it| &it.message), Ok(want), "{name}");
            }
            (None, Ok(nodes)) => {
                let is_expected = case.able.is_some() || !case.scores.is_empty();
                assert!(is_expected, "{name}: goes to {nodes:?}");
            }
            (None, Err(refusal)) => check_refusal(case, &refusal),
        }
    }

    fn check_survey(&self, case: &Case, pod: &PodInfo, facts: &Facts) {
        let mut start = 0;
        let mut chance = Chance { start: &mut start, below: &mut |_| 0 };
        let (able, _) = plan::survey(pod, facts, &self.snapshot, &mut chance);
        let scores: BTreeMap<String, i64> = able
            .into_iter()
            .map(|(node, score)| (node.metadata.name.clone().unwrap_or_default(), score))
            .collect();
        if let Some(want) = &case.able {
            let able: BTreeSet<String> = scores.keys().cloned().collect();
            assert_eq!(able, *want, "{}: able nodes", case.case);
        }
        for (node, want) in &case.scores {
            assert_eq!(scores.get(node), Some(want), "{}: score of {node}", case.case);
        }
    }

    /// What comes with the node.
    fn check_gains(&self, case: &Case, facts: &Facts, nodes: &BTreeSet<String>) {
        let name = &case.case;
        let node = nodes.first().and_then(|node| self.snapshot.get(node)).expect("a node");
        if let Some(devices) = &facts.devices {
            let grants = devices.grants(node).expect("grants");
            let found: BTreeMap<String, Vec<String>> = grants
                .iter()
                .filter_map(|grant| {
                    let results = grant.allocation.as_ref()?.devices.as_ref()?.results.as_ref()?;
                    let claim = grant.claim.metadata.name.clone()?;
                    Some((claim, results.iter().map(shown).collect()))
                })
                .collect();
            assert_eq!(found, case.gets, "{name}: devices");
        }
        let choices = volumes::choose(facts, node).expect("volumes");
        let found: BTreeMap<String, Option<String>> = choices
            .iter()
            .map(|choice| {
                let volume = match choice {
                    volumes::Choice::Take { volume, .. } => volume.metadata.name.clone(),
                    volumes::Choice::Provision { .. } => None,
                };
                (choice.claim().metadata.name.clone().unwrap_or_default(), volume)
            })
            .collect();
        assert_eq!(found, case.volumes, "{name}: volumes");
    }
}

fn shown(it: &k8s_openapi::api::resource::v1::DeviceRequestAllocationResult) -> String {
    let taken = it.consumed_capacity.iter().flatten();
    let taken: Vec<String> = taken.map(|(name, value)| format!(":{name}={}", value.0)).collect();
    format!("{}={}{}", it.request, it.device, taken.join(""))
}

fn check_refusal(case: &Case, refusal: &Unschedulable) {
    let name = &case.case;
    assert_eq!(Some(refusal.message.as_str()), case.says.as_deref(), "{name}");
    let victims = refusal.victims.as_ref();
    let mut evicted: Vec<String> =
        victims.iter().flat_map(|it| &it.pods).map(|pod| pod.name.clone()).collect();
    evicted.sort();
    assert_eq!(evicted, case.evicts, "{name}: victims");
    assert_eq!(victims.map(|it| it.node.clone()), case.from, "{name}: node of the victims");
    let idle = refusal.idle.as_ref().and_then(|it| it.metadata.name.clone());
    assert_eq!(idle, case.frees, "{name}: claim that is freed");
}

#[test]
fn the_plan_is_what_the_files_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .expect("the folder of cases")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|it| it == "yaml"))
        .collect();
    files.sort();
    let (mut count, mut failed) = (0, Vec::new());
    for path in files {
        let text = std::fs::read_to_string(&path).expect("a file of cases");
        let file: File = codec::yaml::read::typed(&text)
            .unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        for case in &file.cases {
            count += 1;
            // All that fail are shown, each by its own words.
            let check = || Scene::new(&file.worlds, case).check(case);
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err() {
                failed.push(format!("{}: {}", path.display(), case.case));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(count > 0, "no cases in {}", dir.display());
}
