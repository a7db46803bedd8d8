//! Service-account tokens: made for TokenRequests, bound to what they were made for, and
//! checked against what exists now.

use std::collections::BTreeMap;

use pki::jwt::SigningKey;
use serde_json::{Value, json};

use super::{Error, User, service_account_groups};
use crate::cache::Cache;
use crate::error::{ApiError, Result};
use crate::registry::metadata_str;

/// Tokens live ten minutes at least (documentation of TokenRequest).
const LIFETIME_SECONDS_MIN: i64 = 600;
const LIFETIME_SECONDS_DEFAULT: i64 = 3_600;
const LIFETIME_SECONDS_MAX: i64 = 1 << 32;
/// The kubelet's own request for an hour and seven seconds is extended to a year, for
/// programs that never read the file again; the token warns after the hour.
const EXTENDED_FROM_SECONDS: i64 = 3_607;
const EXTENDED_SECONDS: i64 = 365 * 86_400;
/// Clocks may differ by this much.
const LEEWAY_SECONDS: i64 = 60;

/// How service-account tokens are made and which are believed.
pub struct Settings {
    /// The first signs; tokens of the others are believed.
    pub issuers: Vec<String>,
    /// Whom tokens are for that name no audience.
    pub audiences: Vec<String>,
    /// PEM of the private key that signs.
    pub signing_key: String,
}

impl Settings {
    /// One issuer, which is its own audience, and one key.
    pub fn own(issuer: &str, signing_key: &str) -> Self {
        Self {
            issuers: vec![issuer.into()],
            audiences: vec![issuer.into()],
            signing_key: signing_key.into(),
        }
    }
}

pub struct ServiceAccountTokens {
    key: SigningKey,
    issuer: String,
    audiences: Vec<String>,
}

/// What a token is asked for.
pub struct TokenRequest<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    pub account_uid: &'a str,
    pub spec: &'a Value,
    /// The object it is bound to: kind, name and uid; and the pod's node.
    pub bound: Option<(&'a str, &'a str, &'a str)>,
    pub node: Option<(&'a str, &'a str)>,
}

impl ServiceAccountTokens {
    /// # Errors
    /// A key that cannot be read.
    pub fn new(settings: Settings) -> std::result::Result<Self, Error> {
        let key = SigningKey::from_pem(&settings.signing_key).map_err(Error::Key)?;
        let issuer = settings.issuers.into_iter().next().unwrap_or_default();
        Ok(Self { key, issuer, audiences: settings.audiences })
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    pub fn jwks(&self) -> Value {
        json!({"keys": [self.key.jwk()]})
    }

    /// Makes a token; returns it, its audiences and when it expires.
    ///
    /// # Errors
    /// 422 for a lifetime out of range.
    pub fn issue(&self, request: &TokenRequest<'_>) -> Result<(String, Value, jiff::Timestamp)> {
        let asked = request.spec["expirationSeconds"].as_i64().unwrap_or(LIFETIME_SECONDS_DEFAULT);
        if !(LIFETIME_SECONDS_MIN..=LIFETIME_SECONDS_MAX).contains(&asked) {
            let why = if asked < LIFETIME_SECONDS_MIN {
                "may not specify a duration less than 10 minutes"
            } else {
                "may not specify a duration larger than 2^32 seconds"
            };
            return Err(ApiError::new(
                422,
                "Invalid",
                format!(
                    "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: {asked}: {why}"
                ),
            ));
        }
        let audiences = match request.spec["audiences"].as_array() {
            Some(list) if !list.is_empty() => Value::Array(list.clone()),
            _ => json!(self.audiences),
        };
        let now = base::time::now().as_second();
        let own_audience = audiences == json!(self.audiences);
        let extended = asked == EXTENDED_FROM_SECONDS
            && own_audience
            && request.bound.is_some_and(|(kind, ..)| kind == "Pod");
        let lifetime = if extended { EXTENDED_SECONDS } else { asked };
        let mut kubernetes = json!({
            "namespace": request.namespace,
            "serviceaccount": {"name": request.account, "uid": request.account_uid},
        });
        if let Some((kind, name, uid)) = request.bound {
            kubernetes[kind.to_lowercase()] = json!({"name": name, "uid": uid});
        }
        if let Some((name, uid)) = request.node {
            kubernetes["node"] = json!({"name": name, "uid": uid});
        }
        if extended {
            kubernetes["warnafter"] = (now + asked).into();
        }
        let claims = json!({
            "aud": audiences,
            "exp": now + lifetime,
            "iat": now,
            "iss": self.issuer,
            "jti": base::rng::uuid(),
            "kubernetes.io": kubernetes,
            "nbf": now,
            "sub": format!("system:serviceaccount:{}:{}", request.namespace, request.account),
        });
        let token = self.key.sign(&claims).map_err(|err| ApiError::internal(err.to_string()))?;
        let expires = jiff::Timestamp::from_second(now + asked)
            .map_err(|err| ApiError::internal(err.to_string()))?;
        Ok((token, audiences, expires))
    }

    /// The account behind a token, if everything it is bound to still exists.
    pub fn authenticate(
        &self,
        cache: &Cache,
        token: &str,
        audiences: &[String],
    ) -> Option<(User, Vec<String>)> {
        let claims = self.key.verify(token)?;
        if claims["iss"] != self.issuer.as_str() {
            return None;
        }
        let now = base::time::now().as_second();
        if claims["exp"].as_i64()? < now - LEEWAY_SECONDS
            || claims["nbf"].as_i64().unwrap_or(0) > now + LEEWAY_SECONDS
        {
            return None;
        }
        let wanted = if audiences.is_empty() { &self.audiences } else { audiences };
        let granted: Vec<String> = claims["aud"]
            .as_array()?
            .iter()
            .filter_map(Value::as_str)
            .filter(|aud| wanted.iter().any(|wanted| wanted == aud))
            .map(str::to_string)
            .collect();
        if granted.is_empty() {
            return None;
        }
        let bound = &claims["kubernetes.io"];
        let namespace = bound["namespace"].as_str()?;
        let account = bound["serviceaccount"]["name"].as_str()?;
        let account_uid = bound["serviceaccount"]["uid"].as_str()?;
        exists(cache, "/registry/serviceaccounts/", Some(namespace), account, account_uid)?;
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut tell = |key: &str, value: &str| {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_string()]);
        };
        if let Some(id) = claims["jti"].as_str() {
            tell("credential-id", &format!("JTI={id}"));
        }
        for (kind, prefix) in [("pod", "/registry/pods/"), ("secret", "/registry/secrets/")] {
            if let (Some(name), Some(uid)) =
                (bound[kind]["name"].as_str(), bound[kind]["uid"].as_str())
            {
                exists(cache, prefix, Some(namespace), name, uid)?;
                if kind == "pod" {
                    tell("pod-name", name);
                    tell("pod-uid", uid);
                }
            }
        }
        if let (Some(name), Some(uid)) =
            (bound["node"]["name"].as_str(), bound["node"]["uid"].as_str())
        {
            // Alone, a node must exist; next to a pod it is only told.
            if !bound["pod"].is_object() {
                exists(cache, "/registry/minions/", None, name, uid)?;
            }
            tell("node-name", name);
            tell("node-uid", uid);
        }
        let mut groups = service_account_groups(namespace);
        groups.push(super::AUTHENTICATED.into());
        let user = User {
            name: format!("system:serviceaccount:{namespace}:{account}"),
            uid: account_uid.to_string(),
            groups,
            extra,
        };
        Some((user, granted))
    }
}

/// Some if the object exists, with this uid and not long deleted.
fn exists(
    cache: &Cache,
    prefix: &str,
    namespace: Option<&str>,
    name: &str,
    uid: &str,
) -> Option<()> {
    let key = match namespace {
        Some(namespace) => format!("{prefix}{namespace}/{name}"),
        None => format!("{prefix}{name}"),
    };
    let value = cache.get(prefix, &key)?.value();
    if metadata_str(&value, "uid") != uid {
        return None;
    }
    let deleted = base::time::parse(metadata_str(&value, "deletionTimestamp"));
    // A pod that is being ended may use its token until a minute after its time.
    let over =
        deleted.is_some_and(|at| at.as_second() + LEEWAY_SECONDS < base::time::now().as_second());
    (!over).then_some(())
}
