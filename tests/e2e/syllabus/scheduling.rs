//! Where pods may run and who gives way: selectors, ports, capacity, priorities, and the limits
//! that a namespace sets.

use serde_json::{Value, json};

use super::{create, delete_pods, is_ready, pod, until_pod};
use crate::cluster::Cluster;

const SECONDS: u64 = 120;
/// A resource that only these tests have.
const SPACE: &str = "coracle.test/space";

fn sleeps(more: Value) -> Value {
    let mut container = more;
    container["command"] = json!(["sleep", "1000"]);
    json!({"containers": [container]})
}

fn takes(space: u32) -> Value {
    let amount = json!({SPACE: space.to_string()});
    sleeps(json!({"resources": {"requests": amount, "limits": amount}}))
}

fn with(mut spec: Value, key: &str, value: Value) -> Value {
    spec[key] = value;
    spec
}

/// Waits until the scheduler has said of a pod why it cannot run.
fn waits(cluster: &Cluster, name: &str, why: &str) {
    let line = format!(
        "get events --field-selector involvedObject.name={name},reason=FailedScheduling -o jsonpath={{.items[*].message}}"
    );
    cluster.until(&line, SECONDS, |text| text.contains(why));
    let pod = cluster.json(&format!("get pod {name}"));
    assert_eq!(pod["spec"]["nodeName"], Value::Null);
}

#[test]
fn pods_run_where_they_may_and_give_way() {
    let cluster = Cluster::new();
    let node = cluster.k("get nodes -o name").trim().trim_start_matches("node/").to_owned();
    places(&cluster, &node);
    let capacity = json!({"status": {"capacity": {SPACE: "10"}}}).to_string();
    let words = ["--subresource=status", "--type=merge", "-p", &capacity];
    let of_node = ["patch", "node", &node, words[0], words[1], words[2], words[3]];
    cluster.kubectl(&of_node);
    let allocatable =
        format!("get node {node} -o jsonpath={{.status.allocatable.coracle\\.test/space}}");
    cluster.until(&allocatable, SECONDS, |text| text == "10");
    priorities(&cluster);
    let nothing = json!({"status": {"capacity": {SPACE: null}}}).to_string();
    cluster.kubectl(&["patch", "node", &node, words[0], words[1], words[2], &nothing]);
    cluster.until(&allocatable, SECONDS, str::is_empty);
    limits(&cluster);
    cluster.reset();
}

fn places(cluster: &Cluster, node: &str) {
    let selects = |value: &str| with(sleeps(json!({})), "nodeSelector", json!({"place": value}));
    let port = |address: &str| {
        let port = json!({"containerPort": 80, "hostPort": 54322, "hostIP": address});
        sleeps(json!({"ports": [port]}))
    };
    let all = json!({"resources": {"requests": {"cpu": "1000"}}});
    create(
        cluster,
        vec![
            pod("too-large", sleeps(all)),
            pod("elsewhere", selects("none")),
            pod("here", selects("here")),
            pod("any-address", port("0.0.0.0")),
        ],
    );
    waits(cluster, "too-large", "Insufficient cpu");
    waits(cluster, "elsewhere", "didn't match Pod's node affinity/selector");
    waits(cluster, "here", "didn't match Pod's node affinity/selector");
    cluster.k(&format!("label node {node} place=here"));
    until_pod(cluster, "here", is_ready);
    cluster.k(&format!("label node {node} place-"));
    until_pod(cluster, "any-address", is_ready);
    create(cluster, vec![pod("one-address", port("127.0.0.1"))]);
    waits(cluster, "one-address", "didn't have free ports");
    delete_pods(cluster);
}

fn class(name: &str, value: i64) -> Value {
    json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": name, "labels": {"classes": "ours"}}, "value": value})
}

fn is_target(pod: &Value) -> Result<(), String> {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let holds = |it: &Value| {
        it["type"] == "DisruptionTarget"
            && it["status"] == "True"
            && it["reason"] == "PreemptionByScheduler"
    };
    if conditions.iter().any(holds) { Ok(()) } else { Err("nobody preempts it".into()) }
}

fn priorities(cluster: &Cluster) {
    create(cluster, (1..=4).map(|level| class(&format!("p{level}"), level * 100)).collect());
    let listed = cluster.json("get priorityclasses -l classes=ours");
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(4));
    cluster.kubectl(&["patch", "priorityclass", "p1", "-p", r#"{"description":"low"}"#]);
    let said = cluster.refused(&["patch", "priorityclass", "p1", "-p", r#"{"value":7}"#]);
    assert!(said.contains("Forbidden"), "{said}");

    let level = |spec: Value, name: &str| with(spec, "priorityClassName", name.into());
    let mut held = pod("held", level(takes(6), "p1"));
    held["metadata"]["finalizers"] = json!(["coracle.test/held"]);
    create(cluster, vec![held, pod("middle", level(takes(4), "p2"))]);
    until_pod(cluster, "held", is_ready);
    until_pod(cluster, "middle", is_ready);
    create(cluster, vec![pod("high", level(takes(5), "p3"))]);
    // The lowest that is enough gives way, and says why.
    until_pod(cluster, "held", is_target);
    until_pod(cluster, "high", is_ready);
    until_pod(cluster, "middle", is_ready);
    let free = r#"{"metadata":{"finalizers":null}}"#;
    cluster.kubectl(&["patch", "pod", "held", "--type=merge", "-p", free]);
    cluster.until("get pods -o name", SECONDS, |text| !text.contains("held"));
    // What the system needs is above everybody.
    let mut critical = pod("critical", level(takes(10), "system-cluster-critical"));
    critical["metadata"]["namespace"] = "kube-system".into();
    create(cluster, vec![critical]);
    cluster.k("wait pod critical -n kube-system --for=condition=Ready --timeout=120s");
    cluster.until("get pods -o name", SECONDS, |text| text.trim().is_empty());
    cluster.k("delete pod critical -n kube-system --now");
    sets(cluster);
    cluster.k("delete priorityclasses -l classes=ours");
}

/// ReplicaSets of three levels fill the node; the fourth takes the place of the lowest.
fn sets(cluster: &Cluster) {
    let set = |name: &str, level: &str, replicas: u32, space: u32| {
        let mut template = pod(name, with(takes(space), "priorityClassName", level.into()));
        template["spec"]["restartPolicy"] = "Always".into();
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"name": name}},
                "template": {"metadata": {"labels": {"name": name}}, "spec": template["spec"]}}})
    };
    create(
        cluster,
        vec![set("first", "p1", 4, 1), set("second", "p2", 3, 1), set("third", "p3", 3, 1)],
    );
    let ready = |name: &str, count: &str| {
        let line = format!("get rs {name} -o jsonpath={{.status.readyReplicas}}");
        cluster.until(&line, SECONDS, |text| text == count);
    };
    for (name, count) in [("first", "4"), ("second", "3"), ("third", "3")] {
        ready(name, count);
    }
    create(cluster, vec![set("fourth", "p4", 1, 3)]);
    for (name, count) in [("fourth", "1"), ("first", "1"), ("second", "3"), ("third", "3")] {
        ready(name, count);
    }
    // Those that gave way wait for room.
    let replicas = cluster.k("get rs first -o jsonpath={.status.replicas}");
    assert_eq!(replicas, "4");
    cluster.k("delete rs --all");
    cluster.until("get pods -o name", SECONDS, |text| text.trim().is_empty());
}

fn limits(cluster: &Cluster) {
    let range = |namespace: &str| {
        json!({"apiVersion": "v1", "kind": "LimitRange",
            "metadata": {"name": "limits", "namespace": namespace, "labels": {"in": namespace}},
            "spec": {"limits": [{"type": "Container",
                "min": {"cpu": "50m", "memory": "4Mi"}, "max": {"cpu": "500m", "memory": "64Mi"},
                "default": {"cpu": "400m", "memory": "32Mi"},
                "defaultRequest": {"cpu": "100m", "memory": "16Mi"}}]}})
    };
    cluster.k("create namespace other");
    create(cluster, vec![range("default"), range("other")]);
    let resources = |name: &str, own: Value| {
        create(cluster, vec![pod(name, sleeps(json!({"resources": own})))]);
        cluster.json(&format!("get pod {name}"))["spec"]["containers"][0]["resources"].clone()
    };
    assert_eq!(
        resources("bare", json!({})),
        json!({"limits": {"cpu": "400m", "memory": "32Mi"},
            "requests": {"cpu": "100m", "memory": "16Mi"}})
    );
    assert_eq!(
        resources("partial", json!({"requests": {"cpu": "200m"}})),
        json!({"limits": {"cpu": "400m", "memory": "32Mi"},
            "requests": {"cpu": "200m", "memory": "16Mi"}})
    );
    let refused = |name: &str, cpu: &str| {
        let large = pod(name, sleeps(json!({"resources": {"limits": {"cpu": cpu}}})));
        let output = cluster.try_apply(&[], &large.to_string());
        assert!(!output.status.success());
        crate::machine::told(&output)
    };
    assert!(refused("large", "600m").contains("maximum cpu usage per Container is 500m"));
    assert!(refused("small", "20m").contains("minimum cpu usage per Container is 50m"));
    let patch = r#"{"spec":{"limits":[{"type":"Container","max":{"cpu":"1"}}]}}"#;
    cluster.kubectl(&["patch", "limitrange", "limits", "--type=merge", "-p", patch]);
    resources("larger", json!({"limits": {"cpu": "600m"}}));
    let listed = cluster.json("get limitranges -A -l in");
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(2));
    cluster.k("delete limitranges -A -l in=other");
    cluster.until("get limitranges -A -l in -o name", SECONDS, |text| text.lines().count() == 1);
    cluster.k("delete limitranges --all");
    cluster.k("delete namespace other");
    delete_pods(cluster);
}
