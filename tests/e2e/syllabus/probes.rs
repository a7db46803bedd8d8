//! Probes: what is restarted, what is not, and what is ready when.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::{create, delete_pods, is_ready, pod, pods, until_pod};
use crate::cluster::Cluster;
use crate::machine::{ADDRESS, eventually};

const GRPC_PORT: u16 = 5051;
/// How long those that must not be restarted are watched.
const WATCHED: Duration = Duration::from_secs(12);

/// Answers every request of a connection as grpc.health.v1 does when all is well.
fn serve_health(mut stream: TcpStream) -> std::io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface)?;
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut out = length[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend(payload);
        out
    };
    // Settings.
    stream.write_all(&frame(4, 0, 0, &[]))?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload)?;
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match kind {
            4 if flags & 1 == 0 => stream.write_all(&frame(4, 1, 0, &[]))?,
            6 if flags & 1 == 0 => stream.write_all(&frame(6, 1, 0, &payload))?,
            // The end of the request.
            0 | 1 if flags & 1 == 1 => {
                let field = |name: &str, value: &str| {
                    let mut out = vec![0, u8::try_from(name.len()).unwrap()];
                    out.extend(name.as_bytes());
                    out.push(u8::try_from(value.len()).unwrap());
                    out.extend(value.as_bytes());
                    out
                };
                let mut headers = vec![0x88];
                headers.extend(field("content-type", "application/grpc"));
                stream.write_all(&frame(1, 4, id, &headers))?;
                // A message of two bytes: its first field is 1, SERVING.
                stream.write_all(&frame(0, 0, id, &[0, 0, 0, 0, 2, 8, 1]))?;
                stream.write_all(&frame(1, 5, id, &field("grpc-status", "0")))?;
            }
            _ => {}
        }
    }
}

fn health_server(cluster: &Cluster) {
    let (send, receive) = std::sync::mpsc::channel();
    cluster.machine.inside(move || {
        send.send(TcpListener::bind(("0.0.0.0", GRPC_PORT)).unwrap()).unwrap();
    });
    let listener = receive.recv().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || drop(serve_health(stream)));
        }
    });
}

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
}

/// A container that is alive for two seconds, by file and by HTTP.
const SHORT: &str = "mkdir -p /srv; touch /tmp/health /srv/healthz; httpd -p 8080 -h /srv; \
     sleep 2; rm /tmp/health /srv/healthz; sleep 1000";
const LONG: &str =
    "mkdir -p /srv; touch /tmp/health /srv/healthz; httpd -p 8080 -h /srv; sleep 1000";

fn probed(name: &str, script: &str, what: &str, action: Value) -> Value {
    let mut probe = action;
    probe["periodSeconds"] = 1.into();
    probe["failureThreshold"] = 1.into();
    probe["timeoutSeconds"] = 5.into();
    if probe["initialDelaySeconds"].is_null() && what == "livenessProbe" {
        probe["initialDelaySeconds"] = 1.into();
    }
    let container = json!({"command": ["sh", "-c", script], what: probe});
    pod(name, json!({"containers": [container], "restartPolicy": "Always"}))
}

#[test]
fn probes_restart_what_fails_and_nothing_else() {
    let cluster = Cluster::new();
    health_server(&cluster);
    let live = "livenessProbe";
    let cat = json!({"exec": {"command": ["cat", "/tmp/health"]}});
    let http = json!({"httpGet": {"path": "/healthz", "port": 8080}});
    let tcp = json!({"tcpSocket": {"port": 8080}});
    let grpc = |port: u16| json!({"grpc": {"port": port}, "initialDelaySeconds": 1});
    let mut on_node = probed("grpc-stays", "sleep 1000", live, grpc(GRPC_PORT));
    let mut nowhere = probed("grpc-goes", "sleep 1000", live, grpc(GRPC_PORT + 1));
    for pod in [&mut on_node, &mut nowhere] {
        pod["spec"]["hostNetwork"] = true.into();
    }
    let never = json!({"exec": {"command": ["false"]}});
    let mut late = json!({"exec": {"command": ["true"]}});
    late["initialDelaySeconds"] = 6.into();
    create(
        &cluster,
        vec![
            probed("exec-goes", SHORT, live, cat.clone()),
            probed("http-goes", SHORT, live, http.clone()),
            nowhere,
            probed("exec-stays", LONG, live, cat),
            probed("http-stays", LONG, live, http),
            // The files go, the socket stays.
            probed("tcp-stays", SHORT, live, tcp),
            on_node,
            probed("never-ready", "sleep 1000", "readinessProbe", never),
            probed("late-ready", "sleep 1000", "readinessProbe", late),
        ],
    );
    assert_eq!(ADDRESS, cluster.k("get node -o jsonpath={.items[0].status.addresses[0].address}"));
    // Ready after its delay, and never restarted.
    let second = |text: &Value| -> i64 {
        let script = format!("date -d {} +%s", text.as_str().unwrap());
        cluster.machine.sh(&script).trim().parse().unwrap()
    };
    let pod = until_pod(&cluster, "late-ready", |pod| is_ready(pod).map(|()| pod.clone()));
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|it| it["type"] == "Ready").unwrap();
    let began = &pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"];
    let waited = second(&ready["lastTransitionTime"]) - second(began);
    assert!((5..30).contains(&waited), "ready after {waited} seconds");
    // The counts go up, one by one and never down.
    let last = std::cell::Cell::new(0);
    until_pod(&cluster, "http-goes", |pod| {
        let count = restarts(pod);
        assert!(count >= last.replace(count), "the count went down to {count}");
        if count >= 3 { Ok(()) } else { Err(format!("{count} restarts")) }
    });
    for name in ["exec-goes", "http-goes", "grpc-goes"] {
        until_pod(&cluster, name, |pod| match restarts(pod) {
            0 => Err("it was not restarted".to_string()),
            _ => Ok(()),
        });
        let events = cluster
            .k(&format!("get events --field-selector involvedObject.name={name},reason=Unhealthy"));
        assert!(events.contains("Liveness probe failed"), "{events}");
    }
    let began = std::time::Instant::now();
    eventually("those that are well are left alone", 60, || {
        let all = pods(&cluster)?;
        for (name, pod) in &all {
            if !name.ends_with("-goes") {
                assert_eq!(restarts(pod), 0, "{name}: {}", pod["status"]);
            }
        }
        assert!(is_ready(&all["never-ready"]).is_err(), "{}", all["never-ready"]["status"]);
        let left = WATCHED.saturating_sub(began.elapsed());
        if left.is_zero() { Ok(()) } else { Err(format!("{left:?} left")) }
    });
    delete_pods(&cluster);
    cluster.reset();
}
