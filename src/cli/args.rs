//! The flags and commands, as the user sees them. Names and meanings follow k3s where it
//! has the same thing.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::apart::flags::ComponentFlags;
use crate::controlling::{ApartOnlyFlags, ControllerFlags};

#[derive(Debug, Parser)]
#[command(
    name = "coracle",
    version = crate::version::VERSION,
    about = "A Kubernetes that one person can carry",
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the control plane and a node
    Server(Box<ServerFlags>),
    /// Look at and import container images
    #[command(subcommand)]
    Images(ImagesCommand),
    /// Leave no trace: stop the pods, remove the network, the rules and the data
    Reset(ResetFlags),
    /// Is this host fit? Says what is missing and what to do
    CheckConfig(HostFlags),
    /// Run the controllers alone, against the server of a kubeconfig
    #[command(hide = true)]
    Controllers {
        #[command(flatten)]
        apart: Box<ComponentFlags>,
        #[command(flatten)]
        flags: Box<ControllerFlags>,
        #[command(flatten)]
        only: Box<ApartOnlyFlags>,
    },
    /// Run the scheduler alone, against the server of a kubeconfig
    #[command(hide = true)]
    Scheduler {
        #[command(flatten)]
        apart: Box<ComponentFlags>,
        /// A KubeSchedulerConfiguration file
        #[arg(long)]
        config: Option<PathBuf>,
        /// A pod that nothing has helped is tried again after this long (default: 5m)
        #[arg(long, value_parser = duration)]
        pod_max_in_unschedulable_pods_duration: Option<Duration>,
    },
    /// Run the node of this machine for the server of a kubeconfig, or simulated ones
    #[command(hide = true)]
    Agent(Box<AgentFlags>),
    /// Print the version
    Version,
}

/// Flags of nodes that run in a process of their own.
#[derive(Debug, Args)]
pub struct ApartFlags {
    /// Server and credentials
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// More words in the log; twice for all of them
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Flags of a node apart from its server, and of simulated ones. Lengths of time are written
/// as Go does: 500ms, 1m30s.
#[derive(Debug, Args)]
pub struct AgentFlags {
    #[command(flatten)]
    pub apart: ApartFlags,
    #[command(flatten)]
    pub host: HostFlags,
    #[command(flatten)]
    pub node: NodeFlags,
    /// Address the kubelet listens on
    #[arg(long, env = "CORACLE_BIND_ADDRESS", default_value = "0.0.0.0")]
    pub bind_address: Ipv4Addr,
    /// Network of the pods
    #[arg(long, env = "CORACLE_CLUSTER_CIDR", default_value = "10.42.0.0/16")]
    pub cluster_cidr: String,
    /// Network of the services
    #[arg(long, env = "CORACLE_SERVICE_CIDR", default_value = "10.43.0.0/16")]
    pub service_cidr: String,
    /// How many simulated nodes, instead of this one; they run no containers
    #[arg(long)]
    pub hollow: Option<u32>,
    /// What simulated nodes are called, before a dash and a number
    #[arg(long, default_value = "hollow")]
    pub name_prefix: String,
    /// Zones that the nodes lie in
    #[arg(long, default_value_t = 3)]
    pub zones: u32,
    /// What each node has
    #[arg(long, default_value = "8")]
    pub node_cpu: String,
    #[arg(long, default_value = "32Gi")]
    pub node_memory: String,
    #[arg(long, default_value_t = 110)]
    pub max_pods: u32,
    /// From being bound to running
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub pod_start_delay: Duration,
    /// From being deleted to having ended, unless the pod's grace is shorter
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub pod_stop_delay: Duration,
    /// How long pods run that may end, such as those of Jobs (default: for ever)
    #[arg(long, value_parser = duration)]
    pub pod_run_time: Option<Duration>,
    /// How much of what they ask for containers use, in percent
    #[arg(long, default_value_t = 50)]
    pub pod_use_percent: u32,
    /// Address of this host at which the server reaches each node's metrics, on a port of its
    /// own (default: they give none)
    #[arg(long)]
    pub metrics_address: Option<IpAddr>,
    /// How often each node renews its lease
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub heartbeat: Duration,
    /// Connections that the nodes share
    #[arg(long, default_value_t = 4)]
    pub connections: u32,
}

pub fn duration(text: &str) -> Result<Duration, String> {
    base::time::parse_duration(text).ok_or_else(|| "it is not a length of time".into())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Flags that several commands share.
#[derive(Debug, Clone, Args)]
pub struct HostFlags {
    /// Configuration file
    #[arg(short = 'c', long, env = "CORACLE_CONFIG", default_value = "/etc/coracle/config.yaml")]
    pub config: PathBuf,
    /// Folder that holds state
    #[arg(long, env = "CORACLE_DATA_DIR", default_value = "/var/lib/coracle")]
    pub data_dir: PathBuf,
    /// Folder of sockets and network namespaces
    #[arg(long, env = "CORACLE_RUN_DIR", default_value = "/run/coracle", hide = true)]
    pub run_dir: PathBuf,
    /// Name of the pods' bridge
    #[arg(long, env = "CORACLE_BRIDGE", default_value = "coracle0", hide = true)]
    pub bridge: String,
}

/// Flags of a node, be it the server's own or another.
#[derive(Debug, Args)]
pub struct NodeFlags {
    /// Name of this node (default: the host's)
    #[arg(long, env = "CORACLE_NODE_NAME")]
    pub node_name: Option<String>,
    /// Labels of this node, KEY=VALUE
    #[arg(long, env = "CORACLE_NODE_LABEL", value_delimiter = ',')]
    pub node_label: Vec<String>,
    /// Taints of this node, KEY=VALUE:EFFECT
    #[arg(long, env = "CORACLE_NODE_TAINT", value_delimiter = ',')]
    pub node_taint: Vec<String>,
    /// Address of this node (default: that of the default route)
    #[arg(long, env = "CORACLE_NODE_IP")]
    pub node_ip: Option<Ipv4Addr>,
    /// Address of this node for clients outside of the cluster
    #[arg(long, env = "CORACLE_NODE_EXTERNAL_IP")]
    pub node_external_ip: Option<Ipv4Addr>,
    /// The host's resolver configuration
    #[arg(long, env = "CORACLE_RESOLV_CONF", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// A KubeletConfiguration file (drop-ins in FILE.d/*.conf), or a folder of drop-ins
    #[arg(long, env = "CORACLE_KUBELET_CONFIG")]
    pub kubelet_config: Option<PathBuf>,
    /// A kubelet flag, NAME=VALUE; one that is not supported says which are
    #[arg(long, env = "CORACLE_KUBELET_ARG")]
    pub kubelet_arg: Vec<String>,
    /// CRI socket of another container runtime, unix:///PATH (default: the built-in one)
    #[arg(long, env = "CORACLE_CONTAINER_RUNTIME_ENDPOINT")]
    pub container_runtime_endpoint: Option<String>,
    /// An OCI runtime for pods whose RuntimeClass has this handler, NAME=PATH: a program with
    /// runc's commands; crun, runc, runsc and youki are found where they are installed. Kata
    /// Containers has no such program any more (containerd drives it)
    #[arg(long, env = "CORACLE_RUNTIME_HANDLER")]
    pub runtime_handler: Vec<String>,
    /// Port of the kubelet
    #[arg(long, env = "CORACLE_KUBELET_PORT", default_value_t = 10250, hide = true)]
    pub kubelet_port: u16,
    /// Registries, mirrors and their credentials
    #[arg(long, env = "CORACLE_PRIVATE_REGISTRY", default_value = "/etc/coracle/registries.yaml")]
    pub private_registry: PathBuf,
}

#[derive(Debug, Args)]
pub struct ServerFlags {
    #[command(flatten)]
    pub host: HostFlags,

    /// Address the API listens on
    #[arg(long, env = "CORACLE_BIND_ADDRESS", default_value = "0.0.0.0")]
    pub bind_address: Ipv4Addr,
    /// Port of the API
    #[arg(long, env = "CORACLE_HTTPS_LISTEN_PORT", default_value_t = 6443)]
    pub https_listen_port: u16,
    /// Address that others reach this server at (default: the node's)
    #[arg(long, env = "CORACLE_ADVERTISE_ADDRESS")]
    pub advertise_address: Option<Ipv4Addr>,
    /// Port that others reach this server at (default: the listener's)
    #[arg(long, env = "CORACLE_ADVERTISE_PORT")]
    pub advertise_port: Option<u16>,
    /// Further names and addresses in the server's certificate
    #[arg(long, env = "CORACLE_TLS_SAN", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Where to write the administrator's kubeconfig
    #[arg(long, env = "CORACLE_WRITE_KUBECONFIG", default_value = "/etc/coracle/kubeconfig.yaml")]
    pub write_kubeconfig: PathBuf,
    /// Mode of the kubeconfig, octal
    #[arg(long, env = "CORACLE_WRITE_KUBECONFIG_MODE", default_value = "0600")]
    pub write_kubeconfig_mode: String,

    /// Network of the pods
    #[arg(long, env = "CORACLE_CLUSTER_CIDR", default_value = "10.42.0.0/16")]
    pub cluster_cidr: String,
    /// Network of the services
    #[arg(long, env = "CORACLE_SERVICE_CIDR", default_value = "10.43.0.0/16")]
    pub service_cidr: String,
    /// Ports of services of type NodePort
    #[arg(long, env = "CORACLE_SERVICE_NODE_PORT_RANGE", default_value = "30000-32767")]
    pub service_node_port_range: String,
    /// Address of the cluster's DNS (default: the tenth of the service network)
    #[arg(long, env = "CORACLE_CLUSTER_DNS")]
    pub cluster_dns: Option<Ipv4Addr>,
    /// Domain of the cluster's names
    #[arg(long, env = "CORACLE_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,

    #[command(flatten)]
    pub node: NodeFlags,
    /// Run no node in this process
    #[arg(long, env = "CORACLE_DISABLE_AGENT")]
    pub disable_agent: bool,
    /// Run no scheduler in this process
    #[arg(long, env = "CORACLE_DISABLE_SCHEDULER")]
    pub disable_scheduler: bool,
    /// Run no controllers in this process
    #[arg(long, env = "CORACLE_DISABLE_CONTROLLER_MANAGER")]
    pub disable_controller_manager: bool,
    /// Run no service proxy in this process
    #[arg(long, env = "CORACLE_DISABLE_KUBE_PROXY")]
    pub disable_kube_proxy: bool,
    /// Give services of type LoadBalancer no addresses: a cloud's controller does
    #[arg(long, env = "CORACLE_DISABLE_CLOUD_CONTROLLER")]
    pub disable_cloud_controller: bool,
    /// Leave a part out: dns, local-storage, metrics-server, servicelb, or a manifest by its name
    #[arg(long, env = "CORACLE_DISABLE", value_delimiter = ',')]
    pub disable: Vec<String>,
    /// A kube-apiserver flag, NAME=VALUE; one that is not supported says which are
    #[arg(long, env = "CORACLE_KUBE_APISERVER_ARG")]
    pub kube_apiserver_arg: Vec<String>,
    /// A kube-scheduler flag, NAME=VALUE; one that is not supported says which are
    #[arg(long, env = "CORACLE_KUBE_SCHEDULER_ARG")]
    pub kube_scheduler_arg: Vec<String>,
    /// A kube-controller-manager flag, NAME=VALUE; one that is not supported says which are
    #[arg(long, env = "CORACLE_KUBE_CONTROLLER_MANAGER_ARG")]
    pub kube_controller_manager_arg: Vec<String>,
    /// Audit policy
    #[arg(long, env = "CORACLE_AUDIT_POLICY_FILE")]
    pub audit_policy_file: Option<PathBuf>,
    /// Where audit events go, `-` for standard output
    #[arg(long, env = "CORACLE_AUDIT_LOG_PATH")]
    pub audit_log_path: Option<PathBuf>,

    /// More words in the log; twice for all of them
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// The same as -v
    #[arg(long, env = "CORACLE_DEBUG")]
    pub debug: bool,
    /// Form of the log
    #[arg(long, env = "CORACLE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    /// Import image archives (OCI or docker; tar, gz, zst)
    Import {
        #[command(flatten)]
        host: HostFlags,
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// List the images on this node
    List {
        #[command(flatten)]
        host: HostFlags,
    },
    /// Pull images and show how far they have come
    Pull {
        #[command(flatten)]
        host: HostFlags,
        /// Registries, mirrors and their credentials, where no server runs
        #[arg(
            long,
            env = "CORACLE_PRIVATE_REGISTRY",
            default_value = "/etc/coracle/registries.yaml"
        )]
        private_registry: PathBuf,
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Write images into an archive (OCI and docker at once; .tar, .tar.gz or .tar.zst)
    Export {
        #[command(flatten)]
        host: HostFlags,
        /// The archive to write
        #[arg(short, long)]
        output: PathBuf,
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove the images that no container uses
    Prune {
        #[command(flatten)]
        host: HostFlags,
    },
    /// Remove images by name or id
    Remove {
        #[command(flatten)]
        host: HostFlags,
        #[arg(required = true)]
        images: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct ResetFlags {
    #[command(flatten)]
    pub host: HostFlags,
    /// Keep the datastore, the certificates and the images
    #[arg(long)]
    pub keep_data: bool,
}
