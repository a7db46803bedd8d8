//! An API server of somebody else's behind this one. It is a second one of ours, with a group
//! that the first does not know, and it believes the first who is asking.

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{SECONDS, create, feed, raw, until};
use crate::cluster::Cluster;
use crate::machine::{ADDRESS, eventually, told};

const API: &str = "v1alpha1.wardle.example.com";
const KUBECONFIG: &str = "/tmp/wardle.yaml";
const PORT: &str = "7443";

pub fn all(cluster: &Cluster) {
    let (pid, bundle) = start(cluster);
    register(cluster, &bundle);
    serves(cluster);
    comes_and_goes(cluster, pid);
}

/// Starts it with its definition of flunders; gives its process and its authority.
fn start(cluster: &Cluster) -> (u32, String) {
    let pid = run(cluster);
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition", "metadata": {"name": "flunders.wardle.example.com"},
        "spec": {"group": "wardle.example.com", "scope": "Namespaced",
            "names": {"plural": "flunders", "singular": "flunder", "kind": "Flunder"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}}}}]}});
    let words = [&cluster.kubectl, "--kubeconfig", KUBECONFIG, "create", "-f", "-"];
    let made = cluster.machine.run_with_input(&words, &definition.to_string());
    assert!(made.status.success(), "{}", told(&made));
    let authority = cluster.machine.read("/tmp/wardle/server/tls/server-ca.crt");
    assert!(authority.contains("BEGIN CERTIFICATE"));
    (pid, STANDARD.encode(authority))
}

fn run(cluster: &Cluster) -> u32 {
    let proxies = cluster.machine.data().join("server/tls/request-header-ca.crt");
    assert!(fs::metadata(&proxies).is_ok(), "{}", proxies.display());
    let log = "/tmp/wardle.log";
    let argv = [
        "/mnt/coracle/coracle",
        "server",
        "--data-dir=/tmp/wardle",
        "--run-dir=/tmp/wardle-run",
        "--disable-agent",
        "--disable-scheduler",
        "--disable=dns,local-storage,metrics-server,servicelb",
        &format!("--https-listen-port={PORT}"),
        &format!("--write-kubeconfig={KUBECONFIG}"),
        "--tls-san=wardle.default.svc",
        "--kube-apiserver-arg=requestheader-allowed-names=system:auth-proxy",
        "--kube-apiserver-arg=requestheader-client-ca-file=/var/lib/coracle/server/tls/request-header-ca.crt",
    ];
    let pid = cluster.machine.start(log, &argv);
    eventually("the second server is ready", SECONDS, || {
        let said = cluster.machine.read(log);
        assert!(cluster.machine.is_alive(pid), "{said}");
        if said.contains("ready; use it with") { Ok(()) } else { Err(said) }
    });
    pid
}

fn available(cluster: &Cluster, status: &str, reason: &str) {
    let wanted = format!("{status} {reason}");
    eventually(&format!("{API} is {wanted}"), SECONDS, || {
        let held = cluster.json(&format!("get apiservice {API}"));
        let condition = &held["status"]["conditions"][0];
        let seen = (
            condition["type"].as_str(),
            condition["status"].as_str(),
            condition["reason"].as_str(),
        );
        let is_so = seen == (Some("Available"), Some(status), Some(reason));
        if is_so { Ok(()) } else { Err(condition.to_string()) }
    });
}

/// Each step of the way is told until the server is found.
fn register(cluster: &Cluster, bundle: &str) {
    let service = json!({"name": "wardle", "namespace": "default", "port": 443});
    create(
        cluster,
        vec![json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": API, "labels": {"e2e": "yes"}}, "spec": {"service": service,
                "group": "wardle.example.com", "version": "v1alpha1", "caBundle": bundle,
                "groupPriorityMinimum": 2000, "versionPriority": 200}})],
    );
    available(cluster, "False", "ServiceNotFound");
    // Who cannot be asked is not hidden, and holds up nobody who asks for others.
    let said = cluster.refused(&["get", "--raw", "/apis/wardle.example.com/v1alpha1"]);
    assert!(said.contains("ServiceUnavailable") || said.contains("service unavailable"), "{said}");
    create(
        cluster,
        vec![json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wardle"},
            "spec": {"ports": [{"port": 443, "targetPort": 7443, "protocol": "TCP"}]}})],
    );
    available(cluster, "False", "EndpointsNotFound");
    create(
        cluster,
        vec![json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "wardle", "labels": {"kubernetes.io/service-name": "wardle"}},
            "addressType": "IPv4", "endpoints": [{"addresses": [ADDRESS]}],
            "ports": [{"name": "", "port": 7443, "protocol": "TCP"}]})],
    );
    available(cluster, "True", "Passed");
}

fn serves(cluster: &Cluster) {
    cluster.until("api-resources --api-group=wardle.example.com --no-headers", SECONDS, |text| {
        text.contains("flunders") && text.contains("Flunder")
    });
    let flunder = json!({"apiVersion": "wardle.example.com/v1alpha1", "kind": "Flunder",
        "metadata": {"name": "one", "labels": {"e2e": "yes"}}, "spec": {"size": 1}});
    create(cluster, vec![flunder.clone()]);
    let path = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";
    assert_eq!(raw(cluster, path)["items"].as_array().map(Vec::len), Some(1));
    let mut larger = cluster.json("get flunder one");
    larger["spec"]["size"] = 2.into();
    feed(cluster, "replace -f -", &larger);
    cluster.k("label flunder one patched=yes");
    let held = until(cluster, "flunders -l patched=yes", |all| match all {
        [one] => Ok(one.clone()),
        _ => Err(format!("{all:?}")),
    });
    assert_eq!(held["spec"]["size"], 2);
    let since = held["metadata"]["resourceVersion"].as_str().unwrap();
    cluster.k("delete flunder one");
    let watch = format!("{path}?watch=true&resourceVersion={since}&timeoutSeconds=1");
    let events = cluster.kubectl(&["get", "--raw", &watch]);
    assert!(events.contains("DELETED"), "{events}");
    // The other server judges as well, and is told who asks.
    cluster.k("create clusterrole flunders --verb=list --resource=flunders.wardle.example.com");
    cluster.k("create clusterrolebinding flunders --clusterrole=flunders --user=jane");
    let may = "auth can-i list flunders.wardle.example.com --as=jane";
    cluster.until(may, SECONDS, |text| text.trim() == "yes");
    let said = cluster.refused(&["get", "flunders", "--as=jane"]);
    assert!(said.contains("User \"jane\" cannot list resource \"flunders\""), "{said}");
    cluster.k("delete clusterrolebinding,clusterrole flunders");
    cluster.until("explain flunder.spec.size", SECONDS, |text| text.contains("integer"));
}

/// A server that does not answer is out, and in again when it answers. A namespace does not
/// go while nobody can say what it holds.
fn comes_and_goes(cluster: &Cluster, pid: u32) {
    let status = json!({"metadata": {"annotations": {"told": "yes"}}});
    super::patch(cluster, &["apiservice", API, "--subresource=status"], &status);
    assert_eq!(
        raw(cluster, &format!("/apis/apiregistration.k8s.io/v1/apiservices/{API}/status"))["metadata"]
            ["annotations"]["told"],
        "yes"
    );
    cluster.machine.sh(&format!("kill -9 {pid}"));
    // Whose registration changes is asked at once, and otherwise twice a minute.
    cluster.k(&format!("label apiservice {API} asked=again"));
    available(cluster, "False", "FailedDiscoveryCheck");
    cluster.k("create namespace unknown");
    cluster.k("delete namespace unknown --wait=false");
    let reason = "get ns unknown -o jsonpath={.status.conditions[?(@.status==\"True\")].reason}";
    cluster.until(reason, SECONDS, |text| text == "DiscoveryFailed");
    let pid = run(cluster);
    available(cluster, "True", "Passed");
    cluster.until("get ns unknown --ignore-not-found", SECONDS, str::is_empty);
    let path = "/apis/apiregistration.k8s.io/v1/apiservices?labelSelector=e2e%3Dyes";
    cluster.kubectl(&["delete", "--raw", path]);
    cluster.until("get apiservices -l e2e=yes -o name", SECONDS, str::is_empty);
    let groups: Value = raw(cluster, "/apis");
    assert!(!groups.to_string().contains("wardle.example.com"));
    cluster.k("delete service wardle");
    cluster.machine.sh(&format!("kill -TERM {pid}"));
    eventually("the second server has ended", SECONDS, || match cluster.machine.is_alive(pid) {
        true => Err(cluster.machine.read("/tmp/wardle.log")),
        false => Ok(()),
    });
}
