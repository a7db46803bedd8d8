//! The nodes and what runs on them, kept up to date change by change.
//!
//! Never walks all nodes because one changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use client::fit::HostPort;
use k8s_openapi::api::core::v1::{Node, Taint};

use crate::keys::{self, Keys};
use crate::pod::{Labels, PodInfo};
use crate::resources::Resources;

mod moves;

pub use moves::Move;
use moves::Moves;

#[derive(Debug, Clone)]
pub struct NodeInfo {
    pub name: String,
    pub node: Arc<Node>,
    pub allocatable: Resources,
    /// Sum over `pods`.
    pub used: Resources,
    pub weighed_cpu: i64,
    pub weighed_memory: i64,
    pub pods: BTreeMap<String, Arc<PodInfo>>,
    /// Bytes by every name of an image.
    pub images: Arc<HashMap<String, i64>>,
    /// How many of `pods` have (anti-)affinity terms.
    pub with_terms: usize,
}

impl NodeInfo {
    pub fn new(node: Arc<Node>) -> Self {
        let mut out = Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            node: Arc::default(),
            allocatable: Resources::default(),
            used: Resources::default(),
            weighed_cpu: 0,
            weighed_memory: 0,
            pods: BTreeMap::new(),
            images: Arc::default(),
            with_terms: 0,
        };
        out.set_images(&node);
        out.set_node(node);
        out
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        self.allocatable = Resources::parse(status.and_then(|s| s.allocatable.as_ref()));
        self.node = node;
    }

    fn set_images(&mut self, node: &Node) {
        let status = node.status.as_ref();
        let mut images = HashMap::new();
        for image in status.and_then(|s| s.images.as_ref()).into_iter().flatten() {
            for name in image.names.iter().flatten() {
                images.insert(name.clone(), image.size_bytes.unwrap_or_default());
            }
        }
        self.images = Arc::new(images);
    }

    pub fn labels(&self) -> Option<&Labels> {
        self.node.metadata.labels.as_ref()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }

    pub fn taints(&self) -> &[Taint] {
        self.node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
    }

    pub fn is_unschedulable(&self) -> bool {
        self.node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or_default()
    }

    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.remove_pod(&pod.uid);
        self.used.add(&pod.requests.asked);
        self.weighed_cpu += pod.requests.weighed_cpu;
        self.weighed_memory += pod.requests.weighed_memory;
        self.with_terms += usize::from(pod.terms.is_some());
        self.pods.insert(pod.uid.clone(), pod);
    }

    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.used.subtract(&pod.requests.asked);
        self.weighed_cpu -= pod.requests.weighed_cpu;
        self.weighed_memory -= pod.requests.weighed_memory;
        self.with_terms -= usize::from(pod.terms.is_some());
        Some(pod)
    }

    pub fn ports(&self) -> impl Iterator<Item = &HostPort> {
        self.pods.values().flat_map(|pod| &pod.ports)
    }
}

/// What a change of a node is about; its conditions, its addresses and the pods' network that it
/// is given concern nobody here.
struct News {
    /// Labels or taints.
    place: bool,
    /// What there is on it, what it can do, and whether it is open.
    room: bool,
    images: bool,
}

impl News {
    fn between(old: &Node, new: &Node) -> Self {
        let (before, after) = (old.status.as_ref(), new.status.as_ref());
        let (was, is) = (old.spec.as_ref(), new.spec.as_ref());
        Self {
            place: old.metadata.labels != new.metadata.labels
                || was.and_then(|it| it.taints.as_ref()) != is.and_then(|it| it.taints.as_ref()),
            room: before.map(|it| (&it.allocatable, &it.declared_features))
                != after.map(|it| (&it.allocatable, &it.declared_features))
                || was.and_then(|it| it.unschedulable) != is.and_then(|it| it.unschedulable),
            images: before.map(|it| &it.images) != after.map(|it| &it.images),
        }
    }
}

/// All nodes of the cluster. Pods may come before their node; they wait in `strays`.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: Vec<NodeInfo>,
    /// The revision at which each node last changed, or what runs on it.
    stamps: Vec<u64>,
    at: HashMap<String, usize>,
    /// Grows with every change.
    revision: u64,
    /// When a node last came, went, or changed its labels or taints.
    layout: u64,
    /// When it last changed how many nodes hold an image.
    images_changed: u64,
    moves: Moves,
    /// Where each pod is, by uid.
    placed: HashMap<String, String>,
    strays: HashMap<String, HashMap<String, Arc<PodInfo>>>,
    /// Nodes that hold each image, for spreading an image's score.
    image_nodes: HashMap<String, usize>,
    /// Pods with terms, over all nodes.
    pub with_terms: usize,
    /// Of the labels that these terms ask for.
    keys: Keys,
    /// How many pods on nodes use a volume claim, by namespace and name.
    claims: HashMap<(String, String), usize>,
    /// Pods that preemption has promised a node, by node.
    nominated: HashMap<String, Vec<Arc<PodInfo>>>,
}

impl Snapshot {
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    pub fn get(&self, name: &str) -> Option<&NodeInfo> {
        self.at.get(name).map(|at| &self.nodes[*at])
    }

    /// Pods on nodes, those that are assumed there included.
    pub fn pods_placed(&self) -> usize {
        self.placed.len()
    }

    /// Of the whole; the same as long as nothing has changed.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// By the position of the node; never 0, and never that of another state of any node.
    pub fn stamps(&self) -> &[u64] {
        &self.stamps
    }

    /// As long as it is the same, nodes keep their positions, labels and taints.
    pub fn layout(&self) -> u64 {
        self.layout
    }

    /// As long as it is the same, so is what [`Self::nodes_with_image`] says.
    pub fn images_changed(&self) -> u64 {
        self.images_changed
    }

    /// Labels by which pods on nodes select others.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Pods that came to nodes and left them, in order.
    pub fn moves(&self) -> &Moves {
        &self.moves
    }

    fn touch(&mut self, at: usize) {
        self.revision += 1;
        self.stamps[at] = self.revision;
    }

    fn lay_out(&mut self) {
        self.revision += 1;
        self.layout = self.revision;
        self.moves.clear();
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        if let Some(at) = self.at.get(&name) {
            let at = *at;
            let news = News::between(&self.nodes[at].node, &node);
            if news.images {
                self.count_images(at, false);
                self.nodes[at].set_images(&node);
                self.count_images(at, true);
            }
            if news.place {
                self.lay_out();
            }
            if news.place || news.room {
                self.touch(at);
            }
            self.nodes[at].set_node(node);
            return;
        }
        let mut info = NodeInfo::new(node);
        for pod in self.strays.remove(&name).into_iter().flat_map(HashMap::into_values) {
            self.with_terms += usize::from(pod.terms.is_some());
            info.add_pod(pod);
        }
        self.at.insert(name, self.nodes.len());
        self.nodes.push(info);
        self.stamps.push(0);
        self.lay_out();
        self.touch(self.nodes.len() - 1);
        self.count_images(self.nodes.len() - 1, true);
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.at.remove(name) else { return };
        self.count_images(at, false);
        let gone = self.nodes.swap_remove(at);
        self.stamps.swap_remove(at);
        if let Some(moved) = self.nodes.get(at) {
            self.at.insert(moved.name.clone(), at);
        }
        self.with_terms -= gone.with_terms;
        if !gone.pods.is_empty() {
            self.strays.insert(name.to_string(), gone.pods.into_iter().collect());
        }
        self.lay_out();
    }

    fn count_images(&mut self, at: usize, here: bool) {
        // How many nodes there are counts, too.
        self.revision += 1;
        self.images_changed = self.revision;
        for image in self.nodes[at].images.clone().keys() {
            let count = self.image_nodes.entry(image.clone()).or_default();
            if here {
                *count += 1;
            } else {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.image_nodes.remove(image);
                }
            }
        }
    }

    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.image_nodes.get(image).copied().unwrap_or_default()
    }

    /// Puts a pod onto a node; gives the pod as it was before, if it was on any.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) -> Option<Arc<PodInfo>> {
        if let Some(before) = self.replace(&pod, node) {
            return Some(before);
        }
        let before = self.remove_pod(&pod.uid).map(|(pod, _)| pod);
        self.placed.insert(pod.uid.clone(), node.to_string());
        self.keys.add(keys::of_terms(&pod));
        for claim in &pod.claims {
            *self.claims.entry((pod.namespace.clone(), claim.clone())).or_default() += 1;
        }
        match self.at.get(node) {
            Some(at) => {
                let at = *at;
                self.with_terms += usize::from(pod.terms.is_some());
                self.nodes[at].add_pod(pod.clone());
                self.touch(at);
                self.moves.push(Move { pod, at, by: 1 }, self.nodes.len());
            }
            None => {
                let strays = self.strays.entry(node.to_string()).or_default();
                strays.insert(pod.uid.clone(), pod);
            }
        }
        before
    }

    /// Takes note of a pod that is where it was and weighs what it weighed; None for others.
    fn replace(&mut self, pod: &Arc<PodInfo>, node: &str) -> Option<Arc<PodInfo>> {
        let at = self.at.get(node)?;
        let held = self.nodes[*at].pods.get_mut(&pod.uid)?;
        if !held.weighs_like(pod) {
            return None;
        }
        let before = std::mem::replace(held, pod.clone());
        if !before.looks_like(pod) {
            let at = *at;
            self.revision += 1;
            self.moves.push(Move { pod: before.clone(), at, by: -1 }, self.nodes.len());
            self.moves.push(Move { pod: pod.clone(), at, by: 1 }, self.nodes.len());
        }
        Some(before)
    }

    /// The pod, and the node it was on, if it was on any.
    pub fn remove_pod(&mut self, uid: &str) -> Option<(Arc<PodInfo>, String)> {
        let node = self.placed.remove(uid)?;
        let gone = if let Some(at) = self.at.get(&node) {
            let at = *at;
            let gone = self.nodes[at].remove_pod(uid);
            if let Some(pod) = &gone {
                self.with_terms -= usize::from(pod.terms.is_some());
                self.touch(at);
                self.moves.push(Move { pod: pod.clone(), at, by: -1 }, self.nodes.len());
            }
            gone
        } else if let Some(strays) = self.strays.get_mut(&node) {
            let gone = strays.remove(uid);
            if strays.is_empty() {
                self.strays.remove(&node);
            }
            gone
        } else {
            None
        };
        if let Some(pod) = &gone {
            self.keys.remove(keys::of_terms(pod));
        }
        for claim in gone.iter().flat_map(|pod| &pod.claims) {
            let key =
                (gone.as_ref().map(|p| p.namespace.clone()).unwrap_or_default(), claim.clone());
            if let Some(count) = self.claims.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.claims.remove(&key);
                }
            }
        }
        Some((gone?, node))
    }

    /// How many pods on nodes use a volume claim.
    pub fn claim_users(&self, namespace: &str, claim: &str) -> usize {
        let key = (namespace.to_owned(), claim.to_owned());
        self.claims.get(&key).copied().unwrap_or_default()
    }

    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.forget_nomination(&pod.uid);
        self.nominated.entry(node.to_string()).or_default().push(pod);
        self.revision += 1;
    }

    pub fn has_nominations(&self) -> bool {
        !self.nominated.is_empty()
    }

    /// The pod, and the node it was promised, if it was promised any.
    pub fn forget_nomination(&mut self, uid: &str) -> Option<(Arc<PodInfo>, String)> {
        let held = self.nominated.iter().find_map(|(node, pods)| {
            let at = pods.iter().position(|pod| pod.uid == uid)?;
            Some((node.clone(), at))
        });
        let (node, at) = held?;
        self.revision += 1;
        let pods = self.nominated.get_mut(&node)?;
        let pod = pods.swap_remove(at);
        if pods.is_empty() {
            self.nominated.remove(&node);
        }
        Some((pod, node))
    }

    /// Pods promised this node that are less important than `pod`.
    pub fn nominated_after(&self, node: &str, pod: &PodInfo) -> Vec<Arc<PodInfo>> {
        let pods = self.nominated.get(node).into_iter().flatten();
        pods.filter(|other| other.priority < pod.priority).cloned().collect()
    }

    /// Pods promised this node that `pod` must leave room for.
    pub fn nominated_before(&self, node: &str, pod: &PodInfo) -> Vec<Arc<PodInfo>> {
        let Some(pods) = self.nominated.get(node) else { return Vec::new() };
        let ahead = |other: &&Arc<PodInfo>| other.priority >= pod.priority && other.uid != pod.uid;
        pods.iter().filter(ahead).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeSpec;

    use super::*;
    use crate::testing::{node, pod};

    #[test]
    fn pods_that_come_before_their_node_are_counted_when_it_comes() {
        let mut snapshot = Snapshot::default();
        snapshot.place(Arc::new(PodInfo::new(Arc::new(pod("a", "1", "0")))), "n");
        assert!(snapshot.get("n").is_none());
        snapshot.set_node(Arc::new(node("n", "4", "8Gi")));
        assert_eq!(snapshot.get("n").unwrap().used.cpu, 1000);
        snapshot.remove_node("n");
        snapshot.set_node(Arc::new(node("n", "4", "8Gi")));
        assert_eq!(snapshot.get("n").unwrap().used.cpu, 1000);
        assert_eq!(snapshot.remove_pod("a").unwrap().1, "n");
        assert_eq!(snapshot.get("n").unwrap().used.cpu, 0);
        assert_eq!(snapshot.get("n").unwrap().used.pods, 0);
    }

    #[test]
    fn only_labels_and_taints_make_who_counts_by_nodes_count_anew() {
        let mut snapshot = Snapshot::default();
        let mut held = node("n", "4", "8Gi");
        snapshot.set_node(Arc::new(held.clone()));
        let mut change = |what: &dyn Fn(&mut Node)| {
            let (layout, stamp) = (snapshot.layout(), snapshot.stamps()[0]);
            what(&mut held);
            snapshot.set_node(Arc::new(held.clone()));
            (snapshot.layout() != layout, snapshot.stamps()[0] != stamp)
        };
        let spec = |node: &mut Node| node.spec.get_or_insert_default().clone();
        let network = |node: &mut Node| {
            node.spec = Some(NodeSpec { pod_cidr: Some("10.0.0.0/24".into()), ..spec(node) });
        };
        assert_eq!(change(&network), (false, false));
        let closed = |node: &mut Node| {
            node.spec = Some(NodeSpec { unschedulable: Some(true), ..spec(node) });
        };
        assert_eq!(change(&closed), (false, true));
        let taint = || Taint { key: "k".into(), effect: "NoSchedule".into(), ..Taint::default() };
        let tainted = |node: &mut Node| {
            node.spec = Some(NodeSpec { taints: Some(vec![taint()]), ..spec(node) });
        };
        assert_eq!(change(&tainted), (true, true));
        let named = |node: &mut Node| {
            node.metadata.labels = Some([("zone".into(), "a".into())].into());
        };
        assert_eq!(change(&named), (true, true));
    }

    #[test]
    fn a_removed_node_leaves_the_others_in_reach() {
        let mut snapshot = Snapshot::default();
        for name in ["a", "b", "c"] {
            snapshot.set_node(Arc::new(node(name, "1", "1Gi")));
        }
        snapshot.remove_node("a");
        assert!(snapshot.get("a").is_none());
        assert_eq!(snapshot.get("c").unwrap().name, "c");
        assert_eq!(snapshot.get("b").unwrap().name, "b");
    }
}
