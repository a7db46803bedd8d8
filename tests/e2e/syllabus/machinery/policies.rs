//! Admission policies: what they refuse and change, and what is told of their types.

use serde_json::{Value, json};

use super::{SECONDS, create, refused, set};
use crate::cluster::{Cluster, KUBECONFIG};
use crate::machine::{eventually, told};

pub fn all(cluster: &Cluster) {
    cluster.k("create namespace policies");
    cluster.k("label namespace policies judged=yes");
    validate(cluster);
    check_types(cluster);
    mutate(cluster);
    cluster.k("delete validatingadmissionpolicybindings,validatingadmissionpolicies --all");
    cluster.k("delete namespace policies");
}

fn registered(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": {"name": name}, "spec": spec})
}

/// A policy for Deployments, bound to the namespaces that are judged.
fn bound(kind: &str, name: &str, more: Value) -> Vec<Value> {
    let mut spec = more;
    // Who changes an object at each update would change it for ever: controllers write it, too.
    let operations = match kind {
        "MutatingAdmissionPolicy" => json!(["CREATE"]),
        _ => json!(["CREATE", "UPDATE"]),
    };
    spec["matchConstraints"] = json!({"resourceRules": [{"apiGroups": ["apps"],
        "apiVersions": ["v1"], "operations": operations, "resources": ["deployments"]}]});
    let mut binding = json!({"policyName": name,
        "matchResources": {"namespaceSelector": {"matchLabels": {"judged": "yes"}}}});
    if kind == "ValidatingAdmissionPolicy" {
        binding["validationActions"] = json!(["Deny"]);
    }
    vec![registered(kind, name, spec), registered(&format!("{kind}Binding"), name, binding)]
}

fn deployment(name: &str, replicas: u32) -> Value {
    let mut deployment = set("Deployment", name, replicas);
    deployment["metadata"]["namespace"] = "policies".into();
    deployment["spec"]["template"]["spec"]["schedulerName"] = "nobody".into();
    deployment
}

/// Waits until a policy is known: it is, when it refuses.
fn until_refused(cluster: &Cluster, object: &Value) -> String {
    let words =
        [&cluster.kubectl, "--kubeconfig", KUBECONFIG, "create", "--dry-run=server", "-f", "-"];
    eventually("the policy counts", SECONDS, || {
        let output = cluster.machine.run_with_input(&words, &object.to_string());
        if output.status.success() { Err("it is let through".into()) } else { Ok(told(&output)) }
    })
}

fn validate(cluster: &Cluster) {
    let limit = json!({"validations": [
        {"expression": "object.spec.replicas > 1", "messageExpression": "'wants replicas > 1'"},
        {"expression": "namespaceObject.metadata.name == 'policies'", "message": "elsewhere"}]});
    let variables = json!({
        "variables": [{"name": "replicas", "expression": "object.spec.replicas"},
            {"name": "isOdd", "expression": "variables.replicas % 2 == 1"}],
        "validations": [{"expression": "variables.replicas > 1"}, {"expression": "variables.isOdd"}]});
    create(cluster, bound("ValidatingAdmissionPolicy", "replicas.example.com", limit));
    let said = until_refused(cluster, &deployment("one", 1));
    assert!(
        said.contains(
            "ValidatingAdmissionPolicy 'replicas.example.com' with binding \
             'replicas.example.com' denied request: wants replicas > 1"
        ),
        "{said}"
    );
    create(cluster, vec![deployment("two", 2)]);
    create(cluster, bound("ValidatingAdmissionPolicy", "odd.example.com", variables));
    let said = until_refused(cluster, &deployment("four", 4));
    assert!(said.contains("failed expression: variables.isOdd"), "{said}");
    create(cluster, vec![deployment("three", 3)]);
    // Who scales by the subresource changes no Deployment; who scales by an update does.
    cluster.k("scale deployment three -n policies --replicas=4");
    let said = cluster.refused(&[
        "patch",
        "deployment",
        "three",
        "-n",
        "policies",
        "-p",
        r#"{"spec":{"replicas":6}}"#,
    ]);
    assert!(said.contains("failed expression: variables.isOdd"), "{said}");
    // Nobody judges what is not bound.
    cluster.k("create deployment one --image=web:1 --replicas=1");
    cluster.k("delete deployment one");
    cluster.k("delete validatingadmissionpolicybindings --all");
    eventually("it counts no more", SECONDS, || {
        let made = cluster.try_kubectl(&[
            "create",
            "deployment",
            "free",
            "-n",
            "policies",
            "--image=web:1",
            "--replicas=0",
        ]);
        made.map(|_| ())
    });
}

fn check_types(cluster: &Cluster) {
    let wrong = json!({"validations": [{"expression": "object.spec.replicas > '1'"},
        {"expression": "object.metadata.name.startsWith('a')"}]});
    let [policy, _]: [Value; 2] =
        bound("ValidatingAdmissionPolicy", "wrong.example.com", wrong).try_into().unwrap();
    create(cluster, vec![policy]);
    let warnings = |generation: i64| {
        eventually("the types are checked", SECONDS, || {
            let policy = cluster.json("get validatingadmissionpolicy wrong.example.com");
            let status = &policy["status"];
            match status["observedGeneration"] == generation {
                true => Ok(status["typeChecking"]["expressionWarnings"].clone()),
                false => Err(status.to_string()),
            }
        })
    };
    let found = warnings(1);
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["fieldRef"], "spec.validations[0].expression");
    let warning = found[0]["warning"].as_str().unwrap();
    assert!(
        warning.starts_with(
            "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching \
             overload for '_>_' applied to '(int, string)'"
        ),
        "{warning}"
    );
    let right = r#"[{"op":"replace","path":"/spec/validations/0/expression","value":"object.spec.replicas > 1"}]"#;
    cluster.kubectl(&[
        "patch",
        "validatingadmissionpolicy",
        "wrong.example.com",
        "--type=json",
        "-p",
        right,
    ]);
    assert_eq!(warnings(2), Value::Null);
}

fn mutate(cluster: &Cluster) {
    let kind = "MutatingAdmissionPolicy";
    let labelled = json!({"failurePolicy": "Fail", "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            "Object{metadata: Object.metadata{labels: {'mutated': 'yes'}}, \
             spec: Object.spec{replicas: object.spec.replicas + 1}}"}}]});
    let annotated = json!({"failurePolicy": "Fail", "reinvocationPolicy": "Never",
    "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
        "[JSONPatch{op: 'add', path: '/metadata/annotations', value: {'example.com/by': 'us'}}]"
    }}]});
    create(cluster, bound(kind, "labels.example.com", labelled));
    create(cluster, bound(kind, "notes.example.com", annotated));
    let words = [
        &cluster.kubectl,
        "--kubeconfig",
        KUBECONFIG,
        "create",
        "--dry-run=server",
        "-o",
        "json",
        "-f",
        "-",
    ];
    let object = deployment("changed", 2).to_string();
    eventually("both policies count", SECONDS, || {
        let output = cluster.machine.run_with_input(&words, &object);
        let made: Value = serde_json::from_slice(&output.stdout).map_err(|_| told(&output))?;
        let metadata = &made["metadata"];
        let is_so = metadata["labels"]["mutated"] == "yes"
            && metadata["annotations"]["example.com/by"] == "us"
            && made["spec"]["replicas"] == 3;
        if is_so { Ok(()) } else { Err(made.to_string()) }
    });
    create(cluster, vec![deployment("changed", 2)]);
    let made = cluster.json("get deployment changed -n policies");
    assert_eq!(
        (&made["spec"]["replicas"], &made["metadata"]["labels"]["mutated"]),
        (&json!(3), &json!("yes"))
    );
    // The binding says where.
    cluster.k("create deployment unchanged --image=web:1 --replicas=0");
    let other = cluster.json("get deployment unchanged");
    assert_eq!(other["spec"]["replicas"], 0);
    cluster.k("delete deployment unchanged");
    cluster.k("delete mutatingadmissionpolicybindings,mutatingadmissionpolicies --all");
    let two = refused(cluster, &deployment("two", 2));
    assert!(two.contains("already exists"), "{two}");
}
