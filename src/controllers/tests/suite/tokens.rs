//! Bootstrap tokens: that they expire, and what they sign.

use crate::support::{cluster, until};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_token_goes_when_its_time_is_over() {
    let cluster = cluster().await;
    let secrets = cluster.client.api::<Secret>(Some("kube-system"));
    let after = |seconds| {
        let span = jiff::SignedDuration::from_secs(seconds);
        base::time::rfc3339(base::time::now().checked_add(span).unwrap())
    };
    for (id, seconds) in [("aaaaaa", 1), ("bbbbbb", 3_600)] {
        let secret = json!({"type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}")},
            "stringData": {"token-id": id, "token-secret": "0123456789abcdef",
                "expiration": after(seconds)}});
        secrets.create(&serde_json::from_value(secret).unwrap()).await.unwrap();
    }
    until("the token is gone", || async {
        secrets.get_opt("bootstrap-token-aaaaaa").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(secrets.get_opt("bootstrap-token-bbbbbb").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_tokens_sign_what_the_cluster_says_of_itself() {
    let cluster = cluster().await;
    let secrets = cluster.client.api::<Secret>(Some("kube-system"));
    let maps = cluster.client.api::<ConfigMap>(Some("kube-public"));
    let map = json!({"metadata": {"name": "cluster-info"}, "data": {"kubeconfig": "one"}});
    maps.create(&serde_json::from_value(map).unwrap()).await.unwrap();
    let secret = json!({"type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": "bootstrap-token-abcdef"},
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-signing": "true"}});
    secrets.create(&serde_json::from_value(secret).unwrap()).await.unwrap();

    let maps = &maps;
    let signed = |content: &'static str| async move {
        let wanted = pki::jwt::sign_detached(content.as_bytes(), "abcdef", b"0123456789abcdef");
        let signature = || async {
            let map = maps.get("cluster-info").await.unwrap();
            let is = map.data.unwrap().get("jws-kubeconfig-abcdef").cloned();
            (is.as_ref() == Some(&wanted)).then_some(())
        };
        until("the token has signed", signature).await;
    };
    signed("one").await;
    maps.merge("cluster-info", "", &json!({"data": {"kubeconfig": "two"}})).await.unwrap();
    signed("two").await;
    secrets.delete("bootstrap-token-abcdef", &client::DeleteParams::default()).await.unwrap();
    until("the signature goes with the token", || async {
        let data = maps.get("cluster-info").await.unwrap().data.unwrap();
        (!data.contains_key("jws-kubeconfig-abcdef")).then_some(())
    })
    .await;
}
