//! Ranges of service addresses become ready, and stay while addresses need them.

use crate::support::{Cluster, cluster, until};
use client::DeleteParams;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use serde_json::{Value, json};

impl Cluster {
    async fn until_ready(&self, name: &str, status: &str) -> Value {
        until(&format!("range {name} is {status}"), || async {
            let cidr = self.client.all::<ServiceCIDR>().get(name).await.unwrap();
            let cidr = serde_json::to_value(cidr).unwrap();
            let ready = cidr["status"]["conditions"][0].clone();
            (ready["type"] == "Ready" && ready["status"] == status).then_some(cidr)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_used_when_it_is_ready_and_stays_while_it_is_used() {
    let cluster = cluster().await;
    let cidr = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.99.0.0/28"]}});
    let cidrs = cluster.client.all::<ServiceCIDR>();
    cidrs.create(&serde_json::from_value(cidr).unwrap()).await.unwrap();
    let ready = cluster.until_ready("more", "True").await;
    assert_eq!(
        ready["metadata"]["finalizers"],
        json!(["networking.k8s.io/service-cidr-finalizer"])
    );
    let service = json!({"metadata": {"name": "s"},
        "spec": {"clusterIP": "10.99.0.3", "ports": [{"port": 80}]}});
    let services = cluster.client.api::<Service>(Some("default"));
    services.create(&serde_json::from_value(service).unwrap()).await.unwrap();
    // What somebody else writes down there holds nobody up.
    let own = json!({"metadata": {"name": "10.99.0.9"}, "spec": {"parentRef":
        {"group": "a.example", "resource": "gates", "namespace": "default", "name": "g"}}});
    let addresses = cluster.client.all::<IPAddress>();
    addresses.create(&serde_json::from_value(own).unwrap()).await.unwrap();
    cidrs.delete("more", &DeleteParams::default()).await.unwrap();
    let going = cluster.until_ready("more", "False").await;
    assert_eq!(going["status"]["conditions"][0]["reason"], "Terminating");
    services.delete("s", &DeleteParams::default()).await.unwrap();
    // Ten seconds after the deletion, at the latest when the address is free.
    until("the range is gone", async || {
        cidrs.get_opt("more").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(addresses.get_opt("10.99.0.9").await.unwrap().is_some());
}
