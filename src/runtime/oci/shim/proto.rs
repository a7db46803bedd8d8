//! What the server and a pod's shim say to each other: JSON in frames with a length, and
//! descriptors beside the first byte of a frame.
//!
//! A shim may be older than the server that adopts it: fields are only ever added.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A longer frame closes the connection.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// How a shim sets itself up; it reads this from the file that its command line names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ShimConfig {
    pub sandbox_id: String,
    /// Pinned network namespace to live in; None stays in the node's.
    pub netns: Option<PathBuf>,
    pub new_ipc: bool,
    /// Some makes a UTS namespace with that host name.
    pub hostname: Option<String>,
    /// Pairs of a file below `/proc/sys` and its value.
    pub sysctls: Vec<(String, String)>,
    /// Where the shim itself goes, away from the server's service.
    pub cgroup_files: Vec<PathBuf>,
    /// `/proc/PID` of a process in the pod's user, IPC and UTS namespaces; it ends once the
    /// shim has answered.
    #[serde(default)]
    pub users: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    pub seq: u64,
    /// How many descriptors come with it.
    pub fds: usize,
    pub verb: Verb,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Verb {
    Hello,
    Create(Box<ContainerSpec>),
    Start {
        id: String,
    },
    Kill {
        id: String,
        signal: i32,
    },
    /// Forgets a container that has ended (or was never started, which kills it).
    Delete {
        id: String,
    },
    Exec(ExecSpec),
    KillExec {
        session: u64,
    },
    /// Comes with the write ends of stdout and stderr (one, with a tty).
    Attach {
        id: String,
        stdin: bool,
    },
    ReopenLog {
        id: String,
    },
    Shutdown,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Message {
    Answer { seq: u64, fds: usize, result: Result<Answer, Failure> },
    Exited { id: String, exit: Exit },
    ExecExited { session: u64, code: i32 },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    Done,
    /// To Hello.
    Hello {
        pid: i32,
        failure: Option<String>,
        containers: Vec<ContainerReport>,
    },
    /// To Create, Start and Exec.
    Process {
        pid: i32,
        /// To Create: who the process is to be.
        #[serde(default)]
        user: Option<ProcessUser>,
    },
}

/// Whose rights a container's first process has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessUser {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    #[serde(default)]
    pub groups: Vec<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerReport {
    pub id: String,
    pub pid: i32,
    pub started_at: i64,
    pub exit: Option<Exit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    NotFound,
    Create,
    Start,
    Internal,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn create(doing: impl std::fmt::Display, err: &std::io::Error) -> Self {
        Self::new(FailureKind::Create, format!("{doing}: {}", words(err)))
    }

    pub fn start(doing: impl std::fmt::Display, err: &std::io::Error) -> Self {
        Self::new(FailureKind::Start, format!("{doing}: {}", words(err)))
    }
}

/// An error of the system in lower case and without its number.
pub fn words(err: &std::io::Error) -> String {
    let text = err.to_string();
    let text = match text.rfind(" (os error ") {
        Some(at) if text.ends_with(')') => text[..at].to_string(),
        _ => text,
    };
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().collect::<String>() + letters.as_str(),
        None => text,
    }
}

/// How a container ended; also the content of its `exit.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: i32,
    pub started_at: i64,
    pub finished_at: i64,
    pub reason: String,
    pub message: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    #[default]
    Own,
    /// Shared by the pod; the shim keeps a process that holds it.
    Pod,
    Node,
    /// That of another container of the pod.
    Target(String),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct UserSpec {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// `user`, `user:group`, or numbers; used where `uid` is None.
    pub name: String,
    pub groups: Vec<u32>,
    /// Takes no groups from the image.
    pub strict: bool,
}

/// A program of classic BPF: code, jump if true, jump if false, operand.
pub type Filter = Vec<(u16, u8, u8, u32)>;

/// What a process of a container is allowed and given, also by exec.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProcessSpec {
    pub env: Vec<String>,
    pub cwd: String,
    pub user: UserSpec,
    pub capabilities: u64,
    pub seccomp: Option<Filter>,
    pub no_new_privs: bool,
    pub apparmor: Option<String>,
    /// SELinux label of the process.
    #[serde(default)]
    pub selinux: Option<String>,
    pub oom_score_adj: i64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RootSpec {
    pub layers: PathBuf,
    /// Topmost first.
    pub lower: Vec<String>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Where the overlay is mounted, in the container's mount namespace only.
    pub target: PathBuf,
    pub readonly: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpecPropagation {
    Private,
    Slave,
    Shared,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BindSpec {
    pub source: PathBuf,
    pub target: PathBuf,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub propagation: SpecPropagation,
    /// Stands in for `source`.
    #[serde(default)]
    pub image: Option<ImageSpec>,
}

/// Layers that are mounted together, only to be read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageSpec {
    pub layers: PathBuf,
    /// Topmost first.
    pub lower: Vec<String>,
    /// Empty is the whole image.
    pub sub_path: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceSpec {
    pub path: PathBuf,
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub id: String,
    /// Holds `exit.json`.
    pub state_dir: PathBuf,
    pub args: Vec<String>,
    pub process: ProcessSpec,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub root: RootSpec,
    pub binds: Vec<BindSpec>,
    pub devices: Vec<DeviceSpec>,
    pub shm: Option<PathBuf>,
    pub masked: Vec<PathBuf>,
    pub readonly: Vec<PathBuf>,
    pub privileged: bool,
    /// SELinux label of the files that are the container's own.
    #[serde(default)]
    pub mount_label: Option<String>,
    pub pid: PidMode,
    pub cgroup_files: Vec<PathBuf>,
    /// Name below `/sys/fs/cgroup` and directory of the node; empty on cgroup v2.
    pub cgroup_binds: Vec<(String, PathBuf)>,
    pub oom_file: Option<PathBuf>,
    /// Empty keeps no log.
    pub log_path: PathBuf,
    pub log_bytes_max: u64,
    /// Where the ids of the pod's own user namespace begin on the node; None is the node's.
    #[serde(default)]
    pub first_id: Option<u32>,
    /// Runs the container instead of the shim itself.
    #[serde(default)]
    pub program: Option<ProgramSpec>,
    #[serde(default)]
    pub hooks: Vec<HookSpec>,
    /// Holds a `config.json` for the hooks, where there are any.
    #[serde(default)]
    pub bundle: PathBuf,
}

/// A program that is called in the container's namespaces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HookSpec {
    /// Called in the container's root right before its program, not in the node's before.
    pub starts: bool,
    pub path: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub patience_ms: i32,
}

/// An OCI runtime of the node, and what it is told of one container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProgramSpec {
    pub path: PathBuf,
    /// Arguments before the command.
    pub args: Vec<String>,
    /// Where it keeps its state.
    pub root: PathBuf,
    /// Holds `config.json`, and the logs of its commands.
    pub bundle: PathBuf,
    /// Path of a socket that terminals are handed over, without its ending; short.
    pub console: PathBuf,
    /// `config.json` but for what only the container's root file system and the shim know.
    pub config: serde_json::Value,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecSpec {
    pub id: String,
    pub session: u64,
    pub args: Vec<String>,
    pub tty: bool,
    /// Which of stdin, stdout and stderr come as descriptors; without a tty.
    pub stdin: bool,
}

/// A frame as it goes over the socket.
pub fn frame<T: Serialize>(message: &T) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > FRAME_BYTES_MAX {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            format!("a message of {length} bytes is too long"),
        ));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

/// Takes the first whole frame out of a buffer. An error for one that is too long.
pub fn take_frame(buffer: &mut Vec<u8>) -> std::io::Result<Option<Vec<u8>>> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "frame too long"));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let frame = buffer[4..4 + length].to_vec();
    buffer.drain(..4 + length);
    Ok(Some(frame))
}
