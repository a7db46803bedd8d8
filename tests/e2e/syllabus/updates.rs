//! Volumes follow their objects while the pod runs; what is immutable does not change.

use serde_json::{Value, json};

use super::volumes::{KINDS, config_map, secret, volume};
use super::{create, is_ready, pod, until_pod};
use crate::cluster::Cluster;
use crate::machine::eventually;

/// The files below a directory of the pod, each with its content.
fn files(cluster: &Cluster, dir: &str) -> Result<String, String> {
    let script = format!("cd {dir} && for f in *; do [ -f $f ] && echo $f=$(cat $f); done; true");
    cluster.try_kubectl(&["exec", "watcher", "--", "sh", "-c", &script])
}

#[test]
fn volumes_follow_their_objects() {
    let cluster = Cluster::new();
    let both = |name: &str, data: Value| vec![config_map(name, data.clone()), secret(name, data)];
    let mut objects = both("upd", json!({"data-1": "value-1"}));
    objects.extend(both("del", json!({"data-1": "value-1"})));
    create(&cluster, objects);
    let (mut mounts, mut volumes) = (Vec::new(), Vec::new());
    let mut add = |name: String, mut source: Value| {
        mounts.push(json!({"name": name, "mountPath": format!("/v/{name}")}));
        source["name"] = name.into();
        volumes.push(source);
    };
    for kind in KINDS {
        for object in ["upd", "del", "new"] {
            add(format!("{kind}-{object}"), volume(kind, object, json!({"optional": true})));
        }
    }
    let own = json!({"items": [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}}]});
    add("own".into(), json!({"downwardAPI": own}));
    add("projected-own".into(), json!({"projected": {"sources": [{"downwardAPI": own}]}}));
    let watcher = json!({"containers": [{"command": ["sleep", "1000"], "volumeMounts": mounts}],
        "volumes": volumes});
    create(&cluster, vec![pod("watcher", watcher)]);
    until_pod(&cluster, "watcher", is_ready);
    for kind in KINDS {
        assert_eq!(files(&cluster, &format!("/v/{kind}-upd")).unwrap(), "data-1=value-1\n");
        assert_eq!(files(&cluster, &format!("/v/{kind}-new")).unwrap(), "");
    }

    let mut changed = both("upd", json!({"data-3": "value-3"}));
    changed.extend(both("new", json!({"data-1": "created"})));
    for what in ["configmap", "secret"] {
        cluster.k(&format!("delete {what} upd del"));
    }
    create(&cluster, changed);
    cluster.k("label pod watcher key=value --overwrite");
    cluster.k("annotate pod watcher builder=foo --overwrite");
    for kind in KINDS {
        for (object, wanted) in
            [("upd", "data-3=value-3\n"), ("del", ""), ("new", "data-1=created\n")]
        {
            eventually(&format!("the volume {kind}-{object} follows"), 60, || {
                let seen = files(&cluster, &format!("/v/{kind}-{object}"))?;
                if seen == wanted { Ok(()) } else { Err(seen) }
            });
        }
    }
    for way in ["own", "projected-own"] {
        eventually(&format!("{way} shows labels and annotations"), 60, || {
            let seen = files(&cluster, &format!("/v/{way}"))?;
            let holds = seen.contains("key=\"value\"") && seen.contains("builder=\"foo\"");
            if holds { Ok(()) } else { Err(seen) }
        });
    }
    immutable(&cluster);
    cluster.k("delete pod watcher --now");
    cluster.reset();
}

/// What is marked so changes neither its data nor its mark, and can still be deleted.
fn immutable(cluster: &Cluster) {
    for (kind, object) in [
        ("configmap", config_map("fixed", json!({"a": "1"}))),
        ("secret", secret("fixed", json!({"a": "1"}))),
    ] {
        create(cluster, vec![object]);
        let data = if kind == "secret" { "stringData" } else { "data" };
        let patch = |text: &str| ["patch", kind, "fixed", "-p", text].map(str::to_string);
        let change = patch(&format!("{{\"{data}\": {{\"a\": \"2\"}}}}"));
        let words: Vec<&str> = change.iter().map(String::as_str).collect();
        cluster.kubectl(&words);
        let mark = patch("{\"immutable\": true}");
        cluster.kubectl(&mark.iter().map(String::as_str).collect::<Vec<_>>());
        let again = patch(&format!("{{\"{data}\": {{\"a\": \"3\"}}}}"));
        for refused in [again, patch("{\"immutable\": false}")] {
            let words: Vec<&str> = refused.iter().map(String::as_str).collect();
            let said = cluster.refused(&words);
            assert!(said.contains("field is immutable when `immutable` is set"), "{said}");
        }
        cluster.k(&format!("label {kind} fixed still=labelled"));
        cluster.k(&format!("delete {kind} fixed"));
    }
}
