//! Logs, exec and port-forward over the node's own HTTPS server.

use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::world::World;

pub async fn connect(world: &World) -> TlsStream<TcpStream> {
    let tls = pki::tls::client_config(None, None, true).unwrap();
    let mut tls = tls;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(world.listen).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap()
}

/// Status and body of a GET.
pub async fn get(world: &World, path: &str, token: &str) -> (u16, String) {
    ask(world, "GET", path, token).await
}

async fn ask(world: &World, method: &str, path: &str, token: &str) -> (u16, String) {
    let mut stream = connect(world).await;
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: n1\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The end of a TLS stream without a word is the server's close.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

pub async fn open(
    world: &World,
    path: &str,
    protocol: &str,
) -> tokio_tungstenite::WebSocketStream<TlsStream<TcpStream>> {
    let mut request = format!("ws://{}{path}", world.listen).into_client_request().unwrap();
    request.headers_mut().insert("Authorization", "Bearer good".parse().unwrap());
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    let (socket, answer) =
        tokio_tungstenite::client_async(request, connect(world).await).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], protocol);
    socket
}

/// The value of a series among the kubelet's own metrics.
pub async fn own_metric(world: &World, series: &str) -> Option<f64> {
    let (status, text) = get(world, "/metrics", "good").await;
    assert_eq!(status, 200);
    metric(&text, &format!("{series} "))
}

/// The value behind a metric's name and labels.
fn metric(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series))?;
    line.split_whitespace().next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_told_to_those_who_ask_for_it() {
    let world = World::new().await;
    world.create_pod(
        "busy",
        json!({"terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "a",
                "readinessProbe": {"exec": {"command": ["test", "-e", "/v/f"]}, "periodSeconds": 1},
                "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                "command": ["sh", "-c", "dd if=/dev/zero of=/v/f bs=1024 count=2048; \
                    dd if=/dev/zero of=/layer bs=1024 count=1024; while true; do :; done"]}]}),
    );
    world.until_ready("busy").await;
    let summary = async |query: &str| -> Value {
        let (status, body) = get(&world, &format!("/stats/summary{query}"), "good").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    summary("").await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let all = summary("").await;
    let pod = &all["pods"][0];
    assert_eq!(pod["podRef"]["name"], "busy");
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value} in {all:#}"));
    // It burns what it may, half a core.
    let rate = number(&pod["containers"][0]["cpu"]["usageNanoCores"]);
    assert!((100_000_000..800_000_000).contains(&rate), "{rate}");
    assert!(number(&pod["containers"][0]["memory"]["availableBytes"]) < 64 << 20);
    assert!(number(&pod["containers"][0]["rootfs"]["usedBytes"]) >= 1 << 20);
    assert_eq!(pod["volume"][0]["name"], "v");
    assert!(number(&pod["volume"][0]["usedBytes"]) >= 2 << 20);
    assert!(number(&pod["ephemeral-storage"]["usedBytes"]) >= 3 << 20);
    assert!(number(&pod["process_stats"]["process_count"]) >= 1);
    for path in [
        "/node/cpu/usageNanoCores",
        "/node/memory/workingSetBytes",
        "/node/fs/inodesFree",
        "/node/runtime/imageFs/usedBytes",
        "/node/rlimit/maxpid",
    ] {
        assert!(number(all.pointer(path).unwrap()) > 0, "{path}");
    }
    let system = all["node"]["systemContainers"].as_array().unwrap();
    let pods = system.iter().find(|it| it["name"] == "pods").unwrap();
    // The only pod, within what it used meanwhile.
    let (of_all, of_one) = (&pods["memory"]["usageBytes"], &pod["memory"]["usageBytes"]);
    assert!(number(of_all) + (8 << 20) >= number(of_one), "{pods} {pod}");
    assert!(number(&pods["cpu"]["usageNanoCores"]) > 0 && pods["startTime"].is_string());
    if std::path::Path::new("/proc/pressure/cpu").exists() {
        assert!(all["node"]["cpu"]["psi"]["some"]["total"].is_u64(), "{all:#}");
        assert!(all["node"]["io"]["psi"]["full"]["avg300"].is_number(), "{all:#}");
    }
    let small = summary("?only_cpu_and_memory=true").await;
    assert!(small["pods"][0]["volume"].is_null() && small["node"]["fs"].is_null());

    let (_, text) = get(&world, "/metrics/resource", "good").await;
    let of = "{container=\"a\",namespace=\"default\",pod=\"busy\"} ";
    assert!(metric(&text, &format!("container_cpu_usage_seconds_total{of}")).unwrap() > 0.1);
    assert!(metric(&text, &format!("container_memory_working_set_bytes{of}")).is_some());
    assert!(
        metric(&text, "pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"busy\"} ").is_some()
    );
    assert!(metric(&text, "node_memory_working_set_bytes ").unwrap() > 0.0);
    assert_eq!(metric(&text, "resource_scrape_error "), Some(0.0), "{text}");

    let (_, text) = get(&world, "/metrics/cadvisor", "good").await;
    let throttled = text
        .lines()
        .find(|line| line.starts_with("container_cpu_cfs_throttled_periods_total{container=\"a\""));
    assert!(throttled.is_some_and(|line| line.contains("pod=\"busy\"")), "{text}");
    assert!(text.contains("container_memory_working_set_bytes{container=\"\",id=\"/\""));
    assert!(text.contains("\nmachine_cpu_cores{boot_id="));
    let of = |name: &str| {
        let line = text.lines().find(|line| {
            line.starts_with(&format!("{name}{{container=\"a\"")) && line.contains("pod=\"busy\"")
        });
        let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        line.split(' ').nth_back(1).unwrap().parse::<f64>().unwrap()
    };
    let (user, system) =
        (of("container_cpu_user_seconds_total"), of("container_cpu_system_seconds_total"));
    assert!(user + system > 0.1, "{user} + {system}");
    assert!(of("container_memory_max_usage_bytes") > 0.0);
    assert_eq!(of("container_spec_cpu_period"), 100_000.0);
    assert!(of("container_spec_cpu_quota") > 0.0 && of("container_spec_cpu_shares") > 0.0);
    assert!(of("container_file_descriptors") >= 3.0, "standard streams");
    assert!(of("container_ulimits_soft") >= 3.0 || of("container_ulimits_soft") == -1.0);
    assert!(of("container_fs_limit_bytes") > of("container_fs_usage_bytes"));

    let (_, text) = get(&world, "/metrics/probes", "good").await;
    assert!(text.contains("probe_type=\"Readiness\",result=\"successful\"}"), "{text}");
    assert_eq!(get(&world, "/logs/", "bad").await.0, 401);
    let (status, list) = get(&world, "/logs/", "good").await;
    assert!(status == 200 && list.contains("<a href=\"system.log\">"), "{list}");
    assert_eq!(get(&world, "/logs/system.log", "good").await, (200, "from the system\n".into()));
    assert_eq!(get(&world, "/logs/../agent", "good").await.0, 404);
    world.delete("busy").await;
    let (_, text) = get(&world, "/metrics/probes", "good").await;
    assert!(!text.contains("busy"), "{text}");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_exec_and_ports_are_served_to_those_who_may() {
    let world = World::new().await;
    world.create_pod(
        "web",
        json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "a",
            "command": ["sh", "-c", "echo one; echo two; while true; do echo served | nc -l -p 8080; done"]}]}),
    );
    world.until_ready("web").await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;

    let logs = "/containerLogs/default/web/a";
    assert_eq!(get(&world, logs, "bad").await.0, 401);
    let (status, body) = get(&world, &format!("{logs}?tailLines=1"), "good").await;
    assert_eq!(status, 200);
    assert!(body.contains("two\n") && !body.contains("one\n"), "{body}");
    assert_eq!(get(&world, "/containerLogs/default/web/none", "good").await.0, 404);
    assert_eq!(get(&world, "/containerLogs/default/web/a?previous=true", "good").await.0, 400);
    assert_eq!(get(&world, "/exec/default/web/a?command=sh&stdout=1", "good").await.0, 400);
    assert!(get(&world, "/configz", "good").await.1.contains("\"maxPods\":110"));
    assert!(get(&world, "/flagz", "good").await.1.contains("\nmax-pods=110\n"));
    let (_, status) = get(&world, "/statusz", "good").await;
    assert!(status.contains("kubelet statusz") && status.contains("Up: 0 hr 0"), "{status}");
    assert!(get(&world, "/pods", "good").await.1.contains("PodList"));
    assert!(get(&world, "/runningpods/", "good").await.1.contains("web"));

    let path = "/exec/default/web/a?command=sh&command=-c&command=cat%3B%20echo%20err%20%3E%262%3B%20exit%207\
                &input=1&output=1&error=1";
    let mut socket = open(&world, path, "v5.channel.k8s.io").await;
    let send = async |socket: &mut tokio_tungstenite::WebSocketStream<_>, bytes: &[u8]| {
        socket.send(Message::Binary(bytes.to_vec().into())).await.unwrap();
    };
    send(&mut socket, b"\x00hello").await;
    send(&mut socket, &[255, 0]).await;
    let (mut out, mut err, mut status) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(Ok(message)) = socket.next().await {
        let Message::Binary(bytes) = message else { continue };
        match bytes[0] {
            1 => out.extend_from_slice(&bytes[1..]),
            2 => err.extend_from_slice(&bytes[1..]),
            3 => status.extend_from_slice(&bytes[1..]),
            other => panic!("channel {other}"),
        }
    }
    assert_eq!((out.as_slice(), err.as_slice()), (b"hello".as_slice(), b"err\n".as_slice()));
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));

    let mut socket = open(&world, "/portForward/default/web?port=8080", "v4.channel.k8s.io").await;
    let (mut data, mut error) = (Vec::new(), Vec::new());
    while !data.ends_with(b"served\n") {
        let message = tokio::time::timeout(std::time::Duration::from_secs(10), socket.next());
        match message.await.unwrap().unwrap().unwrap() {
            Message::Binary(bytes) if bytes[0] == 0 => data.extend_from_slice(&bytes[1..]),
            Message::Binary(bytes) => error.extend_from_slice(&bytes[1..]),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(data, b"\x90\x1fserved\n", "the port comes first");
    assert_eq!(error, b"\x90\x1f");
    drop(socket);
    world.delete("web").await;
    world.finish().await;
}

/// A node registers after its server has its address.
async fn until_serving(world: &World) {
    let path = format!("/api/v1/nodes/{}", crate::world::NODE);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while world.api.get(&path).is_none() {
        assert!(std::time::Instant::now() < deadline, "no node comes");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_of_the_node_are_asked_for_their_logs_where_that_is_allowed() {
    // Before anything is started: a program that somebody else still holds is none.
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("journalctl");
    let script = "#!/bin/sh\n[ \"$1\" = --field ] && { echo web.service; exit; }\n\
                  echo \"asked: $*\"; echo complains >&2\n";
    std::fs::write(&program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let closed = World::new().await;
    until_serving(&closed).await;
    let (status, body) = get(&closed, "/logs/?query=web", "good").await;
    assert_eq!(status, 200);
    assert!(body.contains("system.log"), "a list of files: {body}");
    closed.finish().await;
    let world = World::with(move |config| {
        let on = ["enable-system-log-query=true".to_owned()];
        assert!(kubelet::Configuration::read(None, &on).is_err(), "upstream has no such flag");
        config.answers_log_queries = true;
        config.journal_program = program.clone();
    })
    .await;
    until_serving(&world).await;
    let log = world.dir.path().join("system");
    std::fs::create_dir(log.join("other")).unwrap();
    std::fs::write(log.join("other/other.log"), "of a file\n").unwrap();
    for (path, wanted) in [
        (
            "/logs/?query=web&tailLines=3",
            (
                200,
                "asked: --utc --no-pager --lines=3 --unit=web --output=short-precise\ncomplains\n",
            ),
        ),
        ("/logs/?query=other", (200, "of a file\n")),
        ("/logs/?query=none", (200, "\nlog not found for none\n")),
        (
            "/logs/?query=other&boot=0",
            (
                200,
                "\noptions present and query resolved to log files for [other]\ntry without \
                 specifying options\n",
            ),
        ),
        ("/logs/?query=/other/other.log", (200, "of a file\n")),
        ("/logs/?query=/../secret", (404, "404 page not found\n")),
        ("/logs/other/?query=web", (406, "path not allowed in query mode\n")),
        (
            "/logs/?query=a%3Bb",
            (406, "query: Invalid value: \"a;b\": input contains unsupported characters\n"),
        ),
        ("/logs/?query=+", (400, "query: Invalid value: [\" \"]: query cannot be empty\n")),
        ("/logs/system.log", (200, "from the system\n")),
    ] {
        let (status, body) = get(&world, path, "good").await;
        assert_eq!((status, body.as_str()), wanted, "{path}");
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_the_runtime_s_to_make() {
    let world = World::new().await;
    let spec = json!({"terminationGracePeriodSeconds": 0,
        "initContainers": [{"name": "once", "command": ["sh", "-c", "exit 0"]}],
        "containers": [{"name": "a", "command": ["sleep", "1000"]}]});
    world.create_pod("kept", spec);
    world.until_ready("kept").await;
    for (method, path, wanted) in [
        ("GET", "/checkpoint/default/kept/a", (405, "405: Method Not Allowed")),
        ("POST", "/checkpoint/default/gone/a", (404, "pod does not exist")),
        ("POST", "/checkpoint/default/kept/b", (404, "container b does not exist")),
        (
            "POST",
            "/checkpoint/default/kept/a?timeout=1&timeout=x",
            (404, "cannot parse value of timeout parameter"),
        ),
        (
            "POST",
            "/checkpoint/default/kept/once",
            (500, "checkpointing of default/kept/once failed (container once not found)"),
        ),
        // By these words upstream's own test knows a runtime without CRIU.
        (
            "POST",
            "/checkpoint/default/kept/a?timeout=x&timeout=5",
            (
                500,
                "checkpointing of default/kept/a failed (rpc error: code = Unimplemented desc = \
                 method CheckpointContainer not implemented)",
            ),
        ),
    ] {
        let (status, body) = ask(&world, method, path, "good").await;
        assert_eq!((status, body.as_str()), wanted, "{method} {path}");
    }
    let asked = |suffix: &str| {
        format!("kubelet_runtime_operations_{suffix}{{operation_type=\"checkpoint_container\"}}")
    };
    for suffix in ["total", "errors_total"] {
        assert_eq!(own_metric(&world, &asked(suffix)).await, Some(1.0), "{suffix}");
    }
    world.delete("kept").await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_and_what_a_container_says_is_attached_to() {
    let world = World::new().await;
    let script = "while true; do echo tick; sleep 0.1; done";
    world.create_pod(
        "talks",
        json!({"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "a", "command": ["sh", "-c", script]}]}),
    );
    let uid = world.until_ready("talks").await["metadata"]["uid"].as_str().unwrap().to_owned();
    for (method, path, wanted) in [
        ("POST", "/run/default/talks/a?cmd=echo%20one%20two", (200, "one two\n")),
        ("POST", &format!("/run/default/talks/{uid}/a?cmd=echo+three"), (200, "three\n")),
        (
            "POST",
            "/run/default/talks/a?cmd=ls%20/none",
            (500, "ls: /none: No such file or directory\n"),
        ),
        ("POST", "/run/default/talks/b?cmd=ls", (404, "container not found (\"b\")\n")),
        ("GET", "/run/default/talks/a?cmd=ls", (405, "405: Method Not Allowed")),
        ("GET", "/run", (404, "404 page not found\n")),
    ] {
        let (status, body) = ask(&world, method, path, "good").await;
        assert_eq!((status, body.as_str()), wanted, "{method} {path}");
    }
    for path in
        ["/attach/default/talks/a?output=1", &format!("/attach/default/talks/{uid}/a?output=1")]
    {
        let mut socket = open(&world, path, "v4.channel.k8s.io").await;
        let mut said = Vec::new();
        while !said.ends_with(b"tick\n") {
            let message = tokio::time::timeout(std::time::Duration::from_secs(10), socket.next());
            if let Message::Binary(bytes) = message.await.unwrap().unwrap().unwrap()
                && bytes[0] == 1
            {
                said.extend_from_slice(&bytes[1..]);
            }
        }
    }
    world.delete("talks").await;
    world.finish().await;
}
