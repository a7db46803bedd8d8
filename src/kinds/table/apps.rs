//! Columns of workloads, autoscaling and disruption budgets.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, Column, NAME, Table, age, boolean, containers, duration, integer, name, or_none,
    plain_selector, selector, shown, since, size, wide,
};
use crate::value::{at, flag, has, items, number, text};

pub(super) fn table(group: &str, kind: &str) -> Option<Table> {
    Some(match (group, kind) {
        ("apps", "Deployment") => Table { columns: DEPLOYMENT, cells: deployment },
        ("apps", "ReplicaSet") => Table { columns: REPLICA_SET, cells: replica_set },
        ("apps", "StatefulSet") => Table { columns: STATEFUL_SET, cells: stateful_set },
        ("apps", "DaemonSet") => Table { columns: DAEMON_SET, cells: daemon_set },
        ("apps", "ControllerRevision") => Table {
            columns: const { &[NAME, shown("Controller"), shown("Revision"), AGE] },
            cells: revision,
        },
        ("batch", "Job") => Table { columns: JOB, cells: job },
        ("batch", "CronJob") => Table { columns: CRON_JOB, cells: cron_job },
        ("autoscaling", "HorizontalPodAutoscaler") => Table { columns: SCALER, cells: scaler },
        ("autoscaling", "Scale") => Table { columns: SCALE, cells: scale },
        ("policy", "PodDisruptionBudget") => Table { columns: BUDGET, cells: budget },
        _ => return None,
    })
}

const DEPLOYMENT: &[Column] = &[
    NAME,
    shown("Ready"),
    shown("Up-to-date"),
    shown("Available"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = at(object, "status");
    let (ready, want) = (number(status, "readyReplicas"), number(object, "spec.replicas"));
    let [names, images] = containers(at(object, "spec.template.spec"));
    vec![
        name(object),
        json!(format!("{ready}/{want}")),
        json!(number(status, "updatedReplicas")),
        json!(number(status, "availableReplicas")),
        age(object, now),
        names,
        images,
        selector(at(object, "spec.selector")),
    ]
}

const REPLICA_SET: &[Column] = &[
    NAME,
    integer("Desired"),
    integer("Current"),
    integer("Ready"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(at(object, "spec.template.spec"));
    vec![
        name(object),
        json!(number(object, "spec.replicas")),
        json!(number(object, "status.replicas")),
        json!(number(object, "status.readyReplicas")),
        age(object, now),
        names,
        images,
        selector(at(object, "spec.selector")),
    ]
}

const STATEFUL_SET: &[Column] = &[NAME, shown("Ready"), AGE, wide("Containers"), wide("Images")];

fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = number(object, "status.readyReplicas");
    let [names, images] = containers(at(object, "spec.template.spec"));
    vec![
        name(object),
        json!(format!("{ready}/{}", number(object, "spec.replicas"))),
        age(object, now),
        names,
        images,
    ]
}

const DAEMON_SET: &[Column] = &[
    NAME,
    integer("Desired"),
    integer("Current"),
    integer("Ready"),
    integer("Up-to-date"),
    integer("Available"),
    shown("Node Selector"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = |key: &str| json!(number(at(object, "status"), key));
    let [names, images] = containers(at(object, "spec.template.spec"));
    vec![
        name(object),
        count("desiredNumberScheduled"),
        count("currentNumberScheduled"),
        count("numberReady"),
        count("updatedNumberScheduled"),
        count("numberAvailable"),
        plain_selector(at(object, "spec.template.spec.nodeSelector")),
        age(object, now),
        names,
        images,
        selector(at(object, "spec.selector")),
    ]
}

fn revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owner = items(object, "metadata.ownerReferences").iter().find(|o| flag(o, "controller"));
    let owner = owner.map_or(String::new(), |owner| {
        let group = text(owner, "apiVersion").split_once('/').map_or("", |(group, _)| group);
        let kind = text(owner, "kind").to_lowercase();
        let dot = if group.is_empty() { "" } else { "." };
        format!("{kind}{dot}{group}/{}", text(owner, "name"))
    });
    vec![name(object), or_none(owner), json!(number(object, "revision")), age(object, now)]
}

const JOB: &[Column] = &[
    NAME,
    shown("Status"),
    shown("Completions"),
    shown("Duration"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (at(object, "spec"), at(object, "status"));
    let done = number(status, "succeeded");
    let completions = if has(spec, "completions") {
        format!("{done}/{}", number(spec, "completions"))
    } else if number(spec, "parallelism") > 1 {
        format!("{done}/1 of {}", number(spec, "parallelism"))
    } else {
        format!("{done}/1")
    };
    let start = text(status, "startTime").parse::<Timestamp>().ok();
    let end = text(status, "completionTime").parse::<Timestamp>().ok();
    let took = start.map(|s| duration(end.unwrap_or(now).as_second() - s.as_second()));
    let is = |kind: &str| {
        let mut all = items(status, "conditions").iter();
        all.any(|c| text(c, "type") == kind && text(c, "status") == "True")
    };
    let word = if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if has(object, "metadata.deletionTimestamp") {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let [names, images] = containers(at(spec, "template.spec"));
    vec![
        name(object),
        json!(word),
        json!(completions),
        json!(took.unwrap_or_default()),
        age(object, now),
        names,
        images,
        selector(at(spec, "selector")),
    ]
}

const CRON_JOB: &[Column] = &[
    NAME,
    shown("Schedule"),
    shown("Timezone"),
    boolean("Suspend"),
    integer("Active"),
    shown("Last Schedule"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = at(object, "spec");
    let last = match text(object, "status.lastScheduleTime") {
        "" => "<none>".to_owned(),
        time => since(time, now),
    };
    let [names, images] = containers(at(spec, "jobTemplate.spec.template.spec"));
    vec![
        name(object),
        json!(text(spec, "schedule")),
        or_none(text(spec, "timeZone")),
        json!(if flag(spec, "suspend") { "True" } else { "False" }),
        json!(size(at(object, "status.active"))),
        json!(last),
        age(object, now),
        names,
        images,
        selector(at(spec, "jobTemplate.spec.selector")),
    ]
}

const SCALER: &[Column] = &[
    NAME,
    shown("Reference"),
    shown("Targets"),
    shown("MinPods"),
    shown("MaxPods"),
    shown("Replicas"),
    AGE,
];

const SCALE: &[Column] = &[shown("Name"), integer("Desired"), integer("Available"), AGE];

fn scale(object: &Value, now: Timestamp) -> Vec<Value> {
    let (desired, available) = (number(object, "spec.replicas"), number(object, "status.replicas"));
    vec![name(object), json!(desired), json!(available), age(object, now)]
}

/// How many metrics are spelled out.
const METRICS_SHOWN: usize = 3;

fn scaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = at(object, "spec");
    let target = at(spec, "scaleTargetRef");
    let minimum = match at(spec, "minReplicas").as_i64() {
        Some(count) => count.to_string(),
        None => "<unset>".to_owned(),
    };
    vec![
        name(object),
        json!(format!("{}/{}", text(target, "kind"), text(target, "name"))),
        json!(metrics(object)),
        json!(minimum),
        json!(number(spec, "maxReplicas")),
        json!(number(object, "status.currentReplicas")),
        age(object, now),
    ]
}

fn metrics(object: &Value) -> String {
    let spec = at(object, "spec");
    if let Some(want) = at(spec, "targetCPUUtilizationPercentage").as_i64() {
        let now = at(object, "status.currentCPUUtilizationPercentage").as_i64();
        let now = now.map_or("<unknown>".to_owned(), |n| format!("{n}%"));
        return format!("cpu: {now}/{want}%");
    }
    let all = items(spec, "metrics");
    if all.is_empty() {
        return "<none>".to_owned();
    }
    let current = items(object, "status.currentMetrics");
    let one = |(index, metric): (usize, &Value)| {
        let kind = text(metric, "type");
        let key = match kind {
            "ContainerResource" => "containerResource".to_owned(),
            other => other.to_lowercase(),
        };
        let (source, status) =
            (at(metric, &key), current.get(index).map_or(&Value::Null, |status| at(status, &key)));
        let prefix = match kind {
            "Resource" | "ContainerResource" => format!("{}: ", text(source, "name")),
            _ => String::new(),
        };
        let quantity = |value: &Value, tail: &str| {
            ["averageValue", "value"].iter().find_map(|k| match text(value, k) {
                "" => None,
                q if *k == "averageValue" && !tail.is_empty() => Some(format!("{q}{tail}")),
                q => Some(q.to_owned()),
            })
        };
        let average = if matches!(kind, "External" | "Object") { " (avg)" } else { "" };
        let (target, status) = (at(source, "target"), at(status, "current"));
        match at(target, "averageUtilization").as_i64() {
            Some(want) => {
                let now = at(status, "averageUtilization").as_i64();
                let now = now.map_or("<unknown>".to_owned(), |n| format!("{n}%"));
                format!("{prefix}{now}/{want}%")
            }
            None => format!(
                "{prefix}{}/{}",
                quantity(status, "").unwrap_or_else(|| "<unknown>".to_owned()),
                quantity(target, average).unwrap_or_default()
            ),
        }
    };
    let shown: Vec<String> = all.iter().enumerate().take(METRICS_SHOWN).map(one).collect();
    match all.len().saturating_sub(METRICS_SHOWN) {
        0 => shown.join(", "),
        more => format!("{} + {more} more...", shown.join(", ")),
    }
}

const BUDGET: &[Column] =
    &[NAME, shown("Min Available"), shown("Max Unavailable"), integer("Allowed Disruptions"), AGE];

fn budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let bound = |key: &str| match at(at(object, "spec"), key) {
        Value::Null => json!("N/A"),
        Value::String(text) => json!(text),
        other => json!(other.to_string()),
    };
    vec![
        name(object),
        bound("minAvailable"),
        bound("maxUnavailable"),
        json!(number(object, "status.disruptionsAllowed")),
        age(object, now),
    ]
}
