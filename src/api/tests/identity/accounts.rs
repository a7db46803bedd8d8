//! Tokens of this cluster's own: service accounts' with several keys, those in secrets, and
//! bootstrap tokens.

use std::time::{Duration, Instant};

use api::serve::Shared;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use pki::jwt::SigningKey;
use serde_json::{Value, json};

use crate::support::{self, ask};
use crate::world::who_is;

const RSA: &str = include_str!("../../../pki/testdata/rsa.pkcs1.pem");
const EC: &str = include_str!("../../../pki/testdata/p256.sec1.pem");
const ISSUER: &str = "https://kubernetes.default.svc";

async fn server(change: impl FnOnce(&mut api::authn::Settings)) -> (tempfile::TempDir, Shared) {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |config| {
        change(&mut config.authentication);
    })
    .await;
    (dir, server)
}

async fn create(server: &Shared, path: &str, object: Value) -> Value {
    let answer = ask(server, Method::POST, path, object).await;
    assert_eq!(answer.status, 201, "{}", answer.message());
    answer.json()
}

async fn account(server: &Shared) -> String {
    let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s"}});
    let made = create(server, "/api/v1/namespaces/default/serviceaccounts", object).await;
    made["metadata"]["uid"].as_str().unwrap().to_owned()
}

async fn request(server: &Shared, spec: Value) -> support::Answer {
    let object =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    ask(server, Method::POST, "/api/v1/namespaces/default/serviceaccounts/s/token", object).await
}

fn claims(issuer: &str, uid: &str) -> Value {
    let now = base::time::now().as_second();
    json!({"iss": issuer, "aud": [ISSUER], "exp": now + 600, "nbf": now,
        "sub": "system:serviceaccount:default:s",
        "kubernetes.io": {"namespace": "default", "serviceaccount": {"name": "s", "uid": uid}}})
}

#[tokio::test]
async fn tokens_of_former_keys_and_issuers_stay_good() {
    let (_dir, server) = server(|settings| {
        settings.accounts.signing_key = RSA.into();
        settings.accounts.keys.push(EC.into());
        settings.accounts.issuers.push("https://before".into());
    })
    .await;
    let uid = account(&server).await;
    let issued = request(&server, json!({})).await.json();
    let token = issued["status"]["token"].as_str().unwrap();
    assert_eq!(pki::jwt::Token::read(token).unwrap().algorithm, pki::jwt::Algorithm::Rs256);
    assert_eq!(who_is(&server, token).await.0, 201);
    let ec = SigningKey::from_pem(EC).unwrap();
    for (issuer, expected) in [(ISSUER, 201), ("https://before", 201), ("https://never", 401)] {
        let token = ec.sign(&claims(issuer, &uid)).unwrap();
        assert_eq!(who_is(&server, &token).await.0, expected, "{issuer}");
    }
    let other = SigningKey::from_pem(include_str!("../../../pki/testdata/p384.pkcs8.pem")).unwrap();
    assert_eq!(who_is(&server, &other.sign(&claims(ISSUER, &uid)).unwrap()).await.0, 401);
    let jwks = ask(&server, Method::GET, "/openid/v1/jwks", Value::Null).await.json();
    let kinds: Vec<_> = pki::jwt::jwk_set(&jwks).iter().map(|key| key.algorithm().name()).collect();
    assert_eq!(kinds, ["RS256", "ES256"]);
    let path = "/.well-known/openid-configuration";
    let found = ask(&server, Method::GET, path, Value::Null).await.json();
    assert_eq!(found["id_token_signing_alg_values_supported"], json!(["ES256", "RS256"]));
}

#[tokio::test]
async fn lifetimes_are_bounded_and_reviews_say_why_a_token_is_bad() {
    let (_dir, server) = server(|settings| {
        settings.accounts.lifetime_seconds_max = Some(7_200);
        settings.accounts.audiences = vec!["api".into(), ISSUER.into()];
    })
    .await;
    let uid = account(&server).await;
    let long = request(&server, json!({"expirationSeconds": 90_000})).await;
    assert_eq!(long.json()["spec"]["expirationSeconds"], 7_200);
    assert!(
        long.warnings()[0]
            .contains("requested expiration of 90000 seconds shortened to 7200 seconds")
    );
    assert_eq!(request(&server, json!({"expirationSeconds": 60})).await.status, 422);
    assert_eq!(long.json()["spec"]["audiences"], json!(["api", ISSUER]));
    let review = async |token: &str| {
        let object = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token}});
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        ask(&server, Method::POST, path, object).await.json()["status"]["error"].clone()
    };
    let other = request(&server, json!({"audiences": ["a", "b"]})).await.json();
    let token = other["status"]["token"].as_str().unwrap();
    assert_eq!(
        review(token).await,
        format!(
            "[invalid bearer token, token audiences [\"a\" \"b\"] is invalid for the target audiences [\"api\" \"{ISSUER}\"]]"
        )
    );
    assert_eq!(review("x").await, "invalid bearer token");
    let path = "/api/v1/namespaces/default/serviceaccounts/s";
    assert_eq!(ask(&server, Method::DELETE, path, Value::Null).await.status, 200);
    server.registry.cache.fresh().await.unwrap();
    let token = long.json()["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(
        review(&token).await,
        "[invalid bearer token, service account default/s has been deleted]"
    );
    assert!(!uid.is_empty());
}

#[tokio::test]
async fn a_token_in_a_secret_is_good_while_the_secret_holds_it() {
    let (dir, server) = server(|_| {}).await;
    let uid = account(&server).await;
    let key = std::fs::read_to_string(dir.path().join("key")).unwrap();
    let claims = json!({"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:default:s",
        "kubernetes.io/serviceaccount/namespace": "default",
        "kubernetes.io/serviceaccount/secret.name": "t",
        "kubernetes.io/serviceaccount/service-account.name": "s",
        "kubernetes.io/serviceaccount/service-account.uid": uid});
    let token = SigningKey::from_pem(&key).unwrap().sign(&claims).unwrap();
    assert_eq!(who_is(&server, &token).await.0, 401, "no secret");
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "t", "annotations": {"kubernetes.io/service-account.name": "s",
            "kubernetes.io/service-account.uid": uid}},
        "data": {"token": STANDARD.encode(&token)}});
    create(&server, "/api/v1/namespaces/default/secrets", secret).await;
    let (status, user) = who_is(&server, &token).await;
    assert_eq!(status, 201);
    assert_eq!(
        user,
        json!({"username": "system:serviceaccount:default:s", "uid": uid, "groups":
            ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]})
    );
    let path = "/api/v1/namespaces/default/secrets/t";
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let secret = ask(&server, Method::GET, path, Value::Null).await.json();
        let label = &secret["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"];
        if label.as_str().is_some_and(|day| day.len() == 10) {
            break;
        }
        assert!(Instant::now() < deadline, "the use was not noted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let other = json!({"data": {"token": STANDARD.encode("other")}});
    assert_eq!(ask(&server, Method::PATCH, path, other).await.status, 200);
    server.registry.cache.fresh().await.unwrap();
    assert_eq!(who_is(&server, &token).await.0, 401, "another token");
}

#[tokio::test]
async fn bootstrap_tokens_are_believed_where_that_is_wanted() {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": "bootstrap-token-abcdef"},
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:nodes"}});
    for wanted in [true, false] {
        let (_dir, server) = server(|settings| settings.bootstrap_tokens = wanted).await;
        create(&server, "/api/v1/namespaces/kube-system/secrets", secret.clone()).await;
        let (status, user) = who_is(&server, "abcdef.0123456789abcdef").await;
        assert_eq!(status, if wanted { 201 } else { 401 });
        if wanted {
            assert_eq!(user["username"], "system:bootstrap:abcdef");
            assert_eq!(
                user["groups"],
                json!([
                    "system:bootstrappers",
                    "system:bootstrappers:nodes",
                    "system:authenticated"
                ])
            );
        }
    }
}
