//! SELinux: which labels the host's policy gives containers, and the labels of programs and
//! files. Where the kernel has it off, there is no policy and nothing gets a label.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;

const ATTRIBUTE: &str = "security.selinux";
/// Longer labels than this are not compared, only written.
const LABEL_BYTES_MAX: usize = 1024;
/// Categories that levels are made of are numbered below this.
pub const CATEGORIES: u64 = 1024;
/// What the whole host needs under its own labels.
const NEVER_RELABELLED: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// `user:role:type:level`; the level is empty where the policy has none.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Context {
    user: String,
    role: String,
    kind: String,
    level: String,
}

impl Context {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        Some(Self {
            user: parts.next()?,
            role: parts.next()?,
            kind: parts.next()?,
            level: parts.next().unwrap_or_default(),
        })
    }
}

impl fmt::Display for Context {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:{}", self.user, self.role, self.kind)?;
        if self.level.is_empty() { Ok(()) } else { write!(out, ":{}", self.level) }
    }
}

/// Parts of a label that differ from the policy's; empty is the policy's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    pub user: &'a str,
    pub role: &'a str,
    pub kind: &'a str,
    pub level: &'a str,
}

/// Of a container's processes, and of the files that they may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    pub process: String,
    pub file: String,
}

/// Where a host has it.
pub struct Host {
    /// The kernel's own file system for it.
    pub kernel: PathBuf,
    /// `config`, and a directory for each policy.
    pub policies: PathBuf,
    /// Label of this very process; `kernel` until a policy is loaded.
    pub own_label: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            kernel: "/sys/fs/selinux".into(),
            policies: "/etc/selinux".into(),
            own_label: "/proc/thread-self/attr/current".into(),
        }
    }
}

impl Host {
    /// What the host's policy says of containers (`lxc_contexts`); None where SELinux is off
    /// or its policy has no containers.
    pub fn policy(&self) -> Option<Policy> {
        if !self.kernel.join("enforce").exists() {
            return None;
        }
        let own = std::fs::read_to_string(&self.own_label).unwrap_or_default();
        if own.trim_end_matches(['\0', '\n']) == "kernel" {
            return None;
        }
        let config = std::fs::read_to_string(self.policies.join("config")).unwrap_or_default();
        let name = setting(&config, "SELINUXTYPE").unwrap_or("targeted");
        let contexts = self.policies.join(name).join("contexts/lxc_contexts");
        let contexts = std::fs::read_to_string(contexts).ok()?;
        Some(Policy {
            process: Context::parse(setting(&contexts, "process")?)?,
            file: Context::parse(setting(&contexts, "file")?)?,
        })
    }
}

/// A line `KEY = VALUE` of a file, the value perhaps in quotes.
fn setting<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with(['#', ';']));
    let mut pairs = lines.filter_map(|line| line.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim() == key)?;
    Some(value.trim().trim_matches('"')).filter(|value| !value.is_empty())
}

/// The labels of containers, before anything of their own.
#[derive(Debug)]
pub struct Policy {
    process: Context,
    file: Context,
}

impl Policy {
    /// Labels of a container; `level` is its pod's. A type is of processes alone: their files
    /// have the policy's.
    ///
    /// # Errors
    /// A part with signs that no label has.
    pub fn labels(&self, wanted: &Wanted<'_>, level: &str) -> Result<Labels, String> {
        let (mut process, mut file) = (self.process.clone(), self.file.clone());
        let sign = |c: char| c.is_ascii_alphanumeric() || "_-.:,".contains(c);
        for part in [wanted.user, wanted.role, wanted.kind, wanted.level] {
            if !part.chars().all(sign) {
                return Err(format!("invalid SELinux label part {part:?}"));
            }
        }
        let set = |place: &mut String, part: &str| {
            if !part.is_empty() {
                *place = part.to_owned();
            }
        };
        set(&mut process.user, wanted.user);
        set(&mut file.user, wanted.user);
        set(&mut process.role, wanted.role);
        set(&mut process.kind, wanted.kind);
        if !process.level.is_empty() {
            set(&mut process.level, level);
            set(&mut file.level, level);
        }
        set(&mut process.level, wanted.level);
        set(&mut file.level, wanted.level);
        Ok(Labels { process: process.to_string(), file: file.to_string() })
    }
}

/// The level that two different categories make.
pub fn level(one: u64, other: u64) -> String {
    format!("s0:c{},c{}", one.min(other), one.max(other))
}

/// The next program that this thread executes runs under the label.
///
/// # Errors
/// When the policy does not know the label, or forbids it.
pub fn set_exec_label(label: &str) -> io::Result<()> {
    std::fs::write("/proc/thread-self/attr/exec", label)
}

/// Gives everything at and below `path` the label, following no link. A file system without
/// labels stays as it is.
///
/// # Errors
/// When a file takes no such label, or the host itself needs what lies there.
pub fn relabel(path: &Path, label: &str) -> io::Result<()> {
    if NEVER_RELABELLED.iter().any(|never| path == Path::new(never)) {
        let words = format!("SELinux relabeling of {} is not allowed", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
    }
    let mut value = label.as_bytes().to_vec();
    value.push(0);
    let outcome = crate::fs::walk(path, &mut |file| put(file, &value));
    match outcome {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// Writes only what differs: nothing wears out by a container's restart.
fn put(file: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    let path = crate::fs::descriptor_path(file);
    let mut buffer = [0; LABEL_BYTES_MAX];
    let present = rustix::fs::getxattr(&path, ATTRIBUTE, &mut buffer);
    if present.is_ok_and(|length| buffer.get(..length) == Some(value)) {
        return Ok(());
    }
    Ok(rustix::fs::setxattr(&path, ATTRIBUTE, value, XattrFlags::empty())?)
}

/// The label of what lies at `path`; None where it has none.
pub fn label_of(path: &Path) -> Option<String> {
    let mut buffer = [0; LABEL_BYTES_MAX];
    let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut buffer).ok()?;
    let text = OsStr::from_bytes(buffer.get(..length)?).to_str()?;
    Some(text.trim_end_matches('\0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(dir: &Path) -> Host {
        let at = |name: &str| dir.join(name);
        Host { kernel: at("fs"), policies: at("etc"), own_label: at("current") }
    }

    #[test]
    fn a_policy_says_how_containers_are_labelled() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path());
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("etc/config", "# SELINUXTYPE=no\nSELINUX=permissive\nSELINUXTYPE=default\n");
        let contexts = "process = \"system_u:system_r:container_t:s0\"\n\
                        file = \"system_u:object_r:container_file_t:s0\"\n";
        write("etc/default/contexts/lxc_contexts", contexts);
        assert!(host.policy().is_none(), "the kernel has none");
        write("fs/enforce", "0");
        write("current", "kernel\0");
        assert!(host.policy().is_none(), "no policy is loaded");
        write("current", "system_u:system_r:init_t:s0\0");
        let policy = host.policy().unwrap();
        let labels = |wanted: Wanted<'_>| {
            policy.labels(&wanted, "s0:c1,c2").map(|it| format!("{} {}", it.process, it.file))
        };
        let none = Wanted::default();
        for (wanted, process, file) in [
            (none, "system_u:system_r:container_t:s0:c1,c2", "container_file_t:s0:c1,c2"),
            (
                Wanted { kind: "spc_t", ..none },
                "system_u:system_r:spc_t:s0:c1,c2",
                "container_file_t:s0:c1,c2",
            ),
            (
                Wanted { level: "s0:c7", role: "r", ..none },
                "system_u:r:container_t:s0:c7",
                "container_file_t:s0:c7",
            ),
        ] {
            let file = format!("{process} system_u:object_r:{file}");
            assert_eq!(labels(wanted).unwrap(), file, "{wanted:?}");
        }
        let user = labels(Wanted { user: "u", ..none }).unwrap();
        assert!(user.starts_with("u:system_r:") && user.contains(" u:object_r:"), "{user}");
        assert!(labels(Wanted { level: "s0\",suid", ..none }).is_err());
        assert_eq!(level(9, 3), "s0:c3,c9");
        // A policy without levels.
        write("etc/default/contexts/lxc_contexts", "process = \"a:b:c\"\nfile = \"a:b:d\"\n");
        let plain = host.policy().unwrap().labels(&none, "s0:c1,c2").unwrap();
        assert_eq!((plain.process.as_str(), plain.file.as_str()), ("a:b:c", "a:b:d"));
    }

    #[test]
    fn a_tree_is_relabelled_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::write(tree.join("a/b/f"), "x").unwrap();
        std::fs::write(dir.path().join("outside"), "x").unwrap();
        std::os::unix::fs::symlink("../outside", tree.join("link")).unwrap();
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        relabel(&tree, label).unwrap();
        for path in ["tree", "tree/a", "tree/a/b/f", "tree/link"] {
            assert_eq!(label_of(&dir.path().join(path)).as_deref(), Some(label), "{path}");
        }
        assert_ne!(label_of(&dir.path().join("outside")).as_deref(), Some(label));
        relabel(&tree.join("a/b/f"), "x:y:z").unwrap();
        assert_eq!(label_of(&tree.join("a/b/f")).as_deref(), Some("x:y:z"));
        assert_eq!(label_of(&tree.join("a/b")).as_deref(), Some(label));
        let refused = relabel(Path::new("/usr"), label).unwrap_err();
        assert_eq!(refused.to_string(), "SELinux relabeling of /usr is not allowed");
    }
}
