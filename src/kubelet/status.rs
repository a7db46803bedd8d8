//! Builds the status of a pod from what the runtime holds and what the probes say.
//!
//! Pure; never writes. `status_writer.rs` sends it to the API server.

mod forced;
mod granted;
mod last_words;
mod phase;

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod,
    PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use runtime::cri;

use crate::observed::{self, PodRuntime};
use crate::plan::{self, Verdicts};
use crate::pod::{self, ProbeKind, Role};
use crate::{images, resources, restart_all};
pub use forced::{blocked, disrupted, failed};
use phase::phase;

/// Why a container does not run yet: reason and message, by container name.
pub type Waiting = HashMap<String, (String, String)>;

pub struct Inputs<'a> {
    pub pod: &'a Pod,
    /// The status last built; times of transitions and lost containers come from it.
    pub old: &'a PodStatus,
    pub runtime: &'a PodRuntime,
    /// What runs the containers, as it stands before their ids.
    pub runtime_name: &'a str,
    pub features: cri::Features,
    pub verdicts: &'a Verdicts,
    pub waiting: &'a Waiting,
    pub host_ips: &'a [IpAddr],
    pub host: resources::Host,
    pub start_time: Timestamp,
    /// Nothing of the pod runs, and nothing will be started again.
    pub ended: bool,
    /// All containers are being removed to begin anew.
    pub restarting: bool,
    pub now: Timestamp,
}

pub fn build(inputs: &Inputs<'_>) -> PodStatus {
    let pod = inputs.pod;
    let of = |wanted: &dyn Fn(Role) -> bool, old: &Option<Vec<ContainerStatus>>| {
        let statuses: Vec<ContainerStatus> = pod::containers(pod)
            .iter()
            .filter(|(role, _)| wanted(*role))
            .map(|(role, container)| container_status(inputs, *role, container, old))
            .collect();
        (!statuses.is_empty()).then_some(statuses)
    };
    let main = of(&|role| role == Role::Main, &inputs.old.container_statuses);
    let init =
        of(&|role| matches!(role, Role::Init | Role::Sidecar), &inputs.old.init_container_statuses);
    let ephemeral = of(&|role| role == Role::Ephemeral, &inputs.old.ephemeral_container_statuses);
    let phase = phase(
        pod,
        init.as_deref().unwrap_or_default(),
        main.as_deref().unwrap_or_default(),
        inputs.ended,
    );
    let (pod_ips, host_ips) = addresses(inputs);
    let whole = pod::spec(pod).resources.clone().or_else(|| resources::of_all_containers(pod));
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        container_statuses: main,
        init_container_statuses: init,
        ephemeral_container_statuses: ephemeral,
        host_ip: host_ips.first().map(|host| host.ip.clone()),
        host_ips: Some(host_ips),
        pod_ip: pod_ips.first().map(|pod| pod.ip.clone()),
        pod_ips: (!pod_ips.is_empty()).then_some(pod_ips),
        qos_class: Some(resources::qos(pod).as_str().to_owned()),
        start_time: Some(seconds(inputs.start_time)),
        observed_generation: pod.metadata.generation,
        allocated_resources: whole.as_ref().and_then(|it| it.requests.clone()),
        resources: whole,
        ..PodStatus::default()
    };
    last_words::share(&mut status, pod::containers(pod).len());
    status.conditions = Some(conditions(inputs, &status));
    status
}

/// meta/v1 Time has whole seconds.
pub fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

fn nanos(at: i64) -> Option<Time> {
    (at > 0).then(|| Timestamp::from_nanosecond(i128::from(at)).ok().map(seconds)).flatten()
}

fn addresses(inputs: &Inputs<'_>) -> (Vec<PodIP>, Vec<HostIP>) {
    let host_ips: Vec<HostIP> =
        inputs.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect();
    let pod_ips: Vec<PodIP> = if pod::is_host_network(inputs.pod) {
        inputs.host_ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()
    } else {
        match inputs.runtime.newest_sandbox() {
            Some(sandbox) if !sandbox.ips.is_empty() => {
                sandbox.ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()
            }
            _ => inputs.old.pod_ips.clone().unwrap_or_default(),
        }
    };
    (pod_ips, host_ips)
}

fn terminated(runtime_name: &str, container: &cri::Container) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(container_id(runtime_name, container)),
        exit_code: container.exit_code,
        finished_at: nanos(container.finished_at),
        message: (!container.message.is_empty()).then(|| container.message.clone()),
        reason: Some(match container.reason.as_str() {
            "" if container.exit_code == 0 => "Completed".to_owned(),
            "" => "Error".to_owned(),
            reason => reason.to_owned(),
        }),
        signal: None,
        started_at: nanos(container.started_at),
    }
}

fn container_id(runtime_name: &str, container: &cri::Container) -> String {
    format!("{runtime_name}://{}", container.id)
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..ContainerState::default()
    }
}

fn terminated_state(state: ContainerStateTerminated) -> ContainerState {
    ContainerState { terminated: Some(state), ..ContainerState::default() }
}

/// A container that the runtime no longer knows although it ran.
fn lost(message: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some(message.into()),
        ..ContainerStateTerminated::default()
    }
}

fn container_status(
    inputs: &Inputs<'_>,
    role: Role,
    container: &Container,
    old: &Option<Vec<ContainerStatus>>,
) -> ContainerStatus {
    let old = old.iter().flatten().find(|status| status.name == container.name);
    let default_reason = if pod::init_containers(inputs.pod).is_empty() || role == Role::Ephemeral {
        "ContainerCreating"
    } else {
        "PodInitializing"
    };
    let mut out = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(waiting_state(default_reason, "")),
        last_state: Some(ContainerState::default()),
        restart_count: old.map_or(0, |old| old.restart_count),
        ..ContainerStatus::default()
    };
    let mut all = inputs.runtime.all_of(&container.name);
    let current = all.next();
    if let Some(current) = current {
        read_current(&mut out, inputs.runtime_name, current);
        let previous = all.find(|before| before.state == cri::ContainerState::Exited);
        out.last_state = match previous {
            Some(before) => Some(terminated_state(terminated(inputs.runtime_name, before))),
            None => old.and_then(|old| old.last_state.clone()).or(out.last_state),
        };
        if current.state == cri::ContainerState::Created {
            out.state = Some(waiting_state(default_reason, ""));
        }
    } else if let Some(old) = old {
        let ran = old.container_id.is_some() && role != Role::Ephemeral;
        if inputs.restarting && ran {
            restart_all::removed(&mut out, old);
        } else {
            read_old(&mut out, old);
        }
    } else if role == Role::Init && has_begun(inputs) {
        out.state = Some(terminated_state(ContainerStateTerminated {
            reason: Some("Completed".to_owned()),
            message: Some("The runtime has it no more, and what comes after it runs".to_owned()),
            ..ContainerStateTerminated::default()
        }));
    }
    let ended_state = out.state.as_ref().is_some_and(|state| state.terminated.is_some());
    let comes_back = match current {
        None => !ended_state,
        Some(current) => match current.state {
            cri::ContainerState::Running => false,
            cri::ContainerState::Created | cri::ContainerState::Unknown => true,
            cri::ContainerState::Exited => {
                pod::restarts_after(inputs.pod, role, container, current.exit_code)
            }
        },
    };
    if comes_back
        && !inputs.ended
        && inputs.pod.metadata.deletion_timestamp.is_none()
        && let Some((reason, message)) = inputs.waiting.get(&container.name)
    {
        if ended_state {
            out.last_state = out.state.take();
        }
        out.state = Some(waiting_state(reason, message));
    }
    if inputs.ended && out.state.as_ref().is_none_or(|state| state.terminated.is_none()) {
        // Only a container that once ran can have been lost.
        if current.is_some() || out.container_id.is_some() {
            out.state = Some(terminated_state(lost(
                "The container could not be located when the pod was terminated",
            )));
        }
    }
    readiness(inputs, role, container, current, &mut out);
    out.volume_mounts = granted::volume_mounts(container, inputs.features);
    out.stop_signal = container.lifecycle.as_ref().and_then(|it| it.stop_signal.clone());
    let resources = container.resources.clone().unwrap_or_default();
    let says = resources.requests.is_some() || resources.limits.is_some();
    // Clients read the resources of every container that is there, if it has none.
    if role != Role::Ephemeral && (says || current.is_some()) {
        out.allocated_resources = resources.requests.clone();
        out.resources = Some(match current {
            Some(current) => granted::actual(inputs, role, container, current, &resources),
            None => resources,
        });
    }
    out
}

fn has_begun(inputs: &Inputs<'_>) -> bool {
    let runs = |name: &str| inputs.runtime.running().any(|it| it.metadata.name == name);
    let all = pod::containers(inputs.pod);
    all.iter().any(|(role, container)| *role == Role::Main && runs(&container.name))
}

fn read_current(out: &mut ContainerStatus, runtime_name: &str, current: &cri::Container) {
    out.container_id = Some(container_id(runtime_name, current));
    out.image_id = current.image_ref.clone();
    // A runtime that names the image by its id says what the user wrote beside it.
    out.image = match (current.image.as_str(), current.user_specified_image.as_str()) {
        ("", "") => std::mem::take(&mut out.image),
        (id, user) if (id.is_empty() || id.starts_with("sha256:")) && !user.is_empty() => {
            images::full_name(user)
        }
        (name, _) => name.to_owned(),
    };
    out.restart_count = observed::restart_count(current) as i32;
    out.user = current.user.as_ref().map(|user| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: Some(user.supplemental_groups.clone()),
        }),
    });
    match current.state {
        cri::ContainerState::Running => {
            out.state = Some(ContainerState {
                running: Some(ContainerStateRunning { started_at: nanos(current.started_at) }),
                ..ContainerState::default()
            });
        }
        cri::ContainerState::Exited => {
            out.state = Some(terminated_state(terminated(runtime_name, current)))
        }
        cri::ContainerState::Created | cri::ContainerState::Unknown => {}
    }
}

fn read_old(out: &mut ContainerStatus, old: &ContainerStatus) {
    out.last_state = old.last_state.clone().or(out.last_state.take());
    out.container_id = old.container_id.clone();
    out.image_id = old.image_id.clone();
    let Some(state) = &old.state else { return };
    if state.terminated.is_some() {
        out.state = old.state.clone();
        out.image = old.image.clone();
    } else if state.running.is_some() {
        out.last_state = Some(terminated_state(lost(
            "The container could not be located when the pod was deleted.  \
             The container used to be Running",
        )));
        out.restart_count = old.restart_count + 1;
    }
}

fn readiness(
    inputs: &Inputs<'_>,
    role: Role,
    container: &Container,
    current: Option<&cri::Container>,
    out: &mut ContainerStatus,
) {
    let running = out.state.as_ref().is_some_and(|state| state.running.is_some());
    let started =
        running && current.is_some_and(|it| plan::is_started(container, it, inputs.verdicts));
    out.started = Some(started);
    out.ready = match role {
        Role::Init => out
            .state
            .as_ref()
            .and_then(|state| state.terminated.as_ref())
            .is_some_and(|ended| ended.exit_code == 0),
        Role::Ephemeral => false,
        Role::Main | Role::Sidecar => {
            started
                && (container.readiness_probe.is_none()
                    || current.is_some_and(|it| {
                        inputs.verdicts.get(&(it.id.clone(), ProbeKind::Readiness)) == Some(&true)
                    }))
        }
    };
}

/// The state of a container as far as the phase asks.
fn ended_code(state: Option<&ContainerState>) -> Option<i32> {
    state?.terminated.as_ref().map(|ended| ended.exit_code)
}

fn conditions(inputs: &Inputs<'_>, status: &PodStatus) -> Vec<PodCondition> {
    let phase = status.phase.as_deref().unwrap_or_default();
    let ready_to_start = inputs
        .runtime
        .ready_sandbox()
        .is_some_and(|sandbox| pod::is_host_network(inputs.pod) || !sandbox.ips.is_empty());
    let containers_ready = containers_ready(inputs.pod, status, phase);
    let ready = ready(inputs, &containers_ready);
    let mut out = vec![
        condition("PodReadyToStartContainers", ready_to_start, "", ""),
        initialized(inputs.pod, status, phase),
        ready,
        containers_ready,
        condition("PodScheduled", true, "", ""),
    ];
    let has_left = inputs.runtime.containers.iter().any(|it| restart_all::removes(inputs.pod, it));
    let restarting = inputs.restarting && has_left;
    out.extend(restart_all::condition(inputs.pod, phase, restarting));
    let api = inputs.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let old = inputs.old.conditions.as_ref().or(api);
    for condition in &mut out {
        condition.observed_generation = inputs.pod.metadata.generation;
        let before = old.into_iter().flatten().find(|old| old.type_ == condition.type_);
        condition.last_transition_time = match before {
            Some(before) if before.status == condition.status => {
                before.last_transition_time.clone()
            }
            _ => Some(seconds(inputs.now)),
        };
    }
    out
}

fn condition(type_: &str, status: bool, reason: &str, message: &str) -> PodCondition {
    PodCondition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: (!reason.is_empty()).then(|| reason.to_owned()),
        message: (!message.is_empty()).then(|| message.to_owned()),
        ..PodCondition::default()
    }
}

fn initialized(pod: &Pod, status: &PodStatus, phase: &str) -> PodCondition {
    const TYPE: &str = "Initialized";
    if phase == "Succeeded" {
        return condition(TYPE, true, "PodCompleted", "");
    }
    let has_begun = status.container_statuses.iter().flatten().any(|status| {
        status.started == Some(true)
            || status.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some())
            || ended_code(status.last_state.as_ref()).is_some()
    });
    let incomplete: Vec<&str> = pod::init_containers(pod)
        .iter()
        .zip(status.init_container_statuses.iter().flatten())
        .filter(|(container, status)| {
            if pod::is_sidecar(container) { status.started != Some(true) } else { !status.ready }
        })
        .map(|(_, status)| status.name.as_str())
        .collect();
    if has_begun || incomplete.is_empty() {
        return condition(TYPE, true, "", "");
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    condition(TYPE, false, "ContainersNotInitialized", &message)
}

fn containers_ready(pod: &Pod, status: &PodStatus, phase: &str) -> PodCondition {
    const TYPE: &str = "ContainersReady";
    match phase {
        "Succeeded" => return condition(TYPE, false, "PodCompleted", ""),
        "Failed" => return condition(TYPE, false, "PodFailed", ""),
        _ => {}
    }
    let sidecars = pod::init_containers(pod)
        .iter()
        .zip(status.init_container_statuses.iter().flatten())
        .filter(|(container, _)| pod::is_sidecar(container))
        .map(|(_, status)| status);
    let unready: Vec<&str> = sidecars
        .chain(status.container_statuses.iter().flatten())
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    if unready.is_empty() {
        return condition(TYPE, true, "", "");
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    condition(TYPE, false, "ContainersNotReady", &message)
}

fn ready(inputs: &Inputs<'_>, containers: &PodCondition) -> PodCondition {
    if containers.status != "True" {
        return PodCondition { type_: "Ready".into(), ..containers.clone() };
    }
    let given = inputs.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut missing: Vec<String> = Vec::new();
    for gate in pod::spec(inputs.pod).readiness_gates.iter().flatten() {
        let type_ = &gate.condition_type;
        match given.into_iter().flatten().find(|condition| condition.type_ == *type_) {
            Some(condition) if condition.status == "True" => {}
            Some(condition) => missing.push(format!(
                "the status of pod readiness gate \"{type_}\" is not \"True\", but {}",
                condition.status
            )),
            None => missing.push(format!(
                "corresponding condition of pod readiness gate \"{type_}\" does not exist."
            )),
        }
    }
    if missing.is_empty() {
        return condition("Ready", true, "", "");
    }
    condition("Ready", false, "ReadinessGatesNotReady", &missing.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::samples::{container, sandbox};
    use crate::pod::samples::pod;
    use runtime::cri::{ContainerState as State, SandboxState};
    use serde_json::{Value, json};

    struct World {
        pod: Pod,
        runtime: PodRuntime,
        verdicts: Verdicts,
        waiting: Waiting,
        old: PodStatus,
        ended: bool,
        restarting: bool,
    }

    impl World {
        fn new(spec: Value, containers: Vec<cri::Container>) -> Self {
            Self {
                pod: pod(spec),
                runtime: PodRuntime {
                    sandboxes: vec![sandbox("s0", SandboxState::Ready, 0)],
                    containers,
                },
                verdicts: Verdicts::new(),
                waiting: Waiting::new(),
                old: PodStatus::default(),
                ended: false,
                restarting: false,
            }
        }

        fn build(&self) -> PodStatus {
            build(&Inputs {
                pod: &self.pod,
                host: resources::Host { memory_bytes: 1 << 30, ..resources::Host::default() },
                old: &self.old,
                runtime: &self.runtime,
                runtime_name: "coracle",
                features: cri::Features::default(),
                verdicts: &self.verdicts,
                waiting: &self.waiting,
                host_ips: &["192.0.2.1".parse().unwrap()],
                start_time: Timestamp::from_second(1_800_000_000).unwrap(),
                ended: self.ended,
                restarting: self.restarting,
                now: Timestamp::from_second(1_800_000_100).unwrap(),
            })
        }
    }

    fn shows(status: &PodStatus) -> String {
        let conditions: Vec<String> = status
            .conditions
            .iter()
            .flatten()
            .map(|c| format!("{}={}", &c.type_[..5], &c.status[..1]))
            .collect();
        let containers: Vec<String> = status
            .init_container_statuses
            .iter()
            .flatten()
            .chain(status.container_statuses.iter().flatten())
            .map(|c| {
                let state = c.state.as_ref().unwrap();
                let state = if let Some(waiting) = &state.waiting {
                    waiting.reason.clone().unwrap_or_default()
                } else if let Some(ended) = &state.terminated {
                    format!("{}({})", ended.reason.clone().unwrap(), ended.exit_code)
                } else {
                    "running".into()
                };
                format!("{}:{state}{}", c.name, if c.ready { "+" } else { "" })
            })
            .collect();
        format!(
            "{} {} {}",
            status.phase.as_deref().unwrap(),
            containers.join(","),
            conditions.join(",")
        )
    }

    #[test]
    fn phases_and_conditions_follow_the_containers() {
        let one = |policy: &str| json!({"restartPolicy": policy, "containers": [{"name": "a"}]});
        let with_init = |policy: &str| {
            json!({"restartPolicy": policy, "containers": [{"name": "a"}],
                   "initContainers": [{"name": "i"}]})
        };
        let up = "PodRe=T,Initi=T,Ready=T,Conta=T,PodSc=T";
        let not_ready = "PodRe=T,Initi=T,Ready=F,Conta=F,PodSc=T";
        let not_initialized = "PodRe=T,Initi=F,Ready=F,Conta=F,PodSc=T";
        let cases = [
            (one("Always"), vec![], format!("Pending a:ContainerCreating {not_ready}")),
            (
                one("Always"),
                vec![container("a", State::Running, 0)],
                format!("Running a:running+ {up}"),
            ),
            (
                one("Always"),
                vec![container("a", State::Exited, 0)],
                format!("Running a:Completed(0) {not_ready}"),
            ),
            (
                one("Never"),
                vec![container("a", State::Exited, 0)],
                format!("Succeeded a:Completed(0) {not_ready}"),
            ),
            (
                one("Never"),
                vec![container("a", State::Exited, 3)],
                format!("Failed a:Error(3) {not_ready}"),
            ),
            (
                with_init("Always"),
                vec![],
                format!("Pending i:PodInitializing,a:PodInitializing {not_initialized}"),
            ),
            (
                with_init("Always"),
                vec![container("i", State::Exited, 1)],
                format!("Pending i:Error(1),a:PodInitializing {not_initialized}"),
            ),
            (
                with_init("Never"),
                vec![container("i", State::Exited, 1)],
                format!("Failed i:Error(1),a:PodInitializing {not_initialized}"),
            ),
            (
                with_init("Always"),
                vec![container("a", State::Running, 0), container("i", State::Exited, 0)],
                format!("Running i:Completed(0)+,a:running+ {up}"),
            ),
        ];
        for (spec, containers, want) in cases {
            assert_eq!(shows(&World::new(spec, containers).build()), want);
        }
    }

    #[test]
    fn what_a_rule_restarts_is_not_over() {
        let spec = |action: &str| {
            json!({"restartPolicy": "Never", "containers": [
                {"name": "a", "restartPolicy": "Never", "restartPolicyRules": [
                    {"action": action, "exitCodes": {"operator": "In", "values": [42]}}]},
                {"name": "b"}]})
        };
        let ends = |a| vec![container("a", State::Exited, a), container("b", State::Exited, 1)];
        for action in ["Restart", restart_all::ACTION] {
            for (code, phase) in [(42, "Running"), (1, "Failed")] {
                let status = World::new(spec(action), ends(code)).build();
                assert_eq!(status.phase.as_deref(), Some(phase), "{action} {code}");
            }
        }
    }

    #[test]
    fn removed_to_begin_anew_a_pod_is_neither_failed_nor_lost() {
        let rules = json!([{"action": restart_all::ACTION,
                            "exitCodes": {"operator": "In", "values": [42]}}]);
        let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}],
            "containers": [{"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}]});
        let both = vec![container("a", State::Exited, 42), container("i", State::Exited, 0)];
        let mut world = World::new(spec, both);
        world.restarting = true;
        let restarting = |status: &PodStatus| {
            let all = status.conditions.iter().flatten();
            let found = all.filter(|it| it.type_ == restart_all::CONDITION);
            found.map(|it| it.status.clone()).collect::<String>()
        };
        world.old = world.build();
        assert_eq!(restarting(&world.old), "True");
        world.runtime.containers.clear();
        let removed = world.build();
        assert_eq!(restarting(&removed), "False");
        let says = "Running i:RestartingAllContainers,a:RestartingAllContainers";
        assert!(shows(&removed).starts_with(says), "{}", shows(&removed));
        let counts = |status: &PodStatus| -> Vec<i32> {
            let init = status.init_container_statuses.iter().flatten();
            init.chain(status.container_statuses.iter().flatten())
                .map(|it| it.restart_count)
                .collect()
        };
        assert_eq!(counts(&removed), [1, 1]);
        // The init container runs again.
        world.old = removed;
        world.restarting = false;
        world.runtime.containers = vec![container("i", State::Running, 0)];
        let again = world.build();
        let says = "Running i:running,a:PodInitializing PodRe=T,Initi=T";
        assert!(shows(&again).starts_with(says), "{}", shows(&again));
        assert_eq!(counts(&again)[1], 1);
    }

    #[test]
    fn what_ran_before_the_others_and_is_forgotten_has_ended_well() {
        let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
        let init = |containers| {
            let status = World::new(spec.clone(), containers).build();
            status.init_container_statuses.unwrap().remove(0).state.unwrap()
        };
        assert_eq!(init(vec![]).waiting.unwrap().reason.as_deref(), Some("PodInitializing"));
        let ended = init(vec![container("a", State::Running, 0)]).terminated.unwrap();
        assert_eq!((ended.reason.as_deref(), ended.exit_code), (Some("Completed"), 0));
    }

    #[test]
    fn a_container_that_comes_back_waits_and_shows_how_it_ended() {
        let mut world = World::new(
            json!({"containers": [{"name": "a"}]}),
            vec![container("a", State::Exited, 2)],
        );
        world.waiting.insert("a".into(), ("CrashLoopBackOff".into(), "back-off".into()));
        let status = world.build();
        assert!(shows(&status).starts_with("Running a:CrashLoopBackOff "), "{}", shows(&status));
        let a = &status.container_statuses.unwrap()[0];
        let last = a.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!((last.exit_code, last.container_id.as_deref()), (2, Some("coracle://id-a")));
        assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.5"));
        assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn resources_are_told_of_containers_that_have_none_and_of_the_pod_that_has_some() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let status = World::new(spec, vec![container("a", State::Running, 0)]).build();
        let told: Vec<_> =
            status.container_statuses.iter().flatten().map(|it| it.resources.clone()).collect();
        assert_eq!(told, [Some(Default::default()), None]);
        assert_eq!((status.resources, status.allocated_resources), (None, None));
        let asks = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let spec = json!({"containers": [{"name": "a", "resources": asks("20m")},
            {"name": "b", "resources": {"requests": {"cpu": "1", "memory": "3Mi"},
                                        "limits": {"memory": "4Mi"}}}],
            "initContainers": [{"name": "i", "resources": asks("30m")}]});
        let status = World::new(spec, vec![]).build();
        let whole = json!({"requests": {"cpu": "1020m", "memory": "3Mi"},
                           "limits": {"memory": "4Mi"}});
        assert_eq!(json!(status.resources), whole);
        assert_eq!(json!(status.allocated_resources), whole["requests"]);
    }

    #[test]
    fn probes_decide_started_and_ready() {
        let spec = json!({"containers": [{"name": "a", "startupProbe": {}, "readinessProbe": {}}]});
        let mut world = World::new(spec, vec![container("a", State::Running, 0)]);
        let read = |world: &World| {
            let a = &world.build().container_statuses.unwrap()[0];
            (a.started.unwrap(), a.ready)
        };
        assert_eq!(read(&world), (false, false));
        world.verdicts.insert(("id-a".into(), ProbeKind::Startup), true);
        assert_eq!(read(&world), (true, false));
        world.verdicts.insert(("id-a".into(), ProbeKind::Readiness), true);
        assert_eq!(read(&world), (true, true));
    }

    #[test]
    fn a_pod_waits_for_its_readiness_gates() {
        let spec = json!({"containers": [{"name": "a"}],
                          "readinessGates": [{"conditionType": "x/a"}, {"conditionType": "x/b"}]});
        let mut world = World::new(spec, vec![container("a", State::Running, 0)]);
        let mut says = |conditions: Value| {
            world.pod.status = serde_json::from_value(json!({"conditions": conditions})).unwrap();
            let all = world.build().conditions.unwrap();
            let ready = all.into_iter().find(|it| it.type_ == "Ready").unwrap();
            (ready.status, ready.message.unwrap_or_default())
        };
        let (status, message) = says(json!([{"type": "x/a", "status": "Unknown"}]));
        assert_eq!(status, "False");
        assert_eq!(
            message,
            "the status of pod readiness gate \"x/a\" is not \"True\", but Unknown, \
             corresponding condition of pod readiness gate \"x/b\" does not exist."
        );
        let both = json!([{"type": "x/a", "status": "True"}, {"type": "x/b", "status": "True"}]);
        assert_eq!(says(both).0, "True");
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let mut world = World::new(
            json!({"containers": [{"name": "a"}]}),
            vec![container("a", State::Running, 0)],
        );
        let mut old = world.build();
        for condition in old.conditions.iter_mut().flatten() {
            condition.last_transition_time = Some(Time(Timestamp::from_second(5).unwrap()));
        }
        world.old = old;
        let again = world.build();
        assert!(
            again.conditions.iter().flatten().all(|condition| condition
                .last_transition_time
                .as_ref()
                .unwrap()
                .0
                .as_second()
                == 5)
        );
    }

    #[test]
    fn a_lost_container_counts_as_killed_and_an_ended_pod_has_ended_containers() {
        let mut world = World::new(
            json!({"containers": [{"name": "a"}]}),
            vec![container("a", State::Running, 0)],
        );
        world.old = world.build();
        world.runtime.containers.clear();
        let status = world.build();
        let a = &status.container_statuses.as_ref().unwrap()[0];
        assert_eq!(a.restart_count, 1);
        assert_eq!(ended_code(a.last_state.as_ref()), Some(137));
        world.ended = true;
        assert!(shows(&world.build()).starts_with("Failed a:ContainerStatusUnknown(137)"));
    }
}
