//! What controllers cannot read from the API: how they are to work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::roster::Chosen;
use crate::volume::Recycling;

#[derive(Clone)]
pub struct Config {
    /// Which of them run (`controllers`).
    pub chosen: Chosen,
    /// How many keys a controller works on at a time, by upstream's name, where it is not as
    /// many as usual (`concurrent-...-syncs`).
    pub workers: BTreeMap<&'static str, usize>,
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
    /// Signs what kubelets ask for as clients, where that is not `client_ca`.
    pub kubelet_client_ca: Option<Arc<pki::authority::Authority>>,
    /// Signs what comes without a promise (`legacy-unknown`), where that is not `client_ca`.
    pub legacy_ca: Option<Arc<pki::authority::Authority>>,
    /// How long certificates are valid at the most (`cluster-signing-duration`).
    pub signing_duration: Duration,
    pub autoscaling: Autoscaling,
    /// A node that is silent for longer is held for dead (`node-monitor-grace-period`).
    pub node_monitor_grace: Duration,
    /// A node that has never said a word has this long (`node-startup-grace-period`).
    pub node_startup_grace: Duration,
    pub eviction: Eviction,
    pub endpoints: Batches,
    /// A token of old times that was not used for so long is made invalid, and goes after as
    /// long again, in days (`legacy-service-account-token-clean-up-period`).
    pub legacy_tokens_kept_days: i64,
    /// A charge whose object never came is given back this long after the last charge
    /// (`resource-quota-sync-period`).
    pub quota_count_again: Duration,
    /// A volume is taken from a node that is silent for long, in use or not
    /// (`disable-force-detach-on-timeout` is the opposite).
    pub force_detach: bool,
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
    pub recycling: Recycling,
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
    /// A pod's CPU does not count for so long after its start, unless it is ready
    /// (`cpu-initialization-period`).
    pub cpu_initialization: Duration,
    /// A pod that became unready so soon after its start was never ready
    /// (`initial-readiness-delay`).
    pub initial_readiness: Duration,
}

/// How fast pods leave nodes that are down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Eviction {
    /// Nodes of a zone that begin to, a second; 0: none does (`node-eviction-rate`).
    pub rate: f64,
    /// The same in a large zone that is ill (`secondary-node-eviction-rate`).
    pub rate_ill: f64,
    /// Share of nodes not ready that makes a zone ill (`unhealthy-zone-threshold`).
    pub ill_share: f64,
    /// Nodes in a zone above which it is large; in a smaller one that is ill nobody evicts
    /// (`large-cluster-size-threshold`).
    pub large: usize,
}

/// How much is written of services at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batches {
    /// Endpoints of a slice (`max-endpoints-per-slice`).
    pub slice_max: usize,
    /// Addresses of a subset of Endpoints that are mirrored
    /// (`mirroring-max-endpoints-per-subset`).
    pub mirrored_max: usize,
    /// Changes of pods within this time cost one write of slices
    /// (`endpointslice-updates-batch-period`).
    pub slices_wait: Duration,
    /// The same of Endpoints (`endpoint-updates-batch-period`).
    pub endpoints_wait: Duration,
    /// Changes of Endpoints within this time cost one write of their mirrors
    /// (`mirroring-endpointslice-updates-batch-period`).
    pub mirrors_wait: Duration,
}

impl Default for Eviction {
    fn default() -> Self {
        Self { rate: 0.1, rate_ill: 0.01, ill_share: 0.55, large: 50 }
    }
}

impl Default for Batches {
    fn default() -> Self {
        Self {
            slice_max: 100,
            mirrored_max: 1_000,
            slices_wait: Duration::ZERO,
            endpoints_wait: Duration::ZERO,
            mirrors_wait: Duration::ZERO,
        }
    }
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(15),
            tolerance: 0.1,
            stabilization: Duration::from_secs(300),
            cpu_initialization: Duration::from_secs(300),
            initial_readiness: Duration::from_secs(30),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            chosen: Chosen::default(),
            workers: BTreeMap::new(),
            cluster_cidrs: Vec::new(),
            node_cidr_sizes: (24, 64),
            service_cidrs: Vec::new(),
            signing_duration: Duration::from_secs(365 * 24 * 3_600),
            autoscaling: Autoscaling::default(),
            root_ca_pem: String::new(),
            token_key_pem: String::new(),
            client_ca: None,
            serving_ca: None,
            kubelet_client_ca: None,
            legacy_ca: None,
            node_monitor_grace: Duration::from_secs(50),
            node_startup_grace: Duration::from_secs(60),
            eviction: Eviction::default(),
            endpoints: Batches::default(),
            legacy_tokens_kept_days: 365,
            quota_count_again: Duration::from_secs(30),
            force_detach: true,
            trust_bundles: false,
            pod_certificates: false,
            service_lb: false,
            node_ports_taken: Vec::new(),
            finished_pods_max: 12_500,
            recycling: Recycling::default(),
        }
    }
}
