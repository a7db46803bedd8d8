//! A group that another room of this process serves, behind the same chain as all others.
//!
//! It is there while the process is: nobody asks whether it is.

use std::sync::Arc;

use client::{Body, Transport};
use http::Response;
use serde_json::Value;

use super::openapi;
use crate::error::ApiError;
use crate::serve::chain::Call;

pub struct Resident {
    pub group: String,
    pub version: String,
    /// Its entry of aggregated discovery.
    pub discovery: Value,
    /// Its part of the OpenAPI document, in the form of v2: paths, definitions, and no more.
    pub document: Value,
    /// Answers requests that this server has authenticated and authorized.
    pub serves: Arc<dyn Transport>,
}

impl Resident {
    pub fn serves(&self, group: &str, version: &str) -> bool {
        self.group == group && self.version == version
    }

    /// What changes when its part of the OpenAPI document does.
    pub fn document_hash(&self) -> String {
        openapi::hash(self.document.to_string().as_bytes())
    }

    /// # Errors
    /// 500 where the room does not answer.
    pub async fn serve(&self, call: Call) -> Result<Response<Body>, ApiError> {
        let answered = self.serves.send(call.request).await;
        answered.map_err(|err| ApiError::internal(base::error::chain(&err).to_string()))
    }

    /// Its entry, as it is now: it is never stale.
    pub fn entry(&self) -> Value {
        let mut entry = self.discovery.clone();
        entry["version"] = self.version.as_str().into();
        entry["freshness"] = "Current".into();
        entry
    }
}
