//! Containers: their configuration and limits, and what is told of them.

use std::path::PathBuf;

use rpc::Status;

use super::sandboxes::{mapping, users_to};
use super::{invalid, mode_from, mode_to, seccomp_from, seccomp_to, wrapped};
use crate::cri;
use crate::oci::{MASKED_PATHS, READONLY_PATHS};
use crate::wire::containers as wire;
use crate::wire::images::ImageSpec;
use crate::wire::sandboxes::{NamespaceOption, SecurityProfile};
use crate::wire::{
    ContainerState, GroupsPolicy, MountPropagation, NamespaceMode, ProfileType, SIGNALS,
    SeLinuxOption,
};

/// # Errors
/// InvalidArgument for what is missing, unknown, or beyond the contract.
pub fn config_from(config: wire::ContainerConfig) -> Result<cri::ContainerConfig, Status> {
    let metadata =
        config.metadata.ok_or_else(|| invalid("container config must include metadata"))?;
    let image = config.image.unwrap_or_default();
    if image.image.is_empty() {
        return Err(invalid("container config must include an image"));
    }
    // CRI, on recursive_read_only: readonly must be set, and propagation must be private.
    let private = MountPropagation::Private as i32;
    let strange =
        |it: &wire::Mount| it.recursive_read_only && !(it.readonly && it.propagation == private);
    if config.mounts.iter().any(strange) {
        return Err(invalid(
            "a recursive read-only mount is read-only and its propagation private",
        ));
    }
    let of_image = |it: &wire::Mount| it.image.as_ref().is_some_and(|it| !it.image.is_empty());
    if config.mounts.iter().any(|it| of_image(it) && !it.readonly) {
        return Err(invalid("an image is mounted read-only"));
    }
    let linux = config.linux.unwrap_or_default();
    let has_context = linux.security_context.is_some();
    let context = linux.security_context.unwrap_or_default();
    let namespaces = context.namespace_options.clone().unwrap_or_default();
    let target = namespaces.pid == NamespaceMode::Target as i32;
    let pid = mode_from(namespaces.pid)?;
    Ok(cri::ContainerConfig {
        metadata: cri::ContainerMetadata { name: metadata.name, attempt: metadata.attempt },
        user_specified_image: match image.user_specified_image.as_str() {
            "" => image.image.clone(),
            written => written.to_owned(),
        },
        image: image.image,
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        envs: config.envs.into_iter().map(|it| (it.key, it.value)).collect(),
        mounts: config.mounts.into_iter().map(mount_from).collect::<Result<_, _>>()?,
        devices: config.devices.into_iter().map(device_from).collect(),
        cdi_devices: config.cdi_devices.into_iter().map(|it| it.name).collect(),
        hooks: Vec::new(),
        labels: config.labels,
        annotations: config.annotations,
        log_path: config.log_path.into(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources_from(linux.resources.unwrap_or_default())?,
        security: security_from(context, has_context, config.stop_signal)?,
        pid,
        target_container: target.then_some(namespaces.target_id),
    })
}

/// The sandbox says what the containers of the pod share.
pub fn config_to(
    config: &cri::ContainerConfig,
    sandbox: &cri::PodSandboxConfig,
) -> wire::ContainerConfig {
    let namespaces = NamespaceOption {
        network: mode_to(sandbox.network).into(),
        pid: match &config.target_container {
            Some(_) => NamespaceMode::Target.into(),
            None => mode_to(config.pid).into(),
        },
        ipc: mode_to(sandbox.ipc).into(),
        target_id: config.target_container.clone().unwrap_or_default(),
        userns_options: sandbox.users.map(users_to),
    };
    let stop_signal = SIGNALS.iter().position(|name| *name == config.security.stop_signal);
    wire::ContainerConfig {
        metadata: Some(metadata_to(&config.metadata)),
        image: Some(ImageSpec {
            image: config.image.clone(),
            user_specified_image: config.user_specified_image.clone(),
            ..Default::default()
        }),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: config.working_dir.clone(),
        envs: config
            .envs
            .iter()
            .map(|(key, value)| wire::KeyValue { key: key.clone(), value: value.clone() })
            .collect(),
        mounts: config.mounts.iter().map(|mount| mapped(mount_to(mount), sandbox)).collect(),
        devices: config
            .devices
            .iter()
            .map(|it| wire::Device {
                container_path: it.container_path.display().to_string(),
                host_path: it.host_path.display().to_string(),
                permissions: it.permissions.clone(),
            })
            .collect(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        log_path: config.log_path.display().to_string(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        linux: Some(wire::LinuxContainerConfig {
            resources: Some(resources_to(&config.resources)),
            security_context: Some(security_to(&config.security, namespaces)),
        }),
        cdi_devices: config
            .cdi_devices
            .iter()
            .map(|name| wire::CdiDevice { name: name.clone() })
            .collect(),
        stop_signal: stop_signal.and_then(|number| i32::try_from(number).ok()).unwrap_or(0),
    }
}

fn security_from(
    context: wire::LinuxContainerSecurityContext,
    is_given: bool,
    stop_signal: i32,
) -> Result<cri::SecurityContext, Status> {
    let capabilities = context.capabilities.unwrap_or_default();
    if !capabilities.add_ambient_capabilities.is_empty() {
        return Err(invalid("ambient capabilities are not supported"));
    }
    let signal = usize::try_from(stop_signal).ok().and_then(|number| SIGNALS.get(number));
    let strict = context.supplemental_groups_policy == GroupsPolicy::Strict as i32;
    // CRI, on run_as_group: an error without a user.
    if let (Some(group), None, "") =
        (&context.run_as_group, &context.run_as_user, &*context.run_as_username)
    {
        let group = group.value;
        return Err(invalid(format!("user group \"{group}\" is specified without user")));
    }
    let masks = match (is_given, &*context.masked_paths, &*context.readonly_paths) {
        _ if context.privileged => cri::Masks::Nothing,
        // A caller that says nothing of security wants no hole in it.
        (false, ..) => cri::Masks::Default,
        (true, [], []) => cri::Masks::Nothing,
        (true, hidden, readonly) if hidden == MASKED_PATHS && readonly == READONLY_PATHS => {
            cri::Masks::Default
        }
        (true, hidden, readonly) => {
            let paths = |list: &[String]| list.iter().map(Into::into).collect();
            cri::Masks::These { hidden: paths(hidden), readonly: paths(readonly) }
        }
    };
    Ok(cri::SecurityContext {
        privileged: context.privileged,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        run_as_user: context.run_as_user.map(|it| it.value),
        run_as_username: context.run_as_username,
        run_as_group: context.run_as_group.map(|it| it.value),
        supplemental_groups: context.supplemental_groups,
        supplemental_groups_strict: strict,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        seccomp: seccomp_from(context.seccomp.as_ref(), &context.seccomp_profile_path)?,
        apparmor_profile: match context.apparmor {
            Some(profile) => apparmor_from(profile)?,
            None => context.apparmor_profile,
        },
        selinux: context.selinux_options.map(selinux_from),
        masks,
        stop_signal: (*signal
            .ok_or_else(|| invalid(format!("unknown stop signal {stop_signal}")))?)
        .to_owned(),
    })
}

fn security_to(
    security: &cri::SecurityContext,
    namespaces: NamespaceOption,
) -> wire::LinuxContainerSecurityContext {
    let (masked_paths, readonly_paths) = match &security.masks {
        _ if security.privileged => Default::default(),
        cri::Masks::Nothing => Default::default(),
        cri::Masks::Default => {
            (MASKED_PATHS.map(String::from).into(), READONLY_PATHS.map(String::from).into())
        }
        cri::Masks::These { hidden, readonly } => {
            let paths = |list: &[PathBuf]| list.iter().map(|it| it.display().to_string()).collect();
            (paths(hidden), paths(readonly))
        }
    };
    let policy = match security.supplemental_groups_strict {
        true => GroupsPolicy::Strict,
        false => GroupsPolicy::Merge,
    };
    wire::LinuxContainerSecurityContext {
        capabilities: Some(wire::Capability {
            add_capabilities: security.add_capabilities.clone(),
            drop_capabilities: security.drop_capabilities.clone(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: security.privileged,
        namespace_options: Some(namespaces),
        selinux_options: security.selinux.as_ref().map(selinux_to),
        run_as_user: wrapped(security.run_as_user),
        run_as_username: security.run_as_username.clone(),
        readonly_rootfs: security.readonly_rootfs,
        supplemental_groups: security.supplemental_groups.clone(),
        apparmor_profile: security.apparmor_profile.clone(),
        seccomp_profile_path: String::new(),
        no_new_privs: security.no_new_privs,
        run_as_group: wrapped(security.run_as_group),
        masked_paths,
        readonly_paths,
        seccomp: Some(seccomp_to(&security.seccomp)),
        apparmor: apparmor_to(&security.apparmor_profile),
        supplemental_groups_policy: policy.into(),
    }
}

pub fn selinux_from(options: SeLinuxOption) -> cri::SelinuxOptions {
    let SeLinuxOption { user, role, kind, level } = options;
    cri::SelinuxOptions { user, role, kind, level }
}

pub fn selinux_to(options: &cri::SelinuxOptions) -> SeLinuxOption {
    let cri::SelinuxOptions { user, role, kind, level } = options.clone();
    SeLinuxOption { user, role, kind, level }
}

fn apparmor_from(profile: SecurityProfile) -> Result<String, Status> {
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok("runtime/default".into()),
        Ok(ProfileType::Unconfined) => Ok("unconfined".into()),
        Ok(ProfileType::Localhost) => Ok(format!("localhost/{}", profile.localhost_ref)),
        Err(_) => Err(invalid(format!("unknown AppArmor profile type {}", profile.profile_type))),
    }
}

fn apparmor_to(profile: &str) -> Option<SecurityProfile> {
    let (kind, name) = match (profile, profile.strip_prefix("localhost/")) {
        (_, Some(name)) => (ProfileType::Localhost, name),
        ("runtime/default", None) => (ProfileType::RuntimeDefault, ""),
        ("unconfined", None) => (ProfileType::Unconfined, ""),
        _ => return None,
    };
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() })
}

/// The files of the node look like the pod's own users' in it.
fn mapped(mut mount: wire::Mount, sandbox: &cri::PodSandboxConfig) -> wire::Mount {
    if let Some(users) = sandbox.users.filter(|_| mount.image.is_none()) {
        (mount.uid_mappings, mount.gid_mappings) = (mapping(users), mapping(users));
    }
    mount
}

/// Mappings of ids are the sandbox's, by which the runtime goes.
fn mount_from(mount: wire::Mount) -> Result<cri::Mount, Status> {
    let image = mount.image.filter(|image| !image.image.is_empty());
    if image.is_some() && !mount.host_path.is_empty() {
        return Err(invalid("a mount has a host path or an image, not both"));
    }
    Ok(cri::Mount {
        container_path: mount.container_path.into(),
        host_path: mount.host_path.into(),
        readonly: mount.readonly,
        recursive_readonly: mount.recursive_read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation: match MountPropagation::try_from(mount.propagation) {
            Ok(MountPropagation::Private) => cri::MountPropagation::Private,
            Ok(MountPropagation::HostToContainer) => cri::MountPropagation::HostToContainer,
            Ok(MountPropagation::Bidirectional) => cri::MountPropagation::Bidirectional,
            Err(_) => return Err(invalid("unknown mount propagation")),
        },
        image: image.map(|image| cri::ImageTree {
            image: image.image,
            sub_path: mount.image_sub_path.into(),
        }),
    })
}

fn mount_to(mount: &cri::Mount) -> wire::Mount {
    let propagation = match mount.propagation {
        cri::MountPropagation::Private => MountPropagation::Private,
        cri::MountPropagation::HostToContainer => MountPropagation::HostToContainer,
        cri::MountPropagation::Bidirectional => MountPropagation::Bidirectional,
    };
    let image = mount.image.as_ref();
    wire::Mount {
        container_path: mount.container_path.display().to_string(),
        host_path: mount.host_path.display().to_string(),
        readonly: mount.readonly,
        propagation: propagation.into(),
        selinux_relabel: mount.selinux_relabel,
        recursive_read_only: mount.recursive_readonly,
        image: image.map(|tree| ImageSpec { image: tree.image.clone(), ..Default::default() }),
        image_sub_path: image.map(|it| it.sub_path.display().to_string()).unwrap_or_default(),
        ..Default::default()
    }
}

fn device_from(device: wire::Device) -> cri::Device {
    cri::Device {
        container_path: device.container_path.into(),
        host_path: device.host_path.into(),
        permissions: device.permissions,
    }
}

/// # Errors
/// InvalidArgument for a weight or period below nothing.
pub fn resources_from(
    resources: wire::LinuxContainerResources,
) -> Result<cri::LinuxResources, Status> {
    let positive = |name: &str, value: i64| {
        u64::try_from(value).map_err(|_| invalid(format!("{name} must not be negative")))
    };
    Ok(cri::LinuxResources {
        cpu_shares: positive("cpu_shares", resources.cpu_shares)?,
        cpu_quota: resources.cpu_quota,
        cpu_period: positive("cpu_period", resources.cpu_period)?,
        memory_limit: resources.memory_limit_in_bytes,
        oom_score_adj: resources.oom_score_adj,
        pids_limit: 0,
        cpuset_cpus: resources.cpuset_cpus,
        cpuset_mems: resources.cpuset_mems,
        huge_pages: resources
            .hugepage_limits
            .into_iter()
            .map(|it| (it.page_size, it.limit))
            .collect(),
        // On the wire it is memory and swap together.
        swap_bytes: u64::try_from(
            resources.memory_swap_limit_in_bytes.saturating_sub(resources.memory_limit_in_bytes),
        )
        .ok()
        .filter(|bytes| *bytes > 0 && resources.memory_limit_in_bytes > 0),
        unified: resources.unified,
    })
}

pub fn resources_to(resources: &cri::LinuxResources) -> wire::LinuxContainerResources {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    wire::LinuxContainerResources {
        cpu_period: signed(resources.cpu_period),
        cpu_quota: resources.cpu_quota,
        cpu_shares: signed(resources.cpu_shares),
        memory_limit_in_bytes: resources.memory_limit,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        unified: resources.unified.clone(),
        hugepage_limits: resources
            .huge_pages
            .iter()
            .map(|(size, limit)| wire::HugepageLimit { page_size: size.clone(), limit: *limit })
            .collect(),
        memory_swap_limit_in_bytes: match resources.swap_bytes {
            Some(swap) if swap > 0 && resources.memory_limit > 0 => {
                resources.memory_limit.saturating_add(signed(swap))
            }
            _ => 0,
        },
    }
}

pub fn metadata_to(metadata: &cri::ContainerMetadata) -> wire::ContainerMetadata {
    wire::ContainerMetadata { name: metadata.name.clone(), attempt: metadata.attempt }
}

fn state_to(state: cri::ContainerState) -> ContainerState {
    match state {
        cri::ContainerState::Created => ContainerState::Created,
        cri::ContainerState::Running => ContainerState::Running,
        cri::ContainerState::Exited => ContainerState::Exited,
        cri::ContainerState::Unknown => ContainerState::Unknown,
    }
}

pub fn state_from(number: i32) -> cri::ContainerState {
    match ContainerState::try_from(number) {
        Ok(ContainerState::Created) => cri::ContainerState::Created,
        Ok(ContainerState::Running) => cri::ContainerState::Running,
        Ok(ContainerState::Exited) => cri::ContainerState::Exited,
        Ok(ContainerState::Unknown) | Err(_) => cri::ContainerState::Unknown,
    }
}

fn image_of(container: &cri::Container) -> ImageSpec {
    ImageSpec {
        image: container.image.clone(),
        user_specified_image: container.user_specified_image.clone(),
        ..Default::default()
    }
}

/// One line of a list.
pub fn item_to(container: &cri::Container) -> wire::Container {
    wire::Container {
        id: container.id.clone(),
        pod_sandbox_id: container.sandbox_id.clone(),
        metadata: Some(metadata_to(&container.metadata)),
        image: Some(image_of(container)),
        image_ref: container.image_ref.clone(),
        state: state_to(container.state).into(),
        created_at: container.created_at,
        labels: container.labels.clone(),
        annotations: container.annotations.clone(),
        image_id: container.image.clone(),
    }
}

pub fn status_to(container: &cri::Container) -> wire::ContainerStatus {
    let user = container.user.as_ref().map(|user| wire::ContainerUser {
        linux: Some(wire::LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: user.supplemental_groups.clone(),
        }),
    });
    wire::ContainerStatus {
        id: container.id.clone(),
        metadata: Some(metadata_to(&container.metadata)),
        state: state_to(container.state).into(),
        created_at: container.created_at,
        started_at: container.started_at,
        finished_at: container.finished_at,
        exit_code: container.exit_code,
        image: Some(image_of(container)),
        image_ref: container.image_ref.clone(),
        reason: container.reason.clone(),
        message: container.message.clone(),
        labels: container.labels.clone(),
        annotations: container.annotations.clone(),
        mounts: container.mounts.iter().map(mount_to).collect(),
        log_path: container.log_path.display().to_string(),
        resources: Some(wire::ContainerResources {
            linux: Some(resources_to(&container.resources)),
        }),
        image_id: container.image.clone(),
        user,
        stop_signal: 0,
    }
}

/// `sandbox_id` and `pid` are not in the status; where they come from is the caller's matter.
pub fn status_from(status: wire::ContainerStatus, sandbox_id: String, pid: i32) -> cri::Container {
    let image = status.image.unwrap_or_default();
    let metadata = status.metadata.unwrap_or_default();
    let resources = status.resources.and_then(|it| it.linux).unwrap_or_default();
    let first = |a: String, b: String| if a.is_empty() { b } else { a };
    cri::Container {
        id: status.id,
        sandbox_id,
        metadata: cri::ContainerMetadata { name: metadata.name, attempt: metadata.attempt },
        state: state_from(status.state),
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        pid,
        user_specified_image: first(image.user_specified_image, image.image.clone()),
        image: first(status.image_id, image.image),
        image_ref: status.image_ref,
        labels: status.labels,
        annotations: status.annotations,
        log_path: status.log_path.into(),
        // What a runtime tells of its own mounts is not refused.
        mounts: status.mounts.into_iter().filter_map(|it| mount_from(it).ok()).collect(),
        resources: resources_from(resources).unwrap_or_default(),
        user: status.user.and_then(|it| it.linux).map(|user| cri::ContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: user.supplemental_groups,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::Code;

    fn sample() -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: cri::ContainerMetadata { name: "main".into(), attempt: 3 },
            image: "sha256:abc".into(),
            user_specified_image: "busybox:1".into(),
            command: vec!["sh".into()],
            args: vec!["-c".into(), "true".into()],
            working_dir: "/srv".into(),
            envs: vec![("A".into(), "1".into()), ("A".into(), "2".into())],
            mounts: vec![
                cri::Mount {
                    container_path: "/data".into(),
                    host_path: "/host".into(),
                    readonly: true,
                    recursive_readonly: false,
                    propagation: cri::MountPropagation::HostToContainer,
                    selinux_relabel: true,
                    image: None,
                },
                cri::Mount {
                    container_path: "/files".into(),
                    readonly: true,
                    image: Some(cri::ImageTree {
                        image: "sha256:def".into(),
                        sub_path: "etc".into(),
                    }),
                    ..Default::default()
                },
            ],
            devices: vec![cri::Device {
                container_path: "/dev/x".into(),
                host_path: "/dev/null".into(),
                permissions: "rw".into(),
            }],
            cdi_devices: vec!["vendor.com/class=one".into()],
            hooks: Vec::new(),
            labels: [("l".into(), "1".into())].into(),
            annotations: [("a".into(), "1".into())].into(),
            log_path: "main/3.log".into(),
            stdin: true,
            stdin_once: true,
            tty: true,
            resources: cri::LinuxResources {
                cpu_shares: 102,
                cpu_quota: 5_000,
                cpu_period: 100_000,
                memory_limit: 64 << 20,
                oom_score_adj: 999,
                cpuset_cpus: "0-1".into(),
                cpuset_mems: "0".into(),
                huge_pages: [("2MB".into(), 4 << 20)].into(),
                swap_bytes: Some(8 << 20),
                unified: [("memory.high".into(), "1".into())].into(),
                ..Default::default()
            },
            security: cri::SecurityContext {
                add_capabilities: vec!["NET_ADMIN".into()],
                drop_capabilities: vec!["ALL".into()],
                run_as_user: Some(0),
                run_as_group: Some(7),
                supplemental_groups: vec![8],
                supplemental_groups_strict: true,
                readonly_rootfs: true,
                no_new_privs: true,
                apparmor_profile: "localhost/own".into(),
                selinux: Some(cri::SelinuxOptions {
                    level: "s0:c1,c2".into(),
                    ..Default::default()
                }),
                stop_signal: "SIGRTMAX-3".into(),
                ..Default::default()
            },
            pid: cri::NamespaceMode::Container,
            target_container: None,
        }
    }

    fn there_and_back(config: &cri::ContainerConfig) -> serde_json::Value {
        let on_wire = config_to(config, &cri::PodSandboxConfig::default());
        serde_json::to_value(config_from(on_wire).unwrap()).unwrap()
    }

    #[test]
    fn a_configuration_survives_both_ways() {
        let changes: [fn(&mut cri::ContainerConfig); 8] = [
            |_| (),
            |it| it.security.masks = cri::Masks::Nothing,
            |it| {
                it.security.masks = cri::Masks::These {
                    hidden: vec!["/bin/ls".into()],
                    readonly: vec!["/tmp".into()],
                };
            },
            |it| {
                let mount = &mut it.mounts[0];
                mount.recursive_readonly = true;
                mount.propagation = cri::MountPropagation::Private;
            },
            |it| (it.security.run_as_user, it.security.run_as_group) = (None, None),
            |it| it.target_container = Some("other".into()),
            |it| it.pid = cri::NamespaceMode::Node,
            |it| it.security.stop_signal = String::new(),
        ];
        for change in changes {
            let mut config = sample();
            change(&mut config);
            assert_eq!(there_and_back(&config), serde_json::to_value(&config).unwrap());
        }
    }

    #[test]
    fn signals_have_the_numbers_of_the_interface_and_not_the_kernels() {
        for (name, number) in
            [("SIGKILL", 13), ("SIGTERM", 23), ("SIGRTMIN+15", 50), ("SIGRTMAX", 65), ("", 0)]
        {
            assert_eq!(SIGNALS[number], name);
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let changes: [fn(&mut wire::ContainerConfig); 11] = [
            |it| it.mounts[1].readonly = false,
            |it| it.metadata = None,
            |it| it.image = None,
            |it| it.stop_signal = 66,
            |it| it.stop_signal = -1,
            |it| it.mounts[0].propagation = 5,
            |it| it.mounts[1].host_path = "/both".into(),
            |it| (it.mounts[0].recursive_read_only, it.mounts[0].readonly) = (true, false),
            |it| {
                let mount = &mut it.mounts[0];
                (mount.recursive_read_only, mount.readonly, mount.propagation) = (true, true, 1);
            },
            |it| {
                let linux = it.linux.as_mut().unwrap();
                linux.security_context.as_mut().unwrap().run_as_user = None;
            },
            |it| {
                let linux = it.linux.as_mut().unwrap();
                linux.resources.as_mut().unwrap().cpu_period = -1;
            },
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut config = config_to(&sample(), &cri::PodSandboxConfig::default());
            change(&mut config);
            let refused = config_from(config).unwrap_err();
            assert_eq!(refused.code, Code::InvalidArgument, "{index}: {refused}");
        }
    }

    #[test]
    fn a_caller_that_says_nothing_of_security_gets_masked_paths() {
        let mut config = config_to(&sample(), &cri::PodSandboxConfig::default());
        config.linux = None;
        let read = config_from(config.clone()).unwrap();
        assert_eq!(read.security.masks, cri::Masks::Default);
        config.linux = Some(wire::LinuxContainerConfig {
            security_context: Some(Default::default()),
            resources: None,
        });
        assert_eq!(config_from(config).unwrap().security.masks, cri::Masks::Nothing);
    }

    #[test]
    fn a_status_survives_both_ways() {
        let container = cri::Container {
            id: "c1".into(),
            sandbox_id: "s1".into(),
            metadata: sample().metadata,
            state: cri::ContainerState::Exited,
            created_at: 1,
            started_at: 2,
            finished_at: 3,
            exit_code: 137,
            reason: "OOMKilled".into(),
            message: "m".into(),
            pid: 0,
            image: "sha256:abc".into(),
            user_specified_image: "busybox:1".into(),
            image_ref: "busybox@sha256:1".into(),
            labels: sample().labels,
            annotations: sample().annotations,
            log_path: "/logs/main/3.log".into(),
            mounts: sample().mounts,
            resources: sample().resources,
            user: Some(cri::ContainerUser { uid: 1, gid: 2, supplemental_groups: vec![3] }),
        };
        let back = status_from(status_to(&container), "s1".into(), 0);
        assert_eq!(serde_json::to_value(&back).unwrap(), serde_json::to_value(&container).unwrap());
        let odd = wire::ContainerStatus { state: 42, ..Default::default() };
        assert_eq!(status_from(odd, String::new(), 0).state, cri::ContainerState::Unknown);
    }
}
