//! Registers the nodes and keeps their leases and statuses current: one queue of the nodes'
//! numbers with the time of each, and a few workers.

use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use base::error::chain;
use client::error::Result;
use client::{Patch, Queue};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::Config;
use crate::fleet::Clients;
use crate::node;

pub const LEASE_NAMESPACE: &str = "kube-node-lease";
/// A status that says nothing new is written after this long, as upstream's kubelet does.
const STATUS_PERIOD: Duration = Duration::from_secs(300);
/// Requests under way at a time.
const WORKERS: usize = 16;

/// What is known of a node.
#[derive(Default, Clone)]
struct Known {
    /// Of the Node object; None before it is registered.
    uid: Option<String>,
    /// Of the lease as it was last written.
    lease: Option<String>,
    renewed: Option<Instant>,
    /// When the status is written next; None: at once.
    status_due: Option<Instant>,
}

pub struct Nodes {
    clients: Clients,
    config: Arc<Config>,
    queue: Queue<u32>,
    known: Mutex<Vec<Known>>,
    registered: std::sync::atomic::AtomicU32,
}

impl Nodes {
    pub fn new(clients: Clients, config: Arc<Config>) -> Self {
        let known = Mutex::new(vec![Known::default(); config.nodes as usize]);
        Self { clients, config, queue: Queue::new(), known, registered: 0.into() }
    }

    pub async fn run(&self, drain: Drain) {
        (0..self.config.nodes).for_each(|number| self.queue.add(number));
        self.queue
            .run(WORKERS, drain, |number| async move {
                let done = self.beat(number).await;
                if let Err(error) = &done {
                    let name = self.config.name(number);
                    warn!(node = name, error = %chain(error), "node does not beat");
                }
                done
            })
            .await;
    }

    async fn beat(&self, number: u32) -> Result<()> {
        let mut known = self.known.lock()[number as usize].clone();
        let first = known.uid.is_none();
        let done = self.beat_once(number, &mut known).await;
        if let Err(error) = &done
            && (error.is_not_found() || error.is_conflict() || error.is_already_exists())
        {
            // The object is another one now: begin anew.
            debug!(number, error = %chain(error), "node is looked up again");
            known = Known::default();
        }
        self.known.lock()[number as usize] = known;
        done?;
        let whole = self.config.heartbeat;
        let delay = if first {
            // From here on the nodes do not beat together.
            whole.mul_f64(base::rng::unit())
        } else {
            whole.mul_f64(0.96 + 0.08 * base::rng::unit())
        };
        self.queue.add_after(number, delay);
        Ok(())
    }

    async fn beat_once(&self, number: u32, known: &mut Known) -> Result<()> {
        let uid = match &known.uid {
            Some(uid) => uid.clone(),
            None => self.register(number, known).await?,
        };
        let (now, beat) = (Instant::now(), self.config.heartbeat);
        // A node that was silent for too long is held for dead: it says that it is not.
        let was_silent = known.renewed.is_some_and(|at| now.duration_since(at) > beat * 4);
        if was_silent || known.status_due.is_none_or(|due| due <= now) {
            self.tell_status(number).await?;
            known.status_due = Some(now + STATUS_PERIOD);
        }
        self.renew(number, &uid, known).await?;
        known.renewed = Some(now);
        Ok(())
    }

    /// Finds the Node object or makes it; gives its uid.
    async fn register(&self, number: u32, known: &mut Known) -> Result<String> {
        let api = self.clients.of(number).all::<Node>();
        let name = self.config.name(number);
        let made = api.create(&node::object(&self.config, number, base::time::now())).await;
        let node = match made {
            Ok(node) => {
                known.status_due = Some(Instant::now() + STATUS_PERIOD);
                node
            }
            Err(error) if error.is_already_exists() => api.get(&name).await?,
            Err(error) => return Err(error),
        };
        let leases = self.clients.of(number).api::<Lease>(Some(LEASE_NAMESPACE));
        known.lease =
            leases.get_opt(&name).await?.and_then(|lease| lease.metadata.resource_version);
        let uid = node.metadata.uid.unwrap_or_default();
        known.uid = Some(uid.clone());
        let all = self.registered.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        if all == self.config.nodes {
            info!(nodes = all, "all hollow nodes are registered");
        }
        Ok(uid)
    }

    async fn tell_status(&self, number: u32) -> Result<()> {
        let api = self.clients.of(number).all::<Node>();
        // Another process may have served it before, elsewhere.
        let (addresses, endpoints) = node::reached(&self.config, number);
        let patch = json!({"status": {
            "addresses": addresses, "daemonEndpoints": endpoints,
            "conditions": node::conditions(base::time::now()),
        }});
        api.patch_status(&self.config.name(number), &Patch::Strategic(patch)).await.map(drop)
    }

    async fn renew(&self, number: u32, uid: &str, known: &mut Known) -> Result<()> {
        let api = self.clients.of(number).api::<Lease>(Some(LEASE_NAMESPACE));
        let name = self.config.name(number);
        let version = known.lease.take();
        let is_there = version.is_some();
        let lease = node::lease(&self.config, &name, uid, version, base::time::now());
        let written = match is_there {
            true => api.replace(&name, &lease).await?,
            false => api.create(&lease).await?,
        };
        known.lease = written.metadata.resource_version;
        Ok(())
    }
}
