//! Tokens of OpenID Connect issuers: whom they make, and which are refused.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::authn::configuration::{self, OidcFlags};
use api::serve::Shared;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::Method;
use pki::jwt::SigningKey;
use serde_json::{Value, json};

use crate::support;
use crate::world::{Asked, Reply, Site, send, who_is, with_token};

const RSA: &str = include_str!("../../../pki/testdata/rsa.pkcs1.pem");
const RSA_PUBLIC: &str = include_str!("../../../pki/testdata/rsa.pub.pem");
const EC: &str = include_str!("../../../pki/testdata/p256.sec1.pem");

/// An issuer whose keys can be exchanged.
struct Issuer {
    site: Site,
    keys: Arc<Mutex<Value>>,
}

fn set(keys: &[&SigningKey]) -> Value {
    json!({"keys": keys.iter().map(|key| key.public().jwk()).collect::<Vec<_>>()})
}

fn key(pem: &str) -> SigningKey {
    SigningKey::from_pem(pem).unwrap()
}

/// What `/keys` answers is `keys`; the configuration says so.
async fn site(keys: impl Fn() -> Reply + Send + Sync + 'static) -> Site {
    // Its own address is known only after it was started.
    let url = Arc::new(Mutex::new(String::new()));
    let known = url.clone();
    let site = Site::start(move |asked: &Asked| {
        let url = known.lock().unwrap().clone();
        match asked.path.as_str() {
            "/.well-known/openid-configuration" => {
                Reply::Json(json!({"issuer": url, "jwks_uri": format!("{url}/keys")}))
            }
            "/keys" => keys(),
            _ => Reply::Raw(404, Bytes::new()),
        }
    })
    .await;
    *url.lock().unwrap() = site.url();
    site
}

impl Issuer {
    async fn start(first: &SigningKey) -> Self {
        let keys = Arc::new(Mutex::new(set(&[first])));
        let shown = keys.clone();
        let site = site(move || Reply::Json(shown.lock().unwrap().clone())).await;
        Self { site, keys }
    }

    fn flags(&self) -> OidcFlags {
        flags(&self.site)
    }

    fn claims(&self) -> Value {
        claims(&self.site)
    }
}

fn flags(site: &Site) -> OidcFlags {
    OidcFlags {
        issuer_url: site.url(),
        client_id: "cluster".into(),
        groups_claim: "groups".into(),
        ca_pem: Some(site.ca_pem.clone()),
        signing_algorithms: vec!["RS256".into(), "ES256".into()],
        ..OidcFlags::default()
    }
}

fn claims(site: &Site) -> Value {
    let now = base::time::now().as_second();
    json!({"iss": site.url(), "aud": "cluster", "sub": "jane", "exp": now + 600, "iat": now})
}

async fn server(issuers: Vec<api::authn::jwt::Issuer>) -> (tempfile::TempDir, Shared) {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &[], |config| {
        config.authentication.issuers = issuers;
    })
    .await;
    (dir, server)
}

fn with(mut claims: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

#[tokio::test]
async fn claims_become_a_user_and_its_groups() {
    let rsa = key(RSA);
    let issuer = Issuer::start(&rsa).await;
    let (_dir, server) = server(vec![issuer.flags().issuer(&[]).unwrap()]).await;
    let claims = with(issuer.claims(), json!({"groups": ["dev", "ops"]}));
    let (status, user) = who_is(&server, &rsa.sign(&claims).unwrap()).await;
    assert_eq!(status, 201);
    assert_eq!(user["username"], format!("{}#jane", issuer.site.url()));
    assert_eq!(user["groups"], json!(["dev", "ops", "system:authenticated"]));
    // One group may stand alone, and several audiences in a list.
    let claims = with(issuer.claims(), json!({"groups": "dev", "aud": ["other", "cluster"]}));
    let (_, user) = who_is(&server, &rsa.sign(&claims).unwrap()).await;
    assert_eq!(user["groups"], json!(["dev", "system:authenticated"]));
    assert_eq!(issuer.site.count(), 2, "configuration and keys were asked for once");
}

#[tokio::test]
async fn issuers_come_and_go_while_the_server_runs() {
    let ec = key(EC);
    let issuer = Issuer::start(&ec).await;
    let (_dir, server) = server(Vec::new()).await;
    let token = ec.sign(&issuer.claims()).unwrap();
    assert_eq!(who_is(&server, &token).await.0, 401);
    let broken = OidcFlags { ca_pem: Some("-----BEGIN".into()), ..issuer.flags() };
    let replaced = broken
        .issuer(&[])
        .map(|issuer| server.authenticator.replace_issuers(vec![issuer]).map_err(drop));
    assert_ne!(replaced, Ok(Ok(())));
    assert_eq!(who_is(&server, &token).await.0, 401);
    server.authenticator.replace_issuers(vec![issuer.flags().issuer(&[]).unwrap()]).unwrap();
    assert_eq!(who_is(&server, &token).await.0, 201);
    server.authenticator.replace_issuers(Vec::new()).unwrap();
    assert_eq!(who_is(&server, &token).await.0, 401);
}

#[tokio::test]
async fn flags_change_names_and_require_claims() {
    let ec = key(EC);
    let issuer = Issuer::start(&ec).await;
    let flags = OidcFlags {
        username_claim: "email".into(),
        groups_prefix: "oidc:".into(),
        required_claims: vec!["hd=example.com".into()],
        ..issuer.flags()
    };
    let (_dir, server) = server(vec![flags.issuer(&[]).unwrap()]).await;
    let good = json!({"email": "j@example.com", "hd": "example.com", "groups": ["a"]});
    let (status, user) =
        who_is(&server, &ec.sign(&with(issuer.claims(), good.clone())).unwrap()).await;
    assert_eq!((status, &user["username"]), (201, &json!("j@example.com")));
    assert_eq!(user["groups"], json!(["oidc:a", "system:authenticated"]));
    for (change, expected) in [
        (json!({"email_verified": true}), 201),
        (json!({"email_verified": false}), 401),
        (json!({"email_verified": "true"}), 401),
        (json!({"hd": "example.org"}), 401),
        (json!({"hd": ["example.com"]}), 401),
        (json!({"email": null}), 401),
        (json!({"groups": 7}), 401),
        (json!({"groups": ["a", 7]}), 401),
    ] {
        let claims = with(with(issuer.claims(), good.clone()), change.clone());
        assert_eq!(who_is(&server, &ec.sign(&claims).unwrap()).await.0, expected, "{change}");
    }
}

#[tokio::test]
async fn tokens_that_prove_nothing_are_refused() {
    let rsa = key(RSA);
    let issuer = Issuer::start(&rsa).await;
    let (_dir, server) = server(vec![issuer.flags().issuer(&[]).unwrap()]).await;
    let good = rsa.sign(&issuer.claims()).unwrap();
    assert_eq!(who_is(&server, &good).await.0, 201);
    let parts: Vec<&str> = good.split('.').collect();
    let header = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let kid = rsa.public().id().map(str::to_owned);
    let hmac = {
        let input = format!("{}.{}", header(json!({"alg": "HS256", "kid": kid})), parts[1]);
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, RSA_PUBLIC.as_bytes());
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&secret, input.as_bytes())))
    };
    let now = base::time::now().as_second();
    let signed = |change: Value| rsa.sign(&with(issuer.claims(), change)).unwrap();
    for (what, token) in [
        ("signed by others", key(EC).sign(&issuer.claims()).unwrap()),
        ("alg none", format!("{}.{}.", header(json!({"alg": "none"})), parts[1])),
        ("the public key as a secret", hmac),
        (
            "another algorithm",
            format!("{}.{}.{}", header(json!({"alg": "ES256"})), parts[1], parts[2]),
        ),
        ("expired", signed(json!({"exp": now - 1}))),
        ("no end", signed(json!({"exp": null}))),
        ("not begun", signed(json!({"nbf": now + 3_600}))),
        ("for others", signed(json!({"aud": "other"}))),
        ("for nobody", signed(json!({"aud": null}))),
        ("of another issuer", signed(json!({"iss": "https://issuer.invalid"}))),
        ("of the server's own issuer", signed(json!({"iss": "https://kubernetes.default.svc"}))),
        ("without a user", signed(json!({"sub": null}))),
        ("with a user that is no text", signed(json!({"sub": ["a"]}))),
        (
            "claims exchanged",
            format!("{}.{}.{}", parts[0], header(json!({"sub": "root"})), parts[2]),
        ),
        ("huge", signed(json!({"more": "x".repeat(100_000)}))),
        (
            "nested",
            format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode("[".repeat(9_000)), parts[2]),
        ),
    ] {
        assert_eq!(who_is(&server, &token).await.0, 401, "{what}");
    }
    // Reviews say the same.
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": signed(json!({"exp": 1}))}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = support::ask(&server, Method::POST, path, review).await.json();
    assert_eq!(answer["status"]["user"], json!({}));
    let said = answer["status"]["error"].as_str().unwrap();
    assert!(said.contains("oidc: verify token: oidc: token is expired"), "{said}");
}

#[tokio::test]
async fn new_keys_are_fetched_and_bad_tokens_do_not_hammer_the_issuer() {
    let (old, new) = (key(RSA), key(EC));
    let issuer = Issuer::start(&old).await;
    let (_dir, server) = server(vec![issuer.flags().issuer(&[]).unwrap()]).await;
    assert_eq!(who_is(&server, &old.sign(&issuer.claims()).unwrap()).await.0, 201);
    let token = new.sign(&issuer.claims()).unwrap();
    for _ in 0..50 {
        assert_eq!(who_is(&server, &token).await.0, 401);
    }
    assert!(issuer.site.count() <= 3, "asked {} times", issuer.site.count());
    *issuer.keys.lock().unwrap() = set(&[&new]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while who_is(&server, &token).await.0 != 201 {
        assert!(Instant::now() < deadline, "the new key is not known");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(who_is(&server, &old.sign(&issuer.claims()).unwrap()).await.0, 401);
}

#[tokio::test]
async fn an_issuer_that_is_no_help_costs_a_bounded_time() {
    let rsa = key(RSA);
    let large = || {
        let junk: Vec<Value> =
            (0..60_000).map(|n| json!({"kty": "oct", "kid": n.to_string(), "k": "AAAA"})).collect();
        Reply::Json(json!({"keys": junk}))
    };
    let silent = site(|| Reply::Silence).await;
    let large = site(large).await;
    let broken = site(|| Reply::Raw(200, Bytes::from_static(b"{"))).await;
    let failing = site(|| Reply::Raw(500, Bytes::new())).await;
    let liar = Site::start(|_: &Asked| Reply::Json(json!({"issuer": "https://other"}))).await;
    let sites = [&silent, &large, &broken, &failing, &liar];
    let issuers = sites.iter().map(|site| flags(site).issuer(&[]).unwrap()).collect();
    let (_dir, server) = server(issuers).await;
    for site in sites {
        let token = rsa.sign(&claims(site)).unwrap();
        let started = Instant::now();
        let all = (0..20).map(|_| who_is(&server, &token));
        for (status, _) in futures::future::join_all(all).await {
            assert_eq!(status, 401);
        }
        assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
        assert!(site.count() <= 2, "asked {} times", site.count());
        // Nobody else waits.
        let started = Instant::now();
        assert_eq!(who_is(&server, "other").await.0, 401);
        assert!(started.elapsed() < Duration::from_secs(1));
    }
}

#[tokio::test]
async fn a_configuration_maps_claims_by_expressions() {
    let ec = key(EC);
    let issuer = Issuer::start(&ec).await;
    let ca = issuer.site.ca_pem.replace('\n', "\n      ");
    let text = format!(
        r#"
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: {}
    audiences: [cluster, other]
    audienceMatchPolicy: MatchAny
    certificateAuthority: |
      {ca}
  claimValidationRules:
  - claim: hd
    requiredValue: example.com
  - expression: 'claims.exp - claims.iat <= 3600'
    message: lives too long
  claimMappings:
    username:
      expression: '"corp:" + claims.sub'
    groups:
      expression: 'claims.roles.split(",")'
    uid:
      claim: id
    extra:
    - key: example.com/tenant
      valueExpression: 'claims.tenant'
  userValidationRules:
  - expression: '!user.username.startsWith("corp:system:")'
    message: the name is reserved
anonymous:
  enabled: true
  conditions:
  - path: /livez
"#,
        issuer.site.url()
    );
    let (issuers, anonymous) = configuration::read(&text, &[]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &[], |config| {
        config.authentication.issuers = issuers;
        config.authentication.anonymous = anonymous.unwrap();
    })
    .await;
    let good = with(
        issuer.claims(),
        json!({"hd": "example.com", "roles": "a,b", "id": "7", "tenant": ["t"]}),
    );
    let (status, user) = who_is(&server, &ec.sign(&good).unwrap()).await;
    assert_eq!(status, 201);
    assert_eq!(
        user,
        json!({"username": "corp:jane", "uid": "7", "groups": ["a", "b", "system:authenticated"],
            "extra": {"example.com/tenant": ["t"]}})
    );
    for change in [
        json!({"hd": "example.org"}),
        json!({"exp": base::time::now().as_second() + 90_000}),
        json!({"sub": "system:admin"}),
        json!({"roles": 5}),
        json!({"tenant": 5}),
        json!({"id": 5}),
    ] {
        let token = ec.sign(&with(good.clone(), change.clone())).unwrap();
        assert_eq!(who_is(&server, &token).await.0, 401, "{change}");
    }
    assert_eq!(send(&server, Method::GET, "/livez", &[], &Value::Null).await.0, 200);
    assert_eq!(send(&server, Method::GET, "/readyz", &[], &Value::Null).await.0, 401);
}

#[test]
fn a_configuration_says_all_that_is_wrong_with_it() {
    let text = r#"
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer: {url: 'http://a?b', audiences: [x, x]}
  claimValidationRules:
  - {claim: a, expression: 'true'}
  - {expression: '1'}
  claimMappings:
    username: {expression: 'claims.email'}
    groups: {claim: groups}
    extra:
    - {key: k8s.io/a, valueExpression: 'claims.a'}
  userValidationRules:
  - {expression: ''}
- issuer: {url: 'https://own', audiences: []}
  claimMappings: {username: {}}
anonymous: {enabled: false, conditions: [{path: /a}]}
"#;
    let why = configuration::read(text, &["https://own".to_owned()]).err().unwrap();
    for said in [
        "jwt[0].issuer.url: Invalid value: \"http://a?b\": URL scheme must be https",
        "jwt[0].issuer.url: Invalid value: \"http://a?b\": URL must not contain a query",
        "jwt[0].issuer.audiences[1]: Duplicate value: \"x\"",
        "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be MatchAny for multiple audiences",
        "jwt[0].claimValidationRules[0]: Invalid value: \"a\": claim and expression can't both be set",
        "jwt[0].claimValidationRules[1].expression: Invalid value: \"1\": must evaluate to bool",
        "claims.email_verified must be used",
        "jwt[0].claimMappings.groups.prefix: Required value: prefix is required when claim is set",
        "jwt[0].claimMappings.extra[0].key: Invalid value: \"k8s.io/a\": k8s.io, kubernetes.io and their subdomains are reserved",
        "jwt[0].userValidationRules[0].expression: Required value",
        "jwt[1].issuer.url: Invalid value: \"https://own\": URL must not overlap with disallowed issuers",
        "jwt[1].issuer.audiences: Required value",
        "jwt[1].claimMappings.username: Required value: claim or expression is required",
        "anonymous.conditions",
    ] {
        assert!(why.contains(said), "{said}\nis not in\n{why}");
    }
    for odd in [
        "",
        "[]",
        "apiVersion: v1\nkind: Pod\n",
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwts: []\n",
    ] {
        assert!(configuration::read(odd, &[]).is_err(), "{odd}");
    }
}

#[tokio::test]
async fn credentials_that_are_bad_are_not_anonymous() {
    let (_dir, server) = server(Vec::new()).await;
    let list = "/api/v1/namespaces/default/configmaps";
    assert_eq!(with_token(&server, "x", Method::GET, list, &Value::Null).await.0, 401);
    assert_eq!(send(&server, Method::GET, list, &[], &Value::Null).await.0, 403);
}
