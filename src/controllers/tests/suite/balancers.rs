//! Services of type LoadBalancer, where no cloud gives them addresses.

use k8s_openapi::api::core::v1::{Node, Service};
use serde_json::json;

use crate::support::{Cluster, cluster, until};

impl Cluster {
    async fn until_at(&self, service: &str, addresses: &[&str]) {
        until(&format!("{service} is at {addresses:?}"), || async {
            let services = self.client.api::<Service>(Some("default"));
            let status = services.get(service).await.unwrap().status?.load_balancer;
            let ingress = status.and_then(|status| status.ingress).unwrap_or_default();
            let is: Vec<String> = ingress.into_iter().filter_map(|ingress| ingress.ip).collect();
            (is == addresses).then_some(())
        })
        .await;
    }

    async fn balance(&self, service: &str, port: i32) {
        let service = json!({"metadata": {"name": service}, "spec": {"type": "LoadBalancer",
            "selector": {"app": "web"}, "ports": [{"port": port}]}});
        let services = self.client.api::<Service>(Some("default"));
        services.create(&serde_json::from_value(service).unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_get_the_addresses_of_ready_nodes_and_lose_them() {
    let cluster = cluster().await;
    let nodes = cluster.client.all::<Node>();
    cluster.balance("web", 80).await;
    cluster.until_told("UnAvailableLoadBalancer").await;
    for (name, address) in [("n1", "192.0.2.1"), ("n2", "192.0.2.2")] {
        let node = json!({"metadata": {"name": name}});
        nodes.create(&serde_json::from_value(node).unwrap()).await.unwrap();
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": address}]}});
        nodes.merge(name, "status", &status).await.unwrap();
    }
    cluster.until_at("web", &["192.0.2.1", "192.0.2.2"]).await;
    cluster.until_told("EnsuredLoadBalancer").await;
    // Another service waits for the port until it is free.
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    cluster.balance("late", 80).await;
    let text = "Error syncing load balancer: port 80/TCP is taken by service default/web";
    cluster.until_told(text).await;
    let services = cluster.client.api::<Service>(Some("default"));
    services.merge("web", "", &json!({"spec": {"type": "ClusterIP"}})).await.unwrap();
    cluster.until_at("web", &[]).await;
    cluster.until_at("late", &["192.0.2.1", "192.0.2.2"]).await;
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    nodes.merge("n1", "status", &not_ready).await.unwrap();
    cluster.until_at("late", &["192.0.2.2"]).await;
}
