//! Who asks: client certificates, service-account tokens, a static token file.
//!
//! Never decides what somebody may do.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::cache::Cache;
use crate::error::{ApiError, Result};

pub mod impersonation;
pub mod tokens;

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
    /// Common name and organizations of a verified client certificate.
    pub certificate: Option<(String, Vec<String>)>,
    pub address: Option<std::net::SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error("read the token file {0}")]
    Read(String, #[source] std::io::Error),
    #[error("the token file {0}, line {1}: expected token,user,uid[,\"group1,group2\"]")]
    Line(String, usize),
}

/// All ways to prove an identity.
pub struct Authenticator {
    static_tokens: HashMap<String, User>,
    pub tokens: ServiceAccountTokens,
}

impl Authenticator {
    pub fn new(tokens: ServiceAccountTokens) -> Self {
        Self { static_tokens: HashMap::new(), tokens }
    }

    /// Reads upstream's token file: `token,user,uid,"group1,group2"` per line.
    pub fn load_token_file(&mut self, path: &Path) -> std::result::Result<(), TokenFileError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|err| TokenFileError::Read(shown.clone(), err))?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut parts = line.splitn(4, ',').map(str::trim);
            let (Some(token), Some(name), Some(uid)) = (parts.next(), parts.next(), parts.next())
            else {
                return Err(TokenFileError::Line(shown, number + 1));
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
            self.static_tokens.insert(token.into(), user);
        }
        Ok(())
    }

    /// The identity behind a request.
    ///
    /// # Errors
    /// 401 for credentials that are there but not good.
    pub fn authenticate(
        &self,
        cache: &Cache,
        peer: &Peer,
        headers: &http::HeaderMap,
    ) -> Result<Arc<User>> {
        if let Some(user) = &peer.in_process {
            return Ok(user.clone());
        }
        if let Some((name, groups)) = &peer.certificate {
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            return Ok(Arc::new(User::new(name, &groups)));
        }
        match bearer(headers) {
            Some(token) => self
                .token(cache, &token, &[])
                .map(|found| Arc::new(found.0))
                .ok_or_else(ApiError::unauthorized),
            // Other schemes than a bearer's are nobody's here, and prove nothing.
            None => Ok(Arc::new(User::anonymous())),
        }
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
