//! Asks extenders over HTTP: which nodes will do, which of them are better, whose pods may go;
//! and lets one of them bind (k8s.io/kube-scheduler, `extender/v1`).
//!
//! Waits no longer than each extender's time; what comes of an answer is decided by the caller.

mod whole;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;

use base::error::chain;
use client::Client;
use client::remote::Remote;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use tracing::debug;

use crate::config::Extender as Settings;
use crate::facts::Facts;
use crate::filter::{Reject, Rule};
use crate::plan::{Able, Rejected};
use crate::pod::PodInfo;
use crate::preempt::Victims;
use crate::score::BEST;
use whole::Whole;

/// The best score of an extender (`extender/v1`, MaxExtenderPriority).
const EXTENDERS_BEST: i64 = 10;

#[derive(Debug, thiserror::Error)]
pub enum ExtendError {
    #[error("ask extender {url}")]
    Call {
        url: String,
        #[source]
        source: client::Error,
    },
    #[error("read pods for extenders")]
    Read(#[source] client::Error),
    #[error("extender {url} does not answer in time")]
    Late { url: String },
    /// In the extender's own words.
    #[error("{0}")]
    Said(String),
    #[error(
        "extender {url:?} claims a filtered node {node:?} which is not found in the input node list"
    )]
    Stranger { url: String, node: String },
}

type Result<T> = std::result::Result<T, ExtendError>;

/// What extenders are asked of a pod.
#[derive(Debug)]
pub struct Question {
    pub facts: Arc<Facts>,
    pub able: Able,
    pub rejects: Rejected,
}

/// What they say.
#[derive(Debug)]
pub enum Answer {
    Node(String),
    /// Why none of the nodes will do.
    Nobody(Rejected),
}

/// All that are configured, in their order.
#[derive(Debug, Clone, Default)]
pub struct Extenders(Arc<Vec<Extender>>);

struct Extender {
    settings: Settings,
    client: Client,
}

impl std::fmt::Debug for Extender {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Extender").field("url", &self.settings.endpoint.server).finish()
    }
}

impl Extenders {
    pub fn new(settings: &[Settings]) -> Self {
        let each = settings.iter().map(|settings| Extender {
            settings: settings.clone(),
            client: Remote::new(&settings.endpoint)
                .expect("the configuration was refused if its certificates cannot be read")
                .client("kube-scheduler"),
        });
        Self(Arc::new(each.collect()))
    }

    /// Whether any of them has something to say about the pod's node.
    pub fn mind(&self, pod: &PodInfo) -> bool {
        self.interested(pod).any(|it| {
            let settings = &it.settings;
            [&settings.filter, &settings.prioritize, &settings.preempt]
                .iter()
                .any(|verb| !verb.is_empty())
        })
    }

    fn interested<'a>(&'a self, pod: &'a PodInfo) -> impl Iterator<Item = &'a Extender> {
        self.0.iter().filter(|it| it.is_interested(pod))
    }

    /// The node that remains the best when all have spoken. `client` reads the pod.
    ///
    /// # Errors
    /// The failure of one that cannot be ignored, or to read the pod.
    pub async fn choose(
        &self,
        client: &Client,
        pod: &PodInfo,
        question: &Question,
        below: &mut (dyn FnMut(u64) -> u64 + Send),
    ) -> Result<Answer> {
        let whole = match self.interested(pod).any(Extender::looks_at_nodes) {
            true => Whole::read(client, vec![pod]).await.map_err(ExtendError::Read)?.of(pod),
            false => Value::Null,
        };
        let (mut able, mut rejects) = (question.able.clone(), question.rejects.clone());
        for extender in self.interested(pod).filter(|it| !it.settings.filter.is_empty()) {
            if able.is_empty() {
                break;
            }
            match extender.filter(&whole, &able).await {
                Ok(verdict) => {
                    able.retain(|(node, _)| verdict.able.iter().any(|it| it == name(node)));
                    rejects.extend(verdict.rejects);
                }
                Err(err) if extender.settings.ignorable => extender.ignored(&err),
                Err(err) => return Err(err),
            }
        }
        if able.is_empty() {
            return Ok(Answer::Nobody(rejects));
        }
        if able.len() > 1 {
            self.rate(pod, &whole, &mut able).await;
        }
        let best = able.iter().map(|(_, total)| *total).max().unwrap_or_default();
        able.retain(|(_, total)| *total == best);
        let dice = usize::try_from(below(able.len() as u64)).unwrap_or_default();
        Ok(Answer::Node(name(&able[dice.min(able.len() - 1)].0).to_owned()))
    }

    /// Adds what each extender says of each node. One that fails says nothing.
    async fn rate(&self, pod: &PodInfo, whole: &Value, able: &mut [(Arc<Node>, i64)]) {
        let asked = self.interested(pod).filter(|it| !it.settings.prioritize.is_empty());
        let answers = asked.map(|it| it.prioritize(whole, able));
        for scores in futures::future::join_all(answers).await {
            for (node, total) in &mut *able {
                *total += scores.get(name(node)).copied().unwrap_or_default();
            }
        }
    }

    /// Leaves those candidates, and of their victims those, that extenders agree to. `client`
    /// reads the pods.
    ///
    /// # Errors
    /// The failure of one that cannot be ignored, or to read a pod.
    pub async fn preempt(
        &self,
        client: &Client,
        pod: &PodInfo,
        candidates: Vec<Victims>,
    ) -> Result<Vec<Victims>> {
        let asked = || self.interested(pod).filter(|it| !it.settings.preempt.is_empty());
        if candidates.is_empty() || asked().next().is_none() {
            return Ok(candidates);
        }
        let mut pods = vec![pod];
        if asked().any(|it| !it.settings.knows_nodes) {
            pods.extend(candidates.iter().flat_map(|it| &it.pods).map(|pod| &**pod));
        }
        let whole = Whole::read(client, pods).await.map_err(ExtendError::Read)?;
        let mut left = candidates;
        for extender in asked() {
            if left.is_empty() {
                break;
            }
            let args = wire::victims(pod, &whole, &left, extender.settings.knows_nodes);
            match extender.ask(&extender.settings.preempt, &args).await {
                Ok(answer) => left = wire::agreed(&answer, left),
                Err(err) if extender.settings.ignorable => extender.ignored(&err),
                Err(err) => return Err(err),
            }
        }
        Ok(left)
    }

    /// Lets the extender bind that does so for this pod; false where none does.
    ///
    /// # Errors
    /// Why it did not.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Result<bool> {
        let Some(extender) = self.interested(pod).find(|it| !it.settings.bind.is_empty()) else {
            return Ok(false);
        };
        let args = json!({"PodName": pod.name, "PodNamespace": pod.namespace,
            "PodUID": pod.uid, "Node": node});
        extender.ask(&extender.settings.bind, &args).await.map(|_| true)
    }
}

struct Verdict {
    able: Vec<String>,
    rejects: Rejected,
}

impl Extender {
    fn is_interested(&self, pod: &PodInfo) -> bool {
        let managed = &self.settings.resources;
        managed.is_empty() || managed.iter().any(|resource| wire::wants(pod, resource))
    }

    fn looks_at_nodes(&self) -> bool {
        !self.settings.filter.is_empty() || !self.settings.prioritize.is_empty()
    }

    fn url(&self) -> String {
        self.settings.endpoint.server.clone()
    }

    fn ignored(&self, err: &ExtendError) {
        let (url, error) = (self.url(), chain(err));
        debug!(url, %error, "extender is left out");
    }

    /// Posts `args`; an answer with an error in it is that error.
    async fn ask(&self, verb: &str, args: &Value) -> Result<Value> {
        let url = || format!("{}/{verb}", self.url());
        let request = http::Request::post(format!("/{verb}"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(args.to_string().into());
        let call = |source: client::Error| ExtendError::Call { url: url(), source };
        let request = request.map_err(|err| call(client::Error::Request(err)))?;
        let answer = tokio::time::timeout(self.settings.timeout, self.client.request(request));
        let answer = answer.await.map_err(|_| ExtendError::Late { url: url() })?.map_err(call)?;
        let answer: Value =
            serde_json::from_slice(&answer).map_err(|err| call(client::Error::Decode(err)))?;
        match wire::field(&answer, "Error").as_str() {
            None | Some("") => Ok(answer),
            Some(why) => Err(ExtendError::Said(why.to_owned())),
        }
    }

    async fn filter(&self, pod: &Value, able: &[(Arc<Node>, i64)]) -> Result<Verdict> {
        let args = wire::nodes(pod, able, self.settings.knows_nodes);
        let answer = self.ask(&self.settings.filter, &args).await?;
        let left = wire::names(&answer, self.settings.knows_nodes);
        for node in &left {
            if !able.iter().any(|(known, _)| name(known) == node) {
                return Err(ExtendError::Stranger { url: self.url(), node: node.clone() });
            }
        }
        let mut rejects = Vec::new();
        let failed = |field: &str| wire::reasons(&answer, field);
        for (node, reason) in failed("FailedNodes") {
            rejects.push((node, Reject::for_now(Rule::Extender, reason)));
        }
        for (node, reason) in failed("FailedAndUnresolvableNodes") {
            rejects.push((node, Reject::for_good(Rule::Extender, reason)));
        }
        Ok(Verdict { able: left, rejects })
    }

    async fn prioritize(&self, pod: &Value, able: &[(Arc<Node>, i64)]) -> HashMap<String, i64> {
        let args = wire::nodes(pod, able, self.settings.knows_nodes);
        let weight = self.settings.weight.saturating_mul(BEST / EXTENDERS_BEST);
        match self.ask(&self.settings.prioritize, &args).await {
            Ok(answer) => wire::scores(&answer)
                .map(|(host, score)| (host, score.saturating_mul(weight)))
                .collect(),
            Err(err) => {
                self.ignored(&err);
                HashMap::new()
            }
        }
    }
}

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}
