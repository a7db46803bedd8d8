//! Columns of the core group.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, Column, NAME, Table, age, containers, integer, name, name_column, or_none, plain_selector,
    shown, since, size, wide,
};
use crate::value::{at, flag, has, items, number, text};

pub(super) fn table(group: &str, kind: &str) -> Option<Table> {
    Some(match (group, kind) {
        ("", "Pod") => Table { columns: POD, cells: pod },
        ("", "Service") => Table { columns: SERVICE, cells: service },
        ("", "Endpoints") => Table {
            columns: const { &[NAME, shown("Endpoints"), AGE] },
            cells: |o, now| vec![name(o), endpoints(o), age(o, now)],
        },
        ("discovery.k8s.io", "EndpointSlice") => Table {
            columns: const { &[NAME, shown("AddressType"), shown("Ports"), shown("Endpoints"), AGE] },
            cells: endpoint_slice,
        },
        ("", "Node") => Table { columns: NODE, cells: node },
        ("", "Namespace") => Table {
            columns: const { &[NAME, shown("Status"), AGE] },
            cells: |o, now| vec![name(o), json!(text(o, "status.phase")), age(o, now)],
        },
        ("", "ConfigMap") => Table {
            columns: const { &[NAME, shown("Data"), AGE] },
            cells: |o, now| {
                vec![name(o), json!(size(&o["data"]) + size(&o["binaryData"])), age(o, now)]
            },
        },
        ("", "Secret") => Table {
            columns: const { &[NAME, shown("Type"), shown("Data"), AGE] },
            cells: |o, now| {
                vec![name(o), json!(text(o, "type")), json!(size(&o["data"])), age(o, now)]
            },
        },
        ("", "ServiceAccount") => {
            Table { columns: const { &[NAME, AGE] }, cells: |o, now| vec![name(o), age(o, now)] }
        }
        ("" | "events.k8s.io", "Event") => Table { columns: EVENT, cells: event },
        ("", "PersistentVolume") => Table { columns: VOLUME, cells: volume },
        ("", "PersistentVolumeClaim") => Table { columns: CLAIM, cells: claim },
        ("", "PodTemplate") => Table {
            columns: const { &[NAME, shown("Containers"), shown("Images"), shown("Pod Labels")] },
            cells: |o, _| {
                let [names, images] = containers(at(o, "template.spec"));
                vec![name(o), names, images, plain_selector(at(o, "template.metadata.labels"))]
            },
        },
        ("", "ResourceQuota") => Table {
            columns: const { &[NAME, shown("Request"), shown("Limit"), AGE] },
            cells: quota,
        },
        ("", "ReplicationController") => Table { columns: CONTROLLER, cells: controller },
        _ => return None,
    })
}

const POD: &[Column] = &[
    NAME,
    shown("Ready"),
    shown("Status"),
    shown("Restarts"),
    AGE,
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

/// The container's share in the pod's word.
struct Containers {
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Containers {
    fn add(&mut self, status: &Value) {
        self.restarts += number(status, "restartCount");
        let ended = text(status, "lastState.terminated.finishedAt").parse().ok();
        self.last_restart = self.last_restart.max(ended);
    }
}

fn pod(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (status, spec) = (at(pod, "status"), at(pod, "spec"));
    let mut total = items(spec, "containers").len();
    let mut word = text(status, "phase").to_owned();
    if !text(status, "reason").is_empty() {
        word = text(status, "reason").to_owned();
    }
    let condition =
        |kind: &str| items(status, "conditions").iter().find(|c| text(c, "type") == kind);
    let gated = condition("PodScheduled").is_some_and(|c| text(c, "reason") == "SchedulingGated");
    if gated {
        word = "SchedulingGated".to_owned();
    }
    let mut all = Containers { restarts: 0, last_restart: None };
    let mut sidecars = Containers { restarts: 0, last_restart: None };
    let mut ready = 0;
    let init = items(spec, "initContainers");
    let is_sidecar = |name: &str| {
        init.iter().any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
    };
    total += init.iter().filter(|c| text(c, "restartPolicy") == "Always").count();
    let mut initializing = false;
    for (index, container) in items(status, "initContainerStatuses").iter().enumerate() {
        all.add(container);
        let sidecar = is_sidecar(text(container, "name"));
        if sidecar {
            sidecars.add(container);
        }
        let terminated = at(container, "state.terminated");
        if terminated.is_object() && number(terminated, "exitCode") == 0 {
            continue;
        }
        if sidecar && flag(container, "started") {
            if flag(container, "ready") {
                ready += 1;
            }
            continue;
        }
        let waiting = text(container, "state.waiting.reason");
        word = if terminated.is_object() {
            format!("Init:{}", ending(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{}", init.len())
        };
        initializing = true;
        break;
    }
    let initialized = condition("Initialized").is_some_and(|c| text(c, "status") == "True");
    if !initializing || initialized {
        let mut shown = sidecars;
        let mut running = false;
        for container in items(status, "containerStatuses").iter().rev() {
            shown.add(container);
            let waiting = text(container, "state.waiting.reason");
            let terminated = at(container, "state.terminated");
            if !waiting.is_empty() {
                word = waiting.to_owned();
            } else if terminated.is_object() {
                word = ending(terminated);
            } else if flag(container, "ready") && has(container, "state.running") {
                running = true;
                ready += 1;
            }
        }
        all = shown;
        if word == "Completed" && running {
            let is_ready = condition("Ready").is_some_and(|c| text(c, "status") == "True");
            word = if is_ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if has(pod, "metadata.deletionTimestamp") {
        let lost = text(status, "reason") == "NodeLost";
        let ended = matches!(text(status, "phase"), "Succeeded" | "Failed");
        if lost {
            word = "Unknown".to_owned();
        } else if !ended {
            word = "Terminating".to_owned();
        }
    }
    let restarts = match all.last_restart {
        Some(time) if all.restarts > 0 => {
            format!("{} ({} ago)", all.restarts, since(&time.to_string(), now))
        }
        _ => all.restarts.to_string(),
    };
    let address = items(status, "podIPs").first().map_or("", |ip| text(ip, "ip"));
    let address = if address.is_empty() { text(status, "podIP") } else { address };
    vec![
        name(pod),
        json!(format!("{ready}/{total}")),
        json!(word),
        json!(restarts),
        age(pod, now),
        or_none(address),
        or_none(text(spec, "nodeName")),
        or_none(text(status, "nominatedNodeName")),
        gates(spec, status),
    ]
}

fn ending(terminated: &Value) -> String {
    let (reason, signal) = (text(terminated, "reason"), number(terminated, "signal"));
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", number(terminated, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn gates(spec: &Value, status: &Value) -> Value {
    let gates = items(spec, "readinessGates");
    if gates.is_empty() {
        return json!("<none>");
    }
    let passed = |gate: &&Value| {
        items(status, "conditions")
            .iter()
            .any(|c| text(c, "type") == text(gate, "conditionType") && text(c, "status") == "True")
    };
    json!(format!("{}/{}", gates.iter().filter(passed).count(), gates.len()))
}

const SERVICE: &[Column] = &[
    NAME,
    shown("Type"),
    shown("Cluster-IP"),
    shown("External-IP"),
    shown("Port(s)"),
    AGE,
    wide("Selector"),
];

fn service(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = at(service, "spec");
    let ports: Vec<String> = items(spec, "ports")
        .iter()
        .map(|port| match number(port, "nodePort") {
            0 => format!("{}/{}", number(port, "port"), text(port, "protocol")),
            node => format!("{}:{node}/{}", number(port, "port"), text(port, "protocol")),
        })
        .collect();
    let cluster = items(spec, "clusterIPs").first().and_then(Value::as_str);
    let cluster = cluster.unwrap_or_else(|| text(spec, "clusterIP"));
    vec![
        name(service),
        json!(text(spec, "type")),
        or_none(cluster),
        json!(external_address(service)),
        or_none(ports.join(",")),
        age(service, now),
        plain_selector(at(spec, "selector")),
    ]
}

fn external_address(service: &Value) -> String {
    let spec = at(service, "spec");
    let fixed: Vec<&str> = items(spec, "externalIPs").iter().filter_map(Value::as_str).collect();
    match text(spec, "type") {
        "ExternalName" => text(spec, "externalName").to_owned(),
        "LoadBalancer" => {
            let mut all: Vec<&str> = items(service, "status.loadBalancer.ingress")
                .iter()
                .map(|i| if has(i, "ip") { text(i, "ip") } else { text(i, "hostname") })
                .filter(|a| !a.is_empty())
                .collect();
            all.extend(fixed);
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ if fixed.is_empty() => "<none>".to_owned(),
        _ => fixed.join(","),
    }
}

fn endpoints(endpoints: &Value) -> Value {
    let mut all = Vec::new();
    for subset in items(endpoints, "subsets") {
        for address in items(subset, "addresses") {
            let host = text(address, "ip");
            let ports = items(subset, "ports");
            if ports.is_empty() {
                all.push(host.to_owned());
            }
            for port in ports {
                let port = number(port, "port");
                all.push(if host.contains(':') {
                    format!("[{host}]:{port}")
                } else {
                    format!("{host}:{port}")
                });
            }
        }
    }
    abbreviated(&all, 3)
}

fn abbreviated(all: &[String], most: usize) -> Value {
    if all.len() > most {
        json!(format!("{} + {} more...", all[..most].join(","), all.len() - most))
    } else {
        or_none(all.join(","))
    }
}

fn endpoint_slice(slice: &Value, now: Timestamp) -> Vec<Value> {
    let ports = items(slice, "ports").iter().map(|p| match p.get("port") {
        Some(port) if !port.is_null() => port.to_string(),
        _ => "*".to_owned(),
    });
    let ports: Vec<String> = ports.collect();
    let ports = if ports.is_empty() { json!("<unset>") } else { abbreviated(&ports, 3) };
    let addresses: Vec<String> = items(slice, "endpoints")
        .iter()
        .flat_map(|e| items(e, "addresses"))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let addresses =
        if addresses.is_empty() { json!("<unset>") } else { abbreviated(&addresses, 3) };
    vec![name(slice), json!(text(slice, "addressType")), ports, addresses, age(slice, now)]
}

const NODE: &[Column] = &[
    NAME,
    shown("Status"),
    shown("Roles"),
    AGE,
    shown("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];

fn node(node: &Value, now: Timestamp) -> Vec<Value> {
    let ready = items(node, "status.conditions").iter().find(|c| text(c, "type") == "Ready");
    let mut status = match ready.map(|c| text(c, "status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if flag(node, "spec.unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let labels = at(node, "metadata.labels").as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            _ if key == "kubernetes.io/role" => value.as_str().filter(|v| !v.is_empty()),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| {
        let found = items(node, "status.addresses").iter().find(|a| text(a, "type") == kind);
        or_none(found.map_or("", |a| text(a, "address")))
    };
    let info = |key: &str| match text(at(node, "status.nodeInfo"), key) {
        "" => json!("<unknown>"),
        word => json!(word),
    };
    vec![
        name(node),
        json!(status),
        or_none(roles.join(",")),
        age(node, now),
        json!(text(node, "status.nodeInfo.kubeletVersion")),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        kernel(node),
        info("containerRuntimeVersion"),
    ]
}

fn kernel(node: &Value) -> Value {
    let info = at(node, "status.nodeInfo");
    match (text(info, "kernelVersion"), text(info, "architecture")) {
        ("", _) => json!("<unknown>"),
        (kernel, "") => json!(kernel),
        (kernel, architecture) => json!(format!("{kernel} ({architecture})")),
    }
}

const EVENT: &[Column] = &[
    shown("Last Seen"),
    shown("Type"),
    shown("Reason"),
    shown("Object"),
    wide("Subobject"),
    wide("Source"),
    shown("Message"),
    wide("First Seen"),
    wide("Count"),
    name_column(1),
];

fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let either = |one: &str, other: &str| -> String {
        let word = text(event, one);
        if word.is_empty() { text(event, other) } else { word }.to_owned()
    };
    let made = text(event, "eventTime");
    let mut first = either("firstTimestamp", "deprecatedFirstTimestamp");
    if first.is_empty() {
        first = made.to_owned();
    }
    let mut last = either("lastTimestamp", "deprecatedLastTimestamp");
    if last.is_empty() {
        last = first.clone();
    }
    let mut count = number(event, "count").max(number(event, "deprecatedCount"));
    if has(event, "series") {
        last = text(event, "series.lastObservedTime").to_owned();
        count = number(event, "series.count");
    } else if count == 0 {
        count = 1;
    }
    let object = if has(event, "involvedObject") { "involvedObject" } else { "regarding" };
    let object = at(event, object);
    let source = if has(event, "source") { "source" } else { "deprecatedSource" };
    let mut source_words = vec![text(at(event, source), "component")];
    if source_words[0].is_empty() {
        let reporting = either_key(event, "reportingComponent", "reportingController");
        source_words[0] = reporting;
    }
    let host = text(at(event, source), "host");
    if !host.is_empty() {
        source_words.push(host);
    }
    let reference = match (text(object, "kind"), text(object, "name")) {
        (kind, "") => kind.to_lowercase(),
        (kind, name) => format!("{}/{name}", kind.to_lowercase()),
    };
    vec![
        json!(since(&last, now)),
        json!(text(event, "type")),
        json!(text(event, "reason")),
        json!(reference),
        json!(text(object, "fieldPath")),
        json!(source_words.join(", ")),
        json!(either("message", "note").trim()),
        json!(since(&first, now)),
        json!(count),
        name(event),
    ]
}

fn either_key<'a>(value: &'a Value, one: &str, other: &str) -> &'a str {
    let word = text(value, one);
    if word.is_empty() { text(value, other) } else { word }
}

const VOLUME: &[Column] = &[
    NAME,
    shown("Capacity"),
    shown("Access Modes"),
    shown("Reclaim Policy"),
    shown("Status"),
    shown("Claim"),
    shown("StorageClass"),
    shown("VolumeAttributesClass"),
    shown("Reason"),
    AGE,
    wide("VolumeMode"),
];

fn access_modes(spec: &Value) -> String {
    let short = |mode: &Value| match mode.as_str() {
        Some("ReadWriteOnce") => "RWO",
        Some("ReadOnlyMany") => "ROX",
        Some("ReadWriteMany") => "RWX",
        Some("ReadWriteOncePod") => "RWOP",
        _ => "",
    };
    let mut all: Vec<&str> = items(spec, "accessModes").iter().map(short).collect();
    all.retain(|m| !m.is_empty());
    all.join(",")
}

fn attributes_class(spec: &Value) -> Value {
    match text(spec, "volumeAttributesClassName") {
        "" => json!("<unset>"),
        class => json!(class),
    }
}

fn volume_mode(spec: &Value) -> Value {
    match text(spec, "volumeMode") {
        "" => json!("<unset>"),
        mode => json!(mode),
    }
}

fn phase(object: &Value) -> Value {
    match has(object, "metadata.deletionTimestamp") {
        true => json!("Terminating"),
        false => json!(text(object, "status.phase")),
    }
}

fn volume(volume: &Value, now: Timestamp) -> Vec<Value> {
    let spec = at(volume, "spec");
    let claim = at(spec, "claimRef");
    let claim = match claim.is_object() {
        true => format!("{}/{}", text(claim, "namespace"), text(claim, "name")),
        false => String::new(),
    };
    vec![
        name(volume),
        json!(text(spec, "capacity.storage")),
        json!(access_modes(spec)),
        json!(text(spec, "persistentVolumeReclaimPolicy")),
        phase(volume),
        json!(claim),
        json!(text(spec, "storageClassName")),
        attributes_class(spec),
        json!(text(volume, "status.reason")),
        age(volume, now),
        volume_mode(spec),
    ]
}

const CLAIM: &[Column] = &[
    NAME,
    shown("Status"),
    shown("Volume"),
    shown("Capacity"),
    shown("Access Modes"),
    shown("StorageClass"),
    shown("VolumeAttributesClass"),
    AGE,
    wide("VolumeMode"),
];

fn claim(claim: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (at(claim, "spec"), at(claim, "status"));
    let bound = !text(spec, "volumeName").is_empty();
    let (capacity, modes) = match bound {
        true => (text(status, "capacity.storage"), access_modes(status)),
        false => ("", String::new()),
    };
    vec![
        name(claim),
        phase(claim),
        json!(text(spec, "volumeName")),
        json!(capacity),
        json!(modes),
        json!(text(spec, "storageClassName")),
        attributes_class(spec),
        age(claim, now),
        volume_mode(spec),
    ]
}

fn quota(quota: &Value, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    let mut hard: Vec<(&String, &Value)> =
        at(quota, "status.hard").as_object().into_iter().flatten().collect();
    hard.sort_by_key(|(key, _)| *key);
    for (key, hard) in hard {
        let used = at(quota, "status.used").get(key).and_then(Value::as_str).unwrap_or("0");
        let entry = format!("{key}: {used}/{}", hard.as_str().unwrap_or_default());
        if key.starts_with("limits") { limits.push(entry) } else { requests.push(entry) }
    }
    vec![name(quota), json!(requests.join(", ")), json!(limits.join(", ")), age(quota, now)]
}

const CONTROLLER: &[Column] = &[
    NAME,
    integer("Desired"),
    integer("Current"),
    integer("Ready"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

fn controller(controller: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(at(controller, "spec.template.spec"));
    vec![
        name(controller),
        json!(number(controller, "spec.replicas")),
        json!(number(controller, "status.replicas")),
        json!(number(controller, "status.readyReplicas")),
        age(controller, now),
        names,
        images,
        plain_selector(at(controller, "spec.selector")),
    ]
}
