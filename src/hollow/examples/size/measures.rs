//! What is measured.

use std::path::Path;
use std::time::{Duration, Instant};

use base::drain;
use client::{Body, Cache, Client, ListParams, Shared};
use futures::StreamExt;
use http::{Method, Request};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use serde_json::json;

use crate::cluster::{Cluster, PATIENCE, Usage, eventually};
use crate::pods::{Kind, deployment, send, spec};

const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const NO_SCHEDULER: &[&str] = &["--disable-scheduler"];
/// Nodes take pods and do nothing with them: what is measured comes before that.
const IDLE: &[&str] = &["--pod-start-delay=24h"];
/// Replicas of each of the many Deployments.
const REPLICAS: usize = 500;
/// How long a server is left alone while its use of the CPU is taken.
const REST: Duration = Duration::from_secs(30);

/// Pods are there before the scheduler is: counted is from the first binding to the last, as
/// a watcher sees them. Nodes are objects by then, as where upstream is measured: nobody takes
/// the pods, and they are not missed before it is over.
pub async fn schedule(executable: &Path, nodes: u32, pods: usize, kind: Kind) {
    let mut cluster = Cluster::new(executable, NO_SCHEDULER);
    let agent = cluster.nodes("hollow", nodes, IDLE).await;
    account(&cluster.client()).await;
    let bodies = (0..pods).map(|number| (PODS.to_string(), kind.pod(number)));
    send(&cluster.client(), Method::POST, bodies).await;
    cluster.lose(agent);
    cluster.stop();
    cluster.start(&[]);
    let before = cluster.usage();
    let (first, last, seen) = entered(&cluster.client(), "spec.nodeName!=", pods).await;
    let took = last - first;
    let used = cluster.usage().cpu - before.cpu;
    println!(
        "schedule {pods:>6} pods on {nodes:>5} nodes, {:<14} {:>6.0} pods/s  in {:.2?}, CPU {:.2?} of the server",
        kind.name(),
        seen as f64 / took.as_secs_f64(),
        took,
        used,
    );
}

/// When the first and the last pod were seen to enter a selection of fields, and how many did
/// in between. A watch that lags too far behind ends, and begins anew after a list.
async fn entered(client: &Client, fields: &str, pods: usize) -> (Instant, Instant, usize) {
    let mut first = None;
    let mut before = None;
    loop {
        let list = client.all::<Pod>().list(&ListParams::fields(fields)).await.unwrap();
        let (mut last, mut seen) = (Instant::now(), list.items.len());
        let before = *before.get_or_insert(seen);
        let version = list.metadata.resource_version.unwrap();
        let selector = fields.replace('!', "%21").replace('=', "%3D");
        let path =
            format!("/api/v1/pods?watch=1&fieldSelector={selector}&resourceVersion={version}");
        let request = Request::get(&path).body("".into()).unwrap();
        let Body::Stream(mut stream) = client.open(request).await.unwrap().into_body() else {
            panic!("a watch is a stream");
        };
        // A pod enters it once.
        let mark = b"{\"type\":\"ADDED\"";
        let mut rest = Vec::new();
        while seen < pods {
            let chunk = tokio::time::timeout(PATIENCE, stream.next()).await.expect("pods go on");
            let Some(chunk) = chunk else { break };
            last = Instant::now();
            rest.extend_from_slice(&chunk.unwrap());
            let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let lines = rest[..whole].split(|byte| *byte == b'\n');
            let added = lines.filter(|line| line.starts_with(mark)).count();
            if added > 0 {
                first.get_or_insert(last);
            }
            seen += added;
            rest.drain(..whole);
        }
        if seen >= pods {
            return (first.unwrap_or(last), last, seen - before);
        }
    }
}

/// Pods are refused before there is their account.
async fn account(client: &Client) {
    let path = "/api/v1/namespaces/default/serviceaccounts/default";
    eventually("the default account", async || client.get_raw(path).await.is_ok()).await;
}

pub async fn scale(executable: &Path, deployments: usize, replicas: usize, nodes: u32) {
    let mut cluster = Cluster::new(executable, &[]);
    cluster.nodes("hollow", nodes, &[]).await;
    let client = cluster.client();
    account(&client).await;
    let all =
        (0..deployments).map(|n| (DEPLOYMENTS.into(), deployment(&format!("d{n}"), 0, spec())));
    send(&client, Method::POST, all).await;
    let (_trigger, drain) = drain::channel();
    let held: Cache<Deployment> = Shared::new(client.clone(), drain).cache();
    held.synced().await;
    for (wanted, what) in [(replicas, "up"), (0, "down")] {
        let (before, begun) = (cluster.usage(), Instant::now());
        let patch = json!({"spec": {"replicas": wanted}});
        let all = (0..deployments).map(|n| (format!("{DEPLOYMENTS}/d{n}"), patch.clone()));
        send(&client, Method::PATCH, all).await;
        eventually("the Deployments have their replicas", async || {
            held.list().iter().filter(|d| ready(d) == (wanted, wanted)).count() == deployments
        })
        .await;
        if wanted == 0 {
            let one = ListParams { limit: Some(1), ..ListParams::default() };
            let api = client.all::<Pod>();
            let gone = async || api.list(&one).await.unwrap().items.is_empty();
            eventually("the pods are gone", gone).await;
        }
        tell(
            &format!("{deployments} Deployments scaled {what}, {replicas} replicas each"),
            begun.elapsed(),
            &cluster,
            before,
        );
    }
}

/// Replicas that there are, and that are ready; of the generation that is wanted.
fn ready(deployment: &Deployment) -> (usize, usize) {
    let status = deployment.status.clone().unwrap_or_default();
    if status.observed_generation != deployment.metadata.generation {
        return (usize::MAX, usize::MAX);
    }
    let count = |number: Option<i32>| usize::try_from(number.unwrap_or_default()).unwrap();
    (count(status.replicas), count(status.ready_replicas))
}

fn tell(what: &str, took: Duration, cluster: &Cluster, before: Usage) {
    let now = cluster.usage();
    println!(
        "{what}: {took:.2?}, CPU {:.2?} of the server, resident {:.0} MiB",
        now.cpu - before.cpu,
        now.resident_mib
    );
}

/// A tenth of the objects are pods that run.
pub async fn namespace(executable: &Path, objects: usize) {
    let mut cluster = Cluster::new(executable, &[]);
    cluster.nodes("hollow", 100, &[]).await;
    let client = cluster.client();
    let made = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "full"}});
    send(&client, Method::POST, [("/api/v1/namespaces".to_string(), made)].into_iter()).await;
    let path = "/api/v1/namespaces/full/serviceaccounts/default";
    eventually("the default account", async || client.get_raw(path).await.is_ok()).await;
    let all = (0..objects).map(|number| {
        let (plural, mut body) = match number % 10 {
            0 => ("pods", Kind::Plain.pod(number)),
            1 | 2 => ("secrets", json!({"kind": "Secret", "stringData": {"a": "b"}})),
            3 => ("serviceaccounts", json!({"kind": "ServiceAccount"})),
            _ => ("configmaps", json!({"kind": "ConfigMap", "data": {"a": "b"}})),
        };
        body["apiVersion"] = "v1".into();
        body["metadata"]["name"] = format!("o{number}").into();
        (format!("/api/v1/namespaces/full/{plural}"), body)
    });
    send(&client, Method::POST, all).await;
    let (before, begun) = (cluster.usage(), Instant::now());
    let delete = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
    let path = "/api/v1/namespaces/full".to_string();
    send(&client, Method::DELETE, [(path, delete)].into_iter()).await;
    let api = client.all::<Namespace>();
    let gone = async || api.get_opt("full").await.unwrap().is_none();
    eventually("the namespace is gone", gone).await;
    tell(&format!("a namespace of {objects} objects deleted"), begun.elapsed(), &cluster, before);
}

/// The pods leave at once when their node is held for dead: how long that takes is upstream's
/// 50 seconds, the rest is ours.
pub async fn lost(executable: &Path, pods: usize) {
    let mut cluster = Cluster::new(executable, &[]);
    let victim = cluster.nodes("lost", 1, &[]).await;
    let client = cluster.client();
    account(&client).await;
    let mut spec = spec();
    spec["containers"][0]["resources"] = json!({});
    spec["tolerations"] = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists",
        "effect": "NoExecute", "tolerationSeconds": 0}]);
    let body = deployment("web", pods, spec);
    send(&client, Method::POST, [(DEPLOYMENTS.to_string(), body)].into_iter()).await;
    let (_trigger, drain) = drain::channel();
    let shared = Shared::new(client.clone(), drain);
    let (held, nodes): (Cache<Pod>, Cache<Node>) = (shared.cache(), shared.cache());
    // Those that serve: not on the node that is lost, unless it lives.
    let serving = |also_lost: bool| {
        let all = held.list();
        all.iter()
            .filter(|pod| also_lost || on(pod) != "lost-0")
            .filter(|pod| is_ready(pod))
            .count()
    };
    eventually("all pods serve", async || serving(true) == pods).await;
    cluster.nodes("hollow", 10, &[]).await;
    let (before, begun) = (cluster.usage(), Instant::now());
    cluster.lose(victim);
    let noticed = eventually("the node is tainted", async || {
        let node = nodes.get("", "lost-0").unwrap();
        let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        taints.into_iter().any(|taint| taint.effect == "NoExecute")
    })
    .await;
    eventually("all pods serve again", async || serving(false) == pods).await;
    let replaced = begun.elapsed() - noticed;
    println!(
        "a node lost with {pods} pods: noticed after {noticed:.1?}, all replaced {replaced:.2?} later"
    );
    tell("  with", begun.elapsed(), &cluster, before);
}

fn on(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Everything at once: Deployments of 500 until all pods run, and then rest. Pods that are
/// bound from the beginning belong to nobody.
pub async fn hold(executable: &Path, nodes: u32, pods: usize, bound: bool) {
    let mut cluster = Cluster::new(executable, &[]);
    let empty = cluster.usage();
    cluster.nodes("hollow", nodes, &[]).await;
    let client = cluster.client();
    account(&client).await;
    let with_nodes = cluster.usage();
    println!(
        "resident with nothing {:.0} MiB, with {nodes} nodes {:.0} MiB (CPU {:.2?})",
        empty.resident_mib, with_nodes.resident_mib, with_nodes.cpu
    );
    let begun = Instant::now();
    if bound {
        let all = (0..pods).map(|number| {
            let mut pod = Kind::Plain.pod(number);
            pod["spec"]["nodeName"] = format!("hollow-{}", number % nodes as usize).into();
            (PODS.to_string(), pod)
        });
        send(&client, Method::POST, all).await;
    } else {
        let all = (0..pods.div_ceil(REPLICAS)).map(|number| {
            let replicas = REPLICAS.min(pods - number * REPLICAS);
            (DEPLOYMENTS.to_string(), deployment(&format!("d{number}"), replicas, spec()))
        });
        send(&client, Method::POST, all).await;
    }
    entered(&client, "status.phase=Running", pods).await;
    let what = format!("{pods} pods run on {nodes} nodes");
    tell(&what, begun.elapsed(), &cluster, with_nodes);
    // What came of it is not rest.
    tokio::time::sleep(REST).await;
    let (before, nodes_before, begun) = (cluster.usage(), cluster.agents_cpu(), Instant::now());
    tokio::time::sleep(REST).await;
    let now = cluster.usage();
    let percent = |used: Duration| used.as_secs_f64() * 100.0 / begun.elapsed().as_secs_f64();
    println!(
        "at rest with {pods} pods on {nodes} nodes that beat: resident {:.0} MiB (peak {:.0}), CPU {:.1} % of a core, the nodes' own {:.1} %",
        now.resident_mib,
        now.peak_mib,
        percent(now.cpu - before.cpu),
        percent(cluster.agents_cpu() - nodes_before)
    );
}
