//! The configuration of one container, as the runtime takes it: identity, security
//! context, limits, mounts.
//!
//! Pure; what it needs from files and the API server is handed in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SecurityContext};
use runtime::cri::{self, ContainerConfig, ContainerMetadata, Image, NamespaceMode};

use crate::config::KubeletConfig;
use crate::env::Variables;
use crate::observed::{
    ANNOTATION_GRACE, ANNOTATION_HASH, ANNOTATION_MESSAGE_PATH, ANNOTATION_MESSAGE_POLICY,
    ANNOTATION_RESTART_COUNT, LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE,
    LABEL_POD_UID,
};
use crate::pod::{self, Role};
use crate::{env, resources, sandbox};

pub const DEFAULT_MESSAGE_PATH: &str = "/dev/termination-log";

pub struct Parts<'a> {
    pub pod: &'a Pod,
    pub role: Role,
    pub container: &'a Container,
    pub image: &'a Image,
    pub restart_count: u32,
    pub variables: Variables,
    pub mounts: Vec<cri::Mount>,
    pub devices: Vec<cri::Device>,
    pub config: &'a KubeletConfig,
    pub host: resources::Host,
    /// Groups of the pod's volumes, which its processes join.
    pub volume_groups: Vec<i64>,
    /// For an ephemeral container with a target: the target's container id.
    pub target_container: Option<String>,
}

/// # Errors
/// What CreateContainerConfigError says.
pub fn build(parts: Parts<'_>) -> Result<ContainerConfig, String> {
    let Parts { pod, role, container, image, restart_count, variables, config, .. } = parts;
    let pod_context = pod::spec(pod).security_context.as_ref();
    let own = container.security_context.as_ref();
    check_non_root(pod, container, pod_context, own, image)?;
    let command = env::expand_all(container.command.as_ref(), &variables);
    let args = env::expand_all(container.args.as_ref(), &variables);
    let pid = if pod::spec(pod).host_pid == Some(true) {
        NamespaceMode::Node
    } else if pod::spec(pod).share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    Ok(ContainerConfig {
        metadata: ContainerMetadata { name: container.name.clone(), attempt: restart_count },
        image: image.id.clone(),
        user_specified_image: container.image.clone().unwrap_or_default(),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: variables.into_list(),
        mounts: parts.mounts,
        devices: parts.devices,
        cdi_devices: Vec::new(),
        hooks: Vec::new(),
        labels: labels(pod, container),
        annotations: annotations(pod, container, restart_count),
        log_path: PathBuf::from(&container.name).join(format!("{restart_count}.log")),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        resources: resources::container_resources(pod, role, container, parts.host),
        security: security(pod_context, own, container, parts.volume_groups, config),
        pid,
        target_container: parts.target_container,
    })
}

fn labels(pod: &Pod, container: &Container) -> BTreeMap<String, String> {
    [
        (LABEL_POD_NAME, pod::name(pod)),
        (LABEL_POD_NAMESPACE, pod::namespace(pod)),
        (LABEL_POD_UID, pod::uid(pod)),
        (LABEL_CONTAINER_NAME, &container.name),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

fn annotations(pod: &Pod, container: &Container, restarts: u32) -> BTreeMap<String, String> {
    let path = container.termination_message_path.as_deref().unwrap_or(DEFAULT_MESSAGE_PATH);
    let policy = container.termination_message_policy.as_deref().unwrap_or("File");
    [
        (ANNOTATION_HASH, pod::container_hash(container)),
        (ANNOTATION_RESTART_COUNT, restarts.to_string()),
        (ANNOTATION_MESSAGE_PATH, path.to_owned()),
        (ANNOTATION_MESSAGE_POLICY, policy.to_owned()),
        (ANNOTATION_GRACE, pod::grace_period_seconds(pod).to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

fn check_non_root(
    pod: &Pod,
    container: &Container,
    pod_context: Option<&PodSecurityContext>,
    own: Option<&SecurityContext>,
    image: &Image,
) -> Result<(), String> {
    let required = own
        .and_then(|own| own.run_as_non_root)
        .or(pod_context.and_then(|context| context.run_as_non_root));
    if required != Some(true) {
        return Ok(());
    }
    let place = format!("(pod: \"{}\", container: {})", pod::display(pod), container.name);
    let user =
        own.and_then(|own| own.run_as_user).or(pod_context.and_then(|context| context.run_as_user));
    match user {
        Some(0) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        Some(_) => Ok(()),
        None => {
            let user = image.user.split(':').next().unwrap_or_default();
            match user.parse::<i64>() {
                Ok(0) => {
                    Err(format!("container has runAsNonRoot and image will run as root {place}"))
                }
                Ok(_) => Ok(()),
                Err(_) if user.is_empty() || user == "root" => {
                    Err(format!("container has runAsNonRoot and image will run as root {place}"))
                }
                Err(_) => Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({user}), \
                     cannot verify user is non-root {place}"
                )),
            }
        }
    }
}

fn security(
    pod: Option<&PodSecurityContext>,
    own: Option<&SecurityContext>,
    container: &Container,
    volume_groups: Vec<i64>,
    config: &KubeletConfig,
) -> cri::SecurityContext {
    let privileged = own.and_then(|own| own.privileged) == Some(true);
    let capabilities = own.and_then(|own| own.capabilities.as_ref());
    let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    let add = list(capabilities.and_then(|capabilities| capabilities.add.as_ref()));
    let seccomp = own
        .and_then(|own| own.seccomp_profile.as_ref())
        .or(pod.and_then(|pod| pod.seccomp_profile.as_ref()));
    let apparmor = own
        .and_then(|own| own.app_armor_profile.as_ref())
        .or(pod.and_then(|pod| pod.app_armor_profile.as_ref()));
    let escalation = own.and_then(|own| own.allow_privilege_escalation);
    let mut groups = pod.and_then(|pod| pod.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(pod.and_then(|pod| pod.fs_group));
    groups.extend(volume_groups);
    cri::SecurityContext {
        privileged,
        add_capabilities: add,
        drop_capabilities: list(capabilities.and_then(|capabilities| capabilities.drop.as_ref())),
        run_as_user: own.and_then(|own| own.run_as_user).or(pod.and_then(|pod| pod.run_as_user)),
        run_as_username: String::new(),
        run_as_group: own.and_then(|own| own.run_as_group).or(pod.and_then(|pod| pod.run_as_group)),
        supplemental_groups: groups,
        supplemental_groups_strict: pod.and_then(|pod| pod.supplemental_groups_policy.as_deref())
            == Some("Strict"),
        readonly_rootfs: own.and_then(|own| own.read_only_root_filesystem) == Some(true),
        no_new_privs: escalation == Some(false) && !privileged,
        seccomp: if privileged {
            cri::SeccompProfile::Unconfined
        } else {
            sandbox::seccomp(seccomp, config)
        },
        apparmor_profile: match apparmor.map(|profile| (profile.type_.as_str(), profile)) {
            Some(("RuntimeDefault", _)) => "runtime/default".into(),
            Some(("Localhost", profile)) => {
                format!("localhost/{}", profile.localhost_profile.as_deref().unwrap_or_default())
            }
            Some(("Unconfined", _)) => "unconfined".into(),
            _ => String::new(),
        },
        selinux: selinux_options(pod, own),
        masks: match own.and_then(|own| own.proc_mount.as_deref()) {
            Some("Unmasked") => cri::Masks::Nothing,
            _ if privileged => cri::Masks::Nothing,
            _ => cri::Masks::Default,
        },
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone())
            .unwrap_or_default(),
    }
}

/// What a container says of its SELinux label, or its pod for it.
pub fn selinux_options(
    pod: Option<&PodSecurityContext>,
    own: Option<&SecurityContext>,
) -> Option<cri::SelinuxOptions> {
    let said = own
        .and_then(|own| own.se_linux_options.as_ref())
        .or(pod.and_then(|pod| pod.se_linux_options.as_ref()))?;
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    Some(cri::SelinuxOptions {
        user: text(&said.user),
        role: text(&said.role),
        kind: text(&said.type_),
        level: text(&said.level),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use crate::sandbox::samples::config;
    use serde_json::{Value, json};

    fn built(spec: Value, image_user: &str) -> Result<ContainerConfig, String> {
        let pod = pod(spec);
        build(Parts {
            pod: &pod,
            role: Role::Main,
            container: &pod::spec(&pod).containers[0],
            image: &Image { id: "sha256:1".into(), user: image_user.into(), ..Image::default() },
            restart_count: 2,
            variables: Variables::default(),
            mounts: vec![],
            devices: vec![],
            config: &config(),
            host: resources::Host { memory_bytes: 1 << 30, ..resources::Host::default() },
            volume_groups: vec![8],
            target_container: None,
        })
    }

    #[test]
    fn a_container_says_who_it_is() {
        let built = built(json!({"containers": [{"name": "a", "image": "x"}]}), "").unwrap();
        assert_eq!(built.log_path, PathBuf::from("a/2.log"));
        assert_eq!(built.labels[LABEL_POD_UID], "uid-1");
        assert_eq!(built.annotations[ANNOTATION_RESTART_COUNT], "2");
        assert_eq!(built.security.seccomp, cri::SeccompProfile::Unconfined);
        assert!(!built.security.no_new_privs);
    }

    #[test]
    fn the_containers_own_context_wins_over_the_pods() {
        let built = built(
            json!({"securityContext": {"runAsUser": 5, "runAsGroup": 6, "fsGroup": 7,
                       "seLinuxOptions": {"level": "s0:c1,c2"},
                       "seccompProfile": {"type": "RuntimeDefault"}},
                   "containers": [{"name": "a", "securityContext": {
                       "runAsUser": 9, "allowPrivilegeEscalation": false,
                       "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}]}),
            "",
        )
        .unwrap();
        let security = built.security;
        assert_eq!((security.run_as_user, security.run_as_group), (Some(9), Some(6)));
        assert_eq!(security.supplemental_groups, [7, 8]);
        assert_eq!(security.seccomp, cri::SeccompProfile::RuntimeDefault);
        assert_eq!(security.selinux.unwrap().level, "s0:c1,c2");
        assert!(security.no_new_privs);
        assert_eq!(security.drop_capabilities, ["ALL"]);
    }

    #[test]
    fn a_root_image_is_refused_where_root_is() {
        let spec =
            |context: Value| json!({"containers": [{"name": "a", "securityContext": context}]});
        let non_root = json!({"runAsNonRoot": true});
        let place = "(pod: \"web_default(uid-1)\", container: a)";
        let cases = [
            (
                non_root.clone(),
                "",
                Err(format!("container has runAsNonRoot and image will run as root {place}")),
            ),
            (non_root.clone(), "1000:1000", Ok(())),
            (
                non_root,
                "nginx",
                Err(format!(
                    "container has runAsNonRoot and image has non-numeric user (nginx), cannot verify user is non-root {place}"
                )),
            ),
            (
                json!({"runAsNonRoot": true, "runAsUser": 0}),
                "",
                Err(format!("container's runAsUser breaks non-root policy {place}")),
            ),
        ];
        for (context, user, want) in cases {
            assert_eq!(built(spec(context), user).map(drop), want);
        }
    }
}
