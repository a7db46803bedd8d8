//! What keeps a number of pods: ReplicaSets, ReplicationControllers, Deployments, StatefulSets
//! and DaemonSets, and the budgets of what they keep.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{create, pods};
use crate::cluster::{Cluster, KUBECONFIG};
use crate::machine::{eventually, told};

const SECONDS: u64 = 120;

/// A pod that is ready for as long as there is no `/v/ill`.
fn template(name: &str, mark: &str) -> Value {
    json!({"metadata": {"labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "image": "web:1", "command": ["sleep", "1000"],
                "env": [{"name": "MARK", "value": mark}],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                "readinessProbe": {"periodSeconds": 1, "failureThreshold": 1,
                    "exec": {"command": ["test", "!", "-e", "/v/ill"]}}}]}})
}

fn set(kind: &str, name: &str, more: Value) -> Value {
    let mut spec = more;
    spec["template"] = template(name, "one");
    let version = if kind == "ReplicationController" { "v1" } else { "apps/v1" };
    spec["selector"] = match version {
        "v1" => json!({"app": name}),
        _ => json!({"matchLabels": {"app": name}}),
    };
    json!({"apiVersion": version, "kind": kind,
        "metadata": {"name": name, "labels": {"set": name}}, "spec": spec})
}

/// The pods of a set that are not about to go, by name.
fn of(cluster: &Cluster, app: &str) -> Result<BTreeMap<String, Value>, String> {
    let mut all = pods(cluster)?;
    all.retain(|_, pod| {
        let is_leaving = !pod["metadata"]["deletionTimestamp"].is_null();
        pod["metadata"]["labels"]["app"] == *app && !is_leaving
    });
    Ok(all)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True")
}

fn mark(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["env"][0]["value"].as_str().unwrap_or_default()
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

/// Waits until a set has these pods, no more and no less, and all are ready.
fn until(cluster: &Cluster, app: &str, count: usize) -> BTreeMap<String, Value> {
    eventually(&format!("{app} has {count} pods"), SECONDS, || {
        let pods = of(cluster, app)?;
        let ready = pods.values().filter(|pod| is_ready(pod)).count();
        if (pods.len(), ready) == (count, count) {
            Ok(pods)
        } else {
            Err(format!("{} pods, {ready} of them ready", pods.len()))
        }
    })
}

fn patch(cluster: &Cluster, what: &str, patch: &Value) {
    let (kind, name) = what.split_once('/').unwrap();
    cluster.kubectl(&["patch", kind, name, "--type=merge", "-p", &patch.to_string()]);
}

fn patch_status(cluster: &Cluster, what: &str, patch: &Value) {
    let (kind, name) = what.split_once('/').unwrap();
    let (flags, patch) = (["--subresource=status", "--type=merge"], patch.to_string());
    cluster.kubectl(&["patch", kind, name, flags[0], flags[1], "-p", &patch]);
}

/// The template with another mark: a new version of the pods.
fn change(cluster: &Cluster, what: &str, to: &str) {
    let name = what.split_once('/').unwrap().1;
    patch(cluster, what, &json!({"spec": {"template": template(name, to)}}));
}

/// Scale, status and deletion of many, as every kind of set has them.
fn as_every_set(cluster: &Cluster, what: &str) {
    let (kind, name) = what.split_once('/').unwrap();
    cluster.k(&format!("scale {what} --replicas=2"));
    until(cluster, name, 2);
    let plural = format!("{}s", kind.to_lowercase());
    let group = if kind == "ReplicationController" { "api/v1" } else { "apis/apps/v1" };
    let path = format!("/{group}/namespaces/default/{plural}/{name}/scale");
    let scale: Value = serde_json::from_str(&cluster.k(&format!("get --raw {path}"))).unwrap();
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(2)));
    let condition = json!({"type": "Seen", "status": "True", "reason": "Test", "message": "seen"});
    patch_status(cluster, what, &json!({"status": {"conditions": [condition]}}));
    cluster.k(&format!("label {kind} {name} patched=yes"));
    let listed = cluster.json(&format!("get {kind} -A -l set={name},patched=yes"));
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1), "{listed}");
    cluster.k(&format!("delete {kind} -l set={name}"));
    cluster.until(&format!("get pods -l app={name} -o name"), SECONDS, |text| text.is_empty());
}

/// A pod that matches is taken in, and one that does not any more is let go.
fn adopts_and_releases(cluster: &Cluster, kind: &str) {
    let name = &format!("adopts-{}", kind.to_lowercase());
    let mut orphan = json!({"apiVersion": "v1", "kind": "Pod"});
    orphan["metadata"] = json!({"name": format!("{name}-orphan"), "labels": {"app": name}});
    orphan["spec"] = template(name, "one")["spec"].clone();
    create(cluster, vec![orphan]);
    create(cluster, vec![set(kind, name, json!({"replicas": 1}))]);
    let held = eventually("the orphan is adopted", SECONDS, || {
        let pods = of(cluster, name)?;
        let owned = pods.values().find(|it| it["metadata"]["ownerReferences"][0]["kind"] == *kind);
        owned.map(uid).ok_or_else(|| format!("{pods:?}"))
    });
    assert_eq!(uid(&until(cluster, name, 1)[&format!("{name}-orphan")]), held);
    cluster.k(&format!("label pod {name}-orphan app=other --overwrite"));
    until(cluster, name, 1);
    let released = cluster.json(&format!("get pod {name}-orphan"));
    assert_eq!(released["metadata"]["ownerReferences"], Value::Null);
    cluster.k(&format!("delete pod {name}-orphan --now"));
    cluster.k(&format!("delete {kind} {name}"));
}

#[test]
fn replicas_are_kept_and_rolled_out() {
    let cluster = Cluster::new();
    for kind in ["ReplicaSet", "ReplicationController"] {
        let name = kind.to_lowercase();
        create(&cluster, vec![set(kind, &name, json!({"replicas": 1}))]);
        until(&cluster, &name, 1);
        as_every_set(&cluster, &format!("{kind}/{name}"));
        adopts_and_releases(&cluster, kind);
    }
    quota(&cluster);
    deployments(&cluster);
    budgets(&cluster);
    cluster.k("delete deployments,replicasets,replicationcontrollers,pods --all");
    cluster.until("get pods --no-headers", SECONDS, |text| text.trim().is_empty());
    cluster.reset();
}

/// What a quota forbids is told in the status, and no more when there is less to forbid.
fn quota(cluster: &Cluster) {
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "two"},
        "spec": {"hard": {"pods": "2"}}});
    create(cluster, vec![quota]);
    cluster.until("get quota two -o jsonpath={.status.hard.pods}", SECONDS, |text| text == "2");
    create(cluster, vec![set("ReplicationController", "many", json!({"replicas": 3}))]);
    let failing =
        "get rc many -o jsonpath={.status.conditions[?(@.type==\"ReplicaFailure\")].reason}";
    cluster.until(failing, SECONDS, |text| text == "FailedCreate");
    cluster.k("scale rc many --replicas=2");
    cluster.until(failing, SECONDS, str::is_empty);
    cluster.k("delete rc many");
    cluster.k("delete quota two");
    cluster.until("get pods -l app=many -o name", SECONDS, str::is_empty);
}

fn replica_sets(cluster: &Cluster, app: &str) -> Vec<Value> {
    let all = cluster.json(&format!("get rs -l app={app}"));
    all["items"].as_array().cloned().unwrap_or_default()
}

fn deployments(cluster: &Cluster) {
    let recreate = json!({"replicas": 2, "strategy": {"type": "Recreate"}});
    let rolling = json!({"replicas": 4, "revisionHistoryLimit": 0,
        "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}});
    create(
        cluster,
        vec![
            set("Deployment", "recreate", recreate),
            set("Deployment", "rolling", rolling),
            set(
                "Deployment",
                "proportional",
                json!({"replicas": 5,
            "strategy": {"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}}),
            ),
            set("Deployment", "plain", json!({"replicas": 1})),
        ],
    );
    let before = until(cluster, "recreate", 2);
    change(cluster, "deployment/recreate", "two");
    eventually("no pod of the new version is there with one of the old", SECONDS, || {
        let pods = of(cluster, "recreate")?;
        let old = pods.values().filter(|pod| mark(pod) == "one").count();
        assert!(old == 0 || old == pods.len(), "{pods:?}");
        let ready = pods.values().filter(|pod| mark(pod) == "two" && is_ready(pod)).count();
        if ready == 2 { Ok(()) } else { Err(format!("{ready} are ready")) }
    });
    assert!(of(cluster, "recreate").unwrap().keys().all(|name| !before.contains_key(name)));

    // One version after the other before any has come to its end, and none is kept.
    until(cluster, "rolling", 4);
    for version in ["two", "three", "four"] {
        change(cluster, "deployment/rolling", version);
    }
    cluster.rollout("rolling");
    eventually("only the newest is left", SECONDS, || {
        let pods = of(cluster, "rolling")?;
        let sets = replica_sets(cluster, "rolling");
        let newest = pods.values().all(|pod| mark(pod) == "four" && is_ready(pod));
        let are = (pods.len(), sets.len());
        if newest && are == (4, 1) { Ok(()) } else { Err(format!("{are:?} pods and sets")) }
    });

    // Halfway through a rollout that cannot end, both sets get their share.
    until(cluster, "proportional", 5);
    let never = json!({"spec": {"template": {"spec": {"containers": [{"name": "c",
        "image": "none.example.com/none:1", "imagePullPolicy": "Never"}]}}}});
    patch(cluster, "deployment/proportional", &never);
    let sizes = |wanted: [i64; 2]| {
        eventually(&format!("the sets are {wanted:?}"), SECONDS, || {
            let sets = replica_sets(cluster, "proportional");
            let mut sizes: Vec<i64> =
                sets.iter().filter_map(|set| set["spec"]["replicas"].as_i64()).collect();
            sizes.sort_unstable();
            if sizes == wanted { Ok(()) } else { Err(format!("{sizes:?}")) }
        });
    };
    sizes([3, 5]);
    cluster.k("scale deployment/proportional --replicas=15");
    // 18 with the surge: 10 more, 3/8 and 5/8 of them.
    sizes([7, 11]);
    cluster.k("delete deployment proportional");
    until(cluster, "plain", 1);
    as_every_set(cluster, "Deployment/plain");
}

fn budgets(cluster: &Cluster) {
    create(
        cluster,
        vec![
            set("ReplicaSet", "guarded", json!({"replicas": 3})),
            json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "guarded", "labels": {"budget": "yes"}},
        "spec": {"minAvailable": 3, "selector": {"matchLabels": {"app": "guarded"}}}}),
        ],
    );
    let pods = until(cluster, "guarded", 3);
    let allowed =
        "get pdb guarded -o jsonpath={.status.disruptionsAllowed}/{.status.currentHealthy}";
    cluster.until(allowed, SECONDS, |text| text == "0/3");
    let victim = pods.keys().next().unwrap();
    let path = format!("/api/v1/namespaces/default/pods/{victim}/eviction");
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": victim}});
    let evict = || {
        let words =
            [&cluster.kubectl, "--kubeconfig", KUBECONFIG, "create", "--raw", &path, "-f", "-"];
        cluster.machine.run_with_input(&words, &eviction.to_string())
    };
    let refused = evict();
    assert!(!refused.status.success());
    assert!(told(&refused).contains("disruption budget"), "{}", told(&refused));
    patch(cluster, "pdb/guarded", &json!({"spec": {"minAvailable": 2}}));
    cluster.until(allowed, SECONDS, |text| text == "1/3");
    let done = evict();
    assert!(done.status.success(), "{}", told(&done));
    patch_status(
        cluster,
        "pdb/guarded",
        &json!({"metadata": {"annotations": {"seen": "yes"}},
        "status": {"disruptedPods": {}}}),
    );
    let listed = cluster.json("get pdb -A -l budget=yes");
    assert_eq!(listed["items"][0]["metadata"]["annotations"]["seen"], "yes");
    cluster.k("delete pdb -l budget=yes");
    cluster.k("delete rs guarded");
}

#[test]
fn sets_go_in_order_and_daemons_follow_nodes() {
    let cluster = Cluster::new();
    stateful(&cluster);
    keeps_its_data(&cluster);
    is_kept_from_a_taken_port(&cluster);
    daemons(&cluster);
    cluster.k("delete statefulsets,daemonsets --all");
    cluster.k("delete persistentvolumeclaims --all");
    cluster.until("get pods --no-headers", SECONDS, |text| text.trim().is_empty());
    cluster.reset();
}

fn names(pods: &BTreeMap<String, Value>) -> Vec<&str> {
    pods.keys().map(String::as_str).collect()
}

fn stateful(cluster: &Cluster) {
    create(
        cluster,
        vec![
            set("StatefulSet", "db", json!({"replicas": 3, "serviceName": "db"})),
            set(
                "StatefulSet",
                "burst",
                json!({"replicas": 1, "serviceName": "burst",
            "podManagementPolicy": "Parallel"}),
            ),
        ],
    );
    let first = until(cluster, "db", 3);
    assert_eq!(names(&first), ["db-0", "db-1", "db-2"]);
    let born = |name: &str| first[name]["metadata"]["creationTimestamp"].as_str().unwrap();
    assert!(born("db-0") <= born("db-1") && born("db-1") <= born("db-2"));

    // An ill pod holds up who comes after it, both ways; one that goes in bursts does not wait.
    for set in ["db", "burst"] {
        cluster.k(&format!("exec {set}-0 -- touch /v/ill"));
        cluster.until(
            &format!("get sts {set} -o jsonpath={{.status.readyReplicas}}"),
            SECONDS,
            |text| text == if set == "db" { "2" } else { "" },
        );
    }
    cluster.k("scale sts db --replicas=4");
    cluster.k("scale sts burst --replicas=3");
    eventually("the burst is there", SECONDS, || {
        let pods = of(cluster, "burst")?;
        let ready = pods.values().filter(|pod| is_ready(pod)).count();
        if (pods.len(), ready) == (3, 2) { Ok(()) } else { Err(format!("{ready} are ready")) }
    });
    assert_eq!(names(&of(cluster, "db").unwrap()), ["db-0", "db-1", "db-2"]);
    cluster.k("exec db-0 -- rm /v/ill");
    until(cluster, "db", 4);
    cluster.k("scale sts burst --replicas=0");
    cluster.until("get pods -l app=burst -o name", SECONDS, str::is_empty);
    cluster.k("delete sts burst");

    // A partition keeps the old version below it, whatever happens to its pods.
    let part = |partition: u32| json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": partition}}}});
    patch(cluster, "sts/db", &part(3));
    change(cluster, "sts/db", "two");
    let marks = |wanted: [&str; 4]| {
        eventually(&format!("the pods are {wanted:?}"), SECONDS, || {
            let pods = of(cluster, "db")?;
            let marks: Vec<&str> = pods.values().map(mark).collect();
            let holds = marks == wanted && pods.values().all(is_ready);
            if holds { Ok(()) } else { Err(format!("{marks:?}")) }
        });
    };
    marks(["one", "one", "one", "two"]);
    // One after the other: kubectl looks at the second when the first is gone, and takes a pod
    // that was made anew between two of its looks for the one that it waits for.
    cluster.k("delete pod db-0");
    cluster.k("delete pod db-3");
    marks(["one", "one", "one", "two"]);
    let revisions = || {
        let status = cluster.json("get sts db")["status"].clone();
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        (text("currentRevision"), text("updateRevision"))
    };
    let (one, two) = revisions();
    assert_ne!(one, two);
    patch(cluster, "sts/db", &part(0));
    marks(["two"; 4]);
    cluster.until("get sts db -o jsonpath={.status.currentRevision}", SECONDS, |text| text == two);
    // What was before is found again.
    change(cluster, "sts/db", "one");
    marks(["one"; 4]);
    cluster.until("get sts db -o jsonpath={.status.currentRevision}", SECONDS, |text| text == one);

    // One that failed is made anew under its name.
    let before = uid(&of(cluster, "db").unwrap()["db-1"]);
    patch_status(cluster, "pod/db-1", &json!({"status": {"phase": "Failed"}}));
    eventually("the failed pod is another", SECONDS, || {
        let pods = of(cluster, "db")?;
        let now = pods.get("db-1").filter(|pod| is_ready(pod)).map(uid);
        if now.is_some_and(|now| now != before) { Ok(()) } else { Err("not yet".into()) }
    });
    as_every_set(cluster, "StatefulSet/db");
}

/// What a pod of a set has written is there for the next one of its name.
fn keeps_its_data(cluster: &Cluster) {
    let mut keeper = set("StatefulSet", "keeper", json!({"replicas": 1, "serviceName": "keeper"}));
    keeper["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}]);
    let container = &mut keeper["spec"]["template"]["spec"]["containers"][0];
    container["command"] = json!(["sh", "-c", "echo start >> /data/starts; sleep 1000"]);
    let mounts = container["volumeMounts"].as_array_mut().unwrap();
    mounts.push(json!({"name": "data", "mountPath": "/data"}));
    create(cluster, vec![keeper]);
    let first = uid(&until(cluster, "keeper", 1)["keeper-0"]);
    cluster.k("delete pod keeper-0");
    let next = uid(&until(cluster, "keeper", 1)["keeper-0"]);
    assert_ne!(first, next);
    assert_eq!(cluster.in_pod("keeper-0", "cat /data/starts"), "start\nstart\n");
}

/// A pod that its node turns away is made anew until the node takes it.
fn is_kept_from_a_taken_port(cluster: &Cluster) {
    let node = cluster.k("get nodes -o name").trim().replace("node/", "");
    let port = json!([{"containerPort": 21_017, "hostPort": 21_017}]);
    let holder = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "holder"},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "c", "image": "web:1", "command": ["sleep", "1000"], "ports": port}]}});
    create(cluster, vec![holder]);
    cluster.until("get pod holder --no-headers", SECONDS, |text| text.contains("Running"));
    let mut ported = set("StatefulSet", "ported", json!({"replicas": 1, "serviceName": "ported"}));
    ported["spec"]["template"]["spec"]["nodeName"] = node.into();
    ported["spec"]["template"]["spec"]["containers"][0]["ports"] = port;
    create(cluster, vec![ported]);
    let reasons = "get events --field-selector reason=NodePorts --no-headers";
    cluster.until(reasons, SECONDS, |text| text.contains("pod/ported-0"));
    cluster.k("delete pod holder");
    until(cluster, "ported", 1);
}

fn daemons(cluster: &Cluster) {
    let label = "coracle.test/color";
    let node = cluster.k("get nodes -o name").trim().to_owned();
    let mut picky = set("DaemonSet", "picky", json!({}));
    picky["spec"]["template"]["spec"]["nodeSelector"] = json!({label: "blue"});
    create(cluster, vec![set("DaemonSet", "agent", json!({})), picky]);
    let first = until(cluster, "agent", 1);
    let (name, pod) = first.iter().next().unwrap();
    assert_eq!(pod["spec"]["nodeName"], node.trim_start_matches("node/"));
    // One that is deleted, and one that fails, have their place taken.
    cluster.k(&format!("delete pod {name}"));
    let second = until(cluster, "agent", 1);
    let (name, _) = second.iter().next().unwrap();
    patch_status(cluster, &format!("pod/{name}"), &json!({"status": {"phase": "Failed"}}));
    eventually("a failed daemon is another", SECONDS, || {
        let pods = of(cluster, "agent")?;
        let other = pods.iter().any(|(it, pod)| it != name && is_ready(pod));
        if other { Ok(()) } else { Err(format!("{:?}", names(&pods))) }
    });

    assert!(of(cluster, "picky").unwrap().is_empty());
    cluster.k(&format!("label {node} {label}=blue"));
    until(cluster, "picky", 1);
    cluster.k(&format!("label {node} {label}=green --overwrite"));
    until(cluster, "picky", 0);
    let green = json!({"spec": {"template": {"spec": {"nodeSelector": {label: "green"}}}}});
    patch(cluster, "ds/picky", &green);
    until(cluster, "picky", 1);
    cluster.k(&format!("label {node} {label}-"));
    until(cluster, "picky", 0);

    // A new version, and back again: the revision of before counts on.
    let revisions = || {
        let all = cluster.json("get controllerrevisions -l app=agent");
        let items = all["items"].as_array().cloned().unwrap_or_default();
        let mut numbers: Vec<i64> = items.iter().filter_map(|it| it["revision"].as_i64()).collect();
        numbers.sort_unstable();
        numbers
    };
    assert_eq!(revisions(), [1]);
    change(cluster, "ds/agent", "two");
    let at = |wanted: &str| {
        eventually(&format!("the daemon is {wanted}"), SECONDS, || {
            let pods = of(cluster, "agent")?;
            let holds =
                pods.len() == 1 && pods.values().all(|it| mark(it) == wanted && is_ready(it));
            if holds { Ok(()) } else { Err(format!("{:?}", names(&pods))) }
        });
    };
    at("two");
    assert_eq!(revisions(), [1, 2]);
    cluster.k("rollout undo ds/agent");
    at("one");
    assert_eq!(revisions(), [2, 3]);
    let condition = json!({"type": "Seen", "status": "True", "reason": "Test", "message": "seen"});
    patch_status(cluster, "ds/agent", &json!({"status": {"conditions": [condition]}}));
    let status = cluster.json("get ds agent")["status"].clone();
    assert_eq!(status["conditions"][0]["type"], "Seen");
    cluster.k("delete ds -l set=agent");
    cluster.until("get pods -l app=agent -o name", SECONDS, str::is_empty);
    cluster.until("get controllerrevisions -l app=agent -o name", SECONDS, str::is_empty);
}
