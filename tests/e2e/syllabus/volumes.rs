//! Volumes of configMaps, secrets, the pod's own data and projections of them; emptyDirs;
//! sub-paths of what is written atomically.

use serde_json::{Value, json};

use super::{Case, create, run};
use crate::cluster::Cluster;

/// The four ways to the keys of an object named `object`.
pub const KINDS: [&str; 4] = ["configmap", "secret", "projected-configmap", "projected-secret"];

/// A volume of an object's keys. `more` may have `items`, `optional` and `defaultMode`.
pub fn volume(kind: &str, object: &str, more: Value) -> Value {
    let mut source = more;
    match kind {
        "configmap" => {
            source["name"] = object.into();
            json!({"configMap": source})
        }
        "secret" => {
            source["secretName"] = object.into();
            json!({"secret": source})
        }
        _ => {
            source["name"] = object.into();
            let mode = source.as_object_mut().unwrap().remove("defaultMode");
            let key = if kind == "projected-secret" { "secret" } else { "configMap" };
            let mut projected = json!({"sources": [{key: source}]});
            if let Some(mode) = mode {
                projected["defaultMode"] = mode;
            }
            json!({"projected": projected})
        }
    }
}

pub fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

pub fn secret(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}

fn data() -> Value {
    json!({"data-1": "value-1", "data-2": "value-2\n", "data-3": "value-3"})
}

const STAT: &str = "busybox stat -L -c '%a'";

/// As an object's keys are consumed from pods, in each of the ways.
fn keys(kind: &str) -> Vec<Case> {
    let of =
        |name: &str, script: &str, log: &str| Case::script(&format!("{kind}-{name}"), script, log);
    let mapped = json!([{"key": "data-2", "path": "path/to/data-2"}]);
    let mapped_mode = json!([{"key": "data-2", "path": "path/to/data-2", "mode": 0o400}]);
    let as_user = json!({"runAsUser": 1000});
    let with = |more: Value| volume(kind, "object", more);
    let two = json!([{"name": "one", "mountPath": "/one", "readOnly": true},
        {"name": "two", "mountPath": "/two", "readOnly": true}]);
    let (mut one, mut other) = (with(json!({})), with(json!({})));
    (one["name"], other["name"]) = ("one".into(), "two".into());
    vec![
        of("whole", &format!("cat /v/data-1; {STAT} /v/data-1"), "value-1644")
            .volume(with(json!({}))),
        of("as-user", "cat /v/data-1", "value-1")
            .volume(with(json!({})))
            .pod("securityContext", as_user.clone()),
        of("mode", &format!("{STAT} /v/data-1; cat /v/data-1"), "400\nvalue-1")
            .volume(with(json!({"defaultMode": 0o400}))),
        of(
            "mapped",
            &format!("cat /v/path/to/data-2; {STAT} /v/path/to/data-2; ls /v"),
            "value-2\n644\npath",
        )
        .volume(with(json!({"items": mapped}))),
        of(
            "mapped-mode",
            &format!("{STAT} /v/path/to/data-2; cat /v/path/to/data-2"),
            "400\nvalue-2",
        )
        .volume(with(json!({"items": mapped_mode}))),
        of("mapped-as-user", "cat /v/path/to/data-2", "value-2")
            .volume(with(json!({"items": mapped})))
            .pod("securityContext", as_user),
        of(
            "user-mode-group",
            "cat /v/data-1; busybox stat -L -c '%a %g' /v/data-1; id -u",
            "value-1440 1001\n1000",
        )
        .volume(with(json!({"defaultMode": 0o440})))
        .pod("securityContext", json!({"runAsUser": 1000, "fsGroup": 1001})),
        of("twice", "cat /one/data-1; echo; cat /two/data-1", "value-1\nvalue-1")
            .with("volumeMounts", two)
            .pod("volumes", json!([one, other])),
        of("read-only", "(echo x > /v/data-1) 2> /dev/null || echo refused", "refused")
            .volume(with(json!({}))),
        of("subpath", "cat /test; cat /etc/group", "value-1value-3").volume(with(json!({}))).with(
            "volumeMounts",
            json!([
                {"name": "v", "mountPath": "/test", "subPath": "data-1"},
                // A file that is there already.
                {"name": "v", "mountPath": "/etc/group", "subPath": "data-3"}]),
        ),
    ]
}

#[test]
fn keys_of_objects_are_files() {
    let cluster = Cluster::new();
    cluster.k("create namespace other");
    let mut elsewhere = secret("object", json!({"data-1": "not this one"}));
    elsewhere["metadata"]["namespace"] = "other".into();
    let binary = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "binary"},
        "data": {"text": "plain"}, "binaryData": {"bytes": "3q3erQD/"}});
    // The secret of the same name in another namespace is another secret.
    create(
        &cluster,
        vec![config_map("object", data()), secret("object", data()), elsewhere, binary],
    );
    let mut cases: Vec<Case> = KINDS.iter().flat_map(|kind| keys(kind)).collect();
    let hex = "busybox od -A n -t x1 /v/bytes; cat /v/text";
    cases.push(Case::script("binary", hex, " de ad de ad 00 ff\nplain").volume(volume(
        "configmap",
        "binary",
        json!({}),
    )));
    let all = json!({"projected": {"sources": [
        {"configMap": {"name": "object", "items": [{"key": "data-1", "path": "map/file"}]}},
        {"secret": {"name": "object", "items": [{"key": "data-3", "path": "secret/file"}]}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}});
    let script = "cat /v/map/file /v/secret/file /v/name; [ -s /v/token ] && echo .";
    cases.push(Case::script("all-projected", script, "value-1value-3all-projected.").volume(all));
    run(&cluster, &cases);
    own_data(&cluster);
    cluster.k("delete namespace other");
    cluster.reset();
}

/// What the downward API puts into a volume, both by itself and projected.
fn own_data(cluster: &Cluster) {
    let node = cluster.json("get nodes")["items"][0].clone();
    let allocatable = &node["status"]["allocatable"];
    let cpus = allocatable["cpu"].as_str().unwrap().to_string();
    let kib = allocatable["memory"].as_str().unwrap().strip_suffix("Ki").unwrap();
    let bytes = (kib.parse::<u64>().unwrap() << 10).to_string();
    let resource = |name: &str, divisor: &str| {
        json!({"path": "value", "resourceFieldRef":
            {"containerName": "c0", "resource": name, "divisor": divisor}})
    };
    let limited = json!({"limits": {"cpu": "1250m", "memory": "64Mi"},
        "requests": {"cpu": "250m", "memory": "32Mi"}});
    let none = json!({});
    let items = [
        (
            "podname",
            json!({"path": "value", "fieldRef": {"fieldPath": "metadata.name"}}),
            &none,
            "{/metadata/name}",
        ),
        (
            "annotations",
            json!({"path": "value", "fieldRef": {"fieldPath": "metadata.annotations['builder']"}}),
            &none,
            "bar",
        ),
        ("cpu-limit", resource("limits.cpu", "0"), &limited, "2"),
        ("cpu-limit-milli", resource("limits.cpu", "1m"), &limited, "1250"),
        ("cpu-request", resource("requests.cpu", "1m"), &limited, "250"),
        ("memory-limit", resource("limits.memory", "0"), &limited, "67108864"),
        ("memory-request", resource("requests.memory", "1Mi"), &limited, "32"),
        ("cpu-default", resource("limits.cpu", "0"), &none, &cpus),
        ("memory-default", resource("limits.memory", "0"), &none, &bytes),
    ];
    let mut cases = Vec::new();
    for (way, projects) in [("own", false), ("projected", true)] {
        let volume = |item: &Value, mode: Option<u32>| {
            let mut source = json!({"items": [item]});
            if projects {
                source = json!({"sources": [{"downwardAPI": source}]});
            }
            if let Some(mode) = mode {
                source["defaultMode"] = mode.into();
            }
            json!({if projects { "projected" } else { "downwardAPI" }: source})
        };
        for (name, item, resources, log) in &items {
            let case = Case::script(&format!("{way}-{name}"), "cat /v/value", log);
            cases.push(case.volume(volume(item, None)).with("resources", (*resources).clone()));
        }
        let item = &items[0].1;
        let script = &format!("{STAT} /v/value");
        let mode = Case::script(&format!("{way}-mode"), script, "400");
        cases.push(mode.volume(volume(item, Some(0o400))));
        let mut with_mode = item.clone();
        with_mode["mode"] = 0o400.into();
        let mode = Case::script(&format!("{way}-item-mode"), script, "400");
        cases.push(mode.volume(volume(&with_mode, None)));
        let part = Case::script(&format!("{way}-subpath"), "cat /part", "{/metadata/name}");
        let mount = json!([{"name": "v", "mountPath": "/part", "subPath": "value"}]);
        cases.push(part.volume(volume(item, None)).with("volumeMounts", mount));
    }
    run(cluster, &cases);
}

#[test]
fn empty_directories_have_the_modes_and_media_that_are_asked_for() {
    let cluster = Cluster::new();
    let mut cases = Vec::new();
    let medium = "[ \"$(busybox stat -f -c %T /v)\" = tmpfs ] && echo memory || echo disk";
    for (name, source, log, open) in [
        ("default", json!({"emptyDir": {}}), "disk", "777"),
        ("tmpfs", json!({"emptyDir": {"medium": "Memory"}}), "memory", "1777"),
    ] {
        let script = format!("{medium}; {STAT} /v");
        cases.push(
            Case::script(&format!("{name}-mode"), &script, &format!("{log}\n{open}"))
                .volume(source.clone()),
        );
        // A directory that is made for a sub-path is as open as the volume.
        let of_group = if log == "memory" { "3777" } else { "2777" };
        let script = "busybox stat -c '%a %u %g' /v; echo > /v/f; busybox stat -c %g /v/f";
        let log_of_group = format!("{of_group} 0 123\n123");
        let mount = json!([{"name": "v", "mountPath": "/v", "subPath": "made"}]);
        cases.push(
            Case::script(&format!("{name}-group-subpath"), script, &log_of_group)
                .volume(source.clone())
                .with("volumeMounts", mount)
                .pod("securityContext", json!({"runAsUser": 1001, "fsGroup": 123})),
        );
        for (user, id) in [("root", 0), ("user", 1001)] {
            for mode in ["644", "666", "777"] {
                let script = format!(
                    "echo content > /v/file && busybox chmod {mode} /v/file && {medium}; \
                     busybox stat -c '%a %u' /v/file; cat /v/file"
                );
                let log = format!("{log}\n{mode} {id}\ncontent");
                let case = Case::script(&format!("{name}-{user}-{mode}"), &script, &log);
                cases.push(
                    case.volume(source.clone()).pod("securityContext", json!({"runAsUser": id})),
                );
            }
        }
    }
    let mount = json!([{"name": "v", "mountPath": "/v"}]);
    let wait = "while [ ! -e /v/done ]; do sleep 0.1; done; cat /v/file";
    let mut shared = Case::script("shared", wait, "from the other");
    shared.spec["containers"] = json!([
        {"command": ["sh", "-c", wait], "volumeMounts": mount},
        {"command": ["sh", "-c", "echo from the other > /v/file; touch /v/done"], "volumeMounts": mount}]);
    cases.push(shared.pod("volumes", json!([{"name": "v", "emptyDir": {}}])));
    // Many volumes that are made alike, in several pods at once, do not get into each
    // other's way.
    let count = 50;
    let maps = (0..count).map(|n| config_map(&format!("map-{n}"), json!({"data": n.to_string()})));
    let mut objects: Vec<Value> = maps.collect();
    objects.push(secret("beside", json!({"data": "secret"})));
    create(&cluster, objects);
    for racer in 0..5 {
        let mut mounts: Vec<Value> = (0..count)
            .map(|n| json!({"name": format!("v{n}"), "mountPath": format!("/v/{n}")}))
            .collect();
        let mut volumes: Vec<Value> = (0..count)
            .map(|n| json!({"name": format!("v{n}"), "configMap": {"name": format!("map-{n}")}}))
            .collect();
        mounts.push(json!({"name": "beside", "mountPath": "/beside"}));
        volumes.push(json!({"name": "beside", "secret": {"secretName": "beside"}}));
        let script = "for n in $(seq 0 49); do [ $(cat /v/$n/data) = $n ] || echo $n; done; cat /beside/data";
        cases.push(
            Case::script(&format!("racer-{racer}"), script, "secret")
                .with("volumeMounts", json!(mounts))
                .pod("volumes", json!(volumes)),
        );
    }
    run(&cluster, &cases);
    cluster.reset();
}
