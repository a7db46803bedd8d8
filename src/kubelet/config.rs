//! What the kubelet is told at start.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use tracing::warn;

use crate::client_certificate::ClientCertificate;
use crate::eviction::thresholds::Policy;
use crate::garbage::Periods;
use crate::images;
use crate::logs::Rhythm;
use crate::placement::Settings;
use crate::quantity::{self, ResourceList};
use crate::resources::CpuTime;
use crate::shutdown::Period;
use crate::staticpods::remote::Remote;

pub const KUBELET_VERSION: &str = "v1.36.2";

/// A cgroup of the host that may use no more than is reserved.
#[derive(Debug, Clone, PartialEq)]
pub struct ReservedGroup {
    /// As enforceNodeAllocatable names it.
    pub name: String,
    /// Below the root of every hierarchy.
    pub path: String,
    pub amounts: ResourceList,
    /// Only its CPU weight is set.
    pub compressible_only: bool,
}

/// How the node tells that it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// How often the status is looked at, and how old a written one may grow unchanged.
    pub status_period: Duration,
    pub status_age_max: Duration,
    /// The life of the node's lease, which is renewed four times in it.
    pub lease_seconds: i32,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            status_period: Duration::from_secs(10),
            status_age_max: Duration::from_secs(300),
            lease_seconds: 40,
        }
    }
}

/// Where the plugins of others expect a kubelet's directories.
pub const PLUGIN_ROOT_DIR: &str = "/var/lib/kubelet";

#[derive(Clone)]
pub struct KubeletConfig {
    pub node_name: String,
    /// The primary address first; at least one.
    pub node_ips: Vec<IpAddr>,
    /// Those that clients outside of the cluster dial.
    pub node_external_ips: Vec<IpAddr>,
    /// Pod directories lie below it: `/var/lib/coracle/agent`.
    pub root_dir: PathBuf,
    /// The root directory as drivers and plugins name it: `/var/lib/kubelet`, a link that is
    /// made where nothing is there.
    pub plugin_root_dir: PathBuf,
    /// `/var/log/pods`
    pub pod_log_dir: PathBuf,
    /// `/var/log/containers`: links to the logs by pod name.
    pub container_log_dir: PathBuf,
    /// Shown under `/logs/`: `/var/log`.
    pub system_log_dir: PathBuf,
    /// Services' logs may be asked for besides the files of that directory.
    pub answers_log_queries: bool,
    /// What reads journald's logs.
    pub journal_program: PathBuf,
    /// The socket of a container runtime that is not ours; None is the built-in one.
    pub runtime_endpoint: Option<PathBuf>,
    /// The socket of its images where that is another.
    pub image_endpoint: Option<PathBuf>,
    /// Manifests of static pods; None has none.
    pub static_pod_dir: Option<PathBuf>,
    /// Where further ones are asked for.
    pub static_pod_url: Option<Remote>,
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`
    pub cluster_domain: String,
    /// The host's resolver configuration.
    pub resolv_conf: PathBuf,
    pub max_pods: u32,
    /// Cgroup of all pods below the root of every hierarchy: `kubepods`.
    pub cgroup_root: String,
    /// Most processes of a pod; 0 is unlimited.
    pub pod_pids_limit: i64,
    /// Where logs, exec and statistics are served.
    pub listen: SocketAddr,
    /// With a client verifier that asks for, but does not demand, a certificate.
    pub tls: Arc<rustls::ServerConfig>,
    /// The cluster signs the serving certificate; the one of `tls` is presented until it has.
    pub asks_for_serving_certificate: bool,
    /// Who the kubelet is to a server that is not in its process; it keeps that current.
    pub client_certificate: Option<Arc<ClientCertificate>>,
    /// Another one is asked for before that ends.
    pub rotates_client_certificate: bool,
    /// Added to the node's labels at registration.
    pub node_labels: Vec<(String, String)>,
    /// Set when the node is created.
    pub register_taints: Vec<Taint>,
    /// Bytes of a container's log after which a new file begins.
    pub log_bytes_max: u64,
    /// Files kept of a container's log, the current one included.
    pub log_files_max: usize,
    pub log_rhythm: Rhythm,
    /// Percent of the image disk above which unused images are removed, and down to which.
    pub image_gc_percent: (u8, u8),
    /// Younger images stay unless the disk runs short.
    pub image_age_min: Duration,
    /// Images unused for longer are removed; zero keeps them.
    pub image_age_max: Duration,
    /// How images are pulled, and who may use those that are there.
    pub image_rules: images::Rules,
    /// Kept for the kubelet and for the rest of the host; pods get what is left.
    pub kube_reserved: ResourceList,
    pub system_reserved: ResourceList,
    /// Pods together cannot use what is reserved.
    pub enforce_allocatable: bool,
    /// Groups of the host's own that are bounded by what is reserved for them.
    pub reserved_groups: Vec<ReservedGroup>,
    /// Names or `prefix*` of sysctls that pods may set although others could be harmed.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Ids that a pod with a user namespace of its own has; a multiple of 65536.
    pub ids_per_pod: u32,
    /// Containers that do not say otherwise run under the runtime's seccomp profile.
    pub seccomp_default: bool,
    /// Longest wait before a failing container is started again.
    pub restart_backoff_max: Duration,
    /// Burstable pods may use the node's swap (LimitedSwap); cgroup v2 only.
    pub limited_swap: bool,
    /// The throttling factor of memory QoS, where that is on; cgroup v2 only.
    pub memory_qos: Option<f64>,
    /// Volumes may show ClusterTrustBundles (the gate ClusterTrustBundleProjection).
    pub projects_trust_bundles: bool,
    /// Volumes may show certificates that are made for the pod (PodCertificateRequest).
    pub requests_pod_certificates: bool,
    /// How CPUs and memory of NUMA nodes are given out.
    pub places: Settings,
    /// How long pods have to end before the machine goes down, by priority; empty leaves
    /// them alone.
    pub shutdown: Vec<Period>,
    /// Where logind is spoken with, and configured.
    pub system_bus: PathBuf,
    pub systemd_dir: PathBuf,
    /// How often what cannot be watched is looked at: volumes that their drivers want
    /// published again, claims that wait for more room.
    pub sync_period: Duration,
    pub heartbeat: Heartbeat,
    pub garbage_periods: Periods,
    /// How fast events are sent.
    pub event_rate: client::Rate,
    /// How fast the server is asked for what is no heartbeat; None is as fast as need be.
    pub api_rate: Option<client::Rate>,
    /// Where `/healthz` is answered in the clear; None is nowhere.
    pub healthz: Option<SocketAddr>,
    /// Certificate and key that are presented, and read again when they change.
    pub serving_files: Option<(PathBuf, PathBuf)>,
    /// PEM of the authorities by which `tls` knows clients; empty asks for no certificate.
    pub client_ca_pem: Vec<u8>,
    /// What of TLS is offered.
    pub offer: pki::tls::Offer,
    /// Set for this process where it may be; None leaves what is there.
    pub oom_score_adj: Option<i64>,
    pub open_files_max: Option<u64>,
    pub cpu_time: CpuTime,
    /// `spec.providerID` of a node that is made.
    pub provider_id: String,
    /// Images told in the node's status, the largest first; None is all.
    pub status_images_max: Option<usize>,
    /// How old what is known of the sizes of volumes may be; None measures none.
    pub volume_stats_age: Option<Duration>,
    /// Out of memory, one process of a container ends and not all; cgroup v2 only.
    pub ends_one_process: bool,
    /// Memory that was requested is kept, where memory QoS is on.
    pub keeps_requests: bool,
    /// The kernel's settings are known to be as they should.
    pub protects_kernel: bool,
    /// Where the kernel tells what it does: `/dev/kmsg`.
    pub kernel_messages: PathBuf,
    /// What the node keeps free, and how pods give way.
    pub eviction: Policy,
}

impl KubeletConfig {
    /// Upstream's defaults, and Coracle's places.
    pub fn new(node_name: &str, node_ips: Vec<IpAddr>, tls: Arc<rustls::ServerConfig>) -> Self {
        Self {
            node_name: node_name.to_owned(),
            node_ips,
            node_external_ips: Vec::new(),
            root_dir: "/var/lib/coracle/agent".into(),
            plugin_root_dir: PLUGIN_ROOT_DIR.into(),
            pod_log_dir: "/var/log/pods".into(),
            container_log_dir: "/var/log/containers".into(),
            system_log_dir: "/var/log".into(),
            answers_log_queries: false,
            journal_program: "journalctl".into(),
            runtime_endpoint: None,
            image_endpoint: None,
            static_pod_dir: None,
            static_pod_url: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            max_pods: 110,
            cgroup_root: "kubepods".into(),
            pod_pids_limit: 0,
            listen: SocketAddr::from(([0, 0, 0, 0], 10250)),
            tls,
            asks_for_serving_certificate: false,
            client_certificate: None,
            rotates_client_certificate: true,
            node_labels: Vec::new(),
            register_taints: Vec::new(),
            log_bytes_max: 10 << 20,
            log_files_max: 5,
            log_rhythm: Rhythm::default(),
            image_gc_percent: (85, 80),
            image_age_min: Duration::from_secs(120),
            image_age_max: Duration::ZERO,
            image_rules: images::Rules::default(),
            kube_reserved: ResourceList::new(),
            system_reserved: ResourceList::new(),
            enforce_allocatable: true,
            reserved_groups: Vec::new(),
            allowed_unsafe_sysctls: Vec::new(),
            limited_swap: false,
            shutdown: Vec::new(),
            system_bus: "/run/dbus/system_bus_socket".into(),
            systemd_dir: "/etc/systemd".into(),
            places: Settings::default(),
            memory_qos: None,
            projects_trust_bundles: false,
            requests_pod_certificates: false,
            seccomp_default: false,
            restart_backoff_max: crate::backoff::MAX,
            ids_per_pod: crate::users::IDS_UNIT,
            sync_period: Duration::from_secs(60),
            heartbeat: Heartbeat::default(),
            garbage_periods: Periods::default(),
            event_rate: client::recorder::RATE,
            api_rate: None,
            healthz: Some(SocketAddr::from(([127, 0, 0, 1], 10248))),
            serving_files: None,
            client_ca_pem: Vec::new(),
            offer: pki::tls::Offer::default(),
            oom_score_adj: None,
            open_files_max: None,
            cpu_time: CpuTime::default(),
            provider_id: String::new(),
            status_images_max: Some(50),
            volume_stats_age: Some(Duration::ZERO),
            ends_one_process: false,
            keeps_requests: false,
            protects_kernel: false,
            kernel_messages: "/dev/kmsg".into(),
            eviction: Policy::default(),
        }
    }

    /// What is kept of a resource for the kubelet and for the rest of the host, in thousandths.
    pub fn reserved_milli(&self, name: &str) -> i64 {
        let all = [&self.kube_reserved, &self.system_reserved];
        all.map(|list| quantity::milli_of(Some(list), name)).iter().sum()
    }

    /// Drivers see the node's directories in a container of theirs, under the name that they
    /// were made for. Where that name is taken by something else, they are told the real one.
    pub fn root_as_plugins_know_it(&self) -> PathBuf {
        let (root, name) = (&self.root_dir, &self.plugin_root_dir);
        if root == name {
            return root.clone();
        }
        if let Some(parent) = name.parent() {
            // Shows itself in the next line.
            let _ = std::fs::create_dir_all(parent);
        }
        // One that is there already is looked at below.
        let _ = std::os::unix::fs::symlink(root, name);
        if std::fs::read_link(name).is_ok_and(|there| there == *root) {
            return name.clone();
        }
        warn!(name = %name.display(), root = %root.display(),
              "plugins must be told the real root directory: the name they know is taken");
        root.clone()
    }

    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    /// `NAMESPACE_NAME_UID` below the pods' log directory.
    pub fn log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.pod_log_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}
