//! Admission webhooks over real TLS: what they are asked, and what their answers do.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api::flags::Flags;
use api::serve::Shared;
use hook::{Hook, Reply, allow, patch};
use http::Method;
use serde_json::{Value, json};
use support::{Answer, ask};

#[path = "support/hook.rs"]
mod hook;
#[path = "support/server.rs"]
mod support;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn server() -> (tempfile::TempDir, Shared) {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    (dir, server)
}

/// Registers a webhook for configmaps; `more` are further fields of it.
async fn register(server: &Shared, kind: &str, name: &str, client: Value, more: Value) {
    let mut webhook = json!({
        "name": format!("{name}.example.com"), "clientConfig": client, "sideEffects": "None",
        "admissionReviewVersions": ["v2", "v1"], "timeoutSeconds": 5,
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE", "DELETE"],
            "resources": ["configmaps"]}],
    });
    for (key, value) in more.as_object().unwrap() {
        webhook[key] = value.clone();
    }
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": format!("{kind}WebhookConfiguration"), "metadata": {"name": name},
        "webhooks": [webhook]});
    let path = format!(
        "/apis/admissionregistration.k8s.io/v1/{}webhookconfigurations",
        kind.to_lowercase()
    );
    let answer = ask(server, Method::POST, &path, object).await;
    assert_eq!(answer.status, 201, "{}", answer.message());
}

async fn map(server: &Shared, name: &str, query: &str) -> Answer {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"a": "1"}});
    ask(server, Method::POST, &format!("{MAPS}{query}"), object).await
}

#[tokio::test]
async fn a_webhook_is_told_the_request_and_its_patch_is_made() {
    let (_dir, server) = server().await;
    let hook = Hook::start("h", |request| match request["operation"].as_str() {
        Some("CREATE") => {
            patch(json!([{"op": "add", "path": "/metadata/labels", "value": {"seen": "yes"}}]))
        }
        _ => allow(),
    })
    .await;
    register(&server, "Mutating", "m", hook.url(), json!({})).await;
    let answer = map(&server, "x", "").await;
    assert_eq!(answer.status, 201, "{}", answer.message());
    assert_eq!(answer.json()["metadata"]["labels"], json!({"seen": "yes"}));
    let review = hook.last();
    assert_eq!(
        (&review["kind"], &review["apiVersion"]),
        (&json!("AdmissionReview"), &json!("admission.k8s.io/v1"))
    );
    let request = &review["request"];
    assert_eq!(request["operation"], "CREATE");
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(
        request["resource"],
        json!({"group": "", "version": "v1", "resource": "configmaps"})
    );
    assert_eq!(request["userInfo"]["username"], "admin");
    assert_eq!((&request["name"], &request["namespace"]), (&json!("x"), &json!("default")));
    assert_eq!(
        (&request["object"]["data"]["a"], &request["oldObject"]),
        (&json!("1"), &Value::Null)
    );
    assert_eq!(
        (&request["dryRun"], &request["options"]["kind"]),
        (&json!(false), &json!("CreateOptions"))
    );

    let dry = map(&server, "y", "?dryRun=All").await;
    assert_eq!((dry.status, &hook.last()["request"]["dryRun"]), (201, &json!(true)));
    let path = format!("{MAPS}/x");
    assert_eq!(ask(&server, Method::PATCH, &path, json!({"data": {"b": "2"}})).await.status, 200);
    let request = &hook.last()["request"];
    assert_eq!(request["operation"], "UPDATE");
    assert_eq!(request["oldObject"]["data"], json!({"a": "1"}));
    assert_eq!(request["object"]["data"], json!({"a": "1", "b": "2"}));
    // One connection was enough for all of them.
    assert_eq!(hook.connections.load(Ordering::SeqCst), 1);
    let metrics = base::metrics::render(base::metrics::Format::Prometheus);
    let counted = r#"apiserver_admission_webhook_request_total{name="m.example.com",type="admit",operation="CREATE",code="200",rejected="false"} 2"#;
    assert!(metrics.contains(counted));
}

#[tokio::test]
async fn a_refusal_is_the_webhooks_and_warnings_reach_the_client() {
    let (_dir, server) = server().await;
    let hook = Hook::start("h", |request| match request["name"].as_str() {
        Some("bad") => Reply::Response(json!({"allowed": false,
            "status": {"code": 403, "reason": "Forbidden", "message": "not this one"}})),
        Some("silent") => Reply::Response(json!({"allowed": false})),
        _ => Reply::Response(json!({"allowed": true, "warnings": ["take care"]})),
    })
    .await;
    register(&server, "Validating", "v", hook.url(), json!({})).await;
    let answer = map(&server, "bad", "").await;
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.message(),
        "admission webhook \"v.example.com\" denied the request: not this one"
    );
    let answer = map(&server, "silent", "").await;
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.message(),
        "admission webhook \"v.example.com\" denied the request without explanation"
    );
    let answer = map(&server, "good", "").await;
    assert_eq!((answer.status, answer.warnings()), (201, vec!["299 - \"take care\"".to_owned()]));
    let path = format!("{MAPS}/good");
    assert_eq!(ask(&server, Method::DELETE, &path, Value::Null).await.status, 200);
    let request = &hook.last()["request"];
    assert_eq!((&request["operation"], &request["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(request["oldObject"]["metadata"]["name"], "good");
}

#[tokio::test]
async fn a_webhook_that_fails_stops_a_request_or_not_as_it_is_registered() {
    let (_dir, server) = server().await;
    let hook = Hook::start("h", |request| match request["name"].as_str().unwrap() {
        "slow" => Reply::Silence,
        "error" => Reply::Raw(500, "out of order".into()),
        "text" => Reply::Raw(200, "hello".into()),
        "huge" => Reply::Raw(200, " ".repeat(20 << 20)),
        "deep" => Reply::Raw(200, "[".repeat(1 << 20)),
        "stranger" => Reply::Raw(
            200,
            json!({"kind": "AdmissionReview",
            "apiVersion": "admission.k8s.io/v1",
            "response": {"uid": "other", "allowed": true}})
            .to_string(),
        ),
        "patch" => Reply::Response(json!({"allowed": true, "patch": "e30="})),
        "kind" => patch(json!([{"op": "replace", "path": "/kind", "value": "Secret"}])),
        "type" => patch(json!([{"op": "add", "path": "/data", "value": {"a": 1}}])),
        "nowhere" => patch(json!([{"op": "remove", "path": "/no/such"}])),
        _ => allow(),
    })
    .await;
    let names =
        ["error", "text", "huge", "deep", "stranger", "patch", "kind", "type", "nowhere", "slow"];
    register(&server, "Mutating", "strict", hook.url(), json!({"timeoutSeconds": 1,
        "matchConditions": [{"name": "not-loose", "expression": "!request.name.endsWith('loose')"}]}))
    .await;
    for name in names {
        let started = Instant::now();
        let answer = map(&server, name, "").await;
        assert_eq!(answer.status, 500, "{name}: {}", answer.message());
        let start = "Internal error occurred: failed calling webhook \"strict.example.com\": ";
        assert!(answer.message().starts_with(start), "{name}: {}", answer.message());
        assert!(answer.message().len() < 2_000);
        assert!(started.elapsed() < Duration::from_secs(4), "{name}: {:?}", started.elapsed());
    }
    assert_eq!(map(&server, "fine", "").await.status, 201);
    let asked = hook.asked();
    assert_eq!(map(&server, "loose", "").await.status, 201);
    assert_eq!(hook.asked(), asked, "a match condition leaves the request out");

    let closed = json!({"url": "https://127.0.0.1:1/x", "caBundle": hook.bundle});
    register(&server, "Validating", "gone", closed.clone(), json!({"failurePolicy": "Ignore"}))
        .await;
    assert_eq!(map(&server, "one", "").await.status, 201);
    register(&server, "Validating", "needed", closed, json!({})).await;
    let answer = map(&server, "two", "").await;
    assert_eq!(
        answer.message(),
        "Internal error occurred: failed calling webhook \"needed.example.com\": failed to call webhook: Post \"https://127.0.0.1:1/x?timeout=5s\": dial tcp 127.0.0.1:1: connect: connection refused"
    );
    // Another authority is not trusted.
    let other = Hook::start("h", |_| allow()).await;
    let mut client = other.url();
    client["caBundle"] = hook.bundle.clone().into();
    register(
        &server,
        "Validating",
        "forged",
        client,
        json!({"objectSelector": {"matchLabels": {"x": "y"}}}),
    )
    .await;
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "three", "labels": {"x": "y"}}});
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/needed";
    assert_eq!(ask(&server, Method::DELETE, path, Value::Null).await.status, 200);
    let answer = ask(&server, Method::POST, MAPS, object).await;
    assert!(answer.message().contains("tls: failed to verify certificate"), "{}", answer.message());
    assert_eq!(other.asked(), 0);
}

#[tokio::test]
async fn a_service_is_reached_at_its_endpoints_under_its_own_name() {
    let (_dir, server) = server().await;
    let hook = Hook::start("hooks.default.svc", |_| allow()).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hooks"},
        "spec": {"ports": [{"name": "https", "port": 443, "targetPort": 8443}]}});
    let path = "/api/v1/namespaces/default/services";
    assert_eq!(ask(&server, Method::POST, path, service).await.status, 201);
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "hooks-1", "labels": {"kubernetes.io/service-name": "hooks"}},
        "addressType": "IPv4", "ports": [{"name": "https", "port": hook.address.port()}],
        "endpoints": [{"addresses": ["127.0.0.9"], "conditions": {"ready": false}},
            {"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]});
    // A slice may not name a loopback address, and no other is allowed here: past the checks.
    let write = store::Write::Create {
        key: "/registry/endpointslices/default/hooks-1".into(),
        value: slice.to_string().into(),
    };
    server.registry.store().write(write, store::Durability::Relaxed).await.unwrap();
    server.registry.cache.fresh().await.unwrap();
    let client = |port: u16| {
        json!({"caBundle": hook.bundle,
            "service": {"name": "hooks", "namespace": "default", "path": "/a", "port": port}})
    };
    register(&server, "Validating", "s", client(443), json!({})).await;
    let answer = map(&server, "x", "").await;
    assert_eq!((answer.status, hook.asked()), (201, 1), "{}", answer.message());
    register(&server, "Validating", "t", client(444), json!({})).await;
    let answer = map(&server, "y", "").await;
    assert!(
        answer.message().ends_with(
            "Post \"https://hooks.default.svc:444/a?timeout=5s\": no service port 444 found for service \"hooks\""
        ),
        "{}",
        answer.message()
    );
}

#[tokio::test]
async fn a_webhook_may_look_again_at_what_others_changed() {
    let (_dir, server) = server().await;
    let label = |key: &'static str| {
        move |request: &Value| {
            let count = request["object"]["metadata"]["annotations"][key].as_str().unwrap_or("0");
            let count: u32 = count.parse().unwrap();
            let mut all = request["object"]["metadata"]["annotations"].clone();
            all[key] = (count + 1).to_string().into();
            patch(json!([{"op": "add", "path": "/metadata/annotations", "value": all}]))
        }
    };
    let (first, second) =
        (Hook::start("h", label("first")).await, Hook::start("h", label("second")).await);
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    register(&server, "Mutating", "a", first.url(), again.clone()).await;
    register(&server, "Mutating", "b", second.url(), again).await;
    let answer = map(&server, "x", "").await;
    assert_eq!(answer.status, 201, "{}", answer.message());
    // The first sees what the second did, and the second what the first then did; no more.
    assert_eq!(answer.json()["metadata"]["annotations"], json!({"first": "2", "second": "2"}));
    assert_eq!((first.asked(), second.asked()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_webhook_adds_to_a_custom_object_is_pruned_and_defaulted() {
    let (_dir, server) = server().await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boats.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "boats", "kind": "Boat"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "known": {"type": "string"},
                    "crew": {"type": "object", "properties": {
                        "size": {"type": "integer", "default": 1}}}}}}}],
        },
    });
    let made = ask(&server, Method::POST, definitions, definition).await;
    assert_eq!(made.status, 201, "{}", made.message());
    let hook = Hook::start("h", |_| {
        patch(json!([
            {"op": "add", "path": "/known", "value": "yes"},
            {"op": "add", "path": "/strange", "value": "yes"},
            {"op": "add", "path": "/crew", "value": {}},
        ]))
    })
    .await;
    let rules = json!([{"apiGroups": ["example.com"], "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"], "resources": ["boats"]}]);
    register(&server, "Mutating", "m", hook.url(), json!({"rules": rules})).await;
    let boats = "/apis/example.com/v1/namespaces/default/boats";
    let boat = json!({"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": "b"}});
    let mut answer = ask(&server, Method::POST, boats, boat).await;
    for _ in 0..2 {
        assert!(answer.status < 300, "{}", answer.message());
        let seen = answer.json();
        assert_eq!((&seen["known"], &seen["crew"]), (&json!("yes"), &json!({"size": 1})));
        assert_eq!(seen.get("strange"), None, "{seen}");
        let label = json!({"metadata": {"labels": {"a": "b"}}});
        answer = ask(&server, Method::PATCH, &format!("{boats}/b"), label).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_decides_about_images() {
    let conf = tempfile::tempdir().unwrap();
    let hook = Hook::start("images", |_| {
        Reply::Raw(
            200,
            json!({"apiVersion": "imagepolicy.k8s.io/v1alpha1", "kind": "ImageReview",
            "status": {"allowed": false, "reason": "not from here"}})
            .to_string(),
        )
    })
    .await;
    let kubeconfig = json!({"current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": hook.url()["url"], "certificate-authority-data": hook.bundle}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}]});
    std::fs::write(conf.path().join("images.kubeconfig"), kubeconfig.to_string()).unwrap();
    let file = conf.path().join("admission.yaml");
    let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration",
        "plugins": [{"name": "ImagePolicyWebhook", "configuration": {"imagePolicy":
            {"kubeConfigFile": "images.kubeconfig", "denyTTL": 60}}}]});
    std::fs::write(&file, configuration.to_string()).unwrap();
    let flags = Flags {
        admission_file: Some(file),
        enabled_admission: vec!["ImagePolicyWebhook".into()],
        disabled_admission: vec!["ServiceAccount".into()],
        ..Flags::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &[], |config| config.flags = flags).await;
    for _ in 0..2 {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
        let answer = ask(&server, Method::POST, "/api/v1/namespaces/default/pods", pod).await;
        assert_eq!(
            (answer.status, answer.message().as_str()),
            (
                403,
                "pods \"p\" is forbidden: image policy webhook backend denied one or more images: not from here"
            )
        );
    }
    assert_eq!(hook.asked(), 1, "the answer is remembered");
}
