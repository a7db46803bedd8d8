//! Volumes that show trust anchors of the cluster, and certificates that are made for the pod.

use serde_json::{Value, json};

use crate::volumes::{run, told};
use crate::world::World;

const GROUP: &str = "/apis/certificates.k8s.io/v1beta1";
const REQUESTS: &str =
    "/apis/certificates.k8s.io/v1beta1/namespaces/default/podcertificaterequests";

async fn world() -> World {
    let world = World::with(|config| {
        config.projects_trust_bundles = true;
        config.requests_pod_certificates = true;
    })
    .await;
    let account = json!({"metadata": {"name": "default", "namespace": "default", "uid": "sa-1"}});
    world.api.put("/api/v1/namespaces/default/serviceaccounts/default", account);
    world
}

fn pod(sources: Value) -> Value {
    json!({"terminationGracePeriodSeconds": 0, "serviceAccountName": "default",
        "containers": [{"name": "a", "command": ["sleep", "1000"],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "projected": {"sources": sources}}]})
}

fn put_bundle(world: &World, name: &str, signer: &str, anchors: &[&str]) {
    let pem: String =
        anchors.iter().map(|it| pki::blocks::write("CERTIFICATE", it.as_bytes())).collect();
    world.api.put(
        &format!("{GROUP}/clustertrustbundles/{name}"),
        json!({"metadata": {"name": name, "labels": {"app": "x"}},
            "spec": {"signerName": signer, "trustBundle": pem}}),
    );
}

/// What the blocks of a file in the pod are, in the order of the alphabet.
async fn blocks(world: &World, pod: &str, file: &str) -> Vec<String> {
    let found = pki::blocks::read(&run(world, pod, &format!("cat {file}")).await);
    let mut out: Vec<String> =
        found.into_iter().map(|it| String::from_utf8(it.bytes).unwrap()).collect();
    out.sort();
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_its_anchors_and_sees_them_change() {
    let world = world().await;
    put_bundle(&world, "e.x:s:one", "e.x/s", &["b", "c"]);
    put_bundle(&world, "e.x:s:two", "e.x/s", &["c", "d"]);
    world.create_pod(
        "p",
        pod(json!([
            {"clusterTrustBundle": {"name": "roots", "path": "ca.pem"}},
            {"clusterTrustBundle": {"signerName": "e.x/s", "path": "signer.pem",
                "labelSelector": {"matchLabels": {"app": "x"}}}},
            {"clusterTrustBundle": {"name": "gone", "path": "gone.pem", "optional": true}},
        ])),
    );
    let missing = "FailedMount: MountVolume.SetUp failed for volume \"v\" : while getting \
                   ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"roots\" not found";
    told(&world, "p", missing).await;
    put_bundle(&world, "roots", "", &["a"]);
    world.until_ready("p").await;
    assert_eq!(blocks(&world, "p", "/v/ca.pem").await, ["a"]);
    assert_eq!(blocks(&world, "p", "/v/signer.pem").await, ["b", "c", "d"]);
    assert_eq!(run(&world, "p", "wc -c < /v/gone.pem").await.trim(), "0");
    put_bundle(&world, "roots", "", &["z"]);
    world.api.delete(&format!("{GROUP}/clustertrustbundles/e.x:s:two"));
    for _ in 0..200 {
        if blocks(&world, "p", "/v/ca.pem").await == ["z"]
            && blocks(&world, "p", "/v/signer.pem").await == ["b", "c"]
        {
            world.delete("p").await;
            world.finish().await;
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the files do not follow: {:?}", blocks(&world, "p", "/v/ca.pem").await);
}

/// The requests that stand, but for those that are known.
async fn next_request(world: &World, known: &[String]) -> String {
    for _ in 0..400 {
        let new = world.api.below(REQUESTS).into_iter().find(|path| !known.contains(path));
        if let Some(path) = new {
            return path;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("no request is made: {:#?}", world.api.events());
}

fn issued(chain: &str, refresh_seconds: i64) -> Value {
    let at = |seconds: i64| {
        let now = jiff::Timestamp::now();
        now.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap().to_string()
    };
    json!({"status": {
        "conditions": [{"type": "Issued", "status": "True", "reason": "Signed", "message": "",
            "lastTransitionTime": at(0)}],
        "certificateChain": format!("a comment\n{}", pki::blocks::write("CERTIFICATE", chain.as_bytes())),
        "notBefore": at(-60), "beginRefreshAt": at(refresh_seconds), "notAfter": at(7_200)}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_a_key_with_a_certificate_and_later_another() {
    let world = world().await;
    let wants = |key_type: &str| {
        pod(json!([{"podCertificate": {"signerName": "e.x/s", "keyType": key_type,
            "credentialBundlePath": "all.pem", "keyPath": "key.pem",
            "certificateChainPath": "chain.pem", "userAnnotations": {"e.x/a": "1"}}}]))
    };
    world.create_pod("p", wants("ECDSAP256"));
    let first = next_request(&world, &[]).await;
    let request = world.api.get(&first).unwrap();
    let (spec, made) = (&request["spec"], world.pod("p").unwrap());
    assert_eq!(spec["podUID"], made["metadata"]["uid"]);
    assert_eq!(request["metadata"]["ownerReferences"][0]["uid"], made["metadata"]["uid"]);
    let own = world.api.get("/api/v1/nodes/n1").unwrap();
    assert_eq!(spec["nodeUID"], own["metadata"]["uid"]);
    assert_eq!(spec["serviceAccountUID"], "sa-1");
    assert_eq!(spec["unverifiedUserAnnotations"], json!({"e.x/a": "1"}));
    let stub: k8s_openapi::ByteString =
        serde_json::from_value(spec["stubPKCS10Request"].clone()).unwrap();
    pki::possession::read_request(&stub.0).unwrap();
    told(&world, "p", "credential bundle is not issued yet").await;

    // It is to be refreshed at once, but shown until there is another.
    world.api.patch(&first, &issued("one", -600));
    world.until_ready("p").await;
    let all = run(&world, "p", "cat /v/all.pem").await;
    assert_eq!(all, run(&world, "p", "cat /v/key.pem /v/chain.pem").await);
    assert!(all.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{all}");
    assert!(!all.contains("comment"), "{all}");
    assert_eq!(run(&world, "p", "stat -c %a /v/..data/key.pem").await.trim(), "644");
    let second = next_request(&world, std::slice::from_ref(&first)).await;
    world.api.patch(&second, &issued("two", 3_600));
    for _ in 0..200 {
        if blocks_of_chain(&world).await == ["two"] {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(blocks_of_chain(&world).await, ["two"]);
    assert_ne!(run(&world, "p", "cat /v/key.pem").await, all[..all.find("-----BEGIN C").unwrap()]);
    assert_eq!(world.api.below(REQUESTS).len(), 2, "no more than is needed");

    world.create_pod("q", wants("ED25519"));
    let third = next_request(&world, &[first, second]).await;
    let denied = json!({"status": {"conditions": [{"type": "Denied", "status": "True",
        "reason": "NoGrant", "message": "not you", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    world.api.patch(&third, &denied);
    let name = third.rsplit('/').next().unwrap();
    let said =
        format!("Denied: PodCertificateRequest default/{name} was denied, reason=\"NoGrant\"");
    told(&world, "q", &said).await;
    told(&world, "q", "PodCertificateRequest was permanently denied: reason=\"NoGrant\"").await;
    world.delete("q").await;
    world.delete("p").await;
    world.finish().await;
}

async fn blocks_of_chain(world: &World) -> Vec<String> {
    blocks(world, "p", "/v/chain.pem").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_without_the_features_says_so() {
    let world = World::new().await;
    world.create_pod("p", pod(json!([{"clusterTrustBundle": {"name": "a", "path": "ca"}}])));
    told(&world, "p", "ClusterTrustBundle projection is disabled").await;
    world.delete("p").await;
    world.finish().await;
}
