//! Flags of controllers, by kube-controller-manager's names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};

use super::recycling::RecyclingFlags;
use crate::args::duration;

/// How many keys a controller works on at a time, by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Syncs(pub BTreeMap<&'static str, usize>);

const SYNCS: [(&str, &str); 20] = [
    ("concurrent-cron-job-syncs", "cronjob-controller"),
    ("concurrent-daemonset-syncs", "daemonset-controller"),
    ("concurrent-deployment-syncs", "deployment-controller"),
    ("concurrent-device-taint-eviction-syncs", "device-taint-eviction-controller"),
    ("concurrent-endpoint-syncs", "endpoints-controller"),
    ("concurrent-ephemeralvolume-syncs", "ephemeral-volume-controller"),
    ("concurrent-gc-syncs", "garbage-collector-controller"),
    ("concurrent-horizontal-pod-autoscaler-syncs", "horizontal-pod-autoscaler-controller"),
    ("concurrent-job-syncs", "job-controller"),
    ("concurrent-namespace-syncs", "namespace-controller"),
    ("concurrent-rc-syncs", "replicationcontroller-controller"),
    ("concurrent-replicaset-syncs", "replicaset-controller"),
    ("concurrent-resource-quota-syncs", "resourcequota-controller"),
    ("concurrent-resourceclaim-syncs", "resourceclaim-controller"),
    ("concurrent-service-endpoint-syncs", "endpointslice-controller"),
    ("concurrent-service-syncs", "service-lb-controller"),
    ("concurrent-serviceaccount-token-syncs", "serviceaccount-token-controller"),
    ("concurrent-statefulset-syncs", "statefulset-controller"),
    ("concurrent-ttl-after-finished-syncs", "ttl-after-finished-controller"),
    ("mirroring-concurrent-service-endpoint-syncs", "endpointslice-mirroring-controller"),
];
/// More would only wait for each other.
const SYNCS_MAX: u64 = 1_000;

impl FromArgMatches for Syncs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = SYNCS.iter().filter_map(|(flag, controller)| {
            let count = *matches.get_one::<u64>(flag)?;
            Some((*controller, usize::try_from(count).ok()?))
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}

impl Args for Syncs {
    fn augment_args(command: Command) -> Command {
        command.args(SYNCS.iter().map(|(flag, controller)| {
            Arg::new(*flag)
                .long(*flag)
                .value_name("COUNT")
                .value_parser(value_parser!(u64).range(1..=SYNCS_MAX))
                .help(format!("Keys that the {controller} works on at a time"))
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// What both have.
#[derive(Debug, Default, Args)]
pub struct ControllerFlags {
    /// A node that is silent for longer is held for dead (default: 50s)
    #[arg(long, value_parser = duration)]
    pub node_monitor_grace_period: Option<Duration>,
    /// Size of the nodes' networks, in bits, where pods have one family (default: 24, or 64 of IPv6)
    #[arg(long)]
    pub node_cidr_mask_size: Option<u8>,
    /// The same of IPv4
    #[arg(long)]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// The same of IPv6
    #[arg(long)]
    pub node_cidr_mask_size_ipv6: Option<u8>,
    /// Finished pods beyond this number are removed; 0 keeps all (default: 12500)
    #[arg(long, allow_negative_numbers = true)]
    pub terminated_pod_gc_threshold: Option<i64>,
    /// How long certificates are valid at the most (default: 8760h)
    #[arg(long, value_parser = duration)]
    pub cluster_signing_duration: Option<Duration>,
    /// Between two looks of an autoscaler (default: 15s)
    #[arg(long, value_parser = duration)]
    pub horizontal_pod_autoscaler_sync_period: Option<Duration>,
    /// Changes below this share are not followed (default: 0.1)
    #[arg(long)]
    pub horizontal_pod_autoscaler_tolerance: Option<f64>,
    /// The highest wish of this time counts (default: 5m)
    #[arg(long, value_parser = duration)]
    pub horizontal_pod_autoscaler_downscale_stabilization: Option<Duration>,
    /// A pod's CPU does not count for so long after its start, unless it is ready (default: 5m)
    #[arg(long, value_parser = duration)]
    pub horizontal_pod_autoscaler_cpu_initialization_period: Option<Duration>,
    /// A pod that became unready so soon after its start was never ready (default: 30s)
    #[arg(long, value_parser = duration)]
    pub horizontal_pod_autoscaler_initial_readiness_delay: Option<Duration>,
    /// A node that has never said a word is held for dead after this long (default: 1m)
    #[arg(long, value_parser = duration)]
    pub node_startup_grace_period: Option<Duration>,
    /// Nodes of a zone whose pods begin to leave, a second (default: 0.1)
    #[arg(long)]
    pub node_eviction_rate: Option<f64>,
    /// The same in a large zone that is ill (default: 0.01)
    #[arg(long)]
    pub secondary_node_eviction_rate: Option<f64>,
    /// Share of nodes not ready that makes a zone ill (default: 0.55)
    #[arg(long)]
    pub unhealthy_zone_threshold: Option<f64>,
    /// Nodes in a zone above which it is large; nobody leaves a smaller one that is ill
    /// (default: 50)
    #[arg(long)]
    pub large_cluster_size_threshold: Option<usize>,
    /// Endpoints of a slice (default: 100)
    #[arg(long)]
    pub max_endpoints_per_slice: Option<usize>,
    /// Addresses of a subset of Endpoints that are mirrored (default: 1000)
    #[arg(long)]
    pub mirroring_max_endpoints_per_subset: Option<usize>,
    /// Changes of pods within this time are written at once, to Endpoints (default: 0s)
    #[arg(long, value_parser = duration)]
    pub endpoint_updates_batch_period: Option<Duration>,
    /// The same to EndpointSlices (default: 0s)
    #[arg(long, value_parser = duration)]
    pub endpointslice_updates_batch_period: Option<Duration>,
    /// Changes of Endpoints within this time are mirrored at once (default: 0s)
    #[arg(long, value_parser = duration)]
    pub mirroring_endpointslice_updates_batch_period: Option<Duration>,
    /// A token of before v1.24 that was not used for so long is made invalid, and goes after as
    /// long again (default: 8760h)
    #[arg(long, value_parser = duration)]
    pub legacy_service_account_token_clean_up_period: Option<Duration>,
    /// A quota is counted again this long after its last change (default: 30s)
    #[arg(long, value_parser = duration)]
    pub resource_quota_sync_period: Option<Duration>,
    /// Leave volumes on a node that is silent, however long (default: false)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub disable_force_detach_on_timeout: Option<bool>,
    /// Remove what has lost its owners (default: true)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_garbage_collector: Option<bool>,
    /// Which controllers run: `*` for all, NAME for one more, -NAME for one less (default: *)
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
    pub controllers: Option<Vec<String>>,
    #[command(flatten)]
    pub syncs: Syncs,
    #[command(flatten)]
    pub recycling: RecyclingFlags,
}

/// What only controllers in a process of their own have.
#[derive(Debug, Default, Args)]
pub struct ApartOnlyFlags {
    /// Networks that nodes get their pods' networks from, one of a family
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<String>,
    /// Networks of services: no node gets what overlaps them
    #[arg(long, value_delimiter = ',')]
    pub service_cluster_ip_range: Vec<String>,
    /// Authority that pods trust (default: that of the kubeconfig)
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    /// Key that signs tokens in secrets (default: there are none)
    #[arg(long)]
    pub service_account_private_key_file: Option<PathBuf>,
    /// Whether nodes get networks of --cluster-cidr (default: true where there are any)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allocate_node_cidrs: Option<bool>,
    /// How they get them
    #[arg(long, value_parser = ["RangeAllocator"])]
    pub cidr_allocator_type: Option<String>,
    /// Authority that signs what clients and kubelets ask for (default: nobody here does)
    #[arg(long, requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "cluster_signing_cert_file")]
    pub cluster_signing_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub signers: SignerFlags,
}

/// Authorities of single signers.
#[derive(Debug, Default, Args)]
pub struct SignerFlags {
    /// Authority that signs what clients ask for
    #[arg(long, requires = "cluster_signing_kube_apiserver_client_key_file")]
    pub cluster_signing_kube_apiserver_client_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "cluster_signing_kube_apiserver_client_cert_file")]
    pub cluster_signing_kube_apiserver_client_key_file: Option<PathBuf>,
    /// Authority that signs what kubelets as clients ask for
    #[arg(long, requires = "cluster_signing_kubelet_client_key_file")]
    pub cluster_signing_kubelet_client_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "cluster_signing_kubelet_client_cert_file")]
    pub cluster_signing_kubelet_client_key_file: Option<PathBuf>,
    /// Authority that signs what kubelets as servers ask for
    #[arg(long, requires = "cluster_signing_kubelet_serving_key_file")]
    pub cluster_signing_kubelet_serving_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "cluster_signing_kubelet_serving_cert_file")]
    pub cluster_signing_kubelet_serving_key_file: Option<PathBuf>,
    /// Authority that signs what those who promise nothing ask for
    #[arg(long, requires = "cluster_signing_legacy_unknown_key_file")]
    pub cluster_signing_legacy_unknown_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "cluster_signing_legacy_unknown_cert_file")]
    pub cluster_signing_legacy_unknown_key_file: Option<PathBuf>,
}
