//! Who a container runs as, and what it may not.

use serde_json::json;

use super::{Case, create, pod, run};
use crate::cluster::Cluster;
use crate::machine::told;

const IDS: &str = "echo $(id -u) $(id -g)";

#[test]
fn containers_are_who_they_are_said_to_be_and_no_more() {
    let cluster = Cluster::new();
    let link = "busybox ip link add dummy0 type dummy 2>&1 | grep -o 'Operation not permitted'";
    let privileges = "grep -E '^(NoNewPrivs)' /proc/self/status | busybox tr -d '\\t'";
    let write = "(echo x > /file) 2> /dev/null && echo written || echo refused";
    let sysctl = json!({"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]});
    run(
        &cluster,
        &[
            Case::script("user", IDS, "65534 0")
                .with("securityContext", json!({"runAsUser": 65534})),
            Case::script("container-ids", IDS, "1001 2002")
                .with("securityContext", json!({"runAsUser": 1001, "runAsGroup": 2002})),
            Case::script("pod-ids", IDS, "1001 2002")
                .pod("securityContext", json!({"runAsUser": 1001, "runAsGroup": 2002})),
            Case::script("unprivileged", link, "Operation not permitted")
                .with("securityContext", json!({"privileged": false})),
            Case::script("no-escalation", privileges, "NoNewPrivs:1").with(
                "securityContext",
                json!({"runAsUser": 1000, "allowPrivilegeEscalation": false}),
            ),
            Case::script("escalation", privileges, "NoNewPrivs:0")
                .with("securityContext", json!({"runAsUser": 1000})),
            Case::script("read-only-root", write, "refused")
                .with("securityContext", json!({"readOnlyRootFilesystem": true})),
            Case::script("writable-root", write, "written")
                .with("securityContext", json!({"readOnlyRootFilesystem": false})),
            Case::script("sysctl", "cat /proc/sys/kernel/shm_rmid_forced", "1")
                .pod("securityContext", sysctl),
        ],
    );
    escalation_by_a_file(&cluster);
    let bad = json!([{"name": "foo-", "value": "bar"}, {"name": "kernel.shmmax", "value": "100000000"},
        {"name": "safe-and-unsafe", "value": "100000000"}, {"name": "bar..", "value": "42"}]);
    let mut sysctls = pod("bad-sysctls", json!({"containers": [{"command": ["true"]}]}));
    sysctls["spec"]["securityContext"] = json!({"sysctls": bad});
    let output = cluster.try_apply(&[], &sysctls.to_string());
    let said = told(&output);
    assert!(!output.status.success() && said.contains("Invalid value: \"foo-\""), "{said}");
    assert!(said.contains("Invalid value: \"bar..\""), "{said}");
    // One that is well-formed, but that nobody allowed.
    sysctls["spec"]["securityContext"] =
        json!({"sysctls": [{"name": "kernel.shmmax", "value": "100000000"}]});
    create(&cluster, vec![sysctls]);
    cluster.until("get pod bad-sysctls -o jsonpath={.status.reason}", 30, |text| {
        text == "SysctlForbidden"
    });
    super::delete_pods(&cluster);
    cluster.reset();
}

/// A file that would make its reader root does so unless that is forbidden.
fn escalation_by_a_file(cluster: &Cluster) {
    let mount = json!([{"name": "v", "mountPath": "/v"}]);
    // GNU's wget keeps the rights of its file: it reads what only root may read.
    let prepare = "cp /bin/wget /v/wget 2> /dev/null || busybox cp /bin/wget /v/wget; \
         busybox chmod 4755 /v/wget; echo secret > /v/private; busybox chmod 600 /v/private";
    let read = "/v/wget -i /v/private -O /dev/null --tries=1 --timeout=1 2>&1 \
         | grep -q 'Permission denied' && echo refused || echo read";
    let of = |name: &str, allowed: Option<bool>, log: &str| {
        let mut case = Case::script(name, read, log)
            .with("volumeMounts", mount.clone())
            .pod("volumes", json!([{"name": "v", "emptyDir": {}}]))
            .with("securityContext", json!({"runAsUser": 1000}));
        if let Some(allowed) = allowed {
            case.spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] =
                allowed.into();
        }
        case.spec["initContainers"] =
            json!([{"name": "prepare", "command": ["sh", "-c", prepare], "volumeMounts": mount}]);
        case
    };
    run(
        cluster,
        &[
            of("file-forbidden", Some(false), "refused"),
            of("file-allowed", Some(true), "read"),
            of("file-unsaid", None, "read"),
        ],
    );
}
