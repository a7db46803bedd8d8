//! Replays recorded creates: normalising, defaulting and field ownership must give upstream's
//! answer, apart from what admission and the registry add later.

#![allow(clippy::unwrap_used)]

use api::change::apply::{Writer, reset_fields, update_managed_fields};
use api::scheme::{Schema, shape};
use kinds::resources::{Catalog, GroupVersion};
use kinds::rules::{Rules, default_of};
use serde_json::{Value, json};

const CASES: &str = include_str!("../testdata/defaults.json");

/// What other stages of a create add, which this test therefore takes out on both sides.
const LATER: &[(&str, &[&str])] = &[
    (
        "Pod",
        &[
            "/status",
            "/spec/priority",
            "/spec/preemptionPolicy",
            "/spec/serviceAccount",
            "/spec/serviceAccountName",
            "/spec/tolerations",
            "/spec/nodeName",
        ],
    ),
    (
        "Service",
        &[
            "/spec/clusterIP",
            "/spec/clusterIPs",
            "/spec/ipFamilies",
            "/spec/ipFamilyPolicy",
            "/spec/healthCheckNodePort",
        ],
    ),
    ("Namespace", &["/spec"]),
    ("Job", &["/spec/selector", "/metadata/labels", "/spec/template/metadata"]),
    ("Node", &["/spec/taints"]),
    ("PersistentVolume", &["/metadata/finalizers"]),
    ("PersistentVolumeClaim", &["/metadata/finalizers"]),
    ("VolumeAttributesClass", &["/metadata/finalizers"]),
    ("CertificateSigningRequest", &["/spec/username", "/spec/uid", "/spec/groups"]),
];

fn normal(value: &mut Value, kind: &str) {
    for (_, pointers) in LATER.iter().filter(|(k, _)| *k == kind) {
        for pointer in *pointers {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            if let Some(Value::Object(map)) = value.pointer_mut(parent) {
                map.shift_remove(key);
            }
        }
    }
    strip(value);
}

/// Drops the token volume of admission, labels the job controller adds and allocated ports.
fn strip(value: &mut Value) {
    match value {
        Value::Array(items) => {
            items.retain(|i| !i["name"].as_str().unwrap_or("").starts_with("kube-api-access-"));
            items.iter_mut().for_each(strip);
        }
        Value::Object(map) => {
            map.retain(|key, value| {
                strip(value);
                let empty = matches!(value, Value::Array(a) if a.is_empty());
                let mounts = empty && matches!(key.as_str(), "volumes" | "volumeMounts");
                let later = ["controller-uid", "job-name"].iter().any(|k| key.ends_with(k));
                let dropped = key == "nodePort" || mounts || later;
                !dropped
            });
        }
        _ => {}
    }
}

fn differences(path: &str, got: &Value, want: &Value, out: &mut Vec<String>) {
    match (got, want) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                let path = format!("{path}/{key}");
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => differences(&path, a, b, out),
                    (Some(a), None) => out.push(format!("{path}: surplus {a}")),
                    (None, Some(b)) => out.push(format!("{path}: missing {b}")),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}/{index}"), a, b, out);
            }
        }
        _ if got != want => out.push(format!("{path}: got {got}, want {want}")),
        _ => {}
    }
}

#[test]
fn recorded_creates_get_upstreams_defaults() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() > 100);
    let mut failures = Vec::new();
    for case in &cases {
        let mut object = case["body"].clone();
        let gv = GroupVersion::parse(object["apiVersion"].as_str().unwrap()).unwrap();
        let kind = object["kind"].as_str().unwrap().to_owned();
        let typed = Schema::built_in().kind(&gv.group, &gv.version, &kind).unwrap();
        shape::normalise(&mut object, typed);
        default_of(&gv.group, &kind)(&mut object);
        shape::normalise(&mut object, typed);
        let resource = Catalog::built_in().by_kind(&gv.group, &kind).unwrap();
        let has_status = resource.subresource("status", &gv.version).is_some();
        if case["managed"].is_object() {
            let writer = Writer {
                manager: "transcript",
                api_version: &gv.to_string(),
                subresource: "",
                now: "2024-01-02T03:04:05Z",
                reset: reset_fields(&gv.group, &kind, has_status, ""),
            };
            let mut object = object.clone();
            object["metadata"]["managedFields"] = json!(null);
            update_managed_fields(None, &mut object, typed, &writer);
            let got = object.pointer("/metadata/managedFields/0/fieldsV1").unwrap_or(&Value::Null);
            let mut out = Vec::new();
            differences("managed", got, &case["managed"], &mut out);
            failures.extend(out.into_iter().map(|d| format!("{}: {d}", case["name"])));
        }
        (Rules::of(&gv.group, &kind).prepare_create)(&mut object);
        shape::normalise(&mut object, typed);
        let mut want = case["want"].clone();
        if has_status {
            // The registry resets the status of a new object.
            object["status"] = want["status"].clone();
        }
        if object["metadata"].get("generateName").is_some() {
            object["metadata"]["name"] = want["metadata"]["name"].clone();
        }
        normal(&mut object, &kind);
        normal(&mut want, &kind);
        let mut out = Vec::new();
        differences("", &object, &want, &mut out);
        failures.extend(out.into_iter().map(|d| format!("{}: {d}", case["name"])));
    }
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}
