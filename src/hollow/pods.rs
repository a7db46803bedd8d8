//! Follows the pods of all nodes by one watch, and does for each what its node would.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base::backoff::Backoff;
use base::drain::Drain;
use base::error::chain;
use client::api::{Api, ListParams, WatchEvent};
use client::cache::list_all;
use client::error::Result;
use client::{DeleteParams, Patch, Queue};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::warn;

use crate::Config;
use crate::fleet::Clients;
use crate::pod::{self, Seen, Step};

/// Requests under way at a time.
const WORKERS: usize = 32;
/// Pods get addresses in this network (RFC 1918), of 2^23.
const POD_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const POD_ADDRESSES: u32 = 1 << 23;

struct Held {
    seen: Arc<Seen>,
    address: Ipv4Addr,
    /// What comes next, and when.
    next: Option<(Step, Instant)>,
    /// The last step; an event from before it does not bring it again.
    done: Option<Step>,
}

pub struct Pods {
    clients: Clients,
    config: Arc<Config>,
    /// Of uids.
    queue: Queue<String>,
    /// By uid. Bound: the pods of our nodes.
    held: Mutex<HashMap<String, Held>>,
    addresses: AtomicU32,
    sorted: Mutex<Option<Sorted>>,
}

/// Pods by their nodes, as they were then.
struct Sorted {
    at: Instant,
    pods: HashMap<u32, Vec<Arc<Seen>>>,
}

/// Whoever asks for the pods of nodes, asks for those of all: they are sorted once for a while.
const SORTED_FOR: Duration = Duration::from_secs(1);

impl Pods {
    pub fn new(clients: Clients, config: Arc<Config>) -> Self {
        // Other processes begin elsewhere.
        let start = base::rng::below(POD_ADDRESSES.into());
        let addresses = AtomicU32::new(u32::try_from(start).unwrap_or_default());
        let (held, sorted) = (Mutex::default(), Mutex::default());
        Self { clients, config, queue: Queue::new(), held, addresses, sorted }
    }

    /// The pods of a node, as they were a moment ago.
    pub fn of(&self, node: u32) -> Vec<Arc<Seen>> {
        let mut sorted = self.sorted.lock();
        let fresh = sorted.take().filter(|it| it.at.elapsed() < SORTED_FOR);
        let sorted = sorted.insert(fresh.unwrap_or_else(|| {
            let mut pods: HashMap<u32, Vec<Arc<Seen>>> = HashMap::new();
            for held in self.held.lock().values() {
                pods.entry(held.seen.node).or_default().push(held.seen.clone());
            }
            Sorted { at: Instant::now(), pods }
        }));
        sorted.pods.get(&node).cloned().unwrap_or_default()
    }

    pub async fn run(&self, drain: Drain) {
        let work = self.queue.run(WORKERS, drain.clone(), |uid| async move {
            let done = self.step(&uid).await;
            if let Err(error) = &done {
                warn!(pod = uid, error = %chain(error), "pod makes no progress");
            }
            done
        });
        tokio::join!(work, self.follow(&drain));
    }

    /// Lists and watches until the drain begins.
    async fn follow(&self, drain: &Drain) {
        let api = self.clients.of(0).all::<Pod>();
        let bound = ListParams::fields("spec.nodeName!=");
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut version = None;
        while let Some(ended) = drain.until(self.round(&api, &bound, &mut version)).await {
            match ended {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    if error.code() != 0 {
                        version = None;
                    }
                    warn!(error = %chain(&error), "pods are not followed, trying again");
                    if drain.until(tokio::time::sleep(backoff.next_delay())).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// One list, unless a version is known, and one watch to its end.
    async fn round(
        &self,
        api: &Api<Pod>,
        bound: &ListParams,
        version: &mut Option<String>,
    ) -> Result<()> {
        let from = match version.clone() {
            Some(version) => version,
            None => {
                let (pods, listed) = list_all(api, bound).await?;
                let uids: HashSet<&str> =
                    pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
                self.held.lock().retain(|uid, _| uids.contains(uid.as_str()));
                pods.iter().for_each(|pod| self.changed(pod));
                listed
            }
        };
        let mut events = api.watch(bound, &from).await?;
        *version = Some(from);
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    version.clone_from(&pod.metadata.resource_version);
                    self.changed(&pod);
                }
                WatchEvent::Deleted(pod) => {
                    version.clone_from(&pod.metadata.resource_version);
                    let uid = pod.metadata.uid.unwrap_or_default();
                    self.held.lock().remove(&uid);
                }
                WatchEvent::Bookmark(seen) => *version = Some(seen),
            }
        }
        Ok(())
    }

    fn changed(&self, pod: &Pod) {
        let Some(seen) = Seen::of(&self.config, pod) else { return };
        let (uid, now) = (seen.uid.clone(), Instant::now());
        let next = pod::next(&self.config, pod, &seen);
        let mut all = self.held.lock();
        let before = all.remove(&uid);
        let (due, done) = before.as_ref().map_or((None, None), |held| (held.next, held.done));
        let next = next.filter(|(step, _)| done != Some(*step));
        let next = next.map(|(step, delay)| match due {
            // Its time runs already.
            Some((same, due)) if same == step => (step, due),
            _ => (step, now + delay),
        });
        let address = before.map_or_else(|| self.address(), |held| held.address);
        all.insert(uid.clone(), Held { seen: Arc::new(seen), address, next, done });
        drop(all);
        if let Some((_, due)) = next {
            self.queue.add_after(uid, due.saturating_duration_since(now));
        }
    }

    /// Does what is due for a pod.
    async fn step(&self, uid: &str) -> Result<()> {
        let held = self.held.lock().get(uid).map(|h| (h.seen.clone(), h.address, h.next));
        let Some((seen, address, Some((step, due)))) = held else { return Ok(()) };
        let now = Instant::now();
        if due > now {
            self.queue.add_after(uid.to_owned(), due - now);
            return Ok(());
        }
        match self.apply(&seen, step, address).await {
            // It is gone, or another one has its name: the watch will tell.
            Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
            Ok(()) | Err(_) => {}
        }
        if let Some(held) = self.held.lock().get_mut(uid)
            && held.next.is_some_and(|(next, _)| next == step)
        {
            (held.next, held.done) = (None, Some(step));
        }
        Ok(())
    }

    async fn apply(&self, seen: &Seen, step: Step, address: Ipv4Addr) -> Result<()> {
        let api = self.clients.of(seen.node).api::<Pod>(Some(&seen.namespace));
        let body = pod::status(&self.config, seen, step, address, base::time::now());
        if !body.is_null() {
            api.patch_status(&seen.name, &Patch::Strategic(body)).await?;
        }
        if step == Step::Stop {
            let params = DeleteParams::uid(&seen.uid).grace(0);
            api.delete(&seen.name, &params).await?;
        }
        Ok(())
    }

    fn address(&self) -> Ipv4Addr {
        let number = self.addresses.fetch_add(1, Ordering::Relaxed) % POD_ADDRESSES;
        Ipv4Addr::from(u32::from(POD_NETWORK) + number)
    }
}
