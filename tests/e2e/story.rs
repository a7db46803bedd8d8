//! A real application's life, from `kubectl apply` to `coracle reset`.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use crate::cluster::{Cluster, kubectls};
use crate::machine::{ADDRESS, eventually};

pub const APP: &str = include_str!("app.yaml");

fn names(cluster: &Cluster, selector: &str) -> Vec<String> {
    let line = format!("get pods -l {selector} -o jsonpath={{.items[*].metadata.name}}");
    cluster.k(&line).split_whitespace().map(str::to_string).collect()
}

#[test]
fn an_application_runs() {
    let cluster = Cluster::new();
    let nodes = cluster.k("get nodes -o wide");
    assert!(nodes.contains(ADDRESS) && nodes.contains("v1.36"), "{nodes}");
    cluster.k("create namespace shop");
    assert!(cluster.k("get namespaces").contains("shop"));
    cluster.apply_with(&["-n", "shop", "--dry-run=server"], APP);
    let applied = cluster.apply(APP);
    assert!(applied.contains("deployment.apps/web created"), "{applied}");
    cluster.rollout("web");
    let applied = cluster.apply(APP);
    assert!(applied.contains("deployment.apps/web unchanged"), "{applied}");

    let all = cluster.k("get all -o wide");
    for part in ["pod/web-", "service/web", "deployment.apps/web", "replicaset.apps/web-", "3/3"] {
        assert!(all.contains(part), "{part} in\n{all}");
    }
    let about = cluster.k("describe deployment web");
    assert!(about.contains("3 desired | 3 updated | 3 total | 3 available"), "{about}");
    let pods = names(&cluster, "app=web");
    assert_eq!(pods.len(), 3);
    let pod = pods[0].as_str();
    let about = cluster.k(&format!("describe pod {pod}"));
    for word in ["Scheduled", "Pulled", "Created", "Started", "Burstable", "web-config"] {
        assert!(about.contains(word), "{word} in\n{about}");
    }

    // What the container was promised.
    let inside = "cat /config/greeting.txt; echo $COLOR; cat /secret/password; echo; echo $PASSWORD; \
         touch /scratch/mine && echo scratch; echo ip=$POD_IP; hostname; cat /sys/fs/cgroup/memory/memory.limit_in_bytes; \
         stat -c %a /secret/password 2>/dev/null; ls -lL /secret/password";
    let said = cluster.in_pod(pod, inside);
    let expected = ["good morning", "blue", "rosebud", "scratch", "ip=10.42.0.", pod, "-r--------"];
    for part in expected {
        assert!(said.contains(part), "{part} in\n{said}");
    }

    // The service, by name and by address from a pod, by node port from the host.
    let address = cluster.k("get service web -o jsonpath={.spec.clusterIP}");
    for url in ["http://web", "http://web.default.svc.cluster.local", &format!("http://{address}")]
    {
        let said = cluster.in_pod(pod, &format!("/bin/wget -q -T 5 -O - {url}"));
        assert_eq!(said, "version 1\n", "{url}");
    }
    let from_host = format!("curl -fsS -m 5 http://{ADDRESS}:30080/");
    assert_eq!(cluster.machine.sh(&from_host), "version 1\n");
    let mut seen: Vec<String> = (0..40)
        .map(|_| cluster.machine.sh(&format!("curl -fsS -m 5 http://{ADDRESS}:30080/hostname")))
        .collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "every pod answers: {seen:?}");

    // A load balancer is at the node's address.
    cluster.k("expose deployment web --name=outside --port=8088 --target-port=80 \
               --type=LoadBalancer");
    cluster.until("get service outside --no-headers", 20, |text| text.contains(ADDRESS));
    let from_host = format!("curl -fsS -m 5 http://{ADDRESS}:8088/");
    eventually("the balancer answers", 10, || {
        let output = cluster.machine.run(&["bash", "-c", &from_host]);
        let said = crate::machine::told(&output);
        if said.contains("version 1") { Ok(()) } else { Err(said) }
    });
    cluster.k("delete service outside");

    // Streams: logs that follow, a terminal, a forwarded port.
    logs_follow(&cluster, pod);
    let terminal = format!(
        "script -qec '{} --kubeconfig /etc/coracle/kubeconfig.yaml exec -it {pod} -- \
         sh -c \"test -t 0 && test -t 1 && echo a terminal; stty size\"' /dev/null < /dev/null",
        cluster.kubectl
    );
    let said = cluster.machine.sh(&terminal);
    assert!(said.contains("a terminal"), "{said}");
    let failed = cluster.output(&["exec", pod, "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(7));
    port_forward(&cluster, "service/web", 80);

    // Scale, and a change of the configuration that reaches the files.
    cluster.k("scale deployment web --replicas=5");
    cluster.rollout("web");
    assert_eq!(names(&cluster, "app=web").len(), 5);
    cluster.k("scale deployment web --replicas=2");
    cluster.until("get pods -l app=web --no-headers", 30, |text| text.lines().count() == 2);
    let patch = r#"{"data":{"greeting.txt":"good evening"}}"#;
    cluster.kubectl(&["patch", "configmap", "web-config", "-p", patch]);
    let pod = names(&cluster, "app=web").remove(0);
    eventually("the file follows the ConfigMap", 100, || {
        let said = cluster.in_pod(&pod, "cat /config/greeting.txt");
        if said.contains("good evening") { Ok(()) } else { Err(said) }
    });

    cluster.kubectl(&["delete", "-f", "/mnt/coracle/app.yaml", "--ignore-not-found"]);
    cluster.reset();
}

fn logs_follow(cluster: &Cluster, pod: &str) {
    let mut follower = cluster
        .command(30, &["logs", "-f", pod])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = follower.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let mut chunk = [0u8; 4096];
        while !text.contains("a-line-of-its-own") {
            match output.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(n) => text.push_str(&String::from_utf8_lossy(&chunk[..n])),
            }
        }
        text
    });
    std::thread::sleep(Duration::from_millis(500));
    cluster.in_pod(pod, "/bin/wget -q -O /dev/null http://127.0.0.1/a-line-of-its-own; true");
    let text = reader.join().unwrap();
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert!(text.contains("web 1 starts") && text.contains("a-line-of-its-own"), "{text}");
}

pub fn port_forward(cluster: &Cluster, what: &str, port: u16) {
    let mut forwarder = cluster
        .command(60, &["port-forward", what, &format!("18080:{port}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let curl = ["curl", "-fsS", "-m", "5", "http://127.0.0.1:18080/"];
    let said = eventually("the forwarded port answers", 20, || {
        let output = cluster.machine.run(&curl);
        if output.status.success() { Ok(output) } else { Err(crate::machine::told(&output)) }
    });
    for _ in 0..10 {
        let again = cluster.machine.run(&curl);
        assert!(again.status.success(), "{}", crate::machine::told(&again));
    }
    forwarder.kill().unwrap();
    forwarder.wait().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).starts_with("version "));
}

/// Server-side apply, then updates forth and back under a stream of requests.
#[test]
fn a_rolling_update_loses_no_request() {
    let cluster = Cluster::new();
    cluster.apply_with(&["--server-side"], APP);
    cluster.rollout("web");
    let script = format!(
        r#"while [ ! -e /tmp/enough ]; do
            if answer=$(curl -fsS -m 5 http://{ADDRESS}:30080/ 2>> /tmp/failures); then
                echo "$answer"
            else
                echo failed; date +%T.%N >> /tmp/failures
            fi
        done"#
    );
    cluster.machine.start("/tmp/answers", &["bash", "-c", &script]);
    std::thread::sleep(Duration::from_secs(1));
    let two = APP.replace("image: web:1", "image: web:2");
    cluster.apply_with(&["--server-side"], &two);
    cluster.rollout("web");
    let history = cluster.k("rollout history deployment/web");
    assert!(history.contains('2'), "{history}");
    let said = cluster.machine.sh(&format!("curl -fsS http://{ADDRESS}:30080/"));
    assert_eq!(said, "version 2\n");
    cluster.k("rollout undo deployment/web");
    cluster.rollout("web");
    let pods = cluster.until("get pods --no-headers", 40, |text| text.lines().count() == 3);
    cluster.machine.sh("touch /tmp/enough; sleep 0.5");
    let answers = cluster.machine.read("/tmp/answers");
    let of = |what: &str| answers.lines().filter(|line| *line == what).count();
    let failures = cluster.machine.read("/tmp/failures");
    assert_eq!(of("failed"), 0, "of {} requests: {failures}\n{pods}", answers.lines().count());
    assert!(of("version 1") > 10 && of("version 2") > 10, "{}", answers.lines().count());
    let said = cluster.machine.sh(&format!("curl -fsS http://{ADDRESS}:30080/"));
    assert_eq!(said, "version 1\n");
    // Another manager's field is not taken silently.
    let other =
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 4}\n";
    let refused = cluster.try_apply(&["--server-side", "--field-manager=other"], other);
    let told = crate::machine::told(&refused);
    assert!(!refused.status.success() && told.contains("conflict"), "{told}");
    cluster.reset();
}

/// Every version of kubectl that people have.
#[test]
fn every_kubectl_works() {
    let mut cluster = Cluster::new();
    for kubectl in kubectls() {
        cluster.kubectl = kubectl;
        cluster.apply(APP);
        cluster.rollout("web");
        cluster.apply_with(&["--server-side", "--force-conflicts"], APP);
        let pod = names(&cluster, "app=web").remove(0);
        assert_eq!(cluster.in_pod(&pod, "cat /www/version"), "1");
        assert!(cluster.k(&format!("logs {pod}")).contains("web 1 starts"));
        assert!(cluster.k("explain deployment.spec.replicas").contains("Number of desired pods"));
        assert!(cluster.k("api-resources").contains("deployments"));
        port_forward(&cluster, &format!("pod/{pod}"), 80);
        cluster.k("delete deployment,service,configmap,secret --all");
        cluster.until("get pods --no-headers", 40, |text| text.trim().is_empty());
    }
    cluster.reset();
}
