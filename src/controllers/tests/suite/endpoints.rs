//! Services and the pods behind them: which they are, and for whom they are meant.

use std::collections::BTreeSet;

use client::api::ListParams;
use k8s_openapi::api::core::v1::{Endpoints, Event, Node, Pod, ResourceQuota, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use serde_json::{Value, json};

use crate::support::{Cluster, cluster, until};

impl Cluster {
    /// A pod that runs and is ready.
    async fn serving(&self, name: &str, node: &str, address: &str, labels: Value) {
        let pods = self.client.api::<Pod>(Some("default"));
        let pod = json!({"metadata": {"name": name, "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "example.com/c:1"}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        until("the pod is let in", async || pods.create(&pod).await.ok()).await;
        let status = json!({"status": {"phase": "Running", "podIP": address,
            "podIPs": [{"ip": address}], "conditions": [{"type": "Ready", "status": "True"}]}});
        pods.merge(name, "status", &status).await.unwrap();
    }

    async fn node_in(&self, name: &str, zone: &str) {
        let nodes = self.client.all::<Node>();
        let labels = json!({"topology.kubernetes.io/zone": zone});
        let node = json!({"metadata": {"name": name, "labels": labels}});
        nodes.create(&serde_json::from_value(node).unwrap()).await.unwrap();
        let status = json!({"status": {"allocatable": {"cpu": "2"},
            "conditions": [{"type": "Ready", "status": "True"}]}});
        nodes.merge(name, "status", &status).await.unwrap();
    }

    async fn serve(&self, name: &str, spec: Value) {
        let service = json!({"metadata": {"name": name}, "spec": spec});
        let services = self.client.api::<Service>(Some("default"));
        services.create(&serde_json::from_value(service).unwrap()).await.unwrap();
    }

    async fn endpoints_of(&self, service: &str) -> Vec<Endpoint> {
        let slices = self.client.api::<EndpointSlice>(Some("default"));
        let params = ListParams::labels(format!("kubernetes.io/service-name={service}"));
        let slices = slices.list(&params).await.unwrap().items;
        slices.into_iter().flat_map(|slice| slice.endpoints.unwrap_or_default()).collect()
    }

    /// Waits until exactly these addresses are behind a service, in both forms.
    async fn until_behind(&self, service: &str, addresses: &[&str]) {
        let wanted: BTreeSet<String> = addresses.iter().map(|a| (*a).to_string()).collect();
        let wanted = &wanted;
        until(&format!("{addresses:?} are behind {service}"), || async move {
            let found = self.endpoints_of(service).await;
            let found: BTreeSet<String> = found.into_iter().flat_map(|e| e.addresses).collect();
            let older = self.client.api::<Endpoints>(Some("default"));
            let older = older.get_opt(service).await.unwrap()?;
            let older = older.subsets.into_iter().flatten().flat_map(|s| s.addresses);
            let older: BTreeSet<String> = older.flatten().map(|address| address.ip).collect();
            (found == *wanted && older == *wanted).then_some(())
        })
        .await;
    }

    async fn until_hinted(&self, service: &str, hints: &[(&str, Value)]) {
        until(&format!("{service} has {hints:?}"), || async move {
            let mut found = self.endpoints_of(service).await;
            found.sort_by(|a, b| a.addresses.cmp(&b.addresses));
            let is = found.iter().map(|e| (e.addresses[0].clone(), json!(e.hints)));
            let wanted = hints.iter().map(|(a, hints)| ((*a).to_string(), hints.clone()));
            is.eq(wanted).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_come_and_go_with_their_labels_and_the_selector() {
    let cluster = &cluster().await;
    let port = json!([{"port": 80}]);
    cluster.serving("a", "n", "10.1.0.1", json!({"app": "web", "tier": "one"})).await;
    cluster.serve("web", json!({"selector": {"app": "web"}, "ports": port})).await;
    cluster.serve("one", json!({"selector": {"tier": "one", "app": "web"}, "ports": port})).await;
    let older = cluster.client.api::<Endpoints>(Some("default"));
    until("Endpoints tell of a pod whose node is not there", || async {
        older.get_opt("web").await.unwrap()?.subsets.filter(|it| !it.is_empty())
    })
    .await;
    assert!(cluster.endpoints_of("web").await.is_empty(), "slices do not");
    cluster.node_in("n", "za").await;
    cluster.until_behind("web", &["10.1.0.1"]).await;
    cluster.serving("b", "n", "10.1.0.2", json!({"app": "web"})).await;
    cluster.until_behind("web", &["10.1.0.1", "10.1.0.2"]).await;
    cluster.until_behind("one", &["10.1.0.1"]).await;
    let pods = cluster.client.api::<Pod>(Some("default"));
    pods.merge("b", "", &json!({"metadata": {"labels": {"tier": "one"}}})).await.unwrap();
    cluster.until_behind("one", &["10.1.0.1", "10.1.0.2"]).await;
    pods.merge("a", "", &json!({"metadata": {"labels": {"app": "other"}}})).await.unwrap();
    cluster.until_behind("one", &["10.1.0.2"]).await;
    cluster.until_behind("web", &["10.1.0.2"]).await;
    let services = cluster.client.api::<Service>(Some("default"));
    services.merge("web", "", &json!({"spec": {"selector": {"app": "other"}}})).await.unwrap();
    cluster.until_behind("web", &["10.1.0.1"]).await;
    pods.delete("a", &client::DeleteParams::default().grace(0)).await.unwrap();
    cluster.until_behind("web", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_meant_for_zones_and_nodes() {
    let cluster = &cluster().await;
    for (node, zone) in [("n1", "za"), ("n2", "zb")] {
        cluster.node_in(node, zone).await;
    }
    let app = || json!({"app": "web"});
    for (pod, node, address) in
        [("a", "n1", "10.1.0.1"), ("b", "n1", "10.1.0.2"), ("c", "n1", "10.1.0.3")]
    {
        cluster.serving(pod, node, address, app()).await;
    }
    cluster.serving("d", "n2", "10.1.0.4", app()).await;
    let zone = |zone: &str| json!({"forZones": [{"name": zone}]});
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}],
        "trafficDistribution": "PreferSameZone"});
    cluster.serve("web", spec).await;
    let (za, zb) = (zone("za"), zone("zb"));
    let own = [
        ("10.1.0.1", za.clone()),
        ("10.1.0.2", za.clone()),
        ("10.1.0.3", za.clone()),
        ("10.1.0.4", zb.clone()),
    ];
    cluster.until_hinted("web", &own).await;

    // By the CPUs of the zones, one of the three in za serves zb.
    let services = cluster.client.api::<Service>(Some("default"));
    let auto = json!({"metadata": {"annotations":
        {"service.kubernetes.io/topology-mode": "Auto"}}});
    services.merge("web", "", &auto).await.unwrap();
    let mut shared = own.clone();
    shared[2].1 = zb.clone();
    cluster.until_hinted("web", &shared).await;
    cluster.until_told("TopologyAwareHintsEnabled").await;

    // A zone whose only node is not ready has no part in it.
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    cluster.client.all::<Node>().merge("n2", "status", &not_ready).await.unwrap();
    let why = "Insufficient Node information: allocatable CPU or zone not specified on one or \
               more nodes, addressType: IPv4";
    cluster.until_told(why).await;
    let none = own.clone().map(|(address, _)| (address, Value::Null));
    cluster.until_hinted("web", &none).await;

    let node = json!({"metadata": {"annotations":
        {"service.kubernetes.io/topology-mode": null}},
        "spec": {"trafficDistribution": "PreferSameNode"}});
    services.merge("web", "", &node).await.unwrap();
    let on = |node: &str, zone: &str| json!({"forNodes": [{"name": node}], "forZones": [{"name": zone}]});
    let nodes = [
        ("10.1.0.1", on("n1", "za")),
        ("10.1.0.2", on("n1", "za")),
        ("10.1.0.3", on("n1", "za")),
        // Of its pod nobody knows whether it is ready.
        ("10.1.0.4", Value::Null),
    ];
    cluster.until_hinted("web", &nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_cannot_be_written_are_told_of() {
    let cluster = cluster().await;
    let none = json!({"count/endpoints": "0", "count/endpointslices.discovery.k8s.io": "0"});
    let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": none}});
    let quotas = cluster.client.api::<ResourceQuota>(Some("default"));
    quotas.create(&serde_json::from_value(quota).unwrap()).await.unwrap();
    until("the quota is in force", async || {
        quotas.get("none").await.unwrap().status?.used.filter(|used| used.len() == 2)
    })
    .await;
    cluster.serve("web", json!({"selector": {"app": "web"}, "ports": [{"port": 80}]})).await;
    let events = cluster.client.api::<Event>(Some("default"));
    for reason in ["FailedToCreateEndpoint", "FailedToUpdateEndpointSlices"] {
        let said = until(reason, async || {
            let events = events.list(&ListParams::default()).await.unwrap().items;
            events.into_iter().find(|it| it.reason.as_deref() == Some(reason))?.message
        })
        .await;
        assert!(said.contains("default/web") && said.contains("exceeded quota"), "{said}");
    }
}
