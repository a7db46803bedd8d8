//! Tokens that only a webhook knows.

use std::time::{Duration, Instant};

use api::authn::webhook::Settings;
use api::serve::Shared;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::support;
use crate::world::{Asked, Reply, Site, who_is};

fn knows(asked: &Asked) -> Reply {
    let spec = &asked.body["spec"];
    let status = match spec["token"].as_str().unwrap() {
        "jane" => json!({"authenticated": true, "user": {"username": "jane", "uid": "7",
            "groups": ["dev"], "extra": {"a": ["b"]}}}),
        "other" => json!({"authenticated": true, "user": {"username": "o"}, "audiences": ["x"]}),
        "sick" => json!({"authenticated": false, "error": "the database is away"}),
        "nameless" => json!({"authenticated": true, "user": {"groups": ["system:masters"]}}),
        "odd" => return Reply::Raw(200, Bytes::from_static(b"[1,")),
        "down" => return Reply::Raw(404, Bytes::from_static(b"later")),
        _ => json!({"authenticated": false}),
    };
    Reply::Json(
        json!({"apiVersion": asked.body["apiVersion"], "kind": "TokenReview", "status": status}),
    )
}

async fn server(site: &Site, version: &str, cache_ttl: Duration) -> (tempfile::TempDir, Shared) {
    let dir = tempfile::tempdir().unwrap();
    let config_file = site.kubeconfig(dir.path(), "/authenticate");
    let server = support::server_with(dir.path(), &[], |config| {
        config.authentication.webhook =
            Some(Settings { config_file, version: version.into(), cache_ttl });
    })
    .await;
    (dir, server)
}

#[tokio::test]
async fn it_is_asked_once_for_a_while() {
    let site = Site::start(knows).await;
    let (_dir, server) = server(&site, "v1", Duration::from_secs(60)).await;
    for _ in 0..5 {
        let (status, user) = who_is(&server, "jane").await;
        assert_eq!(status, 201);
        assert_eq!(
            user,
            json!({"username": "jane", "uid": "7", "groups": ["dev", "system:authenticated"],
                "extra": {"a": ["b"]}})
        );
        assert_eq!(who_is(&server, "nobody").await.0, 401);
    }
    assert_eq!(site.count(), 2);
    let asked = site.last();
    assert_eq!(
        (asked.path.as_str(), asked.authorization.as_str()),
        ("/authenticate", "Bearer hook-secret")
    );
    assert_eq!(asked.body["kind"], "TokenReview");
    assert_eq!(asked.body["apiVersion"], "authentication.k8s.io/v1");
    assert_eq!(asked.body["spec"]["audiences"], json!(["https://kubernetes.default.svc"]));
    // A token for others is not for this server, unless they ask.
    assert_eq!(who_is(&server, "other").await.0, 401);
    let review = |audiences: Value| {
        json!({"apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview", "spec": {"token": "other", "audiences": audiences}})
    };
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = support::ask(&server, Method::POST, path, review(json!(["x", "y"]))).await.json();
    assert_eq!(answer["status"]["audiences"], json!(["x"]));
    assert_eq!(answer["status"]["user"]["username"], "o");
}

#[tokio::test]
async fn what_went_wrong_is_refused_and_asked_again() {
    let site = Site::start(knows).await;
    let (_dir, server) = server(&site, "v1beta1", Duration::from_secs(60)).await;
    for token in ["sick", "nameless", "odd", "down"] {
        let before = site.count();
        assert_eq!(who_is(&server, token).await.0, 401, "{token}");
        assert_eq!(who_is(&server, token).await.0, 401, "{token}");
        assert_eq!(site.count(), before + 2, "{token}");
    }
    assert_eq!(site.last().body["apiVersion"], "authentication.k8s.io/v1beta1");
}

#[tokio::test]
async fn a_dead_one_refuses_its_own_tokens_and_delays_nobody_else() {
    let site = Site::start(|_: &Asked| Reply::Silence).await;
    let (_dir, server) = server(&site, "v1", Duration::from_secs(60)).await;
    let stuck = {
        let server = server.clone();
        tokio::spawn(async move { who_is(&server, "jane").await.0 })
    };
    let started = Instant::now();
    let answer = support::ask(&server, Method::GET, "/api/v1/namespaces", Value::Null).await;
    assert_eq!(answer.status, 200);
    assert!(started.elapsed() < Duration::from_secs(1));
    stuck.abort();
}

#[tokio::test]
async fn a_configuration_that_leads_nowhere_is_told_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("none");
    let settings = |version: &str| Settings {
        config_file: file.clone(),
        version: version.into(),
        cache_ttl: Duration::ZERO,
    };
    use api::authn::webhook::WebhookTokens;
    assert!(WebhookTokens::new(&settings("v1")).err().unwrap().contains("read kubeconfig"));
    let why = WebhookTokens::new(&settings("v3")).err().unwrap();
    assert!(why.contains("unsupported webhook authenticator version"), "{why}");
}
