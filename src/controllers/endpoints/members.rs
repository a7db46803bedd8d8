//! Which pods each service selects, kept up as pods and services change: a change of one
//! pod costs what that pod's services are, however many pods and services there are.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use client::cache::{Cache, Key, key_of};
use client::{Queue, Shared};
use k8s_openapi::api::core::v1::{Pod, Service};
use parking_lot::Mutex;

use super::plan;
use crate::owner::{Labels, name, namespace};
use crate::pod;
use crate::pod_collector::{BY_NODE, by_node};

/// Index of services by namespace and one label that their pods have.
const BY_LABEL: &str = "selected label";

pub struct Members {
    services: Cache<Service>,
    pods: Cache<Pod>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Names of the pods, for each service.
    members: HashMap<Key, BTreeSet<String>>,
    /// Who hears of services whose endpoints may have changed, and how long after a pod has.
    queues: Vec<(Queue<Key>, Duration)>,
}

/// A pod that a service selects has this label.
fn label_of(service: &Service) -> Vec<String> {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    let first = selector.and_then(|selector| selector.first_key_value());
    let namespace = namespace(&service.metadata);
    first.map(|(key, value)| format!("{namespace}/{key}={value}")).into_iter().collect()
}

fn selector(service: &Service) -> Option<&Labels> {
    service.spec.as_ref().and_then(|s| s.selector.as_ref())
}

impl Members {
    pub fn new(shared: &Shared) -> Arc<Self> {
        let (services, pods) = (shared.cache::<Service>(), shared.cache::<Pod>());
        services.add_index(BY_LABEL, label_of);
        pods.add_index(BY_NODE, by_node);
        let me = Arc::new(Self { services, pods, state: Mutex::default() });
        // The caches are this value's: it would never go if they held it.
        let weak: Weak<Self> = Arc::downgrade(&me);
        let of_pods = weak.clone();
        me.services.on_change(move |old, new| {
            if let Some(me) = weak.upgrade() {
                me.service_changed(old, new);
            }
        });
        me.pods.on_change(move |old, new| {
            if let Some(me) = of_pods.upgrade() {
                me.pod_changed(old, new);
            }
        });
        me
    }

    /// Puts services into a queue when they themselves change, and so long after their pods do.
    pub fn tell(&self, queue: &Queue<Key>, wait: Duration) {
        self.state.lock().queues.push((queue.clone(), wait));
        // Those that were there before.
        for service in self.services.list() {
            queue.add(key_of(&*service));
        }
    }

    /// The pods of a service that have not finished, in the order of their names.
    pub fn of(&self, service: &Service) -> Vec<Arc<Pod>> {
        let key = key_of(service);
        let names = self.state.lock().members.get(&key).cloned().unwrap_or_default();
        let pods = names.iter().filter_map(|name| self.pods.get(&key.0, name));
        pods.filter(|pod| plan::selects(service, pod) && !pod::is_finished(pod)).collect()
    }

    /// The services that select a pod of a node.
    pub fn on_node(&self, node: &str) -> Vec<Arc<Service>> {
        self.selecting(self.pods.indexed(BY_NODE, node).iter())
    }

    fn service_changed(&self, old: Option<&Arc<Service>>, new: Option<&Arc<Service>>) {
        let Some(service) = new.or(old) else { return };
        let key = key_of(&**service);
        let mut state = self.state.lock();
        let is_the_same = old.zip(new).is_some_and(|(old, new)| selector(old) == selector(new));
        if new.is_none() {
            state.members.remove(&key);
        } else if !is_the_same {
            let selected = self.pods.list_in(&key.0).into_iter();
            let selected = selected.filter(|pod| plan::selects(service, pod));
            let names: BTreeSet<String> =
                selected.map(|pod| name(&pod.metadata).to_string()).collect();
            state.members.insert(key.clone(), names);
        }
        for (queue, _) in &state.queues {
            queue.add(key.clone());
        }
    }

    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        // Membership follows labels, which are a part of what differs.
        if old.zip(new).is_some_and(|(old, new)| !plan::differ(old, new)) {
            return;
        }
        let mut state = self.state.lock();
        for service in self.selecting(old.into_iter().chain(new)) {
            let key = key_of(&*service);
            let is_in = new.filter(|pod| plan::selects(&service, pod));
            let members = state.members.entry(key.clone()).or_default();
            if let Some(pod) = is_in {
                members.insert(name(&pod.metadata).to_string());
            } else if let Some(pod) = old {
                members.remove(name(&pod.metadata));
            }
            for (queue, wait) in &state.queues {
                queue.add_after(key.clone(), *wait);
            }
        }
    }

    /// The services that select one of the pods, each once.
    fn selecting<'a>(&self, pods: impl Iterator<Item = &'a Arc<Pod>>) -> Vec<Arc<Service>> {
        let mut found: Vec<Arc<Service>> = Vec::new();
        for pod in pods {
            let namespace = namespace(&pod.metadata);
            for (key, value) in pod.metadata.labels.iter().flatten() {
                let having = self.services.indexed(BY_LABEL, &format!("{namespace}/{key}={value}"));
                for service in having.into_iter().filter(|service| plan::selects(service, pod)) {
                    if !found.iter().any(|held| Arc::ptr_eq(held, &service)) {
                        found.push(service);
                    }
                }
            }
        }
        found
    }
}
