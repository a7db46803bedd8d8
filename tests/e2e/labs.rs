//! The labs with which people learn what a cluster is, as they type them.

use std::io::Read;
use std::process::Stdio;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::machine::{Machine, eventually, told};

const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: RequestResponse\n  \
     resources: [{group: \"\", resources: [pods]}]\n- level: Metadata\n";

/// Lab 1: a pod's way.
#[test]
fn lab_1_a_pods_way() {
    let machine = Machine::new();
    machine.write("/etc/audit/policy.yaml", AUDIT_POLICY.as_bytes());
    let cluster = Cluster::with(
        machine,
        &["--audit-policy-file=/etc/audit/policy.yaml", "--audit-log-path=/tmp/audit.log"],
    );
    let mut watcher = cluster
        .command(60, &["get", "events", "-w", "--no-headers"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = watcher.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut text, mut chunk) = (String::new(), [0u8; 4096]);
        while !text.contains("Started") {
            match output.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(n) => text.push_str(&String::from_utf8_lossy(&chunk[..n])),
            }
        }
        text
    });
    std::thread::sleep(std::time::Duration::from_secs(1));
    cluster.k("run web --image=web:1");
    cluster.k("wait --for=condition=Ready pod/web --timeout=30s");
    let events = reader.join().unwrap();
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    let mut rest = events.as_str();
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        let at = rest.find(reason).unwrap_or_else(|| panic!("{reason} in its order:\n{events}"));
        rest = &rest[at..];
    }
    assert!(events.contains("already present on machine"), "{events}");
    let about = cluster.k("describe pod web");
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(about.contains(reason), "{about}");
    }
    let query = "jq -r 'select(.verb == \"create\" and .objectRef.resource == \"pods\" \
         and .objectRef.name == \"web\") | .stage + \" \" + .user.username' /tmp/audit.log";
    let audited = cluster.machine.sh(query);
    assert!(audited.contains("ResponseComplete"), "{audited}");

    let began = std::time::Instant::now();
    cluster.k("delete pod web");
    assert!(began.elapsed().as_secs() < 20, "the pod ends when it is told to");
    let events = cluster.k("get events");
    assert!(events.contains("Killing"), "{events}");
    cluster.machine.sh("rm -r /etc/audit");
    cluster.reset();
}

/// Lab 2: a service's inside.
#[test]
fn lab_2_a_services_inside() {
    let cluster = Cluster::new();
    cluster.k("create deployment web --image=web:1 --replicas=3");
    cluster.k("expose deployment web --port=80 --target-port=80");
    cluster.rollout("web");
    assert!(cluster.k("get svc -o wide").contains("app=web"));
    let addresses = "get pods -l app=web -o jsonpath={.items[*].status.podIP}";
    let endpoints = |count: usize| {
        let mut pods: Vec<String> =
            cluster.k(addresses).split_whitespace().map(str::to_string).collect();
        pods.sort();
        // Those of pods that are ending are in the list of pods still.
        let all = pods.len() == count;
        let line = "get endpointslices -l kubernetes.io/service-name=web -o \
             jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}";
        cluster.until(line, 20, |text| {
            let mut found: Vec<&str> = text.split_whitespace().collect();
            found.sort_unstable();
            found.len() == count && (!all || found == pods)
        });
        cluster.until("get endpoints web -o jsonpath={.subsets[*].addresses[*].ip}", 20, |text| {
            text.split_whitespace().count() == count
        });
        pods
    };
    let pods = endpoints(3);
    let address = cluster.k("get svc web -o jsonpath={.spec.clusterIP}");
    eventually("the packet rules show the service and its backends", 10, || {
        let rules = cluster.machine.sh("nft list ruleset");
        let tables: Vec<&str> = rules.lines().filter(|line| line.starts_with("table")).collect();
        let all = rules.contains(&address)
            && pods.iter().all(|pod| rules.contains(pod.as_str()))
            && tables.iter().all(|table| table.contains("coracle"));
        if all { Ok(()) } else { Err(rules) }
    });
    // A shell in a pod, as one would type into it.
    let typed = "nslookup web.default.svc.cluster.local\n/bin/wget -q -O - http://web\nexit\n";
    let words =
        ["run", "t", "--rm", "-i", "--restart=Never", "--image=web:1", "--command", "--", "sh"];
    let mut command = vec![cluster.kubectl.as_str(), "--kubeconfig", crate::cluster::KUBECONFIG];
    command.extend(words);
    let output = cluster.machine.run_with_input(&command, typed);
    let said = told(&output);
    assert!(output.status.success() && said.contains(&address), "{said}");
    assert!(said.contains("version 1"), "{said}");
    assert!(said.contains("pod \"t\" deleted"), "{said}");
    cluster.k("scale deployment web --replicas=5");
    endpoints(5);
    cluster.k("scale deployment web --replicas=3");
    endpoints(3);
    cluster.k("delete pods -l app=web --wait=false --grace-period=1");
    cluster.rollout("web");
    let after = endpoints(3);
    assert!(after.iter().all(|pod| !pods.contains(pod)) || after != pods, "{after:?}");
    cluster.reset();
}

fn spec(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 2\n  containers: [{{name: main, image: \"web:1\"}}]\n{spec}"
    )
}

/// Lab 3: the scheduler's mind.
#[test]
fn lab_3_the_schedulers_mind() {
    let cluster = Cluster::new();
    let node = cluster.k("get node -o jsonpath={.items[0].metadata.name}");
    let labels = cluster.k("get nodes --show-labels");
    assert!(labels.contains(&format!("kubernetes.io/hostname={node}")), "{labels}");
    let scheduled = |pod: &str| {
        let line = format!("wait --for=condition=Ready pod/{pod} --timeout=30s");
        cluster.k(&line);
        let on = cluster.k(&format!("get pod {pod} -o jsonpath={{.spec.nodeName}}"));
        assert_eq!(on, node, "{pod}");
    };
    let pending = |pod: &str, words: &str| {
        eventually(&format!("{pod} stays Pending"), 30, || {
            let about = cluster.k(&format!("describe pod {pod}"));
            let told = about.contains("FailedScheduling") && about.contains(words);
            if told && about.contains("Pending") { Ok(()) } else { Err(about) }
        });
    };
    cluster.apply(&spec("here", &format!("  nodeSelector: {{kubernetes.io/hostname: {node}}}\n")));
    scheduled("here");
    cluster.apply(&spec("nowhere", "  nodeSelector: {disk: golden}\n"));
    pending(
        "nowhere",
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
    );
    cluster.k(&format!("label node {node} disk=golden"));
    scheduled("nowhere");

    cluster.k(&format!("taint node {node} team=red:NoSchedule"));
    cluster.apply(&spec("tainted", ""));
    pending("tainted", "untolerated taint");
    let toleration = "  tolerations: [{key: team, value: red, effect: NoSchedule}]\n";
    cluster.apply(&spec("tolerant", toleration));
    scheduled("tolerant");
    cluster.k(&format!("taint node {node} team=red:NoSchedule-"));
    scheduled("tainted");

    let near = "  affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
         [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: here}}}]}}\n";
    cluster.apply(&spec("near", near));
    scheduled("near");
    let far = near.replace("podAffinity", "podAntiAffinity");
    cluster.apply(&spec("far", &far));
    pending("far", "didn't match pod anti-affinity rules");
    let spread = "  topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, \
         whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: spread}}}]\n";
    cluster.apply(&spec("spread", spread));
    pending("spread", "didn't match pod topology spread constraints");
    cluster.k(&format!("label node {node} zone=a"));
    scheduled("spread");
    let greedy = spec("greedy", "")
        .replace("image: \"web:1\"", "image: \"web:1\", resources: {requests: {cpu: \"1000\"}}");
    cluster.apply(&greedy);
    pending("greedy", "Insufficient cpu");
    cluster.k("delete pod far greedy");

    cluster.k(&format!("taint node {node} fire=yes:NoExecute"));
    cluster.until("get pods --no-headers", 60, |text| text.trim().is_empty());
    cluster.k(&format!("taint node {node} fire-"));
    cluster.reset();
}

/// Lab 4: a disk on demand.
#[test]
fn lab_4_a_disk_on_demand() {
    let cluster = Cluster::new();
    cluster.until("get storageclass", 20, |text| text.contains("local-path (default)"));
    let claim = |name: &str| {
        format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  \
             accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: 1Gi}}}}\n"
        )
    };
    let pod = |name: &str, claim: &str, command: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
             terminationGracePeriodSeconds: 2\n  containers:\n  - name: main\n    image: web:1\n    \
             command: [sh, -c, \"{command}\"]\n    volumeMounts: [{{name: disk, mountPath: /disk}}]\n  \
             volumes: [{{name: disk, persistentVolumeClaim: {{claimName: {claim}}}}}]\n"
        )
    };
    let ended = |name: &str| {
        let line = format!("get pod {name} -o jsonpath={{.status.phase}}");
        cluster.until(&line, 60, |text| text == "Succeeded");
    };
    // More than any disk could hold is for no node.
    let room = "get csistoragecapacities -n kube-system -o jsonpath={.items[*].storageClassName}";
    cluster.until(room, 20, |text| text.contains("local-path"));
    cluster.apply(&claim("huge").replace("1Gi", "900Ti"));
    cluster.apply(&pod("huge", "huge", "true"));
    eventually("the scheduler says that there is no room", 30, || {
        let about = cluster.k("describe pod huge");
        let says = about.contains("1 node(s) did not have enough free storage");
        if says && about.contains("Pending") { Ok(()) } else { Err(about) }
    });
    assert!(cluster.k("get pvc huge --no-headers").contains("Pending"));
    cluster.k("delete pod huge");
    cluster.k("delete pvc huge");
    let folder = "ls /var/lib/coracle/agent/storage";
    for (policy, stays) in [("Delete", false), ("Retain", true)] {
        cluster.apply(&claim("disk"));
        eventually("the claim waits for its first consumer", 20, || {
            let about = cluster.k("describe pvc disk");
            let waits = about.contains("waiting for first consumer to be created before binding");
            if waits && about.contains("Pending") { Ok(()) } else { Err(about) }
        });
        cluster.apply(&pod("writer", "disk", "echo kept > /disk/file"));
        ended("writer");
        cluster.until("get pvc disk --no-headers", 10, |text| text.contains("Bound"));
        let about = cluster.k("describe pvc disk");
        assert!(about.contains("ProvisioningSucceeded"), "{about}");
        cluster.k("delete pod writer");
        cluster.apply(&pod("reader", "disk", "cat /disk/file"));
        ended("reader");
        assert_eq!(cluster.k("logs reader").trim(), "kept");
        let volume = cluster.k("get pvc disk -o jsonpath={.spec.volumeName}");
        let patch = format!("{{\"spec\":{{\"persistentVolumeReclaimPolicy\":\"{policy}\"}}}}");
        let output = cluster.output(&["patch", "pv", &volume, "-p", &patch]);
        assert!(output.status.success(), "{}", told(&output));
        cluster.k("delete pod reader");
        cluster.k("delete pvc disk");
        if stays {
            let line = format!("get pv {volume} -o jsonpath={{.status.phase}}");
            cluster.until(&line, 20, |text| text == "Released");
            assert!(cluster.machine.sh(folder).contains(&volume));
        } else {
            cluster.until("get pv --ignore-not-found --no-headers", 20, |text| text.is_empty());
            assert_eq!(cluster.machine.sh(folder).trim(), "");
        }
    }
    cluster.reset();
}

/// The end of lab 5: what nodes and pods use.
#[test]
fn top_shows_what_nodes_and_pods_use() {
    let cluster = Cluster::new();
    cluster.k("run web --image=web:1");
    cluster.k("wait --for=condition=Ready pod/web --timeout=30s");
    let node = cluster.k("get node -o jsonpath={.items[0].metadata.name}");
    cluster.until("top node --no-headers", 15, |text| {
        text.contains(&node) && text.contains("Mi") && !text.contains("unknown")
    });
    cluster.until("top pod --no-headers", 15, |text| text.contains("web") && text.contains("Mi"));
    let labelled = cluster.k("top pod -l run=other --no-headers");
    assert!(!labelled.contains("web"), "{labelled}");
    let raw = cluster.k("get --raw /apis/metrics.k8s.io/v1beta1/nodes");
    let raw: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(raw["items"][0]["metadata"]["name"], node.as_str());
    for lease in ["kube-scheduler", "kube-controller-manager"] {
        let holder =
            format!("get lease -n kube-system {lease} -o jsonpath={{.spec.holderIdentity}}");
        cluster.until(&holder, 10, |text| text.starts_with(&format!("{node}_")));
    }
    cluster.reset();
}

/// Lab 5, as far as it exists: the control plane from outside.
#[test]
fn lab_5_the_control_plane() {
    let cluster = Cluster::new();
    for path in ["/healthz", "/livez?verbose", "/readyz?verbose"] {
        let said = cluster.kubectl(&["get", "--raw", path]);
        assert!(said.contains("ok"), "{path}\n{said}");
    }
    let version: Value = serde_json::from_str(&cluster.k("get --raw /version")).unwrap();
    assert_eq!((&version["major"], &version["minor"]), (&"1".into(), &"36".into()));
    let core: Value = serde_json::from_str(&cluster.k("get --raw /api/v1")).unwrap();
    assert_eq!(core["kind"], "APIResourceList");
    let metrics = cluster.k("get --raw /metrics");
    assert!(metrics.lines().any(|line| line.starts_with("# TYPE")), "{metrics}");
    let node = cluster.k("describe node");
    for condition in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        assert!(node.contains(condition), "{condition} in\n{node}");
    }
    let name = cluster.k("get node -o jsonpath={.items[0].metadata.name}");
    cluster.k(&format!("get lease -n kube-node-lease {name}"));

    let file = "/var/lib/coracle/agent/static-pods/web.yaml";
    cluster.machine.write(file, spec("static", "").as_bytes());
    let mirror = format!("get pod static-{name} --no-headers");
    cluster.until(&mirror, 30, |text| text.contains("1/1"));
    let output = cluster.output(&["delete", "pod", &format!("static-{name}"), "--wait=false"]);
    assert!(output.status.success(), "{}", told(&output));
    cluster.until(&mirror, 30, |text| text.contains("1/1"));
    cluster.machine.sh(&format!("rm {file}"));
    cluster.until("get pods --no-headers", 30, |text| text.trim().is_empty());
    cluster.reset();
}
