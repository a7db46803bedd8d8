//! A serving certificate that the cluster signs, over the real listener.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::{connect, get, own_metric};
use crate::world::World;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// The next request that nobody has answered.
async fn next(world: &World, seen: &mut BTreeSet<String>) -> (String, Value) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(path) = world.api.below(REQUESTS).into_iter().find(|it| !seen.contains(it)) {
            seen.insert(path.clone());
            let object = world.api.get(&path).unwrap();
            return (path, object);
        }
        assert!(Instant::now() < deadline, "nobody asks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn request_of(object: &Value) -> String {
    let bytes = STANDARD.decode(object["spec"]["request"].as_str().unwrap()).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn sign(world: &World, authority: &pki::Authority, path: &str, object: &Value, seconds: i64) {
    let usages: Vec<String> = serde_json::from_value(object["spec"]["usages"].clone()).unwrap();
    let cert = authority.sign(&request_of(object), &usages, seconds).unwrap();
    world.api.patch(
        path,
        &json!({"status": {"conditions": [{"type": "Approved", "status": "True"}],
                           "certificate": STANDARD.encode(cert)}}),
    );
}

/// Fingerprint of what the listener presents.
async fn presented(world: &World) -> String {
    let stream = connect(world).await;
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    pki::authority::holder(&chain[0]).unwrap().fingerprint
}

async fn until_other_than(world: &World, old: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let now = presented(world).await;
        if now != old {
            return now;
        }
        assert!(Instant::now() < deadline, "the certificate stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_signs_what_the_kubelet_serves_with_and_renews_it() {
    let mut world = World::with(|config| config.asks_for_serving_certificate = true).await;
    let authority = pki::Authority::create("servers").unwrap();
    let mut seen = BTreeSet::new();
    let (denied, object) = next(&world, &mut seen).await;
    assert_eq!(object["spec"]["signerName"], "kubernetes.io/kubelet-serving");
    assert_eq!(object["spec"]["usages"], json!(["digital signature", "server auth"]));
    let asked = pki::request::read(request_of(&object).as_bytes()).unwrap();
    assert_eq!(asked.common_name, "system:node:n1");
    assert_eq!(asked.organizations, ["system:nodes"]);
    assert_eq!((asked.dns_names, asked.addresses), (vec!["n1".into()], vec![vec![192, 0, 2, 1]]));

    // What is refused changes nothing, and is asked for again.
    let own = presented(&world).await;
    let no = json!({"status": {"conditions": [{"type": "Denied", "reason": "R", "message": "m"}]}});
    world.api.patch(&denied, &no);
    let (path, object) = next(&world, &mut seen).await;
    assert_eq!(presented(&world).await, own);

    // A connection of before goes on while others see the new certificate.
    let mut open = connect(&world).await;
    // Most of this one's life, which begins an hour ago, is over: it is renewed at once.
    sign(&world, &authority, &path, &object, 300);
    let first = until_other_than(&world, &own).await;
    open.write_all(b"GET /healthz HTTP/1.0\r\nAuthorization: Bearer good\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = open.read_to_end(&mut answer).await;
    assert!(answer.ends_with(b"ok"), "{}", String::from_utf8_lossy(&answer));
    let (path, object) = next(&world, &mut seen).await;
    assert_eq!(presented(&world).await, first, "the old one until the new one is there");
    sign(&world, &authority, &path, &object, 86_400 * 365);
    let second = until_other_than(&world, &first).await;
    assert_eq!(get(&world, "/healthz", "good").await.0, 200);

    let left = own_metric(&world, "kubelet_certificate_manager_server_ttl_seconds").await.unwrap();
    assert!((86_000.0 * 365.0..86_401.0 * 365.0).contains(&left), "{left}");
    for (series, want) in [
        ("kubelet_certificate_manager_server_rotation_seconds_count", 1.0),
        ("kubelet_server_expiration_renew_errors", 1.0),
    ] {
        assert_eq!(own_metric(&world, series).await, Some(want), "{series}");
    }

    // It outlives the process, and is not asked for again.
    world.stop().await;
    world.start();
    let deadline = Instant::now() + Duration::from_secs(60);
    while tokio::net::TcpStream::connect(world.listen).await.is_err() {
        assert!(Instant::now() < deadline, "nobody listens");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let own = until_kept(&world, &second).await;
    assert_eq!(own, second);
    assert_eq!(world.api.below(REQUESTS).len(), seen.len());
    world.finish().await;
}

/// The kept certificate is taken up beside the listener's start.
async fn until_kept(world: &World, wanted: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let now = presented(world).await;
        if now == wanted || Instant::now() > deadline {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
