//! Answers for the group: which nodes are asked, for how long an answer serves, and who
//! gets what.
//!
//! At most one round of questions is under way at a time; whoever comes meanwhile waits for
//! it. A node that does not answer in time is left out, and its pods with it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use base::error::chain;
use bytes::Bytes;
use client::{Body, Cache, Client, Shared, Transport};
use futures::stream::{self, StreamExt};
use http::{Method, Request, Response, StatusCode, header};
use k8s_openapi::api::core::v1::{Node, Pod};
use kinds::meta::LabelSelector;
use kinds::meta::selector::FieldSelector;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::object;
use super::sample::{self, Sample, Usage};

/// Answers serve for this long (metrics-server's resolution).
const FRESH: Duration = Duration::from_secs(15);
/// An answer older than this is no beginning of a window: what was used since says little
/// of now.
const BEGINNING_MAX: Duration = Duration::from_secs(90);
/// Where there is no beginning, one is made, and this long after it the end.
const WINDOW: Duration = Duration::from_millis(1_500);
/// How long a kubelet may take to answer.
const NODE_TIMEOUT: Duration = Duration::from_secs(8);
/// Kubelets asked at once.
const ASKED_AT_ONCE: usize = 32;

type Samples = HashMap<String, Sample>;

/// What was measured last.
#[derive(Default)]
struct Known {
    /// The latest answers, and when they came.
    last: Option<(Instant, Samples)>,
    /// The nodes that were asked then, whether they answered or not.
    asked: HashSet<String>,
    nodes: BTreeMap<String, Usage>,
    pods: BTreeMap<(String, String), Vec<(String, Usage)>>,
}

/// Serves `metrics.k8s.io/v1beta1`.
pub struct MetricsServer {
    /// Asks the kubelets, through the API server.
    client: Client,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    known: Mutex<Known>,
}

impl MetricsServer {
    /// `client` asks as [`super::ACCOUNT`].
    pub fn new(shared: &Shared, client: Client) -> Self {
        Self { client, nodes: shared.cache(), pods: shared.cache(), known: Mutex::default() }
    }

    fn names(&self) -> HashSet<String> {
        self.nodes.list().iter().filter_map(|node| node.metadata.name.clone()).collect()
    }

    async fn ask_all(&self, names: &HashSet<String>) -> Samples {
        let asked = stream::iter(names.clone()).map(|name| async move {
            let sample = self.ask(&name).await?;
            Some((name, sample))
        });
        asked.buffer_unordered(ASKED_AT_ONCE).filter_map(std::future::ready).collect().await
    }

    async fn ask(&self, node: &str) -> Option<Sample> {
        let path = format!("/api/v1/nodes/{node}/proxy/metrics/resource");
        match tokio::time::timeout(NODE_TIMEOUT, self.client.get_raw(&path)).await {
            Ok(Ok(text)) => {
                let now = base::time::now().as_millisecond();
                Some(sample::read(&String::from_utf8_lossy(&text), now))
            }
            Ok(Err(err)) => {
                debug!(node, error = %chain(&err), "no metrics of the node");
                None
            }
            Err(_) => {
                warn!(
                    node,
                    seconds = NODE_TIMEOUT.as_secs(),
                    "the node did not tell its metrics in time"
                );
                None
            }
        }
    }

    /// Measures, unless that was done a moment ago.
    async fn measured(&self) -> tokio::sync::MutexGuard<'_, Known> {
        let mut known = self.known.lock().await;
        let age = known.last.as_ref().map(|(since, _)| since.elapsed());
        // A node that has come meanwhile need not wait for the others' turn.
        let names = self.names();
        let missing = !names.is_subset(&known.asked);
        if age.is_some_and(|age| age < if missing { WINDOW } else { FRESH }) {
            return known;
        }
        let before = match known.last.take() {
            Some((since, samples)) if since.elapsed() < BEGINNING_MAX && !missing => samples,
            Some(_) | None => {
                let beginning = self.ask_all(&names).await;
                tokio::time::sleep(WINDOW).await;
                beginning
            }
        };
        let now = self.ask_all(&names).await;
        known.asked = names;
        known.nodes.clear();
        known.pods.clear();
        for (name, sample) in &now {
            measure(&mut known, name, before.get(name), sample);
        }
        known.last = Some((Instant::now(), now));
        known
    }

    async fn answer(&self, request: &Request<Bytes>) -> (u16, Value) {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let text = "the server does not allow this method on the requested resource";
            return (405, object::status(405, "MethodNotAllowed", text));
        }
        let path = request.uri().path().trim_matches('/').to_owned();
        let parts: Vec<&str> = path.split('/').collect();
        let asked = match Asked::read(request) {
            Ok(asked) => asked,
            Err(why) => return (400, object::status(400, "BadRequest", &why)),
        };
        match parts.get(3..).unwrap_or_default() {
            [] => (200, object::resources()),
            ["nodes"] => asked.show("NodeMetrics", self.node_list(&asked).await, None),
            ["nodes", name] => {
                let all = self.node_list(&Asked::default()).await;
                asked.show("NodeMetrics", all, Some((name, name.to_string())))
            }
            ["pods"] => asked.show("PodMetrics", self.pod_list(None, &asked).await, None),
            ["namespaces", namespace, "pods"] => {
                asked.show("PodMetrics", self.pod_list(Some(namespace), &asked).await, None)
            }
            ["namespaces", namespace, "pods", name] => {
                let all = self.pod_list(Some(namespace), &Asked::default()).await;
                asked.show("PodMetrics", all, Some((name, format!("{namespace}/{name}"))))
            }
            _ => {
                let text = "the server could not find the requested resource";
                (404, object::status(404, "NotFound", text))
            }
        }
    }

    async fn node_list(&self, asked: &Asked) -> Vec<Value> {
        let known = self.measured().await;
        let now = base::time::now().as_millisecond();
        let nodes = self.nodes.list();
        let chosen = nodes.iter().filter(|node| asked.chooses(&node.metadata));
        chosen
            .filter_map(|node| {
                let name = node.metadata.name.as_deref()?;
                let usage = known.nodes.get(name)?;
                Some(object::node(name, &json!(node.metadata.labels), usage, now))
            })
            .collect()
    }

    async fn pod_list(&self, namespace: Option<&str>, asked: &Asked) -> Vec<Value> {
        let known = self.measured().await;
        let now = base::time::now().as_millisecond();
        let pods = match namespace {
            Some(namespace) => self.pods.list_in(namespace),
            None => self.pods.list(),
        };
        let running = |pod: &&std::sync::Arc<Pod>| {
            pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
        };
        pods.iter()
            .filter(running)
            .filter(|pod| asked.chooses(&pod.metadata))
            .filter_map(|pod| {
                let name = pod.metadata.name.clone()?;
                let namespace = pod.metadata.namespace.clone()?;
                let usage = known.pods.get(&(namespace.clone(), name.clone()))?;
                let containers: Vec<(&str, Usage)> =
                    usage.iter().map(|(name, usage)| (name.as_str(), *usage)).collect();
                let labels = json!(pod.metadata.labels);
                Some(object::pod(&namespace, &name, &labels, &containers, now))
            })
            .collect()
    }
}

fn measure(known: &mut Known, node: &str, before: Option<&Sample>, now: &Sample) {
    let of_node = before.and_then(|before| before.node.as_ref());
    if let Some(usage) = now.node.as_ref().and_then(|point| sample::usage(of_node, point)) {
        known.nodes.insert(node.to_owned(), usage);
    }
    for (key, containers) in &now.pods {
        let earlier = before.and_then(|before| before.pods.get(key));
        let used: Option<Vec<(String, Usage)>> = containers
            .iter()
            .map(|(name, point)| {
                // One that was not there before began after the other answer.
                let nothing = sample::Point {
                    at: before.and_then(|b| b.node.as_ref()).map_or(0, |node| node.at),
                    ..sample::Point::default()
                };
                let earlier = earlier.and_then(|earlier| earlier.get(name)).or(Some(&nothing));
                Some((name.clone(), sample::usage(earlier.filter(|e| e.at > 0), point)?))
            })
            .collect();
        // Half a pod would look like a small one.
        if let Some(used) = used {
            known.pods.insert(key.clone(), used);
        }
    }
}

/// What of a request decides the answer.
#[derive(Default)]
struct Asked {
    labels: Option<LabelSelector>,
    /// Of `metadata.name` and `metadata.namespace`.
    fields: FieldSelector,
    /// The version of `meta.k8s.io` of the table that is wanted.
    table: Option<&'static str>,
}

impl Asked {
    fn read(request: &Request<Bytes>) -> Result<Self, String> {
        let mut out = Self::default();
        for pair in request.uri().query().unwrap_or_default().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value);
            match key {
                "labelSelector" if !value.is_empty() => {
                    out.labels = Some(
                        LabelSelector::parse(&value)
                            .map_err(|why| format!("unable to parse: {why}"))?,
                    );
                }
                "fieldSelector" if !value.is_empty() => {
                    let fields = FieldSelector::parse(&value).map_err(|why| why.to_string())?;
                    let known = ["metadata.name", "metadata.namespace"];
                    if let Some((other, ..)) =
                        fields.terms.iter().find(|(field, ..)| !known.contains(&field.as_str()))
                    {
                        return Err(format!("field label not supported: {other}"));
                    }
                    out.fields = fields;
                }
                _ => {}
            }
        }
        let accept = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok());
        let first = accept
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .find(|offer| offer.starts_with("application/json") || offer.starts_with("*/*"));
        out.table = first
            .filter(|offer| offer.contains("as=Table"))
            .map(|offer| if offer.contains("v=v1beta1") { "v1beta1" } else { "v1" });
        Ok(out)
    }

    fn chooses(&self, meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> bool {
        let of = |field: &str| match field {
            "metadata.name" => meta.name.as_deref().unwrap_or_default(),
            _ => meta.namespace.as_deref().unwrap_or_default(),
        };
        self.labels.as_ref().is_none_or(|labels| labels.matches_map(meta.labels.as_ref()))
            && self.fields.terms.iter().all(|(field, equal, value)| (of(field) == value) == *equal)
    }

    /// A list, or the one object of a name: where it is not there, `one` also says how its
    /// absence is told.
    fn show(
        &self,
        kind: &str,
        mut items: Vec<Value>,
        one: Option<(&&str, String)>,
    ) -> (u16, Value) {
        if let Some((name, told)) = one {
            items.retain(|item| item["metadata"]["name"] == **name);
            let Some(item) = items.pop() else { return (404, object::not_found(kind, &told)) };
            return match self.table {
                Some(version) => (200, object::table(&[item], version)),
                None => (200, item),
            };
        }
        match self.table {
            Some(version) => (200, object::table(&items, version)),
            None => (200, object::list(kind, items)),
        }
    }
}

/// A value of a query as it was before it was one.
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = [bytes.next(), bytes.next()];
                let digit = |d: Option<u8>| d.and_then(|d| char::from(d).to_digit(16));
                match digits.map(digit) {
                    [Some(high), Some(low)] => out.push((high * 16 + low) as u8),
                    _ => out.push(b'%'),
                }
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[async_trait]
impl Transport for MetricsServer {
    async fn send(&self, request: Request<Bytes>) -> client::error::Result<Response<Body>> {
        let (code, answer) = self.answer(&request).await;
        let body = serde_json::to_vec(&answer).map_err(client::Error::Encode)?;
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::Full(body.into()))
            .map_err(client::Error::Request)
    }
}
