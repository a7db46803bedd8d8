//! What every cluster has from its first moment: namespaces, roles, priority classes,
//! flow schemas, API services, and the `kubernetes` service that leads to this server.
//!
//! Runs at every start and creates what is missing; what somebody changed stays.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::aggregate::local;
use crate::authn::tokens::legacy_token::{LAST_USED, today};
use crate::authn::{MASTERS, User};
use crate::error::{ApiError, Result};
use crate::flow;
use crate::registry::update::Change;
use crate::registry::{Target, WriteOptions, metadata_str};
use crate::serve::Shared;

mod roles;

const RBAC: &str = include_str!("../../embedded/bootstrap-rbac.json");
const NAMESPACES: [&str; 4] = ["kube-system", "default", "kube-public", "kube-node-lease"];
/// Creations under way at once; they share commits.
const CONCURRENCY: usize = 64;

/// Where this server is reached from inside the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Advertised {
    pub address: Ipv4Addr,
    pub port: u16,
    /// Cluster IP of the `kubernetes` service.
    pub service: Ipv4Addr,
}

/// The server's own name.
pub(crate) const USER: &str = "system:apiserver";

/// How the server writes in its own name.
pub(crate) fn options() -> WriteOptions {
    WriteOptions {
        notes: Default::default(),
        user: Arc::new(User::new(USER, &[MASTERS])),
        manager: "kube-apiserver".into(),
        dry_run: false,
        validation: Default::default(),
        force: false,
        strict_errors: Vec::new(),
    }
}

pub(crate) fn target(server: &Shared, object: &Value) -> Result<Target> {
    let api_version = object["apiVersion"].as_str().unwrap_or("");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = object["kind"].as_str().unwrap_or("");
    let catalog = server.registry.catalog();
    let resource = catalog.by_kind(group, kind).ok_or_else(ApiError::no_such_resource)?;
    Ok(Target {
        resource: resource.clone(),
        version: version.into(),
        namespace: metadata_str(object, "namespace").into(),
        name: metadata_str(object, "name").into(),
        subresource: String::new(),
    })
}

/// Creates what is missing of `objects`. Returns how many that were.
pub(crate) async fn ensure(server: &Shared, objects: Vec<Value>) -> Result<usize> {
    let created: Vec<bool> = stream::iter(objects)
        .map(|mut object| async move {
            let target = target(server, &object)?;
            if server.registry.cache.get(target.prefix()?, &target.key()?).is_some() {
                return Ok(false);
            }
            target.normalise(&mut object);
            match server.registry.create(&target, object, &options()).await {
                Ok(_) => Ok(true),
                Err(error) if error.reason == "AlreadyExists" => Ok(false),
                Err(error) => Err(error),
            }
        })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await?;
    Ok(created.iter().filter(|created| **created).count())
}

/// Creates an object, or brings fields of it up to date: addresses and authorities may have
/// changed since the last start. Returns how many objects were made.
async fn keep(server: &Shared, object: Value, fields: &[&str]) -> Result<usize> {
    let target = target(server, &object)?;
    if server.registry.cache.get(target.prefix()?, &target.key()?).is_none() {
        return ensure(server, vec![object]).await;
    }
    let parts = fields.iter().filter_map(|f| Some(((*f).to_string(), object.get(*f)?.clone())));
    let parts = parts.collect::<serde_json::Map<_, _>>();
    server.registry.update(&target, Change::Merge(parts.into()), &options()).await?;
    Ok(0)
}

/// Labels secrets with the day on which their tokens were last used.
pub async fn mark_used_secrets(server: Shared) {
    let mut used = server.authenticator.used_secrets();
    while let Some((namespace, name)) = used.recv().await {
        let object = json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace}});
        let labels = json!({"metadata": {"labels": {LAST_USED: today()}}});
        let marked = match target(&server, &object) {
            Ok(target) => server.registry.update(&target, Change::Merge(labels), &options()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = marked {
            warn!(secret = %format!("{namespace}/{name}"), error = %error.message, "the last use of a token was not noted");
        }
    }
}

fn embedded(text: &str) -> Result<Vec<Value>> {
    serde_json::from_str(text).map_err(|err| ApiError::internal(err.to_string()))
}

/// Makes the cluster's first objects and marks the server as bootstrapped.
pub async fn run(server: &Shared, advertised: Advertised) -> Result<()> {
    let namespaces = NAMESPACES
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    let mut made = ensure(server, namespaces.to_vec()).await?;
    server.registry.cache.fresh().await?;
    let mut objects = embedded(RBAC)?;
    let node = roles::add(&mut objects, &server.registry.features);
    objects.extend(priority_classes());
    objects.extend(local::wanted(&server.registry.catalog()));
    made += ensure(server, objects).await?;
    if let Some(node) = node {
        // The role may be older than the switch.
        made += keep(server, node, &["rules"]).await?;
    }
    local::tidy(&server.registry).await?;
    made += ensure_range(server).await?;
    server.registry.repair_addresses().await?;
    made += ensure(server, vec![kubernetes_service(advertised)]).await?;
    server.registry.cache.fresh().await?;
    let [endpoints, slice] = kubernetes_endpoints(advertised);
    made += keep(server, endpoints, &["subsets"]).await?;
    made += keep(server, slice, &["endpoints", "ports"]).await?;
    made += keep(server, server.authenticator.published(), &["data"]).await?;
    made += ensure(server, vec![legacy_tokens_are_tracked()]).await?;
    flow::controller::start(server).await?;
    server.ready.bootstrapped.store(true, Ordering::Release);
    if made > 0 {
        info!(objects = made, "cluster bootstrapped");
    }
    Ok(())
}

/// The `ServiceCIDR` of the range that this server was given, which is ready at once.
async fn ensure_range(server: &Shared) -> Result<usize> {
    let range = server.registry.allocator.network().to_string();
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": [range]},
    });
    let made = ensure(server, vec![object.clone()]).await?;
    if made > 0 {
        let target = Target { subresource: "status".into(), ..target(server, &object)? };
        let manager = "kubernetes-service-cidr-controller".to_string();
        let status = Change::Apply(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"},
            "status": {"conditions": [{
                "type": "Ready", "status": "True",
                "lastTransitionTime": base::time::rfc3339(base::time::now()),
                "message": "Kubernetes default Service CIDR is ready",
            }]},
        }));
        let options = WriteOptions { manager, ..options() };
        server.registry.update(&target, status, &options).await?;
    }
    Ok(made)
}

/// Says since when the last use of tokens in secrets is noted: who cleans up must not take a
/// token for unused because nobody looked.
fn legacy_tokens_are_tracked() -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "kube-apiserver-legacy-service-account-token-tracking",
            "namespace": "kube-system"},
        "data": {"since": today()},
    })
}

fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description,
            "preemptionPolicy": "PreemptLowerPriority",
        })
    };
    [
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

fn kubernetes_service(advertised: Advertised) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": advertised.service.to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": advertised.port}],
            "sessionAffinity": "None", "type": "ClusterIP",
        },
    })
}

/// Endpoints and EndpointSlice of the `kubernetes` service, which no controller keeps:
/// the service has no selector. A loopback address names no host to a pod: there are no
/// endpoints then.
fn kubernetes_endpoints(advertised: Advertised) -> [Value; 2] {
    let address = advertised.address.to_string();
    let reachable = !advertised.address.is_loopback();
    let endpoints = if reachable {
        json!([{"addresses": [address], "conditions": {"ready": true}}])
    } else {
        json!([])
    };
    [
        json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
            },
            "subsets": reachable.then(|| json!([{
                "addresses": [{"ip": address}],
                "ports": [{"name": "https", "port": advertised.port, "protocol": "TCP"}],
            }])),
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "https", "port": advertised.port, "protocol": "TCP"}],
        }),
    ]
}
