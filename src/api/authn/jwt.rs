//! Tokens of other issuers: OpenID Connect ID tokens, and any JWT whose issuer publishes
//! its keys (documentation, "OpenID Connect Tokens").
//!
//! A token is checked against its issuer's keys before any claim of it is believed.

use std::sync::Arc;

use pki::jwt::{Algorithm, Token};
use serde_json::Value;

use super::User;

pub mod claims;
mod keys;

use claims::Mappings;
use keys::RemoteKeys;

/// Issuers of one server (upstream's bound).
pub const ISSUERS_MAX: usize = 64;

/// An issuer and what its claims mean.
pub struct Issuer {
    /// As tokens name it.
    pub url: String,
    /// Where its configuration is, if not under the URL.
    pub discovery_url: Option<String>,
    /// PEM of the authorities of its server; None for the system's.
    pub ca_pem: Option<String>,
    /// A token must be for one of them.
    pub audiences: Vec<String>,
    pub algorithms: Vec<Algorithm>,
    pub mappings: Mappings,
}

/// Believes the tokens of one issuer.
pub struct JwtTokens {
    issuer: Issuer,
    keys: RemoteKeys,
}

impl JwtTokens {
    /// # Errors
    /// Authorities that cannot be read, in a sentence.
    pub fn new(issuer: Issuer) -> Result<Self, String> {
        let tls = crate::webhook::roots(issuer.ca_pem.as_ref().map(|pem| pem.as_bytes()))?;
        let keys = RemoteKeys::new(&issuer.url, issuer.discovery_url.as_deref(), tls);
        Ok(Self { issuer, keys })
    }

    /// Whether a token says it is of this issuer.
    pub fn issued(&self, token: &Token<'_>) -> bool {
        token.claims["iss"] == self.issuer.url.as_str()
    }

    /// The user that a token stands for.
    ///
    /// # Errors
    /// Why it is not believed, in a sentence.
    pub async fn authenticate(&self, token: &Token<'_>) -> Result<User, String> {
        let failed = |why: &str| format!("oidc: verify token: {why}");
        if !self.issuer.algorithms.contains(&token.algorithm) {
            let known: Vec<&str> = self.issuer.algorithms.iter().map(|a| a.name()).collect();
            return Err(failed(&format!(
                "oidc: id token signed with unsupported algorithm, expected {known:?} got {:?}",
                token.algorithm.name()
            )));
        }
        let now = base::time::now().as_second();
        // What needs no keys first: whoever sends an old token costs the issuer nothing.
        self.is_current(&token.claims, now).map_err(|why| failed(&why))?;
        let known = self.keys.known();
        if !token.is_signed_by(known.iter()) {
            let fresh = self.keys.after(&known).await?;
            if Arc::ptr_eq(&fresh, &known) || !token.is_signed_by(fresh.iter()) {
                return Err(failed(
                    "failed to verify signature: failed to verify id token signature",
                ));
            }
        }
        self.issuer.mappings.user(&token.claims)
    }

    /// Whether a token is valid now, and for one of the audiences.
    fn is_current(&self, claims: &Value, now: i64) -> Result<(), String> {
        /// As clocks may differ (go-oidc's allowance for `nbf`).
        const NOT_BEFORE_LEEWAY_SECONDS: f64 = 300.0;
        let now = now as f64;
        let expires = claims["exp"].as_f64().unwrap_or(0.0);
        if expires < now {
            let at = jiff::Timestamp::from_second(expires.clamp(0.0, 1e11) as i64);
            let at = at.map(base::time::rfc3339).unwrap_or_default();
            return Err(format!("oidc: token is expired (Token Expiry: {at})"));
        }
        if claims["nbf"].as_f64().is_some_and(|start| start > now + NOT_BEFORE_LEEWAY_SECONDS) {
            return Err("oidc: current time is before the nbf (not before) time".into());
        }
        let audiences: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one],
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let wanted = &self.issuer.audiences;
        if !audiences.iter().any(|one| wanted.iter().any(|wanted| wanted == one)) {
            return Err(format!("oidc: expected audience in {wanted:?} got {audiences:?}"));
        }
        Ok(())
    }
}
