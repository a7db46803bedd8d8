//! What a pod asks for and what a node has, as plain numbers.
//!
//! Knows nothing of pods on nodes; `snapshot.rs` adds and subtracts these.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kinds::meta::quantity::Quantity;

/// A container that asks for nothing still counts this much when nodes are compared.
const UNSAID_CPU_MILLIS: i64 = 100;
const UNSAID_MEMORY_BYTES: i64 = 200 << 20;

/// CPU in thousandths, the rest in its own unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu: i64,
    pub memory: i64,
    pub storage: i64,
    pub pods: i64,
    /// Everything else by name: huge pages and extended resources.
    pub other: BTreeMap<String, i64>,
}

impl Resources {
    pub fn parse(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut out = Self::default();
        for (name, text) in list.into_iter().flatten() {
            // The API server has checked it; what does not parse asks for nothing.
            let quantity: Quantity = text.0.parse().unwrap_or_default();
            out.set(name, quantity);
        }
        out
    }

    fn set(&mut self, name: &str, quantity: Quantity) {
        match name {
            "cpu" => self.cpu = quantity.millis(),
            "memory" => self.memory = quantity.value(),
            "ephemeral-storage" => self.storage = quantity.value(),
            "pods" => self.pods = quantity.value(),
            other => {
                self.other.insert(other.to_string(), quantity.value());
            }
        }
    }

    pub fn add(&mut self, more: &Self) {
        self.cpu = self.cpu.saturating_add(more.cpu);
        self.memory = self.memory.saturating_add(more.memory);
        self.storage = self.storage.saturating_add(more.storage);
        self.pods = self.pods.saturating_add(more.pods);
        for (name, value) in &more.other {
            let sum = self.other.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*value);
        }
    }

    pub fn subtract(&mut self, less: &Self) {
        self.cpu -= less.cpu;
        self.memory -= less.memory;
        self.storage -= less.storage;
        self.pods -= less.pods;
        for (name, value) in &less.other {
            *self.other.entry(name.clone()).or_default() -= value;
        }
    }

    /// The larger of both, resource by resource.
    pub fn raise_to(&mut self, floor: &Self) {
        self.cpu = self.cpu.max(floor.cpu);
        self.memory = self.memory.max(floor.memory);
        self.storage = self.storage.max(floor.storage);
        for (name, value) in &floor.other {
            let mine = self.other.entry(name.clone()).or_default();
            *mine = (*mine).max(*value);
        }
    }

    /// What `whole` says goes before what there is.
    fn put(&mut self, whole: Self) {
        if whole.cpu > 0 {
            self.cpu = whole.cpu;
        }
        if whole.memory > 0 {
            self.memory = whole.memory;
        }
        self.other.extend(whole.other);
    }

    /// Leaves out what is nothing in `other`.
    fn keep_where(&mut self, other: &Self) {
        let keep = |mine: &mut i64, theirs: i64| {
            if theirs == 0 {
                *mine = 0;
            }
        };
        keep(&mut self.cpu, other.cpu);
        keep(&mut self.memory, other.memory);
        keep(&mut self.storage, other.storage);
        self.other.retain(|name, _| other.get(name) != 0);
    }

    /// By name; CPU in thousandths.
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.storage,
            "pods" => self.pods,
            other => self.other.get(other).copied().unwrap_or_default(),
        }
    }

    pub fn is_nothing(&self) -> bool {
        self.cpu == 0
            && self.memory == 0
            && self.storage == 0
            && self.other.values().all(|value| *value == 0)
    }
}

/// What a pod occupies on its node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    pub asked: Resources,
    /// CPU and memory with a floor for containers that ask for none; used by scores.
    pub weighed_cpu: i64,
    pub weighed_memory: i64,
}

pub fn requests_of(pod: &Pod) -> Requests {
    let Some(spec) = &pod.spec else { return Requests::default() };
    let asked = total(pod, spec, |resources| resources);
    let weighed = total(pod, spec, |mut resources| {
        if resources.cpu == 0 {
            resources.cpu = UNSAID_CPU_MILLIS;
        }
        if resources.memory == 0 {
            resources.memory = UNSAID_MEMORY_BYTES;
        }
        resources
    });
    Requests { asked, weighed_cpu: weighed.cpu, weighed_memory: weighed.memory }
}

/// What a pod may use at most, where somebody says so.
pub fn limits_of(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let limits = |container: &Container| {
        Resources::parse(container.resources.as_ref().and_then(|it| it.limits.as_ref()))
    };
    let mut out = together(spec, limits, limits);
    let whole = spec.resources.as_ref().and_then(|it| it.limits.as_ref());
    out.put(Resources::parse(whole));
    // What is not limited is not for what runs the pod either.
    let mut overhead = Resources::parse(spec.overhead.as_ref());
    overhead.keep_where(&out);
    out.add(&overhead);
    out
}

fn total(pod: &Pod, spec: &PodSpec, each: impl Fn(Resources) -> Resources) -> Resources {
    let status = pod.status.as_ref();
    let held = status.and_then(|s| s.container_statuses.as_ref());
    let held_first = status.and_then(|s| s.init_container_statuses.as_ref());
    let mut out = together(
        spec,
        |container| each(container_requests(pod, container, held)),
        |container| {
            let held = held_first.filter(|_| is_sidecar(container));
            each(container_requests(pod, container, held))
        },
    );
    out.put(whole_requests(pod, spec));
    out.add(&Resources::parse(spec.overhead.as_ref()));
    out
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Containers and sidecars run together; each init container runs beside the sidecars
/// that were started before it (KEP-753).
fn together(
    spec: &PodSpec,
    main: impl Fn(&Container) -> Resources,
    first: impl Fn(&Container) -> Resources,
) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&main(container));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut now = first(container);
        if is_sidecar(container) {
            sidecars.add(&now);
            now = sidecars.clone();
        } else {
            now.add(&sidecars);
        }
        starting.raise_to(&now);
    }
    running.add(&sidecars);
    running.raise_to(&starting);
    running
}

/// What the pod asks for as a whole; nothing where it leaves that to its containers.
fn whole_requests(pod: &Pod, spec: &PodSpec) -> Resources {
    let Some(wanted) = spec.resources.as_ref().and_then(|it| it.requests.as_ref()) else {
        return Resources::default();
    };
    let status = pod.status.as_ref();
    let actual = status.and_then(|it| it.resources.as_ref()).and_then(|it| it.requests.as_ref());
    largest(pod, Some(wanted), status.and_then(|it| it.allocated_resources.as_ref()), actual)
}

fn container_requests(
    pod: &Pod,
    container: &Container,
    statuses: Option<&Vec<ContainerStatus>>,
) -> Resources {
    let wanted = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let held = statuses.into_iter().flatten().find(|status| status.name == container.name);
    let Some(held) = held else { return Resources::parse(wanted) };
    let actual = held.resources.as_ref().and_then(|r| r.requests.as_ref());
    largest(pod, wanted, held.allocated_resources.as_ref(), actual)
}

type List = BTreeMap<String, Text>;

/// While a resize is under way the largest of what is wanted, what is granted and what is in
/// effect counts; what can never be granted is not wanted (KEP-1287, KEP-5419).
fn largest(
    pod: &Pod,
    wanted: Option<&List>,
    granted: Option<&List>,
    actual: Option<&List>,
) -> Resources {
    let mut out = match is_infeasible(pod) && (actual.is_some() || granted.is_some()) {
        true => Resources::default(),
        false => Resources::parse(wanted),
    };
    out.raise_to(&Resources::parse(granted));
    out.raise_to(&Resources::parse(actual));
    out
}

/// The node has said that the resize cannot be.
fn is_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| {
        condition.type_ == "PodResizePending" && condition.reason.as_deref() == Some("Infeasible")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: serde_json::Value, cpu: i64, memory: i64) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": spec}))
            .expect("a pod");
        let asked = requests_of(&pod).asked;
        assert_eq!((asked.cpu, asked.memory), (cpu, memory), "{spec}");
    }

    fn ask(cpu: &str) -> serde_json::Value {
        json!({"requests": {"cpu": cpu}})
    }

    #[test]
    fn init_containers_sidecars_overhead_and_pod_resources_count() {
        check(
            json!({"containers": [{"name": "a", "resources": ask("1")},
                                    {"name": "b", "resources": ask("500m")}]}),
            1500,
            0,
        );
        check(
            json!({"containers": [{"name": "a", "resources": ask("1")}],
                     "initContainers": [{"name": "i", "resources": ask("3")}]}),
            3000,
            0,
        );
        check(
            json!({"containers": [{"name": "a", "resources": ask("1")}],
                     "initContainers": [
                        {"name": "s", "restartPolicy": "Always", "resources": ask("1")},
                        {"name": "i", "resources": ask("3")}]}),
            4000,
            0,
        );
        check(
            json!({"containers": [{"name": "a", "resources": ask("1")}],
                     "overhead": {"cpu": "250m", "memory": "1Ki"}}),
            1250,
            1024,
        );
        check(
            json!({"containers": [{"name": "a", "resources": ask("1")}],
                     "resources": {"requests": {"cpu": "2", "memory": "1Mi"}}}),
            2000,
            1 << 20,
        );
    }

    #[test]
    fn a_resize_counts_as_the_largest_of_its_parts_unless_it_is_infeasible() {
        for (wanted, granted, actual, reason, cpu) in [
            ("1", "2", "3", "Deferred", 3000),
            ("4", "2", "3", "Deferred", 4000),
            ("4", "2", "1", "Infeasible", 2000),
            ("1", "2", "1", "", 2000),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a"},
                "spec": {"containers": [{"name": "a", "resources": ask(wanted)}]},
                "status": {
                    "conditions": [{"type": "PodResizePending", "status": "True", "reason": reason}],
                    "containerStatuses": [{"name": "a", "image": "i", "imageID": "i",
                        "ready": true, "restartCount": 0, "resources": ask(actual),
                        "allocatedResources": {"cpu": granted}}]}}))
            .unwrap();
            let found = requests_of(&pod).asked.cpu;
            assert_eq!(found, cpu, "{wanted} {granted} {actual} {reason}");
        }
    }

    #[test]
    fn silent_containers_weigh_something() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}]}}))
        .unwrap();
        let requests = requests_of(&pod);
        assert!(requests.asked.is_nothing());
        assert_eq!(requests.weighed_cpu, 200);
        assert_eq!(requests.weighed_memory, 400 << 20);
    }
}
