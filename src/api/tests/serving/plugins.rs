//! Admission plugins that an operator turns on, and the configuration that they read.

use std::path::Path;

use super::*;

fn enabled(plugins: &[&str]) -> Flags {
    let enabled_admission = plugins.iter().map(ToString::to_string).collect();
    Flags { enabled_admission, ..Flags::default() }
}

fn configured(dir: &Path, text: &str) -> Option<std::path::PathBuf> {
    let file = dir.join("admission.yaml");
    let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n";
    std::fs::write(&file, format!("{head}{text}")).unwrap();
    Some(file)
}

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn try_pod(server: &Shared, name: &str, spec: Value) -> Answer {
    ask(server, Method::POST, PODS, pod(name, spec)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_completed_and_judged_by_what_was_turned_on() {
    let conf = tempfile::tempdir().unwrap();
    let flags = Flags {
        admission_file: configured(
            conf.path(),
            "- name: PodNodeSelector\n  configuration:\n    podNodeSelectorPluginConfig:\n      clusterDefaultNodeSelector: disk=ssd\n      default: disk=ssd,zone=a\n\
             - name: PodTolerationRestriction\n  configuration:\n    default: [{key: d, operator: Exists}]\n    whitelist: [{key: d, operator: Exists}, {key: example.com/gpu, operator: Exists}, {key: node.kubernetes.io/not-ready, operator: Exists}, {key: node.kubernetes.io/unreachable, operator: Exists}]\n",
        ),
        ..enabled(&[
            "AlwaysPullImages",
            "PodNodeSelector",
            "PodTolerationRestriction",
            "ExtendedResourceToleration",
            "LimitPodHardAntiAffinityTopology",
        ])
    };
    let (_dir, server) = server(flags).await;
    let gpu = json!({"example.com/gpu": "1"});
    let container = json!({"name": "c", "image": "i:1", "imagePullPolicy": "Never",
        "resources": {"requests": gpu, "limits": gpu}});
    let answer = try_pod(&server, "a", json!({"containers": [container]})).await;
    assert_eq!(answer.status, 201, "{}", answer.message());
    let spec = answer.json()["spec"].clone();
    assert_eq!(spec["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(spec["nodeSelector"], json!({"disk": "ssd"}));
    let tolerated: Vec<&str> = spec["tolerations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|toleration| toleration["key"].as_str().unwrap())
        .collect();
    assert!(tolerated.contains(&"d") && tolerated.contains(&"example.com/gpu"), "{tolerated:?}");
    let hosts = |key: &str| {
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": key, "labelSelector": {}}]}}})
    };
    let refusals = [
        (
            json!({"nodeSelector": {"disk": "hdd"}}),
            "pod node label selector conflicts with its namespace node label selector",
        ),
        (
            json!({"nodeSelector": {"rack": "1"}}),
            "pod node label selector labels conflict with its namespace whitelist",
        ),
        (
            json!({"tolerations": [{"key": "x", "operator": "Exists"}]}),
            "conflict with its namespace whitelist",
        ),
        (hosts("zone"), "has TopologyKey zone but only key kubernetes.io/hostname is allowed"),
    ];
    for (spec, why) in refusals {
        let answer = try_pod(&server, "b", spec).await;
        assert_eq!(answer.status, 403);
        assert!(answer.message().contains(why), "{}", answer.message());
    }
    assert_eq!(try_pod(&server, "b", hosts("kubernetes.io/hostname")).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_are_required_or_made() {
    let (_dir, server) = server(enabled(&["NamespaceAutoProvision"])).await;
    let maps = "/api/v1/namespaces/brand-new/configmaps";
    make(&server, maps, json!({"metadata": {"name": "a"}})).await;
    assert_eq!(get(&server, "admin", "/api/v1/namespaces/brand-new").await.status, 200);
    let (_dir, server) = self::server(enabled(&["NamespaceExists"])).await;
    let answer = ask(&server, Method::POST, maps, json!({"metadata": {"name": "a"}})).await;
    assert_eq!(
        (answer.status, answer.message().as_str()),
        (404, "namespaces \"brand-new\" not found")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_denies_everything_starts_and_denies() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_with(dir.path(), &[], |config| {
        config.flags = enabled(&["AlwaysDeny", "AlwaysAdmit"])
    })
    .await;
    let answer = ask(&server, Method::POST, MAPS, json!({"metadata": {"name": "a"}})).await;
    assert_eq!(answer.status, 403);
    assert!(answer.message().ends_with("admission control is denying all modifications"));
}

#[tokio::test(flavor = "multi_thread")]
async fn services_owners_and_events_are_limited() {
    let conf = tempfile::tempdir().unwrap();
    let flags = Flags {
        admission_file: configured(conf.path(), "- name: EventRateLimit\n  path: events.yaml\n"),
        ..enabled(&[
            "DenyServiceExternalIPs",
            "OwnerReferencesPermissionEnforcement",
            "EventRateLimit",
        ])
    };
    std::fs::write(
        conf.path().join("events.yaml"),
        "apiVersion: eventratelimit.admission.k8s.io/v1alpha1\nkind: Configuration\nlimits: [{type: Namespace, qps: 1, burst: 2}]\n",
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut flags = flags;
    flags.disabled_admission.push("ServiceAccount".into());
    let server = server_with(dir.path(), &[], |config| config.flags = flags).await;
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "externalIPs": ["192.0.2.7"]}});
    let answer = ask(&server, Method::POST, "/api/v1/namespaces/default/services", service).await;
    assert_eq!(answer.status, 403);
    assert!(answer.message().contains("Use of external IPs is denied by admission control"));
    let event = |name: &str| json!({"metadata": {"name": name}, "involvedObject": {"namespace": "default"}});
    let events = "/api/v1/namespaces/default/events";
    let mut codes = Vec::new();
    for name in ["a", "b", "c"] {
        codes.push(ask(&server, Method::POST, events, event(name)).await);
    }
    assert_eq!(codes.iter().map(|answer| answer.status).collect::<Vec<_>>(), [201, 201, 429]);
    assert_eq!(codes[2].message(), "limit reached on type Namespace for key default");
    // A user who may change configmaps but not delete them.
    let role = json!({"metadata": {"name": "editor"}, "rules": [{"verbs": ["get", "create", "update", "patch"],
        "apiGroups": [""], "resources": ["configmaps"]}]});
    make(&server, "/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    let binding = json!({"metadata": {"name": "editor"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "editor"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ed"}]});
    make(&server, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    make(&server, MAPS, json!({"metadata": {"name": "owned"}})).await;
    let patch = json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}});
    let headers = [("content-type", "application/merge-patch+json")];
    let path = format!("{MAPS}/owned");
    let answer = send(&server, "ed", Method::PATCH, &path, &headers, patch.to_string()).await;
    assert_eq!(answer.status, 403);
    assert!(answer.message().contains("cannot set an ownerRef on a resource you can't delete: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn defaults_that_are_always_on() {
    let (_dir, server) = server(Flags::default()).await;
    let class = json!({"metadata": {"name": "usual", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        "spec": {"controller": "example.com/c"}});
    make(&server, "/apis/networking.k8s.io/v1/ingressclasses", class).await;
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    let ingress = json!({"metadata": {"name": "i"}, "spec": {"defaultBackend": backend}});
    let path = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    assert_eq!(make(&server, path, ingress).await["spec"]["ingressClassName"], "usual");

    let node = json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r", "other": "o"}}});
    make(&server, "/api/v1/nodes", node).await;
    assert_eq!(try_pod(&server, "p", json!({})).await.status, 201);
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    make(&server, &format!("{PODS}/p/binding"), binding).await;
    let bound = ask(&server, Method::GET, &format!("{PODS}/p"), Value::Null).await.json();
    let labels = json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r"});
    assert_eq!(bound["metadata"]["labels"], labels);

    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "fixed", "resources": {"requests": {"storage": "1Gi"}}}});
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    make(&server, claims, claim).await;
    let path = format!("{claims}/c");
    let grow = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    let answer = ask(&server, Method::PATCH, &path, grow.clone()).await;
    assert_ne!(answer.status, 200, "{}", answer.message());
    let bound = json!({"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
    ask(&server, Method::PATCH, &format!("{path}/status"), bound).await;
    let answer = ask(&server, Method::PATCH, &path, grow.clone()).await;
    assert_eq!(answer.status, 403, "{}", answer.message());
    assert!(answer.message().contains("only dynamically provisioned pvc can be resized"));
    let class =
        json!({"metadata": {"name": "fixed"}, "provisioner": "p", "allowVolumeExpansion": true});
    make(&server, "/apis/storage.k8s.io/v1/storageclasses", class).await;
    let answer = ask(&server, Method::PATCH, &path, grow).await;
    assert_eq!(answer.status, 200, "{}", answer.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_security_has_defaults_and_exemptions() {
    let conf = tempfile::tempdir().unwrap();
    let flags = Flags {
        admission_file: configured(
            conf.path(),
            "- name: PodSecurity\n  configuration:\n    apiVersion: pod-security.admission.config.k8s.io/v1\n    kind: PodSecurityConfiguration\n    defaults: {enforce: baseline, enforce-version: latest, warn: baseline}\n    exemptions: {usernames: [bob], namespaces: [kube-system]}\n",
        ),
        ..Flags::default()
    };
    let (_dir, server) = server(flags).await;
    let privileged = json!({"hostNetwork": true});
    let answer = try_pod(&server, "p", privileged.clone()).await;
    assert_eq!(answer.status, 403);
    assert!(answer.message().contains("violates PodSecurity \"baseline:latest\""));
    let headers = [("content-type", "application/json")];
    let body = pod("q", privileged.clone()).to_string();
    assert_eq!(send(&server, "bob", Method::POST, PODS, &headers, body).await.status, 201);
    let template = json!({"metadata": {"labels": {"a": "b"}},
        "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i:1"}]}});
    let deployment = json!({"metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let answer = ask(&server, Method::POST, deployments, deployment).await;
    assert_eq!(answer.status, 201);
    let warned = answer.warnings();
    assert!(warned[0].contains("would violate PodSecurity \\\"baseline:latest\\\""), "{warned:?}");
    let system = "/api/v1/namespaces/kube-system/pods";
    assert_eq!(ask(&server, Method::POST, system, pod("r", privileged)).await.status, 201);
}

#[tokio::test]
async fn wrong_configuration_is_said_at_start() {
    let conf = tempfile::tempdir().unwrap();
    let cases = [
        ("- name: NoSuchPlugin\n  configuration: {}\n", "unknown admission plugin"),
        (
            "- name: EventRateLimit\n  configuration: {limits: [{type: Planet, qps: 1, burst: 1}]}\n",
            "no type of limit",
        ),
        ("- name: PodSecurity\n  configuration: {kind: Other}\n", "is no PodSecurityConfiguration"),
        ("- name: PodSecurity\n  path: missing.yaml\n", "read the admission configuration"),
    ];
    for (text, why) in cases {
        let flags = Flags { admission_file: configured(conf.path(), text), ..Flags::default() };
        let error = api::admission::Admission::with(&flags).err().unwrap();
        assert!(error.to_string().contains(why), "{error}");
    }
    let unknown = enabled(&["NoSuchPlugin"]);
    assert!(api::admission::Admission::with(&unknown).is_err());
    let mut both = enabled(&["AlwaysPullImages"]);
    both.disabled_admission.push("AlwaysPullImages".into());
    assert!(api::admission::Admission::with(&both).is_err());
}
