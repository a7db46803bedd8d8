//! Certificate requests as clients meet them: who may approve and sign, and what of it stays.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use api::serve::Shared;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};
use support::{Answer, ask, send};

#[path = "support/server.rs"]
mod support;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn pem(organization: &str) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
    let key = rcgen::KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

async fn request(server: &Shared, name: &str, signer: &str, organization: &str) -> Answer {
    let body = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name}, "spec": {"request": STANDARD.encode(pem(organization)),
        "signerName": signer, "usages": ["client auth"], "username": "forged"}});
    ask(server, Method::POST, REQUESTS, body).await
}

async fn patch(server: &Shared, who: &str, path: &str, body: Value) -> Answer {
    let headers = [("content-type", "application/merge-patch+json")];
    send(server, who, Method::PATCH, path, &headers, body.to_string()).await
}

/// Lets bob do something, and waits until the server knows.
async fn let_bob(server: &Shared, name: &str, rules: Value, probe: Value) {
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": name}, "rules": rules});
    assert_eq!(ask(server, Method::POST, &format!("{RBAC}/clusterroles"), role).await.status, 201);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}]});
    let path = format!("{RBAC}/clusterrolebindings");
    assert_eq!(ask(server, Method::POST, &path, binding).await.status, 201);
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": "bob", "resourceAttributes": probe}});
    for _ in 0..100 {
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        if ask(server, Method::POST, path, review.clone()).await.json()["status"]["allowed"] == true
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("bob never came to be allowed {name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn approving_and_signing_need_the_signer() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let made = request(&server, "a", "example.com/s", "team").await;
    assert_eq!(made.status, 201, "{}", made.message());
    assert_eq!(made.warnings(), Vec::<String>::new());
    assert_eq!(made.json()["spec"]["username"], "admin");

    let parts = json!([{"apiGroups": ["certificates.k8s.io"], "verbs": ["patch", "update"],
        "resources": ["certificatesigningrequests/approval", "certificatesigningrequests/status"]}]);
    let probe = json!({"group": "certificates.k8s.io", "verb": "patch",
        "resource": "certificatesigningrequests", "subresource": "status"});
    let_bob(&server, "parts", parts, probe).await;
    let approval = format!("{REQUESTS}/a/approval");
    let status = format!("{REQUESTS}/a/status");
    let approve = json!({"metadata": {"annotations": {"by": "bob"}}, "status": {"conditions": [{"type": "Approved", "status": "True",
        "reason": "r", "message": "m"}]}});
    let refused = patch(&server, "bob", &approval, approve.clone()).await;
    assert_eq!(refused.status, 403);
    assert_eq!(
        refused.message(),
        "certificatesigningrequests.certificates.k8s.io \"a\" is forbidden: user not permitted to approve requests with signerName \"example.com/s\""
    );

    let signers = json!([{"apiGroups": ["certificates.k8s.io"], "verbs": ["approve"],
        "resources": ["signers"], "resourceNames": ["example.com/*"]}]);
    let probe = json!({"group": "certificates.k8s.io", "verb": "approve", "resource": "signers",
        "name": "example.com/*"});
    let_bob(&server, "signers", signers, probe).await;
    let approved = patch(&server, "bob", &approval, approve).await;
    assert_eq!(approved.status, 200, "{}", approved.message());
    // Who approves may leave a word, but not change what is asked for.
    assert_eq!(approved.json()["metadata"]["annotations"]["by"], "bob");
    let condition = &approved.json()["status"]["conditions"][0];
    assert!(condition["lastUpdateTime"].is_string(), "{condition}");
    assert!(condition["lastTransitionTime"].is_string(), "{condition}");

    let authority = pki::Authority::create("x").unwrap();
    let sign = json!({"status": {"certificate": STANDARD.encode(&authority.cert_pem)}});
    let refused = patch(&server, "bob", &status, sign.clone()).await;
    assert_eq!(refused.status, 403);
    assert!(refused.message().contains("user not permitted to sign requests"));
    let none = json!({"status": {"certificate": "eA=="}});
    assert_eq!(patch(&server, "admin", &status, none).await.status, 422);
    let withdrawn = json!({"status": {"conditions": []}});
    assert_eq!(patch(&server, "admin", &status, withdrawn.clone()).await.status, 422);
    assert_eq!(patch(&server, "admin", &approval, withdrawn).await.status, 422);
    assert_eq!(patch(&server, "admin", &status, sign).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_becomes_a_master_by_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let signer = "kubernetes.io/kube-apiserver-client";
    let refused = request(&server, "m", signer, "system:masters").await;
    assert_eq!(refused.status, 403);
    assert_eq!(
        refused.message(),
        "certificatesigningrequests.certificates.k8s.io \"m\" is forbidden: use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
    );
    assert_eq!(request(&server, "t", signer, "team").await.status, 201);
    assert_eq!(request(&server, "o", "example.com/s", "system:masters").await.status, 201);
}
