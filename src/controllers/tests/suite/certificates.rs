//! Requests for certificates: approved by the rules, signed by the authorities, or refused.

use crate::support::{Cluster, cluster, until};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use serde_json::{Value, json};

/// `O=system:nodes, CN=system:node:a`.
const OF_CLIENT: &str = "\
-----BEGIN CERTIFICATE REQUEST-----
MIHpMIGRAgEAMC8xFTATBgNVBAoMDHN5c3RlbTpub2RlczEWMBQGA1UEAwwNc3lz
dGVtOm5vZGU6YTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCJR0IRvkuYvuhNp
56nZuXtVa08GZNQmhLxmNaja2+kAqRFTqD7odtKoQ1+3r4Kr7nvx+IzlNs1oAzDh
Iw151C+gADAKBggqhkjOPQQDAgNHADBEAiANuXHQvO1kUKinlIVNj5mFMSMCz97h
CJ9sIn9Wor7BYwIgQH9HlD2sdiuN28I6TNXjrn065ZaoSjq6tvchvqPPbLI=
-----END CERTIFICATE REQUEST-----
";
/// The same, with `DNS:a, IP:192.0.2.7`.
const OF_SERVER: &str = "\
-----BEGIN CERTIFICATE REQUEST-----
MIIBDzCBtgIBADAvMRUwEwYDVQQKDAxzeXN0ZW06bm9kZXMxFjAUBgNVBAMMDXN5
c3RlbTpub2RlOmEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASlKz+8ZH1BxWHz
LXZQ1jFF1oXJSj0MTkLcsFaLYvqaYqk45eFEbkS3aXWl3YPIrxq9v39mpKfBtK3f
3G8wRDJgoCUwIwYJKoZIhvcNAQkOMRYwFDASBgNVHREECzAJggFhhwTAAAIHMAoG
CCqGSM49BAMCA0gAMEUCIQDaozD1ewOgb49zaOVUx78SVXoSrymaBuMvVOY6ZOfC
MwIgDMnwAq920lkQdngweYMNkeX+lQDrvjTSQVVVQJ4TmJc=
-----END CERTIFICATE REQUEST-----
";

impl Cluster {
    async fn ask(&self, name: &str, signer: &str, pem: &str, usages: &[&str]) {
        let request = k8s_openapi::ByteString(pem.as_bytes().to_vec());
        let request = json!({"metadata": {"name": name}, "spec": {"signerName": signer,
            "request": request, "usages": usages, "expirationSeconds": 7200}});
        let api = self.client.all::<CertificateSigningRequest>();
        api.create(&serde_json::from_value(request).unwrap()).await.unwrap();
    }

    async fn approve(&self, name: &str) {
        let api = self.client.all::<CertificateSigningRequest>();
        let mut request = api.get(name).await.unwrap();
        let status = request.status.get_or_insert_default();
        let approved = json!({"type": "Approved", "status": "True", "reason": "Suite"});
        let approved = serde_json::from_value(approved).unwrap();
        status.conditions.get_or_insert_default().push(approved);
        api.replace_subresource(name, "approval", &request).await.unwrap();
    }

    async fn until_request_is(&self, name: &str, kind: &str) -> Value {
        until(&format!("{name} is {kind}"), || async {
            let api = self.client.all::<CertificateSigningRequest>();
            let conditions = api.get(name).await.unwrap().status?.conditions?;
            let found = conditions.into_iter().find(|c| c.type_ == kind)?;
            Some(serde_json::to_value(found).unwrap())
        })
        .await
    }

    async fn until_issued(&self, name: &str) -> String {
        let pem = until(&format!("{name} is issued"), || async {
            let api = self.client.all::<CertificateSigningRequest>();
            api.get(name).await.unwrap().status?.certificate
        })
        .await;
        String::from_utf8(pem.0).unwrap()
    }
}

fn seconds_left(pem: &str) -> i64 {
    pki::authority::not_after(pem).unwrap() - base::time::now().as_second()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_gets_its_client_certificate_by_itself() {
    let cluster = cluster().await;
    let signer = "kubernetes.io/kube-apiserver-client-kubelet";
    cluster.ask("mine", signer, OF_CLIENT, &["digital signature", "client auth"]).await;
    let approved = cluster.until_request_is("mine", "Approved").await;
    assert_eq!(approved["reason"], "AutoApproved");
    let expected = "Auto approving kubelet client certificate after SubjectAccessReview.";
    assert_eq!(approved["message"], expected);
    let pem = cluster.until_issued("mine").await;
    assert!((7_000..=7_200).contains(&seconds_left(&pem)), "{}", seconds_left(&pem));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_approved_is_signed_if_the_signer_allows_it() {
    let cluster = cluster().await;
    let signer = "kubernetes.io/kubelet-serving";
    cluster.ask("good", signer, OF_SERVER, &["digital signature", "server auth"]).await;
    cluster.ask("bad", signer, OF_CLIENT, &["digital signature", "server auth"]).await;
    cluster.approve("good").await;
    cluster.approve("bad").await;
    let pem = cluster.until_issued("good").await;
    let (names, addresses) = pki::authority::alternative_names(&pem).unwrap();
    assert_eq!((names, addresses), (vec!["a".into()], vec!["192.0.2.7".parse().unwrap()]));
    let failed = cluster.until_request_is("bad", "Failed").await;
    assert_eq!(failed["reason"], "SignerValidationFailure");
    assert_eq!(failed["message"], "DNS or IP subjectAltName is required");
}

/// As with kubeadm, where the binding may come after the node has asked.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_allowed_later_is_approved_later() {
    let cluster = cluster().await;
    let bind = async |name: &str, role: &str| {
        let of = "rbac.authorization.k8s.io";
        let binding = json!({"metadata": {"name": name},
            "subjects": [{"kind": "User", "apiGroup": of, "name": "late"}],
            "roleRef": {"apiGroup": of, "kind": "ClusterRole", "name": role}});
        let api = cluster.client.all::<ClusterRoleBinding>();
        api.create(&serde_json::from_value(binding).unwrap()).await.unwrap();
    };
    bind("may-ask", "system:node-bootstrapper").await;
    let asked = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": "early"},
        "spec": {"signerName": "kubernetes.io/kube-apiserver-client-kubelet",
            "request": k8s_openapi::ByteString(OF_CLIENT.as_bytes().to_vec()),
            "usages": ["digital signature", "client auth"]}});
    until("the user may ask", async || {
        let asked = http::Request::post("/apis/certificates.k8s.io/v1/certificatesigningrequests")
            .header("Impersonate-User", "late")
            .header("Content-Type", "application/json")
            .body(asked.to_string().into())
            .unwrap();
        cluster.client.request(asked).await.ok()
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    let requests = cluster.client.all::<CertificateSigningRequest>();
    let status = requests.get("early").await.unwrap().status;
    assert!(status.is_none_or(|status| status.conditions.is_none()), "nobody allows it yet");
    bind("may-have", "system:certificates.k8s.io:certificatesigningrequests:nodeclient").await;
    cluster.until_request_is("early", "Approved").await;
    cluster.until_issued("early").await;
}
