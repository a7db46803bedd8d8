//! The contract between the kubelet and a container runtime, in the nouns of CRI v1
//! (k8s.io/cri-api, `RuntimeService` and `ImageService`).
//!
//! Holds types and traits only. The built-in runtime implements them in this room; a
//! client of a foreign CRI socket can implement the same traits.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc, oneshot};

/// What kind of failure a runtime call met; the kubelet turns it into reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    AlreadyExists,
    InvalidArgument,
    /// The image is not present on the node.
    ImageNotPresent,
    /// The registry refused, could not be reached, or has no such image.
    ImagePull,
    /// The image, or a part of it, is malformed.
    ImageInvalid,
    /// The container could not be created (bad config, missing command, bad mount).
    Create,
    /// The container was created but its process could not be started.
    Start,
    DeadlineExceeded,
    NoSpace,
    Internal,
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: ErrorKind,
    /// One line for a person, as it appears in events and container states.
    pub message: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(source.into()) }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// Identity of a pod sandbox; `attempt` grows when a sandbox is made anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PodSandboxMetadata {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub attempt: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum NamespaceMode {
    /// Shared by the containers of the pod.
    #[default]
    Pod,
    /// One per container.
    Container,
    /// The node's own.
    Node,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct PodSandboxConfig {
    pub metadata: PodSandboxMetadata,
    /// Host name of the pod's UTS namespace; empty keeps the node's (host network).
    pub hostname: String,
    /// `/var/log/pods/NAMESPACE_NAME_UID`
    pub log_directory: PathBuf,
    pub dns: DnsConfig,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    pub sysctls: BTreeMap<String, String>,
    /// Cgroup of the pod below the hierarchy's root, e.g. `kubepods/burstable/podUID`.
    pub cgroup_parent: String,
    /// Limits of the pod's cgroup as a whole.
    pub resources: LinuxResources,
    /// A privileged container is among those to come.
    #[serde(default)]
    pub privileged: bool,
    pub seccomp: SeccompProfile,
    /// Of the pod; containers without options of their own have these.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
    /// Name of the RuntimeClass handler; empty is the default.
    pub runtime_handler: String,
    /// A user namespace of the pod's own; None is the node's.
    #[serde(default)]
    pub users: Option<UserNamespace>,
    /// Of callers without an API server; the service proxy knows those of all other pods.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
}

/// A port of the node that leads to one of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HostPort {
    pub protocol: Protocol,
    /// None is every address of the node.
    pub host_ip: Option<std::net::Ipv4Addr>,
    pub host_port: u16,
    pub container_port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Ids 0.. of users and groups of a pod, and where on the node they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UserNamespace {
    pub host_id: u32,
    pub length: u32,
}

/// What a runtime can do that not every one can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    pub user_namespaces: bool,
    pub recursive_read_only_mounts: bool,
}

/// A way to run pods that a RuntimeClass can name; the default one has no name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handler {
    pub name: String,
    pub features: Features,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SandboxState {
    Ready,
    NotReady,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct PodSandbox {
    pub id: String,
    pub metadata: PodSandboxMetadata,
    pub state: SandboxState,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Addresses of the pod, the primary one first; empty on the host network.
    pub ips: Vec<IpAddr>,
    pub network: NamespaceMode,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LinuxResources {
    /// Relative weight as in cgroup v1 (2..=262144); 0 leaves it alone.
    pub cpu_shares: u64,
    /// Microseconds of CPU per period; 0 is unlimited.
    pub cpu_quota: i64,
    /// Microseconds; 0 means 100000.
    pub cpu_period: u64,
    /// Bytes; 0 is unlimited.
    pub memory_limit: i64,
    /// -1000..=1000
    pub oom_score_adj: i64,
    /// 0 is unlimited.
    pub pids_limit: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    /// Bytes by size of page, as the kernel names it (`2MB`).
    #[serde(default)]
    pub huge_pages: BTreeMap<String, u64>,
    /// Bytes beyond memory; None is none once memory is limited.
    #[serde(default)]
    pub swap_bytes: Option<u64>,
    /// cgroup v2 files written as they are (`memory.high`, ...).
    pub unified: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SeccompProfile {
    /// The runtime's default profile.
    #[default]
    RuntimeDefault,
    Unconfined,
    /// A profile file on the node, in the OCI JSON form.
    Localhost(PathBuf),
}

/// Parts of an SELinux label; empty is what the host's policy gives containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SelinuxOptions {
    pub user: String,
    pub role: String,
    /// Of processes; files have the policy's.
    pub kind: String,
    pub level: String,
}

impl SelinuxOptions {
    pub fn wanted(&self) -> sys::selinux::Wanted<'_> {
        let Self { user, role, kind, level } = self;
        sys::selinux::Wanted { user, role, kind, level }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum MountPropagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    pub container_path: PathBuf,
    pub host_path: PathBuf,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub propagation: MountPropagation,
    /// Gives everything at `host_path` the container's SELinux label, where there is SELinux.
    #[serde(default)]
    pub selinux_relabel: bool,
    /// Mounts the files of an image instead of `host_path`, which is empty.
    #[serde(default)]
    pub image: Option<ImageTree>,
}

/// The files of an image, or what lies at a path in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageTree {
    /// Id of an image that is present.
    pub image: String,
    /// Relative; empty is all of it.
    pub sub_path: PathBuf,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Device {
    pub container_path: PathBuf,
    pub host_path: PathBuf,
    /// Any of `r`, `w`, `m`.
    pub permissions: String,
}

/// What of its file system a container may not see or change.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Masks {
    /// The runtime's own list.
    #[default]
    Default,
    /// Nothing; `procMount: Unmasked`.
    Nothing,
    /// Paths in the container.
    These { hidden: Vec<PathBuf>, readonly: Vec<PathBuf> },
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct SecurityContext {
    pub privileged: bool,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    /// None takes the image's user.
    pub run_as_user: Option<i64>,
    /// A user name from the image, when `run_as_user` is None.
    pub run_as_username: String,
    pub run_as_group: Option<i64>,
    pub supplemental_groups: Vec<i64>,
    /// True ignores the groups that the image's /etc/group adds.
    pub supplemental_groups_strict: bool,
    pub readonly_rootfs: bool,
    pub no_new_privs: bool,
    pub seccomp: SeccompProfile,
    pub apparmor_profile: String,
    /// None is the pod's.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
    #[serde(default)]
    pub masks: Masks,
    /// Kubernetes' name of a signal (`SIGUSR1`); empty takes the image's.
    pub stop_signal: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ContainerMetadata {
    pub name: String,
    pub attempt: u32,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct ContainerConfig {
    pub metadata: ContainerMetadata,
    /// Id (`sha256:...`) of an image that is present.
    pub image: String,
    /// The image as the user wrote it.
    pub user_specified_image: String,
    /// Replaces the image's entrypoint if not empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments if not empty, or if `command` is not empty.
    pub args: Vec<String>,
    pub working_dir: String,
    /// In order; added to the image's environment.
    pub envs: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// Names (`VENDOR/CLASS=NAME`) of the Container Device Interface; what they stand for is
    /// added.
    #[serde(default)]
    pub cdi_devices: Vec<String>,
    /// Programs that its devices want run; not a part of CRI.
    #[serde(default)]
    pub hooks: Vec<Hook>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Relative to the sandbox's log directory, e.g. `web/0.log`.
    pub log_path: PathBuf,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub resources: LinuxResources,
    pub security: SecurityContext,
    /// `Pod`, `Container` (default for containers), or `Node`.
    pub pid: NamespaceMode,
    /// Join the pid namespace of this container (ephemeral containers with a target).
    pub target_container: Option<String>,
}

/// When a hook is called, by the names of the OCI runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookStage {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl HookStage {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// A program that is called once, with the container's state on its standard input.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Hook {
    pub stage: HookStage,
    pub path: PathBuf,
    /// The name it is called by first.
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// 0 is the runtime's to say.
    pub timeout_seconds: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Container {
    pub id: String,
    pub sandbox_id: String,
    pub metadata: ContainerMetadata,
    pub state: ContainerState,
    /// Nanoseconds since the Unix epoch, 0 where it has not happened.
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    /// Exit status, or 128 + the signal that ended the process.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, ...
    pub reason: String,
    pub message: String,
    /// Process id of the container's init on the node, 0 unless running.
    pub pid: i32,
    pub image: String,
    pub user_specified_image: String,
    /// `NAME@sha256:...` of the image, or its id where it has no repository digest.
    pub image_ref: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub log_path: PathBuf,
    pub mounts: Vec<Mount>,
    pub resources: LinuxResources,
    /// Whose rights the first process began with; None where the runtime does not say.
    #[serde(default)]
    pub user: Option<ContainerUser>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ContainerUser {
    pub uid: i64,
    pub gid: i64,
    pub supplemental_groups: Vec<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    Created {
        sandbox_id: String,
        container_id: String,
    },
    Started {
        sandbox_id: String,
        container_id: String,
    },
    Stopped {
        sandbox_id: String,
        container_id: String,
    },
    Removed {
        sandbox_id: String,
        container_id: String,
    },
    /// The sandbox's shim is gone.
    SandboxStopped {
        sandbox_id: String,
    },
}

#[derive(Debug, Clone, Default)]
pub struct ExecSyncResult {
    /// Each stream is cut off at 16 MiB.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    pub command: Vec<String>,
    pub stdin: bool,
    pub tty: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct AttachOptions {
    pub stdin: bool,
    pub tty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// A running exec or attach. Dropping it closes the streams; an exec'd process whose
/// session is dropped is killed, an attached container is left alone.
pub struct Session {
    pub stdin: Option<BoxWrite>,
    pub stdout: Option<BoxRead>,
    /// None with a tty.
    pub stderr: Option<BoxRead>,
    /// At most 8 sizes wait; later ones replace nothing and are dropped.
    pub resize: mpsc::Sender<TerminalSize>,
    /// The exit code; for an attach it comes when the container ends.
    pub exit: oneshot::Receiver<Result<i32>>,
}

/// Both directions of one forwarded connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Numbers of a control group.
pub type GroupUsage = sys::cgroup::Usage;

/// What a tree of files takes of its disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub bytes: u64,
    pub inodes: u64,
}

impl std::ops::AddAssign for DiskUsage {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// Counters of one network interface since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceUsage {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// What is asked of the statistics.
#[derive(Debug, Clone, Default)]
pub struct StatsQuery {
    /// Uids of pods; None is all.
    pub pods: Option<std::collections::BTreeSet<String>>,
    /// Also walks the writable layers, which takes as long as they have files.
    pub with_disk: bool,
}

#[derive(Debug, Clone, Default)]
pub struct ContainerStats {
    pub id: String,
    /// The container's group below the root of the hierarchy.
    pub cgroup: String,
    pub usage: GroupUsage,
    /// The container's writable layer; None if it was not asked for.
    pub writable_layer: Option<DiskUsage>,
}

#[derive(Debug, Clone, Default)]
pub struct SandboxStats {
    pub id: String,
    pub cgroup: String,
    pub usage: GroupUsage,
    /// Without loopback; empty on the host network.
    pub interfaces: Vec<InterfaceUsage>,
    pub containers: Vec<ContainerStats>,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Image {
    /// `sha256:` of the image configuration.
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
    /// User of the image configuration: a number or a name, empty for root.
    pub user: String,
    pub pinned: bool,
}

#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    pub username: String,
    pub password: String,
    /// `user:password` in base64, as in a docker config.
    pub auth: String,
    pub identity_token: String,
    pub registry_token: String,
}

const NO_NETWORK: &str = "container runtime network not ready: ";

/// Upstream's words for a node whose pods get no network.
pub fn network_trouble(reason: &str, message: &str) -> String {
    format!("{NO_NETWORK}NetworkReady=false reason:{reason} message:{message}")
}

/// Whether a runtime's trouble is that its pods get no network.
pub fn is_network_trouble(trouble: &str) -> bool {
    trouble.starts_with(NO_NETWORK)
}

/// What a runtime says that has no CRIU; who asks for checkpoints knows it by these words.
pub const NO_CHECKPOINTS: &str = "method CheckpointContainer not implemented";

#[async_trait]
pub trait RuntimeService: Send + Sync {
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String>;
    /// Kills what runs in the sandbox and takes its network away. Safe to repeat.
    async fn stop_pod_sandbox(&self, id: &str) -> Result<()>;
    /// Stops and forgets a sandbox and its containers. Safe to repeat.
    async fn remove_pod_sandbox(&self, id: &str) -> Result<()>;
    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandbox>;
    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>>;

    /// `sandbox` is the configuration that the sandbox was made with.
    async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
        sandbox: &PodSandboxConfig,
    ) -> Result<String>;
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Sends the stop signal, waits `timeout_seconds`, then kills. Safe to repeat.
    async fn stop_container(&self, id: &str, timeout_seconds: u64) -> Result<()>;
    async fn remove_container(&self, id: &str) -> Result<()>;
    async fn container_status(&self, id: &str) -> Result<Container>;
    async fn list_containers(&self) -> Result<Vec<Container>>;
    async fn update_container_resources(&self, id: &str, resources: LinuxResources) -> Result<()>;
    async fn reopen_container_log(&self, id: &str) -> Result<()>;
    /// Keeps a running container's state in the archive `location` on the node.
    /// 0 seconds leave it to the runtime how long that may take. Errors have their gRPC code
    /// in their words.
    async fn checkpoint_container(&self, _: &str, _: &Path, _: u64) -> Result<()> {
        let message = format!("rpc error: code = Unimplemented desc = {NO_CHECKPOINTS}");
        Err(Error::new(ErrorKind::Internal, message))
    }

    /// Runs a command to its end. Past the deadline it is killed and the error is
    /// `DeadlineExceeded`. 0 seconds means no deadline of the caller's own.
    async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout_seconds: u64,
    ) -> Result<ExecSyncResult>;
    async fn exec(&self, id: &str, options: ExecOptions) -> Result<Session>;
    /// `options` are those that the container was made with, without input if none is wanted.
    async fn attach(&self, id: &str, options: AttachOptions) -> Result<Session>;
    /// Connects to `localhost:port` inside the sandbox's network namespace.
    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Duplex>>;

    /// Numbers of the sandboxes that run and are asked about.
    async fn pod_sandbox_stats(&self, query: &StatsQuery) -> Result<Vec<SandboxStats>>;
    /// A receiver that lags must list again; events are hints.
    fn events(&self) -> broadcast::Receiver<ContainerEvent>;
    /// None when pods can run, otherwise why not.
    async fn trouble(&self) -> Option<String>;
    /// Name and version, as in `kubectl get nodes -o wide` (`coracle://0.1.0`).
    fn version(&self) -> (String, String);
    /// Whether containers have no groups but those that they are given
    /// (`supplementalGroupsPolicy: Strict`).
    fn gives_groups_strictly(&self) -> bool {
        true
    }
    /// The default one first.
    fn handlers(&self) -> Vec<Handler> {
        vec![Handler::default()]
    }
    /// Of a handler by its name; one that is not known can nothing.
    fn features(&self, handler: &str) -> Features {
        let found = self.handlers().into_iter().find(|it| it.name == handler);
        found.map(|it| it.features).unwrap_or_default()
    }
}

#[async_trait]
pub trait ImageService: Send + Sync {
    async fn list_images(&self) -> Result<Vec<Image>>;
    /// By reference, digest or id; None if it is not present.
    async fn image_status(&self, image: &str) -> Result<Option<Image>>;
    /// Tries the given credentials in order, then none. Returns the image's id.
    async fn pull_image(&self, image: &str, auth: &[AuthConfig]) -> Result<String>;
    async fn remove_image(&self, image: &str) -> Result<()>;
    /// How far the pull of an image has come; None where none is under way, and where the
    /// runtime does not tell.
    fn progress_of(&self, _image: &str) -> Option<crate::images::progress::Progress> {
        None
    }
    /// The directory that images and writable layers lie in.
    fn image_dir(&self) -> PathBuf;
    /// Bytes used by images and writable layers, and the directory they lie in. Takes as
    /// long as there are files.
    async fn image_fs_usage(&self) -> Result<(u64, PathBuf)>;
}

/// How the built-in runtime gets a pod onto the pod network. Implemented outside of
/// this room and handed in; `netns` is the path of a bound network namespace.
#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// Gives the sandbox its interface and addresses. Safe to repeat: the same sandbox
    /// gets the same addresses.
    async fn attach(
        &self,
        sandbox_id: &str,
        metadata: &PodSandboxMetadata,
        annotations: &BTreeMap<String, String>,
        netns: &std::path::Path,
    ) -> Result<Vec<IpAddr>>;
    /// Leads ports of the node to the sandbox with these addresses, until it is detached.
    /// Asked again for each sandbox that a new process finds.
    async fn forward(&self, sandbox_id: &str, addresses: &[IpAddr], ports: &[HostPort]);
    /// Takes them away. Safe to repeat, and works when `netns` is gone.
    async fn detach(&self, sandbox_id: &str, netns: &std::path::Path) -> Result<()>;
    /// None when ready, otherwise why not.
    async fn status(&self) -> Option<String>;
}
