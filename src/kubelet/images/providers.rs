//! Credential provider plugins: which there are, and what they said before.
//!
//! Configured as upstream's CredentialProviderConfig. What a plugin answers is kept in
//! memory for as long as it says, and never written down.

mod exec;
mod file;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::Client;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use parking_lot::Mutex;
use runtime::cri::AuthConfig;
use sha2::{Digest, Sha256};
use tracing::{debug, warn};

use super::docker_config::{Credential, PullAccount, Source, fits, pattern_matches, registry_of};
use crate::{metrics, pod, tokens};
use exec::{Answer, CacheKey, Request};
pub use file::{CacheType, Provider, read};

/// Answers kept of one plugin; the one that ends first goes first.
const KEPT_ANSWERS_MAX: usize = 1_000;
const TOKEN_EXPIRATION_SECONDS: i64 = 3_600;

/// Whose answer it is: image, registry or all, and the identity that was shown.
type Key = (String, String);
type Auths = Arc<BTreeMap<String, AuthConfig>>;

struct Plugin {
    provider: Provider,
    kept: Mutex<HashMap<Key, (Auths, Instant)>>,
    /// By what is asked: the same question is asked once at a time.
    asking: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
pub struct Providers(Vec<Plugin>);

/// What a plugin is shown of the pod, where it wants to see it.
#[derive(Default, Clone)]
struct Identity {
    account: Option<PullAccount>,
    token: String,
    annotations: BTreeMap<String, String>,
    /// Distinguishes identities whose answers must not be mixed.
    key: String,
}

impl Providers {
    pub fn new(providers: Vec<Provider>) -> Self {
        let plugin =
            |provider| Plugin { provider, kept: Mutex::default(), asking: Mutex::default() };
        Self(providers.into_iter().map(plugin).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The credentials that the plugins have for an image without tag or digest, those of
    /// earlier plugins first. A plugin that fails is told of in the log and has none.
    pub async fn credentials(&self, client: &Client, pod: &Pod, image: &str) -> Vec<Credential> {
        let mut out = Vec::new();
        let matching = self.0.iter().filter(|it| {
            it.provider.match_images.iter().any(|pattern| pattern_matches(pattern, image))
        });
        for plugin in matching {
            match plugin.credentials(client, pod, image).await {
                Ok(found) => out.extend(found),
                Err(error) => warn!(
                    plugin = plugin.provider.name,
                    image, error, "no credentials of the credential provider"
                ),
            }
        }
        out
    }
}

impl Plugin {
    async fn credentials(
        &self,
        client: &Client,
        pod: &Pod,
        image: &str,
    ) -> Result<Vec<Credential>, String> {
        let Some(identity) = self.identity(client, pod).await? else { return Ok(Vec::new()) };
        let auths = self.auths(image, &identity).await?;
        let from = match &identity.account {
            Some(account) => Source::Account(account.clone()),
            None => Source::Node,
        };
        let mut fitting: Vec<(usize, &AuthConfig)> = auths
            .iter()
            .filter_map(|(place, auth)| {
                fits(place, image)
                    .or_else(|| pattern_matches(place, image).then_some(place.len()))
                    .map(|length| (length, auth))
            })
            .collect();
        fitting.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        let credential =
            |(_, auth): (usize, &AuthConfig)| Credential { auth: auth.clone(), from: from.clone() };
        Ok(fitting.into_iter().map(credential).collect())
    }

    /// None where the plugin is not for this pod.
    async fn identity(&self, client: &Client, pod: &Pod) -> Result<Option<Identity>, String> {
        let Some(wanted) = &self.provider.token else { return Ok(Some(Identity::default())) };
        let name = pod::spec(pod).service_account_name.as_deref().unwrap_or_default();
        if name.is_empty() {
            return Ok((!wanted.require_account).then(Identity::default));
        }
        let namespace = pod::namespace(pod);
        let account = client
            .api::<ServiceAccount>(Some(namespace))
            .get_opt(name)
            .await
            .map_err(|error| format!("failed to get service account {namespace}/{name}: {error}"))?
            .ok_or_else(|| format!("service account {namespace}/{name} not found"))?;
        let has = account.metadata.annotations.unwrap_or_default();
        let mut annotations = BTreeMap::new();
        for key in &wanted.required_annotations {
            let Some(value) = has.get(key) else {
                debug!(
                    plugin = self.provider.name,
                    annotation = key,
                    "required annotation not found"
                );
                return Ok(None);
            };
            annotations.insert(key.clone(), value.clone());
        }
        for key in &wanted.optional_annotations {
            if let Some(value) = has.get(key) {
                annotations.insert(key.clone(), value.clone());
            }
        }
        let (token, _) =
            tokens::request(client, pod, &wanted.audience, TOKEN_EXPIRATION_SECONDS).await?;
        let account = PullAccount {
            uid: account.metadata.uid.unwrap_or_default(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let mut hash = Sha256::new();
        let of_token = (wanted.cache == CacheType::Token).then_some(&token);
        let parts = [&account.namespace, &account.name, &account.uid];
        let pairs = annotations.iter().flat_map(|(key, value)| [key, value]);
        for part in parts.into_iter().chain(pairs).chain(of_token) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let key = pod::hex(&hash.finalize());
        Ok(Some(Identity { account: Some(account), token, annotations, key }))
    }

    async fn auths(&self, image: &str, identity: &Identity) -> Result<Auths, String> {
        if let Some(kept) = self.kept(image, identity, Instant::now()) {
            return Ok(kept);
        }
        let question = (image.to_owned(), identity.key.clone());
        let turn = self.asking.lock().entry(question.clone()).or_default().clone();
        let answer = {
            let _turn = turn.lock().await;
            match self.kept(image, identity, Instant::now()) {
                Some(kept) => Ok(kept),
                None => self.ask(image, identity).await,
            }
        };
        let mut asking = self.asking.lock();
        // The table's and ours: nobody else waits.
        if Arc::strong_count(&turn) <= 2 {
            asking.remove(&question);
        }
        answer
    }

    async fn ask(&self, image: &str, identity: &Identity) -> Result<Auths, String> {
        let request = Request {
            api_version: &self.provider.api_version,
            image,
            token: &identity.token,
            annotations: &identity.annotations,
        };
        let begun = Instant::now();
        let answer = exec::run(&self.provider, &request).await;
        metrics::provider_called(&self.provider.name, begun.elapsed(), answer.is_err());
        let Answer { key, duration, auths } = answer?;
        let auths = Arc::new(auths);
        let duration = duration.unwrap_or(self.provider.default_cache_duration);
        if !duration.is_zero() {
            let place = match key {
                CacheKey::Image => image,
                CacheKey::Registry => registry_of(image),
                CacheKey::Global => GLOBAL,
            };
            self.keep((place.to_owned(), identity.key.clone()), auths.clone(), duration);
        }
        Ok(auths)
    }

    fn kept(&self, image: &str, identity: &Identity, now: Instant) -> Option<Auths> {
        let kept = self.kept.lock();
        [image, registry_of(image), GLOBAL].into_iter().find_map(|place| {
            let (auths, ends) = kept.get(&(place.to_owned(), identity.key.clone()))?;
            (now < *ends).then(|| auths.clone())
        })
    }

    fn keep(&self, key: Key, auths: Auths, duration: Duration) {
        let now = Instant::now();
        let Some(ends) = now.checked_add(duration) else { return };
        let mut kept = self.kept.lock();
        kept.retain(|_, (_, ends)| now < *ends);
        if kept.len() >= KEPT_ANSWERS_MAX {
            let first = kept.iter().min_by_key(|(_, (_, ends))| *ends).map(|(key, _)| key.clone());
            first.map(|key| kept.remove(&key));
        }
        kept.insert(key, (auths, ends));
    }
}

/// Stands for every image; no image is named so, for it names no registry.
const GLOBAL: &str = "global";

#[cfg(test)]
mod tests;
