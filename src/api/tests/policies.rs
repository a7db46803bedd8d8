//! Admission policies as clients meet them: what they refuse, warn of, and change.

#![allow(clippy::unwrap_used)]

use api::serve::Shared;
use http::Method;
use serde_json::{Value, json};
use support::{Answer, ask};

#[path = "support/server.rs"]
mod support;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn server() -> (tempfile::TempDir, Shared) {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    (dir, server)
}

fn rules(operations: &[&str], resource: &str) -> Value {
    json!({"resourceRules": [{"apiGroups": ["*"], "apiVersions": ["*"],
        "operations": operations, "resources": [resource]}]})
}

async fn add(server: &Shared, plural: &str, kind: &str, name: &str, spec: Value) -> Answer {
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": {"name": name}, "spec": spec});
    ask(server, Method::POST, &format!("{GROUP}/{plural}"), object).await
}

async fn policy(server: &Shared, name: &str, spec: Value) {
    let answer =
        add(server, "validatingadmissionpolicies", "ValidatingAdmissionPolicy", name, spec).await;
    assert_eq!(answer.status, 201, "{}", answer.message());
}

async fn bind(server: &Shared, policy: &str, mut spec: Value) {
    spec["policyName"] = policy.into();
    if spec["validationActions"].is_null() {
        spec["validationActions"] = json!(["Deny"]);
    }
    let (plural, kind) = ("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding");
    let answer = add(server, plural, kind, &format!("{policy}-all"), spec).await;
    assert_eq!(answer.status, 201, "{}", answer.message());
}

async fn map(server: &Shared, name: &str, data: Value) -> Answer {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"name": name}}, "data": data});
    ask(server, Method::POST, MAPS, object).await
}

#[tokio::test]
async fn a_policy_counts_only_while_it_is_bound_and_as_it_is_now() {
    let (_dir, server) = server().await;
    let spec = |most: u32| {
        json!({"matchConstraints": rules(&["CREATE"], "configmaps"),
            "validations": [{"expression": format!("size(object.data) < {most}")}]})
    };
    policy(&server, "few", spec(2)).await;
    assert_eq!(map(&server, "a", json!({"a": "", "b": ""})).await.status, 201);
    bind(&server, "few", json!({})).await;
    let answer = map(&server, "b", json!({"a": "", "b": ""})).await;
    assert_eq!(answer.status, 422);
    assert_eq!(
        answer.message(),
        "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'few' with binding 'few-all' denied request: failed expression: size(object.data) < 2"
    );
    // The next revision counts at once.
    let path = format!("{GROUP}/validatingadmissionpolicies/few");
    let answer = ask(&server, Method::PATCH, &path, json!({"spec": spec(3)})).await;
    assert_eq!(answer.status, 200, "{}", answer.message());
    assert_eq!(map(&server, "c", json!({"a": "", "b": ""})).await.status, 201);
    assert_eq!(map(&server, "d", json!({"a": "", "b": "", "c": ""})).await.status, 422);
    let metrics = support::send(&server, "admin", Method::GET, "/metrics", &[], "").await;
    let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
    let of = r#"{policy="few",policy_binding="few-all",error_type="no_error",enforcement_action="deny"}"#;
    for name in ["check_total", "check_duration_seconds_count"] {
        let line = format!("apiserver_validating_admission_policy_{name}{of} 2\n");
        assert!(metrics.contains(&line), "{line}");
    }
    let path = format!("{GROUP}/validatingadmissionpolicybindings/few-all");
    assert_eq!(ask(&server, Method::DELETE, &path, Value::Null).await.status, 200);
    assert_eq!(map(&server, "e", json!({"a": "", "b": "", "c": ""})).await.status, 201);
}

#[tokio::test]
async fn an_expression_that_fails_refuses_or_not_as_the_policy_says() {
    let (_dir, server) = server().await;
    let spec = |failure: &str| {
        json!({"matchConstraints": rules(&["CREATE"], "configmaps"), "failurePolicy": failure,
            "validations": [{"expression": "object.data.missing == ''"}]})
    };
    policy(&server, "strict", spec("Fail")).await;
    bind(
        &server,
        "strict",
        json!({"matchResources": {
        "objectSelector": {"matchLabels": {"name": "strict"}}}}),
    )
    .await;
    policy(&server, "loose", spec("Ignore")).await;
    bind(
        &server,
        "loose",
        json!({"matchResources": {
        "objectSelector": {"matchLabels": {"name": "loose"}}}}),
    )
    .await;
    let answer = map(&server, "strict", json!({"a": ""})).await;
    assert_eq!(answer.status, 422);
    assert!(
        answer.message().ends_with(
            "denied request: expression 'object.data.missing == ''' resulted in error: no such key: missing"
        ),
        "{}",
        answer.message()
    );
    assert_eq!(map(&server, "loose", json!({"a": ""})).await.status, 201);
    assert_eq!(map(&server, "other", json!({"a": ""})).await.status, 201);
}

#[tokio::test]
async fn requests_are_told_by_operation_name_and_version() {
    let (_dir, server) = server().await;
    policy(&server, "kept", json!({
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
            "operations": ["DELETE", "UPDATE"], "resources": ["configmaps"],
            "resourceNames": ["kept"]}]},
        "validations": [
            {"expression": "request.operation != 'DELETE' || oldObject.data.free == 'yes'",
             "messageExpression": "request.name + ' in ' + namespaceObject.metadata.name + ' stays'",
             "reason": "Forbidden"},
            {"expression": "object == null || object.data.free == oldObject.data.free || authorizer.group('').resource('secrets').check('get').allowed()"},
        ],
    }))
    .await;
    bind(&server, "kept", json!({})).await;
    for name in ["kept", "other"] {
        assert_eq!(map(&server, name, json!({"free": "no"})).await.status, 201);
    }
    let delete = |name: &str| format!("{MAPS}/{name}");
    assert_eq!(ask(&server, Method::DELETE, &delete("other"), Value::Null).await.status, 200);
    let answer = ask(&server, Method::DELETE, &delete("kept"), Value::Null).await;
    assert_eq!(answer.status, 403);
    assert!(answer.message().ends_with("denied request: kept in default stays"));
    let free = json!({"data": {"free": "yes"}});
    assert_eq!(ask(&server, Method::PATCH, &delete("kept"), free).await.status, 200);
    assert_eq!(ask(&server, Method::DELETE, &delete("kept"), Value::Null).await.status, 200);

    // A rule for one version is about the other versions of the kind, too.
    policy(&server, "scaled", json!({
        "matchConstraints": {"resourceRules": [{"apiGroups": ["autoscaling"],
            "apiVersions": ["v2"], "operations": ["CREATE"],
            "resources": ["horizontalpodautoscalers"]}]},
        "validations": [{"expression": "object.spec.metrics.all(m, m.resource.target.averageUtilization > 50)",
            "message": "too eager"}],
    }))
    .await;
    bind(&server, "scaled", json!({})).await;
    let scaler = |percent: u32| {
        json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "s"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": percent,
                "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}})
    };
    let path = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let answer = ask(&server, Method::POST, path, scaler(10)).await;
    assert_eq!(
        (answer.status, answer.message().ends_with("too eager")),
        (422, true),
        "{}",
        answer.message()
    );
    assert_eq!(ask(&server, Method::POST, path, scaler(80)).await.status, 201);
}

#[tokio::test]
async fn parameters_come_from_objects_by_name_and_by_selector() {
    let (_dir, server) = server().await;
    for (name, word) in [("one", "red"), ("two", "blue")] {
        let object = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"word": word, "limit": "yes"}}});
        assert_eq!(ask(&server, Method::POST, "/api/v1/namespaces", object).await.status, 201);
    }
    policy(
        &server,
        "words",
        json!({
            "paramKind": {"apiVersion": "v1", "kind": "Namespace"},
            "matchConstraints": rules(&["CREATE"], "configmaps"),
            "variables": [
                {"name": "word", "expression": "params.metadata.labels.word"},
                {"name": "used", "expression": "has(object.data) && variables.word in object.data"},
            ],
            "validations": [{"expression": "variables.used",
                "messageExpression": "'lacks ' + variables.word"}],
        }),
    )
    .await;
    bind(
        &server,
        "words",
        json!({"paramRef": {"parameterNotFoundAction": "Deny",
        "selector": {"matchLabels": {"limit": "yes"}}}}),
    )
    .await;
    assert_eq!(map(&server, "a", json!({"red": "", "blue": ""})).await.status, 201);
    let answer = map(&server, "b", json!({"red": ""})).await;
    assert!(answer.message().ends_with("denied request: lacks blue"), "{}", answer.message());
    let path = format!("{GROUP}/validatingadmissionpolicybindings/words-all");
    let named = json!({"spec": {"paramRef": {"name": "one", "selector": null}}});
    assert_eq!(ask(&server, Method::PATCH, &path, named).await.status, 200);
    assert_eq!(map(&server, "b", json!({"red": ""})).await.status, 201);
    let gone = json!({"spec": {"paramRef": {"name": "nobody"}}});
    assert_eq!(ask(&server, Method::PATCH, &path, gone).await.status, 200);
    let answer = map(&server, "c", json!({})).await;
    assert!(answer.message().ends_with(
        "denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
    ));
    let allowed = json!({"spec": {"paramRef": {"parameterNotFoundAction": "Allow"}}});
    assert_eq!(ask(&server, Method::PATCH, &path, allowed).await.status, 200);
    assert_eq!(map(&server, "c", json!({})).await.status, 201);
}

#[tokio::test]
async fn warnings_are_headers_and_repairs_are_never_refused() {
    let (_dir, server) = server().await;
    policy(
        &server,
        "no",
        json!({"matchConstraints": rules(&["*"], "*"),
        "validations": [{"expression": "false", "message": "never"}]}),
    )
    .await;
    bind(&server, "no", json!({"validationActions": ["Warn", "Audit"]})).await;
    let answer = map(&server, "a", json!({})).await;
    assert_eq!(answer.status, 201);
    assert_eq!(
        answer.warnings(),
        [
            "299 - \"Validation failed for ValidatingAdmissionPolicy 'no' with binding 'no-all': never\""
        ]
    );
    // A refusal by somebody else carries the warning, too.
    let message = json!({"expression": "object.metadata.name != 'stop'", "message": "stopped"});
    let spec =
        json!({"matchConstraints": rules(&["CREATE"], "configmaps"), "validations": [message]});
    policy(&server, "stop", spec).await;
    bind(&server, "stop", json!({})).await;
    let answer = map(&server, "stop", json!({})).await;
    assert_eq!((answer.status, answer.warnings().len()), (422, 1));
    let path = format!("{GROUP}/validatingadmissionpolicybindings/no-all");
    let deny = json!({"spec": {"validationActions": ["Deny"]}});
    assert_eq!(ask(&server, Method::PATCH, &path, deny).await.status, 200);
    assert_eq!(map(&server, "b", json!({})).await.status, 422);
    // Who locks everybody out can still open the door.
    assert_eq!(ask(&server, Method::DELETE, &path, Value::Null).await.status, 200);
    assert_eq!(map(&server, "b", json!({})).await.status, 201);
}

async fn mutation(server: &Shared, name: &str, spec: Value) -> Answer {
    let (plural, kind) = ("mutatingadmissionpolicies", "MutatingAdmissionPolicy");
    let answer = add(server, plural, kind, name, spec).await;
    if answer.status == 201 {
        let (plural, kind) = ("mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding");
        let bound = add(server, plural, kind, name, json!({"policyName": name})).await;
        assert_eq!(bound.status, 201, "{}", bound.message());
    }
    answer
}

#[tokio::test]
async fn mutations_apply_and_patch_and_look_again() {
    let (_dir, server) = server().await;
    let apply = |expression: &str| json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}});
    let patch = |expression: &str| json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}});
    let spec = |again: &str, mutations: Vec<Value>| {
        json!({"matchConstraints": rules(&["CREATE"], "configmaps"), "failurePolicy": "Fail",
            "reinvocationPolicy": again, "mutations": mutations})
    };
    // Asked again, the first sees what the second did.
    let answer = mutation(&server, "a-late", spec("IfNeeded", vec![apply(
        "has(object.metadata.annotations) && 'mark/b' in object.metadata.annotations ? Object{metadata: Object.metadata{annotations: {'late': 'yes'}}} : Object{}",
    )]))
    .await;
    assert_eq!(answer.status, 201, "{}", answer.message());
    let answer = mutation(&server, "b-mark", spec("Never", vec![
        apply("Object{metadata: Object.metadata{annotations: {'first': object.metadata.name}}}"),
        patch("[JSONPatch{op: 'test', path: '/metadata/annotations/first', value: object.metadata.name}, JSONPatch{op: 'add', path: '/metadata/annotations/' + jsonpatch.escapeKey('mark/b'), value: 'done'}]"),
        patch("[JSONPatch{op: 'test', path: '/metadata/name', value: 'other'}, JSONPatch{op: 'remove', path: '/metadata/annotations'}]"),
    ]))
    .await;
    assert_eq!(answer.status, 201, "{}", answer.message());
    let made = map(&server, "m", json!({"a": "1"})).await;
    assert_eq!(made.status, 201, "{}", made.message());
    let annotations = made.json()["metadata"]["annotations"].clone();
    assert_eq!(annotations, json!({"first": "m", "mark/b": "done", "late": "yes"}));
    let metrics = support::send(&server, "admin", Method::GET, "/metrics", &[], "").await;
    let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
    // The first policy was asked twice.
    for (name, times) in [("a-late", 2), ("b-mark", 1)] {
        let line = format!(
            "apiserver_mutating_admission_policy_check_total{{policy=\"{name}\",policy_binding=\"{name}\",error_type=\"no_error\"}} {times}\n"
        );
        assert!(metrics.contains(&line), "{line}");
    }

    let answer = mutation(
        &server,
        "c-broken",
        spec("Never", vec![apply("Object{data: {'x': object.data.nothing}}")]),
    )
    .await;
    assert_eq!(answer.status, 201, "{}", answer.message());
    let answer = map(&server, "n", json!({"a": "1"})).await;
    assert_eq!(answer.status, 403, "{}", answer.message());
    assert!(answer.message().contains("no such key: nothing"), "{}", answer.message());
}

#[tokio::test]
async fn what_cannot_work_is_refused_when_it_is_written() {
    let (_dir, server) = server().await;
    let good = || rules(&["CREATE"], "configmaps");
    let refused = |kind: &'static str, spec: Value| {
        let server = server.clone();
        async move {
            let plural = format!("{}s", kind.to_lowercase()).replace("policys", "policies");
            let answer = add(&server, &plural, kind, "x", spec).await;
            assert_eq!(answer.status, 422, "{}", answer.message());
            answer.message()
        }
    };
    let message = refused(
        "ValidatingAdmissionPolicy",
        json!({"matchConstraints": good(),
        "validations": [{"expression": "object.x ==", "reason": "Odd"}]}),
    )
    .await;
    assert!(message.contains("spec.validations[0].expression: Invalid value: \"object.x ==\": compilation failed: ERROR: <input>:1:12: Syntax error: mismatched input '<EOF>'"), "{message}");
    assert!(message.contains("spec.validations[0].reason: Unsupported value: \"Odd\": supported values: \"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\""), "{message}");
    let message = refused(
        "ValidatingAdmissionPolicy",
        json!({"matchConstraints": good(),
        "validations": [{"expression": "1", "messageExpression": "authorizer"}]}),
    )
    .await;
    assert!(message.contains("must evaluate to bool but got int"), "{message}");
    assert!(
        message.contains("undeclared reference to 'authorizer' (in container '')"),
        "{message}"
    );
    let message = refused("ValidatingAdmissionPolicy", json!({})).await;
    assert!(message.contains("spec.matchConstraints: Required value"), "{message}");
    assert!(
        message.contains("validations or auditAnnotations must contain at least one item"),
        "{message}"
    );
    let message = refused(
        "ValidatingAdmissionPolicyBinding",
        json!({"policyName": "x",
        "validationActions": ["Deny", "Warn", "Deny"]}),
    )
    .await;
    assert!(message.contains("must not contain both Deny and Warn"), "{message}");
    assert!(message.contains("spec.validationActions[2]: Duplicate value: \"Deny\""), "{message}");
    let message = refused(
        "MutatingAdmissionPolicy",
        json!({"matchConstraints": good(),
        "reinvocationPolicy": "Never", "mutations": [{"patchType": "JSONPatch",
            "jsonPatch": {"expression": "Object{}"}}]}),
    )
    .await;
    assert!(message.contains("must evaluate to list(JSONPatch) but got Object"), "{message}");
    let webhook = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "w"},
        "webhooks": [{"name": "short", "clientConfig": {"url": "http://a"}, "sideEffects": "Some",
            "admissionReviewVersions": ["v9"], "timeoutSeconds": 31,
            "rules": [{"apiGroups": ["*", "a"], "apiVersions": [], "operations": ["PATCH"],
                "resources": ["pods", "*"]}]}]});
    let path = format!("{GROUP}/validatingwebhookconfigurations");
    let message = ask(&server, Method::POST, &path, webhook).await.message();
    for part in [
        "webhooks[0].name: Invalid value: \"short\": should be a domain with at least three segments separated by dots",
        "webhooks[0].rules[0].operations[0]: Unsupported value: \"PATCH\"",
        "webhooks[0].rules[0].apiGroups: Invalid value: [\"*\",\"a\"]: if '*' is present, must not specify other API groups",
        "webhooks[0].rules[0].apiVersions: Required value",
        "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
        "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
        "'https' is the only allowed URL scheme; desired format: https://host[/path]",
        "webhooks[0].admissionReviewVersions: Invalid value: [\"v9\"]: must include at least one of v1, v1beta1",
    ] {
        assert!(message.contains(part), "{part}\nis not in\n{message}");
    }
}

#[tokio::test]
async fn connections_are_judged_before_they_are_made() {
    let (_dir, server) = server().await;
    policy(
        &server,
        "no-shell",
        json!({"matchConstraints": rules(&["CONNECT"], "pods/exec"),
            "validations": [{"expression": "!('sh' in object.command)", "reason": "Forbidden",
                "messageExpression": "request.kind.kind + ' to ' + request.name + ' with a shell'"}]}),
    )
    .await;
    bind(&server, "no-shell", json!({})).await;
    let exec = |command: &str| format!("/api/v1/namespaces/default/pods/p/exec?command={command}");
    let answer = ask(&server, Method::POST, &exec("sh"), Value::Null).await;
    assert_eq!(answer.status, 403, "{}", answer.message());
    let message = answer.message();
    assert!(message.ends_with("denied request: PodExecOptions to p with a shell"), "{message}");
    // What is let through finds that there is no such pod.
    assert_eq!(ask(&server, Method::POST, &exec("ls"), Value::Null).await.status, 404);
    policy(
        &server,
        "stay",
        json!({"matchConstraints": rules(&["CREATE"], "pods/eviction"),
            "validations": [{"expression": "request.kind.group != 'policy' || object.metadata.name != request.name",
                "message": "pods stay"}]}),
    )
    .await;
    bind(&server, "stay", json!({})).await;
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let path = "/api/v1/namespaces/default/pods/p/eviction";
    let answer = ask(&server, Method::POST, path, eviction).await;
    assert!(answer.message().ends_with("denied request: pods stay"), "{}", answer.message());
}

#[tokio::test]
async fn bindings_are_judged_and_changed_as_what_they_are() {
    let (_dir, server) = server().await;
    let only = |expression: &str| {
        json!({"matchConstraints": rules(&["CREATE"], "pods/binding"),
            "validations": [{"expression": expression,
                "messageExpression": "request.kind.kind + ' of ' + object.metadata.name"}]})
    };
    policy(&server, "node", only("object.target.name != 'forbidden'")).await;
    bind(&server, "node", json!({})).await;
    let mark = json!({"matchConstraints": rules(&["CREATE"], "pods/binding"),
        "failurePolicy": "Fail", "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            "Object{metadata: Object.metadata{annotations: {'node': object.target.name}}}"}}]});
    let answer = mutation(&server, "mark", mark).await;
    assert_eq!(answer.status, 201, "{}", answer.message());
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(ask(&server, Method::POST, pods, pod).await.status, 201);
    let to = |node: &str, name: &str| {
        json!({"kind": "Binding", "metadata": {"name": name, "labels": {"zone": "z"}},
            "target": {"kind": "Node", "name": node}})
    };
    let path = format!("{pods}/p/binding");
    let answer = ask(&server, Method::POST, &path, to("forbidden", "p")).await;
    assert!(answer.message().ends_with("denied request: Binding of p"), "{}", answer.message());
    let answer = ask(&server, Method::POST, &path, to("n", "q")).await;
    assert_eq!(answer.message(), "name in URL does not match name in Binding object");
    let answer = ask(&server, Method::POST, &path, to("n", "p")).await;
    assert_eq!(answer.status, 201, "{}", answer.message());
    let bound = ask(&server, Method::GET, &format!("{pods}/p"), Value::Null).await.json();
    assert_eq!(bound["spec"]["nodeName"], "n");
    assert_eq!(bound["metadata"]["annotations"], json!({"node": "n"}));
    assert_eq!(bound["metadata"]["labels"], json!({"zone": "z"}));
    let answer = ask(&server, Method::POST, &path, to("m", "p")).await;
    assert_eq!(answer.status, 409, "{}", answer.message());
}

/// Waits until a policy's status is of its newest generation, and gives what it says.
async fn checked(server: &Shared, name: &str) -> Value {
    let path = format!("{GROUP}/validatingadmissionpolicies/{name}");
    for _ in 0..200 {
        let policy = ask(server, Method::GET, &path, Value::Null).await.json();
        if policy["status"]["observedGeneration"] == policy["metadata"]["generation"] {
            return policy;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{name} is not looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_what_is_wrong_with_the_types() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |config| {
        config.checks_policies = true;
    })
    .await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "lamps.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "lamps", "kind": "Lamp"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"bulbs": {"type": "integer"}}}}}}}]},
    });
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(ask(&server, Method::POST, path, definition).await.status, 201);
    let lamps = "/apis/example.com/v1/namespaces/default/lamps";
    for _ in 0..200 {
        if ask(&server, Method::GET, lamps, Value::Null).await.status == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let spec = |text: &str| {
        json!({
            "matchConstraints": {"resourceRules": [{"apiGroups": ["example.com"],
                "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["lamps"]}]},
            "validations": [{"expression": text}]})
    };
    policy(&server, "lamps", spec("object.spec.bulbs < '3' && has(object.metadata.labels)")).await;
    let found = checked(&server, "lamps").await;
    let warnings = &found["status"]["typeChecking"]["expressionWarnings"];
    assert_eq!(
        *warnings,
        json!([{"fieldRef": "spec.validations[0].expression", "warning":
            "example.com/v1, Kind=Lamp: ERROR: <input>:1:19: found no matching overload for '_<_' applied to '(int, string)'\n | object.spec.bulbs < '3' && has(object.metadata.labels)\n | ..................^\n"}])
    );
    let managed = found["metadata"]["managedFields"].as_array().unwrap();
    let by = |entry: &&Value| entry["manager"] == "validatingadmissionpolicy-status";
    let entry = managed.iter().find(by).unwrap();
    assert_eq!((&entry["operation"], &entry["subresource"]), (&json!("Apply"), &json!("status")));

    // The next generation is looked at as well.
    let path = format!("{GROUP}/validatingadmissionpolicies/lamps");
    let patch = json!({"spec": spec("object.spec.bulbs < 3")});
    assert_eq!(ask(&server, Method::PATCH, &path, patch).await.status, 200);
    let found = checked(&server, "lamps").await;
    assert_eq!(found["status"]["observedGeneration"], 2);
    assert!(found["status"]["typeChecking"]["expressionWarnings"].is_null());
    policy(&server, "well", spec("object.spec.bulbs < 3")).await;
    let found = checked(&server, "well").await;
    assert_eq!(found["status"], json!({"observedGeneration": 1, "typeChecking": {}}));
}

/// Deletions run beside each other: one that is refused must not cut others off when they are
/// on disk and have still to give back their addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_ends_a_deletion_of_many_and_harms_none_of_them() {
    let (_dir, server) = server().await;
    let spec = json!({"matchConstraints": rules(&["DELETE"], "services"),
        "validations": [{"expression": "oldObject.metadata.name != 's07'"}]});
    policy(&server, "keeps", spec).await;
    bind(&server, "keeps", json!({})).await;
    let path = "/api/v1/namespaces/default/services";
    let service = |n: u8| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{n:02}"),
            "labels": {"one": "of-many"}},
            "spec": {"clusterIP": format!("10.43.7.{n}"), "ports": [{"port": 80}]}})
    };
    for n in 1..=40 {
        let made = ask(&server, Method::POST, path, service(n)).await;
        assert_eq!(made.status, 201, "{}", made.message());
    }
    let all = format!("{path}?labelSelector=one%3Dof-many");
    let refused = ask(&server, Method::DELETE, &all, Value::Null).await;
    assert_eq!(refused.status, 422, "{}", refused.message());
    let kept = ask(&server, Method::GET, &format!("{path}/s07"), Value::Null).await;
    assert_eq!(kept.status, 200);
    let mut gone = 0;
    for n in 1..=40 {
        let found = ask(&server, Method::GET, &format!("{path}/s{n:02}"), Value::Null).await;
        if found.status == 404 {
            gone += 1;
            let again = ask(&server, Method::POST, path, service(n)).await;
            assert_eq!(again.status, 201, "{}", again.message());
        }
    }
    assert!((1..40).contains(&gone), "{gone}");
}
