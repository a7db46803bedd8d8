//! The messages of CRI v1 with the field numbers of
//! <https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto>.
//!
//! What is for Windows is left out, and messages of one shape are one type: names of messages
//! are not on the wire. Knows nothing of what they mean; `translate` does.

pub mod containers;
pub mod images;
pub mod node;
pub mod sandboxes;
pub mod stats;

use prost::{Enumeration, Message};

/// Paths of methods.
pub const RUNTIME: &str = "/runtime.v1.RuntimeService/";
pub const IMAGES: &str = "/runtime.v1.ImageService/";

/// A message without fields, and one whose fields are of no interest.
#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub struct Int64Value {
    #[prost(int64, tag = "1")]
    pub value: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct UInt64Value {
    #[prost(uint64, tag = "1")]
    pub value: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct IdMapping {
    #[prost(uint32, tag = "1")]
    pub host_id: u32,
    #[prost(uint32, tag = "2")]
    pub container_id: u32,
    #[prost(uint32, tag = "3")]
    pub length: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct SeLinuxOption {
    #[prost(string, tag = "1")]
    pub user: String,
    #[prost(string, tag = "2")]
    pub role: String,
    #[prost(string, tag = "3")]
    pub kind: String,
    #[prost(string, tag = "4")]
    pub level: String,
}

macro_rules! numbers {
    ($(#[$about:meta] $name:ident { $($variant:ident = $number:literal),+ })+) => {
        $(
            #[$about]
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
            #[repr(i32)]
            pub enum $name { $($variant = $number),+ }
        )+
    };
}

numbers! {
    /// Whose namespace.
    NamespaceMode { Pod = 0, Container = 1, Node = 2, Target = 3 }
    /// Which mounts are seen on the other side.
    MountPropagation { Private = 0, HostToContainer = 1, Bidirectional = 2 }
    /// Where a seccomp or AppArmor profile comes from.
    ProfileType { RuntimeDefault = 0, Unconfined = 1, Localhost = 2 }
    /// Whether the groups of the image's own file count too.
    GroupsPolicy { Merge = 0, Strict = 1 }
    /// Whether a sandbox can hold containers.
    SandboxState { Ready = 0, NotReady = 1 }
    /// Where a container is in its life.
    ContainerState { Created = 0, Running = 1, Exited = 2, Unknown = 3 }
    /// What happened to a container or sandbox.
    EventType { Created = 0, Started = 1, Stopped = 2, Deleted = 3 }
    /// How a metric's value moves.
    MetricType { Counter = 0, Gauge = 1 }
    /// Who owns the hierarchy of control groups.
    CgroupDriver { Systemd = 0, Cgroupfs = 1 }
}

/// Kubernetes' names of signals by their number on the wire, which is not the kernel's; 0 is
/// the runtime's own choice.
pub const SIGNALS: [&str; 66] = [
    "",
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMAX-14",
    "SIGRTMAX-13",
    "SIGRTMAX-12",
    "SIGRTMAX-11",
    "SIGRTMAX-10",
    "SIGRTMAX-9",
    "SIGRTMAX-8",
    "SIGRTMAX-7",
    "SIGRTMAX-6",
    "SIGRTMAX-5",
    "SIGRTMAX-4",
    "SIGRTMAX-3",
    "SIGRTMAX-2",
    "SIGRTMAX-1",
    "SIGRTMAX",
];
