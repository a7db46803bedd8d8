//! An autoscaler over a deployment; a custom resource plays the metrics API.

use crate::support::{Cluster, cluster, until};
use client::Patch;
use client::api::ListParams;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

impl Cluster {
    /// A deployment of one pod that requests 100m, and has been ready for an hour.
    pub async fn deploy_for_autoscaler(&self) -> String {
        let deployment = json!({"metadata": {"name": "web"}, "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i",
                    "resources": {"requests": {"cpu": "100m"}}}]}}}});
        let api = self.client.api::<Deployment>(Some("default"));
        api.create(&serde_json::from_value(deployment).unwrap()).await.unwrap();
        let pods = self.client.api::<Pod>(Some("default"));
        let pod = until("the pod is there", || async {
            pods.list(&ListParams::labels("app=web")).await.unwrap().items.pop()
        })
        .await;
        let hour_ago = jiff::SignedDuration::from_secs(3600);
        let since = base::time::rfc3339(base::time::now().checked_sub(hour_ago).unwrap());
        let patch = Patch::Merge(json!({"status": {"phase": "Running", "startTime": since,
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}]}}));
        let name = pod.metadata.name.unwrap();
        pods.patch_status(&name, &patch).await.unwrap();
        name
    }

    async fn serve_metrics(&self, pod: &str, cpu: &str) {
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "pods.metrics.k8s.io",
                "annotations": {"api-approved.kubernetes.io": "unapproved, a suite"}},
            "spec": {"group": "metrics.k8s.io", "scope": "Namespaced",
                "names": {"plural": "pods", "singular": "pod", "kind": "PodMetrics",
                    "listKind": "PodMetricsList"},
                "versions": [{"name": "v1beta1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object",
                        "x-kubernetes-preserve-unknown-fields": true}}}]},
        });
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        self.client.post_raw(path, &definition).await.unwrap();
        let metrics = json!({
            "apiVersion": "metrics.k8s.io/v1beta1", "kind": "PodMetrics",
            "metadata": {"name": pod, "labels": {"app": "web"}},
            "timestamp": base::time::rfc3339(base::time::now()), "window": "15s",
            "containers": [{"name": "c", "usage": {"cpu": cpu, "memory": "1Mi"}}],
        });
        let path = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods";
        until("the metric is there", || async { self.client.post_raw(path, &metrics).await.ok() })
            .await;
    }

    async fn condition(&self, kind: &str) -> Option<(String, String)> {
        let api = self.client.api::<HorizontalPodAutoscaler>(Some("default"));
        let conditions = api.get("web").await.unwrap().status?.conditions?;
        let found = conditions.into_iter().find(|c| c.type_ == kind)?;
        Some((found.status, found.reason?))
    }

    async fn until_autoscaler_is(&self, kind: &str, status: &str, reason: &str) {
        until(&format!("{kind} is {status} for {reason}"), || async {
            (self.condition(kind).await? == (status.into(), reason.into())).then_some(())
        })
        .await;
    }
}

fn autoscaler(target: &str) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
        "minReplicas": 1, "maxReplicas": 9, "metrics": [{"type": "Resource", "resource":
            {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_grows_with_its_load_once_metrics_are_served() {
    let cluster = cluster().await;
    let pod = cluster.deploy_for_autoscaler().await;
    let api = cluster.client.api::<HorizontalPodAutoscaler>(Some("default"));
    api.create(&serde_json::from_value(autoscaler("web")).unwrap()).await.unwrap();
    cluster.until_autoscaler_is("ScalingActive", "False", "FailedGetResourceMetric").await;
    cluster.until_autoscaler_is("AbleToScale", "True", "SucceededGetScale").await;
    cluster.serve_metrics(&pod, "250m").await;
    // A change makes it look at once.
    api.patch("web", &Patch::Merge(json!({"spec": {"maxReplicas": 10}}))).await.unwrap();
    cluster.until_autoscaler_is("ScalingActive", "True", "ValidMetricFound").await;
    cluster.until_autoscaler_is("ScalingLimited", "True", "ScaleUpLimit").await;
    cluster.until_autoscaler_is("AbleToScale", "True", "SucceededRescale").await;
    let why = "cpu resource utilization (percentage of request) above target";
    cluster.until_told(&format!("New size: 4; reason: {why}")).await;
    let deployments = cluster.client.api::<Deployment>(Some("default"));
    let deployment = deployments.get("web").await.unwrap();
    assert_eq!(deployment.spec.unwrap().replicas, Some(4));
    let status = serde_json::to_value(api.get("web").await.unwrap().status).unwrap();
    assert_eq!((&status["currentReplicas"], &status["desiredReplicas"]), (&json!(1), &json!(4)));
    assert_eq!(
        status["currentMetrics"][0]["resource"],
        json!({"name": "cpu", "current": {"averageUtilization": 250, "averageValue": "250m"}})
    );
    assert!(status["lastScaleTime"].is_string(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_autoscalers_of_the_same_pods_scale_nothing_until_one_goes() {
    let cluster = cluster().await;
    let pod = cluster.deploy_for_autoscaler().await;
    cluster.serve_metrics(&pod, "250m").await;
    let api = cluster.client.api::<HorizontalPodAutoscaler>(Some("default"));
    let mut other = autoscaler("web");
    other["metadata"]["name"] = "other".into();
    // Its pods are the others' too, by a selector that is wider.
    let wide = json!({"metadata": {"name": "wide"}, "spec": {
        "replicas": 1, "selector": {"matchExpressions": [
            {"key": "app", "operator": "In", "values": ["web", "more"]}]},
        "template": {"metadata": {"labels": {"app": "more"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let deployments = cluster.client.api::<Deployment>(Some("default"));
    deployments.create(&serde_json::from_value(wide).unwrap()).await.unwrap();
    other["spec"]["scaleTargetRef"]["name"] = "wide".into();
    api.create(&serde_json::from_value(other).unwrap()).await.unwrap();
    until("the other has looked", || async {
        api.get("other")
            .await
            .unwrap()
            .status?
            .conditions?
            .into_iter()
            .find(|c| c.type_ == "ScalingActive")
    })
    .await;
    api.create(&serde_json::from_value(autoscaler("web")).unwrap()).await.unwrap();
    cluster.until_autoscaler_is("ScalingActive", "False", "AmbiguousSelector").await;
    let why = "pods by selector app=web are controlled by multiple HPAs: [{other default} \
               {web default}]";
    cluster.until_told(why).await;
    assert_eq!(deployments.get("web").await.unwrap().spec.unwrap().replicas, Some(1));
    api.delete("other", &client::DeleteParams::default()).await.unwrap();
    api.patch("web", &Patch::Merge(json!({"spec": {"maxReplicas": 10}}))).await.unwrap();
    cluster.until_autoscaler_is("ScalingActive", "True", "ValidMetricFound").await;
}

/// Pods, another object, and something outside of the cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_follows_metrics_of_every_other_kind() {
    let cluster = cluster().await;
    let pod = cluster.deploy_for_autoscaler().await;
    let now = base::time::rfc3339(base::time::now());
    let custom = "/apis/custom.metrics.k8s.io";
    let of = |kind: &str, name: &str, value: &str| {
        json!({"describedObject": {"kind": kind, "name": name, "namespace": "default"},
            "metric": {"name": "m"}, "timestamp": now, "value": value})
    };
    let list = |items: Value| json!({"metadata": {}, "items": items});
    let external = |value: &str| json!({"metricName": "jobs", "timestamp": now, "value": value});
    for (path, answer) in [
        (
            custom.to_string(),
            json!({"versions": [{"version": "v1beta1"},
            {"version": "v1beta2"}]}),
        ),
        (
            format!("{custom}/v1beta2/namespaces/default/pods/*/packets"),
            list(json!([of("Pod", &pod, "20")])),
        ),
        (
            format!("{custom}/v1beta2/namespaces/default/ingresses.networking.k8s.io/door/hits"),
            list(json!([of("Ingress", "door", "3k")])),
        ),
        (
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/jobs".to_string(),
            list(json!([external("10"), external("15")])),
        ),
    ] {
        cluster.metrics.answers.lock().insert(path, answer);
    }
    let average = |value: &str| json!({"type": "AverageValue", "averageValue": value});
    let door = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "door"});
    let series = json!({"matchLabels": {"queue": "q"}});
    let quick = json!({"scaleUp": {"policies": [
        {"type": "Pods", "value": 50, "periodSeconds": 1}]}});
    // One pod of 20 packets where 10 are wanted; 3,000 hits, 1,000 for each; 25 jobs for 5.
    let object = json!({"metadata": {"name": "web"}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "minReplicas": 1, "maxReplicas": 20, "behavior": quick, "metrics": [
            {"type": "Pods", "pods": {"metric": {"name": "packets"}, "target": average("10")}},
            {"type": "Object", "object": {"describedObject": door, "metric": {"name": "hits"},
                "target": average("1k")}},
            {"type": "External", "external": {"metric": {"name": "jobs", "selector": series},
                "target": average("5")}}]}});
    let api = cluster.client.api::<HorizontalPodAutoscaler>(Some("default"));
    api.create(&serde_json::from_value(object).unwrap()).await.unwrap();
    // Of several metrics the one that wants most decides.
    let deployments = cluster.client.api::<Deployment>(Some("default"));
    until("there are five", || async {
        (deployments.get("web").await.unwrap().spec?.replicas == Some(5)).then_some(())
    })
    .await;
    let status = until("all metrics are shown", || async {
        let status = serde_json::to_value(api.get("web").await.unwrap().status).unwrap();
        (status["currentMetrics"].as_array()?.len() == 3).then_some(status)
    })
    .await;
    let shown = &status["currentMetrics"];
    assert_eq!(shown[0]["pods"]["current"]["averageValue"], "20", "{status}");
    assert_eq!(shown[1]["object"]["current"]["averageValue"], "3k", "{status}");
    assert_eq!(shown[2]["external"]["current"]["averageValue"], "25", "{status}");
    let asked = cluster.metrics.asked.lock().join("\n");
    assert!(asked.contains("jobs?labelSelector=queue%3Dq"), "{asked}");
    assert!(asked.contains("labelSelector=app%3Dweb"), "{asked}");

    // Without one of them it does not shrink, and says why.
    cluster.metrics.answers.lock().remove(custom);
    api.patch("web", &Patch::Merge(json!({"spec": {"maxReplicas": 19}}))).await.unwrap();
    cluster.until_told("FailedGetPodsMetric").await;
    assert_eq!(deployments.get("web").await.unwrap().spec.unwrap().replicas, Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_there_is_told() {
    let cluster = cluster().await;
    let api = cluster.client.api::<HorizontalPodAutoscaler>(Some("default"));
    api.create(&serde_json::from_value(autoscaler("nobody")).unwrap()).await.unwrap();
    cluster.until_autoscaler_is("AbleToScale", "False", "FailedGetScale").await;
    cluster.until_told("deployments.apps \"nobody\" not found").await;
}
