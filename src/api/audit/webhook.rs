//! The audit webhook: lists of events for another server, sent again with growing pauses
//! when it does not take them.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::truncate::Bounds;
use super::{Batch, Mode};
use crate::webhook::Endpoint;

/// Deadline of one attempt.
const TIMEOUT: Duration = Duration::from_secs(30);
/// As upstream: attempts in all, and how the pause between them grows.
const ATTEMPTS_MAX: u32 = 5;
const BACKOFF_FACTOR: f64 = 1.5;
/// Of all attempts where a request waits for them.
const BLOCKING_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct Settings {
    /// Kubeconfig of the server.
    pub config_file: PathBuf,
    pub mode: Mode,
    pub batch: Batch,
    pub initial_backoff: Duration,
    /// None where it takes whatever comes.
    pub truncate: Option<Bounds>,
}

pub struct Webhook {
    endpoint: Endpoint,
    initial_backoff: Duration,
}

impl Webhook {
    /// # Errors
    /// What is wrong with the kubeconfig, in a sentence.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let endpoint = Endpoint::of_kubeconfig(&settings.config_file, TIMEOUT)?;
        Ok(Self { endpoint, initial_backoff: settings.initial_backoff })
    }

    /// Sends events, again and again until it is given up.
    ///
    /// # Errors
    /// Why the last attempt failed.
    pub async fn send(&self, events: Vec<Value>) -> Result<(), String> {
        let list = json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {},
            "items": events});
        let body = Bytes::from(list.to_string());
        let mut pause = self.initial_backoff;
        let mut attempt = 1;
        loop {
            match self.endpoint.tell(body.clone()).await {
                Ok(_) => return Ok(()),
                Err(why) if attempt >= ATTEMPTS_MAX => return Err(why),
                Err(_) => {}
            }
            // A little less or more, so that several servers do not come together.
            tokio::time::sleep(pause.mul_f64(0.9 + base::rng::unit() / 5.0)).await;
            pause = pause.mul_f64(BACKOFF_FACTOR);
            attempt += 1;
        }
    }

    /// As [`Self::send`], for whoever waits.
    ///
    /// # Errors
    /// Why it was not sent in time.
    pub async fn send_now(&self, event: Value) -> Result<(), String> {
        let sent = tokio::time::timeout(BLOCKING_TIMEOUT, self.send(vec![event])).await;
        sent.unwrap_or_else(|_| Err("context deadline exceeded".into()))
    }
}
