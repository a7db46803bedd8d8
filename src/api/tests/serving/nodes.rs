//! What a node may read and write: its own, and what its pods refer to.

use super::*;

const OWN: &str = "system:node:n1";
const OTHER: &str = "system:node:n2";
const DEVICES: &str = "/apis/resource.k8s.io/v1";
const SPACE: &str = "/api/v1/namespaces/default";
const RELATED: &str = "no relationship found between node 'n2' and this object";

async fn plain() -> (tempfile::TempDir, Shared) {
    let dir = tempfile::tempdir().unwrap();
    let server = server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    for node in ["n1", "n2"] {
        make(&server, "/api/v1/nodes", json!({"metadata": {"name": node}})).await;
    }
    (dir, server)
}

/// As a node, once the server has heard of all that was written before.
async fn by(server: &Shared, node: &str, method: Method, path: &str, body: Value) -> Answer {
    server.registry.cache.fresh().await.unwrap();
    let kind = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    send(server, node, method, path, &[("content-type", kind)], body).await
}

#[track_caller]
fn refused(answer: &Answer, why: &str) {
    assert_eq!(answer.status, 403, "{}", answer.message());
    assert!(answer.message().contains(why), "{} is not {why}", answer.message());
}

#[track_caller]
fn done(answer: &Answer) {
    assert!(answer.status < 300, "{}: {}", answer.status, answer.message());
}

fn pod(name: &str, node: &str, more: Value) -> Value {
    let mut spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "i"}]});
    spec.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_devices_are_read_by_nodes_whose_pods_have_them() {
    let (_dir, server) = plain().await;
    let claims = format!("{DEVICES}/namespaces/default/resourceclaims");
    for name in ["named", "made", "extended", "unused"] {
        let request = json!({"name": "r", "exactly": {"deviceClassName": "gpu"}});
        let claim =
            json!({"metadata": {"name": name}, "spec": {"devices": {"requests": [request]}}});
        make(&server, &claims, claim).await;
    }
    let listed = json!({"resourceClaims": [{"name": "a", "resourceClaimName": "named"},
        {"name": "b", "resourceClaimTemplateName": "t"}]});
    make(&server, &format!("{SPACE}/pods"), pod("p", "n1", listed)).await;
    let get = async |node: &str, name: &str| {
        by(&server, node, Method::GET, &format!("{claims}/{name}"), json!(null)).await
    };
    done(&get(OWN, "named").await);
    let none = "no relationship found between node 'n1' and this object";
    refused(&get(OWN, "made").await, none);
    let mapping = json!({"containerName": "c", "resourceName": "e.com/g", "requestName": "r"});
    let told = json!({"status": {
        "resourceClaimStatuses": [{"name": "b", "resourceClaimName": "made"}],
        "extendedResourceClaimStatus": {"resourceClaimName": "extended",
            "requestMappings": [mapping]}}});
    let status = format!("{SPACE}/pods/p/status");
    done(&ask(&server, Method::PATCH, &status, told).await);
    for name in ["named", "made", "extended"] {
        done(&get(OWN, name).await);
        refused(&get(OTHER, name).await, RELATED);
    }
    refused(&get(OWN, "unused").await, none);
    let list = by(&server, OWN, Method::GET, &claims, json!(null)).await;
    refused(&list, "can only get individual resources of this type");
    // What gives it rights, it cannot write itself.
    let more = json!({"status": {"extendedResourceClaimStatus": {"resourceClaimName": "unused",
        "requestMappings": [mapping]}}});
    let written = by(&server, OWN, Method::PATCH, &status, more).await;
    refused(&written, "cannot update extended resource claim status");
    let more = json!({"status": {"resourceClaimStatuses": [
        {"name": "b", "resourceClaimName": "unused"}]}});
    let written = by(&server, OWN, Method::PATCH, &status, more).await;
    refused(&written, "cannot update resource claim statues");
    done(&by(&server, OWN, Method::PATCH, &status, json!({"status": {"phase": "Running"}})).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_drivers_offer_on_a_node_is_that_nodes() {
    let (_dir, server) = plain().await;
    let slices = format!("{DEVICES}/resourceslices");
    let slice = |name: &str, node: &str| {
        json!({"metadata": {"name": name}, "spec": {"driver": "d.example", "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}}})
    };
    done(&by(&server, OWN, Method::POST, &slices, slice("a", "n1")).await);
    let foreign = by(&server, OWN, Method::POST, &slices, slice("b", "n2")).await;
    refused(&foreign, "can only create ResourceSlice with the same NodeName");
    let path = format!("{slices}/a");
    for method in [Method::GET, Method::DELETE] {
        refused(&by(&server, OTHER, method, &path, json!(null)).await, RELATED);
    }
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    refused(&by(&server, OTHER, Method::PATCH, &path, label.clone()).await, RELATED);
    done(&by(&server, OWN, Method::PATCH, &path, label).await);
    done(&by(&server, OWN, Method::GET, &path, json!(null)).await);
    let all = by(&server, OWN, Method::GET, &slices, json!(null)).await;
    refused(&all, "can only list/watch/deletecollection resourceslices with nodeName field");
    let own = format!("{slices}?fieldSelector=spec.nodeName%3Dn1");
    done(&by(&server, OWN, Method::GET, &own, json!(null)).await);
    done(&by(&server, OWN, Method::DELETE, &path, json!(null)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_sees_of_nodes_pods_and_attachments_only_its_own() {
    let (_dir, server) = plain().await;
    let attachments = "/apis/storage.k8s.io/v1/volumeattachments";
    let attachment = json!({"metadata": {"name": "va"}, "spec": {"attacher": "d.example",
        "nodeName": "n1", "source": {"persistentVolumeName": "pv"}}});
    make(&server, attachments, attachment).await;
    make(&server, &format!("{SPACE}/pods"), pod("p", "n1", json!({}))).await;
    let read = async |who: &str, path: &str| by(&server, who, Method::GET, path, json!(null)).await;
    for path in [
        format!("{attachments}/va"),
        format!("{SPACE}/pods/p"),
        format!("{SPACE}/pods?fieldSelector=metadata.name%3Dp"),
    ] {
        done(&read(OWN, &path).await);
        refused(&read(OTHER, &path).await, RELATED);
    }
    refused(&read(OWN, attachments).await, "can only get individual resources of this type");
    done(&read(OWN, "/api/v1/nodes/n1").await);
    done(&read(OWN, "/api/v1/nodes?fieldSelector=metadata.name%3Dn1").await);
    let all = read(OWN, "/api/v1/nodes").await;
    refused(&all, "node 'n1' cannot read all nodes, only its own Node object");
    let other = read(OWN, "/api/v1/nodes/n2").await;
    refused(&other, "node 'n1' cannot read 'n2', only its own Node object");
    refused(&read(OWN, &format!("{SPACE}/pods/p/log")).await, "cannot get resource \"pods/log\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_evicts_only_what_it_runs() {
    let (_dir, server) = plain().await;
    make(&server, &format!("{SPACE}/pods"), pod("p", "n1", json!({}))).await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": "p", "namespace": "default"}});
    let path = format!("{SPACE}/pods/p/eviction");
    let foreign = by(&server, OTHER, Method::POST, &path, eviction.clone()).await;
    refused(&foreign, "node n2 can only evict pods with spec.nodeName set to itself");
    done(&by(&server, OWN, Method::POST, &path, eviction).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_what_it_is_and_not_what_it_is_trusted_with() {
    let (_dir, server) = plain().await;
    for (label, may) in [
        ("example.com/rack", true),
        ("topology.kubernetes.io/zone", true),
        ("kubelet.kubernetes.io/any", true),
        ("sub.node.kubernetes.io/any", true),
        ("node-role.kubernetes.io/control-plane", false),
        ("node-restriction.kubernetes.io/fips", false),
        ("example.node-restriction.kubernetes.io/fips", false),
        ("example.k8s.io/any", false),
        ("notkubernetes.io/any", true),
    ] {
        let change = json!({"metadata": {"labels": {label: "x"}}});
        let answer = by(&server, OWN, Method::PATCH, "/api/v1/nodes/n1", change).await;
        match may {
            true => done(&answer),
            false => refused(&answer, &format!("is not allowed to modify labels: {label}")),
        }
    }
    let taints = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    let answer = by(&server, OWN, Method::PATCH, "/api/v1/nodes/n1", taints).await;
    refused(&answer, "node \"n1\" is not allowed to modify taints");
    let other = json!({"metadata": {"labels": {"a": "b"}}});
    let answer = by(&server, OWN, Method::PATCH, "/api/v1/nodes/n2", other).await;
    refused(&answer, "node \"n1\" is not allowed to modify node \"n2\"");
    let attached = json!({"metadata": {"name": "n2"}, "spec": {"drivers": []}});
    let path = "/apis/storage.k8s.io/v1/csinodes";
    let answer = by(&server, OWN, Method::POST, path, attached).await;
    refused(&answer, "can only access CSINode with the same name as the requesting node");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_for_pods_of_the_node_and_for_whom_their_volumes_name() {
    let (_dir, server) = plain().await;
    make(&server, &format!("{SPACE}/serviceaccounts"), json!({"metadata": {"name": "sa"}})).await;
    let volume = |audience: &str| {
        let token = json!({"path": "t", "audience": audience, "expirationSeconds": 3600});
        json!({"serviceAccountName": "sa", "volumes": [
            {"name": "v", "projected": {"sources": [{"serviceAccountToken": token}]}}]})
    };
    let made = make(&server, &format!("{SPACE}/pods"), pod("p", "n1", volume("vault"))).await;
    let uid = made["metadata"]["uid"].clone();
    let path = format!("{SPACE}/serviceaccounts/sa/token");
    let token = |audiences: Value, uid: &Value| {
        json!({"spec": {"audiences": audiences,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}}})
    };
    let post = async |who: &str, body: Value| by(&server, who, Method::POST, &path, body).await;
    done(&post(OWN, token(json!(["vault"]), &uid)).await);
    refused(&post(OTHER, token(json!(["vault"]), &uid)).await, RELATED);
    let bare = post(OWN, token(json!(["vault"]), &json!(""))).await;
    refused(&bare, "node requested token with a pod binding without a uid");
    let before = post(OWN, token(json!(["vault"]), &json!("before"))).await;
    refused(&before, "does not match the UID in record");
    let free = post(OWN, json!({"spec": {"audiences": ["vault"]}})).await;
    refused(&free, "node requested token not bound to a pod");
    let both = post(OWN, token(json!(["vault", "bank"]), &uid)).await;
    refused(&both, "node may only request 0 or 1 audiences");
    let bank = post(OWN, token(json!(["bank"]), &uid)).await;
    refused(&bank, "audience \"bank\" not found in pod spec volume");
    // Somebody lets nodes ask for it, for plugins that fetch credentials.
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rule = json!({"apiGroups": [""], "resources": ["bank"],
        "verbs": ["request-serviceaccounts-token-audience"]});
    let role = json!({"metadata": {"name": "bank"}, "rules": [rule]});
    make(&server, &format!("{rbac}/clusterroles"), role).await;
    let group = "rbac.authorization.k8s.io";
    let binding = json!({"metadata": {"name": "bank"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "bank"},
        "subjects": [{"apiGroup": group, "kind": "Group", "name": "system:nodes"}]});
    make(&server, &format!("{rbac}/clusterrolebindings"), binding).await;
    done(&post(OWN, token(json!(["bank"]), &uid)).await);
}

/// As upstream, where nodes are restricted while objects are completed: nobody else is asked,
/// and nothing is told of what is wrong with it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_may_not_ask_for_is_refused_before_it_is_judged() {
    let (_dir, server) = plain().await;
    let empty = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": []}});
    let answer = by(&server, OWN, Method::POST, &format!("{SPACE}/pods"), empty).await;
    refused(&answer, "node \"n1\" can only create mirror pods");
}
