//! Secrets that ask for a token of an account get one, and go with the account.

use crate::support::{cluster, until};
use client::DeleteParams;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_into_the_secret_and_is_believed_while_its_account_is_there() {
    let cluster = cluster().await;
    let accounts = cluster.client.api::<ServiceAccount>(Some("default"));
    let secrets = cluster.client.api::<Secret>(Some("default"));
    let account = json!({"metadata": {"name": "robot"}});
    accounts.create(&serde_json::from_value(account).unwrap()).await.unwrap();
    let secret = json!({"type": "kubernetes.io/service-account-token", "metadata": {"name": "t",
        "annotations": {"kubernetes.io/service-account.name": "robot"}}});
    secrets.create(&serde_json::from_value(secret).unwrap()).await.unwrap();
    let token = until("the secret holds a token", async || {
        let data = secrets.get("t").await.unwrap().data?;
        Some(String::from_utf8(data.get("token")?.0.clone()).unwrap())
    })
    .await;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token}});
    let status = async || {
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        cluster.client.post_raw(path, &review).await.unwrap()["status"].clone()
    };
    let name = "system:serviceaccount:default:robot";
    assert_eq!(status().await["user"]["username"], name);
    // An account of old times lists its tokens; it forgets one that is gone.
    let listed = json!({"secrets": [{"name": "t2"}, {"name": "other"}]});
    let second = json!({"type": "kubernetes.io/service-account-token", "metadata": {"name": "t2",
        "annotations": {"kubernetes.io/service-account.name": "robot"}}});
    secrets.create(&serde_json::from_value(second).unwrap()).await.unwrap();
    accounts.merge("robot", "", &listed).await.unwrap();
    until("the second holds a token", async || {
        secrets.get("t2").await.unwrap().data?.contains_key("token").then_some(())
    })
    .await;
    secrets.delete("t2", &DeleteParams::default()).await.unwrap();
    until("the account lists the other alone", async || {
        let listed = accounts.get("robot").await.unwrap().secrets.unwrap_or_default();
        let names: Vec<&str> = listed.iter().filter_map(|it| it.name.as_deref()).collect();
        (names == ["other"]).then_some(())
    })
    .await;
    accounts.delete("robot", &DeleteParams::default()).await.unwrap();
    until("the secret is gone", async || {
        secrets.get_opt("t").await.unwrap().is_none().then_some(())
    })
    .await;
    assert_eq!(status().await["user"], json!({}));
}
