//! What an owner leaves behind goes after it, down to the last pod.

use crate::support::{cluster, until};
use client::api::ListParams;
use client::{DeleteParams, Patch, Propagation};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use k8s_openapi::api::rbac::v1::ClusterRole;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_takes_its_replica_sets_and_pods_along() {
    let cluster = cluster().await;
    let all = ListParams::default();
    let count = async || {
        let sets = cluster.client.api::<ReplicaSet>(Some("default")).list(&all).await.unwrap();
        let pods = cluster.client.api::<Pod>(Some("default")).list(&all).await.unwrap();
        (sets.items.len(), pods.items.len())
    };
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}},
                         "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    });
    let deployments = cluster.client.api::<Deployment>(Some("default"));
    deployments.create(&serde_json::from_value(deployment).unwrap()).await.unwrap();
    until("two pods are there", async || (count().await == (1, 2)).then_some(())).await;
    deployments.delete("web", &DeleteParams::default()).await.unwrap();
    until("all is gone", async || (count().await == (0, 0)).then_some(())).await;
}

/// ConfigMaps that own each other in a circle: the first is the second's, and so on.
async fn circle(cluster: &crate::support::Cluster, names: &[&str]) -> Vec<String> {
    let maps = cluster.client.api::<ConfigMap>(Some("default"));
    let mut uids = Vec::new();
    for name in names {
        let map = json!({"metadata": {"name": name}});
        let made = maps.create(&serde_json::from_value(map).unwrap()).await.unwrap();
        uids.push(made.metadata.uid.unwrap());
    }
    for (at, name) in names.iter().enumerate() {
        let owner = (at + 1) % names.len();
        let patch = json!({"metadata": {"ownerReferences": [{"apiVersion": "v1",
            "kind": "ConfigMap", "name": names[owner], "uid": uids[owner],
            "blockOwnerDeletion": true}]}});
        maps.patch(name, &Patch::Merge(patch)).await.unwrap();
    }
    uids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circle_of_owners_stays_while_nobody_deletes_and_goes_as_a_whole() {
    let cluster = cluster().await;
    let maps = cluster.client.api::<ConfigMap>(Some("default"));
    let left = async |names: &[&str]| {
        let all = maps.list(&ListParams::default()).await.unwrap().items;
        let is = |map: &&ConfigMap| names.contains(&map.metadata.name.as_deref().unwrap());
        all.iter().filter(is).count()
    };
    for (names, propagation) in
        [(["a", "b", "c"], Propagation::Background), (["d", "e", "f"], Propagation::Foreground)]
    {
        circle(&cluster, &names).await;
        // Something that goes after it shows that the collector has looked.
        let marker = json!({"metadata": {"name": "marker", "ownerReferences": [{"apiVersion": "v1",
            "kind": "ConfigMap", "name": "nobody", "uid": "nobody"}]}});
        maps.create(&serde_json::from_value(marker).unwrap()).await.unwrap();
        until("the marker is gone", async || {
            maps.get_opt("marker").await.unwrap().is_none().then_some(())
        })
        .await;
        assert_eq!(left(&names).await, 3);
        let params = DeleteParams::default().propagation(propagation);
        maps.delete(names[0], &params).await.unwrap();
        until("the circle is gone", async || (left(&names).await == 0).then_some(())).await;
    }
}

/// Who names an owner that nobody could find where it is looked for: in a namespace it is held
/// for absent, outside of all of them it is nobody's to judge.
#[tokio::test(flavor = "multi_thread")]
async fn owners_of_other_namespaces_are_none() {
    let cluster = cluster().await;
    let maps = cluster.client.api::<ConfigMap>(Some("kube-system"));
    let owner = json!({"metadata": {"name": "owner"}});
    let owner = maps.create(&serde_json::from_value(owner).unwrap()).await.unwrap();
    let owners = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner",
        "uid": owner.metadata.uid}]);
    let owned = json!({"metadata": {"name": "owned", "ownerReferences": owners}});
    let roles = cluster.client.all::<ClusterRole>();
    roles.create(&serde_json::from_value(owned.clone()).unwrap()).await.unwrap();
    let near = cluster.client.api::<ConfigMap>(Some("default"));
    near.create(&serde_json::from_value(owned).unwrap()).await.unwrap();
    until("the map is gone", async || near.get_opt("owned").await.unwrap().is_none().then_some(()))
        .await;
    let events = cluster.client.all::<Event>();
    let mut told = until("both are told of", async || {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        let is = |it: &&Event| it.reason.as_deref() == Some("OwnerRefInvalidNamespace");
        let kinds: Vec<String> =
            all.iter().filter(is).filter_map(|it| it.involved_object.kind.clone()).collect();
        (kinds.len() == 2).then_some(kinds)
    })
    .await;
    told.sort();
    assert_eq!(told, ["ClusterRole", "ConfigMap"]);
    assert!(roles.get_opt("owned").await.unwrap().is_some());
}
