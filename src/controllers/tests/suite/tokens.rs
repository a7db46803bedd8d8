//! Bootstrap tokens that expire.

#![allow(clippy::unwrap_used)]

mod support;

use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use support::{cluster, until};

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
