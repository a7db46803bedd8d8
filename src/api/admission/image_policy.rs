//! ImagePolicyWebhook: somebody outside says which images may run.
//!
//! Answers are remembered for a while; a backend that does not answer is a yes or a no, as
//! the configuration wants it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tracing::warn;

use super::settings::Settings;
use super::{Attributes, Operation};
use crate::error::Result;
use crate::registry::Registry;
use crate::webhook::Endpoint;

/// Answers remembered.
const ANSWERS_MAX: usize = 1_024;
/// The backend is waited for this long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A failed question is asked this often.
const TRIES: u32 = 3;
const RETRY_MILLIS: u64 = 500;
const ANNOTATION: &str = ".image-policy.k8s.io/";
const LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

pub struct ImagePolicy {
    endpoint: Endpoint,
    allow_ttl: Duration,
    deny_ttl: Duration,
    retry: Duration,
    default_allow: bool,
    answers: Mutex<HashMap<String, (Instant, Value)>>,
}

impl ImagePolicy {
    /// # Errors
    /// What is wrong with the configuration or the kubeconfig it names.
    pub fn read(settings: &Settings) -> std::result::Result<Self, String> {
        let configuration = settings.of("ImagePolicyWebhook").ok_or("is not configured")?;
        let policy = &configuration["imagePolicy"];
        let seconds = |field: &str, default: u64| {
            let given = policy[field].as_i64().and_then(|n| u64::try_from(n).ok());
            Duration::from_secs(given.filter(|n| *n > 0).unwrap_or(default))
        };
        let retry = policy["retryBackoff"].as_u64().filter(|millis| *millis > 0);
        let file =
            policy["kubeConfigFile"].as_str().ok_or("imagePolicy.kubeConfigFile is missing")?;
        Ok(Self {
            endpoint: Endpoint::of_kubeconfig(&settings.directory.join(file), TIMEOUT)?,
            allow_ttl: seconds("allowTTL", 300),
            deny_ttl: seconds("denyTTL", 30),
            retry: Duration::from_millis(retry.unwrap_or(RETRY_MILLIS)),
            default_allow: policy["defaultAllow"] == true,
            answers: Mutex::default(),
        })
    }

    /// # Errors
    /// 403 for a pod with an image that may not run.
    pub async fn judge(
        &self,
        registry: &Registry,
        request: &Attributes<'_>,
        pod: &Value,
    ) -> Result<()> {
        let is_pod = request.resource.group.is_empty() && request.resource.plural == "pods";
        if !is_pod
            || !matches!(request.operation, Operation::Create | Operation::Update)
            || !matches!(request.subresource, "" | "ephemeralcontainers")
        {
            return Ok(());
        }
        let spec = review(request.namespace, pod, request.subresource);
        let status = match self.ask(registry, &spec).await {
            Ok(status) => status,
            Err(why) if self.default_allow => {
                warn!(error = %why, "the image policy cannot be asked; the pod is let pass");
                let mark = "imagepolicywebhook.image-policy.k8s.io/failed-open";
                request.notes.annotate(mark, "true".into());
                return Ok(());
            }
            Err(why) => return Err(request.forbidden(why)),
        };
        for (key, value) in status["auditAnnotations"].as_object().into_iter().flatten() {
            let key = format!("imagepolicywebhook.image-policy.k8s.io/{key}");
            request.notes.annotate(key, value.as_str().unwrap_or_default().to_string());
        }
        if status["allowed"] == true {
            return Ok(());
        }
        Err(request.forbidden(match status["reason"].as_str().unwrap_or_default() {
            "" => "one or more images rejected by webhook backend".to_string(),
            reason => {
                format!("image policy webhook backend denied one or more images: {reason}")
            }
        }))
    }

    async fn ask(&self, registry: &Registry, spec: &Value) -> std::result::Result<Value, String> {
        let key = spec.to_string();
        let now = Instant::now();
        if let Some((until, status)) = self.answers.lock().get(&key)
            && *until > now
        {
            return Ok(status.clone());
        }
        let question = json!({
            "kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "spec": spec,
        });
        let mut tries = 0;
        let answer = loop {
            tries += 1;
            match self.endpoint.ask(&registry.cache, &question).await {
                Ok(answer) => break answer,
                Err(why) if tries >= TRIES => return Err(why),
                Err(_) => tokio::time::sleep(self.retry).await,
            }
        };
        let status = answer["status"].clone();
        if !status.is_object() {
            return Err("the webhook's answer has no status".into());
        }
        let ttl = if status["allowed"] == true { self.allow_ttl } else { self.deny_ttl };
        let mut answers = self.answers.lock();
        answers.retain(|_, (until, _)| *until > now);
        if answers.len() < ANSWERS_MAX {
            answers.insert(key, (now + ttl, status.clone()));
        }
        Ok(status)
    }
}

/// What the backend is told of a pod.
fn review(namespace: &str, pod: &Value, subresource: &str) -> Value {
    let lists = if subresource.is_empty() { &LISTS[..2] } else { &LISTS[2..] };
    let containers = lists.iter().flat_map(|list| pod["spec"][*list].as_array()).flatten();
    let containers: Vec<Value> = containers.map(|c| json!({"image": c["image"]})).collect();
    let annotations: serde_json::Map<String, Value> = pod["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.contains(ANNOTATION))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    json!({"containers": containers, "annotations": annotations, "namespace": namespace})
}
