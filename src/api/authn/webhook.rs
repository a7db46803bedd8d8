//! Tokens that another server knows: it is sent a TokenReview, and its answer is kept for a
//! while (documentation, "Webhook Token Authentication").

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::User;
use crate::cache::Cache;
use crate::expiring::{self, Expiring};
use crate::webhook::Endpoint;

/// Upstream's `--authentication-token-webhook-cache-ttl`.
pub const CACHE_TTL: Duration = Duration::from_secs(120);
/// Upstream's deadline of a question.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Answers kept; beyond that the oldest go.
const ANSWERS_MAX: usize = 4_096;
/// Questions under way at once; a further one waits for its turn, within the deadline.
const QUESTIONS_MAX: usize = 64;

/// Where the server is and how long its answers hold.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Kubeconfig of the server.
    pub config_file: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: String,
    pub cache_ttl: Duration,
}

/// A user and the audiences the token is for; None for a token that is nobody's.
type Answer = Option<(User, Vec<String>)>;

pub struct WebhookTokens {
    endpoint: Endpoint,
    api_version: String,
    ttl: Duration,
    answers: Expiring<Answer>,
    turns: Semaphore,
}

impl WebhookTokens {
    /// # Errors
    /// What is wrong with the settings, in a sentence.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        if !matches!(settings.version.as_str(), "v1" | "v1beta1") {
            return Err(format!(
                "unsupported webhook authenticator version {:?}, supported versions are \"v1\", \"v1beta1\"",
                settings.version
            ));
        }
        Ok(Self {
            endpoint: Endpoint::of_kubeconfig(&settings.config_file, TIMEOUT)?,
            api_version: format!("authentication.k8s.io/{}", settings.version),
            ttl: settings.cache_ttl,
            answers: Expiring::new(ANSWERS_MAX),
            turns: Semaphore::new(QUESTIONS_MAX),
        })
    }

    /// Who a token is for these audiences; `own` are the API server's, for which a token
    /// is whose server names none.
    ///
    /// # Errors
    /// Why nobody knows, in a sentence; that is not kept.
    pub async fn authenticate(
        &self,
        cache: &Cache,
        token: &str,
        audiences: &[String],
        own: &[String],
    ) -> Result<Answer, String> {
        let mut parts: Vec<&[u8]> = vec![token.as_bytes()];
        parts.extend(audiences.iter().map(String::as_bytes));
        let key = expiring::key(&parts);
        if let Some(known) = self.answers.get(&key, Instant::now()) {
            return Ok(known);
        }
        let question = json!({
            "apiVersion": self.api_version, "kind": "TokenReview",
            "metadata": {"creationTimestamp": null},
            "spec": {"token": token, "audiences": audiences}, "status": {"user": {}},
        });
        let turn = tokio::time::timeout(TIMEOUT, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| "too many tokens are being asked about".to_owned())?;
        // Who stood in line may find the answer that somebody before it got.
        if let Some(known) = self.answers.get(&key, Instant::now()) {
            return Ok(known);
        }
        let review = self.endpoint.ask_patiently(cache, &question).await?;
        let answer = read(&review["status"], audiences, own)?;
        self.answers.put(key, answer.clone(), self.ttl, Instant::now());
        Ok(answer)
    }
}

/// What the `status` of a TokenReview says.
fn read(status: &Value, audiences: &[String], own: &[String]) -> Result<Answer, String> {
    if status["authenticated"] != true {
        return match status["error"].as_str().unwrap_or("") {
            "" => Ok(None),
            why => Err(why.chars().take(1_000).collect()),
        };
    }
    let strings = |value: &Value| -> Vec<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let named = strings(&status["audiences"]);
    let named = if named.is_empty() { own } else { &named };
    let granted: Vec<String> =
        audiences.iter().filter(|wanted| named.contains(wanted)).cloned().collect();
    if granted.is_empty() {
        return Ok(None);
    }
    let user = &status["user"];
    let text = |field: &str| user[field].as_str().unwrap_or("").to_owned();
    if text("username").is_empty() {
        return Err("the webhook believes the token and names no user".into());
    }
    let extra = user["extra"].as_object().into_iter().flatten();
    let user = User {
        name: text("username"),
        uid: text("uid"),
        groups: strings(&user["groups"]),
        extra: extra.map(|(key, values)| (key.clone(), strings(values))).collect(),
    };
    Ok(Some((super::among_authenticated(user), granted)))
}
