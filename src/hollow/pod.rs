//! What a node does about a pod, and what it tells of it. Pure.

use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kinds::meta::quantity::Quantity;
use serde_json::{Value, json};

use crate::Config;
use crate::node::{address, seconds};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Say that the containers run.
    Start,
    /// Say that the containers have ended well.
    End,
    /// Say that the containers have ended, and delete the object.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Init,
    Sidecar,
    Main,
}

#[derive(Debug, PartialEq, Eq)]
struct Part {
    role: Role,
    name: String,
    image: String,
    asks: Use,
}

/// Of a processor, and of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    pub nanocores: u64,
    pub memory_bytes: u64,
}

impl Use {
    /// What a container that asks for nothing is taken for.
    const LEAST: Self = Self { nanocores: 10_000_000, memory_bytes: 16 << 20 };

    fn asked(container: &Container) -> Self {
        let requests = container.resources.as_ref().and_then(|it| it.requests.as_ref());
        let of = |resource: &str| -> Option<f64> {
            Some(requests?.get(resource)?.0.parse::<Quantity>().ok()?.as_f64())
        };
        Self {
            nanocores: of("cpu").map_or(Self::LEAST.nanocores, |cores| (cores * 1e9) as u64),
            memory_bytes: of("memory").map_or(Self::LEAST.memory_bytes, |bytes| bytes as u64),
        }
    }
}

/// What is kept of a pod.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub node: u32,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub host_network: bool,
    generation: Option<i64>,
    containers: Vec<Part>,
    /// Since when it is on its node, as its status says.
    pub since: Option<Timestamp>,
    /// The containers run, or ran.
    has_started: bool,
    has_ended: bool,
}

impl Seen {
    /// None for a pod of other nodes.
    pub fn of(config: &Config, pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let node = config.number(spec.node_name.as_deref()?)?;
        let named = |role: Role, container: &Container| Part {
            role,
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            asks: Use::asked(container),
        };
        let init = spec.init_containers.iter().flatten().map(|container| {
            let stays = container.restart_policy.as_deref() == Some("Always");
            named(if stays { Role::Sidecar } else { Role::Init }, container)
        });
        let main = spec.containers.iter().map(|container| named(Role::Main, container));
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        Some(Self {
            node,
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            host_network: spec.host_network.unwrap_or_default(),
            generation: pod.metadata.generation,
            containers: init.chain(main).collect(),
            since: status.and_then(|status| Some(status.start_time.as_ref()?.0)),
            has_started: phase.is_some_and(|phase| phase != "Pending"),
            has_ended: matches!(phase, Some("Succeeded" | "Failed")),
        })
    }

    /// The containers that run, and what they ask for.
    pub fn running(&self) -> impl Iterator<Item = (&str, Use)> {
        let runs = self.has_started && !self.has_ended;
        let stays = self.containers.iter().filter(move |it| runs && it.role != Role::Init);
        stays.map(|it| (it.name.as_str(), it.asks))
    }
}

/// What comes next for a pod of ours, and how long from now.
pub fn next(config: &Config, pod: &Pod, seen: &Seen) -> Option<(Step, Duration)> {
    if pod.metadata.deletion_timestamp.is_some() {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
        let grace = Duration::from_secs(u64::try_from(grace).unwrap_or_default());
        return Some((Step::Stop, config.stop_delay.min(grace)));
    }
    if seen.has_ended {
        return None;
    }
    if !seen.has_started {
        return Some((Step::Start, config.start_delay));
    }
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    let may_end = matches!(policy, Some("OnFailure" | "Never"));
    config.run_time.filter(|_| may_end).map(|time| (Step::End, time))
}

/// The patch of the status that says a step is done.
pub fn status(config: &Config, seen: &Seen, step: Step, pod_ip: Ipv4Addr, now: Timestamp) -> Value {
    let mut status = match step {
        Step::Start => started(config, seen, pod_ip, now),
        Step::End => json!({"phase": "Succeeded"}),
        Step::Stop if !seen.has_started => json!({"phase": "Failed"}),
        // It ended as it was asked to.
        Step::Stop => {
            json!({"phase": if seen.has_ended { Value::Null } else { "Succeeded".into() }})
        }
    };
    if status["phase"].is_null() {
        return Value::Null;
    }
    status["observedGeneration"] = json!(seen.generation);
    status["conditions"] = conditions(step, now);
    let runs = step == Step::Start;
    if !runs && !seen.has_started {
        return json!({"metadata": {"uid": seen.uid}, "status": status});
    }
    let of = |wanted: &dyn Fn(Role) -> bool| -> Vec<Value> {
        let wanted = seen.containers.iter().filter(|it| wanted(it.role));
        wanted.map(|it| container(seen, (it.role, &it.name, &it.image), runs, now)).collect()
    };
    status["containerStatuses"] = of(&|role| role == Role::Main).into();
    let init = of(&|role| role != Role::Main);
    if !init.is_empty() {
        status["initContainerStatuses"] = init.into();
    }
    json!({"metadata": {"uid": seen.uid}, "status": status})
}

fn started(config: &Config, seen: &Seen, pod_ip: Ipv4Addr, now: Timestamp) -> Value {
    let host = address(&config.name(seen.node));
    let ip = if seen.host_network { host } else { pod_ip };
    json!({
        "phase": "Running",
        "hostIP": host, "hostIPs": [{"ip": host}],
        "podIP": ip, "podIPs": [{"ip": ip}],
        "startTime": seconds(now),
    })
}

fn conditions(step: Step, now: Timestamp) -> Value {
    let condition = |type_: &str, status: bool, reason: Option<&str>| {
        json!({"type": type_, "status": if status { "True" } else { "False" },
            "reason": reason, "lastTransitionTime": seconds(now)})
    };
    let runs = step == Step::Start;
    let reason = (!runs).then_some("PodCompleted");
    json!([
        condition("PodReadyToStartContainers", runs, None),
        condition("Initialized", true, reason),
        condition("Ready", runs, reason),
        condition("ContainersReady", runs, reason),
    ])
}

fn container(seen: &Seen, named: (Role, &str, &str), runs: bool, now: Timestamp) -> Value {
    let (role, name, image) = named;
    let id = format!("hollow://{}/{name}", seen.uid);
    let runs = runs && role != Role::Init;
    let now = seconds(now);
    let state = match runs {
        true => json!({"running": {"startedAt": now}}),
        false => json!({"terminated": {"exitCode": 0, "reason": "Completed", "containerID": id,
            "startedAt": now, "finishedAt": now}}),
    };
    json!({
        "name": name, "image": image, "imageID": format!("hollow://{image}"), "containerID": id,
        "ready": runs || role == Role::Init, "started": runs, "restartCount": 0,
        "state": state, "lastState": {},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: &str, policy: &str, phase: &str, deleted: bool) -> Pod {
        let mut value = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3},
            "spec": {"nodeName": node, "restartPolicy": policy,
                "initContainers": [{"name": "before", "image": "i:1"},
                    {"name": "beside", "image": "i:2", "restartPolicy": "Always"}],
                "containers": [{"name": "c", "image": "i:3"}]},
            "status": {"phase": phase},
        });
        if deleted {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            value["metadata"]["deletionGracePeriodSeconds"] = json!(3);
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn pods_start_run_end_and_stop_in_their_time() {
        let config = crate::tests::config();
        let after = |step, seconds| Some((step, Duration::from_secs(seconds)));
        for (policy, phase, deleted, want) in [
            ("Always", "Pending", false, after(Step::Start, 2)),
            ("Always", "Running", false, None),
            ("Never", "Running", false, after(Step::End, 7)),
            ("OnFailure", "Running", false, after(Step::End, 7)),
            ("Never", "Succeeded", false, None),
            // Not longer than its grace, and whatever it did before.
            ("Always", "Pending", true, after(Step::Stop, 3)),
            ("Always", "Running", true, after(Step::Stop, 3)),
            ("Never", "Failed", true, after(Step::Stop, 3)),
        ] {
            let pod = pod("hollow-1", policy, phase, deleted);
            let seen = Seen::of(&config, &pod).unwrap();
            assert_eq!(next(&config, &pod, &seen), want, "{policy} {phase} {deleted}");
        }
        assert_eq!(Seen::of(&config, &pod("real", "Always", "Pending", false)), None);
    }

    #[test]
    fn statuses_say_what_a_kubelet_would() {
        let config = crate::tests::config();
        let ip = Ipv4Addr::new(10, 0, 0, 1);
        let of = |phase: &str, step| {
            let seen = Seen::of(&config, &pod("hollow-1", "Always", phase, false)).unwrap();
            status(&config, &seen, step, ip, Timestamp::UNIX_EPOCH)
        };
        let running = of("Pending", Step::Start);
        let read: Pod = serde_json::from_value(running.clone()).unwrap();
        let told = read.status.unwrap();
        assert_eq!(told.pod_ip.as_deref(), Some("10.0.0.1"));
        assert_eq!(told.observed_generation, Some(3));
        assert!(told.conditions.unwrap().iter().all(|condition| condition.status == "True"));
        assert!(told.container_statuses.unwrap()[0].ready);
        let before = told.init_container_statuses.unwrap();
        assert!(before[0].state.as_ref().unwrap().terminated.is_some(), "has done its work");
        assert!(before[1].state.as_ref().unwrap().running.is_some(), "stays beside it");
        assert_eq!(running["metadata"]["uid"], "u");

        assert_eq!(of("Running", Step::End)["status"]["phase"], "Succeeded");
        assert_eq!(of("Pending", Step::Stop)["status"]["phase"], "Failed");
        let stopped = of("Running", Step::Stop);
        let state = &stopped["status"]["containerStatuses"][0]["state"];
        assert_eq!(state["terminated"]["exitCode"], 0);
        // Nothing new is said of a pod that ended before.
        assert_eq!(of("Succeeded", Step::Stop), Value::Null);
    }
}
