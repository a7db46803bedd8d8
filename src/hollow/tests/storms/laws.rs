//! What may never be, whatever the weather: looked at after each change of a pod.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use client::api::{ListParams, WatchEvent};
use client::{Client, Error};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use crate::fate;
use crate::world::NODES;

/// The four replicas of `web` and their surge. Their sets are asked for no more; a pod that a
/// set has too many may live for as long as it takes to say so.
const WEB_MAX: i32 = 5;
/// Of the four replicas of `web`, what their budget keeps.
pub const WEB_AVAILABLE_MIN: usize = 3;

/// How much more may be than is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Slack {
    /// Of pods that have no name of their own.
    pub pods: usize,
}

pub struct Laws {
    /// Whether nothing but evictions takes pods of `web`.
    guards: Arc<AtomicBool>,
    broken: Arc<Mutex<Vec<String>>>,
    /// Pods that ever were, by owner's kind.
    pub made: Arc<Mutex<BTreeMap<String, HashSet<String>>>>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Drop for Laws {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}

fn owner(pod: &Pod) -> Option<(&str, &str)> {
    let owner = pod.metadata.owner_references.as_ref()?.iter().find(|o| o.controller == Some(true));
    owner.map(|owner| (owner.kind.as_str(), owner.name.as_str()))
}

fn is_active(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

impl Laws {
    pub fn watch(client: &Client, slack: Slack) -> Self {
        let broken: Arc<Mutex<Vec<String>>> = Arc::default();
        let made: Arc<Mutex<BTreeMap<String, HashSet<String>>>> = Arc::default();
        let guards: Arc<AtomicBool> = Arc::default();
        let guarded = guards.clone();
        let api = client.api::<Pod>(Some("default"));
        let (out, of) = (broken.clone(), made.clone());
        let (sets, told) = (client.api::<ReplicaSet>(Some("default")), broken.clone());
        let of_sets = tokio::spawn(async move {
            let mut wanted: BTreeMap<String, i32> = BTreeMap::new();
            let mut stream = sets.watch(&ListParams::default(), "0").await.unwrap();
            while let Some(event) = stream.next().await {
                match event.unwrap() {
                    WatchEvent::Added(set) | WatchEvent::Modified(set) => {
                        let replicas = set.spec.and_then(|spec| spec.replicas).unwrap_or(1);
                        wanted.insert(set.metadata.name.unwrap(), replicas);
                    }
                    WatchEvent::Deleted(set) => drop(wanted.remove(&set.metadata.name.unwrap())),
                    WatchEvent::Bookmark(_) => {}
                }
                let sum: i32 = wanted.values().sum();
                if sum > WEB_MAX {
                    told.lock().push(format!("{wanted:?} are more than the surge allows"));
                }
            }
        });
        let task = tokio::spawn(async move {
            let mut pods: HashMap<String, Pod> = HashMap::new();
            let mut stream = api.watch(&ListParams::default(), "0").await.unwrap();
            while let Some(event) = stream.next().await {
                let event: Result<WatchEvent<Pod>, Error> = event;
                let event = event.unwrap();
                fate::tell(step(&event));
                match event {
                    WatchEvent::Added(pod) => {
                        if let Some((kind, _)) = owner(&pod) {
                            let uid = pod.metadata.uid.clone().unwrap_or_default();
                            of.lock().entry(kind.to_string()).or_default().insert(uid);
                        }
                        out.lock().extend(born(&pods, &pod));
                        pods.insert(pod.metadata.name.clone().unwrap(), pod);
                    }
                    WatchEvent::Modified(pod) => {
                        let name = pod.metadata.name.clone().unwrap();
                        let before = pods.get(&name).and_then(|old| node(old));
                        if before.is_some() && before != node(&pod) {
                            out.lock().push(format!("{name} was bound twice"));
                        }
                        pods.insert(name, pod);
                    }
                    WatchEvent::Deleted(pod) => {
                        pods.remove(&pod.metadata.name.unwrap());
                    }
                    WatchEvent::Bookmark(_) => {}
                }
                let broken = count(&pods, slack);
                broken.iter().for_each(|law| fate::tell(law.clone()));
                out.lock().extend(broken);
                if guarded.load(Ordering::Relaxed) {
                    out.lock().extend(available(&pods));
                }
            }
        });
        Self { guards, broken, made, tasks: [of_sets, task] }
    }

    /// From now on the budget is looked at, or not any more.
    pub fn guard(&self, guards: bool) {
        self.guards.store(guards, Ordering::Relaxed);
    }

    #[track_caller]
    pub fn are_kept(&self) {
        assert_eq!(*self.broken.lock(), Vec::<String>::new());
    }
}

fn step(event: &WatchEvent<Pod>) -> String {
    let (what, pod) = match event {
        WatchEvent::Added(pod) => ("added", pod),
        WatchEvent::Modified(pod) => ("modified", pod),
        WatchEvent::Deleted(pod) => ("deleted", pod),
        WatchEvent::Bookmark(_) => return "bookmark".into(),
    };
    let metadata = &pod.metadata;
    let (name, uid, version) = (&metadata.name, &metadata.uid, &metadata.resource_version);
    format!("{what} {name:?} {uid:?} {version:?} on {:?}", node(pod))
}

/// A StatefulSet's pods come one after the other.
fn born(pods: &HashMap<String, Pod>, pod: &Pod) -> Option<String> {
    let (kind, set) = owner(pod)?;
    let name = pod.metadata.name.as_deref()?;
    let ordinal: usize = name.strip_prefix(set)?.strip_prefix('-')?.parse().ok()?;
    if kind != "StatefulSet" || ordinal == 0 {
        return None;
    }
    let before = format!("{set}-{}", ordinal - 1);
    let waits = !pods.get(&before).is_some_and(is_ready);
    waits.then(|| format!("{name} came before {before} was ready"))
}

fn available(pods: &HashMap<String, Pod>) -> Option<String> {
    let is_web = |pod: &&Pod| {
        pod.metadata.labels.as_ref().is_some_and(|l| l.get("app").is_some_and(|app| app == "web"))
    };
    let all = pods.values().filter(is_web);
    let are = all.filter(|pod| is_active(pod) && is_ready(pod)).count();
    (are < WEB_AVAILABLE_MIN).then(|| format!("only {are} of web are available"))
}

fn count(pods: &HashMap<String, Pod>, slack: Slack) -> Vec<String> {
    let mut owners: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut daemons: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in pods.values().filter(|pod| is_active(pod)) {
        let Some((kind, name)) = owner(pod) else { continue };
        *owners.entry((kind, name)).or_default() += 1;
        if let ("DaemonSet", "agent", Some(node)) = (kind, name, node(pod)) {
            *daemons.entry(node).or_default() += 1;
        }
    }
    let mut out = Vec::new();
    for ((kind, name), are) in owners {
        // A job that runs two at a time; the others are asked for so many.
        let (most, slack) = match kind {
            "ReplicaSet" => (4, slack.pods),
            "ReplicationController" | "Job" => (2, slack.pods),
            "DaemonSet" => (NODES as usize, slack.pods),
            _ => (3, 0),
        };
        if are > most + slack {
            out.push(format!("{are} pods of {kind} {name}, at most {most} are asked for"));
        }
    }
    let twice = daemons.iter().filter(|(_, count)| **count > 1 + slack.pods);
    out.extend(twice.map(|(node, count)| format!("{count} daemons on {node}")));
    out
}
