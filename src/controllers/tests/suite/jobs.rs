//! Jobs, from their creation to their end, with pods that end as the suite says.

use crate::support::{Cluster, cluster, until};
use client::api::ListParams;
use client::{DeleteParams, Patch};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use serde_json::{Value, json};

impl Cluster {
    async fn create_job(&self, name: &str, mut spec: Value) {
        spec["template"] = json!({"spec": {"restartPolicy": "Never",
            "containers": [{"name": "main", "image": "example.com/work:1"}]}});
        let job = json!({"metadata": {"name": name}, "spec": spec});
        let job = serde_json::from_value(job).unwrap();
        self.client.api::<Job>(Some("default")).create(&job).await.unwrap();
    }

    async fn pods_of_job(&self, job: &str) -> Vec<Pod> {
        let params = ListParams::labels(format!("job-name={job}"));
        self.client.api::<Pod>(Some("default")).list(&params).await.unwrap().items
    }

    /// Waits for pods that have not ended.
    async fn running(&self, job: &str, count: usize) -> Vec<String> {
        until(&format!("{job} has {count} pods"), || async {
            let pods = self.pods_of_job(job).await;
            let open = pods.iter().filter(|pod| {
                let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
                phase == Some("Pending") && pod.metadata.deletion_timestamp.is_none()
            });
            let names: Vec<String> = open.filter_map(|pod| pod.metadata.name.clone()).collect();
            (names.len() == count).then_some(names)
        })
        .await
    }

    async fn end(&self, pod: &str, phase: &str) {
        let api = self.client.api::<Pod>(Some("default"));
        let patch = Patch::Merge(json!({"status": {"phase": phase}}));
        api.patch_status(pod, &patch).await.unwrap();
    }

    async fn status_of_job(&self, job: &str) -> Value {
        let job = self.client.api::<Job>(Some("default")).get(job).await.unwrap();
        serde_json::to_value(job.status).unwrap()
    }

    async fn until_job_is(&self, job: &str, kind: &str) -> Value {
        until(&format!("{job} is {kind}"), || async {
            let status = self.status_of_job(job).await;
            let held = status["conditions"].as_array().cloned().unwrap_or_default();
            held.iter().any(|c| c["type"] == kind && c["status"] == "True").then_some(status)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_completes_and_counts_each_pod_once() {
    let cluster = cluster().await;
    cluster.create_job("work", json!({"completions": 3, "parallelism": 2})).await;
    for pod in cluster.running("work", 2).await {
        cluster.end(&pod, "Succeeded").await;
    }
    let last = cluster.running("work", 1).await;
    cluster.end(&last[0], "Succeeded").await;
    let status = cluster.until_job_is("work", "Complete").await;
    assert_eq!(status["succeeded"], 3, "{status}");
    assert_eq!(status["conditions"][0]["type"], "SuccessCriteriaMet");
    assert_eq!(status["conditions"][0]["reason"], "CompletionsReached");
    assert!(status["completionTime"].is_string() && status["active"].is_null(), "{status}");
    let pods = cluster.pods_of_job("work").await;
    assert_eq!(pods.len(), 3);
    assert!(pods.iter().all(|pod| pod.metadata.finalizers.is_none()));
    until("the events are told", || async {
        let api = cluster.client.api::<Event>(Some("default"));
        let events = api.list(&ListParams::default()).await.unwrap().items;
        let of = |reason: &str| {
            events.iter().filter(|event| event.reason.as_deref() == Some(reason)).count()
        };
        (of("SuccessfulCreate") == 3 && of("Completed") == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_are_told_to_pods_and_kept_in_the_status() {
    let cluster = cluster().await;
    let spec = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"});
    cluster.create_job("parts", spec).await;
    let pods = cluster.running("parts", 3).await;
    let mut hosts = Vec::new();
    for pod in cluster.pods_of_job("parts").await {
        let spec = pod.spec.unwrap();
        hosts.push(spec.hostname.unwrap());
        let env = spec.containers[0].env.as_ref().unwrap();
        assert_eq!(env[0].name, "JOB_COMPLETION_INDEX");
    }
    hosts.sort();
    assert_eq!(hosts, ["parts-0", "parts-1", "parts-2"]);
    for pod in pods {
        cluster.end(&pod, "Succeeded").await;
    }
    let status = cluster.until_job_is("parts", "Complete").await;
    assert_eq!((&status["completedIndexes"], &status["succeeded"]), (&json!("0-2"), &json!(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_and_deleted_pods_count_against_the_limit() {
    let cluster = cluster().await;
    let spec = json!({"completions": 4, "parallelism": 3, "backoffLimit": 1});
    cluster.create_job("fails", spec).await;
    let pods = cluster.running("fails", 3).await;
    let api = cluster.client.api::<Pod>(Some("default"));
    api.delete(&pods[0], &DeleteParams::default()).await.unwrap();
    until("the deleted pod counts", || async {
        (cluster.status_of_job("fails").await["failed"] == 1).then_some(())
    })
    .await;
    cluster.end(&pods[1], "Failed").await;
    let status = cluster.until_job_is("fails", "Failed").await;
    assert_eq!(status["failed"], 3, "the last one was ended: {status}");
    assert_eq!(status["conditions"][0]["type"], "FailureTarget");
    assert_eq!(status["conditions"][1]["reason"], "BackoffLimitExceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_suspended_resumed_ended_by_its_deadline_and_removed() {
    let cluster = cluster().await;
    let spec = json!({"suspend": true, "activeDeadlineSeconds": 3, "ttlSecondsAfterFinished": 0});
    cluster.create_job("later", spec).await;
    let status = cluster.until_job_is("later", "Suspended").await;
    assert!(status["startTime"].is_null(), "{status}");
    assert!(cluster.pods_of_job("later").await.is_empty());
    let api = cluster.client.api::<Job>(Some("default"));
    api.patch("later", &Patch::Merge(json!({"spec": {"suspend": false}}))).await.unwrap();
    cluster.running("later", 1).await;
    until("the job is removed with its pods", || async {
        let job = api.get_opt("later").await.unwrap();
        (job.is_none() && cluster.pods_of_job("later").await.is_empty()).then_some(())
    })
    .await;
}

impl Cluster {
    /// The node's word that a pod's container ended with this code.
    async fn exit(&self, pod: &str, code: i32) {
        let api = self.client.api::<Pod>(Some("default"));
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        let container = json!({"name": "main", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": code,
                "finishedAt": "2026-01-01T00:00:00Z"}}});
        let status = json!({"phase": phase, "containerStatuses": [container]});
        api.patch_status(pod, &Patch::Merge(json!({"status": status}))).await.unwrap();
    }

    /// The one pod of an index that has not ended.
    async fn pod_of(&self, job: &str, index: u32) -> String {
        until(&format!("index {index} has a pod"), || async {
            let pods = self.pods_of_job(job).await;
            let own = index.to_string();
            let is = |pod: &&Pod| {
                let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
                let labels = pod.metadata.labels.as_ref().unwrap();
                phase == Some("Pending")
                    && labels["batch.kubernetes.io/job-completion-index"] == own
            };
            pods.iter().find(is).and_then(|pod| pod.metadata.name.clone())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_code_can_fail_a_job_and_a_disruption_need_not_count() {
    let cluster = cluster().await;
    let rules = json!([
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]);
    let spec = json!({"completions": 2, "parallelism": 2, "backoffLimit": 0,
        "podFailurePolicy": {"rules": rules}});
    cluster.create_job("judged", spec).await;
    let pods = cluster.running("judged", 2).await;
    let api = cluster.client.api::<Pod>(Some("default"));
    let disrupted = json!({"status": {"phase": "Failed", "conditions": [
        {"type": "DisruptionTarget", "status": "True"}]}});
    api.patch_status(&pods[0], &Patch::Merge(disrupted)).await.unwrap();
    until("the disrupted pod is let go", || async {
        api.get(&pods[0]).await.unwrap().metadata.finalizers.is_none().then_some(())
    })
    .await;
    let status = cluster.status_of_job("judged").await;
    assert!(status["failed"].is_null() && status["conditions"].is_null(), "{status}");
    cluster.exit(&pods[1], 42).await;
    let status = cluster.until_job_is("judged", "Failed").await;
    assert_eq!(status["conditions"][1]["reason"], "PodFailurePolicy");
    let why = format!(
        "Container main for pod default/{} failed with exit code 42 matching FailJob rule at index 1",
        pods[1]
    );
    assert_eq!(status["conditions"][1]["message"], why.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_fail_each_for_themselves_and_the_others_are_done() {
    let cluster = cluster().await;
    let rules = json!([{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [7]}}]);
    let spec = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed",
        "backoffLimitPerIndex": 1, "podFailurePolicy": {"rules": rules}});
    cluster.create_job("parts", spec).await;
    let first = cluster.pod_of("parts", 0).await;
    cluster.exit(&first, 1).await;
    let second = cluster.pod_of("parts", 0).await;
    let pods = cluster.client.api::<Pod>(Some("default"));
    let again = pods.get(&second).await.unwrap().metadata.annotations.unwrap();
    assert_eq!(again["batch.kubernetes.io/job-index-failure-count"], "1");
    cluster.exit(&second, 1).await;
    let at_once = cluster.pod_of("parts", 1).await;
    cluster.exit(&at_once, 7).await;
    let good = cluster.pod_of("parts", 2).await;
    cluster.exit(&good, 0).await;
    let status = cluster.until_job_is("parts", "Failed").await;
    assert_eq!(status["conditions"][1]["reason"], "FailedIndexes", "{status}");
    assert_eq!(
        (&status["failedIndexes"], &status["completedIndexes"]),
        (&json!("0,1"), &json!("2"))
    );
    assert_eq!((&status["failed"], &status["succeeded"]), (&json!(3), &json!(1)), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_policy_ends_a_job_before_all_have_succeeded() {
    let cluster = cluster().await;
    let spec = json!({"completions": 4, "parallelism": 3, "completionMode": "Indexed",
        "successPolicy": {"rules": [{"succeededIndexes": "1-3", "succeededCount": 1}]}});
    cluster.create_job("leads", spec).await;
    let leader = cluster.pod_of("leads", 1).await;
    cluster.exit(&leader, 0).await;
    let status = cluster.until_job_is("leads", "Complete").await;
    assert_eq!(status["conditions"][0]["type"], "SuccessCriteriaMet");
    assert_eq!(status["conditions"][0]["reason"], "SuccessPolicy");
    assert_eq!(status["conditions"][0]["message"], "Matched rules at index 0");
    assert_eq!((&status["completedIndexes"], &status["succeeded"]), (&json!("1"), &json!(1)));
    assert!(status["failed"].is_null(), "what was taken away has not failed: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_another_manager_is_left_alone() {
    let cluster = cluster().await;
    cluster.create_job("theirs", json!({"managedBy": "example.com/queue"})).await;
    cluster.create_job("ours", json!({})).await;
    cluster.running("ours", 1).await;
    assert_eq!(cluster.status_of_job("theirs").await, json!({}));
    assert!(cluster.pods_of_job("theirs").await.is_empty());
}
