//! A pod's life: hooks, initialization, ends and their messages, changes while it runs.

use serde_json::{Value, json};

use super::{Case, create, delete_pods, is_ready, phase_is, pod, pods, run, until_pod};
use crate::cluster::Cluster;
use crate::machine::{Machine, eventually, told};

/// kubectl's proxy in the machine, for what kubectl itself has no words for.
struct Proxy<'a> {
    machine: &'a Machine,
    pid: u32,
}

const PROXY: &str = "http://127.0.0.1:8001";

impl<'a> Proxy<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let machine = &cluster.machine;
        let config = crate::cluster::KUBECONFIG;
        let words = [&*cluster.kubectl, "--kubeconfig", config, "proxy", "--reject-paths=^$"];
        let proxy = Self { machine, pid: machine.start("/tmp/proxy.log", &words) };
        eventually("the proxy answers", 20, || {
            let output = machine.run(&["curl", "-fsS", &format!("{PROXY}/version")]);
            if output.status.success() { Ok(()) } else { Err(told(&output)) }
        });
        proxy
    }

    /// Sends a body; gives what came back.
    fn send(&self, method: &str, kind: &str, path: &str, body: &Value) -> Value {
        let url = format!("{PROXY}/api/v1/namespaces/default/{path}");
        let content = format!("Content-Type: {kind}");
        let words = ["curl", "-sS", "-X", method, "-H", &content, "--data-binary", "@-", &url];
        let output = self.machine.run_with_input(&words, &body.to_string());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", told(&output)))
    }

    fn merge(&self, path: &str, body: &Value) -> Value {
        self.send("PATCH", "application/merge-patch+json", path, body)
    }

    /// What a websocket of the `binary.k8s.io` kind brings within a few seconds.
    fn websocket(&self, path: &str, protocol: &str) -> String {
        let url = format!("{PROXY}/api/v1/namespaces/default/{path}");
        let protocol = format!("Sec-WebSocket-Protocol: {protocol}");
        let output = self.machine.run(&[
            "curl",
            "-sS",
            "-N",
            "--http1.1",
            "-m",
            "5",
            "--include",
            "-H",
            "Connection: Upgrade",
            "-H",
            "Upgrade: websocket",
            "-H",
            "Sec-WebSocket-Version: 13",
            "-H",
            "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==",
            "-H",
            &protocol,
            &url,
        ]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        self.machine.run(&["kill", &self.pid.to_string()]);
    }
}

fn hook(how: &str, address: &str, path: &str) -> Value {
    match how {
        "exec" => {
            let url = format!("http://{address}:8080/{path}");
            json!({"exec": {"command": ["/bin/wget", "-q", "-O", "/dev/null", url]}})
        }
        _ => json!({"httpGet": {"host": address, "port": 8080, "path": format!("/{path}")}}),
    }
}

#[test]
fn hooks_run_and_init_containers_come_first() {
    let cluster = Cluster::new();
    let names = ["postStart-exec", "postStart-http", "preStop-exec", "preStop-http"];
    let files = names.map(|name| format!("/srv/{name}")).join(" ");
    let serve = format!("mkdir /srv; touch {files}; exec httpd -f -vv -p 8080 -h /srv");
    let server = json!({"containers": [{"command": ["sh", "-c", serve]}]});
    create(&cluster, vec![pod("server", server)]);
    let address = until_pod(&cluster, "server", |pod| {
        is_ready(pod).map(|()| pod["status"]["podIP"].as_str().unwrap().to_string())
    });
    let hooked = names.map(|name| {
        let (when, how) = name.split_once('-').unwrap();
        let container = json!({"command": ["sleep", "1000"],
            "lifecycle": {when: hook(how, &address, name)}});
        let spec = json!({"containers": [container], "terminationGracePeriodSeconds": 5});
        pod(&name.to_lowercase(), spec)
    });
    create(&cluster, hooked.to_vec());
    let called = |name: &str| {
        let log = cluster.k("logs server");
        if log.contains(&format!("url:/{name}")) { Ok(()) } else { Err(log) }
    };
    for name in names {
        until_pod(&cluster, &name.to_lowercase(), is_ready);
        if name.starts_with("postStart") {
            eventually("the server was called after the start", 30, || called(name));
        } else {
            assert!(called(name).is_err(), "{name} is not called before the end");
        }
        cluster.k(&format!("delete pod {} --wait=true", name.to_lowercase()));
        called(name).unwrap();
    }
    init_containers(&cluster);
    delete_pods(&cluster);
    cluster.reset();
}

fn init_containers(cluster: &Cluster) {
    let of = |name: &str, restart: &str, first: &str, main: Value| {
        let init =
            json!([{"name": "init1", "command": [first]}, {"name": "init2", "command": ["true"]}]);
        pod(
            name,
            json!({"restartPolicy": restart, "initContainers": init,
            "containers": [{"command": main}]}),
        )
    };
    let sleeps = json!(["sleep", "1000"]);
    create(
        cluster,
        vec![
            of("never", "Never", "true", json!(["true"])),
            of("always", "Always", "true", sleeps.clone()),
            of("never-fails", "Never", "false", sleeps.clone()),
            of("always-fails", "Always", "false", sleeps),
        ],
    );
    let initialized = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        conditions.iter().find(|it| it["type"] == "Initialized").unwrap()["status"] == "True"
    };
    let ended = |pod: &Value, code: u64| {
        let all = pod["status"]["initContainerStatuses"].as_array().unwrap();
        all.iter()
            .all(|it| it["state"]["terminated"]["exitCode"] == code && it["restartCount"] == 0)
    };
    until_pod(cluster, "never", |pod| {
        phase_is(pod, "Succeeded")?;
        assert!(initialized(pod) && ended(pod, 0), "{}", pod["status"]);
        Ok(())
    });
    until_pod(cluster, "always", |pod| {
        is_ready(pod)?;
        assert!(initialized(pod) && ended(pod, 0), "{}", pod["status"]);
        Ok(())
    });
    let waits = |pod: &Value| {
        let main = &pod["status"]["containerStatuses"][0];
        assert!(main["started"] != true && main["restartCount"] == 0, "{}", pod["status"]);
        assert!(!initialized(pod), "{}", pod["status"]);
        let second = &pod["status"]["initContainerStatuses"][1];
        assert!(second["state"]["waiting"]["reason"] == "PodInitializing", "{second}");
    };
    until_pod(cluster, "never-fails", |pod| {
        phase_is(pod, "Failed")?;
        waits(pod);
        Ok(())
    });
    until_pod(cluster, "always-fails", |pod| {
        let first = &pod["status"]["initContainerStatuses"][0];
        if first["restartCount"].as_u64().unwrap_or(0) < 2 {
            return Err("it was not restarted twice".to_string());
        }
        phase_is(pod, "Pending")?;
        waits(pod);
        Ok(())
    });
}

#[test]
fn ends_leave_their_messages_and_reasons() {
    let cluster = Cluster::new();
    let message = |name: &str, script: &str, more: Value| {
        let mut container = json!({"command": ["sh", "-c", script]});
        for (key, value) in more.as_object().unwrap() {
            container[key] = value.clone();
        }
        pod(name, json!({"containers": [container]}))
    };
    let fallback = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let own_path = json!({"terminationMessagePath": "/dev/termination-custom-log",
        "securityContext": {"runAsUser": 1000}});
    let cases = [
        ("empty", "echo -n DONE", fallback.clone(), ""),
        ("from-file", "echo -n OK > /dev/termination-log; echo -n DONE", fallback.clone(), "OK"),
        ("from-log", "echo -n DONE; exit 1", fallback, "DONE"),
        ("as-user", "echo -n DONE > /dev/termination-custom-log", own_path, "DONE"),
    ];
    create(
        &cluster,
        cases.iter().map(|(name, script, more, _)| message(name, script, more.clone())).collect(),
    );
    for (name, _, _, wanted) in &cases {
        until_pod(&cluster, name, |pod| {
            let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            if end.is_null() {
                return Err("it has not ended".to_string());
            }
            let said = end["message"].as_str().unwrap_or_default();
            if said == *wanted { Ok(()) } else { panic!("{name}: {said:?}: {end}") }
        });
    }
    // The three policies, each with a container that fails first and then goes well.
    let script = "if [ -e /v/second ]; then echo later; exit 0; fi; touch /v/second; exit 1";
    for (policy, phase, count) in
        [("Always", "Running", 2), ("OnFailure", "Succeeded", 1), ("Never", "Failed", 0)]
    {
        let name = policy.to_lowercase();
        let script = if policy == "Always" {
            "n=$(cat /v/n 2> /dev/null || echo 0); echo $((n + 1)) > /v/n; [ $n = 2 ] && sleep 1000; exit $((1 - n))"
        } else {
            script
        };
        let container = json!({"command": ["sh", "-c", script],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
        create(
            &cluster,
            vec![pod(
                &name,
                json!({"containers": [container], "restartPolicy": policy,
            "volumes": [{"name": "v", "emptyDir": {}}]}),
            )],
        );
        until_pod(&cluster, &name, |pod| {
            phase_is(pod, phase)?;
            let status = &pod["status"]["containerStatuses"][0];
            if status["restartCount"] != count {
                return Err("it has another count of restarts".to_string());
            }
            if policy == "Always" {
                return is_ready(pod);
            }
            let reason = if policy == "Never" { "Error" } else { "Completed" };
            assert_eq!(status["state"]["terminated"]["reason"], reason, "{status}");
            Ok(())
        });
    }
    // What always fails has a reason, and goes when it is told to.
    cluster.k("delete pod never --wait=true --timeout=30s");
    delete_pods(&cluster);
    run(
        &cluster,
        &[
            Case::script("logs", "echo out; echo err >&2", "out\nerr"),
            Case::script(
                "aliases",
                "grep 123.45.67.89 /etc/hosts | busybox tr '\\t' ' '",
                "123.45.67.89 foo bar",
            )
            .pod("hostAliases", json!([{"ip": "123.45.67.89", "hostnames": ["foo", "bar"]}])),
        ],
    );
    hosts_files(&cluster);
    cluster.reset();
}

/// `/etc/hosts` is the kubelet's, except where a container brings its own or the pod is on
/// the node's network.
fn hosts_files(cluster: &Cluster) {
    let sleeps = json!(["sleep", "1000"]);
    let brings = json!([{"name": "v", "mountPath": "/etc/hosts"}]);
    let volumes = json!([{"name": "v", "hostPath": {"path": "/etc/hosts", "type": "File"}}]);
    let managed = json!({"volumes": volumes, "containers": [
        {"name": "managed", "command": sleeps},
        {"name": "own", "command": sleeps, "volumeMounts": brings}]});
    let on_node = json!({"hostNetwork": true, "containers": [{"name": "node", "command": sleeps}]});
    create(cluster, vec![pod("managed", managed), pod("on-node", on_node)]);
    for (name, container, is_managed) in
        [("managed", "managed", true), ("managed", "own", false), ("on-node", "node", false)]
    {
        until_pod(cluster, name, is_ready);
        let text = cluster.kubectl(&["exec", name, "-c", container, "--", "cat", "/etc/hosts"]);
        let begins = text.starts_with("# Kubernetes-managed hosts file.");
        assert_eq!(begins, is_managed, "{name} {container}: {text}");
    }
    delete_pods(cluster);
}

#[test]
fn pods_change_and_end_as_they_are_told() {
    let cluster = Cluster::new();
    let proxy = Proxy::new(&cluster);
    let sleeps = |name: &str| pod(name, json!({"containers": [{"command": ["sleep", "1000"]}]}));
    submitted_and_removed(&cluster, &sleeps("submitted"));
    status(&cluster, &proxy, &sleeps("told"));
    generations(&cluster, &proxy, &sleeps("counted"));
    ephemeral(&cluster, &sleeps("debugged"));
    websockets(&cluster, &proxy);
    resizes(&cluster, &proxy);
    // A collection.
    let set = ["set-1", "set-2", "set-3"].map(|name| {
        let mut one = sleeps(name);
        one["metadata"]["labels"] = json!({"type": "set"});
        one
    });
    create(&cluster, set.to_vec());
    assert_eq!(cluster.k("get pods -l type=set --no-headers").lines().count(), 3);
    proxy.send("DELETE", "application/json", "pods?labelSelector=type%3Dset", &json!({}));
    cluster.until("get pods -l type=set --no-headers", 60, |text| text.trim().is_empty());
    drop(proxy);
    cluster.machine.sh("rm -f /tmp/proxy.log");
    cluster.reset();
}

fn submitted_and_removed(cluster: &Cluster, manifest: &Value) {
    let config = crate::cluster::KUBECONFIG;
    let mut watch = vec![&*cluster.kubectl, "--kubeconfig", config, "get", "pods", "-w"];
    watch.extend(["-l", "name=submitted", "--output-watch-events", "--no-headers"]);
    let watcher = cluster.machine.start("/tmp/watch.log", &watch);
    create(cluster, vec![manifest.clone()]);
    let seen = until_pod(cluster, "submitted", |pod| is_ready(pod).map(|()| pod.clone()));
    let address = seen["status"]["hostIP"].as_str().unwrap();
    assert!(address.parse::<std::net::IpAddr>().is_ok(), "{address}");
    assert_eq!(cluster.k("get pods -l name=submitted --no-headers").lines().count(), 1);
    // A label changes while it runs.
    cluster.k("label pod submitted time=later");
    assert_eq!(cluster.k("get pods -l time=later --no-headers").lines().count(), 1);
    // So does its deadline, and that ends it.
    let patch = "{\"spec\": {\"activeDeadlineSeconds\": 3}}";
    cluster.kubectl(&["patch", "pod", "submitted", "-p", patch]);
    until_pod(cluster, "submitted", |pod| {
        phase_is(pod, "Failed")?;
        assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
        Ok(())
    });
    cluster.k("delete pod submitted --grace-period=30");
    assert_eq!(cluster.k("get pods -l name=submitted --no-headers").trim(), "");
    eventually("the watch has seen it all", 20, || {
        let text = cluster.machine.read("/tmp/watch.log");
        let all = ["ADDED", "MODIFIED", "DELETED"].iter().all(|event| text.contains(event));
        if all { Ok(()) } else { Err(text) }
    });
    cluster.machine.sh(&format!("kill {watcher}; rm /tmp/watch.log"));
    let guaranteed = json!({"limits": {"cpu": "100m", "memory": "100Mi"},
        "requests": {"cpu": "100m", "memory": "100Mi"}});
    run(cluster, &[Case::script("qos", "true", "").with("resources", guaranteed.clone())]);
    let mut pod =
        pod("qos", json!({"containers": [{"command": ["true"], "resources": guaranteed}]}));
    pod["metadata"]["name"] = "qos-class".into();
    create(cluster, vec![pod]);
    assert_eq!(cluster.k("get pod qos-class -o jsonpath={.status.qosClass}"), "Guaranteed");
    delete_pods(cluster);
}

/// A status that is patched and replaced by a client.
fn status(cluster: &Cluster, proxy: &Proxy<'_>, manifest: &Value) {
    create(cluster, vec![manifest.clone()]);
    until_pod(cluster, "told", is_ready);
    let gate = json!({"type": "example.org/seen", "status": "True", "reason": "PatchedByTest"});
    let body = json!({"status": {"conditions": [gate]}});
    let patched =
        proxy.send("PATCH", "application/strategic-merge-patch+json", "pods/told/status", &body);
    let has = |pod: &Value, reason: &str| {
        let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.iter().any(|it| it["type"] == "example.org/seen" && it["reason"] == reason)
    };
    assert!(has(&patched, "PatchedByTest"), "{patched}");
    let mut whole = cluster.json("get pod told");
    for condition in whole["status"]["conditions"].as_array_mut().unwrap() {
        if condition["type"] == "example.org/seen" {
            condition["reason"] = "ReplacedByTest".into();
        }
    }
    let replaced = proxy.send("PUT", "application/json", "pods/told/status", &whole);
    assert!(has(&replaced, "ReplacedByTest"), "{replaced}");
    // The kubelet leaves it alone.
    cluster.k("label pod told touched=yes");
    std::thread::sleep(std::time::Duration::from_secs(1));
    until_pod(cluster, "told", is_ready);
    assert!(has(&cluster.json("get pod told"), "ReplacedByTest"));
    delete_pods(cluster);
}

fn generations(cluster: &Cluster, proxy: &Proxy<'_>, manifest: &Value) {
    let mut manifest = manifest.clone();
    manifest["metadata"]["generation"] = 100.into();
    // Another image is another container.
    manifest["spec"]["restartPolicy"] = "Always".into();
    create(cluster, vec![manifest]);
    let observes = |wanted: u64| {
        until_pod(cluster, "counted", |pod| {
            let (is, seen) = (&pod["metadata"]["generation"], &pod["status"]["observedGeneration"]);
            if *is == wanted && *seen == wanted { Ok(()) } else { Err(format!("{is}, {seen}")) }
        });
    };
    until_pod(cluster, "counted", is_ready);
    observes(1);
    cluster.k("label pod counted a=b");
    observes(1);
    let image = |version: u32| json!({"spec": {"containers": [{"name": "c0", "image": format!("web:{version}")}]}});
    let strategic = "application/strategic-merge-patch+json";
    proxy.send("PATCH", strategic, "pods/counted", &image(2));
    observes(2);
    // Five hundred in all.
    let script = format!(
        "for n in $(seq 498); do curl -fsS -o /dev/null -X PATCH -H 'Content-Type: application/merge-patch+json' \
         -d '{{\"spec\":{{\"activeDeadlineSeconds\":'$((10000 - n))'}}}}' {PROXY}/api/v1/namespaces/default/pods/counted; done"
    );
    cluster.machine.sh(&script);
    observes(500);
    // A graceful deletion counts as well.
    let patch = json!({"metadata": {"finalizers": ["example.org/kept"]}});
    proxy.merge("pods/counted", &patch);
    cluster.k("delete pod counted --wait=false");
    until_pod(cluster, "counted", |pod| {
        let is = pod["metadata"]["generation"].as_u64().unwrap_or(0);
        if is == 501 { Ok(()) } else { Err(format!("generation {is}")) }
    });
    proxy.merge("pods/counted", &json!({"metadata": {"finalizers": null}}));
    cluster.until("get pods --no-headers", 60, |text| text.trim().is_empty());
}

fn ephemeral(cluster: &Cluster, manifest: &Value) {
    create(cluster, vec![manifest.clone()]);
    until_pod(cluster, "debugged", is_ready);
    for (count, name) in ["first", "second"].iter().enumerate() {
        cluster.k(&format!("debug debugged --image=web:1 -c {name} -- sleep 1000"));
        until_pod(cluster, "debugged", |pod| {
            let all = pod["status"]["ephemeralContainerStatuses"].as_array().cloned();
            let all = all.unwrap_or_default();
            let run = all.iter().filter(|it| it["state"]["running"].is_object()).count();
            if run == count + 1 { Ok(()) } else { Err(format!("{run} of them run")) }
        });
        let listed = cluster.json("get pod debugged")["spec"]["ephemeralContainers"].clone();
        assert_eq!(listed.as_array().unwrap().len(), count + 1);
        let said = cluster.kubectl(&["exec", "debugged", "-c", name, "--", "echo", "inside"]);
        assert_eq!(said, "inside\n");
    }
    delete_pods(cluster);
}

fn websockets(cluster: &Cluster, proxy: &Proxy<'_>) {
    let script = "echo container is alive; sleep 1000";
    create(
        cluster,
        vec![pod("socket", json!({"containers": [{"command": ["sh", "-c", script]}]}))],
    );
    until_pod(cluster, "socket", is_ready);
    let log = proxy.websocket("pods/socket/log?container=c0", "binary.k8s.io");
    assert!(log.contains("101 Switching Protocols"), "{log}");
    assert!(log.contains("container is alive\n"), "{log}");
    let command =
        "pods/socket/exec?container=c0&stdout=1&stderr=1&command=echo&command=remote+words";
    for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
        let said = proxy.websocket(command, protocol);
        assert!(said.contains("101 Switching Protocols"), "{said}");
        // Of channel 1, the output.
        assert!(said.contains("\u{1}remote words\n"), "{said}");
    }
    delete_pods(cluster);
}

/// Containers get other resources while they run.
fn resizes(cluster: &Cluster, proxy: &Proxy<'_>) {
    let has = |cpu: u32, memory: u32, limits: bool| {
        let amounts = json!({"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")});
        if limits {
            json!({"requests": amounts, "limits": amounts})
        } else {
            json!({"requests": amounts})
        }
    };
    let of = |name: &str, all: &[(u32, u32)], limits: bool| {
        let containers: Vec<Value> = all
            .iter()
            .map(|(cpu, memory)| {
                json!({"command": ["sleep", "1000"], "resources": has(*cpu, *memory, limits)})
            })
            .collect();
        pod(name, json!({"containers": containers}))
    };
    let body = |all: &[(u32, u32)], limits: bool| {
        let containers: Vec<Value> = all
            .iter()
            .enumerate()
            .map(|(n, (cpu, memory))| json!({"name": format!("c{n}"), "resources": has(*cpu, *memory, limits)}))
            .collect();
        json!({"spec": {"containers": containers}})
    };
    let strategic = "application/strategic-merge-patch+json";
    let settles = |name: &str, all: &[(u32, u32)], limits: bool| {
        until_pod(cluster, name, |pod| {
            is_ready(pod)?;
            let pending = pod["status"]["conditions"]
                .as_array()
                .unwrap()
                .iter()
                .any(|it| it["type"].as_str().is_some_and(|it| it.starts_with("PodResize")));
            for (n, (cpu, memory)) in all.iter().enumerate() {
                let status = &pod["status"]["containerStatuses"][n];
                assert_eq!(status["restartCount"], 0, "{status}");
                if status["resources"] != has(*cpu, *memory, limits) {
                    return Err(format!("container {n} has {}", status["resources"]));
                }
                if limits {
                    let bytes = cluster.kubectl(&["exec", name, "-c", &format!("c{n}"), "--", "sh", "-c",
                        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2> /dev/null || cat /sys/fs/cgroup/memory.max"]);
                    let wanted = (u64::from(*memory) << 20).to_string();
                    if bytes.trim() != wanted {
                        return Err(format!("container {n} has {bytes} instead of {wanted}"));
                    }
                }
            }
            if pending { Err("it is still being resized".to_string()) } else { Ok(()) }
        });
    };
    let start = [(20, 30), (20, 30), (20, 30)];
    create(
        cluster,
        vec![
            of("guaranteed", &start, true),
            of("burstable", &[(20, 30); 6], false),
            of("replaced", &[(20, 30)], true),
        ],
    );
    for name in ["guaranteed", "burstable", "replaced"] {
        until_pod(cluster, name, is_ready);
    }
    for next in [
        // More in all, less in all, and every one something else.
        [(30, 40), (30, 40), (10, 20)],
        [(40, 50), (20, 30), (5, 15)],
        [(50, 50), (10, 40), (20, 30)],
    ] {
        let answer = proxy.send("PATCH", strategic, "pods/guaranteed/resize", &body(&next, true));
        assert_eq!(answer["kind"], "Pod", "{answer}");
        settles("guaranteed", &next, true);
    }
    let next = [(30, 30), (20, 40), (30, 40), (10, 30), (20, 20), (20, 30)];
    let answer = proxy.send("PATCH", strategic, "pods/burstable/resize", &body(&next, false));
    assert_eq!(answer["kind"], "Pod", "{answer}");
    settles("burstable", &next, false);
    // The same in other words is no change.
    let before = cluster.k("get pod burstable -o jsonpath={.metadata.generation}");
    let same = json!({"spec": {"containers": [{"name": "c0", "resources":
        {"requests": {"cpu": "0.03", "memory": "30720Ki"}}}]}});
    proxy.send("PATCH", strategic, "pods/burstable/resize", &same);
    until_pod(cluster, "burstable", |pod| {
        let memory = &pod["status"]["containerStatuses"][0]["resources"]["requests"]["memory"];
        let is_same = ["30Mi", "30720Ki"].iter().any(|it| memory == it);
        if is_same && is_ready(pod).is_ok() { Ok(()) } else { Err(memory.to_string()) }
    });
    let after = cluster.k("get pod burstable -o jsonpath={.metadata.generation}");
    assert!(
        after.parse::<u32>().unwrap() - before.parse::<u32>().unwrap() <= 1,
        "{before}, {after}"
    );
    // Limits come to one that had none.
    let limits = json!({"spec": {"containers": [{"name": "c1", "resources": {"limits": {"cpu": "40m", "memory": "60Mi"}}}]}});
    let answer = proxy.send("PATCH", strategic, "pods/burstable/resize", &limits);
    assert_eq!(answer["kind"], "Pod", "{answer}");
    until_pod(cluster, "burstable", |pod| {
        let limits = &pod["status"]["containerStatuses"][1]["resources"]["limits"];
        if *limits == json!({"cpu": "40m", "memory": "60Mi"}) {
            Ok(())
        } else {
            Err(limits.to_string())
        }
    });
    // And by replacing the whole.
    let mut whole = cluster.json("get pod replaced");
    whole["spec"]["containers"][0]["resources"] = has(30, 40, true);
    let answer = proxy.send("PUT", "application/json", "pods/replaced/resize", &whole);
    assert_eq!(answer["kind"], "Pod", "{answer}");
    settles("replaced", &[(30, 40)], true);
    delete_pods(cluster);
    assert_eq!(pods(cluster).unwrap().len(), 0);
}

#[test]
fn images_are_volumes_and_taints_end_pods_when_their_time_is_over() {
    let cluster = Cluster::new();
    crate::bad_days::registry(&cluster.machine, "2");
    let image = json!({"name": "v", "image": {"reference": "localhost:5000/web:2", "pullPolicy": "Always"}});
    let mount = json!([{"name": "v", "mountPath": "/v"}]);
    run(
        &cluster,
        &[Case::script("image", "cat /v/www/version", "2")
            .with("volumeMounts", mount)
            .pod("volumes", json!([image]))],
    );
    let about = cluster.k("get events --field-selector involvedObject.name=image");
    assert!(about.contains("Pulling image \"localhost:5000/web:2\""), "{about}");
    cluster.machine.sh("kill $(pgrep -x docker-registry); rm -r /tmp/registry");

    let tolerates = |name: &str, seconds: Option<u64>| {
        let mut toleration =
            json!({"key": "example.org/evict", "operator": "Exists", "effect": "NoExecute"});
        if let Some(seconds) = seconds {
            toleration["tolerationSeconds"] = seconds.into();
        }
        pod(
            name,
            json!({"containers": [{"command": ["sleep", "1000"]}], "tolerations": [toleration]}),
        )
    };
    create(
        &cluster,
        vec![tolerates("short", Some(3)), tolerates("long", Some(12)), tolerates("ever", None)],
    );
    for name in ["short", "long", "ever"] {
        until_pod(&cluster, name, is_ready);
    }
    let node = cluster.k("get node -o jsonpath={.items[0].metadata.name}");
    let began = std::time::Instant::now();
    cluster.k(&format!("taint node {node} example.org/evict=now:NoExecute"));
    eventually("the short one goes first", 60, || {
        let all = pods(&cluster)?;
        assert!(all.contains_key("long"), "the long one went first: {all:?}");
        if all.contains_key("short") { Err(format!("{:?}", all.keys())) } else { Ok(()) }
    });
    assert!(began.elapsed().as_secs() >= 3, "{:?}", began.elapsed());
    // The taint goes in time: so nobody else does.
    cluster.k(&format!("taint node {node} example.org/evict=now:NoExecute-"));
    std::thread::sleep(std::time::Duration::from_secs(15).saturating_sub(began.elapsed()));
    let left = pods(&cluster).unwrap();
    assert_eq!(left.keys().collect::<Vec<_>>(), ["ever", "long"]);
    assert!(left.values().all(|pod| is_ready(pod).is_ok()));
    delete_pods(&cluster);
    cluster.reset();
}
