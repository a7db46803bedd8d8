//! What programs do with the Rust client `kube`, against the cluster of a kubeconfig. Expects
//! a node that has the image web:1, and leaves nothing behind.

use std::time::Duration;

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, AttachParams, DeleteParams, DynamicObject, EvictParams, ListParams, LogParams, Patch,
    PatchParams, PostParams,
};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, predicates, reflector, watcher};
use kube::{Client, Config, Discovery};
use serde_json::json;
use tokio::io::AsyncReadExt;

const NAMESPACE: &str = "rust-suite";
const PATIENCE: Duration = Duration::from_secs(60);

pub fn suite(kubeconfig: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = async {
        let file = kube::config::Kubeconfig::from_yaml(kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        assert_eq!(client.apiserver_version().await.unwrap().minor, "36");
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = object(json!({"metadata": {"name": NAMESPACE}}));
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        objects(client.clone()).await;
        caches(client.clone()).await;
        custom(client.clone()).await;
        pods(client.clone()).await;
        namespaces.delete(NAMESPACE, &DeleteParams::default()).await.unwrap();
        let gone = await_condition(namespaces, NAMESPACE, |ns: Option<&Namespace>| ns.is_none());
        gone.await.unwrap();
    };
    runtime.block_on(async { tokio::time::timeout(4 * PATIENCE, all).await.unwrap() });
}

fn object<K: serde::de::DeserializeOwned>(value: serde_json::Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// Applied, changed and refused.
async fn objects(client: Client) {
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "1"}});
    let one = PatchParams::apply("one");
    assert_eq!(maps.patch("a", &one, &Patch::Apply(&map)).await.unwrap().data.unwrap()["k"], "1");
    let mut theirs = map.clone();
    theirs["data"]["k"] = "2".into();
    let two = PatchParams::apply("two");
    let conflict = maps.patch("a", &two, &Patch::Apply(&theirs)).await.unwrap_err();
    assert!(matches!(&conflict, kube::Error::Api(status) if status.code == 409), "{conflict}");
    let taken = maps.patch("a", &two.clone().force(), &Patch::Apply(&theirs)).await.unwrap();
    assert_eq!(taken.data.unwrap()["k"], "2");
    let merged = Patch::Merge(json!({"data": {"k": null, "z": "9"}}));
    let data = maps.patch("a", &PatchParams::default(), &merged).await.unwrap().data.unwrap();
    assert_eq!(data.into_iter().collect::<Vec<_>>(), [("z".to_string(), "9".to_string())]);
    let old = maps.get("a").await.unwrap();
    maps.patch("a", &one, &Patch::Strategic(json!({"data": {"y": "8"}}))).await.unwrap();
    let stale = maps.replace("a", &PostParams::default(), &old).await.unwrap_err();
    assert!(matches!(&stale, kube::Error::Api(status) if status.is_conflict()), "{stale}");
    assert!(maps.get_opt("none").await.unwrap().is_none());
    let meta = maps.list_metadata(&ListParams::default()).await.unwrap();
    assert!(meta.items.iter().any(|item| item.metadata.name.as_deref() == Some("a")));
}

/// A reflector that begins with a streamed list follows changes and deletions.
async fn caches(client: Client) {
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    for streamed in [false, true] {
        let config = watcher::Config::default().labels("cached=yes");
        let config = if streamed { config.streaming_lists() } else { config };
        let (store, writer) = reflector::store();
        let changes = reflector(writer, watcher(maps.clone(), config))
            .default_backoff()
            .applied_objects()
            .predicate_filter(predicates::resource_version, Default::default());
        let following = tokio::spawn(async move { changes.for_each(|_| async {}).await });
        tokio::time::timeout(PATIENCE, store.wait_until_ready()).await.unwrap().unwrap();
        assert!(store.is_empty(), "streamed: {streamed}");
        let map = object(json!({"metadata": {"name": "cached", "labels": {"cached": "yes"}}}));
        maps.create(&PostParams::default(), &map).await.unwrap();
        until(|| store.len() == 1).await;
        // Leaving the selection is leaving the cache.
        let unlabelled = Patch::Merge(json!({"metadata": {"labels": {"cached": "no"}}}));
        maps.patch("cached", &PatchParams::default(), &unlabelled).await.unwrap();
        until(|| store.is_empty()).await;
        maps.delete("cached", &DeleteParams::default()).await.unwrap();
        following.abort();
    }
}

async fn until(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

/// A definition is found by discovery, and its objects by their kind.
async fn custom(client: Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definition = object(json!({
        "metadata": {"name": "ships.example.org"},
        "spec": {
            "group": "example.org", "scope": "Namespaced",
            "names": {"plural": "ships", "kind": "Ship"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"masts": {"type": "integer"}}}}}},
            }],
        },
    }));
    definitions.create(&PostParams::default(), &definition).await.unwrap();
    let established = conditions::is_crd_established();
    let wait = await_condition(definitions.clone(), "ships.example.org", established);
    tokio::time::timeout(PATIENCE, wait).await.unwrap().unwrap();
    let discovery = Discovery::new(client.clone()).run_aggregated().await.unwrap();
    let group = discovery.get("example.org").unwrap();
    let (resource, capabilities) = group.recommended_kind("Ship").unwrap();
    assert!(capabilities.supports_operation("watch"));
    let ships: Api<DynamicObject> = Api::namespaced_with(client, NAMESPACE, &resource);
    let ship = DynamicObject::new("s", &resource).data(json!({"spec": {"masts": 3, "oars": 9}}));
    let made = ships.create(&PostParams::default(), &ship).await.unwrap();
    assert_eq!(made.data["spec"], json!({"masts": 3}), "what the schema does not know is pruned");
    definitions.delete("ships.example.org", &DeleteParams::default()).await.unwrap();
}

/// Logs, a command, a port, an eviction.
async fn pods(client: Client) {
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let pod = object(json!({
        "metadata": {"name": "web"},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "web", "image": "web:1"}]},
    }));
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let running = await_condition(pods.clone(), "web", conditions::is_pod_running());
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
    let follow = LogParams { follow: true, ..LogParams::default() };
    let mut lines = pods.log_stream("web", &follow).await.unwrap().lines();
    assert!(lines.try_next().await.unwrap().unwrap().contains("starts"));

    let command = ["sh", "-c", "echo out; exit 4"];
    let mut process = pods.exec("web", command, &AttachParams::default()).await.unwrap();
    let (mut out, mut said) = (process.stdout().unwrap(), String::new());
    let status = process.take_status().unwrap();
    out.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "out\n");
    let status = status.await.unwrap();
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"));
    process.join().await.unwrap();

    let mut forward = pods.portforward("web", &[80]).await.unwrap();
    let mut port = forward.take_stream(80).unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut port, b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    port.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("version 1"), "{answer}");

    pods.evict("web", &EvictParams::default()).await.unwrap();
    let gone = await_condition(pods, "web", |pod: Option<&Pod>| pod.is_none());
    tokio::time::timeout(PATIENCE, gone).await.unwrap().unwrap();
}
