//! What the project promises in numbers, measured and printed; `tests/bench` runs it with
//! the release build. It judges only what no slow machine can spoil.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::{Cluster, LOG};
use crate::machine::{Machine, eventually};

const STARTS: usize = 5;
const DEPLOYMENTS: usize = 10;
/// Binaries larger than this do not belong on a small board.
const BINARY_BYTES_MAX: u64 = 30_000_000;

fn median(mut list: Vec<Duration>) -> Duration {
    list.sort();
    list[list.len() / 2]
}

/// From exec to the node's being Ready, on a machine that never ran it.
fn start_to_ready() -> Duration {
    let machine = Machine::new();
    let began = Instant::now();
    machine.start(LOG, &["/mnt/coracle/coracle", "server"]);
    while !machine.read(LOG).contains("ready; use it with") {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", machine.read(LOG));
        std::thread::sleep(Duration::from_millis(2));
    }
    let took = began.elapsed();
    let log = machine.read(LOG);
    assert!(log.contains("node is Ready"), "{log}");
    took
}

/// KiB resident and CPU ticks used, of the server and all shims.
fn usage(machine: &Machine) -> (u64, u64) {
    let script = r#"
        for p in /proc/[0-9]*; do
            case $(readlink $p/exe) in */coracle) ;; *) continue ;; esac
            awk '/^VmRSS/ {rss = $2} END {print "rss", rss + 0}' $p/status
            sed 's/.*) //' $p/stat | awk '{print "ticks", $12 + $13}'
        done"#;
    let text = machine.sh(script);
    let sum = |what: &str| {
        text.lines().filter_map(|line| line.strip_prefix(what)?.trim().parse::<u64>().ok()).sum()
    };
    (sum("rss "), sum("ticks "))
}

/// One Deployment of one replica after the other, from the request to the pod's being
/// Ready as a watcher sees it.
fn deployments_to_ready(cluster: &Cluster) -> Vec<Duration> {
    let machine = &cluster.machine;
    cluster.k("create serviceaccount bench");
    cluster.k(
        "create clusterrolebinding bench --clusterrole=cluster-admin --serviceaccount=default:bench",
    );
    let bearer = format!("Authorization: Bearer {}", cluster.k("create token bench").trim());
    let curl = ["curl", "-skN", "-H", &bearer];
    let api = "https://127.0.0.1:6443";
    let mut times = Vec::new();
    for n in 0..DEPLOYMENTS {
        let name = format!("bench-{n}");
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "terminationGracePeriodSeconds": 0,
                        "containers": [{"name": "main", "image": "web:1"}],
                    },
                },
            },
        });
        machine.write("/tmp/deployment.json", deployment.to_string().as_bytes());
        let watch =
            format!("{api}/api/v1/namespaces/default/pods?watch=1&labelSelector=app={name}");
        let mut words = curl.to_vec();
        words.push(&watch);
        let mut watcher = machine
            .command(60, &words)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(watcher.stdout.take().unwrap()).lines();
        std::thread::sleep(Duration::from_millis(150));
        let create = format!("{api}/apis/apps/v1/namespaces/default/deployments");
        let mut words = curl.to_vec();
        words.extend(["-f", "-o", "/dev/null", "-H", "Content-Type: application/json"]);
        words.extend(["-d", "@/tmp/deployment.json", &create]);
        let began = Instant::now();
        assert!(machine.run(&words).status.success(), "{}", cluster.log());
        let ready = lines.by_ref().map_while(Result::ok).any(|line| {
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            let conditions = event["object"]["status"]["conditions"].as_array().cloned();
            conditions.is_some_and(|list| {
                list.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
            })
        });
        assert!(ready, "{}", cluster.log());
        times.push(began.elapsed());
        watcher.kill().unwrap();
        watcher.wait().unwrap();
        cluster.k(&format!("delete deployment {name}"));
        // A container that is told before it listens has its whole grace.
        cluster.until("get pods --no-headers", 60, |text| text.trim().is_empty());
    }
    times
}

#[test]
fn figures() {
    let seconds = std::env::var("CORACLE_IDLE_SECONDS").map_or(5, |text| text.parse().unwrap());
    let binary = std::fs::metadata(env!("CARGO_BIN_EXE_coracle")).unwrap().len();
    let starts = (0..STARTS).map(|_| start_to_ready()).collect();
    let cluster = Cluster::new();
    let times = deployments_to_ready(&cluster);
    cluster.k("create deployment web --image=web:1 --replicas=3");
    cluster.rollout("web");
    let ticks_per_second: u64 = cluster.machine.sh("getconf CLK_TCK").trim().parse().unwrap();
    // What a start and a roll-out set off is not idleness.
    std::thread::sleep(Duration::from_secs(5));
    let (_, before) = usage(&cluster.machine);
    std::thread::sleep(Duration::from_secs(seconds));
    let (with_pods, after) = usage(&cluster.machine);
    let cpu = (after - before) as f64 * 100.0 / (ticks_per_second * seconds) as f64;
    cluster.k("delete deployment web");
    eventually("no shim is left", 30, || {
        let count = cluster.machine.sh("ps -C coracle -o pid= | wc -l");
        if count.trim() == "1" { Ok(()) } else { Err(count) }
    });
    let (without_pods, _) = usage(&cluster.machine);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let longest = milliseconds(*times.iter().max().unwrap());
    println!(
        "start to Ready, empty data directory, median of {STARTS}: {:.0} ms",
        milliseconds(median(starts))
    );
    println!(
        "one-replica Deployment to Ready, median of {DEPLOYMENTS}: {:.0} ms (longest {longest:.0})",
        milliseconds(median(times))
    );
    println!("resident after that, no pods: {:.1} MiB", without_pods as f64 / 1024.0);
    println!("resident with 3 pods, shims included: {:.1} MiB", with_pods as f64 / 1024.0);
    println!("CPU with 3 idle pods over {seconds} s: {cpu:.2} % of a core");
    println!("binary: {:.1} MB", binary as f64 / 1e6);
    assert!(cfg!(debug_assertions) || binary <= BINARY_BYTES_MAX, "{binary} bytes");
    cluster.reset();
}
