//! Commands, arguments and variables: what a container is started with.

use serde_json::{Value, json};

use super::volumes::{config_map, secret};
use super::{Case, create, is_ready, pod, run, until_pod};
use crate::cluster::Cluster;

fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn resource(name: &str, resource: &str) -> Value {
    json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource}}})
}

fn variables(cluster: &Cluster) -> Vec<Case> {
    let data = json!({"data-1": "value-1", "data_2": "value-2"});
    create(cluster, vec![config_map("object", data.clone()), secret("object", data)]);
    let mut cases = Vec::new();
    for (kind, reference, source) in
        [("configmap", "configMapKeyRef", "configMapRef"), ("secret", "secretKeyRef", "secretRef")]
    {
        let name = |what: &str| format!("{kind}-{what}");
        let key =
            json!([{"name": "ONE", "valueFrom": {reference: {"name": "object", "key": "data-1"}}}]);
        cases.push(Case::script(&name("key"), "echo $ONE", "value-1").with("env", key));
        let from = |prefix: &str| json!([{"prefix": prefix, source: {"name": "object"}}]);
        // A shell would hand on only what it could itself set.
        let show = |name: &str, log: &str| {
            Case::script(name, "", log).with("command", json!(["env"])).only("value-")
        };
        let all = show(&name("all"), "data-1=value-1\ndata_2=value-2");
        cases.push(all.with("envFrom", from("")));
        for (number, prefix) in ["p-", "1_", "#!", "a.b/c ", "%~"].iter().enumerate() {
            let log = format!("{prefix}data-1=value-1\n{prefix}data_2=value-2");
            let case = show(&name(&format!("prefix-{number}")), &log);
            cases.push(case.with("envFrom", from(prefix)));
        }
    }
    let node = cluster.json("get nodes")["items"][0].clone();
    let cpus = node["status"]["allocatable"]["cpu"].as_str().unwrap().to_string();
    let memory = node["status"]["allocatable"]["memory"].as_str().unwrap();
    let bytes = memory.strip_suffix("Ki").unwrap().parse::<u64>().unwrap() << 10;
    let limits = json!([
        resource("A", "limits.cpu"),
        resource("B", "limits.memory"),
        resource("C", "requests.cpu"),
        resource("D", "requests.memory")
    ]);
    let limited = json!({"limits": {"cpu": "1250m", "memory": "64Mi"},
        "requests": {"cpu": "250m", "memory": "32Mi"}});
    let defaults = format!("{cpus} {bytes}");
    cases.extend([
        Case::script("own-name", "echo $A $B $C", "{/metadata/name} default {/status/podIP}").with(
            "env",
            json!([
                field("A", "metadata.name"),
                field("B", "metadata.namespace"),
                field("C", "status.podIP")
            ]),
        ),
        Case::script(
            "own-host",
            "echo $A $B $C",
            "{/status/hostIP} {/status/hostIPs/0/ip} {/metadata/uid}",
        )
        .with(
            "env",
            json!([
                field("A", "status.hostIP"),
                field("B", "status.hostIPs"),
                field("C", "metadata.uid")
            ]),
        ),
        Case::script("own-limits", "echo $A $B $C $D", "2 67108864 1 33554432")
            .with("env", limits)
            .with("resources", limited),
        Case::script("own-defaults", "echo $A $B", &defaults)
            .with("env", json!([resource("A", "limits.cpu"), resource("B", "limits.memory")])),
        Case::script("composed", "echo $C", "a-value;;b-value;$(NONE)").with(
            "env",
            json!([{"name": "A", "value": "a-value"}, {"name": "B", "value": "b-value"},
                {"name": "C", "value": "$(A);;$(B);$(NONE)"}]),
        ),
    ]);
    cases
}

fn commands() -> Vec<Case> {
    let with = |name: &str, command: Value, args: Value, log: &str| {
        let mut container = json!({"env": [{"name": "A", "value": "substituted"}]});
        if !command.is_null() {
            container["command"] = command;
        }
        if !args.is_null() {
            container["args"] = args;
        }
        Case {
            name: name.into(),
            spec: json!({"containers": [container]}),
            log: log.into(),
            only: "",
        }
    };
    // An image that prints what arguments it gets.
    let args = |name: &str, command: Value, args: Value, log: &str| {
        with(name, command, args, log).with("image", json!("words:1"))
    };
    vec![
        args("image-says", Value::Null, Value::Null, "image default"),
        args(
            "other-arguments",
            Value::Null,
            json!(["override", "arguments"]),
            "override arguments",
        ),
        args("other-command", json!(["echo", "override"]), Value::Null, "override"),
        args("both-other", json!(["echo"]), json!(["all", "is other"]), "all is other"),
        with(
            "in-command",
            json!(["echo", "$(A) $$(A) $(B)"]),
            Value::Null,
            "substituted $(A) $(B)",
        ),
        with("in-arguments", json!(["echo"]), json!(["$(A)"]), "substituted"),
    ]
}

fn sub_paths() -> Vec<Case> {
    let volumes = json!([{"name": "v", "emptyDir": {}}]);
    let env =
        json!([field("POD", "metadata.name"), field("BUILDER", "metadata.annotations['builder']")]);
    let mounts = json!([{"name": "v", "mountPath": "/logs", "subPathExpr": "$(POD)/$(BUILDER)"},
        {"name": "v", "mountPath": "/all"}]);
    let script = "echo written > /logs/file; cd /all && echo * */*/* && cat */*/file";
    let log = "{/metadata/name} {/metadata/name}/bar/file\nwritten";
    vec![
        Case::script("sub-path-expression", script, log)
            .with("env", env)
            .with("volumeMounts", mounts)
            .pod("volumes", volumes),
    ]
}

/// A sub-path that cannot be, and one that can be once the pod is annotated.
fn failing_sub_paths(cluster: &Cluster) {
    let of = |name: &str, value: Value, expression: &str| {
        let mut env = json!({"name": "VALUE"});
        if value.is_string() {
            env["value"] = value;
        } else {
            env["valueFrom"] = value;
        }
        let container = json!({"command": ["sleep", "1000"], "env": [env],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "subPathExpr": expression}]});
        pod(name, json!({"containers": [container], "volumes": [{"name": "v", "emptyDir": {}}]}))
    };
    let annotation = json!({"fieldRef": {"fieldPath": "metadata.annotations['later']"}});
    create(
        cluster,
        vec![
            of("backticks", json!("..."), "`ls`/$(VALUE)/$(NONE)"),
            of("absolute", json!("/tmp"), "$(VALUE)"),
            of("climbing", json!("../.."), "$(VALUE)"),
            of("late", annotation, "$(VALUE)/$(NONE)"),
        ],
    );
    for name in ["backticks", "absolute", "climbing", "late"] {
        until_pod(cluster, name, |pod| {
            let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
            let fails = reason == "CreateContainerConfigError";
            if fails { Ok(()) } else { Err("its container does not fail".to_string()) }
        });
    }
    let late =
        of("late", json!({"fieldRef": {"fieldPath": "metadata.annotations['later']"}}), "$(VALUE)");
    cluster.k("delete pod late --now");
    let mut with_bad_value = late;
    with_bad_value["metadata"]["annotations"]["later"] = "/absolute".into();
    create(cluster, vec![with_bad_value]);
    until_pod(cluster, "late", |pod| {
        let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        let fails = reason == "CreateContainerConfigError";
        if fails { Ok(()) } else { Err("its container does not fail".to_string()) }
    });
    cluster.k("annotate pod late later=mended --overwrite");
    until_pod(cluster, "late", is_ready);
    let disk = "find /var/lib/coracle/agent/pods -type d -path '*empty-dir/v/mended'";
    assert_eq!(cluster.machine.sh(disk).lines().count(), 1);
    super::delete_pods(cluster);
}

/// Services that were there before the pod are in its environment.
fn services(cluster: &Cluster) {
    cluster.k("create service clusterip fooservice --tcp=8765:8080");
    let address = cluster.k("get service fooservice -o jsonpath={.spec.clusterIP}");
    let log = format!(
        "FOOSERVICE_PORT=tcp://{address}:8765\nFOOSERVICE_PORT_8765_TCP=tcp://{address}:8765\n\
         FOOSERVICE_PORT_8765_TCP_ADDR={address}\nFOOSERVICE_PORT_8765_TCP_PORT=8765\n\
         FOOSERVICE_PORT_8765_TCP_PROTO=tcp\nFOOSERVICE_SERVICE_HOST={address}\n\
         FOOSERVICE_SERVICE_PORT=8765\nFOOSERVICE_SERVICE_PORT_8765_8080=8765"
    );
    let show = "env | grep ^FOOSERVICE | grep -v _PORT_[^8] | sort";
    run(cluster, &[Case::script("client", show, &log)]);
}

#[test]
fn containers_get_their_words_and_variables() {
    let cluster = Cluster::new();
    let words = crate::images::words().archive();
    cluster.machine.write("/tmp/words.tar", &words);
    cluster.machine.sh("/mnt/coracle/coracle images import /tmp/words.tar && rm /tmp/words.tar");
    let mut cases = variables(&cluster);
    cases.extend(commands());
    cases.extend(sub_paths());
    run(&cluster, &cases);
    failing_sub_paths(&cluster);
    services(&cluster);
    cluster.reset();
}
