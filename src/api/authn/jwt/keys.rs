//! The keys that an issuer publishes: found by its configuration (OpenID Connect Discovery
//! 1.0, 4), fetched when a token is signed by none that is known.
//!
//! However many bad tokens come, an issuer is asked once per interval, by one request at a
//! time, and a stalled one holds nobody up for longer than the deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use pki::jwt::{VerifyingKey, jwk_set};
use serde_json::Value;
use tokio::sync::Mutex;
use tracing::{info, warn};

/// An issuer is not asked again for this long after the last time, whatever it said.
const ASK_INTERVAL: Duration = Duration::from_secs(2);
/// For one document; configuration and keys are two.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Larger documents are refused.
const DOCUMENT_BYTES_MAX: usize = 1 << 20;

pub type Keys = Arc<Vec<VerifyingKey>>;

pub struct RemoteKeys {
    issuer: String,
    configuration_url: String,
    tls: Arc<rustls::ClientConfig>,
    keys: RwLock<Keys>,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    at: Option<Instant>,
    /// Where the keys are, once the configuration said so.
    keys_url: Option<String>,
    failed: Option<String>,
}

impl RemoteKeys {
    pub fn new(issuer: &str, discovery: Option<&str>, tls: Arc<rustls::ClientConfig>) -> Self {
        let well_known =
            || format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        Self {
            issuer: issuer.to_owned(),
            configuration_url: discovery.map_or_else(well_known, str::to_owned),
            tls,
            keys: RwLock::default(),
            asked: Mutex::default(),
        }
    }

    /// The keys known now.
    pub fn known(&self) -> Keys {
        self.keys.read().clone()
    }

    /// The keys after `old`, of which none signed a token: the issuer is asked, unless it
    /// was lately.
    ///
    /// # Errors
    /// Why there are none at all, in a sentence.
    pub async fn after(&self, old: &Keys) -> Result<Keys, String> {
        let mut asked = self.asked.lock().await;
        let now = self.known();
        if !Arc::ptr_eq(&now, old) {
            return Ok(now);
        }
        if asked.at.is_none_or(|at| at.elapsed() >= ASK_INTERVAL) {
            asked.failed = match self.fetch(&mut asked).await {
                Ok(()) => None,
                Err(why) => {
                    warn!(issuer = %self.issuer, error = %why, "the keys of a token issuer were not had");
                    asked.keys_url = None;
                    Some(why)
                }
            };
            asked.at = Some(Instant::now());
        }
        let keys = self.known();
        match &asked.failed {
            Some(why) if keys.is_empty() => {
                Err(format!("oidc: authenticator not initialized: {why}"))
            }
            _ => Ok(keys),
        }
    }

    async fn fetch(&self, asked: &mut Asked) -> Result<(), String> {
        let url = match &asked.keys_url {
            Some(url) => url.clone(),
            None => {
                let found = self.document(&self.configuration_url).await?;
                let issuer = found["issuer"].as_str().unwrap_or("");
                if issuer != self.issuer {
                    return Err(format!(
                        "oidc: issuer did not match the issuer returned by provider, expected {:?} got {issuer:?}",
                        self.issuer
                    ));
                }
                let url = found["jwks_uri"].as_str().unwrap_or("");
                asked.keys_url.insert(url.to_owned()).clone()
            }
        };
        let keys = jwk_set(&self.document(&url).await?);
        if keys.is_empty() {
            return Err(format!("{url}: no keys that sign tokens"));
        }
        if **self.keys.read() != keys {
            info!(issuer = %self.issuer, keys = keys.len(), "keys of a token issuer read");
            *self.keys.write() = Arc::new(keys);
        }
        Ok(())
    }

    async fn document(&self, url: &str) -> Result<Value, String> {
        let bytes =
            crate::webhook::fetch(url, &self.tls, FETCH_TIMEOUT, DOCUMENT_BYTES_MAX).await?;
        serde_json::from_slice(&bytes).map_err(|err| format!("{url}: {err}"))
    }
}
