//! The kinds by which a cluster is governed have every operation.

use serde_json::{Value, json};

use super::{SECONDS, create, feed, list, name, patch, raw};
use crate::cluster::{Cluster, KUBECONFIG};
use crate::machine::{eventually, told};
use crate::syllabus::csr;

/// A kind, one of its objects, and the subresources that it has.
struct Kind {
    group: &'static str,
    plural: &'static str,
    object: Value,
    subresources: &'static [&'static str],
}

fn kinds() -> Vec<Kind> {
    let admission = |kind: &str, spec: Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "spec": spec});
    let flow = |kind: &str, spec: Value| json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind, "spec": spec});
    let nothing = json!({"resourceRules": [{"apiGroups": ["none.example.com"],
        "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nones"]}]});
    let of = |group, plural, object, subresources| Kind { group, plural, object, subresources };
    let admission_group = "admissionregistration.k8s.io";
    let flow_group = "flowcontrol.apiserver.k8s.io";
    vec![
        of(
            admission_group,
            "validatingadmissionpolicies",
            admission(
                "ValidatingAdmissionPolicy",
                json!({"matchConstraints": nothing, "validations": [{"expression": "true"}]}),
            ),
            &["status"],
        ),
        of(
            admission_group,
            "validatingadmissionpolicybindings",
            admission(
                "ValidatingAdmissionPolicyBinding",
                json!({"policyName": "none", "validationActions": ["Deny"]}),
            ),
            &[],
        ),
        of(
            admission_group,
            "mutatingadmissionpolicies",
            admission(
                "MutatingAdmissionPolicy",
                json!({"matchConstraints": nothing, "reinvocationPolicy": "Never",
                    "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
                        "[JSONPatch{op: 'add', path: '/a', value: 'b'}]"}}]}),
            ),
            &[],
        ),
        of(
            admission_group,
            "mutatingadmissionpolicybindings",
            admission("MutatingAdmissionPolicyBinding", json!({"policyName": "none"})),
            &[],
        ),
        of(
            flow_group,
            "flowschemas",
            flow(
                "FlowSchema",
                json!({"matchingPrecedence": 9999,
                    "priorityLevelConfiguration": {"name": "global-default"}}),
            ),
            &["status"],
        ),
        of(
            flow_group,
            "prioritylevelconfigurations",
            flow(
                "PriorityLevelConfiguration",
                json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 1,
                    "limitResponse": {"type": "Reject"}}}),
            ),
            &["status"],
        ),
        of(
            "certificates.k8s.io",
            "certificatesigningrequests",
            csr::request("example.com/nobody"),
            &["approval", "status"],
        ),
    ]
}

pub fn all(cluster: &Cluster) {
    for kind in kinds() {
        every_operation(cluster, &kind);
    }
}

fn discovered(cluster: &Cluster, kind: &Kind) {
    let groups = raw(cluster, "/apis");
    let has = groups["groups"].as_array().unwrap().iter().find(|it| it["name"] == kind.group);
    let versions = has.map(|it| it["versions"].clone()).unwrap_or_default();
    let version = format!("{}/v1", kind.group);
    assert!(versions.as_array().unwrap().iter().any(|it| it["groupVersion"] == *version));
    let resources = raw(cluster, &format!("/apis/{version}"));
    let names: Vec<&str> = resources["resources"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it["name"].as_str())
        .collect();
    assert!(names.contains(&kind.plural), "{names:?}");
    for subresource in kind.subresources {
        assert!(names.contains(&format!("{}/{subresource}", kind.plural).as_str()), "{names:?}");
    }
}

fn every_operation(cluster: &Cluster, kind: &Kind) {
    discovered(cluster, kind);
    let names = ["lives-1", "lives-2", "lives-3"];
    let objects = names.map(|name| {
        let mut object = kind.object.clone();
        object["metadata"] = json!({"name": name, "labels": {"lives": "yes"}});
        object
    });
    create(cluster, objects.to_vec());
    let what = format!("{}.v1.{}", kind.plural, kind.group);
    let path = format!("/apis/{}/v1/{}", kind.group, kind.plural);
    let listed = raw(cluster, &format!("{path}?labelSelector=lives%3Dyes"));
    assert_eq!(list(&listed).iter().map(name).collect::<Vec<_>>(), names);
    let since = listed["metadata"]["resourceVersion"].as_str().unwrap().to_owned();

    let note = |key: &str| json!({"metadata": {"annotations": {key: "yes"}}});
    patch(cluster, &[&what, "lives-1"], &note("patched"));
    let mut held = raw(cluster, &format!("{path}/lives-1"));
    assert_eq!(held["metadata"]["annotations"]["patched"], "yes");
    held["metadata"]["annotations"]["updated"] = "yes".into();
    // A controller may be writing as well.
    held["metadata"]["resourceVersion"].take();
    feed(cluster, "replace -f -", &held);
    for subresource in kind.subresources {
        let of = format!("{path}/lives-1/{subresource}");
        assert_eq!(raw(cluster, &of)["metadata"]["annotations"]["updated"], "yes", "{of}");
        conditions(cluster, kind, &of, subresource);
    }
    cluster.k(&format!("delete {what} lives-1"));
    cluster.kubectl(&["delete", "--raw", &format!("{path}?labelSelector=lives%3Dyes")]);
    cluster.until(&format!("get {what} -l lives=yes -o name"), SECONDS, str::is_empty);

    // All of it was to be seen.
    let watch = format!(
        "{path}?watch=true&labelSelector=lives%3Dyes&resourceVersion={since}&timeoutSeconds=1"
    );
    let events = cluster.kubectl(&["get", "--raw", &watch]);
    let events: Vec<Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &'static str| events.iter().filter(move |event| event["type"] == kind);
    assert_eq!(of("DELETED").count(), 3, "{events:?}");
    for key in ["patched", "updated"] {
        let seen = of("MODIFIED").any(|it| it["object"]["metadata"]["annotations"][key] == "yes");
        assert!(seen, "{key}: {events:?}");
    }
}

/// A subresource is read, updated and patched.
fn conditions(cluster: &Cluster, kind: &Kind, path: &str, subresource: &str) {
    let condition = |name: &str| {
        json!({"type": name, "status": "True", "reason": "E2E", "message": "seen",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let with = |object: &Value, name: &str| {
        let mut all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.push(condition(name));
        Value::from(all)
    };
    let has = |object: &Value, name: &str| {
        let all = object["status"]["conditions"].as_array();
        all.into_iter().flatten().any(|it| it["type"] == name && it["reason"] == "E2E")
    };
    let first = if subresource == "approval" { "Approved" } else { "Updated" };
    let line = format!("replace --raw {path} -f -");
    let mut words = vec![cluster.kubectl.as_str(), "--kubeconfig", KUBECONFIG];
    words.extend(line.split_whitespace());
    // Until nobody has written in between.
    eventually(&line, SECONDS, || {
        let mut held = raw(cluster, path);
        held["status"]["conditions"] = with(&held, first);
        let output = cluster.machine.run_with_input(&words, &held.to_string());
        if output.status.success() { Ok(()) } else { Err(told(&output)) }
    });
    let held = raw(cluster, path);
    assert!(has(&held, first), "{held}");
    // kubectl patches no subresource of approvals.
    if subresource != "status" {
        return;
    }
    let what = format!("{}.v1.{}", kind.plural, kind.group);
    let more = json!({"metadata": {"annotations": {"told": "yes"}},
        "status": {"conditions": with(&held, "Patched")}});
    patch(cluster, &[&what, "lives-1", "--subresource=status"], &more);
    let held = raw(cluster, path);
    assert!(has(&held, "Patched"), "{held}");
}
