//! Endpoints written by hand, and the slices that follow them.

use crate::support::{cluster, until};
use client::api::ListParams;
use client::{DeleteParams, Patch};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn slices_follow_endpoints_that_are_created_changed_and_deleted() {
    let cluster = cluster().await;
    let service = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 80}]}});
    let services = cluster.client.api::<Service>(Some("default"));
    services.create(&serde_json::from_value(service).unwrap()).await.unwrap();
    let api = cluster.client.api::<Endpoints>(Some("default"));
    let subsets = |ip: &str| json!([{"addresses": [{"ip": ip}], "ports": [{"port": 80}]}]);
    let endpoints = json!({"metadata": {"name": "db", "labels": {"a": "b"}},
        "subsets": subsets("10.1.2.3")});
    api.create(&serde_json::from_value(endpoints).unwrap()).await.unwrap();
    let slices = async || {
        let params = ListParams::labels("kubernetes.io/service-name=db");
        let api = cluster.client.api::<EndpointSlice>(Some("default"));
        api.list(&params).await.unwrap().items
    };
    let until_address = async |ip: &str| {
        until(&format!("a slice has {ip}"), || async {
            let mut slices = slices().await;
            let slice = slices.pop().filter(|_| slices.is_empty())?;
            let found = slice.endpoints.as_ref()?.first()?.addresses == [ip];
            found.then_some(slice)
        })
        .await
    };
    let slice = until_address("10.1.2.3").await;
    let labels = slice.metadata.labels.unwrap();
    assert_eq!(labels["a"], "b");
    let manager = "endpointslicemirroring-controller.k8s.io";
    assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], manager);
    assert_eq!(slice.metadata.owner_references.unwrap()[0].kind, "Endpoints");
    assert_eq!(slice.ports.unwrap()[0].port, Some(80));
    let change = Patch::Merge(json!({"subsets": subsets("10.2.3.4")}));
    api.patch("db", &change).await.unwrap();
    until_address("10.2.3.4").await;
    api.delete("db", &DeleteParams::default()).await.unwrap();
    until("the slices are gone", || async { slices().await.is_empty().then_some(()) }).await;
}
