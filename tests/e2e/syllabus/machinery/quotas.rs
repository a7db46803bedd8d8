//! ResourceQuotas: what they count, for whom, and when it is given back.

use serde_json::{Map, Value, json};

use super::{SECONDS, create, feed, list, name, patch, raw, refused, set, until};
use crate::cluster::Cluster;
use crate::machine::eventually;

const NAMESPACE: &str = "quota";

pub fn all(cluster: &Cluster) {
    cluster.k(&format!("create namespace {NAMESPACE}"));
    // Its own map is counted like all others.
    cluster.until(&format!("get configmaps -n {NAMESPACE} -o name"), SECONDS, |text| {
        text.contains("kube-root-ca.crt")
    });
    objects(cluster);
    pods(cluster);
    scopes(cluster);
    lifecycle(cluster);
    status(cluster);
    cluster.k(&format!("delete namespace {NAMESPACE}"));
}

fn object(version: &str, kind: &str, name: &str) -> Value {
    json!({"apiVersion": version, "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE}})
}

fn quota(name: &str, hard: Value, more: Value) -> Value {
    let mut quota = object("v1", "ResourceQuota", name);
    quota["spec"] = more;
    quota["spec"]["hard"] = hard;
    quota
}

/// A pod that no node takes: counting asks for none.
fn pod(name: &str, resources: Value, more: Value) -> Value {
    let mut pod = object("v1", "Pod", name);
    pod["spec"] = more;
    pod["spec"]["schedulerName"] = "nobody".into();
    pod["spec"]["containers"] = json!([{"name": "c", "image": "web:1", "resources": resources}]);
    pod
}

/// Waits until of what a quota counts those that are used are these; nothing of all others.
fn used(cluster: &Cluster, quota: &str, wanted: Value) {
    let line = format!("get quota {quota} -n {NAMESPACE} -o json");
    let words: Vec<&str> = line.split_whitespace().collect();
    eventually(&format!("{quota} counts {wanted}"), SECONDS, || {
        let quota: Value = serde_json::from_str(&cluster.try_kubectl(&words)?).unwrap();
        let used = quota["status"]["used"].as_object().cloned().unwrap_or_default();
        let some: Map<String, Value> = used.into_iter().filter(|(_, value)| value != "0").collect();
        let counts_all = quota["status"]["hard"] == quota["spec"]["hard"];
        let is_so = counts_all && Value::from(some) == wanted;
        if is_so { Ok(()) } else { Err(quota["status"].to_string()) }
    });
}

fn remove(cluster: &Cluster, what: &str) {
    cluster.k(&format!("delete {what} -n {NAMESPACE} --now"));
}

/// Each kind is counted when it comes and given back when it goes.
fn objects(cluster: &Cluster) {
    let hard = json!({"pods": "5", "services": "10", "services.nodeports": "1",
        "services.loadbalancers": "1", "replicationcontrollers": "10", "resourcequotas": "1",
        "configmaps": "10", "secrets": "10", "persistentvolumeclaims": "10",
        "requests.storage": "10Gi", "gold.storageclass.storage.k8s.io/requests.storage": "3Gi",
        "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "2",
        "count/replicasets.apps": "5", "count/leases.coordination.k8s.io": "1",
        "cpu": "1", "memory": "500Mi"});
    create(cluster, vec![quota("objects", hard, json!({}))]);
    let base = json!({"resourcequotas": "1", "configmaps": "1"});
    used(cluster, "objects", base.clone());
    let service = |name: &str, kind: &str| {
        let mut service = object("v1", "Service", name);
        service["spec"] = json!({"type": kind, "ports": [{"port": 80}]});
        service
    };
    let mut claim = object("v1", "PersistentVolumeClaim", "c");
    claim["spec"] = json!({"storageClassName": "gold", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "2Gi"}}});
    let mut controller = set("ReplicationController", "c", 0);
    let mut replicas = set("ReplicaSet", "s", 0);
    for set in [&mut controller, &mut replicas] {
        set["metadata"]["namespace"] = NAMESPACE.into();
    }
    create(
        cluster,
        vec![
            object("v1", "ConfigMap", "m"),
            object("v1", "Secret", "s"),
            service("plain", "ClusterIP"),
            service("balanced", "LoadBalancer"),
            claim,
            controller,
            replicas,
            object("coordination.k8s.io/v1", "Lease", "l"),
        ],
    );
    used(
        cluster,
        "objects",
        json!({"resourcequotas": "1", "configmaps": "2", "secrets": "1", "services": "2",
            "services.loadbalancers": "1", "services.nodeports": "1",
            "replicationcontrollers": "1", "count/replicasets.apps": "1",
            "persistentvolumeclaims": "1", "requests.storage": "2Gi",
            "gold.storageclass.storage.k8s.io/requests.storage": "2Gi",
            "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
            "count/leases.coordination.k8s.io": "1"}),
    );
    let more = [
        (service("second", "LoadBalancer"), "services.loadbalancers=1"),
        (service("second", "NodePort"), "services.nodeports=1"),
        (object("coordination.k8s.io/v1", "Lease", "second"), "count/leases.coordination.k8s.io=1"),
    ];
    for (object, what) in more {
        let said = refused(cluster, &object);
        assert!(said.contains("exceeded quota: objects, requested: "), "{said}");
        for part in ["requested: ", "used: ", "limited: "] {
            let listed = said.split_once(part).map(|(_, rest)| rest).unwrap_or_default();
            let listed = listed.split(": ").next().unwrap_or_default();
            assert!(listed.contains(what), "{part}{what} in {said}");
        }
    }
    remove(cluster, "configmap/m secret/s service/plain service/balanced pvc/c rc/c rs/s lease/l");
    used(cluster, "objects", base);
    remove(cluster, "quota/objects");
}

fn pods(cluster: &Cluster) {
    let hard = json!({"pods": "5", "cpu": "1", "memory": "500Mi",
        "requests.ephemeral-storage": "50Gi", "requests.example.com/dongle": "3",
        "limits.cpu": "2"});
    create(cluster, vec![quota("pods", hard, json!({}))]);
    used(cluster, "pods", json!({}));
    let resources = |cpu: &str, dongles: &str| {
        json!({"requests": {"cpu": cpu, "memory": "128Mi", "ephemeral-storage": "20Gi",
                "example.com/dongle": dongles},
            "limits": {"cpu": "1", "example.com/dongle": dongles}})
    };
    create(cluster, vec![pod("fits", resources("500m", "2"), json!({}))]);
    let taken = json!({"pods": "1", "cpu": "500m", "memory": "128Mi", "limits.cpu": "1",
        "requests.ephemeral-storage": "20Gi", "requests.example.com/dongle": "2"});
    used(cluster, "pods", taken.clone());
    let said = refused(cluster, &pod("too-much", resources("600m", "1"), json!({})));
    assert!(said.contains("exceeded quota: pods") && said.contains("cpu=600m"), "{said}");
    let said = refused(cluster, &pod("dongles", resources("100m", "2"), json!({})));
    let limit = "limited: requests.example.com/dongle=3";
    assert!(
        said.contains("requested: requests.example.com/dongle=2") && said.contains(limit),
        "{said}"
    );
    // A quota on a resource makes everybody say how much of it they want.
    let said = refused(cluster, &pod("silent", json!({}), json!({})));
    assert!(said.contains("failed quota: pods: must specify"), "{said}");
    let mut more = cluster.json(&format!("get pod fits -n {NAMESPACE}"));
    more["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "100m".into();
    let words =
        [&cluster.kubectl, "--kubeconfig", crate::cluster::KUBECONFIG, "replace", "-f", "-"];
    let output = cluster.machine.run_with_input(&words, &more.to_string());
    assert!(!output.status.success(), "a pod's requests do not change in an update");
    used(cluster, "pods", taken);
    remove(cluster, "pod/fits");
    used(cluster, "pods", json!({}));
    remove(cluster, "quota/pods");
}

/// Each pod is counted by the quotas that are meant for such pods, and by no others.
fn scopes(cluster: &Cluster) {
    cluster.k("create priorityclass quota-high --value=1000");
    let scoped = |name: &str, scope: Value| quota(name, json!({"pods": "5"}), scope);
    let is = |scope: &str| json!({"scopes": [scope]});
    let chosen = |scope: &str, operator: &str, values: Value| {
        let mut one = json!({"scopeName": scope, "operator": operator});
        if values.is_array() {
            one["values"] = values;
        }
        json!({"scopeSelector": {"matchExpressions": [one]}})
    };
    create(
        cluster,
        vec![
            scoped("best", is("BestEffort")),
            scoped("not-best", is("NotBestEffort")),
            scoped("ending", is("Terminating")),
            scoped("not-ending", is("NotTerminating")),
            scoped("high", chosen("PriorityClass", "In", json!(["quota-high"]))),
            scoped("any-class", chosen("PriorityClass", "Exists", Value::Null)),
            scoped("not-high", chosen("PriorityClass", "NotIn", json!(["quota-high"]))),
            scoped("far", is("CrossNamespacePodAffinity")),
        ],
    );
    let all = ["any-class", "best", "ending", "far", "high", "not-best", "not-ending", "not-high"];
    let affinity = json!({"affinity": {"podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname",
            "namespaceSelector": {}, "labelSelector": {}}]}}});
    let limited = json!({"requests": {"cpu": "100m", "memory": "1Mi"},
        "limits": {"cpu": "200m", "memory": "2Mi"}});
    for (name, resources, more, counting) in [
        ("plain", json!({}), json!({}), vec!["best", "not-ending", "not-high"]),
        ("limited", limited.clone(), json!({}), vec!["not-best", "not-ending", "not-high"]),
        (
            "short",
            limited,
            json!({"activeDeadlineSeconds": 3600}),
            vec!["ending", "not-best", "not-high"],
        ),
        (
            "important",
            json!({}),
            json!({"priorityClassName": "quota-high"}),
            vec!["any-class", "best", "high", "not-ending"],
        ),
        ("afar", json!({}), affinity, vec!["best", "far", "not-ending", "not-high"]),
    ] {
        create(cluster, vec![pod(name, resources, more)]);
        let counts = |wanted: &[&str]| {
            until(cluster, &format!("quota -n {NAMESPACE}"), |quotas| {
                let with = |count: &str| -> Vec<&str> {
                    let are = |it: &&Value| it["status"]["used"]["pods"] == count;
                    quotas.iter().filter(are).map(self::name).collect()
                };
                let others = all.len() - wanted.len();
                let is_so = with("1") == wanted && with("0").len() == others;
                if is_so { Ok(()) } else { Err(format!("{name}: {:?}", with("1"))) }
            });
        };
        counts(&counting);
        remove(cluster, &format!("pod/{name}"));
        counts(&[]);
    }
    remove(cluster, "quota --all");
    cluster.k("delete priorityclass quota-high");
}

fn lifecycle(cluster: &Cluster) {
    let mut one = quota("lives", json!({"cpu": "1", "memory": "500Mi"}), json!({}));
    one["metadata"]["labels"] = json!({"lives": "yes"});
    create(cluster, vec![one]);
    let found = cluster.json("get quota -A -l lives=yes");
    assert_eq!(list(&found).len(), 1);
    let more = json!({"metadata": {"labels": {"patched": "yes"}},
        "spec": {"hard": {"memory": "750Mi"}}});
    patch(cluster, &["quota", "lives", "-n", NAMESPACE], &more);
    let mut held = cluster.json(&format!("get quota lives -n {NAMESPACE}"));
    assert_eq!(held["spec"]["hard"], json!({"cpu": "1", "memory": "750Mi"}));
    assert_eq!(held["metadata"]["labels"]["patched"], "yes");
    held["spec"]["hard"] = json!({"cpu": "2", "memory": "1Gi"});
    // Counting may have written in between.
    held["metadata"]["resourceVersion"].take();
    feed(cluster, "replace -f -", &held);
    eventually("the status follows", SECONDS, || {
        let seen = cluster.json(&format!("get quota lives -n {NAMESPACE}"));
        let follows = seen["status"]["hard"] == json!({"cpu": "2", "memory": "1Gi"});
        if follows { Ok(()) } else { Err(seen.to_string()) }
    });
    let of = format!("/api/v1/namespaces/{NAMESPACE}/resourcequotas");
    cluster.kubectl(&["delete", "--raw", &format!("{of}?labelSelector=patched%3Dyes")]);
    cluster.until(&format!("get quota -n {NAMESPACE} -o name"), SECONDS, str::is_empty);
}

/// The status is written by itself, and a change of it does not change the specification.
fn status(cluster: &Cluster) {
    let hard = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
    create(cluster, vec![quota("told", hard("500m", "500Mi"), json!({}))]);
    let path = format!("/api/v1/namespaces/{NAMESPACE}/resourcequotas/told/status");
    let is = |spec: &Value, status: &Value| {
        eventually("specification and status", SECONDS, || {
            let seen = raw(cluster, &path);
            let are = (&seen["spec"]["hard"], &seen["status"]["hard"]);
            if are == (spec, status) { Ok(seen) } else { Err(seen.to_string()) }
        })
    };
    let mut seen = is(&hard("500m", "500Mi"), &hard("500m", "500Mi"));
    seen["status"]["hard"] = hard("500m", "500Mi");
    feed(cluster, &format!("replace --raw {path} -f -"), &seen);
    is(&hard("500m", "500Mi"), &hard("500m", "500Mi"));
    let more = json!({"spec": {"hard": hard("1", "1Gi")}});
    patch(cluster, &["quota", "told", "-n", NAMESPACE], &more);
    is(&hard("1", "1Gi"), &hard("1", "1Gi"));
    let wrong = json!({"spec": {"hard": hard("7", "7Gi")}, "status": {"hard": hard("2", "2Gi")}});
    patch(cluster, &["quota", "told", "-n", NAMESPACE, "--subresource=status"], &wrong);
    let seen = raw(cluster, &path);
    assert_eq!(seen["spec"]["hard"], hard("1", "1Gi"), "{seen}");
    remove(cluster, "quota/told");
}
