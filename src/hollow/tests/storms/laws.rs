//! What may never be, whatever the weather: looked at after each change of a pod.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use client::api::{ListParams, WatchEvent};
use client::{Client, Error};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use crate::fate;
use crate::world::NODES;

/// How much more may be than is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Slack {
    /// Of pods that have no name of their own.
    pub pods: usize,
}

pub struct Laws {
    broken: Arc<Mutex<Vec<String>>>,
    /// Pods that ever were, by owner's kind.
    pub made: Arc<Mutex<BTreeMap<String, HashSet<String>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Laws {
    fn drop(&mut self) {
        self.task.abort();
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
        let api = client.api::<Pod>(Some("default"));
        let (out, of) = (broken.clone(), made.clone());
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
                out.lock().extend(count(&pods, slack));
            }
        });
        Self { broken, made, task }
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

fn count(pods: &HashMap<String, Pod>, slack: Slack) -> Vec<String> {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let mut daemons: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in pods.values().filter(|pod| is_active(pod)) {
        let Some((kind, name)) = owner(pod) else { continue };
        *kinds.entry(kind).or_default() += 1;
        if let ("DaemonSet", "agent", Some(node)) = (kind, name, node(pod)) {
            *daemons.entry(node).or_default() += 1;
        }
    }
    let mut out = Vec::new();
    // Four replicas and a surge of one, three of a set, a job that runs two at a time.
    for (kind, most) in
        [("ReplicaSet", 5), ("StatefulSet", 3), ("Job", 2), ("DaemonSet", NODES as usize)]
    {
        let slack = if kind == "StatefulSet" { 0 } else { slack.pods };
        let are = kinds.get(kind).copied().unwrap_or_default();
        if are > most + slack {
            out.push(format!("{are} pods of the {kind}, at most {most} are asked for"));
        }
    }
    let twice = daemons.iter().filter(|(_, count)| **count > 1 + slack.pods);
    out.extend(twice.map(|(node, count)| format!("{count} daemons on {node}")));
    out
}
