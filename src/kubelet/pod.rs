//! Readings of a Pod object that every part of the kubelet needs.
//!
//! Pure; knows nothing of the runtime's state or of the API server.

use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, EphemeralContainer, Pod, PodSpec, Probe,
};
use sha2::{Digest, Sha256};

pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

pub const DEFAULT_GRACE_PERIOD_SECONDS: i64 = 30;

/// What part a container plays in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs to completion before the next one.
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    Main,
    Ephemeral,
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `name_namespace(uid)`, as upstream's messages name a pod.
pub fn display(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// The spec; the API server never stores a pod without one.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Made from a file on this node, not by the API server.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, CONFIG_SOURCE).is_some_and(|source| source != "api")
        && annotation(pod, CONFIG_MIRROR).is_none()
}

/// The API server's picture of a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, CONFIG_MIRROR).is_some()
}

pub fn is_host_network(pod: &Pod) -> bool {
    spec(pod).host_network == Some(true)
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub fn is_terminal_phase(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

pub fn grace_period_seconds(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(DEFAULT_GRACE_PERIOD_SECONDS)
        .max(0)
}

pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

pub fn ephemeral_containers(pod: &Pod) -> Vec<Container> {
    spec(pod).ephemeral_containers.iter().flatten().map(as_container).collect()
}

/// Every container of the pod with its role: init, main, ephemeral.
pub fn containers(pod: &Pod) -> Vec<(Role, Container)> {
    let init = init_containers(pod).iter().map(|container| {
        (if is_sidecar(container) { Role::Sidecar } else { Role::Init }, container.clone())
    });
    let main = spec(pod).containers.iter().map(|container| (Role::Main, container.clone()));
    let ephemeral = ephemeral_containers(pod).into_iter().map(|c| (Role::Ephemeral, c));
    init.chain(main).chain(ephemeral).collect()
}

pub fn container(pod: &Pod, name: &str) -> Option<(Role, Container)> {
    containers(pod).into_iter().find(|(_, container)| container.name == name)
}

/// An ephemeral container seen as a container.
pub fn as_container(from: &EphemeralContainer) -> Container {
    let from = from.clone();
    Container {
        args: from.args,
        command: from.command,
        env: from.env,
        env_from: from.env_from,
        image: from.image,
        image_pull_policy: from.image_pull_policy,
        lifecycle: from.lifecycle,
        liveness_probe: from.liveness_probe,
        name: from.name,
        ports: from.ports,
        readiness_probe: from.readiness_probe,
        resize_policy: from.resize_policy,
        resources: from.resources,
        restart_policy: from.restart_policy,
        restart_policy_rules: from.restart_policy_rules,
        security_context: from.security_context,
        startup_probe: from.startup_probe,
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        termination_message_path: from.termination_message_path,
        termination_message_policy: from.termination_message_policy,
        tty: from.tty,
        volume_devices: from.volume_devices,
        volume_mounts: from.volume_mounts,
        working_dir: from.working_dir,
    }
}

/// Changes when a running container must be replaced: its name or its image.
pub fn container_hash(container: &Container) -> String {
    let mut hash = Sha256::new();
    hash.update(container.name.as_bytes());
    hash.update([0]);
    hash.update(container.image.as_deref().unwrap_or_default().as_bytes());
    hex(&hash.finalize()[..4])
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// As events begin: `Readiness probe failed: ...`.
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// The first of the container's own rules for this end.
pub fn matching_rule(container: &Container, exit_code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    })
}

/// Whether a container that ended with `exit_code` is started again.
pub fn restarts_after(pod: &Pod, role: Role, container: &Container, exit_code: i32) -> bool {
    match role {
        Role::Sidecar => return true,
        Role::Ephemeral => return false,
        Role::Init | Role::Main => {}
    }
    // Whatever it does, it starts this one.
    if matching_rule(container, exit_code).is_some() {
        return true;
    }
    match container.restart_policy.as_deref().unwrap_or_else(|| restart_policy(pod)) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        // An init container that succeeded is done under every policy.
        _ => role == Role::Main || exit_code != 0,
    }
}

#[cfg(test)]
pub(crate) mod samples {
    use super::*;
    use serde_json::json;

    /// A pod from the JSON of its spec.
    pub fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "uid": "uid-1", "generation": 1},
            "spec": spec,
        }))
        .unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn restart_follows_policy_role_and_exit_code() {
        let cases = [
            ("Always", Role::Main, 0, true),
            ("Always", Role::Init, 0, false),
            ("Always", Role::Init, 1, true),
            ("OnFailure", Role::Main, 0, false),
            ("OnFailure", Role::Main, 3, true),
            ("Never", Role::Main, 3, false),
            ("Never", Role::Init, 3, false),
            ("Never", Role::Sidecar, 0, true),
            ("Always", Role::Ephemeral, 1, false),
        ];
        for (policy, role, code, want) in cases {
            let pod =
                samples::pod(json!({"restartPolicy": policy, "containers": [{"name": "web"}]}));
            let container = &spec(&pod).containers[0];
            assert_eq!(restarts_after(&pod, role, container, code), want, "{policy} {role:?}");
        }
    }

    #[test]
    fn a_rule_of_the_container_restarts_on_its_exit_codes() {
        let pod = samples::pod(json!({"restartPolicy": "Never", "containers": [{
            "name": "web", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart",
                                    "exitCodes": {"operator": "In", "values": [42]}}]}]}));
        let container = &spec(&pod).containers[0];
        assert!(restarts_after(&pod, Role::Main, container, 42));
        assert!(!restarts_after(&pod, Role::Main, container, 1));
    }
}
