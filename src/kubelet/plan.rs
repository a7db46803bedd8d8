//! Decides what a pod needs next: a sandbox, containers started, containers killed.
//!
//! Pure: sees the pod, what the runtime holds and what the probes say. Never calls the
//! runtime; `apply.rs` does, and may repeat any step.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use runtime::cri::{self, ContainerState, NamespaceMode, SandboxState};

use crate::observed::{ANNOTATION_HASH, PodRuntime};
use crate::pod::{self, ProbeKind, Role};

/// What the probes of a pod's containers have found, by container id.
pub type Verdicts = HashMap<(String, ProbeKind), bool>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    pub container_id: String,
    pub name: String,
    /// As the Killing event says it.
    pub message: String,
    pub cause: KillCause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillCause {
    Liveness,
    Startup,
    Changed,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub role: Role,
    pub name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Everything of the pod must stop (and a new sandbox may follow).
    pub stop_pod: bool,
    /// The attempt number of a sandbox to make.
    pub create_sandbox: Option<u32>,
    pub kill: Vec<Kill>,
    /// In order; a later start does not depend on an earlier one.
    pub start: Vec<Start>,
}

pub fn plan(pod: &Pod, runtime: &PodRuntime, verdicts: &Verdicts) -> Plan {
    let mut plan = Plan::default();
    if let Some(attempt) = needed_sandbox(pod, runtime) {
        plan_from_the_start(pod, runtime, attempt, &mut plan);
        return plan;
    }
    for container in pod::ephemeral_containers(pod) {
        if runtime.container(&container.name).is_none() {
            plan.start.push(Start { role: Role::Ephemeral, name: container.name });
        }
    }
    if !plan_init_containers(pod, runtime, verdicts, &mut plan) {
        return plan;
    }
    let mut kept = 0;
    for container in &pod::spec(pod).containers {
        kept += u32::from(plan_main_container(pod, runtime, verdicts, container, &mut plan));
    }
    let starts_main = plan.start.iter().any(|start| start.role == Role::Main);
    if kept == 0 && !starts_main {
        plan = Plan { stop_pod: true, ..Plan::default() };
    }
    plan
}

/// The attempt of the sandbox that is missing; None when the present one will do.
fn needed_sandbox(pod: &Pod, runtime: &PodRuntime) -> Option<u32> {
    let Some(newest) = runtime.newest_sandbox() else { return Some(0) };
    let next = Some(newest.metadata.attempt + 1);
    let ready = runtime.sandboxes.iter().filter(|s| s.state == SandboxState::Ready).count();
    if ready > 1 || newest.state != SandboxState::Ready {
        return next;
    }
    let host = pod::is_host_network(pod);
    if host != (newest.network == NamespaceMode::Node) {
        return next;
    }
    if !host && newest.ips.is_empty() {
        return next;
    }
    None
}

fn plan_from_the_start(pod: &Pod, runtime: &PodRuntime, attempt: u32, plan: &mut Plan) {
    plan.stop_pod = !runtime.sandboxes.is_empty();
    let never = pod::restart_policy(pod) == "Never"
        && !pod::containers(pod).iter().any(|(_, c)| c.restart_policy_rules.is_some());
    if never && attempt != 0 && !runtime.containers.is_empty() {
        plan.stop_pod = true;
        return;
    }
    let mains: Vec<Start> = pod::spec(pod)
        .containers
        .iter()
        .filter(|container| {
            runtime.container(&container.name).is_none_or(|last| {
                last.state != ContainerState::Exited
                    || pod::restarts_after(pod, Role::Main, container, last.exit_code)
            })
        })
        .map(|container| Start { role: Role::Main, name: container.name.clone() })
        .collect();
    if mains.is_empty() {
        plan.stop_pod = true;
        return;
    }
    plan.create_sandbox = Some(attempt);
    match pod::init_containers(pod).first() {
        Some(first) => plan.start.push(Start { role: init_role(first), name: first.name.clone() }),
        None => plan.start = mains,
    }
}

fn init_role(container: &Container) -> Role {
    if pod::is_sidecar(container) { Role::Sidecar } else { Role::Init }
}

/// The newest container of `name` in the current sandbox: older sandboxes' init
/// containers say nothing about this one.
fn in_sandbox<'a>(runtime: &'a PodRuntime, name: &'a str) -> Option<&'a cri::Container> {
    let sandbox = &runtime.newest_sandbox()?.id;
    runtime.all_of(name).find(|container| &container.sandbox_id == sandbox)
}

/// True once main containers may run. Walks backwards, since the containers of early
/// init steps may already have been removed.
fn plan_init_containers(
    pod: &Pod,
    runtime: &PodRuntime,
    verdicts: &Verdicts,
    plan: &mut Plan,
) -> bool {
    let init = pod::init_containers(pod);
    if init.is_empty() {
        return true;
    }
    let mut initialized =
        pod::spec(pod).containers.iter().any(|c| in_sandbox(runtime, &c.name).is_some());
    let mut reached = initialized;
    let mut starts: Vec<usize> = Vec::new();
    for (index, container) in init.iter().enumerate().rev() {
        let role = init_role(container);
        let Some(status) = in_sandbox(runtime, &container.name) else {
            if reached && role == Role::Sidecar {
                starts.push(index);
            }
            continue;
        };
        if reached && role == Role::Init {
            continue;
        }
        let mut advance = false;
        match status.state {
            ContainerState::Created => starts.push(index),
            ContainerState::Running if role == Role::Init => {}
            ContainerState::Running => {
                if let Some(kill) = sidecar_kill(container, status, verdicts) {
                    plan.kill.push(kill);
                    starts.push(index);
                } else {
                    advance = is_started(container, status, verdicts);
                }
            }
            ContainerState::Exited if role == Role::Init && status.exit_code == 0 => advance = true,
            ContainerState::Exited | ContainerState::Unknown => {
                let code =
                    if status.state == ContainerState::Unknown { 137 } else { status.exit_code };
                if !pod::restarts_after(pod, role, container, code) {
                    *plan = Plan { stop_pod: true, ..Plan::default() };
                    return false;
                }
                if status.state == ContainerState::Unknown {
                    plan.kill.push(unknown(container, status));
                }
                starts.push(index);
            }
        }
        if advance && !reached {
            if index + 1 == init.len() {
                initialized = true;
            } else {
                starts.push(index + 1);
            }
        }
        reached = true;
    }
    if !reached {
        starts.push(0);
    }
    starts.sort_unstable();
    starts.dedup();
    plan.start.extend(
        starts
            .into_iter()
            .map(|index| Start { role: init_role(&init[index]), name: init[index].name.clone() }),
    );
    initialized
}

/// Running and, where it has a startup probe, past it.
pub fn is_started(container: &Container, status: &cri::Container, verdicts: &Verdicts) -> bool {
    status.state == ContainerState::Running
        && (container.startup_probe.is_none()
            || verdicts.get(&(status.id.clone(), ProbeKind::Startup)) == Some(&true))
}

/// Another image, or another name, makes another container.
pub fn has_changed(container: &Container, status: &cri::Container) -> bool {
    status
        .annotations
        .get(ANNOTATION_HASH)
        .is_some_and(|hash| *hash != pod::container_hash(container))
}

fn failed_probe(status: &cri::Container, verdicts: &Verdicts) -> Option<KillCause> {
    let failed = |kind| verdicts.get(&(status.id.clone(), kind)) == Some(&false);
    if failed(ProbeKind::Liveness) {
        Some(KillCause::Liveness)
    } else {
        failed(ProbeKind::Startup).then_some(KillCause::Startup)
    }
}

fn kill(
    container: &Container,
    status: &cri::Container,
    cause: KillCause,
    noun: &str,
    restart: bool,
) -> Kill {
    let what = match cause {
        KillCause::Liveness => "failed liveness probe",
        KillCause::Startup => "failed startup probe",
        KillCause::Changed => "definition changed",
        KillCause::Unknown => "is in unknown state, try killing it before another restart",
    };
    let suffix = if restart { ", will be restarted" } else { "" };
    Kill {
        container_id: status.id.clone(),
        name: container.name.clone(),
        message: format!("{noun} {} {what}{suffix}", container.name),
        cause,
    }
}

fn unknown(container: &Container, status: &cri::Container) -> Kill {
    kill(container, status, KillCause::Unknown, "Container", false)
}

fn sidecar_kill(
    container: &Container,
    status: &cri::Container,
    verdicts: &Verdicts,
) -> Option<Kill> {
    let cause = if has_changed(container, status) {
        KillCause::Changed
    } else {
        failed_probe(status, verdicts)?
    };
    Some(kill(container, status, cause, "Init container", cause != KillCause::Startup))
}

/// True if a running container is kept as it is.
fn plan_main_container(
    pod: &Pod,
    runtime: &PodRuntime,
    verdicts: &Verdicts,
    container: &Container,
    plan: &mut Plan,
) -> bool {
    let start = Start { role: Role::Main, name: container.name.clone() };
    let Some(status) = runtime.container(&container.name) else {
        plan.start.push(start);
        return false;
    };
    let cause = match status.state {
        ContainerState::Created => {
            plan.start.push(start);
            return false;
        }
        ContainerState::Unknown => {
            plan.kill.push(unknown(container, status));
            plan.start.push(start);
            return false;
        }
        ContainerState::Exited => {
            if pod::restarts_after(pod, Role::Main, container, status.exit_code) {
                plan.start.push(start);
            }
            return false;
        }
        ContainerState::Running if has_changed(container, status) => KillCause::Changed,
        ContainerState::Running => match failed_probe(status, verdicts) {
            Some(cause) => cause,
            None => return true,
        },
    };
    // 137 is how it will have ended.
    let restart =
        cause == KillCause::Changed || pod::restarts_after(pod, Role::Main, container, 137);
    plan.kill.push(kill(container, status, cause, "Container", restart));
    if restart {
        plan.start.push(start);
    }
    // It is being killed; what follows is planned when it has ended.
    !restart
}

/// The order in which a pod's running containers end: main and ephemeral ones at once,
/// then sidecars, the last one first.
pub fn shutdown_order(pod: &Pod) -> Vec<Vec<String>> {
    let mut first: Vec<String> = Vec::new();
    let mut sidecars: Vec<Vec<String>> = Vec::new();
    for (role, container) in pod::containers(pod) {
        match role {
            Role::Sidecar => sidecars.push(vec![container.name]),
            Role::Init | Role::Main | Role::Ephemeral => first.push(container.name),
        }
    }
    sidecars.reverse();
    std::iter::once(first).chain(sidecars).collect()
}

#[cfg(test)]
pub(crate) mod samples {
    use super::*;
    use std::collections::BTreeMap;

    pub fn sandbox(id: &str, state: SandboxState, attempt: u32) -> cri::PodSandbox {
        cri::PodSandbox {
            id: id.into(),
            metadata: cri::PodSandboxMetadata {
                name: "web".into(),
                namespace: "default".into(),
                uid: "uid-1".into(),
                attempt,
            },
            state,
            created_at: i64::from(attempt) + 1,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            ips: vec!["10.0.0.5".parse().unwrap()],
            network: NamespaceMode::Pod,
        }
    }

    pub fn container(name: &str, state: ContainerState, exit_code: i32) -> cri::Container {
        cri::Container {
            id: format!("id-{name}"),
            sandbox_id: "s0".into(),
            metadata: cri::ContainerMetadata { name: name.into(), attempt: 0 },
            state,
            created_at: 1_800_000_000_000_000_000,
            started_at: 1_800_000_001_000_000_000,
            finished_at: if state == ContainerState::Exited {
                1_800_000_002_000_000_000
            } else {
                0
            },
            exit_code,
            reason: match (state, exit_code) {
                (ContainerState::Exited, 0) => "Completed".into(),
                (ContainerState::Exited, _) => "Error".into(),
                _ => String::new(),
            },
            message: String::new(),
            pid: 0,
            image: "nginx".into(),
            user_specified_image: "nginx".into(),
            image_ref: "nginx@sha256:1".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            log_path: "".into(),
            mounts: vec![],
            resources: cri::LinuxResources::default(),
            user: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{container, sandbox};
    use super::*;
    use crate::pod::samples::pod;
    use ContainerState::{Created, Exited, Running, Unknown};
    use serde_json::{Value, json};

    fn with(containers: Vec<cri::Container>) -> PodRuntime {
        PodRuntime { sandboxes: vec![sandbox("s0", SandboxState::Ready, 0)], containers }
    }

    fn says(plan: &Plan) -> String {
        let mut out = Vec::new();
        if plan.stop_pod {
            out.push("stop".to_owned());
        }
        if let Some(attempt) = plan.create_sandbox {
            out.push(format!("sandbox{attempt}"));
        }
        out.extend(plan.kill.iter().map(|kill| format!("kill({})", kill.message)));
        out.extend(plan.start.iter().map(|start| format!("{:?}:{}", start.role, start.name)));
        out.join(" ")
    }

    fn spec(policy: &str) -> Value {
        json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]})
    }

    #[test]
    fn main_containers_follow_the_restart_policy() {
        let both = |state_a, code_a, state_b, code_b| {
            with(vec![container("a", state_a, code_a), container("b", state_b, code_b)])
        };
        let cases: Vec<(&str, PodRuntime, &str)> = vec![
            ("Always", PodRuntime::default(), "sandbox0 Main:a Main:b"),
            ("Always", with(vec![]), "Main:a Main:b"),
            ("Always", both(Running, 0, Running, 0), ""),
            ("Always", both(Running, 0, Exited, 0), "Main:b"),
            ("OnFailure", both(Running, 0, Exited, 0), ""),
            ("OnFailure", both(Exited, 0, Exited, 0), "stop"),
            ("OnFailure", both(Exited, 0, Exited, 1), "Main:b"),
            ("Never", both(Exited, 1, Exited, 0), "stop"),
            ("Never", both(Exited, 1, Running, 0), ""),
            ("Always", both(Created, 0, Running, 0), "Main:a"),
            (
                "Always",
                both(Unknown, 0, Running, 0),
                "kill(Container a is in unknown state, try killing it before another restart) Main:a",
            ),
        ];
        for (policy, runtime, want) in cases {
            let got = says(&plan(&pod(spec(policy)), &runtime, &Verdicts::new()));
            assert_eq!(got, want, "{policy} {runtime:?}");
        }
    }

    #[test]
    fn a_dead_sandbox_is_replaced_unless_the_pod_is_done() {
        let dead = |containers| PodRuntime {
            sandboxes: vec![sandbox("s0", SandboxState::NotReady, 0)],
            containers,
        };
        let done = vec![container("a", Exited, 0), container("b", Exited, 0)];
        let half = vec![container("a", Exited, 0), container("b", Exited, 2)];
        let cases = [
            ("Always", dead(done.clone()), "stop sandbox1 Main:a Main:b"),
            ("OnFailure", dead(half.clone()), "stop sandbox1 Main:b"),
            ("OnFailure", dead(done.clone()), "stop"),
            ("Never", dead(half), "stop"),
            ("Never", dead(vec![]), "stop sandbox1 Main:a Main:b"),
        ];
        for (policy, runtime, want) in cases {
            assert_eq!(says(&plan(&pod(spec(policy)), &runtime, &Verdicts::new())), want);
        }
    }

    #[test]
    fn init_containers_run_one_after_another() {
        let pod = |policy: &str| {
            pod(json!({"restartPolicy": policy, "containers": [{"name": "m"}],
                "initContainers": [{"name": "i1"}, {"name": "i2"}]}))
        };
        let cases = [
            ("Always", PodRuntime::default(), "sandbox0 Init:i1"),
            ("Always", with(vec![]), "Init:i1"),
            ("Always", with(vec![container("i1", Running, 0)]), ""),
            ("Always", with(vec![container("i1", Exited, 0)]), "Init:i2"),
            ("Always", with(vec![container("i1", Exited, 1)]), "Init:i1"),
            ("Never", with(vec![container("i1", Exited, 1)]), "stop"),
            (
                "Always",
                with(vec![container("i1", Exited, 0), container("i2", Exited, 0)]),
                "Main:m",
            ),
            ("Always", with(vec![container("i2", Exited, 0)]), "Main:m"),
            ("Always", with(vec![container("m", Running, 0)]), ""),
        ];
        for (policy, runtime, want) in cases {
            assert_eq!(says(&plan(&pod(policy), &runtime, &Verdicts::new())), want, "{runtime:?}");
        }
    }

    #[test]
    fn a_sidecar_gates_what_follows_and_comes_back() {
        let pod = pod(json!({"restartPolicy": "Always", "containers": [{"name": "m"}],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "startupProbe": {"periodSeconds": 1}},
                {"name": "i"}]}));
        let started: Verdicts = [(("id-s".to_owned(), ProbeKind::Startup), true)].into();
        let failed: Verdicts = [(("id-s".to_owned(), ProbeKind::Startup), false)].into();
        let running = container("s", Running, 0);
        let m = container("m", Running, 0);
        let cases = [
            (with(vec![running.clone()]), Verdicts::new(), ""),
            (with(vec![running.clone()]), started.clone(), "Init:i"),
            (with(vec![running]), failed, "kill(Init container s failed startup probe) Sidecar:s"),
            (with(vec![container("s", Exited, 0), m.clone()]), started.clone(), "Sidecar:s"),
            (with(vec![m]), started, "Sidecar:s"),
        ];
        for (runtime, verdicts, want) in cases {
            assert_eq!(says(&plan(&pod, &runtime, &verdicts)), want, "{runtime:?}");
        }
        assert_eq!(shutdown_order(&pod), [vec!["i".to_owned(), "m".into()], vec!["s".into()]]);
    }

    #[test]
    fn a_failed_probe_or_a_new_image_replaces_the_container() {
        let one = |policy: &str| {
            pod(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "x:2"}]}))
        };
        let failed: Verdicts = [(("id-a".to_owned(), ProbeKind::Liveness), false)].into();
        let running = with(vec![container("a", Running, 0)]);
        let cases = [
            ("Always", "kill(Container a failed liveness probe, will be restarted) Main:a"),
            ("Never", "kill(Container a failed liveness probe)"),
        ];
        for (policy, want) in cases {
            assert_eq!(says(&plan(&one(policy), &running, &failed)), want);
        }
        let mut changed = container("a", Running, 0);
        changed.annotations.insert(ANNOTATION_HASH.into(), "other".into());
        assert_eq!(
            says(&plan(&one("Never"), &with(vec![changed]), &Verdicts::new())),
            "kill(Container a definition changed, will be restarted) Main:a"
        );
    }

    #[test]
    fn ephemeral_containers_start_once_and_never_again() {
        let pod = pod(json!({"containers": [{"name": "a"}],
            "ephemeralContainers": [{"name": "debug"}]}));
        let a = container("a", Running, 0);
        assert_eq!(says(&plan(&pod, &with(vec![a.clone()]), &Verdicts::new())), "Ephemeral:debug");
        let ended = with(vec![a, container("debug", Exited, 1)]);
        assert_eq!(says(&plan(&pod, &ended, &Verdicts::new())), "");
    }
}
