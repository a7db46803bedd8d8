//! The pods this node should run, from the API server and from files, and the wakers of
//! their workers.
//!
//! Holds the desired state only; what happens to it is the workers' business.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::eviction::Sentence;
use crate::{metrics, pod};

/// What a worker sees of its pod.
#[derive(Clone)]
pub struct Wanted {
    pub pod: Arc<Pod>,
    /// The object or file is gone.
    pub gone: bool,
    /// It was gone and is back: what ran of it ends before it begins anew.
    pub returned: bool,
    /// The node gives the pod up.
    pub sentence: Option<Arc<Sentence>>,
}

struct Held {
    wanted: Wanted,
    wake: Arc<Notify>,
    /// True once the pod is being deleted, given up or gone.
    doomed: watch::Sender<bool>,
}

/// What a new worker is given.
pub struct Begun {
    pub uid: String,
    pub wake: Arc<Notify>,
    pub doomed: watch::Receiver<bool>,
}

#[derive(Default)]
pub struct Pods {
    held: Mutex<HashMap<String, Held>>,
    /// Mirror pods by namespace and name.
    mirrors: Mutex<HashMap<(String, String), Arc<Pod>>>,
    /// A static pod has ended for good.
    pub static_ended: Notify,
}

impl Pods {
    /// Takes a pod in or renews it. Some if it is new and needs a worker.
    pub fn put(&self, pod: Arc<Pod>) -> Option<Begun> {
        let uid = pod::uid(&pod).to_owned();
        let dying = pod.metadata.deletion_timestamp.is_some();
        let mut held = self.held.lock();
        if let Some(known) = held.get_mut(&uid) {
            if known.wanted.gone {
                metrics::pods::pod_came_back(pod::is_static(&pod));
                known.wanted.returned = true;
            }
            known.wanted.pod = pod;
            known.wanted.gone = false;
            if dying {
                known.doomed.send_replace(true);
            }
            known.wake.notify_one();
            return None;
        }
        let wake = Arc::new(Notify::new());
        let (doomed, receiver) = watch::channel(dying);
        held.insert(
            uid.clone(),
            Held {
                wanted: Wanted { pod, gone: false, returned: false, sentence: None },
                wake: wake.clone(),
                doomed,
            },
        );
        Some(Begun { uid, wake, doomed: receiver })
    }

    /// The object or file has gone; the worker ends the pod.
    pub fn gone(&self, uid: &str) {
        if let Some(held) = self.held.lock().get_mut(uid) {
            held.wanted.gone = true;
            held.doomed.send_replace(true);
            held.wake.notify_one();
        }
    }

    /// The node gives the pod up; the worker ends it.
    pub fn sentence(&self, uid: &str, sentence: Arc<Sentence>) {
        if let Some(held) = self.held.lock().get_mut(uid) {
            held.wanted.sentence = Some(sentence);
            held.doomed.send_replace(true);
            held.wake.notify_one();
        }
    }

    /// The worker has finished. False if the pod came back meanwhile.
    pub fn forget(&self, uid: &str) -> bool {
        let mut held = self.held.lock();
        match held.get(uid) {
            Some(known) if !known.wanted.gone => false,
            _ => {
                let last = held.remove(uid);
                if last.is_some_and(|last| pod::is_static(&last.wanted.pod)) {
                    self.static_ended.notify_one();
                }
                true
            }
        }
    }

    /// What ran of a pod that is back has ended. False if it is gone again.
    pub fn come_back(&self, uid: &str) -> bool {
        let mut held = self.held.lock();
        let Some(known) = held.get_mut(uid).filter(|known| !known.wanted.gone) else {
            return false;
        };
        (known.wanted.returned, known.wanted.sentence) = (false, None);
        known.doomed.send_replace(known.wanted.pod.metadata.deletion_timestamp.is_some());
        true
    }

    /// Whether another static pod of this one's name has not ended yet.
    pub fn has_namesake(&self, pod: &Pod) -> bool {
        self.held.lock().values().map(|held| &held.wanted.pod).any(|other| {
            pod::is_static(other)
                && pod::uid(other) != pod::uid(pod)
                && (pod::namespace(other), pod::name(other))
                    == (pod::namespace(pod), pod::name(pod))
        })
    }

    pub fn wake(&self, uid: &str) {
        if let Some(held) = self.held.lock().get(uid) {
            held.wake.notify_one();
        }
    }

    pub fn wake_all(&self) {
        self.held.lock().values().for_each(|held| held.wake.notify_one());
    }

    pub fn get(&self, uid: &str) -> Option<Wanted> {
        self.held.lock().get(uid).map(|held| held.wanted.clone())
    }

    pub fn list(&self) -> Vec<Wanted> {
        self.held.lock().values().map(|held| held.wanted.clone()).collect()
    }

    /// By namespace and name; one that is not going away first.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let held = self.held.lock();
        let mut found: Vec<&Wanted> = held
            .values()
            .map(|held| &held.wanted)
            .filter(|it| pod::namespace(&it.pod) == namespace && pod::name(&it.pod) == name)
            .collect();
        found.sort_by_key(|it| (it.gone, it.pod.metadata.deletion_timestamp.is_some()));
        found.first().map(|it| it.pod.clone())
    }

    pub fn put_mirror(&self, pod: Arc<Pod>) {
        let key = (pod::namespace(&pod).to_owned(), pod::name(&pod).to_owned());
        self.mirrors.lock().insert(key, pod);
    }

    pub fn remove_mirror(&self, pod: &Pod) {
        let key = (pod::namespace(pod).to_owned(), pod::name(pod).to_owned());
        let mut mirrors = self.mirrors.lock();
        if mirrors.get(&key).is_some_and(|held| pod::uid(held) == pod::uid(pod)) {
            mirrors.remove(&key);
        }
    }

    pub fn mirror(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.mirrors.lock().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub fn mirrors(&self) -> Vec<Arc<Pod>> {
        self.mirrors.lock().values().cloned().collect()
    }
}
