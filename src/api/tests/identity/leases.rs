//! What the server writes down of itself.

use std::time::Duration;

use api::identity_lease;
use http::Method;
use serde_json::Value;

use crate::support::{self, ask};

#[tokio::test]
async fn a_server_says_that_it_is_there_and_since_when_it_notes_uses_of_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let path = format!(
        "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{}",
        identity_lease::name("node-1")
    );
    let mut holders = Vec::new();
    for _ in 0..2 {
        let (trigger, drain) = base::drain::channel();
        let kept = tokio::spawn(identity_lease::keep(server.clone(), "node-1".into(), drain));
        let held = async {
            loop {
                let lease = ask(&server, Method::GET, &path, Value::Null).await.json();
                let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
                if !holder.is_empty() && !holders.contains(&holder.to_string()) {
                    return lease;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // The next process on this host takes the lease over at once.
        let lease = tokio::time::timeout(Duration::from_secs(10), held).await.unwrap();
        assert_eq!(
            lease["metadata"]["labels"]["apiserver.kubernetes.io/identity"],
            "kube-apiserver"
        );
        assert_eq!(lease["metadata"]["labels"]["kubernetes.io/hostname"], "node-1");
        assert_eq!(lease["spec"]["leaseDurationSeconds"], 3600);
        holders.push(lease["spec"]["holderIdentity"].as_str().unwrap().to_string());
        trigger.drain();
        kept.await.unwrap();
    }
    let tracking = "/api/v1/namespaces/kube-system/configmaps/kube-apiserver-legacy-service-account-token-tracking";
    let tracking = ask(&server, Method::GET, tracking, Value::Null).await.json();
    let since = tracking["data"]["since"].as_str().unwrap();
    assert!(base::time::parse(&format!("{since}T00:00:00Z")).is_some(), "{since}");
}
