//! kill -9 at any moment: containers go on, nothing that was acknowledged is lost.

use std::collections::BTreeMap;

use crate::cluster::Cluster;
use crate::machine::{ADDRESS, Machine, eventually};
use crate::story::APP;

/// Process ids of the web servers, by the machine's own count.
fn web_servers(cluster: &Cluster) -> Vec<String> {
    let text = cluster.machine.sh("ps -C httpd -o pid=,lstart= --sort=pid");
    text.lines().map(|line| line.trim().to_string()).collect()
}

fn restarts(cluster: &Cluster) -> Vec<String> {
    let path = "{range .items[*]}{.metadata.uid} {.status.containerStatuses[*].restartCount}\
         {.status.containerStatuses[*].containerID} {.status.podIP}{\"\\n\"}{end}";
    let text = cluster.kubectl(&["get", "pods", "-o", &format!("jsonpath={path}")]);
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    lines.sort();
    lines
}

#[test]
fn containers_outlive_the_server() {
    let mut cluster = Cluster::new();
    cluster.apply(APP);
    cluster.rollout("web");
    let (pids, pods) = (web_servers(&cluster), restarts(&cluster));
    assert_eq!(pids.len(), 3, "{pids:?}");
    let node = cluster.k("get node -o jsonpath={.items[0].metadata.uid}");
    let curl = format!("curl -fsS -m 5 http://{ADDRESS}:30080/");

    for round in 0..3 {
        match round {
            0 => cluster.terminate(),
            _ => cluster.kill(),
        }
        for _ in 0..10 {
            assert_eq!(
                cluster.machine.sh(&curl),
                "version 1\n",
                "the server is dead, round {round}"
            );
        }
        assert_eq!(web_servers(&cluster), pids);
        cluster.start();
        assert_eq!(web_servers(&cluster), pids, "round {round}");
        cluster.rollout("web");
        assert_eq!(restarts(&cluster), pods, "round {round}");
        assert_eq!(cluster.k("get node -o jsonpath={.items[0].metadata.uid}"), node);
        assert_eq!(cluster.machine.sh(&curl), "version 1\n");
        // What was taken up still does everything.
        let pod = cluster.k("get pods -o jsonpath={.items[0].metadata.name}");
        assert_eq!(cluster.in_pod(&pod, "cat /www/version"), "1");
        assert!(cluster.k(&format!("logs {pod}")).contains("web 1 starts"));
    }
    assert!(!cluster.k("get events").contains("Killing"));

    // What changed while nobody looked is seen: a container that died, a pod to go.
    cluster.kill();
    let dead = pids[0].split_whitespace().next().unwrap();
    cluster.machine.sh(&format!("kill -9 {dead}"));
    cluster.start();
    cluster.until("get pods --no-headers", 60, |text| {
        text.lines().filter(|line| line.contains("1/1") && line.contains("Running")).count() == 3
            && text.lines().filter(|line| line.split_whitespace().nth(3) == Some("1")).count() == 1
    });
    cluster.k("scale deployment web --replicas=1");
    cluster.kill();
    cluster.start();
    cluster.until("get pods --no-headers", 60, |text| text.lines().count() == 1);
    eventually("one web server is left", 20, || {
        let left = web_servers(&cluster);
        if left.len() == 1 { Ok(()) } else { Err(format!("{left:?}")) }
    });
    cluster.reset();
}

/// Writes ConfigMaps as fast as curl can, and notes what was acknowledged.
const WRITER: &str = r#"
ca=/tmp/ca.crt; token=$(cat /tmp/token); n=0
while [ ! -e /tmp/enough ]; do
    n=$((n + 1))
    name=writer-$1-$n
    body="{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"$name\"},\"data\":{\"n\":\"$n\"}}"
    answer=$(curl -sS -m 5 --cacert $ca -H "Authorization: Bearer $token" \
        -H 'Content-Type: application/json' -w '\n%{http_code}' -d "$body" \
        https://127.0.0.1:6443/api/v1/namespaces/default/configmaps 2> /dev/null) || { sleep 0.05; continue; }
    if [ "${answer##*$'\n'}" = 201 ]; then
        version=$(jq -r .metadata.resourceVersion <<< "${answer%$'\n'*}")
        echo "$name $version" >> /tmp/acknowledged
    fi
done
"#;

#[test]
fn acknowledged_writes_survive_kill_9() {
    const ROUNDS: u32 = 8;
    let mut cluster = Cluster::with(Machine::new(), &["--disable-agent"]);
    cluster.k("create serviceaccount writer");
    cluster.k("create clusterrolebinding writer --clusterrole=cluster-admin --serviceaccount=default:writer");
    let token = cluster.k("create token writer");
    cluster.machine.write("/tmp/token", token.as_bytes());
    let ca = "jsonpath={.clusters[0].cluster.certificate-authority-data}";
    let ca = cluster.kubectl(&["config", "view", "--raw", "-o", ca]);
    cluster.machine.sh(&format!("echo {ca} | base64 -d > /tmp/ca.crt; : > /tmp/acknowledged"));
    for writer in ["a", "b", "c"] {
        cluster.machine.start("/tmp/writer.log", &["bash", "-c", WRITER, "writer", writer]);
    }
    let mut last = 0;
    for round in 0..ROUNDS {
        let goal = last + 20;
        eventually("the writers write", 30, || {
            let count = cluster.machine.read("/tmp/acknowledged").lines().count();
            if count >= goal { Ok(()) } else { Err(format!("round {round}: {count}")) }
        });
        cluster.kill();
        cluster.start();
        let acknowledged = cluster.machine.read("/tmp/acknowledged");
        let list = cluster.json("get configmaps");
        let items = list["items"].as_array().unwrap();
        let there: BTreeMap<&str, &str> = items
            .iter()
            .map(|item| {
                let meta = &item["metadata"];
                (meta["name"].as_str().unwrap(), meta["resourceVersion"].as_str().unwrap())
            })
            .collect();
        for line in acknowledged.lines() {
            let (name, version) = line.split_once(' ').unwrap();
            assert_eq!(there.get(name), Some(&version), "round {round}: {name} was acknowledged");
        }
        let revision =
            cluster.kubectl(&["get", "--raw", "/api/v1/namespaces/default/configmaps?limit=1"]);
        let revision: serde_json::Value = serde_json::from_str(&revision).unwrap();
        let revision: u64 =
            revision["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        let newest =
            acknowledged.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).max();
        assert!(revision >= newest.unwrap_or(0u64), "round {round}: revisions went back");
        last = acknowledged.lines().count();
    }
    cluster.machine.sh("touch /tmp/enough; sleep 0.3");
    cluster.reset();
}
