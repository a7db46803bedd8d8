//! Many pods on one node, in numbers: `tests/bench` runs it with the release build and as
//! many pods as a node takes. It judges only what no slow machine can spoil.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::machine::Machine;

/// Replicas of the Deployment that is timed.
const TIMED: usize = 50;
/// Idle pods while CPU is measured.
const IDLE: usize = 30;

/// How many pods the node is filled with.
fn crowd() -> usize {
    std::env::var("CORACLE_CROWD").map_or(12, |text| text.parse().unwrap())
}

fn ready(cluster: &Cluster, replicas: usize) {
    let goal = format!("--for=jsonpath={{.status.readyReplicas}}={replicas}");
    cluster.kubectl(&["wait", &goal, "--timeout=300s", "deployment/web"]);
}

fn scale(cluster: &Cluster, replicas: usize) -> Duration {
    let began = Instant::now();
    cluster.k(&format!("scale deployment web --replicas={replicas}"));
    ready(cluster, replicas);
    began.elapsed()
}

/// KiB of each shim that it shares with nobody, or its part of what it shares.
fn shims(machine: &Machine) -> Vec<u64> {
    let script = r#"
        for p in /proc/[0-9]*; do
            case $(readlink $p/exe) in */coracle) ;; *) continue ;; esac
            tr '\0' ' ' < $p/cmdline | grep -q ' shim ' || continue
            awk '/^Pss:/ {print $2}' $p/smaps_rollup
        done"#;
    machine.sh(script).lines().filter_map(|line| line.trim().parse().ok()).collect()
}

/// KiB resident of the server itself.
fn server(machine: &Machine) -> u64 {
    let script = r#"
        for p in /proc/[0-9]*; do
            case $(readlink $p/exe) in */coracle) ;; *) continue ;; esac
            tr '\0' ' ' < $p/cmdline | grep -q ' server' || continue
            awk '/^VmRSS/ {print $2}' $p/status
        done"#;
    machine.sh(script).trim().parse().unwrap()
}

/// CPU ticks that the server and all shims have used.
fn ticks(machine: &Machine) -> u64 {
    let script = r#"
        for p in /proc/[0-9]*; do
            case $(readlink $p/exe) in */coracle) ;; *) continue ;; esac
            sed 's/.*) //' $p/stat | awk '{print $12 + $13}'
        done"#;
    machine.sh(script).lines().filter_map(|line| line.trim().parse::<u64>().ok()).sum()
}

/// Containers by pod, with how often they were started.
fn containers(cluster: &Cluster) -> BTreeMap<String, (String, u64)> {
    let pods = cluster.json("get pods");
    let pods = pods["items"].as_array().unwrap().iter().map(|pod| {
        let status = &pod["status"]["containerStatuses"][0];
        let id = status["containerID"].as_str().unwrap().to_string();
        let name = pod["metadata"]["name"].as_str().unwrap().to_string();
        (name, (id, status["restartCount"].as_u64().unwrap()))
    });
    pods.collect()
}

#[test]
fn many_pods_on_one_node_cost_little_and_outlive_the_server() {
    let seconds = std::env::var("CORACLE_IDLE_SECONDS").map_or(5, |text| text.parse().unwrap());
    let (crowd, timed, idle) = (crowd(), TIMED.min(crowd()), IDLE.min(crowd()));
    let mut cluster = Cluster::new();
    let empty = server(&cluster.machine);
    cluster.k("create deployment web --image=web:1 --replicas=0");
    let took = scale(&cluster, timed);
    println!("{timed}-replica Deployment to all Ready: {:.2} s", took.as_secs_f64());

    scale(&cluster, crowd);
    let mut pss = shims(&cluster.machine);
    pss.sort_unstable();
    assert_eq!(pss.len(), crowd, "a shim for each pod");
    let full = server(&cluster.machine);
    let mib = |kib: u64| kib as f64 / 1024.0;
    println!("per pod beyond its containers, PSS, median: {:.2} MiB", mib(pss[crowd / 2]));
    println!(
        "server resident with no pods {:.1} MiB, with {crowd}: {:.1} MiB",
        mib(empty),
        mib(full)
    );

    let before = containers(&cluster);
    cluster.kill();
    cluster.start_server();
    println!(
        "Ready again with {crowd} pods after kill -9: {:.2} s",
        cluster.started_in.as_secs_f64()
    );
    cluster.node_is_ready();
    ready(&cluster, crowd);
    assert_eq!(containers(&cluster), before, "no container was touched");

    cluster.k(&format!("scale deployment web --replicas={idle}"));
    cluster.until("get pods --no-headers", 120, |text| text.lines().count() == idle);
    // What the change set off is not idleness.
    std::thread::sleep(Duration::from_secs(5));
    let per_second: u64 = cluster.machine.sh("getconf CLK_TCK").trim().parse().unwrap();
    let used = ticks(&cluster.machine);
    std::thread::sleep(Duration::from_secs(seconds));
    let used = ticks(&cluster.machine) - used;
    let cpu = used as f64 * 100.0 / (per_second * seconds) as f64;
    println!("CPU with {idle} idle pods over {seconds} s: {cpu:.2} % of a core");
    cluster.k("delete deployment web");
    cluster.until("get pods --no-headers", 120, |text| text.trim().is_empty());
    cluster.reset();
}
