//! The rule action RestartAllContainers: a container's end has all containers of its pod run
//! anew, init containers first, in the sandbox that is there.
//!
//! What asked for it is removed last: a kubelet that ends in between finds it again. preStop
//! hooks do not run, and there is no grace period (KEP 5532).

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod,
    PodCondition, PodStatus,
};
use runtime::cri;
use tracing::warn;

use crate::observed::PodRuntime;
use crate::pod::{self, Role};
use crate::probes;
use crate::worker::Worker;

pub const ACTION: &str = "RestartAllContainers";
pub const CONDITION: &str = "AllContainersRestarting";
const STARTED: &str = "RestartAllContainersStarted";
const REASON: &str = "RestartingAllContainers";
const MESSAGE: &str = "The container is removed because RestartAllContainers in place";
/// How a container ends that is killed.
const KILLED: i32 = 137;

/// Whether the pod has such a rule at all.
pub fn may(pod: &Pod) -> bool {
    pod::containers(pod)
        .iter()
        .any(|(_, it)| it.restart_policy_rules.iter().flatten().any(|rule| rule.action == ACTION))
}

/// Ephemeral containers stay: they run once.
pub fn removes(pod: &Pod, container: &cri::Container) -> bool {
    !matches!(pod::container(pod, &container.metadata.name), Some((Role::Ephemeral, _)))
}

/// Whether this end asks for it.
fn asks(pod: &Pod, container: &cri::Container) -> bool {
    container.state == cri::ContainerState::Exited
        && pod::container(pod, &container.metadata.name).is_some_and(|(_, it)| {
            pod::matching_rule(&it, container.exit_code).is_some_and(|rule| rule.action == ACTION)
        })
}

/// What has to go before the pod begins anew, in that order; None if nothing is asked for.
/// `old` is the status last told: a restart that was begun is finished.
pub fn plan(pod: &Pod, runtime: &PodRuntime, old: &PodStatus) -> Option<Vec<cri::Container>> {
    if !may(pod) {
        return None;
    }
    // Older attempts say nothing about now.
    let mut newest = HashMap::new();
    for it in &runtime.containers {
        newest.entry(&it.metadata.name).or_insert(&it.id);
    }
    let (last, first): (Vec<_>, Vec<_>) = runtime
        .containers
        .iter()
        .filter(|it| removes(pod, it))
        .cloned()
        .partition(|it| newest[&it.metadata.name] == &it.id && asks(pod, it));
    let begun = old.conditions.iter().flatten().any(is_under_way);
    (begun || !last.is_empty()).then(|| first.into_iter().chain(last).collect())
}

fn is_under_way(condition: &PodCondition) -> bool {
    condition.type_ == CONDITION && condition.status == "True"
}

/// The pod's condition, where it may come to that. `restarting` is from the first kill until
/// the last container is removed.
pub fn condition(pod: &Pod, phase: &str, restarting: bool) -> Option<PodCondition> {
    let (status, reason, message) = match phase {
        "Succeeded" => ("False", Some("PodCompleted"), None),
        "Failed" => ("False", Some("PodFailed"), None),
        _ if restarting => {
            ("True", Some(STARTED), Some("container exited with restart policy rule"))
        }
        _ => ("False", None, None),
    };
    may(pod).then(|| PodCondition {
        type_: CONDITION.to_owned(),
        status: status.to_owned(),
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
        ..PodCondition::default()
    })
}

/// A container that ran and was removed for this.
pub fn removed(out: &mut ContainerStatus, old: &ContainerStatus) {
    out.container_id.clone_from(&old.container_id);
    out.image_id.clone_from(&old.image_id);
    out.restart_count = old.restart_count + i32::from(!is_told(old));
    out.state = Some(ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(REASON.to_owned()),
            message: Some(MESSAGE.to_owned()),
        }),
        ..ContainerState::default()
    });
    out.last_state = Some(ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: KILLED,
            reason: Some(REASON.to_owned()),
            message: Some(MESSAGE.to_owned()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    });
}

fn is_told(old: &ContainerStatus) -> bool {
    let waits = old.state.as_ref().and_then(|it| it.waiting.as_ref());
    waits.is_some_and(|it| it.reason.as_deref() == Some(REASON))
}

/// Such an end is no failure, whatever the restart policy.
pub fn ended_for_this(state: Option<&ContainerState>) -> bool {
    let ended = state.and_then(|it| it.terminated.as_ref());
    ended.is_some_and(|it| it.reason.as_deref() == Some(REASON))
}

impl Worker {
    /// Kills and removes what [`plan`] says, and shows it. False if something is left, or the
    /// pod is going away meanwhile.
    pub(crate) async fn restart_all(&mut self, containers: &[cri::Container]) -> bool {
        let runtime = self.runtime();
        self.restarting = true;
        self.publish(&runtime, false);
        for kill in self.kills.drain().map(|(_, kill)| kill) {
            kill.abort();
        }
        for container in containers {
            if *self.doomed.borrow() {
                return false;
            }
            if container.state == cri::ContainerState::Running && !self.kill_now(container).await {
                return false;
            }
            if asks(&self.pod, container)
                && let Ok(ended) = Timestamp::from_nanosecond(container.finished_at.into())
            {
                let name = container.metadata.name.clone();
                self.asked_restart.insert(name, (ended, container.id.clone()));
            }
            self.remove_container(container).await;
            // What is left would be taken for a part of the new beginning.
            if self.runtime().containers.iter().any(|it| it.id == container.id) {
                return false;
            }
        }
        let runtime = self.runtime();
        self.waiting.clear();
        self.watch_probes(&runtime, false);
        self.publish(&runtime, false);
        self.restarting = false;
        true
    }

    async fn kill_now(&self, container: &cri::Container) -> bool {
        let (node, name) = (&self.node, &container.metadata.name);
        let role = pod::container(&self.pod, name).map(|(role, _)| role);
        let is_init = matches!(role, Some(Role::Init | Role::Sidecar));
        let about = probes::container_reference(&self.pod, name, is_init);
        node.recorder.normal(&about, "Killing", format!("Stopping container {name}"));
        match node.runtime.stop_container(&container.id, 0).await {
            Err(error) if error.kind != cri::ErrorKind::NotFound => {
                let error = base::error::chain(&error);
                warn!(pod = %pod::display(&self.pod), container = name, %error,
                      "container not stopped");
                false
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use runtime::cri::{ContainerState as State, SandboxState};
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::samples::{container, sandbox};
    use crate::pod::samples::pod;

    fn rules(action: &str, code: i32) -> Value {
        json!([{"action": action, "exitCodes": {"operator": "In", "values": [code]}}])
    }

    fn three() -> Pod {
        pod(json!({"restartPolicy": "Never",
            "initContainers": [{"name": "setup"}],
            "containers": [
                {"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules(ACTION, 42)},
                {"name": "b"}],
            "ephemeralContainers": [{"name": "debug"}]}))
    }

    fn names(list: Option<Vec<cri::Container>>) -> Option<Vec<String>> {
        Some(list?.into_iter().map(|it| it.metadata.name).collect())
    }

    #[test]
    fn all_but_ephemeral_containers_go_and_the_cause_last() {
        let with = |a: (State, i32)| PodRuntime {
            sandboxes: vec![sandbox("s0", SandboxState::Ready, 0)],
            containers: vec![
                container("a", a.0, a.1),
                container("b", State::Running, 0),
                container("debug", State::Running, 0),
                container("setup", State::Exited, 0),
            ],
        };
        let none = PodStatus::default();
        let all = Some(["b", "setup", "a"].map(str::to_owned).to_vec());
        assert_eq!(names(plan(&three(), &with((State::Exited, 42)), &none)), all);
        for other in [(State::Exited, 1), (State::Exited, 0), (State::Running, 42)] {
            assert_eq!(names(plan(&three(), &with(other), &none)), None, "{other:?}");
        }
        // An earlier attempt ended so; the one that runs has not.
        let mut again = with((State::Running, 0));
        again
            .containers
            .push(cri::Container { id: "before".into(), ..container("a", State::Exited, 42) });
        assert_eq!(names(plan(&three(), &again, &none)), None);
        // What was begun is finished, though its cause is gone.
        let begun = PodStatus {
            conditions: Some(vec![condition(&three(), "Running", true).unwrap()]),
            ..PodStatus::default()
        };
        let left = PodRuntime {
            containers: vec![container("b", State::Exited, 137)],
            ..PodRuntime::default()
        };
        assert_eq!(names(plan(&three(), &left, &begun)), Some(vec!["b".to_owned()]));
        assert_eq!(names(plan(&three(), &PodRuntime::default(), &begun)), Some(vec![]));
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let of = |rules: Value| {
            pod(json!({"containers": [{"name": "a", "restartPolicy": "Never",
                                       "restartPolicyRules": rules}]}))
        };
        let runtime = PodRuntime {
            containers: vec![container("a", State::Exited, 42)],
            ..PodRuntime::default()
        };
        let both = |first: &str, second: &str| {
            let list = [rules(first, 42), rules(second, 42)];
            Value::Array(list.iter().flat_map(|it| it.as_array().unwrap().clone()).collect())
        };
        let none = PodStatus::default();
        assert!(plan(&of(both(ACTION, "Restart")), &runtime, &none).is_some());
        assert!(plan(&of(both("Restart", ACTION)), &runtime, &none).is_none());
        assert!(condition(&of(rules("Restart", 42)), "Running", false).is_none());
        for (phase, restarting, want) in [
            ("Running", true, "True RestartAllContainersStarted"),
            ("Running", false, "False "),
            ("Succeeded", false, "False PodCompleted"),
            ("Failed", true, "False PodFailed"),
        ] {
            let it = condition(&of(rules(ACTION, 42)), phase, restarting).unwrap();
            assert_eq!(format!("{} {}", it.status, it.reason.unwrap_or_default()), want);
        }
    }

    #[test]
    fn a_removed_container_is_counted_once() {
        let old = ContainerStatus {
            restart_count: 2,
            container_id: Some("c://1".into()),
            ..ContainerStatus::default()
        };
        let mut first = ContainerStatus::default();
        removed(&mut first, &old);
        assert_eq!((first.restart_count, ended_for_this(first.last_state.as_ref())), (3, true));
        let mut second = ContainerStatus::default();
        removed(&mut second, &first);
        assert_eq!(second, first);
    }
}
