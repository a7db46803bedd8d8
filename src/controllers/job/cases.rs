//! Reads the cases of Jobs: `spec`, `status`, `pods` (with `tracked` and `@INDEX`), and
//! `failures`, how often and when pods failed in a row: `2 -60s`.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::plan::{Backoff, New, plan};
use super::policy::{FAILURES, IGNORED};
use super::template::INDEX;
use crate::cases::{now, object, overlay, time};
use crate::owner::name;

fn pod(value: &Value) -> Arc<Pod> {
    let text = value.as_str().unwrap();
    let mut plain = Vec::new();
    let mut more = json!({"metadata": {"annotations": {}, "finalizers": [super::FINALIZER],
        "creationTimestamp": base::time::rfc3339(time("-1s"))}});
    for word in text.split_whitespace() {
        let annotations = &mut more["metadata"]["annotations"];
        if let Some(index) = word.strip_prefix('@') {
            annotations[INDEX] = index.into();
        } else if let Some(count) = word.strip_prefix("failures=") {
            annotations[FAILURES] = count.into();
        } else if let Some(count) = word.strip_prefix("ignored=") {
            annotations[IGNORED] = count.into();
        } else if word == "free" {
            more["metadata"]["finalizers"] = json!([]);
        } else {
            plain.push(word);
        }
    }
    let mut with = json!({"is": plain.join(" ")});
    overlay(&mut with, &more);
    // What the words say of time counts.
    if text.contains("created=") {
        with["metadata"].as_object_mut().unwrap().remove("creationTimestamp");
    }
    Arc::new(object(&with))
}

pub fn steps(world: &Value) -> Vec<String> {
    let mut spec = world["spec"].clone();
    let policy = spec["template"]["spec"]["restartPolicy"].as_str().unwrap_or("Never").to_string();
    spec["template"] = json!({"spec": {"restartPolicy": policy, "containers": []}});
    let mut job = json!({"is": "work", "spec": spec});
    if world["status"].is_object() {
        job["status"] = world["status"].clone();
    }
    let job: Job = object(&job);
    let pods: Vec<Arc<Pod>> = world["pods"].as_array().into_iter().flatten().map(pod).collect();
    let backoff = world["failures"].as_str().map(|text| {
        let (count, last) = text.split_once(' ').unwrap();
        Backoff { failures: count.parse().unwrap(), last: time(last).as_second() }
    });
    let plan = plan(&job, &pods, backoff.unwrap_or_default(), now());
    let mut out: Vec<String> = Vec::new();
    let plain = plan.create.iter().filter(|new| new.index.is_none()).count();
    out.extend((plain > 0).then(|| format!("create {plain}")));
    out.extend(plan.create.iter().filter_map(created));
    out.extend(plan.delete.iter().map(|pod| format!("delete {}", name(&pod.metadata))));
    out.extend(plan.free.iter().map(|pod| format!("count {}", name(&pod.metadata))));
    let before = job.status.unwrap_or_default();
    out.extend(news(&before, &plan.status));
    out.extend(numbers(&plan.status));
    out.extend(plan.events.iter().map(|(kind, reason, _)| format!("tell {kind} {reason}")));
    out.extend(plan.look_again_in.map(|wait| format!("look again in {} s", wait.as_secs())));
    out
}

fn created(new: &New) -> Option<String> {
    let index = new.index?;
    let of = |failures: super::policy::Failures| {
        let ignored = match failures.ignored {
            0 => String::new(),
            ignored => format!(", {ignored} ignored"),
        };
        format!(" after {} failures{ignored}", failures.counted)
    };
    Some(format!("create @{index}{}", new.failures.map(of).unwrap_or_default()))
}

/// Conditions that were not there before.
fn news(before: &JobStatus, after: &JobStatus) -> Vec<String> {
    let held = |kind: &str, status: &str| {
        let mut all = before.conditions.iter().flatten();
        all.any(|c| c.type_ == kind && c.status == status)
    };
    let conditions = after.conditions.iter().flatten();
    let new = conditions.filter(|c| !held(&c.type_, &c.status));
    let show = |c: &k8s_openapi::api::batch::v1::JobCondition| {
        let no = if c.status == "True" { "" } else { "not " };
        let (reason, message) = (c.reason.as_deref(), c.message.as_deref());
        let text = [reason.unwrap_or_default(), message.unwrap_or_default()].join(": ");
        format!("{no}{}, {text}", c.type_)
    };
    new.map(show).collect()
}

/// What the status counts, but for what is 0.
fn numbers(status: &JobStatus) -> Option<String> {
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let count = |list: &Option<Vec<String>>| list.as_ref().map(|list| list.len() as i32);
    let numbers = [
        ("active", status.active),
        ("ready", status.ready),
        ("terminating", status.terminating),
        ("succeeded", status.succeeded),
        ("to succeed", count(&uncounted.succeeded)),
        ("failed", status.failed),
        ("to fail", count(&uncounted.failed)),
    ];
    let some = numbers.into_iter().filter_map(|(what, number)| {
        number.filter(|number| *number > 0).map(|number| format!("{number} {what}"))
    });
    let of = |what: &str, text: &Option<String>| {
        let text = text.as_ref().filter(|text| !text.is_empty());
        text.map(|text| format!("{what} {text}"))
    };
    let indexes = [of("done", &status.completed_indexes), of("lost", &status.failed_indexes)];
    let all: Vec<String> = some.chain(indexes.into_iter().flatten()).collect();
    (!all.is_empty()).then(|| all.join(", "))
}
