//! Settings of a KubeletConfiguration, as the node, its servers and its pods show them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kubelet::Configuration;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::{connect, get};
use crate::world::{NODE, World};

fn set(config: &mut kubelet::KubeletConfig, flags: &[String]) {
    Configuration::read(None, flags).unwrap().apply(config).unwrap();
}

/// One that nobody listens on.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn ask_in_the_clear(port: u16, path: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut stream = loop {
        match tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_reach_the_node_its_pods_and_whoever_asks_for_its_health() {
    let port = free_port();
    let world = World::with(move |config| {
        let flags = [
            format!("healthz-port={port}"),
            "provider-id=cloud://here/1".to_owned(),
            "node-status-max-images=0".to_owned(),
            "cpu-cfs-quota-period=20ms".to_owned(),
        ];
        set(config, &flags);
    })
    .await;
    world.create_pod(
        "half",
        json!({"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "a", "command": ["sleep", "1000"],
            "resources": {"limits": {"cpu": "500m"}}}]}),
    );
    let pod = world.until_ready("half").await;
    let node = world.api.get(&format!("/api/v1/nodes/{NODE}")).unwrap();
    assert_eq!(node["spec"]["providerID"], "cloud://here/1");
    assert_eq!(node["status"]["images"].as_array().map_or(0, Vec::len), 0);

    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    let id = id.rsplit('/').next().unwrap();
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let group = format!("{}/burstable/pod{uid}/{id}", world.pods_group());
    let read = |path: String| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    let quota = read(format!("/sys/fs/cgroup/{group}/cpu.max")).unwrap_or_else(|_| {
        let of = |file| read(format!("/sys/fs/cgroup/cpu/{group}/cpu.{file}")).unwrap();
        format!("{} {}", of("cfs_quota_us"), of("cfs_period_us"))
    });
    assert_eq!(quota, "10000 20000");

    for (path, status, body) in [
        ("/healthz", "200 OK", "\r\n\r\nok"),
        ("/healthz?verbose", "200 OK", "[+]ping ok\nhealthz check passed\n"),
        ("/healthz/ping", "200 OK", "\r\n\r\nok"),
        ("/pods", "404 Not Found", "404 page not found\n"),
    ] {
        let answer = ask_in_the_clear(port, path).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{path}: {answer}");
        assert!(answer.ends_with(body), "{path}: {answer}");
    }
    let (_, shown) = get(&world, "/configz", "good").await;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let shown = &shown["kubeletconfig"];
    assert_eq!(shown["healthzPort"], port);
    assert_eq!(shown["cpuCFSQuotaPeriod"], "20ms");
    assert_eq!(shown["cgroupDriver"], "cgroupfs", "what cannot be set is shown as well");
    world.delete("half").await;
    world.finish().await;
}

/// Writes a certificate of `name` and its key.
fn certificate(dir: &Path, name: &str) {
    let authority = pki::Authority::create("files").unwrap();
    let leaf = pki::Leaf {
        common_name: name.into(),
        dns_names: vec!["localhost".into()],
        server: true,
        ..pki::Leaf::default()
    };
    let leaf = authority.issue(&leaf).unwrap();
    for (file, text) in [("tls.key", leaf.key_pem), ("tls.crt", leaf.cert_pem)] {
        std::fs::write(dir.join(file), text).unwrap();
    }
}

async fn until_presented(world: &World, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let stream = connect(world).await;
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        let holder = pki::authority::holder(&chain[0]).unwrap().common_name;
        if holder == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{holder} stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_from_files_is_presented_and_read_again_and_old_tls_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "first");
    let files = [("tls-cert-file", "tls.crt"), ("tls-private-key-file", "tls.key")];
    let mut flags: Vec<String> =
        files.map(|(flag, file)| format!("{flag}={}", dir.path().join(file).display())).into();
    flags.push("tls-min-version=VersionTLS13".into());
    let world = World::with(move |config| set(config, &flags)).await;
    world.create_pod(
        "idle",
        json!({"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "a", "command": ["sleep", "1000"]}]}),
    );
    world.until_ready("idle").await;
    until_presented(&world, "first").await;

    let old = rustls::crypto::ring::default_provider();
    let old = rustls::ClientConfig::builder_with_provider(Arc::new(old))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let old = tokio_rustls::TlsConnector::from(Arc::new(pki::tls::trusting_anyone(old)));
    let tcp = tokio::net::TcpStream::connect(world.listen).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let refused = old.connect(name, tcp).await.unwrap_err().to_string();
    assert!(refused.contains("ProtocolVersion"), "{refused}");

    // What cannot be read leaves what is presented.
    std::fs::write(dir.path().join("tls.crt"), "torn").unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    until_presented(&world, "first").await;
    certificate(dir.path(), "second");
    until_presented(&world, "second").await;
    world.delete("idle").await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_measured_as_often_as_is_said_or_not_at_all() {
    for (period, wanted) in [("1h", Some(1)), ("0s", Some(3)), ("-1s", None)] {
        let flags = [format!("volume-stats-agg-period={period}")];
        let world = World::with(move |config| set(config, &flags)).await;
        world.create_pod(
            "keeps",
            json!({"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "a", "command": ["sleep", "1000"],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]}),
        );
        let pod = world.until_ready("keeps").await;
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let at = format!("agent/pods/{uid}/volumes/kubernetes.io~empty-dir/v");
        let used = async |mebibytes: usize| {
            std::fs::write(world.dir.path().join(&at).join("f"), vec![1; mebibytes << 20]).unwrap();
            let (_, summary) = get(&world, "/stats/summary", "good").await;
            let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
            let volume = &summary["pods"][0]["volume"][0];
            volume["usedBytes"].as_u64().map(|bytes| bytes >> 20)
        };
        assert_eq!(used(1).await, wanted.map(|_| 1), "{period}");
        assert_eq!(used(3).await, wanted, "{period}");
        world.delete("keeps").await;
        world.finish().await;
    }
}
