//! Who owns whom. Pure; holds a few words per object, not the object.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use client::api::ResourceRef;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::owner::{name, namespace, uid};

pub const ORPHAN: &str = "orphan";
pub const FOREGROUND: &str = "foregroundDeletion";

pub fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|held| held == finalizer)
}

/// Something to look at; the string is a uid.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    Delete(String),
    Orphan(String),
}

#[derive(Debug, Clone)]
pub struct Item {
    pub resource: Arc<ResourceRef>,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub deleting: bool,
    /// It is being deleted and waits for its dependents.
    pub foreground: bool,
}

impl Item {
    /// Whether this is whom an object of a namespace means by a reference that has its uid.
    pub fn is_meant(&self, by: &OwnerReference, namespace: &str) -> bool {
        let group = by.api_version.split_once('/').map_or("", |(group, _)| group);
        self.name == by.name
            && self.resource.kind == by.kind
            && self.resource.group == group
            && (self.namespace.is_empty() || self.namespace == namespace)
    }
}

struct Node {
    item: Item,
    /// Uid of each owner, and whether this object blocks its deletion.
    owners: Vec<(String, bool)>,
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    /// Dependents by the uid of their owner, whether or not the owner is known.
    dependents: HashMap<String, HashSet<String>>,
    /// Objects with an owner of a kind that nobody knows.
    unresolved: HashSet<String>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<Item> {
        self.nodes.get(uid).map(|node| node.item.clone())
    }

    pub fn dependents(&self, uid: &str) -> Vec<Item> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.get(uid)).collect()
    }

    /// Dependents that keep a foreground deletion from ending.
    pub fn blocking(&self, owner: &str) -> Vec<Item> {
        let uids = self.dependents.get(owner).into_iter().flatten();
        let nodes = uids.filter_map(|uid| self.nodes.get(uid));
        nodes
            .filter(|node| node.owners.iter().any(|(uid, blocks)| uid == owner && *blocks))
            .map(|node| node.item.clone())
            .collect()
    }

    pub fn unresolved(&mut self, uid: &str) {
        self.unresolved.insert(uid.to_string());
    }

    pub fn take_unresolved(&mut self) -> Vec<Work> {
        self.unresolved.drain().map(Work::Delete).collect()
    }

    /// Takes in an object that is new or has changed; returns what to look at.
    pub fn insert(&mut self, resource: &Arc<ResourceRef>, meta: &ObjectMeta) -> Vec<Work> {
        let id = uid(meta).to_string();
        let deleting = meta.deletion_timestamp.is_some();
        let foreground = deleting && has_finalizer(meta, FOREGROUND);
        let owners: Vec<(String, bool)> = meta
            .owner_references
            .iter()
            .flatten()
            .map(|o| (o.uid.clone(), o.block_owner_deletion.unwrap_or(false)))
            .collect();
        let item = Item {
            resource: resource.clone(),
            namespace: namespace(meta).to_string(),
            name: name(meta).to_string(),
            uid: id.clone(),
            deleting,
            foreground,
        };
        let old = self.nodes.insert(id.clone(), Node { item, owners: owners.clone() });
        let (was_foreground, before) =
            old.map_or((false, Vec::new()), |old| (old.item.foreground, old.owners));
        for (owner, _) in &before {
            self.unlink(owner, &id);
        }
        for (owner, _) in &owners {
            self.dependents.entry(owner.clone()).or_default().insert(id.clone());
        }
        let mut work = Vec::new();
        // An owner that is absent, not the one that is meant, waits, or has just been named,
        // decides about the object.
        let doubtful = |owner: &OwnerReference| {
            self.nodes.get(&owner.uid).is_none_or(|node| {
                node.item.foreground || !node.item.is_meant(owner, namespace(meta))
            })
        };
        let named = |owner: &str| before.iter().any(|(held, _)| held == owner);
        let mut references = meta.owner_references.iter().flatten();
        if !deleting
            && references.any(|owner| doubtful(owner) || (!before.is_empty() && !named(&owner.uid)))
        {
            work.push(Work::Delete(id.clone()));
        }
        // An owner that waits may wait no more.
        for (owner, _) in before.iter().filter(|link| !owners.contains(link)) {
            if self.nodes.get(owner).is_some_and(|node| node.item.foreground) {
                work.push(Work::Delete(owner.clone()));
            }
        }
        if deleting && has_finalizer(meta, ORPHAN) {
            work.push(Work::Orphan(id.clone()));
        }
        if foreground {
            work.push(Work::Delete(id.clone()));
            if !was_foreground {
                work.extend(self.dependents(&id).into_iter().map(|item| Work::Delete(item.uid)));
            }
        }
        work
    }

    /// An object is gone; its dependents, and owners that waited for it, are looked at.
    pub fn remove(&mut self, uid: &str) -> Vec<Work> {
        self.unresolved.remove(uid);
        let mut work: Vec<Work> =
            self.dependents.get(uid).into_iter().flatten().cloned().map(Work::Delete).collect();
        let Some(node) = self.nodes.remove(uid) else { return work };
        for (owner, _) in node.owners {
            self.unlink(&owner, uid);
            if self.nodes.get(&owner).is_some_and(|node| node.item.foreground) {
                work.push(Work::Delete(owner));
            }
        }
        work
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// Makes the graph hold exactly these objects of a resource.
    pub fn reset(&mut self, resource: &Arc<ResourceRef>, metas: Vec<ObjectMeta>) -> Vec<Work> {
        let keep: HashSet<&str> = metas.iter().map(uid).collect();
        let mut work = Vec::new();
        for gone in self.uids_of(resource).into_iter().filter(|uid| !keep.contains(uid.as_str())) {
            work.extend(self.remove(&gone));
        }
        for meta in &metas {
            work.extend(self.insert(resource, meta));
        }
        work
    }

    /// A resource is gone with all its objects.
    pub fn forget(&mut self, resource: &ResourceRef) -> Vec<Work> {
        let gone = self.uids_of(resource);
        gone.iter().flat_map(|uid| self.remove(uid)).collect()
    }

    fn uids_of(&self, resource: &ResourceRef) -> Vec<String> {
        let nodes = self.nodes.iter().filter(|(_, node)| *node.item.resource == *resource);
        nodes.map(|(uid, _)| uid.clone()).collect()
    }
}
