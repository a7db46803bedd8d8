//! Tables of cases for the planners: `cases/PLANNER.yaml` holds worlds, and the steps that are
//! planned for them.
//!
//! A file has `cases`, and `worlds` by name that they begin with (`in`). `case` says in words
//! what must hold, `steps` what comes out, line by line; all else is the world, in fields that
//! the planner's own reader knows. Objects are words, or objects whose `is` are words:
//!
//!     web-0 Running ready=-5s node=n1 label:app=web
//!
//! A name, which is the uid as well, then what the table in [`word`] knows. Times are RFC 3339, or since [`NOW`]:
//! `-90s`, `-5m`, `-2h`, `+1d`.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// When all cases play.
pub const NOW: &str = "2026-01-01T00:00:00Z";

type Steps = fn(&Value) -> Vec<String>;

/// By the names of their files.
const PLANNERS: [(&str, Steps); 17] = [
    ("attach", crate::attach::cases::steps),
    ("cronjob", crate::cronjob::cases::steps),
    ("daemonset", crate::daemonset::cases::steps),
    ("deployment", crate::deployment::cases::steps),
    ("disruption", crate::disruption::cases::steps),
    ("endpointslice", crate::endpoints::cases::steps),
    ("garbage", crate::garbage::cases::steps),
    ("hpa", crate::hpa::cases::steps),
    ("job", crate::job::cases::steps),
    ("legacy-token", crate::legacy_token::cases::steps),
    ("node", crate::node::cases::steps),
    ("pod-collector", crate::pod_collector::cases::steps),
    ("quota", crate::quota::cases::steps),
    ("replicaset", crate::replicaset::cases::steps),
    ("statefulset", crate::statefulset::cases::steps),
    ("ttl-after-finished", crate::job::ttl_cases),
    ("volume", crate::volume::cases::steps),
];

#[test]
fn every_planner_takes_the_steps_of_its_cases() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut files: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_string())
        .collect();
    files.sort();
    let mut known: Vec<&str> = PLANNERS.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    assert_eq!(files, known, "each planner has a file, and each file a planner");
    let mut wrong = Vec::new();
    for (planner, steps) in PLANNERS {
        let text = std::fs::read(dir.join(planner).with_extension("yaml")).unwrap();
        let file = codec::yaml::read::value(&text).unwrap_or_else(|err| panic!("{planner}: {err}"));
        let cases = file["cases"].as_array().unwrap();
        assert!(!cases.is_empty(), "{planner}");
        for case in cases {
            let world = world(case, &file["worlds"]);
            let (got, want) = (steps(&world), lines(&case["steps"]));
            if got != want {
                let title = case["case"].as_str().expect("a case has words");
                let show = |lines: Vec<String>| lines.join("\n    ");
                let (got, want) = (show(got), show(want));
                wrong.push(format!("{planner}: {title}\n  wanted\n    {want}\n  got\n    {got}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A case over the worlds that it begins with.
fn world(case: &Value, worlds: &Value) -> Value {
    let mut out = json!({});
    for name in words_of(&case["in"]) {
        assert!(worlds[name].is_object(), "there is no world {name:?}");
        overlay(&mut out, &worlds[name]);
    }
    overlay(&mut out, case);
    out
}

fn words_of(value: &Value) -> Vec<&str> {
    value.as_str().unwrap_or_default().split_whitespace().collect()
}

/// What `over` says wins; objects are merged. Where it is not given nothing is said.
pub fn overlay(under: &mut Value, over: &Value) {
    if !over.is_null() {
        merge(under, over);
    }
}

fn merge(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                merge(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

/// A list of lines; null is none.
pub fn lines(value: &Value) -> Vec<String> {
    let text = |line: &Value| line.as_str().map_or_else(|| line.to_string(), str::to_string);
    value.as_array().into_iter().flatten().map(text).collect()
}

pub fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// Seconds before now, if negative.
pub fn seconds(text: &str) -> i64 {
    let (number, unit) = text.split_at(text.len() - 1);
    let number: i64 = number.parse().unwrap_or_else(|_| panic!("a time is {text:?}"));
    number
        * match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => panic!("a unit of time is {unit:?}"),
        }
}

pub fn time(text: &str) -> Timestamp {
    match text.parse() {
        Ok(time) => time,
        Err(_) => now() + SignedDuration::from_secs(seconds(text)),
    }
}

fn time_text(text: &str) -> Value {
    base::time::rfc3339(time(text)).into()
}

/// An object of words, in the shape that its kind has.
pub fn object<K: DeserializeOwned>(value: &Value) -> K {
    let text = value.as_str().or(value["is"].as_str()).unwrap_or_default();
    let mut out = json!({"metadata": {"namespace": "default"}});
    let mut words = text.split_whitespace();
    if let Some(name) = words.next() {
        out["metadata"]["name"] = name.into();
        out["metadata"]["uid"] = name.into();
    }
    words.for_each(|text| word(&mut out, text));
    if let Value::Object(more) = value {
        let more: Map<String, Value> = more
            .iter()
            .filter(|(key, _)| *key != "is")
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        overlay(&mut out, &Value::Object(more));
    }
    let shown = out.to_string();
    serde_json::from_value(out).unwrap_or_else(|err| panic!("{shown}: {err}"))
}

pub fn objects<K: DeserializeOwned>(list: &Value) -> Vec<std::sync::Arc<K>> {
    let list = list.as_array().into_iter().flatten();
    list.map(|one| std::sync::Arc::new(object(one))).collect()
}

fn push(list: &mut Value, value: Value) {
    match list {
        Value::Array(list) => list.push(value),
        other => *other = json!([value]),
    }
}

fn word(out: &mut Value, text: &str) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let or = |default: &str| if value.is_empty() { default.to_string() } else { value.to_string() };
    let meta = &mut out["metadata"];
    if let Some(label) = key.strip_prefix("label:") {
        meta["labels"][label] = value.into();
        return;
    }
    if let Some(annotation) = key.strip_prefix("annotation:") {
        meta["annotations"][annotation] = value.into();
        return;
    }
    match key {
        "in" => meta["namespace"] = value.into(),
        "uid" => meta["uid"] = value.into(),
        "generation" => meta["generation"] = value.parse::<i64>().unwrap().into(),
        "created" => meta["creationTimestamp"] = time_text(value),
        "going" => meta["deletionTimestamp"] = time_text(&or("-10s")),
        "finalizer" => push(&mut meta["finalizers"], value.into()),
        "owner" => {
            let (kind, name) = value.split_once('/').unwrap();
            let (name, uid) = name.split_once('/').unwrap_or((name, name));
            let version = if kind == "Pod" { "v1" } else { "apps/v1" };
            let owner = json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid,
                "controller": true, "blockOwnerDeletion": true});
            push(&mut meta["ownerReferences"], owner);
        }
        "Pending" | "Running" | "Succeeded" | "Failed" | "Unknown" => {
            out["status"]["phase"] = key.into();
        }
        "started" => out["status"]["startTime"] = time_text(value),
        "ready" | "unready" => {
            let status = if key == "ready" { "True" } else { "False" };
            let condition = json!({"type": "Ready", "status": status,
                "lastTransitionTime": time_text(&or("-1h"))});
            push(&mut out["status"]["conditions"], condition);
        }
        "true" | "false" => {
            let status = if key == "true" { "True" } else { "False" };
            let (kind, since) = value.split_once('@').unwrap_or((value, "-1h"));
            let condition =
                json!({"type": kind, "status": status, "lastTransitionTime": time_text(since)});
            push(&mut out["status"]["conditions"], condition);
        }
        "exit" => {
            let (code, name) = value.split_once(':').unwrap_or((value, "main"));
            let ended = json!({"exitCode": code.parse::<i32>().unwrap()});
            let container = json!({"name": name, "image": "", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"terminated": ended}});
            push(&mut out["status"]["containerStatuses"], container);
        }
        "restarts" => {
            let container = json!({"name": "main", "image": "", "imageID": "", "ready": false,
                "restartCount": value.parse::<i32>().unwrap()});
            push(&mut out["status"]["containerStatuses"], container);
        }
        "node" => out["spec"]["nodeName"] = value.into(),
        "revision" => meta["labels"]["controller-revision-hash"] = value.into(),
        "cost" => {
            meta["annotations"]["controller.kubernetes.io/pod-deletion-cost"] = value.into();
        }
        "zone" => meta["labels"]["topology.kubernetes.io/zone"] = value.into(),
        // NoSchedule, or KEY:EFFECT.
        "taint" => {
            let (key, effect) = value.split_once(':').unwrap_or(("key", value));
            push(&mut out["spec"]["taints"], json!({"key": key, "effect": effect}));
        }
        _ => panic!("nobody knows the word {text:?}"),
    }
}
