//! How long the work on one pod takes.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::{Next, Worker};
use crate::{metrics, pod};

impl Worker {
    /// A step, timed. `looked_at` is the version of the pod that the last one saw.
    pub(super) async fn measured_step(&mut self, looked_at: &mut Option<String>) -> Next {
        let begun = Instant::now();
        let next = self.step().await;
        let version = self.pod.metadata.resource_version.clone().unwrap_or_default();
        let operation = match looked_at.replace(version.clone()) {
            None => "create",
            Some(before) if before != version => "update",
            Some(_) => "sync",
        };
        metrics::pods::pod_looked_after(operation, begun.elapsed());
        next
    }

    /// The pod runs for the first time.
    pub(super) fn note_start(&self, status: &PodStatus) {
        metrics::pods::pod_runs(self.seen.elapsed());
        // Nobody knows when a file was meant to become a pod.
        if pod::is_static(&self.pod) {
            return;
        }
        let Some(created) = &self.pod.metadata.creation_timestamp else { return };
        let since = between(created.0, base::time::now());
        metrics::pods::created_pod_runs(since, self.pulls.took + init_time(status));
    }
}

/// None when the clock was set back meanwhile.
fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// What init containers that have ended took.
fn init_time(status: &PodStatus) -> Duration {
    let ended = status.init_container_statuses.iter().flatten();
    ended
        .filter_map(|it| it.state.as_ref()?.terminated.as_ref())
        .filter_map(|it| Some(between(it.started_at.as_ref()?.0, it.finished_at.as_ref()?.0)))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn init_containers_take_what_they_took_one_after_another() {
        let ended = |from: &str, to: &str| {
            json!({"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"terminated": {"exitCode": 0, "startedAt": from, "finishedAt": to}}})
        };
        let status: PodStatus = serde_json::from_value(json!({"initContainerStatuses": [
            ended("2026-01-01T00:00:00Z", "2026-01-01T00:00:03Z"),
            ended("2026-01-01T00:00:04Z", "2026-01-01T00:00:06Z"),
            // The clock was set back while it ran.
            ended("2026-01-01T00:00:09Z", "2026-01-01T00:00:07Z")]}))
        .unwrap();
        assert_eq!(init_time(&status), Duration::from_secs(5));
    }
}
