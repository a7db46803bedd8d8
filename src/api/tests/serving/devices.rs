//! Claims of devices and the nodes' declared features: what may be asked for, and by whom.

use super::*;

const CLAIMS: &str = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const JSON: &str = "application/merge-patch+json";

async fn plain() -> (tempfile::TempDir, Shared) {
    let dir = tempfile::tempdir().unwrap();
    let server = server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    (dir, server)
}

/// As this user.
async fn patch(server: &Shared, who: &str, path: &str, body: Value) -> Answer {
    let headers = [("content-type", JSON)];
    send(server, who, Method::PATCH, path, &headers, Bytes::from(body.to_string())).await
}

/// Lets a user do this with resources of the group of devices.
async fn allow(server: &Shared, who: &str, resource: &str, verbs: Value, names: Value) {
    let name = format!("{who}-{}", resource.replace('/', "-"));
    let rule = json!({"apiGroups": ["resource.k8s.io"], "resources": [resource], "verbs": verbs,
        "resourceNames": names});
    let role = json!({"metadata": {"name": name}, "rules": [rule]});
    make(server, &format!("{RBAC}/clusterroles"), role).await;
    let binding = json!({"metadata": {"name": name}, "roleRef": {"name": name,
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": who}]});
    make(server, &format!("{RBAC}/clusterrolebindings"), binding).await;
}

fn claim(name: &str, exactly: Value) -> Value {
    json!({"metadata": {"name": name},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": exactly}]}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_of_others_are_for_namespaces_of_administrators() {
    let (_dir, server) = plain().await;
    let admin = || claim("a", json!({"deviceClassName": "gpu", "adminAccess": true}));
    let refused = ask(&server, Method::POST, CLAIMS, admin()).await;
    assert_eq!(refused.status, 422);
    let why = "admin access to devices requires the `resource.kubernetes.io/admin-access: true` \
               label on the containing namespace";
    assert!(refused.message().contains(why), "{}", refused.message());
    let template = json!({"metadata": {"name": "t"}, "spec": admin()});
    let templates = CLAIMS.replace("resourceclaims", "resourceclaimtemplates");
    assert_eq!(ask(&server, Method::POST, &templates, template.clone()).await.status, 422);
    make(&server, CLAIMS, claim("plain", json!({"deviceClassName": "gpu"}))).await;
    let label = json!({"metadata": {"labels": {"resource.kubernetes.io/admin-access": "true"}}});
    let labelled = ask(&server, Method::PATCH, "/api/v1/namespaces/default", label).await;
    assert_eq!(labelled.status, 200, "{}", labelled.message());
    make(&server, CLAIMS, admin()).await;
    make(&server, &templates, template).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_of_a_claims_status_is_for_those_whose_it_is() {
    let (_dir, server) = plain().await;
    make(&server, CLAIMS, claim("a", json!({"deviceClassName": "gpu"}))).await;
    let status = format!("{CLAIMS}/a/status");
    let result = json!({"request": "r", "driver": "d.io", "pool": "p", "device": "x"});
    let allocated = json!({"status": {"allocation": {"devices": {"results": [result]}}}});
    let told = json!({"status": {"devices": [
        {"driver": "d.io", "pool": "p", "device": "x", "data": {"a": 1}}]}});
    for who in ["planner", "driver", "stranger"] {
        allow(&server, who, "resourceclaims/status", json!(["patch"]), json!([])).await;
    }
    allow(&server, "planner", "resourceclaims/binding", json!(["patch"]), json!([])).await;
    let verbs = json!(["arbitrary-node:patch"]);
    allow(&server, "driver", "resourceclaims/driver", verbs.clone(), json!(["d.io"])).await;
    allow(&server, "stranger", "resourceclaims/driver", verbs, json!(["other.io"])).await;

    let refused = patch(&server, "driver", &status, allocated.clone()).await;
    assert_eq!(refused.status, 403, "{}", refused.message());
    assert!(refused.message().contains("resourceclaims/binding"), "{}", refused.message());
    let done = patch(&server, "planner", &status, allocated).await;
    assert_eq!(done.status, 200, "{}", done.message());
    for who in ["planner", "stranger"] {
        let refused = patch(&server, who, &status, told.clone()).await;
        assert_eq!(refused.status, 403, "{who}: {}", refused.message());
        assert!(refused.message().contains("of driver d.io"), "{}", refused.message());
    }
    let done = patch(&server, "driver", &status, told).await;
    assert_eq!(done.status, 200, "{}", done.message());
    // What is given back takes what was told of it along.
    let freed = json!({"status": {"allocation": null}});
    let done = patch(&server, "planner", &status, freed).await;
    assert_eq!(done.status, 200, "{}", done.message());
    let left = done.json()["status"].clone();
    assert!(left["devices"].is_null() && left["allocation"].is_null(), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_bounds_the_devices_of_a_class() {
    let (_dir, server) = plain().await;
    let hard = json!({"gpu.deviceclass.resource.k8s.io/devices": "3"});
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    make(&server, quotas, json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
    // As the controller does when a quota is new.
    let counted = json!({"status": {"hard": hard,
        "used": {"gpu.deviceclass.resource.k8s.io/devices": "0"}}});
    let path = format!("{quotas}/q/status");
    assert_eq!(ask(&server, Method::PATCH, &path, counted).await.status, 200);
    let two = |name: &str| claim(name, json!({"deviceClassName": "gpu", "count": 2}));
    make(&server, CLAIMS, two("a")).await;
    let refused = ask(&server, Method::POST, CLAIMS, two("b")).await;
    assert_eq!(refused.status, 403);
    let why = "exceeded quota: q, requested: gpu.deviceclass.resource.k8s.io/devices=2, used: \
               gpu.deviceclass.resource.k8s.io/devices=2, limited: \
               gpu.deviceclass.resource.k8s.io/devices=3";
    assert!(refused.message().contains(why), "{}", refused.message());
    make(&server, CLAIMS, claim("c", json!({"deviceClassName": "nic", "count": 9}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_of_claims_count_as_the_resource_that_their_class_stands_for() {
    const HARD: &str = "requests.example.com/gpu";
    let (_dir, server) = plain().await;
    let class = json!({"metadata": {"name": "gpu"},
        "spec": {"extendedResourceName": "example.com/gpu"}});
    make(&server, "/apis/resource.k8s.io/v1/deviceclasses", class).await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let hard = json!({HARD: "3"});
    make(&server, quotas, json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
    let path = format!("{quotas}/q/status");
    let counted = json!({"status": {"hard": hard, "used": {HARD: "0"}}});
    assert_eq!(ask(&server, Method::PATCH, &path, counted).await.status, 200);
    let used = async || {
        let quota = ask(&server, Method::GET, &format!("{quotas}/q"), json!(null)).await;
        quota.json()["status"]["used"][HARD].clone()
    };
    let pods = "/api/v1/namespaces/default/pods";
    let asks = json!({"example.com/gpu": "2"});
    let container = json!({"name": "c", "image": "i",
        "resources": {"requests": asks, "limits": asks}});
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [container]}});
    let pod = make(&server, pods, pod).await;
    assert_eq!(used().await, "2");
    // What the scheduler makes for the pod has been charged with the pod; of whoever else says
    // that it was made for one, it is asked.
    let made = |name: &str, uid: &serde_json::Value, count: i64| {
        let mut made = claim(name, json!({"deviceClassName": "gpu", "count": count}));
        made["metadata"]["annotations"] =
            json!({"resource.kubernetes.io/extended-resource-claim": "true"});
        made["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod",
            "name": "p", "uid": uid, "controller": true}]);
        made
    };
    let refused = ask(&server, Method::POST, CLAIMS, made("no", &json!("other"), 2)).await;
    assert_eq!(refused.status, 403, "{}", refused.message());
    make(&server, CLAIMS, made("yes", &pod["metadata"]["uid"], 2)).await;
    assert_eq!(used().await, "2");
    make(&server, CLAIMS, claim("one", json!({"deviceClassName": "gpu"}))).await;
    assert_eq!(used().await, "3");
    let refused =
        ask(&server, Method::POST, CLAIMS, claim("more", json!({"deviceClassName": "gpu"}))).await;
    let why = "exceeded quota: q, requested: requests.example.com/gpu=1, used: \
               requests.example.com/gpu=3, limited: requests.example.com/gpu=3";
    assert!(refused.message().contains(why), "{}", refused.message());
}

/// Without an end that would be worth waiting for.
fn endless() -> String {
    let ten = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]";
    ["a", "b", "c", "d", "e", "f", "g"]
        .iter()
        .fold("true".to_owned(), |inner, name| format!("{ten}.all({name}, {inner})"))
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_that_choose_devices_are_compiled_before_they_are_stored() {
    let (_dir, server) = plain().await;
    let by = |expression: &str| json!([{"cel": {"expression": expression}}]);
    let class = |expression: &str| {
        json!({"metadata": {"name": "c"},
        "spec": {"selectors": by(expression)}})
    };
    let exactly = |expression: &str| json!({"deviceClassName": "gpu", "selectors": by(expression)});
    let template = |expression: &str| {
        json!({"metadata": {"name": "t"}, "spec":
        {"spec": {"devices": {"requests": [{"name": "r", "firstAvailable": [
            {"name": "s", "deviceClassName": "gpu", "selectors": by(expression)}]}]}}}})
    };
    let templates = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaimtemplates";
    let classes = "/apis/resource.k8s.io/v1/deviceclasses";
    let good = "device.driver == 'd.example' && device.attributes['d.example'].model == 'a'";
    let at_class = "spec.selectors[0].cel.expression";
    let at_claim = "spec.devices.requests[0].exactly.selectors[0].cel.expression";
    let at_template = "spec.spec.devices.requests[0].firstAvailable[0].selectors[0].cel.expression";
    for (path, make_of, field) in [
        (classes, &class as &dyn Fn(&str) -> Value, at_class),
        (CLAIMS, &|expression: &str| claim("x", exactly(expression)), at_claim),
        (templates, &template, at_template),
    ] {
        for (expression, why) in [
            (
                "noSuchVar",
                format!(
                    "{field}: Invalid value: \"noSuchVar\": compilation failed: \
                ERROR: <input>:1:1: undeclared reference to 'noSuchVar'"
                ),
            ),
            (
                "device.driver",
                format!(
                    "{field}: Invalid value: \"device.driver\": must evaluate \
                to bool or the unknown type, not string"
                ),
            ),
            (&endless(), format!("{field}: Forbidden: too complex, exceeds cost limit")),
        ] {
            let answer = ask(&server, Method::POST, path, make_of(expression)).await;
            assert_eq!(answer.status, 422, "{path} {expression}: {}", answer.message());
            assert!(answer.message().contains(&why), "{} is not {why}", answer.message());
        }
        make(&server, path, make_of(good)).await;
    }
    // A change is looked at like a new one.
    let path = format!("{classes}/c");
    let change = |expression: &str| json!({"spec": {"selectors": by(expression)}});
    let refused = ask(&server, Method::PATCH, &path, change("true &&")).await;
    assert_eq!(refused.status, 422, "{}", refused.message());
    assert!(refused.message().contains("compilation failed"), "{}", refused.message());
    let done = ask(&server, Method::PATCH, &path, change("device.driver == 'other'")).await;
    assert_eq!(done.status, 200, "{}", done.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_resized_as_a_whole_where_its_node_can_do_that() {
    let (_dir, server) = plain().await;
    make(&server, "/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    let whole = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu}});
    let pods = "/api/v1/namespaces/default/pods";
    make(
        &server,
        pods,
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "resources": whole("1"),
            "containers": [{"name": "c", "image": "i"}]}}),
    )
    .await;
    let resize = json!({"spec": {"resources": whole("2")}});
    let path = format!("{pods}/p/resize");
    let refused = ask(&server, Method::PATCH, &path, resize.clone()).await;
    assert_eq!(refused.status, 403, "{}", refused.message());
    let why = "pod update requires features InPlacePodLevelResourcesVerticalScaling which are not \
               available on node \"n\"";
    assert!(refused.message().contains(why), "{}", refused.message());
    let declared = json!({"status": {"allocatable": {"cpu": "4"},
        "declaredFeatures": ["InPlacePodLevelResourcesVerticalScaling"]}});
    let told = ask(&server, Method::PATCH, "/api/v1/nodes/n/status", declared).await;
    assert_eq!(told.status, 200, "{}", told.message());
    let done = ask(&server, Method::PATCH, &path, resize).await;
    assert_eq!(done.status, 200, "{}", done.message());
    assert_eq!(done.json()["spec"]["resources"]["requests"]["cpu"], "2");
}
