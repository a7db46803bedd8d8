//! CronJobs by the clock on the wall; the suite ends their Jobs' pods.

use crate::support::{Cluster, cluster, until};
use client::Patch;
use client::api::ListParams;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

impl Cluster {
    async fn create_cronjob(&self, mut spec: Value) {
        let pod = json!({"spec": {"restartPolicy": "Never",
            "containers": [{"name": "main", "image": "example.com/work:1"}]}});
        spec["jobTemplate"] = json!({"spec": {"template": pod}});
        let cron = json!({"metadata": {"name": "tick"}, "spec": spec});
        let crons = self.client.api::<CronJob>(Some("default"));
        crons.create(&serde_json::from_value(cron).unwrap()).await.unwrap();
    }

    async fn jobs(&self) -> Vec<Job> {
        self.client.api::<Job>(Some("default")).list(&ListParams::default()).await.unwrap().items
    }

    async fn status_of_cronjob(&self) -> Value {
        let cron = self.client.api::<CronJob>(Some("default")).get("tick").await.unwrap();
        serde_json::to_value(cron.status).unwrap()
    }

    async fn end_pods(&self) {
        let pods = self.client.api::<Pod>(Some("default"));
        for pod in pods.list(&ListParams::default()).await.unwrap().items {
            let patch = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
            pods.patch_status(pod.metadata.name.as_deref().unwrap(), &patch).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_started_finished_and_forgotten() {
    let cluster = cluster().await;
    cluster
        .create_cronjob(json!({"schedule": "@every 1s", "successfulJobsHistoryLimit": 1,
        "concurrencyPolicy": "Forbid"}))
        .await;
    let job = until("a job is there", || async { cluster.jobs().await.pop() }).await;
    let owner = &job.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("CronJob", "tick"));
    assert!(job.metadata.name.as_deref().unwrap().starts_with("tick-"));
    until("it is in the status", || async {
        let status = cluster.status_of_cronjob().await;
        let active = status["active"][0]["name"].as_str().map(str::to_owned);
        (active == job.metadata.name && status["lastScheduleTime"].is_string()).then_some(())
    })
    .await;
    until("the job is done", || async {
        cluster.end_pods().await;
        cluster.status_of_cronjob().await["lastSuccessfulTime"].is_string().then_some(())
    })
    .await;
    cluster.until_told("SawCompletedJob").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_cron_job_starts_nothing_until_it_is_resumed() {
    let cluster = cluster().await;
    cluster.create_cronjob(json!({"schedule": "@every 1s", "suspend": true})).await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert!(cluster.jobs().await.is_empty());
    let crons = cluster.client.api::<CronJob>(Some("default"));
    crons.patch("tick", &Patch::Merge(json!({"spec": {"suspend": false}}))).await.unwrap();
    until("a job is there", || async { cluster.jobs().await.pop() }).await;
    crons.delete("tick", &client::DeleteParams::default()).await.unwrap();
    until("its jobs go with it", || async { cluster.jobs().await.is_empty().then_some(()) }).await;
}
