//! Trust bundles and pods' certificate requests as clients meet them: off unless both switches
//! are on, who may write what, and what is no key and no certificate.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use api::serve::Shared;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use pki::Authority;
use pki::possession::{self, KeyType};
use serde_json::{Value, json};
use support::{Answer, ask, send};

#[path = "support/server.rs"]
mod support;

const GROUP: &str = "/apis/certificates.k8s.io/v1beta1";
const BUNDLES: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
const REQUESTS: &str =
    "/apis/certificates.k8s.io/v1beta1/namespaces/default/podcertificaterequests";
const NODE: &str = "system:node:n1";

async fn server(dir: &std::path::Path) -> Shared {
    let server = support::server_with(dir, &["ServiceAccount"], |config| {
        let gates = "ClusterTrustBundle=true,ClusterTrustBundleProjection=true,\
                     PodCertificateRequest=true";
        assert_eq!(config.flags.set("feature-gates", gates), Ok(true));
        let wanted = "certificates.k8s.io/v1beta1=true";
        assert_eq!(config.flags.set("runtime-config", wanted), Ok(true));
    })
    .await;
    let advertised = api::bootstrap::Advertised {
        address: [127, 0, 0, 1].into(),
        port: 6_443,
        service: [10, 43, 0, 1].into(),
    };
    api::bootstrap::run(&server, advertised).await.unwrap();
    server
}

async fn by(server: &Shared, who: &str, method: Method, path: &str, body: Value) -> Answer {
    let kind =
        if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    send(server, who, method, path, &[("content-type", kind)], body.to_string()).await
}

fn bundle(name: &str, signer: &str, pem: &str) -> Value {
    json!({"apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle",
        "metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": pem}})
}

fn pod(sources: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "nodeName": "n1", "serviceAccountName": "s",
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "projected": {"sources": sources}}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_it_is_there_unless_it_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |config| {
        config.flags.set("feature-gates", "ClusterTrustBundle=true").unwrap();
    })
    .await;
    assert_eq!(ask(&server, Method::GET, GROUP, Value::Null).await.status, 404);
    assert_eq!(ask(&server, Method::GET, BUNDLES, Value::Null).await.status, 404);
    let group = ask(&server, Method::GET, "/apis/certificates.k8s.io", Value::Null).await.json();
    assert_eq!(group["versions"].as_array().unwrap().len(), 1);
    let document = ask(&server, Method::GET, "/openapi/v2", Value::Null).await.json();
    let name = "io.k8s.api.certificates.v1beta1.ClusterTrustBundle";
    assert!(document["definitions"].get(name).is_none());

    // Fields that belong to it are as if they were not written, but stay where they were.
    let sources = json!([{"clusterTrustBundle": {"name": "a", "path": "ca"}}, {"podCertificate":
        {"signerName": "e.x/s", "keyType": "ED25519", "keyPath": "key"}}]);
    let pods = "/api/v1/namespaces/default/pods";
    let made = ask(&server, Method::POST, pods, pod(sources)).await;
    assert_eq!(made.status, 201, "{}", made.message());
    let shown = &made.json()["spec"]["volumes"][0]["projected"]["sources"];
    assert_eq!(*shown, json!([{}, {}]));
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_found_and_described_when_they_are_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).await;
    let list = ask(&server, Method::GET, GROUP, Value::Null).await.json();
    let names: Vec<&str> = list["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["clustertrustbundles", "podcertificaterequests", "podcertificaterequests/status"]
    );
    let group = ask(&server, Method::GET, "/apis/certificates.k8s.io", Value::Null).await.json();
    assert_eq!(group["preferredVersion"]["version"], "v1");
    assert_eq!(group["versions"][1]["version"], "v1beta1");
    let document = ask(&server, Method::GET, "/openapi/v2", Value::Null).await.json();
    let name = "io.k8s.api.certificates.v1beta1.PodCertificateRequestSpec";
    let field = &document["definitions"][name]["properties"]["stubPKCS10Request"];
    assert_eq!(field["format"], "byte");
    let path = "/openapi/v3/apis/certificates.k8s.io/v1beta1";
    let document = ask(&server, Method::GET, path, Value::Null).await.json();
    assert!(document["paths"].get(BUNDLES).is_some());
    let service = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.certificates.k8s.io";
    assert_eq!(ask(&server, Method::GET, service, Value::Null).await.status, 200);
    for (role, resource) in [
        ("system:cluster-trust-bundle-discovery", "clustertrustbundles"),
        ("system:node", "podcertificaterequests"),
    ] {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{role}");
        let role = ask(&server, Method::GET, &path, Value::Null).await.json();
        let mut rules = role["rules"].as_array().unwrap().iter();
        assert!(rules.any(|rule| rule["resources"] == json!([resource])), "{role}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_holds_anchors_and_belongs_to_its_signer() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).await;
    let [a, b] = ["a", "b"].map(|name| Authority::create(name).unwrap());
    let (own, signer) = ("example.com:s:roots", "example.com/s");
    let made = ask(&server, Method::POST, BUNDLES, bundle(own, signer, &a.cert_pem)).await;
    assert_eq!(made.status, 201, "{}", made.message());
    assert_eq!(made.warnings(), Vec::<String>::new());
    let plain = bundle("roots", "", &format!("# both\n{}{}", a.cert_pem, b.cert_pem));
    assert_eq!(ask(&server, Method::POST, BUNDLES, plain).await.status, 201);
    for (bad, field, why) in [
        (bundle("x", signer, &a.cert_pem), "metadata.name", "must be named with prefix"),
        (bundle("x:y", "", &a.cert_pem), "metadata.name", "must not have \":\" in its name"),
        (bundle("x", "", ""), "spec.trustBundle", "at least one trust anchor"),
        (bundle("x", "", &a.key_pem), "spec.trustBundle", "entry 0 has bad block type"),
        (
            bundle("x", "", &a.cert_pem.repeat(2)),
            "spec.trustBundle",
            "duplicate trust anchor (indices [0 1])",
        ),
    ] {
        let answer = ask(&server, Method::POST, BUNDLES, bad).await;
        assert_eq!(answer.status, 422, "{why}");
        assert_eq!(answer.json()["details"]["causes"][0]["field"], field);
        assert!(answer.message().contains(why), "{}", answer.message());
    }
    let path = format!("{BUNDLES}/{own}");
    let change = json!({"spec": {"trustBundle": b.cert_pem}});
    assert_eq!(ask(&server, Method::PATCH, &path, change.clone()).await.status, 200);
    let moved = json!({"spec": {"signerName": "example.com/t"}});
    assert_eq!(ask(&server, Method::PATCH, &path, moved).await.status, 422);
    let of = format!("{BUNDLES}?fieldSelector=spec.signerName%3D{signer}");
    let found = ask(&server, Method::GET, &of, Value::Null).await.json();
    assert_eq!(found["items"].as_array().unwrap().len(), 1);

    // Who may write bundles may not speak for every signer.
    let rules = json!([
        {"apiGroups": ["certificates.k8s.io"], "resources": ["clustertrustbundles"],
         "verbs": ["*"]},
        {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "verbs": ["attest"],
         "resourceNames": ["example.org/*"]}]);
    let_bob(&server, "bundles", rules, BUNDLES).await;
    let theirs = by(&server, "bob", Method::PATCH, &path, change).await;
    assert_eq!(theirs.status, 200, "what changes nothing attests nothing: {}", theirs.message());
    let change = json!({"spec": {"trustBundle": a.cert_pem}});
    let refused = by(&server, "bob", Method::PATCH, &path, change).await;
    assert_eq!(refused.status, 403);
    assert!(refused.message().contains("not permitted to attest for signerName \"example.com/s\""));
    let own = bundle("example.org:s:a", "example.org/s", &a.cert_pem);
    assert_eq!(by(&server, "bob", Method::POST, BUNDLES, own).await.status, 201);
    let unsigned = bundle("bobs", "", &a.cert_pem);
    assert_eq!(by(&server, "bob", Method::POST, BUNDLES, unsigned).await.status, 201);
}

/// The node, the pod and its account, as requests must name them.
async fn cluster(server: &Shared) -> Value {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    let node = ask(server, Method::POST, "/api/v1/nodes", node).await.json();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s"}});
    let path = "/api/v1/namespaces/default/serviceaccounts";
    let account = ask(server, Method::POST, path, account).await.json();
    let sources = json!([{"podCertificate":
        {"signerName": "example.com/s", "keyType": "ED25519", "keyPath": "key"}}]);
    let path = "/api/v1/namespaces/default/pods";
    let made = ask(server, Method::POST, path, pod(sources)).await.json();
    let uid = |object: &Value| object["metadata"]["uid"].clone();
    json!({"signerName": "example.com/s", "podName": "p", "podUID": uid(&made),
        "serviceAccountName": "s", "serviceAccountUID": uid(&account),
        "nodeName": "n1", "nodeUID": uid(&node)})
}

fn request(name: &str, spec: &Value, more: Value) -> Value {
    let mut spec = spec.clone();
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "certificates.k8s.io/v1beta1", "kind": "PodCertificateRequest",
        "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_asks_for_its_own_pods_and_shows_that_it_has_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).await;
    let spec = cluster(&server).await;
    let stub = STANDARD.encode(possession::make(KeyType::EcdsaP384).unwrap().request);
    let good = json!({"stubPKCS10Request": stub});
    let made = by(&server, NODE, Method::POST, REQUESTS, request("a", &spec, good.clone())).await;
    assert_eq!(made.status, 201, "{}", made.message());
    assert_eq!(made.json()["spec"]["maxExpirationSeconds"], 86_400);

    let mut broken = STANDARD.decode(&stub).unwrap();
    let last = broken.len() - 1;
    broken[last] ^= 1;
    for (more, field) in [
        (json!({}), "spec"),
        (json!({"stubPKCS10Request": STANDARD.encode(broken)}), "spec.stubPKCS10Request"),
        (json!({"stubPKCS10Request": stub, "pkixPublicKey": stub}), "spec"),
        (json!({"pkixPublicKey": "eA=="}), "spec.pkixPublicKey"),
        (
            json!({"stubPKCS10Request": stub, "maxExpirationSeconds": 60}),
            "spec.maxExpirationSeconds",
        ),
    ] {
        let answer = ask(&server, Method::POST, REQUESTS, request("b", &spec, more)).await;
        assert_eq!(answer.status, 422, "{field}: {}", answer.message());
        assert_eq!(answer.json()["details"]["causes"][0]["field"], field, "{}", answer.message());
    }
    for (key, status) in [
        ("nodeName", 403),
        ("podName", 404),
        ("serviceAccountName", 403),
        ("podUID", 500),
        ("serviceAccountUID", 500),
        ("nodeUID", 500),
    ] {
        let mut other = request("b", &spec, good.clone());
        other["spec"][key] = json!("other");
        let refused = by(&server, NODE, Method::POST, REQUESTS, other).await;
        assert_eq!(refused.status, status, "{key}: {}", refused.message());
    }
    let stranger = request("b", &spec, good);
    let refused = by(&server, "system:node:n2", Method::POST, REQUESTS, stranger).await;
    assert_eq!(refused.status, 403, "{}", refused.message());

    // A node sees its own requests, and writes none of their ends.
    let all = "/apis/certificates.k8s.io/v1beta1/podcertificaterequests";
    let of = |node: &str| format!("{all}?fieldSelector=spec.nodeName%3D{node}");
    let own = format!("{REQUESTS}/a");
    for (who, path, status) in [
        (NODE, of("n1"), 200),
        (NODE, of("n2"), 403),
        (NODE, all.to_owned(), 403),
        (NODE, own.clone(), 200),
        ("system:node:n2", own.clone(), 403),
        (NODE, BUNDLES.to_owned(), 200),
    ] {
        assert_eq!(
            by(&server, who, Method::GET, &path, Value::Null).await.status,
            status,
            "{path}"
        );
    }
    let status = format!("{own}/status");
    let denial = by(&server, NODE, Method::PATCH, &status, json!({"status": {}})).await;
    assert_eq!(denial.status, 403);
    let removal = by(&server, NODE, Method::DELETE, &own, Value::Null).await;
    assert_eq!(removal.status, 403);
}

/// A chain for the key of a request, and the status that says so.
fn issued(authority: &Authority, request: &[u8], begin: i64, seconds: i64) -> Value {
    let key = rcgen::KeyPair::from_pem(&authority.key_pem).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&authority.cert_pem, key).unwrap();
    let pem = pki::blocks::write("CERTIFICATE REQUEST", request);
    let mut asked = rcgen::CertificateSigningRequestParams::from_pem(&pem).unwrap();
    let at =
        |second: i64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(second.unsigned_abs());
    asked.params.not_before = at(begin);
    asked.params.not_after = at(begin + seconds);
    let chain = asked.signed_by(&issuer).unwrap().pem();
    json!({"status": {
        "conditions": condition("Issued"), "certificateChain": chain,
        "notBefore": time(begin), "notAfter": time(begin + seconds),
        "beginRefreshAt": time(begin + seconds / 2)}})
}

fn time(second: i64) -> String {
    base::time::rfc3339(jiff::Timestamp::from_second(second).unwrap())
}

fn condition(kind: &str) -> Value {
    json!([{"type": kind, "status": "True", "reason": "Why", "message": "so",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_ends_once_with_a_certificate_for_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).await;
    let spec = cluster(&server).await;
    let authority = Authority::create("ca").unwrap();
    let [mine, other] = [(); 2].map(|()| possession::make(KeyType::Ed25519).unwrap().request);
    let more = json!({"stubPKCS10Request": STANDARD.encode(&mine)});
    for name in ["a", "b", "c"] {
        let made = ask(&server, Method::POST, REQUESTS, request(name, &spec, more.clone())).await;
        assert_eq!(made.status, 201, "{}", made.message());
    }
    let now = base::time::now().as_second();
    let path = format!("{REQUESTS}/a/status");
    let good = issued(&authority, &mine, now, 7_200);
    let with = |key: &str, value: Value| {
        let mut status = good.clone();
        status["status"][key] = value;
        status
    };
    let chain = good["status"]["certificateChain"].as_str().unwrap().to_owned();
    for (bad, why) in [
        (issued(&authority, &other, now, 7_200), "was not issued to the requested public key"),
        (issued(&authority, &mine, now - 3_600, 7_200), "must be set to within 5 minutes"),
        (issued(&authority, &mine, now, 3_000), "lifetime must be >= 1 hour"),
        (issued(&authority, &mine, now, 90_000), "must be <= spec.maxExpirationSeconds (86400)"),
        (with("certificateChain", json!("x")), "must contain at least one certificate"),
        (with("certificateChain", json!(format!("{chain}{}", authority.key_pem))), "entirely of"),
        (with("notAfter", json!(time(now + 7_201))), "the NotAfter time encoded in the leaf"),
        (with("notBefore", Value::Null), "status.notBefore: Required value"),
        (with("beginRefreshAt", json!(time(now + 60))), "at least 10 minutes after"),
        (with("beginRefreshAt", json!(time(now + 7_190))), "at least 10 minutes before"),
        (with("conditions", json!([])), "status is immutable unless transitioning"),
        (with("conditions", condition("Denied")), "non-condition status fields must be empty"),
    ] {
        let refused = ask(&server, Method::PATCH, &path, bad).await;
        assert_eq!(refused.status, 422, "{why}");
        assert!(refused.message().contains(why), "{why}: {}", refused.message());
    }
    let done = ask(&server, Method::PATCH, &path, good).await;
    assert_eq!(done.status, 200, "{}", done.message());
    assert_eq!(done.json()["status"]["certificateChain"], chain);
    let again = json!({"status": {"conditions": condition("Failed")}});
    let refused = ask(&server, Method::PATCH, &path, again).await;
    assert_eq!(refused.status, 422);
    assert!(refused.message().contains("immutable after PodCertificateRequest is issued"));

    // Who may write the status may not answer for a signer.
    let denied = json!({"status": {"conditions": condition("Denied")}});
    let path = format!("{REQUESTS}/b/status");
    let_write_status(&server).await;
    let refused = by(&server, "bob", Method::PATCH, &path, denied.clone()).await;
    assert_eq!(refused.status, 422, "{}", refused.message());
    assert!(
        refused.message().contains("User \"bob\" is not permitted to \"sign\" for signer"),
        "{}",
        refused.message()
    );
    assert_eq!(ask(&server, Method::PATCH, &path, denied).await.status, 200);
    let change = json!({"spec": {"podName": "q"}});
    let changed = ask(&server, Method::PATCH, &format!("{REQUESTS}/c"), change).await;
    assert_eq!(changed.status, 422);

    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = send(&server, "admin", Method::GET, REQUESTS, &table, "").await.json();
    let states: Vec<&Value> =
        table["rows"].as_array().unwrap().iter().map(|row| &row["cells"][5]).collect();
    assert_eq!(states, ["Issued", "Denied", "Pending"]);
}

async fn let_write_status(server: &Shared) {
    let rules = json!([{"apiGroups": ["certificates.k8s.io"],
        "resources": ["podcertificaterequests", "podcertificaterequests/status"],
        "verbs": ["get", "patch"]}]);
    let_bob(server, "status", rules, &format!("{REQUESTS}/b")).await;
}

/// Lets bob do something, and waits until he may read what is at the path.
async fn let_bob(server: &Shared, name: &str, rules: Value, path: &str) {
    let group = "rbac.authorization.k8s.io";
    let made = |kind: &str, more: Value| {
        let mut object = more;
        object["apiVersion"] = json!(format!("{group}/v1"));
        object["kind"] = json!(kind);
        object["metadata"] = json!({"name": name});
        let path = format!("/apis/{group}/v1/{}s", kind.to_lowercase());
        async move { ask(server, Method::POST, &path, object).await.status }
    };
    assert_eq!(made("ClusterRole", json!({"rules": rules})).await, 201);
    let subjects = json!([{"apiGroup": group, "kind": "User", "name": "bob"}]);
    let role = json!({"apiGroup": group, "kind": "ClusterRole", "name": name});
    let binding = json!({"roleRef": role, "subjects": subjects});
    assert_eq!(made("ClusterRoleBinding", binding).await, 201);
    for _ in 0..100 {
        if by(server, "bob", Method::GET, path, Value::Null).await.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("bob never came to be allowed {name}");
}
