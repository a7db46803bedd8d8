//! Conversion webhooks: one question asked of one (`ConversionReview`).
//!
//! What the answer means is for `convert` to judge.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::cache::Cache;
use crate::webhook::Endpoint;

const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A webhook as its definition names it.
#[derive(Clone)]
pub struct Config {
    client: Value,
    pub review_versions: Vec<String>,
    endpoint: Arc<Endpoint>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("client", &self.client).finish_non_exhaustive()
    }
}

impl PartialEq for Config {
    fn eq(&self, other: &Self) -> bool {
        self.client == other.client && self.review_versions == other.review_versions
    }
}

impl Eq for Config {}

impl Config {
    /// Reads `spec.conversion`, which has been validated.
    pub fn read(conversion: &Value) -> Self {
        let webhook = &conversion["webhook"];
        let versions = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
        let client = webhook["clientConfig"].clone();
        Self {
            endpoint: Arc::new(Endpoint::read(&client, CALL_TIMEOUT)),
            client,
            review_versions: versions
                .map(|version| version.as_str().unwrap_or("").to_string())
                .collect(),
        }
    }

    /// Posts a JSON document and returns the answer's.
    ///
    /// # Errors
    /// Why there is no answer, in a sentence.
    pub async fn ask(&self, cache: &Cache, question: &Value) -> Result<Value, String> {
        self.endpoint.ask(cache, question).await
    }
}
