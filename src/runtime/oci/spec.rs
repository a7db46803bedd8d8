//! From a container's configuration and its image to what the shim is told.
//!
//! Pure but for looking at devices of the node: makes nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use sys::bpf::{DeviceKind, DeviceRule};
use sys::caps::{self, Set};
use sys::fs::Node;
use sys::seccomp::Profile;
use sys::selinux::Labels;

use super::shim::proto::{
    BindSpec, ContainerSpec, DeviceSpec, Filter, ImageSpec, PidMode, ProcessSpec, RootSpec,
    SpecPropagation, UserSpec,
};
use super::volumes::Volume;
use super::{hooks, seccomp};
use crate::cri::{
    ContainerConfig, Error, ErrorKind, Masks, MountPropagation, NamespaceMode, PodSandboxConfig,
    Result, SeccompProfile,
};
use crate::images::StoredImage;

/// A log that no kubelet rotates is cut here.
const LOG_BYTES_MAX: u64 = 256 << 20;
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is hidden of /proc and /sys unless a container asks for it.
pub const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
pub const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Name, major, minor.
const DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Paths that belong to one container.
pub struct Places {
    pub state: PathBuf,
    pub layers: PathBuf,
    /// Files of the sandbox: `hostname` and `resolv.conf`.
    pub sandbox: PathBuf,
    pub shm: Option<PathBuf>,
    /// By image id: names of the layers of images that are mounted, topmost first.
    pub volume_layers: HashMap<String, Vec<String>>,
    /// What the image declares and the pod does not mount.
    pub volumes: Vec<Volume>,
    /// The loaded AppArmor profile it runs under.
    pub apparmor: Option<String>,
    /// SELinux labels of the container, where there is SELinux.
    pub labels: Option<Labels>,
}

pub fn plan(
    id: &str,
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
    image: &StoredImage,
    group: &sys::cgroup::Group,
    places: &Places,
) -> Result<ContainerSpec> {
    let args = command(config, image)?;
    let capabilities = capabilities(config)?;
    let security = &config.security;
    let cwd = [&config.working_dir, &image.config.working_dir]
        .into_iter()
        .find(|dir| !dir.is_empty())
        .cloned()
        .unwrap_or_else(|| "/".into());
    if !cwd.starts_with('/') {
        return Err(Error::new(
            ErrorKind::Create,
            format!("working directory \"{cwd}\" is not an absolute path"),
        ));
    }
    let own = |paths: &[&str]| -> Vec<PathBuf> { paths.iter().map(PathBuf::from).collect() };
    let (masked, readonly) = match &security.masks {
        _ if security.privileged => Default::default(),
        Masks::Nothing => Default::default(),
        Masks::Default => (own(&MASKED_PATHS), own(&READONLY_PATHS)),
        Masks::These { hidden, readonly } => (hidden.clone(), readonly.clone()),
    };
    Ok(ContainerSpec {
        id: id.to_string(),
        state_dir: places.state.clone(),
        args,
        process: ProcessSpec {
            env: environment(sandbox, config, image),
            cwd,
            user: user(config, image)?,
            capabilities: capabilities.0,
            seccomp: profile(config, capabilities)?.as_ref().map(filter).transpose()?,
            no_new_privs: security.no_new_privs,
            apparmor: places.apparmor.clone(),
            selinux: places
                .labels
                .as_ref()
                .filter(|_| !security.privileged)
                .map(|labels| labels.process.clone()),
            oom_score_adj: config.resources.oom_score_adj,
        },
        tty: config.tty,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        root: RootSpec {
            layers: places.layers.clone(),
            lower: image.layers.iter().rev().cloned().collect(),
            upper: places.state.join("upper"),
            work: places.state.join("work"),
            target: places.state.join("rootfs"),
            readonly: security.readonly_rootfs,
        },
        binds: binds(config, places)?,
        devices: devices(config)?,
        shm: places.shm.clone(),
        masked,
        readonly,
        privileged: security.privileged,
        mount_label: places.labels.as_ref().map(|labels| labels.file.clone()),
        pid: match (&config.target_container, config.pid) {
            (Some(target), _) => PidMode::Target(target.clone()),
            (None, NamespaceMode::Pod) => PidMode::Pod,
            (None, NamespaceMode::Container) => PidMode::Own,
            (None, NamespaceMode::Node) => PidMode::Node,
        },
        cgroup_files: group.join_files(),
        cgroup_binds: group.controller_directories(),
        oom_file: group.oom_file(),
        log_path: if config.log_path.as_os_str().is_empty() {
            PathBuf::new()
        } else {
            sandbox.log_directory.join(&config.log_path)
        },
        log_bytes_max: LOG_BYTES_MAX,
        first_id: sandbox.users.map(|users| users.host_id),
        program: None,
        hooks: hooks::of_shim(&config.hooks),
        bundle: places.state.join("bundle"),
    })
}

fn command(config: &ContainerConfig, image: &StoredImage) -> Result<Vec<String>> {
    let (mut command, mut args) = (config.command.clone(), config.args.clone());
    if command.is_empty() {
        if args.is_empty() {
            args = image.config.cmd.clone();
        }
        command = image.config.entrypoint.clone();
    }
    command.extend(args);
    if command.is_empty() || command[0].is_empty() {
        return Err(Error::new(ErrorKind::Create, "no command specified"));
    }
    Ok(command)
}

fn environment(
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
    image: &StoredImage,
) -> Vec<String> {
    let hostname = if sandbox.hostname.is_empty() {
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_string()
    } else {
        sandbox.hostname.clone()
    };
    let mut env = vec![PATH.to_string(), format!("HOSTNAME={hostname}")];
    if config.tty {
        env.push("TERM=xterm".into());
    }
    let more = config.envs.iter().map(|(name, value)| format!("{name}={value}"));
    for pair in image.config.env.iter().cloned().chain(more) {
        let key = pair.split_once('=').map_or(pair.as_str(), |(key, _)| key);
        let same = |old: &String| old.split_once('=').is_some_and(|(name, _)| name == key);
        match env.iter().position(same) {
            Some(at) => env[at] = pair,
            None => env.push(pair),
        }
    }
    env
}

fn user(config: &ContainerConfig, image: &StoredImage) -> Result<UserSpec> {
    let number = |value: i64, what: &str| {
        u32::try_from(value)
            .map_err(|_| Error::new(ErrorKind::Create, format!("{what} {value} is out of range")))
    };
    let security = &config.security;
    let uid = security.run_as_user.map(|uid| number(uid, "user id")).transpose()?;
    let gid = security.run_as_group.map(|gid| number(gid, "group id")).transpose()?;
    let groups = security
        .supplemental_groups
        .iter()
        .map(|gid| number(*gid, "group id"))
        .collect::<Result<_>>()?;
    let name = if uid.is_none() && !security.run_as_username.is_empty() {
        security.run_as_username.clone()
    } else {
        image.config.user.clone()
    };
    Ok(UserSpec { uid, gid, name, groups, strict: security.supplemental_groups_strict })
}

fn capabilities(config: &ContainerConfig) -> Result<Set> {
    let security = &config.security;
    let every = Set::all_known().and(Set::bounding());
    if security.privileged {
        return Ok(every);
    }
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let number = |name: &String| {
        caps::number(name).ok_or_else(|| {
            Error::new(ErrorKind::Create, format!("unknown capability \"CAP_{name}\""))
        })
    };
    let mut set = if security.add_capabilities.iter().any(is_all) {
        every
    } else if security.drop_capabilities.iter().any(is_all) {
        Set::EMPTY
    } else {
        Set::container_default()
    };
    for name in security.drop_capabilities.iter().filter(|n| !is_all(n)) {
        set = set.without(number(name)?);
    }
    for name in security.add_capabilities.iter().filter(|n| !is_all(n)) {
        set = set.with(number(name)?);
    }
    Ok(set.and(every))
}

/// Which system calls a container may make; None is every one.
pub fn profile(config: &ContainerConfig, capabilities: Set) -> Result<Option<Profile>> {
    if config.security.privileged {
        return Ok(None);
    }
    match &config.security.seccomp {
        SeccompProfile::Unconfined => Ok(None),
        SeccompProfile::RuntimeDefault => Ok(Some(sys::seccomp::runtime_default(capabilities))),
        SeccompProfile::Localhost(path) => seccomp::load(path, capabilities).map(Some),
    }
}

fn filter(profile: &Profile) -> Result<Filter> {
    let program = sys::seccomp::assemble(profile).map_err(|err| {
        Error::with_source(ErrorKind::Create, format!("seccomp profile: {err}"), err)
    })?;
    Ok(program.iter().map(|i| (i.code, i.jump_true, i.jump_false, i.operand)).collect())
}

/// What a container mounts on a tree that the node does not share stays its own: nobody else
/// would see it, and nobody would be told.
fn check_shared(bind: &BindSpec) -> Result<()> {
    if bind.propagation != SpecPropagation::Shared {
        return Ok(());
    }
    let source = &bind.source;
    let failed = |why| Error::new(ErrorKind::Create, why);
    let (point, is_shared) = sys::mount::sharing::mount_of(&bind.source)
        .map_err(|err| failed(format!("look for the mount of {}: {err}", source.display())))?;
    if is_shared {
        return Ok(());
    }
    Err(failed(format!("path {source:?} is mounted on {point:?} but it is not a shared mount")))
}

fn binds(config: &ContainerConfig, places: &Places) -> Result<Vec<BindSpec>> {
    let mut binds = Vec::new();
    for name in ["hostname", "resolv.conf"] {
        let target = Path::new("/etc").join(name);
        let source = places.sandbox.join(name);
        if source.exists() && !config.mounts.iter().any(|m| m.container_path == target) {
            binds.push(BindSpec {
                source,
                target,
                readonly: config.security.readonly_rootfs,
                recursive_readonly: false,
                propagation: SpecPropagation::Private,
                image: None,
            });
        }
    }
    binds.extend(places.volumes.iter().map(|volume| BindSpec {
        source: volume.source.clone(),
        target: volume.target.clone(),
        readonly: false,
        recursive_readonly: false,
        propagation: SpecPropagation::Private,
        image: None,
    }));
    binds.extend(config.mounts.iter().map(|mount| BindSpec {
        // A link of the node is followed on the node.
        source: std::fs::canonicalize(&mount.host_path).unwrap_or_else(|_| mount.host_path.clone()),
        target: mount.container_path.clone(),
        readonly: mount.readonly,
        recursive_readonly: mount.recursive_readonly,
        propagation: match mount.propagation {
            MountPropagation::Private => SpecPropagation::Private,
            MountPropagation::HostToContainer => SpecPropagation::Slave,
            MountPropagation::Bidirectional => SpecPropagation::Shared,
        },
        image: mount.image.as_ref().map(|tree| ImageSpec {
            layers: places.layers.clone(),
            lower: places.volume_layers.get(&tree.image).cloned().unwrap_or_default(),
            sub_path: tree.sub_path.clone(),
        }),
    }));
    binds.iter().try_for_each(check_shared)?;
    Ok(binds)
}

fn devices(config: &ContainerConfig) -> Result<Vec<DeviceSpec>> {
    let mut devices: Vec<DeviceSpec> = DEVICES
        .iter()
        .map(|(path, major, minor)| DeviceSpec {
            path: path.into(),
            block: false,
            major: *major,
            minor: *minor,
            mode: 0o666,
        })
        .collect();
    if config.security.privileged {
        node_devices(Path::new("/dev"), 0, &mut devices);
    }
    for device in &config.devices {
        let found = sys::fs::device_of(&device.host_path).map_err(|err| {
            let message =
                format!("error gathering device information {}: {err}", device.host_path.display());
            Error::with_source(ErrorKind::Create, message, err)
        })?;
        let (block, major, minor) = match found {
            Some(Node::Character { major, minor }) => (false, major, minor),
            Some(Node::Block { major, minor }) => (true, major, minor),
            Some(Node::Fifo) | None => {
                return Err(Error::new(
                    ErrorKind::Create,
                    format!("{} is not a device node", device.host_path.display()),
                ));
            }
        };
        let path = device.container_path.clone();
        devices.push(DeviceSpec { path, block, major, minor, mode: 0o666 });
    }
    Ok(devices)
}

/// A privileged container sees the node's devices.
fn node_devices(directory: &Path, depth: usize, devices: &mut Vec<DeviceSpec>) {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        let skip = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx"];
        if skip.iter().any(|s| path == Path::new(s)) || devices.iter().any(|d| d.path == path) {
            continue;
        }
        if kind.is_dir() && depth < 4 {
            node_devices(&path, depth + 1, devices);
        } else if !kind.is_symlink()
            && let Ok(Some(node)) = sys::fs::device_of(&path)
        {
            let mode = entry.metadata().map_or(0o600, |m| m.mode() & 0o777);
            match node {
                Node::Character { major, minor } => {
                    devices.push(DeviceSpec { path, block: false, major, minor, mode });
                }
                Node::Block { major, minor } => {
                    devices.push(DeviceSpec { path, block: true, major, minor, mode });
                }
                Node::Fifo => {}
            }
        }
    }
}

/// None lets the container use every device.
pub fn device_rules(config: &ContainerConfig, spec: &ContainerSpec) -> Option<Vec<DeviceRule>> {
    if config.security.privileged {
        return None;
    }
    let rule = |kind, major, minor, access: &str| DeviceRule {
        kind,
        major,
        minor,
        read: access.contains('r'),
        write: access.contains('w'),
        mknod: access.contains('m'),
    };
    // Making any node is harmless as long as it cannot be opened.
    let mut rules = vec![
        rule(DeviceKind::Character, None, None, "m"),
        rule(DeviceKind::Block, None, None, "m"),
        rule(DeviceKind::Character, Some(5), Some(1), "rwm"),
        rule(DeviceKind::Character, Some(5), Some(2), "rwm"),
        rule(DeviceKind::Character, Some(136), None, "rwm"),
    ];
    for device in &spec.devices {
        let asked = config.devices.iter().find(|d| d.container_path == device.path);
        let kind = if device.block { DeviceKind::Block } else { DeviceKind::Character };
        let access = asked.map(|d| d.permissions.as_str()).filter(|p| !p.is_empty());
        rules.push(rule(kind, Some(device.major), Some(device.minor), access.unwrap_or("rwm")));
    }
    Some(rules)
}
