//! Who asks: client certificates, front proxies, and tokens of several kinds.
//!
//! Never decides what somebody may do.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::debug;

use crate::cache::Cache;
use crate::error::{ApiError, Result};

pub mod anonymous;
mod bootstrap_token;
pub mod certificate;
pub mod configuration;
pub mod front_proxy;
pub mod impersonation;
pub mod jwt;
mod static_tokens;
pub mod tokens;
pub mod webhook;

pub use anonymous::Anonymous;
pub use certificate::Certificate;
pub use front_proxy::FrontProxy;
pub use tokens::ServiceAccountTokens;

use certificate::CREDENTIAL_ID;
use tokens::legacy_token;

/// Secrets that wait for their label.
const MARKS_MAX: usize = 64;

/// An authenticated identity (`user.Info`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const MASTERS: &str = "system:masters";
pub const ANONYMOUS: &str = "system:anonymous";

impl User {
    /// A user in the groups given, and among the authenticated.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|group| group.to_string()).collect();
        groups.push(AUTHENTICATED.into());
        Self { name: name.into(), groups, ..Self::default() }
    }

    pub fn anonymous() -> Self {
        Self { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..Self::default() }
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// Who is at the other end of the connection, as far as it proves that by itself.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// A component of this process.
    pub in_process: Option<Arc<User>>,
    /// The certificate that it showed, judged by [`Authenticator::judge`].
    pub certificate: Option<Arc<Certificate>>,
    pub address: Option<std::net::SocketAddr>,
}

/// Why the ways to prove an identity cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the authorities of clients")]
    ClientAuthorities(#[source] pki::Error),
    #[error("set up the front proxy: {0}")]
    FrontProxy(String),
    #[error("read the service account key")]
    Key(#[source] pki::Error),
    #[error(transparent)]
    TokenFile(static_tokens::Error),
    #[error("set up the token issuer {0}: {1}")]
    Issuer(String, String),
    #[error("set up the token webhook: {0}")]
    Webhook(String),
}

/// Which proofs of an identity a server takes.
pub struct Settings {
    /// PEM bundle of the authorities that make users; empty for none.
    pub client_ca_pem: String,
    pub front_proxy: Option<front_proxy::Settings>,
    pub accounts: tokens::Settings,
    pub token_file: Option<PathBuf>,
    pub bootstrap_tokens: bool,
    /// Others whose tokens are believed.
    pub issuers: Vec<jwt::Issuer>,
    pub webhook: Option<webhook::Settings>,
    pub anonymous: Anonymous,
}

impl Settings {
    /// Only the service-account tokens that the server itself makes with a PEM key.
    pub fn own(issuer: &str, signing_key: &str) -> Self {
        Self {
            client_ca_pem: String::new(),
            front_proxy: None,
            accounts: tokens::Settings::own(issuer, signing_key),
            token_file: None,
            bootstrap_tokens: false,
            issuers: Vec::new(),
            webhook: None,
            anonymous: Anonymous::default(),
        }
    }
}

/// All ways to prove an identity.
pub struct Authenticator {
    client_ca_pem: String,
    clients: Option<pki::tls::ClientAuthorities>,
    front_proxy: Option<FrontProxy>,
    static_tokens: HashMap<String, User>,
    pub tokens: ServiceAccountTokens,
    bootstrap_tokens: bool,
    /// Others may come while the server runs.
    issuers: RwLock<Arc<[jwt::JwtTokens]>>,
    webhook: Option<webhook::WebhookTokens>,
    anonymous: Anonymous,
    /// Who keeps the labels of secrets whose tokens are used.
    marks: OnceLock<mpsc::Sender<(String, String)>>,
}

impl Authenticator {
    /// # Errors
    /// Files and keys that cannot be read.
    pub fn new(settings: Settings) -> std::result::Result<Self, Error> {
        let clients = match settings.client_ca_pem.as_str() {
            "" => None,
            pem => Some(
                pki::tls::ClientAuthorities::new(pem.as_bytes())
                    .map_err(Error::ClientAuthorities)?,
            ),
        };
        let front_proxy = settings.front_proxy.map(FrontProxy::new).transpose();
        Ok(Self {
            client_ca_pem: settings.client_ca_pem,
            clients,
            front_proxy: front_proxy.map_err(Error::FrontProxy)?,
            static_tokens: match &settings.token_file {
                Some(path) => static_tokens::read(path).map_err(Error::TokenFile)?,
                None => HashMap::new(),
            },
            tokens: ServiceAccountTokens::new(settings.accounts)?,
            bootstrap_tokens: settings.bootstrap_tokens,
            issuers: RwLock::new(issuers(settings.issuers)?),
            webhook: match &settings.webhook {
                Some(settings) => {
                    Some(webhook::WebhookTokens::new(settings).map_err(Error::Webhook)?)
                }
                None => None,
            },
            anonymous: settings.anonymous,
            marks: OnceLock::new(),
        })
    }

    /// From now on these are the others whose tokens are believed.
    ///
    /// # Errors
    /// Authorities that cannot be read; nothing is changed then.
    pub fn replace_issuers(&self, others: Vec<jwt::Issuer>) -> std::result::Result<(), Error> {
        let others = issuers(others)?;
        *self.issuers.write() = others;
        Ok(())
    }

    /// Namespaces and names of secrets whose tokens were used the first time of a day. What
    /// does not fit is told with the next use.
    pub fn used_secrets(&self) -> mpsc::Receiver<(String, String)> {
        let (sender, receiver) = mpsc::channel(MARKS_MAX);
        // Whoever asks a second time hears nothing.
        let _ = self.marks.set(sender);
        receiver
    }

    fn used_legacy_token(&self, cache: &Cache, token: &str, user: &User) {
        if service_account(&user.name).is_none() || user.extra.contains_key(CREDENTIAL_ID) {
            return;
        }
        let today = legacy_token::today();
        if let Some(sender) = self.marks.get()
            && let Some(secret) = legacy_token::unmarked(cache, token, &today)
        {
            let _ = sender.try_send(secret);
        }
    }

    /// What a client's certificate, the first of a chain, proves.
    pub fn judge(&self, chain: &[CertificateDer<'_>]) -> Certificate {
        let proxies = self.front_proxy.as_ref().map(|proxy| &proxy.authorities);
        Certificate::judge(chain, self.clients.as_ref(), proxies)
    }

    /// PEM of all authorities that a client's certificate may be of.
    pub fn client_hints(&self) -> String {
        let proxies = self.front_proxy.as_ref().map_or("", |proxy| &proxy.settings().ca_pem);
        format!("{}\n{proxies}", self.client_ca_pem)
    }

    /// The object with which extension servers believe whom this server believes.
    pub fn published(&self) -> Value {
        let proxy = self.front_proxy.as_ref().map(FrontProxy::settings);
        front_proxy::config_map(&self.client_ca_pem, proxy)
    }

    /// The identity behind a request. The credentials that proved it are taken off the
    /// request.
    ///
    /// # Errors
    /// 401 for credentials that are there but not good.
    pub async fn authenticate(
        &self,
        cache: &Cache,
        peer: &Peer,
        path: &str,
        headers: &mut http::HeaderMap,
    ) -> Result<Arc<User>> {
        if let Some(user) = &peer.in_process {
            return Ok(user.clone());
        }
        let mut refused = false;
        if let Some(certificate) = &peer.certificate {
            let lives = !certificate.is_over(base::time::now().as_second());
            if lives
                && let Some(proxy) = &self.front_proxy
                && let Some(user) = proxy.user(certificate, headers)
            {
                proxy.strip(headers);
                return Ok(Arc::new(among_authenticated(user)));
            }
            match &certificate.user {
                Some(user) if lives && !user.name.is_empty() => return Ok(user.clone()),
                Some(_) if lives => {}
                _ => refused = true,
            }
        }
        if let Some(token) = bearer(headers) {
            let found = self.token(cache, &token, &[]).await;
            let (user, _) = found.map_err(|why| {
                debug!(why = %aggregate(&why), "a bearer token was not believed");
                ApiError::unauthorized()
            })?;
            self.used_legacy_token(cache, &token, &user);
            headers.remove(http::header::AUTHORIZATION);
            return Ok(Arc::new(user));
        }
        if refused || !self.anonymous.is_let(path) {
            return Err(ApiError::unauthorized());
        }
        // Other schemes than a bearer's are nobody's here, and prove nothing.
        Ok(Arc::new(User::anonymous()))
    }

    /// The identity that a bearer token stands for and the audiences it is good for;
    /// empty `audiences` asks for the API server's own.
    ///
    /// # Errors
    /// Why nobody believes it, in sentences.
    pub async fn token(
        &self,
        cache: &Cache,
        token: &str,
        audiences: &[String],
    ) -> std::result::Result<(User, Vec<String>), Vec<String>> {
        let own = self.tokens.audiences();
        let wanted = if audiences.is_empty() { own } else { audiences };
        let mut why = vec!["invalid bearer token".to_owned()];
        let mut of_account = self.tokens.authenticate(cache, token, wanted);
        // What it is bound to may have been made a moment ago.
        if of_account.is_err() && cache.fresh().await.is_ok() {
            of_account = self.tokens.authenticate(cache, token, wanted);
        }
        match of_account {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(said) => why.push(said),
        }
        // Tokens that name no audience are for the API server.
        let granted: Vec<String> = wanted.iter().filter(|one| own.contains(one)).cloned().collect();
        if !granted.is_empty() {
            if let Some(user) = self.static_tokens.get(token) {
                return Ok((user.clone(), granted));
            }
            if self.bootstrap_tokens && bootstrap_token::is_one(token) {
                // Seen late is better than not: a node that joins has just been given it.
                let _ = cache.fresh().await;
                if let Some(user) = bootstrap_token::authenticate(cache, token) {
                    return Ok((user, granted));
                }
            }
            match self.of_issuer(token).await {
                Ok(Some(user)) => return Ok((user, granted)),
                Ok(None) => {}
                Err(said) => why.push(said),
            }
        }
        if let Some(webhook) = &self.webhook {
            // Boxed: few servers have one, and all requests would carry its state.
            match Box::pin(webhook.authenticate(cache, token, wanted, own)).await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(said) => why.push(said),
            }
        }
        Err(why)
    }

    /// The user of a token of another issuer; None where no issuer knows it.
    async fn of_issuer(&self, token: &str) -> std::result::Result<Option<User>, String> {
        let issuers = self.issuers.read().clone();
        if issuers.is_empty() {
            return Ok(None);
        }
        let Some(token) = pki::jwt::Token::read(token) else { return Ok(None) };
        match issuers.iter().find(|issuer| issuer.issued(&token)) {
            Some(issuer) => Box::pin(issuer.authenticate(&token)).await.map(Some),
            None => Ok(None),
        }
    }
}

fn issuers(settings: Vec<jwt::Issuer>) -> std::result::Result<Arc<[jwt::JwtTokens]>, Error> {
    let ready = settings.into_iter().map(|issuer| {
        let url = issuer.url.clone();
        jwt::JwtTokens::new(issuer).map_err(|why| Error::Issuer(url, why))
    });
    ready.collect()
}

/// Several reasons as upstream tells them together.
pub fn aggregate(why: &[String]) -> String {
    match why {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// The user in the group of everybody who proved an identity.
fn among_authenticated(mut user: User) -> User {
    if user.name != ANONYMOUS && !user.is_in(AUTHENTICATED) && !user.is_in(UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
    user
}

/// The bearer token of a request, from the header or from the subprotocol with which
/// browsers send it over WebSocket.
fn bearer(headers: &http::HeaderMap) -> Option<String> {
    let header = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some((scheme, token)) = header.and_then(|header| header.split_once(' '))
        && scheme.eq_ignore_ascii_case("bearer")
        && !token.trim().is_empty()
    {
        return Some(token.trim().to_string());
    }
    use base64::Engine;
    let protocols = headers.get("sec-websocket-protocol")?.to_str().ok()?;
    let encoded = protocols.split(',').find_map(|protocol| {
        protocol.trim().strip_prefix("base64url.bearer.authorization.k8s.io.")
    })?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(bytes).ok()
}

/// By which means a request tried to prove an identity, for the audit log.
pub fn attempted(peer: &Peer, headers: &http::HeaderMap) -> String {
    let mut methods = Vec::new();
    if let Some(header) = headers.get(http::header::AUTHORIZATION) {
        let scheme = header.to_str().unwrap_or("").split(' ').next().unwrap_or("").to_lowercase();
        methods.push(match scheme.as_str() {
            "basic" => "basic",
            "bearer" => "bearer",
            _ => "unknown",
        });
    }
    if peer.certificate.is_some() {
        methods.push("x509");
    }
    if methods.is_empty() { "none".to_owned() } else { methods.join(", ") }
}

/// Namespace and name of a service account's user name.
pub fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

pub fn service_account_groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")]
}

/// A user as reviews show it.
pub fn user_info(user: &User) -> Value {
    let mut info = serde_json::json!({});
    if !user.name.is_empty() {
        info["username"] = user.name.as_str().into();
    }
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = serde_json::json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = serde_json::json!(user.extra);
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> http::HeaderMap {
        let mut out = http::HeaderMap::new();
        for (name, value) in pairs {
            out.append(*name, value.parse().unwrap());
        }
        out
    }

    #[test]
    fn other_schemes_than_a_bearers_prove_nothing() {
        assert_eq!(bearer(&headers(&[("authorization", "Basic YTpi")])), None);
        assert_eq!(bearer(&headers(&[("authorization", "Bearer ")])), None);
        assert_eq!(bearer(&headers(&[("authorization", "bearer t")])), Some("t".into()));
    }
}
