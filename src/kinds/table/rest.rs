//! Columns of the other groups.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, Table, age, boolean, integer, name, or_none, shown, size, wide};
use crate::value::{at, flag, has, items, number, text};

pub(super) fn table(group: &str, kind: &str) -> Option<Table> {
    Some(match (group, kind) {
        ("coordination.k8s.io", "Lease") => Table {
            columns: const { &[NAME, shown("Holder"), AGE] },
            cells: |o, now| vec![name(o), json!(text(o, "spec.holderIdentity")), age(o, now)],
        },
        ("networking.k8s.io", "Ingress") => Table { columns: INGRESS, cells: ingress },
        ("networking.k8s.io", "IngressClass") => Table {
            columns: const { &[NAME, shown("Controller"), shown("Parameters"), AGE] },
            cells: ingress_class,
        },
        ("networking.k8s.io", "NetworkPolicy") => Table {
            columns: const { &[NAME, shown("Pod-Selector"), AGE] },
            cells: |o, now| vec![name(o), super::selector(at(o, "spec.podSelector")), age(o, now)],
        },
        ("networking.k8s.io", "ServiceCIDR") => Table {
            columns: const { &[NAME, shown("CIDRs"), AGE] },
            cells: |o, now| vec![name(o), json!(words(at(o, "spec"), "cidrs")), age(o, now)],
        },
        ("networking.k8s.io", "IPAddress") => Table {
            columns: const { &[NAME, shown("ParentRef"), AGE] },
            cells: |o, now| {
                let parent = at(o, "spec.parentRef");
                let word = |key| text(parent, key);
                let group = if word("group").is_empty() { "" } else { "." };
                let path = format!(
                    "{}{group}{}/{}/{}",
                    word("resource"),
                    word("group"),
                    word("namespace"),
                    word("name")
                );
                vec![name(o), json!(path), age(o, now)]
            },
        },
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            Table { columns: BINDING, cells: binding }
        }
        ("storage.k8s.io", "StorageClass") => Table { columns: CLASS, cells: storage_class },
        ("storage.k8s.io", "CSIDriver") => Table { columns: DRIVER, cells: driver },
        ("storage.k8s.io", "CSINode") => Table {
            columns: const { &[NAME, integer("Drivers"), AGE] },
            cells: |o, now| vec![name(o), json!(size(at(o, "spec.drivers"))), age(o, now)],
        },
        ("storage.k8s.io", "VolumeAttachment") => Table { columns: ATTACHMENT, cells: attachment },
        ("storage.k8s.io", "VolumeAttributesClass") => Table {
            columns: const { &[NAME, shown("DriverName"), AGE] },
            cells: |o, now| vec![name(o), json!(text(o, "driverName")), age(o, now)],
        },
        ("scheduling.k8s.io", "PriorityClass") => Table {
            columns: const {
                &[NAME, integer("Value"), boolean("Global-Default"), AGE, shown("PreemptionPolicy")]
            },
            cells: |o, now| {
                vec![
                    name(o),
                    json!(number(o, "value")),
                    json!(flag(o, "globalDefault")),
                    age(o, now),
                    json!(text(o, "preemptionPolicy")),
                ]
            },
        },
        ("node.k8s.io", "RuntimeClass") => Table {
            columns: const { &[NAME, shown("Handler"), AGE] },
            cells: |o, now| vec![name(o), json!(text(o, "handler")), age(o, now)],
        },
        ("apiextensions.k8s.io", "CustomResourceDefinition") => Table {
            columns: const {
                &[NAME, Column { name: "Created At", kind: "date", format: "", priority: 0 }]
            },
            cells: |o, _| vec![name(o), at(o, "metadata.creationTimestamp").clone()],
        },
        ("apiregistration.k8s.io", "APIService") => Table {
            columns: const { &[NAME, shown("Service"), shown("Available"), AGE] },
            cells: api_service,
        },
        ("admissionregistration.k8s.io", kind) => admission(kind)?,
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            Table { columns: REQUEST, cells: signing_request }
        }
        ("certificates.k8s.io", "ClusterTrustBundle") => Table {
            columns: const { &[NAME, shown("SignerName")] },
            cells: |o, _| vec![name(o), json!(text(o, "spec.signerName"))],
        },
        ("certificates.k8s.io", "PodCertificateRequest") => {
            Table { columns: POD_REQUEST, cells: pod_request }
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => Table { columns: FLOW, cells: flow },
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => {
            Table { columns: LEVEL, cells: level }
        }
        ("resource.k8s.io", "ResourceClaim") => Table {
            columns: const { &[NAME, shown("State"), AGE] },
            cells: |o, now| {
                let mut state = Vec::new();
                if has(o, "metadata.deletionTimestamp") {
                    state.push("deleted");
                }
                if has(o, "status.allocation") {
                    state.push("allocated");
                } else {
                    state.push("pending");
                }
                if !items(o, "status.reservedFor").is_empty() {
                    state.push("reserved");
                }
                vec![name(o), json!(state.join(",")), age(o, now)]
            },
        },
        ("resource.k8s.io", "ResourceSlice") => Table {
            columns: const { &[NAME, shown("Node"), shown("Driver"), shown("Pool"), AGE] },
            cells: |o, now| {
                vec![
                    name(o),
                    json!(text(o, "spec.nodeName")),
                    json!(text(o, "spec.driver")),
                    json!(text(o, "spec.pool.name")),
                    age(o, now),
                ]
            },
        },
        ("resource.k8s.io", _) => {
            Table { columns: const { &[NAME, AGE] }, cells: |o, now| vec![name(o), age(o, now)] }
        }
        _ => return None,
    })
}

fn words(parent: &Value, list: &str) -> String {
    let all: Vec<&str> = items(parent, list).iter().filter_map(Value::as_str).collect();
    all.join(",")
}

fn admission(kind: &str) -> Option<Table> {
    Some(match kind {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => Table {
            columns: const { &[NAME, integer("Webhooks"), AGE] },
            cells: |o, now| vec![name(o), json!(size(&o["webhooks"])), age(o, now)],
        },
        "ValidatingAdmissionPolicy" => Table {
            columns: const { &[NAME, integer("Validations"), shown("ParamKind"), AGE] },
            cells: |o, now| policy(o, "validations", now),
        },
        "MutatingAdmissionPolicy" => Table {
            columns: const { &[NAME, integer("Mutations"), shown("ParamKind"), AGE] },
            cells: |o, now| policy(o, "mutations", now),
        },
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => Table {
            columns: const { &[NAME, shown("PolicyName"), shown("ParamRef"), AGE] },
            cells: |o, now| {
                let reference = at(o, "spec.paramRef");
                let parameters = match (text(reference, "namespace"), text(reference, "name")) {
                    _ if reference.is_null() => "<unset>".to_owned(),
                    ("", "") => "*".to_owned(),
                    ("", name) => name.to_owned(),
                    (namespace, name) => format!("{namespace}/{name}"),
                };
                vec![name(o), json!(text(o, "spec.policyName")), json!(parameters), age(o, now)]
            },
        },
        _ => return None,
    })
}

fn policy(object: &Value, list: &str, now: Timestamp) -> Vec<Value> {
    let kind = at(object, "spec.paramKind");
    let parameters = match kind.is_null() {
        true => "<unset>".to_owned(),
        false => format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")),
    };
    let count = size(at(at(object, "spec"), list));
    vec![name(object), json!(count), json!(parameters), age(object, now)]
}

const INGRESS: &[Column] =
    &[NAME, shown("Class"), shown("Hosts"), shown("Address"), shown("Ports"), AGE];

fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = at(object, "spec");
    let mut hosts: Vec<&str> =
        items(spec, "rules").iter().map(|r| text(r, "host")).filter(|h| !h.is_empty()).collect();
    let more = hosts.len().saturating_sub(3);
    hosts.truncate(3);
    let hosts = match (hosts.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (false, 0) => hosts.join(","),
        (false, more) => format!("{} + {more} more...", hosts.join(",")),
    };
    let addresses: Vec<&str> = items(object, "status.loadBalancer.ingress")
        .iter()
        .map(|i| if has(i, "ip") { text(i, "ip") } else { text(i, "hostname") })
        .collect();
    let ports = if items(spec, "tls").is_empty() { "80" } else { "80, 443" };
    vec![
        name(object),
        or_none(text(spec, "ingressClassName")),
        json!(hosts),
        json!(addresses.join(",")),
        json!(ports),
        age(object, now),
    ]
}

fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let reference = at(object, "spec.parameters");
    let parameters = match reference.is_null() {
        true => String::new(),
        false => {
            let group = text(reference, "apiGroup");
            let dot = if group.is_empty() { "" } else { "." };
            format!("{}{dot}{group}/{}", text(reference, "kind"), text(reference, "name"))
        }
    };
    vec![
        name(object),
        json!(text(object, "spec.controller")),
        or_none(parameters),
        age(object, now),
    ]
}

const BINDING: &[Column] =
    &[NAME, shown("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")];

fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let role = at(object, "roleRef");
    let of = |kind: &str| {
        let all = items(object, "subjects").iter().filter(|s| text(s, "kind") == kind);
        let all: Vec<String> = all
            .map(|s| match (kind, text(s, "namespace")) {
                ("ServiceAccount", namespace) => format!("{namespace}/{}", text(s, "name")),
                _ => text(s, "name").to_owned(),
            })
            .collect();
        json!(all.join(", "))
    };
    vec![
        name(object),
        json!(format!("{}/{}", text(role, "kind"), text(role, "name"))),
        age(object, now),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}

const CLASS: &[Column] = &[
    NAME,
    shown("Provisioner"),
    shown("ReclaimPolicy"),
    shown("VolumeBindingMode"),
    boolean("AllowVolumeExpansion"),
    AGE,
];

fn storage_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let annotation = |key: &str| {
        at(object, "metadata.annotations").get(key).and_then(Value::as_str) == Some("true")
    };
    let default = annotation("storageclass.kubernetes.io/is-default-class")
        || annotation("storageclass.beta.kubernetes.io/is-default-class");
    let title = text(object, "metadata.name");
    let title = if default { format!("{title} (default)") } else { title.to_owned() };
    vec![
        json!(title),
        json!(text(object, "provisioner")),
        json!(text(object, "reclaimPolicy")),
        json!(text(object, "volumeBindingMode")),
        json!(flag(object, "allowVolumeExpansion")),
        age(object, now),
    ]
}

const DRIVER: &[Column] = &[
    NAME,
    boolean("AttachRequired"),
    boolean("PodInfoOnMount"),
    boolean("StorageCapacity"),
    shown("TokenRequests"),
    boolean("RequiresRepublish"),
    shown("Modes"),
    AGE,
];

fn driver(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = at(object, "spec");
    let tokens: Vec<&str> =
        items(spec, "tokenRequests").iter().map(|t| text(t, "audience")).collect();
    let tokens = if tokens.is_empty() { "<unset>".to_owned() } else { tokens.join(",") };
    let attach = at(spec, "attachRequired").as_bool().unwrap_or(true);
    vec![
        name(object),
        json!(attach),
        json!(flag(spec, "podInfoOnMount")),
        json!(flag(spec, "storageCapacity")),
        json!(tokens),
        json!(flag(spec, "requiresRepublish")),
        or_none(words(spec, "volumeLifecycleModes")),
        age(object, now),
    ]
}

const ATTACHMENT: &[Column] = &[
    NAME,
    Column { name: "Attacher", kind: "string", format: "name", priority: 0 },
    shown("PV"),
    shown("Node"),
    boolean("Attached"),
    AGE,
];

fn attachment(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(text(object, "spec.attacher")),
        json!(text(object, "spec.source.persistentVolumeName")),
        json!(text(object, "spec.nodeName")),
        json!(flag(object, "status.attached")),
        age(object, now),
    ]
}

fn api_service(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = at(object, "spec.service");
    let place = match service.is_object() {
        true => format!("{}/{}", text(service, "namespace"), text(service, "name")),
        false => "Local".to_owned(),
    };
    let found = items(object, "status.conditions").iter().find(|c| text(c, "type") == "Available");
    let available = match found {
        Some(c) if text(c, "status") == "True" => "True".to_owned(),
        Some(c) => format!("{} ({})", text(c, "status"), text(c, "reason")),
        None => "Unknown".to_owned(),
    };
    vec![name(object), json!(place), json!(available), age(object, now)]
}

const REQUEST: &[Column] = &[
    NAME,
    AGE,
    shown("SignerName"),
    shown("Requestor"),
    shown("RequestedDuration"),
    shown("Condition"),
];

const POD_REQUEST: &[Column] = &[
    NAME,
    shown("PodName"),
    shown("ServiceAccountName"),
    shown("NodeName"),
    shown("SignerName"),
    shown("State"),
];

fn pod_request(object: &Value, _: Timestamp) -> Vec<Value> {
    let said =
        items(object, "status.conditions").iter().rev().find(|it| text(it, "status") == "True");
    let state = said.map(|it| text(it, "type")).filter(|it| !it.is_empty());
    let spec = ["podName", "serviceAccountName", "nodeName", "signerName"]
        .map(|key| json!(text(at(object, "spec"), key)));
    let [pod, account, node, signer] = spec;
    vec![name(object), pod, account, node, signer, json!(state.unwrap_or("Pending"))]
}

fn signing_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let wanted = match at(object, "spec.expirationSeconds").as_i64() {
        Some(seconds) => super::duration(seconds),
        None => "<none>".to_owned(),
    };
    let mut words = Vec::new();
    for (kind, word) in [("Denied", "Denied"), ("Approved", "Approved"), ("Failed", "Failed")] {
        if items(object, "status.conditions").iter().any(|c| text(c, "type") == kind) {
            words.push(word);
        }
    }
    if words.is_empty() {
        words.push("Pending");
    }
    if !text(object, "status.certificate").is_empty() {
        words.push("Issued");
    }
    vec![
        name(object),
        age(object, now),
        or_none(text(object, "spec.signerName")),
        json!(text(object, "spec.username")),
        json!(wanted),
        json!(words.join(",")),
    ]
}

const FLOW: &[Column] = &[
    NAME,
    shown("PriorityLevel"),
    integer("MatchingPrecedence"),
    shown("DistinguisherMethod"),
    AGE,
    shown("MissingPL"),
];

fn flow(object: &Value, now: Timestamp) -> Vec<Value> {
    let found = items(object, "status.conditions").iter().find(|c| text(c, "type") == "Dangling");
    vec![
        name(object),
        json!(text(object, "spec.priorityLevelConfiguration.name")),
        json!(number(object, "spec.matchingPrecedence")),
        or_none(text(object, "spec.distinguisherMethod.type")),
        age(object, now),
        json!(found.map_or("?", |c| text(c, "status"))),
    ]
}

const LEVEL: &[Column] = &[
    NAME,
    shown("Type"),
    shown("NominalConcurrencyShares"),
    shown("Queues"),
    shown("HandSize"),
    shown("QueueLengthLimit"),
    AGE,
];

fn level(object: &Value, now: Timestamp) -> Vec<Value> {
    let limited = at(object, "spec.limited");
    let queuing = at(limited, "limitResponse.queuing");
    let or = |value: &Value| if value.is_null() { json!("<none>") } else { value.clone() };
    vec![
        name(object),
        json!(text(object, "spec.type")),
        or(at(limited, "nominalConcurrencyShares")),
        or(at(queuing, "queues")),
        or(at(queuing, "handSize")),
        or(at(queuing, "queueLengthLimit")),
        age(object, now),
    ]
}
