//! Starts the controllers and runs their keyed loops.
//!
//! Knows nothing of any kind.

use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use base::error::chain;
use client::cache::Key;
use client::{Client, Queue, Recorder, Shared};
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tracing::{debug, warn};

/// What controllers cannot read from the API.
#[derive(Clone)]
pub struct Config {
    /// Networks that nodes get their pod networks from, at most one of each family;
    /// none: nodes get none.
    pub cluster_cidrs: Vec<String>,
    /// Sizes of node networks, of IPv4 and of IPv6, in bits (`node-cidr-mask-size-ipv4`, ...).
    pub node_cidr_sizes: (u8, u8),
    /// Networks of services: no node gets what overlaps them (`service-cluster-ip-range`).
    pub service_cidrs: Vec<String>,
    /// Certificates that clients in pods trust, as PEM.
    pub root_ca_pem: String,
    /// PEM of the key that signs tokens in secrets; empty: there are none.
    pub token_key_pem: String,
    /// Signs the certificates that clients ask for; None: nobody here does.
    pub client_ca: Option<Arc<pki::authority::Authority>>,
    /// Signs the serving certificates that kubelets ask for; None: nobody here does.
    pub serving_ca: Option<Arc<pki::authority::Authority>>,
    /// How long certificates are valid at the most (`cluster-signing-duration`).
    pub signing_duration: Duration,
    pub autoscaling: Autoscaling,
    /// A node that is silent for longer is held for dead (`node-monitor-grace-period`).
    pub node_monitor_grace: Duration,
    /// ClusterTrustBundles are served.
    pub trust_bundles: bool,
    /// PodCertificateRequests are served.
    pub pod_certificates: bool,
    /// Services of type LoadBalancer get the addresses of nodes.
    pub service_lb: bool,
    /// TCP ports that nodes serve themselves: no such service may take them there.
    pub node_ports_taken: Vec<i32>,
    /// Finished pods beyond this number are removed, the oldest first; 0 keeps all.
    pub finished_pods_max: usize,
    /// How volumes are emptied for the next claim.
    pub recycling: crate::Recycling,
}

/// How autoscalers look at their targets (`horizontal-pod-autoscaler-...`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Autoscaling {
    /// Between two looks (`sync-period`).
    pub period: Duration,
    /// Changes below this share are not followed (`tolerance`).
    pub tolerance: f64,
    /// The highest wish within this time counts, where an autoscaler does not say
    /// (`downscale-stabilization`).
    pub stabilization: Duration,
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(15),
            tolerance: 0.1,
            stabilization: Duration::from_secs(300),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster_cidrs: Vec::new(),
            node_cidr_sizes: (24, 64),
            service_cidrs: Vec::new(),
            signing_duration: Duration::from_secs(365 * 24 * 3_600),
            autoscaling: Autoscaling::default(),
            root_ca_pem: String::new(),
            token_key_pem: String::new(),
            client_ca: None,
            serving_ca: None,
            node_monitor_grace: Duration::from_secs(50),
            trust_bundles: false,
            pod_certificates: false,
            service_lb: false,
            node_ports_taken: Vec::new(),
            finished_pods_max: 12_500,
            recycling: crate::Recycling::default(),
        }
    }
}

/// What a controller works with.
#[derive(Clone)]
pub struct Context {
    pub shared: Shared,
    /// Writes in the controller's own name.
    pub client: Client,
    pub recorder: Recorder,
    pub config: Arc<Config>,
    pub drain: Drain,
    /// For logs.
    pub name: &'static str,
}

/// The running controllers: those that kube-controller-manager 1.36 runs where nobody says
/// otherwise. What admission policies say in their status is found by the API server.
///
/// Upstream has more that are off by default, with what they serve, and are not here: the garbage
/// collector of storage versions (StorageVersionAPI) and their migrator (StorageVersionMigrator),
/// those of pod groups, of the status of resource pools, and warnings about labels of SELinux.
pub struct Controllers(JoinSet<()>);

impl Controllers {
    /// Starts all of them. `shared` reads (list and watch of everything), `make_client`
    /// gives the client that writes in the name of a service account of `kube-system`,
    /// such as `deployment-controller`.
    pub fn start(
        shared: &Shared,
        make_client: impl Fn(&str) -> Client,
        config: Config,
        drain: &Drain,
    ) -> Self {
        let config = Arc::new(config);
        let mut tasks = JoinSet::new();
        let context = |name: &'static str| {
            let client = make_client(name);
            Context {
                shared: shared.clone(),
                recorder: Recorder::new(client.clone(), name, "", drain.clone()),
                client,
                config: config.clone(),
                drain: drain.clone(),
                name,
            }
        };
        tasks.spawn(daemonset::run(context("daemon-set-controller")));
        tasks.spawn(deployment::run(context("deployment-controller")));
        tasks.spawn(replicaset::run_replica_sets(context("replicaset-controller")));
        tasks.spawn(replicaset::run_replication_controllers(context("replication-controller")));
        tasks.spawn(statefulset::run(context("statefulset-controller")));
        tasks.spawn(job::run(context("job-controller")));
        tasks.spawn(certificates::run(context("certificate-controller")));
        tasks.spawn(cronjob::run(context("cronjob-controller")));
        tasks.spawn(job::run_ttl(context("ttl-after-finished-controller")));
        tasks.spawn(disruption::run(context("disruption-controller")));
        tasks.spawn(hpa::run(context("horizontal-pod-autoscaler")));
        let members = endpoints::Members::new(shared);
        let slices = context("endpointslice-controller");
        tasks.spawn(endpoints::run_slices(slices, members.clone()));
        tasks.spawn(endpoints::run_mirroring(context("endpointslicemirroring-controller")));
        tasks.spawn(endpoints::run_endpoints(context("endpoint-controller"), members));
        tasks.spawn(service_account::run(context("service-account-controller")));
        // As upstream, with the rights of all controllers: it has no account of its own.
        let own = Context { client: shared.client().clone(), ..context("tokens-controller") };
        tasks.spawn(token_secret::run(own));
        tasks.spawn(token_cleaner::run(context("token-cleaner")));
        let own = context("legacy-service-account-token-cleaner");
        tasks.spawn(legacy_token::run(own));
        tasks.spawn(bootstrap_signer::run(context("bootstrap-signer")));
        tasks.spawn(root_ca::run(context("root-ca-cert-publisher")));
        tasks.spawn(namespace::run(context("namespace-controller")));
        tasks.spawn(node::run_lifecycle(context("node-controller")));
        // As upstream: it has no account of its own.
        tasks.spawn(node::run_eviction(context("node-controller")));
        tasks.spawn(node::run_ttl(context("ttl-controller")));
        tasks.spawn(node::run_ipam(context("node-controller")));
        tasks.spawn(garbage::run(context("generic-garbage-collector")));
        tasks.spawn(quota::run(context("resourcequota-controller")));
        tasks.spawn(pod_collector::run(context("pod-garbage-collector")));
        tasks.spawn(aggregation::run(context("clusterrole-aggregation-controller")));
        tasks.spawn(volume::run_binder(context("persistent-volume-binder")));
        tasks.spawn(volume::run_claim_protection(context("pvc-protection-controller")));
        tasks.spawn(volume::run_volume_protection(context("pv-protection-controller")));
        let own = context("volumeattributesclass-protection-controller");
        tasks.spawn(volume::run_attributes_protection(own));
        tasks.spawn(volume::run_ephemeral(context("ephemeral-volume-controller")));
        tasks.spawn(volume::run_expand(context("expand-controller")));
        tasks.spawn(resource_claim::run(context("resource-claim-controller")));
        tasks.spawn(device_taint::run(context("device-taint-eviction-controller")));
        tasks.spawn(attach::run(context("attachdetach-controller")));
        tasks.spawn(service_cidr::run(context("service-cidrs-controller")));
        if config.trust_bundles {
            let own = context("kube-apiserver-serving-clustertrustbundle-publisher");
            tasks.spawn(trust_bundle::run(own));
        }
        if config.pod_certificates {
            tasks.spawn(pod_certificate::run(context("podcertificaterequestcleaner")));
        }
        if config.service_lb {
            tasks.spawn(service_lb::run(context("service-controller")));
        }
        Self(tasks)
    }

    /// Returns when all have ended, which they do when the drain begins. Falls with the first
    /// that panics outside of the work on a key.
    pub async fn join(mut self) {
        while let Some(ended) = self.0.join_next().await {
            if let Err(err) = ended
                && let Ok(panic) = err.try_into_panic()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

use crate::{
    aggregation, attach, bootstrap_signer, certificates, cronjob, daemonset, deployment,
    device_taint, disruption, endpoints, garbage, hpa, job, legacy_token, namespace, node,
    pod_certificate, pod_collector, quota, replicaset, resource_claim, root_ca, service_account,
    service_cidr, service_lb, statefulset, token_cleaner, token_secret, trust_bundle, volume,
};

/// A request that failed, and what it was for.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct Failed {
    pub doing: String,
    #[source]
    pub source: client::Error,
}

pub type Outcome = Result<(), Failed>;

pub trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failed>;
}

impl<T> Doing<T> for client::error::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failed> {
        self.map_err(|source| Failed { doing: what(), source })
    }
}

/// Turns "it is gone" and "somebody was faster, its change will wake us" into success.
pub trait Settled {
    fn or_gone(self) -> Outcome;
}

impl<T> Settled for Result<T, Failed> {
    fn or_gone(self) -> Outcome {
        match self {
            Ok(_) => Ok(()),
            Err(err) if err.source.is_not_found() => Ok(()),
            Err(err) => Err(err),
        }
    }
}

impl Context {
    /// Works on keys, `workers` at a time, until the drain begins. A failed key comes
    /// back later; the failure is logged here and nowhere else.
    pub async fn work<F, Fut>(&self, queue: &Queue<Key>, workers: usize, sync: F)
    where
        F: Fn(Key) -> Fut + Send + Sync,
        Fut: Future<Output = Outcome> + Send,
    {
        let sync = |key| -> BoxFuture<'_, Outcome> { Box::pin(sync(key)) };
        self.work_on(queue, workers, &sync).await;
    }

    /// The same for all controllers, compiled once.
    async fn work_on<'a>(
        &self,
        queue: &Queue<Key>,
        workers: usize,
        sync: &(dyn Fn(Key) -> BoxFuture<'a, Outcome> + Send + Sync),
    ) {
        let name = self.name;
        let work = |key: Key| {
            let sync = sync(key.clone());
            async move {
                let result = sync.await;
                if let Err(err) = &result {
                    report(name, &key, err);
                }
                match result {
                    // Nothing can be made in a namespace that goes away.
                    Err(err) if err.source.is_namespace_terminating() => Ok(()),
                    other => other,
                }
            }
        };
        queue.run(workers, self.drain.clone(), work).await;
    }
}

fn report(controller: &str, (namespace, name): &Key, err: &Failed) {
    let source = &err.source;
    if source.is_conflict() || source.is_already_exists() || source.is_namespace_terminating() {
        debug!(controller, namespace, name, error = %chain(err), "sync again");
    } else {
        warn!(controller, namespace, name, error = %chain(err), "sync failed");
    }
}
