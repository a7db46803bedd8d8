//! The machine goes down: what logind says, and what becomes of pods.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc;

use serde_json::json;

use crate::server::own_metric;
use crate::world::World;

/// A message of the bus: kind, the serial that it answers, member, signature and body.
fn message(kind: u8, reply_to: u32, member: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut fields: Vec<u8> = Vec::new();
    let pad = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(8), 0);
    for (code, text) in [(2u8, "org.freedesktop.login1.Manager"), (3, member)] {
        pad(&mut fields);
        fields.extend([code, 1, b's', 0]);
        fields.extend((text.len() as u32).to_le_bytes());
        fields.extend(text.as_bytes());
        fields.push(0);
    }
    pad(&mut fields);
    fields.extend([5, 1, b'u', 0]);
    fields.extend(reply_to.to_le_bytes());
    pad(&mut fields);
    fields.extend([8, 1, b'g', 0, signature.len() as u8]);
    fields.extend(signature.as_bytes());
    fields.push(0);
    let mut out = vec![b'l', kind, 0, 1];
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(9u32.to_le_bytes());
    out.extend((fields.len() as u32).to_le_bytes());
    out.extend(fields);
    pad(&mut out);
    out.extend(body);
    out
}

fn line(stream: &mut UnixStream) -> String {
    let mut out = Vec::new();
    let mut byte = [0];
    while !out.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).unwrap();
        out.push(byte[0]);
    }
    String::from_utf8(out).unwrap()
}

/// The serial and the whole of the next call.
fn next_call(stream: &mut UnixStream) -> (u32, String) {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
    let fields = (number(12) as usize).next_multiple_of(8);
    let mut rest = vec![0; fields + number(4) as usize];
    stream.read_exact(&mut rest).unwrap();
    (number(8), String::from_utf8_lossy(&rest).into_owned())
}

/// Answers a call with a descriptor, and keeps its other end.
fn delay(mut stream: &UnixStream, serial: u32) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let answer = message(2, serial, "", "h", &[0; 4]);
    let theirs = OwnedFd::from(theirs);
    let sent = sys::socket::send(stream.as_fd(), &answer, &[theirs.as_fd()]).unwrap();
    stream.write_all(&answer[sent..]).unwrap();
    ours
}

/// Plays logind behind a bus: lets the kubelet in, gives it a delay, then says what it is
/// told to. The other end of the delay comes back, to see when it is let go.
fn logind(socket: &Path) -> (mpsc::Sender<bool>, mpsc::Receiver<UnixStream>) {
    let listener = UnixListener::bind(socket).unwrap();
    let (say, said) = mpsc::channel::<bool>();
    let (hold, held) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(line(&mut stream).starts_with("\0AUTH EXTERNAL "));
        stream.write_all(b"OK 1234\r\n").unwrap();
        assert_eq!(line(&mut stream), "NEGOTIATE_UNIX_FD\r\n");
        stream.write_all(b"AGREE_UNIX_FD\r\n").unwrap();
        assert_eq!(line(&mut stream), "BEGIN\r\n");
        let mut delay_seconds = 5u64;
        loop {
            let (serial, text) = next_call(&mut stream);
            if text.contains("KillUnit") {
                delay_seconds = 60;
            }
            if text.contains("InhibitDelayMaxUSec") {
                let micros = (delay_seconds * 1_000_000).to_le_bytes();
                let body = [&[1, b't', 0, 0, 0, 0, 0, 0][..], &micros].concat();
                stream.write_all(&message(2, serial, "", "v", &body)).unwrap();
            } else if text.contains("Inhibit") {
                hold.send(delay(&stream, serial)).unwrap();
                break;
            } else {
                stream.write_all(&message(2, serial, "", "", &[])).unwrap();
            }
        }
        while let Ok(begins) = said.recv() {
            let body = u32::from(begins).to_le_bytes();
            let signal = message(4, 0, "PrepareForShutdown", "b", &body);
            stream.write_all(&signal).unwrap();
            if !begins {
                let (serial, text) = next_call(&mut stream);
                assert!(text.contains("Inhibit"), "{text}");
                hold.send(delay(&stream, serial)).unwrap();
            }
        }
    });
    (say, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_end_before_the_machine_and_none_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (bus, systemd) = (dir.path().join("bus"), dir.path().join("systemd"));
    let (say, held) = logind(&bus);
    let (bus, etc) = (bus.clone(), systemd.clone());
    let world = World::with(move |config| {
        let flags = Vec::new();
        let file = bus.with_file_name("kubelet.yaml");
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                    shutdownGracePeriod: 20s\nshutdownGracePeriodCriticalPods: 10s\n";
        std::fs::write(&file, text).unwrap();
        let read = kubelet::Configuration::read(Some(&file), &flags).unwrap();
        let thresholds = std::mem::take(&mut config.eviction.thresholds);
        read.apply(config).unwrap();
        config.eviction.thresholds = thresholds;
        config.system_bus = bus.clone();
        config.systemd_dir = etc.clone();
    })
    .await;
    let spec = |priority: i32| {
        json!({"priority": priority, "terminationGracePeriodSeconds": 600, "containers": [
            {"name": "a", "command": ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.1; done"]}]})
    };
    world.create_pod("plain", spec(0));
    world.create_pod("critical", spec(2_000_001_000));
    world.until_ready("plain").await;
    world.until_ready("critical").await;
    let (delay, held) =
        tokio::task::spawn_blocking(move || (held.recv().unwrap(), held)).await.unwrap();
    let drop_in = std::fs::read_to_string(systemd.join("logind.conf.d/99-kubelet.conf")).unwrap();
    assert_eq!(drop_in, "[Login]\nInhibitDelayMaxSec=20\n");
    say.send(true).unwrap();
    let ended =
        |name: &'static str| world.until(name, |pod| pod.unwrap()["status"]["phase"] == "Failed");
    let plain = ended("plain").await.unwrap();
    assert_eq!(plain["status"]["reason"], "Terminated");
    assert_eq!(
        plain["status"]["message"],
        "Pod was terminated in response to imminent node shutdown."
    );
    let conditions = plain["status"]["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|it| it["type"] == "DisruptionTarget").unwrap();
    assert_eq!(target["reason"], "TerminationByKubelet");
    let critical = ended("critical").await.unwrap();
    let finished = |pod: &serde_json::Value| {
        let state = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        state["finishedAt"].as_str().unwrap().to_owned()
    };
    assert!(finished(&plain) <= finished(&critical), "the critical pod ends last");
    let let_go = tokio::task::spawn_blocking(move || (&delay).read(&mut [0; 1]).unwrap());
    assert_eq!(let_go.await.unwrap(), 0, "the machine may go down now");
    let not_ready = || {
        let node = world.api.get("/api/v1/nodes/n1").unwrap();
        let all = node["status"]["conditions"].as_array().unwrap().clone();
        all.iter().any(|it| {
            it["type"] == "Ready"
                && it["status"] == "False"
                && it["message"] == "node is shutting down"
        })
    };
    world.until("plain", |_| not_ready()).await;
    let at = async |series: &str| {
        let series = format!("kubelet_graceful_shutdown_{series}_time_seconds");
        own_metric(&world, &series).await.unwrap()
    };
    assert!(0.0 < at("start").await && at("start").await <= at("end").await);
    let record = world.dir.path().join("agent/graceful_node_shutdown_state");
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    assert!(record["startTime"].as_str() <= record["endTime"].as_str(), "{record}");
    world.create_pod("late", spec(0));
    let late = ended("late").await.unwrap();
    assert_eq!(late["status"]["reason"], "NodeShutdown");
    // It was called off after all; the node's pods come back with their owners.
    say.send(false).unwrap();
    world.until("plain", |_| !not_ready()).await;
    let again = tokio::task::spawn_blocking(move || held.recv().is_ok());
    assert!(again.await.unwrap(), "the next shutdown is delayed as well");
    world.create_pod("again", spec(0));
    world.until_ready("again").await;
    for name in ["plain", "critical", "late", "again"] {
        world.delete(name).await;
    }
    world.finish().await;
}
