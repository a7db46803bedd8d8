//! Who asks: client certificates, front proxies, and tokens of several kinds.
//!
//! Never decides what somebody may do.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use serde_json::Value;

use crate::cache::Cache;
use crate::error::{ApiError, Result};

pub mod certificate;
pub mod front_proxy;
pub mod impersonation;
pub mod tokens;

pub use certificate::Certificate;
pub use front_proxy::FrontProxy;
pub use tokens::ServiceAccountTokens;

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
    #[error("read the token file {0}")]
    ReadTokens(String, #[source] std::io::Error),
    #[error("the token file {0}, line {1}: expected token,user,uid[,\"group1,group2\"]")]
    TokenLine(String, usize),
}

/// Which proofs of an identity a server takes.
pub struct Settings {
    /// PEM bundle of the authorities that make users; empty for none.
    pub client_ca_pem: String,
    pub front_proxy: Option<front_proxy::Settings>,
    pub accounts: tokens::Settings,
    pub token_file: Option<PathBuf>,
}

impl Settings {
    /// Only the service-account tokens that the server itself makes with a PEM key.
    pub fn own(issuer: &str, signing_key: &str) -> Self {
        Self {
            client_ca_pem: String::new(),
            front_proxy: None,
            accounts: tokens::Settings::own(issuer, signing_key),
            token_file: None,
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
                Some(path) => read_token_file(path)?,
                None => HashMap::new(),
            },
            tokens: ServiceAccountTokens::new(settings.accounts)?,
        })
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
    pub fn authenticate(
        &self,
        cache: &Cache,
        peer: &Peer,
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
            let (user, _) = self.token(cache, &token, &[]).ok_or_else(ApiError::unauthorized)?;
            headers.remove(http::header::AUTHORIZATION);
            return Ok(Arc::new(user));
        }
        if refused {
            return Err(ApiError::unauthorized());
        }
        // Other schemes than a bearer's are nobody's here, and prove nothing.
        Ok(Arc::new(User::anonymous()))
    }

    /// The identity that a bearer token stands for and the audiences it is good for;
    /// empty `audiences` asks for the API server's own.
    pub fn token(
        &self,
        cache: &Cache,
        token: &str,
        audiences: &[String],
    ) -> Option<(User, Vec<String>)> {
        if let Some(user) = self.static_tokens.get(token) {
            return Some((user.clone(), audiences.to_vec()));
        }
        self.tokens.authenticate(cache, token, audiences)
    }
}

/// Reads upstream's token file: `token,user,uid,"group1,group2"` per line.
fn read_token_file(path: &Path) -> std::result::Result<HashMap<String, User>, Error> {
    let shown = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|err| Error::ReadTokens(shown.clone(), err))?;
    let mut tokens = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut parts = line.splitn(4, ',').map(str::trim);
        let (Some(token), Some(name), Some(uid)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(Error::TokenLine(shown, number + 1));
        };
        let groups: Vec<&str> = parts
            .next()
            .unwrap_or("")
            .trim_matches('"')
            .split(',')
            .map(str::trim)
            .filter(|group| !group.is_empty())
            .collect();
        let user = User { uid: uid.into(), ..User::new(name, &groups) };
        tokens.insert(token.into(), user);
    }
    Ok(tokens)
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
