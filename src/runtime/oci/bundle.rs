//! A container as an OCI runtime of the node is told of it: `config.json` of the runtime
//! specification 1.0.2, from what the shim would be told.
//!
//! Pure. The shim adds what it alone knows: user, process namespace, places of mounts.

use std::path::Path;

use serde_json::{Value, json};
use sys::bpf::{DeviceKind, DeviceRule};
use sys::caps::Set;
use sys::seccomp::{Action, Compare, Condition, Profile, Rule};

use super::hooks;
use super::shim::proto::{BindSpec, ContainerSpec, DeviceSpec, SpecPropagation};
use crate::cri::{ContainerConfig, LinuxResources, NamespaceMode, PodSandboxConfig};

/// What every such runtime makes by itself.
const OWN_DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
#[cfg(target_arch = "riscv64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_RISCV64"];

/// What a bundle is made from beside the container itself.
pub struct Parts<'a> {
    pub pod: &'a PodSandboxConfig,
    pub config: &'a ContainerConfig,
    pub spec: &'a ContainerSpec,
    /// Which devices may be used; None is every one.
    pub rules: Option<&'a [DeviceRule]>,
    pub seccomp: Option<&'a Profile>,
    /// Path below the root of the hierarchies.
    pub cgroup: &'a str,
    /// cgroup v2.
    pub unified: bool,
    /// Pinned network namespace of the pod; None is the node's.
    pub netns: Option<&'a Path>,
    /// Process in the pod's IPC and UTS namespaces.
    pub shim_pid: i32,
}

pub fn plan(parts: &Parts<'_>) -> Value {
    let (spec, pod) = (parts.spec, parts.pod);
    let process = &spec.process;
    let capabilities = Set(process.capabilities).names();
    let mut root = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": spec.tty,
            "args": spec.args,
            "env": process.env,
            "cwd": process.cwd,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": process.no_new_privs,
        },
        "root": {"path": spec.root.target, "readonly": spec.root.readonly},
        "mounts": mounts(parts),
        "annotations": annotations(pod, parts.config),
        "linux": {
            "resources": resources(&parts.config.resources, parts.rules, parts.unified),
            "cgroupsPath": format!("/{}", parts.cgroup),
            "namespaces": namespaces(parts),
            "devices": spec.devices.iter().filter_map(device).collect::<Vec<_>>(),
            "rootfsPropagation": root_propagation(&spec.binds),
            "maskedPaths": spec.masked,
            "readonlyPaths": spec.readonly,
        },
    });
    if let Some(name) = &process.apparmor {
        root["process"]["apparmorProfile"] = json!(name);
    }
    if let Some(label) = &process.selinux {
        root["process"]["selinuxLabel"] = json!(label);
    }
    if let Some(label) = &spec.mount_label {
        root["linux"]["mountLabel"] = json!(label);
    }
    if let Some(profile) = parts.seccomp {
        root["linux"]["seccomp"] = seccomp(profile);
    }
    if !parts.config.hooks.is_empty() {
        root["hooks"] = hooks::of_bundle(&parts.config.hooks);
    }
    if own_host_name(pod) {
        root["hostname"] = json!(pod.hostname);
    }
    root
}

fn own_host_name(pod: &PodSandboxConfig) -> bool {
    pod.network != NamespaceMode::Node && !pod.hostname.is_empty()
}

/// The pod's own annotations are not among them: some runtimes take orders from those.
fn annotations(pod: &PodSandboxConfig, config: &ContainerConfig) -> Value {
    json!({
        "io.kubernetes.cri.container-name": config.metadata.name,
        "io.kubernetes.cri.image-name": config.user_specified_image,
        "io.kubernetes.cri.sandbox-name": pod.metadata.name,
        "io.kubernetes.cri.sandbox-namespace": pod.metadata.namespace,
        "io.kubernetes.cri.sandbox-uid": pod.metadata.uid,
    })
}

/// All but that of processes, which the shim knows.
fn namespaces(parts: &Parts<'_>) -> Vec<Value> {
    let of_shim = |name: &str| format!("/proc/{}/ns/{name}", parts.shim_pid);
    let mut list = vec![json!({"type": "mount"})];
    if let Some(path) = parts.netns {
        list.push(json!({"type": "network", "path": path}));
    }
    if parts.pod.ipc != NamespaceMode::Node {
        list.push(json!({"type": "ipc", "path": of_shim("ipc")}));
    }
    if own_host_name(parts.pod) {
        list.push(json!({"type": "uts", "path": of_shim("uts")}));
    }
    if parts.unified && !parts.spec.privileged {
        list.push(json!({"type": "cgroup"}));
    }
    list
}

fn mounts(parts: &Parts<'_>) -> Vec<Value> {
    let spec = parts.spec;
    let access = if spec.privileged { "rw" } else { "ro" };
    let place = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let mut list = vec![
        place("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        place("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        place(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        place("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        place("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        place("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ];
    if let Some(shm) = &spec.shm {
        let options = ["rbind", "rprivate", "rw"];
        list.push(json!({
            "destination": "/dev/shm", "type": "bind", "source": shm, "options": options,
        }));
    }
    // A mount on /a must come before one on /a/b.
    let mut binds: Vec<&BindSpec> = spec.binds.iter().collect();
    binds.sort_by_key(|bind| bind.target.components().count());
    list.extend(binds.into_iter().map(bind_mount));
    list
}

fn bind_mount(bind: &BindSpec) -> Value {
    let propagation = match bind.propagation {
        SpecPropagation::Private => "rprivate",
        SpecPropagation::Slave => "rslave",
        SpecPropagation::Shared => "rshared",
    };
    let mut options = vec!["rbind", propagation];
    options.push(if bind.readonly { "ro" } else { "rw" });
    // An image's files are one mount.
    if bind.readonly && bind.recursive_readonly && bind.image.is_none() {
        options.push("rro");
    }
    json!({
        "destination": bind.target, "type": "bind", "source": bind.source, "options": options,
    })
}

/// The most that a mount asks for; others are lowered one by one. The specification has no
/// recursive words here, and nothing below needs them: what is staged is slaves already.
fn root_propagation(binds: &[BindSpec]) -> &'static str {
    let any = |wanted| binds.iter().any(|bind| bind.propagation == wanted);
    if any(SpecPropagation::Shared) { "shared" } else { "slave" }
}

fn device(device: &DeviceSpec) -> Option<Value> {
    if OWN_DEVICES.iter().any(|own| device.path == Path::new(own)) {
        return None;
    }
    Some(json!({
        "path": device.path, "type": if device.block { "b" } else { "c" },
        "major": device.major, "minor": device.minor,
        "fileMode": device.mode, "uid": 0, "gid": 0,
    }))
}

/// As `config.json` and the command `update` have them.
pub fn resources(limits: &LinuxResources, rules: Option<&[DeviceRule]>, unified: bool) -> Value {
    let mut all = json!({"devices": device_rules(rules), "cpu": {}, "memory": {}});
    let mut set = |part: &str, field: &str, value: Value| all[part][field] = value;
    if limits.cpu_shares > 0 {
        set("cpu", "shares", json!(limits.cpu_shares));
    }
    if limits.cpu_quota > 0 {
        let period = if limits.cpu_period == 0 { 100_000 } else { limits.cpu_period };
        set("cpu", "quota", json!(limits.cpu_quota));
        set("cpu", "period", json!(period));
    }
    for (field, value) in [("cpus", &limits.cpuset_cpus), ("mems", &limits.cpuset_mems)] {
        if !value.is_empty() {
            set("cpu", field, json!(value));
        }
    }
    if limits.memory_limit > 0 {
        set("memory", "limit", json!(limits.memory_limit));
    }
    if limits.pids_limit > 0 {
        all["pids"] = json!({"limit": limits.pids_limit});
    }
    if !limits.huge_pages.is_empty() {
        let pages = limits.huge_pages.iter();
        all["hugepageLimits"] =
            pages.map(|(size, limit)| json!({"pageSize": size, "limit": limit})).collect();
    }
    if unified && !limits.unified.is_empty() {
        all["unified"] = json!(limits.unified);
    }
    all
}

fn device_rules(rules: Option<&[DeviceRule]>) -> Vec<Value> {
    let Some(rules) = rules else { return vec![json!({"allow": true, "access": "rwm"})] };
    let mut list = vec![json!({"allow": false, "access": "rwm"})];
    list.extend(rules.iter().map(|rule| {
        let access: String = [(rule.read, 'r'), (rule.write, 'w'), (rule.mknod, 'm')]
            .into_iter()
            .filter_map(|(has, letter)| has.then_some(letter))
            .collect();
        let kind = match rule.kind {
            DeviceKind::Character => "c",
            DeviceKind::Block => "b",
        };
        let mut entry = json!({"allow": true, "type": kind, "access": access});
        for (field, number) in [("major", rule.major), ("minor", rule.minor)] {
            if let Some(number) = number {
                entry[field] = json!(number);
            }
        }
        entry
    }));
    list
}

fn seccomp(profile: &Profile) -> Value {
    let (action, errno) = action(profile.default);
    let mut value = json!({
        "defaultAction": action,
        "architectures": ARCHITECTURES,
        "syscalls": profile.rules.iter().map(rule).collect::<Vec<_>>(),
    });
    if let Some(errno) = errno {
        value["defaultErrnoRet"] = json!(errno);
    }
    value
}

fn rule(rule: &Rule) -> Value {
    let (action, errno) = action(rule.action);
    let mut value = json!({"names": rule.names, "action": action});
    if let Some(errno) = errno {
        value["errnoRet"] = json!(errno);
    }
    if !rule.conditions.is_empty() {
        value["args"] = rule.conditions.iter().map(condition).collect();
    }
    value
}

fn action(action: Action) -> (&'static str, Option<u16>) {
    match action {
        Action::Allow => ("SCMP_ACT_ALLOW", None),
        Action::Errno(number) => ("SCMP_ACT_ERRNO", Some(number)),
        Action::KillProcess => ("SCMP_ACT_KILL_PROCESS", None),
        Action::KillThread => ("SCMP_ACT_KILL_THREAD", None),
        Action::Trap => ("SCMP_ACT_TRAP", None),
        Action::Log => ("SCMP_ACT_LOG", None),
        Action::Trace(number) => ("SCMP_ACT_TRACE", Some(number)),
    }
}

fn condition(condition: &Condition) -> Value {
    let (op, value, second) = match condition.compare {
        Compare::NotEqual => ("SCMP_CMP_NE", condition.value, 0),
        Compare::Less => ("SCMP_CMP_LT", condition.value, 0),
        Compare::LessOrEqual => ("SCMP_CMP_LE", condition.value, 0),
        Compare::Equal => ("SCMP_CMP_EQ", condition.value, 0),
        Compare::GreaterOrEqual => ("SCMP_CMP_GE", condition.value, 0),
        Compare::Greater => ("SCMP_CMP_GT", condition.value, 0),
        // The mask comes first.
        Compare::Masked(mask) => ("SCMP_CMP_MASKED_EQ", mask, condition.value),
    };
    json!({"index": condition.argument, "value": value, "valueTwo": second, "op": op})
}
