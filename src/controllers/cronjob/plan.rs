//! Which Job a CronJob starts now, which ones go, and what to report. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kinds::meta::cron::Schedule;

use crate::owner::{self, created, name, uid};

pub const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this are told about (upstream's number).
const MISSED_MAX: usize = 100;

pub struct World<'a> {
    pub cron: &'a CronJob,
    /// The Jobs that it controls.
    pub jobs: &'a [Arc<Job>],
    /// Uids of Jobs in the status that are there no more.
    pub gone: &'a [String],
    pub now: Timestamp,
    /// The zone of this machine, for schedules that name none.
    pub local: &'a TimeZone,
}

#[derive(Debug, Default)]
pub struct Plan {
    pub status: CronJobStatus,
    /// Before the new one is made.
    pub delete: Vec<Arc<Job>>,
    pub create: Option<Job>,
    /// Kind, reason, text.
    pub events: Vec<(&'static str, &'static str, String)>,
    /// Until the next time.
    pub look_again_in: Option<Duration>,
}

pub fn plan(world: &World<'_>) -> Plan {
    let mut out = Plan { status: world.cron.status.clone().unwrap_or_default(), ..Plan::default() };
    let spec = &world.cron.spec;
    out.look_at_jobs(world);
    if world.cron.metadata.deletion_timestamp.is_none() {
        out.trim(world.jobs, "Complete", spec.successful_jobs_history_limit);
        out.trim(world.jobs, "Failed", spec.failed_jobs_history_limit);
        out.start(world, spec);
    }
    out
}

pub fn end_of(job: &Job) -> Option<&'static str> {
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    ["Complete", "Failed"]
        .into_iter()
        .find(|end| conditions.iter().any(|c| c.type_ == *end && c.status == "True"))
}

pub fn reference_to(job: &Job) -> ObjectReference {
    client::recorder::reference(job)
}

impl Plan {
    fn is_active(&self, job: &Job) -> bool {
        self.status.active.iter().flatten().any(|one| one.uid == job.metadata.uid)
    }

    fn drop_active(&mut self, uid: &str) {
        if let Some(active) = &mut self.status.active {
            active.retain(|one| one.uid.as_deref() != Some(uid));
        }
        self.status.active = self.status.active.take().filter(|active| !active.is_empty());
    }

    fn look_at_jobs(&mut self, world: &World<'_>) {
        for job in world.jobs {
            let own_name = name(&job.metadata);
            let found = self.is_active(job);
            let Some(end) = end_of(job) else {
                if !found {
                    let text = "Saw a job that the controller did not create or forgot: ";
                    self.events.push(("Warning", "UnexpectedJob", format!("{text}{own_name}")));
                }
                continue;
            };
            if found {
                self.drop_active(uid(&job.metadata));
                let text = format!("Saw completed job: {own_name}, condition: {end}");
                self.events.push(("Normal", "SawCompletedJob", text));
            }
            let at = job.status.as_ref().and_then(|s| s.completion_time.clone());
            if let Some(at) = at.filter(|_| end == "Complete")
                && self.status.last_successful_time.as_ref().is_none_or(|last| last.0 < at.0)
            {
                self.status.last_successful_time = Some(at);
            }
        }
        for one in self.status.active.clone().into_iter().flatten() {
            let uid = one.uid.unwrap_or_default();
            if world.gone.contains(&uid) {
                let text = format!("Active job went missing: {}", one.name.unwrap_or_default());
                self.events.push(("Normal", "MissingJob", text));
                self.drop_active(&uid);
            }
        }
    }

    /// Keeps the newest Jobs that ended so.
    fn trim(&mut self, jobs: &[Arc<Job>], end: &str, limit: Option<i32>) {
        let Some(limit) = limit else { return };
        let mut ended: Vec<Arc<Job>> =
            jobs.iter().filter(|job| end_of(job) == Some(end)).cloned().collect();
        let surplus = ended.len().saturating_sub(limit.max(0).unsigned_abs() as usize);
        let started = |job: &Job| job.status.as_ref()?.start_time.as_ref().map(|time| time.0);
        ended.sort_by_key(|job| {
            let at = started(job);
            (at.is_none(), at, name(&job.metadata).to_string())
        });
        ended.truncate(surplus);
        ended.retain(|job| job.metadata.deletion_timestamp.is_none());
        self.delete.extend(ended);
    }

    fn start(&mut self, world: &World<'_>, spec: &CronJobSpec) {
        let zone = match spec.time_zone.as_deref().map(TimeZone::get) {
            None => world.local.clone(),
            Some(Ok(zone)) => zone,
            Some(Err(err)) => {
                let zone = spec.time_zone.as_deref().unwrap_or_default();
                let text = format!("invalid timeZone: {zone:?}: {err}");
                return self.events.push(("Warning", "UnknownTimeZone", text));
            }
        };
        if spec.suspend == Some(true) {
            return;
        }
        let schedule = match Schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(err) => {
                let text = format!("unparseable schedule: {:?} : {err}", spec.schedule);
                return self.events.push(("Warning", "UnparseableSchedule", text));
            }
        };
        let now = world.now;
        let last = self.status.last_schedule_time.as_ref().map(|time| time.0);
        let last = last.unwrap_or_else(|| {
            Timestamp::from_second(created(&world.cron.metadata)).unwrap_or(now)
        });
        let due = schedule.latest(last, now, &zone);
        let next = schedule.next(due.unwrap_or(last).max(last), &zone);
        // What is never due again asks for nothing.
        self.look_again_in = next.map(|next| {
            let wait = next.duration_since(now);
            Duration::try_from(wait).unwrap_or_default().max(Duration::from_millis(1))
        });
        let Some(due) = due else { return };
        let deadline = spec.starting_deadline_seconds;
        let cut = deadline.and_then(|s| now.checked_sub(jiff::SignedDuration::from_secs(s)).ok());
        // Nothing is said of what the deadline has passed, as upstream says nothing.
        if cut.is_some_and(|cut| due <= cut) {
            return;
        }
        if is_above(MISSED_MAX, &schedule, cut.map_or(last, |cut| cut.max(last)), now, &zone) {
            let text = "too many missed start times. Set or decrease \
                        .spec.startingDeadlineSeconds or check clock skew";
            self.events.push(("Warning", "TooManyMissedTimes", text.into()));
        }
        self.start_at(world, spec, due, &zone);
    }

    fn start_at(&mut self, world: &World<'_>, spec: &CronJobSpec, due: Timestamp, zone: &TimeZone) {
        let active = self.status.active.clone().unwrap_or_default();
        let job = new_job(world.cron, spec, due, zone);
        if active.iter().any(|one| one.name == job.metadata.name) {
            return;
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let text = "Not starting job because prior execution is running and concurrency \
                            policy is Forbid";
                return self.events.push(("Normal", "JobAlreadyActive", text.into()));
            }
            Some("Replace") => {
                let running = |job: &&Arc<Job>| self.is_active(job);
                let running: Vec<Arc<Job>> = world.jobs.iter().filter(running).cloned().collect();
                self.delete.extend(running);
            }
            _ => {}
        }
        self.create = Some(job);
    }

    /// The Job of a scheduled time is there; it is written to the status.
    pub fn started(&mut self, job: &Job) {
        let at = owner::annotation(&job.metadata, SCHEDULED_AT).and_then(base::time::parse);
        self.status.last_schedule_time = at.map(Time).or(self.status.last_schedule_time.take());
        if !self.is_active(job) && end_of(job).is_none() {
            self.status.active.get_or_insert_default().push(reference_to(job));
        }
    }

    pub fn deleted(&mut self, job: &Job) {
        self.drop_active(uid(&job.metadata));
    }
}

fn is_above(
    limit: usize,
    schedule: &Schedule,
    from: Timestamp,
    now: Timestamp,
    zone: &TimeZone,
) -> bool {
    let mut at = from;
    for _ in 0..=limit {
        match schedule.next(at, zone) {
            Some(next) if next <= now => at = next,
            _ => return false,
        }
    }
    true
}

/// The name is a lock: a scheduled time has one Job, however often it is made.
fn new_job(cron: &CronJob, spec: &CronJobSpec, due: Timestamp, zone: &TimeZone) -> Job {
    let given = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = given.annotations.unwrap_or_default();
    let local = due.to_zoned(zone.clone());
    let shown = match local.offset().is_zero() {
        true => base::time::rfc3339(due),
        false => local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
    };
    annotations.insert(SCHEDULED_AT.into(), shown);
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", name(&cron.metadata), due.as_second() / 60)),
            namespace: cron.metadata.namespace.clone(),
            labels: given.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner::reference_to(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_started_job_is_like_its_template_and_in_the_status() {
        let cron: CronJob = serde_json::from_value(json!({
            "metadata": {"name": "tick", "uid": "c", "creationTimestamp": "2026-01-01T00:00:30Z"},
            "spec": {"schedule": "*/10 * * * *", "jobTemplate": {
                "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}}},
        }))
        .unwrap();
        let now = "2026-01-01T00:11:00Z".parse().unwrap();
        let world = World { cron: &cron, jobs: &[], gone: &[], now, local: &TimeZone::UTC };
        let mut plan = plan(&world);
        let mut job = plan.create.take().unwrap();
        // Minutes since 1970.
        assert_eq!(name(&job.metadata), "tick-29453770");
        assert_eq!(job.metadata.labels.as_ref().unwrap()["a"], "b");
        assert_eq!(job.metadata.annotations.as_ref().unwrap()["c"], "d");
        job.metadata.uid = Some("j".into());
        plan.started(&job);
        assert_eq!(plan.status.active.as_ref().unwrap()[0].name, job.metadata.name);
        let last = plan.status.last_schedule_time.clone().unwrap();
        assert_eq!(last.0.to_string(), "2026-01-01T00:10:00Z");
        plan.deleted(&job);
        assert_eq!(plan.status.active, None);
    }
}
