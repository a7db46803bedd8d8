//! Metrics of a real API server behind this one, as a metrics adapter is: its own port and
//! certificate, registered by APIServices.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{Cluster, cluster, until};

const CUSTOM: &str = "/apis/custom.metrics.k8s.io/v1beta2";
const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";

/// Who asked, by their user names as the front proxy tells them.
type Users = Arc<Mutex<Vec<String>>>;

/// A pod does 30 packets a second, and 12 jobs wait in two queues.
fn answer(request: &Request<Incoming>, pod: &str) -> (StatusCode, Value) {
    let now = base::time::rfc3339(base::time::now());
    let packets = format!("{CUSTOM}/namespaces/default/pods/*/packets");
    let resources = |group: &str, version: &str| {
        json!({"kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": format!("{group}/{version}"), "resources": []})
    };
    let path = request.uri().path().replace("%2A", "*");
    let found = match path.as_str() {
        CUSTOM => resources("custom.metrics.k8s.io", "v1beta2"),
        EXTERNAL => resources("external.metrics.k8s.io", "v1beta1"),
        path if path == packets => json!({"kind": "MetricValueList",
            "apiVersion": "custom.metrics.k8s.io/v1beta2", "metadata": {}, "items": [{
                "describedObject": {"kind": "Pod", "name": pod, "namespace": "default"},
                "metric": {"name": "packets"}, "timestamp": now, "value": "30"}]}),
        path if path == format!("{EXTERNAL}/namespaces/default/waiting") => {
            let value = |value: &str| {
                json!({"metricName": "waiting", "timestamp": now,
                "metricLabels": {}, "value": value})
            };
            json!({"kind": "ExternalMetricValueList",
                "apiVersion": "external.metrics.k8s.io/v1beta1", "metadata": {},
                "items": [value("5"), value("7")]})
        }
        _ => return (StatusCode::NOT_FOUND, json!({})),
    };
    (StatusCode::OK, found)
}

async fn adapter(pod: String) -> (SocketAddr, String, Users) {
    let leaf = pki::Leaf {
        common_name: "adapter".into(),
        dns_names: vec!["adapter.default.svc".into()],
        server: true,
        ..pki::Leaf::default()
    };
    let (acceptor, authority) = testing::tls(&leaf);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let users = Users::default();
    let seen = users.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, seen, pod) = (acceptor.clone(), seen.clone(), pod.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let service = service_fn(move |request: Request<Incoming>| {
                    let user = request.headers().get("x-remote-user");
                    seen.lock().extend(user.and_then(|it| it.to_str().ok()).map(str::to_owned));
                    let (status, body) = answer(&request, &pod);
                    async move {
                        let body = Full::new(Bytes::from(body.to_string()));
                        let mut answer = Response::new(body);
                        *answer.status_mut() = status;
                        let kind = "application/json".parse().unwrap();
                        answer.headers_mut().insert("content-type", kind);
                        Ok::<_, Infallible>(answer)
                    }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, authority, users)
}

impl Cluster {
    /// A service for the adapter, and the groups that it serves.
    async fn register(&self, address: SocketAddr, authority: &str) {
        let ports = json!([{"name": "https", "port": 443, "protocol": "TCP"}]);
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "adapter"}, "spec": {"ports": ports}});
        let path = "/api/v1/namespaces/default/services";
        self.client.post_raw(path, &service).await.unwrap();
        self.place(&json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"name": "adapter", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "adapter"}},
            "addressType": "IPv4",
            "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}],
            "endpoints": [{"addresses": [address.ip().to_string()],
                "conditions": {"ready": true}}]}))
            .await;
        let bundle = k8s_openapi::ByteString(authority.as_bytes().to_vec());
        for (group, version) in
            [("custom.metrics.k8s.io", "v1beta2"), ("external.metrics.k8s.io", "v1beta1")]
        {
            let name = format!("{version}.{group}");
            let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": name}, "spec": {"group": group, "version": version,
                    "groupPriorityMinimum": 100, "versionPriority": 100, "caBundle": bundle,
                    "service": {"namespace": "default", "name": "adapter", "port": 443}}});
            let path = "/apis/apiregistration.k8s.io/v1/apiservices";
            self.client.post_raw(path, &object).await.unwrap();
            until(&format!("{group} is served"), async || {
                self.client.get_raw(&format!("/apis/{group}/{version}")).await.ok()
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_follows_metrics_of_an_aggregated_server() {
    let cluster = cluster().await;
    let pod = cluster.deploy_for_autoscaler().await;
    let (address, authority, users) = adapter(pod).await;
    cluster.register(address, &authority).await;
    let average = |value: &str| json!({"type": "AverageValue", "averageValue": value});
    let quick = json!({"scaleUp": {"policies": [
        {"type": "Pods", "value": 50, "periodSeconds": 1}]}});
    // 30 packets where 10 are wanted; 12 jobs, 2 for each pod.
    let object = json!({"metadata": {"name": "web"}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "minReplicas": 1, "maxReplicas": 20, "behavior": quick, "metrics": [
            {"type": "Pods", "pods": {"metric": {"name": "packets"}, "target": average("10")}},
            {"type": "External", "external": {"metric": {"name": "waiting"},
                "target": average("2")}}]}});
    let api = cluster.client.api::<HorizontalPodAutoscaler>(Some("default"));
    api.create(&serde_json::from_value(object).unwrap()).await.unwrap();
    let deployments = cluster.client.api::<Deployment>(Some("default"));
    until("there are six", async || {
        (deployments.get("web").await.unwrap().spec?.replicas == Some(6)).then_some(())
    })
    .await;
    let status = until("both metrics are shown", async || {
        let status = serde_json::to_value(api.get("web").await.unwrap().status).unwrap();
        (status["currentMetrics"].as_array()?.len() == 2).then_some(status)
    })
    .await;
    assert_eq!(status["currentMetrics"][0]["pods"]["current"]["averageValue"], "30", "{status}");
    // The adapter is told who asks, and may judge by that.
    let who = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";
    assert!(users.lock().iter().any(|user| user == who), "{:?}", users.lock());
}
