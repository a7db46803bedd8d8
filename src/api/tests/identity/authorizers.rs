//! Authorizers besides RBAC: webhooks, attribute policies, and their order.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::authz::Mode;
use api::authz::configuration::Flags;
use api::serve::Shared;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::support::{self, send};
use crate::world::{Asked, Reply, Site};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Says yes, no, or nothing by the name of the user.
fn judges(asked: &Asked) -> Reply {
    let status = match asked.body["spec"]["user"].as_str().unwrap() {
        "yes" => json!({"allowed": true, "reason": "we know them"}),
        "no" => json!({"allowed": false, "denied": true, "reason": "we know them"}),
        "both" => json!({"allowed": true, "denied": true}),
        "down" => return Reply::Raw(404, Bytes::from_static(b"sorry")),
        _ => json!({"allowed": false, "reason": "who is that"}),
    };
    Reply::Json(
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status}),
    )
}

fn configuration(dir: &Path, kubeconfig: &Path, more: &str) -> Flags {
    let file = dir.join("authorization.yaml");
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- type: Webhook\n  name: first\n  webhook:\n    timeout: 3s\n    authorizedTTL: 1m\n    unauthorizedTTL: 1m\n    subjectAccessReviewVersion: v1\n{more}    connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}\n- type: RBAC\n  name: rbac\n",
        kubeconfig.display()
    );
    std::fs::write(&file, text).unwrap();
    Flags { config_file: Some(file), ..Flags::default() }
}

async fn server(modes: Vec<Mode>) -> (tempfile::TempDir, Shared) {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |config| {
        config.authorization = modes
    })
    .await;
    (dir, server)
}

async fn list(server: &Shared, who: &str) -> (u16, String) {
    let answer = send(server, who, Method::GET, MAPS, &[], Bytes::new()).await;
    (answer.status, answer.message())
}

/// Lets everybody in this cluster do everything by RBAC.
async fn everybody_may(server: &Shared) {
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "all"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:authenticated"}]});
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    assert_eq!(support::ask(server, Method::POST, path, binding).await.status, 201);
    server.registry.cache.fresh().await.unwrap();
}

#[tokio::test]
async fn a_webhook_allows_denies_or_leaves_it_to_others() {
    let site = Site::start(judges).await;
    let files = tempfile::tempdir().unwrap();
    let kubeconfig = site.kubeconfig(files.path(), "/authorize");
    let flags = configuration(files.path(), &kubeconfig, "    failurePolicy: NoOpinion\n");
    let (_dir, server) = server(flags.modes().unwrap()).await;
    assert_eq!(list(&server, "yes").await.0, 200);
    let spec = site.last().body["spec"].clone();
    assert_eq!(
        spec["resourceAttributes"],
        json!({"namespace": "default", "verb": "list", "version": "v1", "resource": "configmaps"})
    );
    assert_eq!(spec["groups"], json!(["system:authenticated"]));
    let (status, message) = list(&server, "no").await;
    assert_eq!(status, 403);
    assert!(message.ends_with(": we know them"), "{message}");
    let (status, message) = list(&server, "else").await;
    assert_eq!(status, 403);
    assert!(message.ends_with(": who is that"), "{message}");
    assert_eq!(list(&server, "down").await.0, 500);
    assert_eq!(list(&server, "both").await.0, 500);
    // What was answered is not asked again, what failed is.
    let before = site.count();
    for who in ["yes", "no", "else", "down"] {
        list(&server, who).await;
    }
    assert_eq!(site.count(), before + 1);
    // A no stands against RBAC, silence and failure do not. The masters are not asked about.
    everybody_may(&server).await;
    assert_eq!(list(&server, "no").await.0, 403);
    assert_eq!(list(&server, "else").await.0, 200);
    assert_eq!(list(&server, "down").await.0, 200);
    let before = site.count();
    assert_eq!(list(&server, "admin").await.0, 200);
    assert_eq!(site.count(), before);
    // Reviews tell it all.
    let review = |user: &str| {
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": {"verb": "delete", "resource": "pods", "namespace": "a"}}})
    };
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let status = async |user: &str| -> Value {
        support::ask(&server, Method::POST, path, review(user)).await.json()["status"].clone()
    };
    assert_eq!(
        status("no").await,
        json!({"allowed": false, "denied": true, "reason": "we know them"})
    );
    assert_eq!(status("yes").await, json!({"allowed": true, "reason": "we know them"}));
    assert!(status("down").await["evaluationError"].as_str().unwrap().contains("sorry"));
    let rules = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": "default"}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let rules = support::ask(&server, Method::POST, path, rules).await.json();
    assert_eq!(rules["status"]["incomplete"], true);
}

#[tokio::test]
async fn a_webhook_that_stumbles_is_asked_again() {
    let stumbles = AtomicUsize::new(0);
    let site = Site::start(move |asked| match stumbles.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::Raw(500, Bytes::new()),
        1 => Reply::Raw(429, Bytes::new()),
        _ => judges(asked),
    })
    .await;
    let files = tempfile::tempdir().unwrap();
    let kubeconfig = site.kubeconfig(files.path(), "/authorize");
    let flags = configuration(files.path(), &kubeconfig, "    failurePolicy: Deny\n");
    let (_dir, server) = server(flags.modes().unwrap()).await;
    assert_eq!(list(&server, "yes").await.0, 200);
    assert_eq!(site.count(), 3);
}

#[tokio::test]
async fn a_webhook_hears_what_is_selected() {
    let site = Site::start(judges).await;
    let files = tempfile::tempdir().unwrap();
    let kubeconfig = site.kubeconfig(files.path(), "/authorize");
    let more = "    failurePolicy: NoOpinion\n    matchConditionSubjectAccessReviewVersion: v1\n    matchConditions:\n    - expression: request.resourceAttributes.labelSelector.requirements.exists(r, r.key == 'app')\n";
    let flags = configuration(files.path(), &kubeconfig, more);
    let (_dir, server) = server(flags.modes().unwrap()).await;
    let get = async |query: &str| {
        let path = format!("{MAPS}?{query}");
        send(&server, "yes", Method::GET, &path, &[], Bytes::new()).await.status
    };
    assert_eq!(get("labelSelector=tier%3Dx").await, 403, "it wants not to hear of this");
    assert_eq!(site.count(), 0);
    assert_eq!(get("labelSelector=app+in+(a,b),!old&fieldSelector=metadata.name%3Dn").await, 200);
    let about = site.last().body["spec"]["resourceAttributes"].clone();
    assert_eq!(about["name"], "n");
    assert_eq!(
        about["labelSelector"],
        json!({"requirements": [
            {"key": "app", "operator": "In", "values": ["a", "b"]},
            {"key": "old", "operator": "DoesNotExist"},
        ]})
    );
    assert_eq!(
        about["fieldSelector"],
        json!({"requirements": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]})
    );
    // A review passes on what it understands, and tells of the rest.
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": "yes", "resourceAttributes": {"verb": "list", "resource": "pods",
            "labelSelector": {"requirements": [{"key": "app", "operator": "Exists"},
                {"key": "x", "operator": "Sideways"}]},
            "fieldSelector": {"rawSelector": "a~b"}}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let status = support::ask(&server, Method::POST, path, review).await.json()["status"].clone();
    assert_eq!(status["allowed"], true);
    assert_eq!(
        status["evaluationError"],
        "spec.resourceAttributes.fieldSelector ignored due to parse error; spec.resourceAttributes.labelSelector partially ignored due to parse error"
    );
    let about = site.last().body["spec"]["resourceAttributes"].clone();
    assert_eq!(about["version"], "*");
    assert_eq!(
        about["labelSelector"],
        json!({"requirements": [{"key": "app", "operator": "Exists"}]})
    );
    assert_eq!(about.get("fieldSelector"), None);
}

#[tokio::test]
async fn match_conditions_choose_and_the_failure_policy_decides() {
    let site = Site::start(judges).await;
    let files = tempfile::tempdir().unwrap();
    let kubeconfig = site.kubeconfig(files.path(), "/authorize");
    let more = "    failurePolicy: Deny\n    matchConditionSubjectAccessReviewVersion: v1\n    matchConditions:\n    - expression: has(request.resourceAttributes)\n    - expression: request.user != 'spared'\n";
    let (_dir, server) =
        server(configuration(files.path(), &kubeconfig, more).modes().unwrap()).await;
    everybody_may(&server).await;
    assert_eq!(list(&server, "down").await.0, 500, "a failure is a no");
    let before = site.count();
    assert_eq!(list(&server, "spared").await.0, 200);
    assert_eq!(send(&server, "no", Method::GET, "/api", &[], Bytes::new()).await.status, 200);
    assert_eq!(site.count(), before);
}

/// Policies and roles are judged where a request cannot wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_writes_roles_is_judged_by_webhooks_too() {
    let site = Site::start(judges).await;
    let files = tempfile::tempdir().unwrap();
    let kubeconfig = site.kubeconfig(files.path(), "/authorize");
    let flags = configuration(files.path(), &kubeconfig, "    failurePolicy: NoOpinion\n");
    let (_dir, server) = server(flags.modes().unwrap()).await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "r"}, "rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]});
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let headers = [("content-type", "application/json")];
    let answer = send(&server, "yes", Method::POST, path, &headers, role.to_string()).await;
    assert_eq!(answer.status, 201, "{}", answer.message());
    let asked = site.asked.lock().unwrap();
    assert!(
        asked.iter().any(|asked| asked.body["spec"]["resourceAttributes"]["verb"] == "escalate")
    );
}

#[tokio::test]
async fn attribute_policies_and_nobody() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("policies");
    std::fs::write(&file, r#"{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"alice","namespace":"default","resource":"configmaps","apiGroup":"*","readonly":true}}"#).unwrap();
    let flags = Flags {
        modes: vec!["ABAC".into(), "AlwaysDeny".into()],
        policy_file: Some(file),
        ..Flags::default()
    };
    let (_dir, server) = server(flags.modes().unwrap()).await;
    assert_eq!(list(&server, "alice").await.0, 200);
    let (status, message) = list(&server, "bob").await;
    assert_eq!(status, 403);
    assert!(message.ends_with(": No policy matched.\nEverything is forbidden."), "{message}");
    assert_eq!(list(&server, "admin").await.0, 200);
}

#[test]
fn a_configuration_says_all_that_is_wrong_with_it() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("authorization.yaml");
    let why = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let flags = Flags { config_file: Some(file.clone()), ..Flags::default() };
        flags.modes().err().unwrap()
    };
    let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n";
    let said = why(&format!(
        "{head}authorizers:\n- {{type: AlwaysAllow, name: a}}\n- {{type: RBAC, name: a}}\n- {{type: RBAC, name: b}}\n- {{type: Node, name: a}}\n- type: Webhook\n  name: W\n  webhook: {{timeout: 1h, connectionInfo: {{type: KubeConfigFile, kubeConfigFile: rel}}, matchConditions: [{{expression: '1'}}]}}\n"
    ));
    for part in [
        "authorizers[0].type: Unsupported value: \"AlwaysAllow\"",
        "authorizers[2].type: Duplicate value: \"RBAC\"",
        "authorizers[3].name: Duplicate value: \"a\"",
        "authorizers[4].name: Invalid value: \"W\": authorizer name is invalid",
        "authorizers[4].timeout: Invalid value: \"1h\": must be > 0s and <= 30s",
        "authorizers[4].authorizedTTL: Required value",
        "authorizers[4].subjectAccessReviewVersion: Required value",
        "authorizers[4].matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified",
        "authorizers[4].failurePolicy: Required value",
        "authorizers[4].connectionInfo.kubeConfigFile: Invalid value: \"rel\": must be an absolute path",
        "authorizers[4].matchConditions[0].expression: Invalid value: \"1\": must evaluate to bool",
    ] {
        assert!(said.contains(part), "{part}\nis not in\n{said}");
    }
    assert!(
        why(head).contains(
            "authorizers: Required value: at least one authorization mode must be defined"
        )
    );
    let modes = |modes: &[&str]| Flags {
        modes: modes.iter().map(|mode| (*mode).to_owned()).collect(),
        ..Flags::default()
    };
    for (wrong, said) in [
        (modes(&["AlwaysAllow"]), "authorization is always on"),
        (modes(&["Maybe"]), "is not a valid mode"),
        (modes(&["RBAC", "RBAC"]), "specified more than once"),
        (modes(&["ABAC"]), "authorization policy file not passed"),
        (modes(&["Webhook"]), "authorization config file not passed"),
        (Flags { policy_file: Some("/x".into()), ..modes(&["RBAC"]) }, "without mode ABAC"),
    ] {
        let why = wrong.modes().err().unwrap();
        assert!(why.contains(said), "{why}");
    }
}
