//! Who may do what, as an administrator's files say it, while the server runs.

use crate::cluster::Cluster;
use crate::machine::{Machine, eventually};

const AUTHORIZATION: &str = "/etc/coracle/authorization.yaml";
const POLICY: &str = "/etc/coracle/policy.jsonl";

fn authorization(modes: &[&str]) -> Vec<u8> {
    let mut text =
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n"
            .to_string();
    for mode in modes {
        text.push_str(&format!("- type: {mode}\n  name: {}\n", mode.to_lowercase()));
    }
    text.into_bytes()
}

#[test]
fn authorizers_change_while_the_server_runs() {
    let machine = Machine::new();
    machine.write(AUTHORIZATION, &authorization(&["Node", "RBAC"]));
    let policy = r#"{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"user": "jane", "namespace": "*", "resource": "pods", "apiGroup": "*", "readonly": true}}"#;
    machine.write(POLICY, policy.as_bytes());
    let config = format!("--kube-apiserver-arg=authorization-config={AUTHORIZATION}");
    let policy = format!("--kube-apiserver-arg=authorization-policy-file={POLICY}");
    let cluster = Cluster::with(machine, &["--disable-agent", &config, &policy]);
    let may = || cluster.output(&["auth", "can-i", "list", "pods", "--as=jane"]).status.success();
    assert!(!may());

    // Written beside and moved, as editors and mounted volumes do it.
    let beside = format!("{AUTHORIZATION}.new");
    cluster.machine.write(&beside, &authorization(&["Node", "ABAC", "RBAC"]));
    cluster.machine.sh(&format!("mv {beside} {AUTHORIZATION}"));
    eventually("jane may", 10, || if may() { Ok(()) } else { Err(cluster.log()) });

    // What is wrong changes nothing, and is told.
    cluster.machine.write(AUTHORIZATION, b"kind: [");
    eventually("it is told", 10, || match cluster.log().contains("configuration is not used") {
        true => Ok(()),
        false => Err(cluster.log()),
    });
    assert!(may());

    cluster.machine.write(AUTHORIZATION, &authorization(&["Node", "RBAC"]));
    eventually("jane may no more", 10, || if may() { Err(cluster.log()) } else { Ok(()) });
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"]);
    for (status, count) in [("success", 2), ("failure", 1)] {
        let told = metrics.lines().any(|line| {
            line.starts_with("apiserver_authorization_config_controller_automatic_reloads_total")
                && line.contains(&format!("status=\"{status}\""))
                && line.ends_with(&format!(" {count}"))
        });
        assert!(told, "{status}");
    }
    cluster.reset();
}
