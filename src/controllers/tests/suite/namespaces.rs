//! Namespaces that go, and what is in them.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use serde_json::json;

use crate::support::{cluster, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_goes_when_its_last_pod_has_gone_and_takes_all_along() {
    let cluster = cluster().await;
    let namespaces = cluster.client.all::<Namespace>();
    let namespace = json!({"metadata": {"name": "work"}});
    namespaces.create(&serde_json::from_value(namespace).unwrap()).await.unwrap();
    let pods = cluster.client.api::<Pod>(Some("work"));
    for name in ["a", "b"] {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": "n",
            "containers": [{"name": "c", "image": "example.com/c:1"}]}});
        until("pods may be created", || async {
            pods.create(&serde_json::from_value(pod.clone()).unwrap()).await.ok()
        })
        .await;
    }
    let maps = cluster.client.api::<ConfigMap>(Some("work"));
    for at in 0..600 {
        let map = json!({"metadata": {"name": format!("m{at}")}});
        maps.create(&serde_json::from_value(map).unwrap()).await.unwrap();
    }
    namespaces.delete("work", &client::DeleteParams::default()).await.unwrap();
    let now = client::DeleteParams::default().grace(0);
    let remaining = |text: &'static str| {
        let namespaces = &namespaces;
        until(text, move || async move {
            let status = namespaces.get("work").await.unwrap().status?;
            let mut conditions = status.conditions.iter().flatten();
            let is = conditions.any(|c| {
                c.type_ == "NamespaceContentRemaining" && c.message.as_deref() == Some(text)
            });
            is.then_some(())
        })
    };
    remaining("Some resources are remaining: pods. has 2 resource instances").await;
    // What pods may need stays while they end.
    assert!(maps.get_opt("m0").await.unwrap().is_some());
    pods.delete("a", &now).await.unwrap();
    remaining("Some resources are remaining: pods. has 1 resource instances").await;
    let begun = std::time::Instant::now();
    pods.delete("b", &now).await.unwrap();
    until("the namespace is gone", || async {
        namespaces.get_opt("work").await.unwrap().is_none().then_some(())
    })
    .await;
    println!("gone {:?} after its last pod", begun.elapsed());
}
