//! The address objects of services, and the ranges that addresses come from.

use http::Method;
use serde_json::{Value, json};

use super::support::{self, ask};
use super::{DISABLED, get};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";

fn service(name: &str, ip: &str) -> Value {
    let mut out = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}]}});
    if !ip.is_empty() {
        out["spec"]["clusterIP"] = ip.into();
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn services_have_address_objects_as_long_as_they_have_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &DISABLED, |_| {}).await;
    let own = get(&server, &format!("{ADDRESSES}/10.43.0.1")).await.json();
    assert_eq!(own["spec"]["parentRef"]["name"], "kubernetes");
    let made = ask(&server, Method::POST, SERVICES, service("s", "")).await.json();
    let ip = made["spec"]["clusterIP"].as_str().unwrap().to_string();
    let address = get(&server, &format!("{ADDRESSES}/{ip}")).await.json();
    assert_eq!(
        address["spec"]["parentRef"],
        json!({"resource": "services", "namespace": "default", "name": "s"})
    );
    // A dry run takes nothing, and neither does what is refused.
    let dry = format!("{SERVICES}?dryRun=All");
    assert_eq!(ask(&server, Method::POST, &dry, service("t", "10.43.9.9")).await.status, 201);
    let twice = service("s", "10.43.9.9");
    assert_eq!(ask(&server, Method::POST, SERVICES, twice).await.status, 409);
    assert_eq!(get(&server, &format!("{ADDRESSES}/10.43.9.9")).await.status, 404);
    let patch = json!({"spec": {"type": "ExternalName", "externalName": "x.example",
        "clusterIP": null, "clusterIPs": null, "ports": null}});
    let path = format!("{SERVICES}/s");
    assert_eq!(ask(&server, Method::PATCH, &path, patch).await.status, 200);
    assert_eq!(get(&server, &format!("{ADDRESSES}/{ip}")).await.status, 404);
    ask(&server, Method::POST, SERVICES, service("u", "10.43.9.9")).await;
    assert_eq!(get(&server, &format!("{ADDRESSES}/10.43.9.9")).await.status, 200);
    ask(&server, Method::DELETE, &format!("{SERVICES}/u"), Value::Null).await;
    assert_eq!(get(&server, &format!("{ADDRESSES}/10.43.9.9")).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_somebody_reserved_is_not_given_away() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &DISABLED, |_| {}).await;
    let reserved = json!({"kind": "IPAddress", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": "10.43.7.7"},
        "spec": {"parentRef": {"group": "gateway.networking.k8s.io", "resource": "gateways",
            "namespace": "default", "name": "g"}}});
    assert_eq!(ask(&server, Method::POST, ADDRESSES, reserved).await.status, 201);
    let refused = ask(&server, Method::POST, SERVICES, service("s", "10.43.7.7")).await;
    assert_eq!(
        refused.message(),
        "Service \"s\" is invalid: spec.clusterIPs: Invalid value: [\"10.43.7.7\"]: failed to allocate IP 10.43.7.7: provided IP is already allocated"
    );
    ask(&server, Method::DELETE, &format!("{ADDRESSES}/10.43.7.7"), Value::Null).await;
    assert_eq!(ask(&server, Method::POST, SERVICES, service("s", "10.43.7.7")).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_repairs_what_a_crash_left() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &DISABLED, |_| {}).await;
    ask(&server, Method::POST, SERVICES, service("s", "10.43.9.9")).await;
    ask(&server, Method::POST, SERVICES, service("t", "10.43.9.8")).await;
    let registry = &server.registry;
    let cut = |key: &str, prefix: &str| {
        let known = registry.cache.get(prefix, key).unwrap();
        store::Write::Delete { key: key.into(), expected: known.revision }
    };
    for write in [
        cut("/registry/services/specs/default/s", "/registry/services/specs/"),
        cut("/registry/ipaddresses/10.43.9.8", "/registry/ipaddresses/"),
    ] {
        registry.store().write(write, store::Durability::Durable).await.unwrap();
    }
    registry.cache.fresh().await.unwrap();
    registry.repair_addresses().await.unwrap();
    assert_eq!(get(&server, &format!("{ADDRESSES}/10.43.9.9")).await.status, 404);
    assert_eq!(get(&server, &format!("{ADDRESSES}/10.43.9.8")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_ranges_give_more_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &DISABLED, |_| {}).await;
    let own = get(&server, &format!("{RANGES}/kubernetes")).await.json();
    assert_eq!(own["spec"]["cidrs"], json!(["10.43.0.0/16"]));
    assert_eq!(own["status"]["conditions"][0]["status"], "True");
    let range = json!({"kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": "more"}, "spec": {"cidrs": ["10.99.0.0/24"]}});
    assert_eq!(ask(&server, Method::POST, RANGES, range).await.status, 201);
    let wanted = service("s", "10.99.0.9");
    // It gives none before it is ready.
    assert_eq!(ask(&server, Method::POST, SERVICES, wanted.clone()).await.status, 422);
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True",
        "reason": "", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let path = format!("{RANGES}/more");
    assert_eq!(ask(&server, Method::PATCH, &format!("{path}/status"), ready).await.status, 200);
    assert_eq!(ask(&server, Method::POST, SERVICES, wanted).await.status, 201);
    ask(&server, Method::DELETE, &path, Value::Null).await;
    let late = service("t", "10.99.0.10");
    assert_eq!(ask(&server, Method::POST, SERVICES, late).await.status, 422);
}
