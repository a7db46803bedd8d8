//! Reads the cases of CronJobs: `at` (when), `spec`, `status`, `jobs` (words, with `Complete` or
//! `Failed` and `started=`), `active` and `gone`: names of Jobs in the status, and of those that
//! are there no more. The CronJob `tick` was made at [`crate::cases::NOW`], unless `created` says otherwise.

use std::sync::Arc;

use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use serde_json::{Value, json};

use super::plan::{SCHEDULED_AT, World, plan};
use crate::cases::{lines, object, overlay, time};
use crate::owner::{annotation, name};

fn job(text: &str) -> Arc<Job> {
    let plain = |word: &&str| !["Complete", "Failed"].contains(word);
    let words: Vec<&str> = text.split_whitespace().filter(plain).collect();
    let mut job: Job = object(&words.join(" ").into());
    let end = text.split_whitespace().find(|word| !plain(word));
    if let Some(end) = end {
        let status = job.status.get_or_insert_default();
        status.conditions =
            serde_json::from_value(json!([{"type": end, "status": "True"}])).unwrap();
        status.completion_time = status.start_time.clone();
    }
    Arc::new(job)
}

pub fn steps(world: &Value) -> Vec<String> {
    let created = world["created"].as_str().unwrap_or("+0s");
    let mut cron = json!({"is": format!("tick created={created}"),
        "spec": {"schedule": "*/10 * * * *", "jobTemplate": {}}});
    overlay(&mut cron["spec"], &world["spec"]);
    let active = lines(&world["active"]);
    let active: Vec<Value> = active.iter().map(|of| json!({"name": of, "uid": of})).collect();
    cron["status"] = json!({"active": active});
    if let Some(last) = world["last"].as_str() {
        cron["status"]["lastScheduleTime"] = base::time::rfc3339(time(last)).into();
    }
    let cron: CronJob = object(&cron);
    let jobs: Vec<Arc<Job>> = lines(&world["jobs"]).iter().map(|text| job(text)).collect();
    let plan = plan(&World {
        cron: &cron,
        jobs: &jobs,
        gone: &lines(&world["gone"]),
        now: time(world["at"].as_str().expect("a case says when it is")),
        local: &TimeZone::UTC,
    });
    let mut out: Vec<String> =
        plan.delete.iter().map(|job| format!("delete {}", name(&job.metadata))).collect();
    out.extend(plan.create.iter().map(|job| {
        format!("create for {}", annotation(&job.metadata, SCHEDULED_AT).unwrap_or_default())
    }));
    out.extend(plan.events.iter().map(|(_, reason, _)| format!("tell {reason}")));
    let active = plan.status.active.iter().flatten().filter_map(|one| one.name.clone());
    let active: Vec<String> = active.collect();
    out.extend((active != lines(&world["active"])).then(|| format!("active {}", active.join(" "))));
    out.extend(plan.look_again_in.map(|wait| format!("look again in {} s", wait.as_secs())));
    out
}
