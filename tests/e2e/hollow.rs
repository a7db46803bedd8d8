//! A cluster of more nodes than anybody has at hand: simulated ones. Judged is what comes of
//! it; `tests/bench size` says how fast.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cluster::{Cluster, KUBECONFIG};
use crate::machine::{ADDRESS, Machine, eventually};

const NODES: usize = 50;
const PODS: usize = 500;
const PINNED: usize = 9;
const SCHEDULER: &str = "/tmp/scheduler.yaml";

/// A Deployment whose pods leave a node that is lost at once.
fn deployment(name: &str, replicas: usize, prefers: &str) -> String {
    let spec = json!({
        "containers": [{"name": "c", "image": "none.example.com/none:1",
            "resources": {"requests": {"cpu": "100m"}}}],
        "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists",
            "effect": "NoExecute", "tolerationSeconds": 0}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100, "preference": {"matchExpressions": [
                {"key": "coracle.io/hollow", "operator": "In", "values": [prefers]}]}}]}},
    });
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec}}})
    .to_string()
}

fn pods(cluster: &Cluster, app: &str) -> Vec<Value> {
    let mut list = cluster.json(&format!("get pods -l app={app}"));
    list["items"].as_array_mut().map(std::mem::take).unwrap()
}

fn is_lost(pod: &Value) -> bool {
    pod["spec"]["nodeName"].as_str().is_some_and(|node| node.starts_with("lost-"))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn is_leaving(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
}

fn all_ready(cluster: &Cluster, app: &str, replicas: usize) {
    let goal = format!("--for=jsonpath={{.status.readyReplicas}}={replicas}");
    cluster.kubectl(&["wait", &goal, "--timeout=300s", &format!("deployment/{app}")]);
}

#[test]
fn many_nodes_take_pods_lose_them_and_come_back() {
    let configured = format!("--kube-scheduler-arg=config={SCHEDULER}");
    let flags = ["--disable-agent", "--disable-controller-manager", &configured];
    let machine = Machine::new();
    machine.write(
        SCHEDULER,
        b"{apiVersion: kubescheduler.config.k8s.io/v1, kind: KubeSchedulerConfiguration, \
          profiles: [{schedulerName: default-scheduler}, {schedulerName: second}]}",
    );
    let mut cluster = Cluster::not_started(machine, &flags);
    cluster.start_server();
    let start = |name: &str, argv: &[&str]| {
        let mut words = vec!["/mnt/coracle/coracle"];
        words.extend(argv);
        words.extend(["--kubeconfig", KUBECONFIG]);
        cluster.machine.start(&format!("/tmp/{name}.log"), &words)
    };
    let hollow = |prefix: &str, count: &str| {
        let more = ["--heartbeat=1s", "--pod-start-delay=100ms", "--pod-run-time=1s"];
        start(prefix, &[&["agent", "--hollow", count, "--name-prefix", prefix], &more[..]].concat())
    };
    let grace = "--node-monitor-grace-period=15s";
    let controllers = start("controllers", &["controllers", grace]);
    let lost = hollow("lost", "3");
    let rest = hollow("hollow", &NODES.to_string());
    cluster.until("get nodes --no-headers", 120, |text| {
        text.lines().filter(|line| line.contains(" Ready ")).count() == NODES + 3
    });

    cluster.apply(&deployment("pinned", PINNED, "lost"));
    cluster.apply(&deployment("web", PODS, "hollow"));
    all_ready(&cluster, "pinned", PINNED);
    all_ready(&cluster, "web", PODS);
    assert!(pods(&cluster, "pinned").iter().all(is_lost), "they would rather be there");
    let web = pods(&cluster, "web");
    let of = |at: &str| -> BTreeSet<String> {
        web.iter().map(|pod| pod.pointer(at).unwrap().to_string()).collect()
    };
    assert_eq!(of("/status/podIP").len(), PODS);
    assert!(of("/spec/nodeName").len() >= NODES / 2, "{:?}", of("/spec/nodeName"));

    let of_second = r#"{"spec": {"schedulerName": "second"}}"#;
    let run = ["run", "second", "--image=none.example.com/none:1", "--overrides", of_second];
    cluster.kubectl(&run);
    cluster.k("wait --for=condition=Ready pod/second --timeout=60s");

    cluster.k("create job once --image=none.example.com/none:1 -- true");
    cluster.kubectl(&["wait", "--for=condition=complete", "--timeout=120s", "job/once"]);

    cluster.k("scale deployment web --replicas=20");
    cluster.until("get pods -l app=web --no-headers", 300, |text| text.lines().count() == 20);
    all_ready(&cluster, "web", 20);

    cluster.machine.sh(&format!("kill -KILL {lost}"));
    eventually("the lost nodes are tainted", 180, || {
        let nodes = cluster.json("get nodes -l coracle.io/hollow=lost");
        let executes = |node: &&Value| {
            let taints = node["spec"]["taints"].as_array().into_iter().flatten();
            let ours = "node.kubernetes.io/unreachable";
            taints.into_iter().any(|t| t["key"] == ours && t["effect"] == "NoExecute")
        };
        let tainted = nodes["items"].as_array().unwrap().iter().filter(executes).count();
        if tainted == 3 { Ok(()) } else { Err(nodes["items"].to_string()) }
    });
    let evicted = eventually("others take over", 180, || {
        let all = pods(&cluster, "pinned");
        let (gone, here): (Vec<&Value>, Vec<&Value>) = all.iter().partition(|pod| is_lost(pod));
        // A lost node that is not yet known to be one may get some again: more than PINNED go.
        let serve = here.iter().filter(|pod| is_ready(pod)).count();
        let leave = gone.len() >= PINNED && gone.iter().all(|pod| is_leaving(pod));
        if serve == PINNED && leave { Ok(all) } else { Err(format!("{all:#?}")) }
    });
    for pod in evicted.iter().filter(|pod| is_lost(pod)) {
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        let why = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
        assert_eq!(why["reason"], "DeletionByTaintManager");
        assert!(!is_ready(pod), "nobody knows whether it is");
    }

    // Who comes back says so, and finishes what was deleted meanwhile.
    let lost = hollow("lost", "3");
    cluster.until("get nodes -l coracle.io/hollow=lost --no-headers", 120, |text| {
        text.lines().filter(|line| line.contains(" Ready ")).count() == 3
    });
    cluster.until("get pods -l app=pinned --no-headers", 120, |text| {
        text.lines().count() == PINNED && !text.contains("Terminating")
    });
    let taints = "get nodes -o jsonpath={.items[*].spec.taints}";
    cluster.until(taints, 60, |text| text.trim().is_empty());

    for (pid, name) in [(lost, "lost"), (rest, "hollow"), (controllers, "controllers")] {
        let log = format!("/tmp/{name}.log");
        assert!(cluster.machine.is_alive(pid), "{}", cluster.machine.read(&log));
        cluster.machine.sh(&format!("kill -TERM {pid}"));
        eventually("a component ends when told", 15, || match cluster.machine.is_alive(pid) {
            true => Err(cluster.machine.read(&log)),
            false => Ok(()),
        });
    }
    cluster.reset();
}

/// Half of what containers ask for, as they are told; an autoscaler that wants less has more.
#[test]
fn hollow_nodes_show_what_they_use() {
    let mut cluster = Cluster::not_started(Machine::new(), &["--disable-agent"]);
    cluster.start_server();
    let address = format!("--metrics-address={ADDRESS}");
    let argv =
        ["/mnt/coracle/coracle", "agent", "--hollow=3", &address, "--kubeconfig", KUBECONFIG];
    let hollow = cluster.machine.start("/tmp/hollow.log", &argv);
    cluster.until("get nodes --no-headers", 60, |text| text.matches(" Ready ").count() == 3);
    cluster.k("create deployment web --image=none.example.com/none:1 --replicas=2");
    cluster.k("set resources deployment web --requests=cpu=200m,memory=64Mi");
    cluster.rollout("web");
    // Windows are of milliseconds, and what comes of them is rounded.
    let half = |line: &&str| {
        ["99m", "100m", "101m"].iter().any(|it| line.contains(it)) && line.contains("32Mi")
    };
    cluster.until("top pods --no-headers", 60, |text| text.lines().filter(half).count() == 2);
    cluster.until("top nodes --no-headers", 30, |text| {
        // What each uses for itself, and with a pod or two; cut to thousandths.
        let cpu = |line: &str| {
            let word = line.split_whitespace().nth(1)?;
            word.strip_suffix('m')?.parse::<u32>().ok()
        };
        let of_pods = |line: &str| cpu(line).is_some_and(|it| (99..=305).contains(&it));
        let all: u32 = text.lines().filter_map(cpu).sum();
        text.lines().filter(|line| of_pods(line)).count() == 3 && (495..=515).contains(&all)
    });
    cluster.k("autoscale deployment web --min=2 --max=5 --cpu-percent=25");
    cluster
        .until("get deployment web -o jsonpath={.status.readyReplicas}", 120, |text| text == "4");
    // Nobody else reads them.
    let port = "get node hollow-0 -o jsonpath={.status.daemonEndpoints.kubeletEndpoint.Port}";
    let url = format!("https://{ADDRESS}:{}/metrics/resource", cluster.k(port).trim());
    let code = format!("curl -sk -o /dev/null -w '%{{http_code}}' {url}");
    assert_eq!(cluster.machine.sh(&code).trim(), "403");
    assert!(cluster.machine.is_alive(hollow), "{}", cluster.machine.read("/tmp/hollow.log"));
    cluster.machine.sh(&format!("kill -TERM {hollow}"));
    cluster.reset();
}
