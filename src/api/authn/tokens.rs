//! Service-account tokens: made for TokenRequests, bound to what they were made for, and
//! checked against what exists now.

use std::collections::BTreeMap;

use pki::jwt::{SigningKey, Token, VerifyingKey, public_keys};
use serde_json::{Value, json};

use super::{Error, User, service_account_groups};
use crate::cache::Cache;
use crate::cache::prefix::{NODES, PODS, SECRETS};
use crate::error::{ApiError, Cause, Result};
use crate::registry::metadata_str;

pub mod legacy_token;

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
/// A token that we signed and that is good from later on was made before our clock was set
/// back: by a day and an hour at most it is believed all the same, or no pod could speak.
const SET_BACK_SECONDS: i64 = 90_000;

/// The issuer of tokens that stand in secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// How service-account tokens are made and which are believed.
pub struct Settings {
    /// The first signs; tokens of the others are believed.
    pub issuers: Vec<String>,
    /// Whom tokens are for that name no audience; the issuers where this is empty.
    pub audiences: Vec<String>,
    /// PEM of the private key that signs.
    pub signing_key: String,
    /// PEM of further keys, public or private, whose tokens are believed.
    pub keys: Vec<String>,
    /// Longer lifetimes that are asked for become this one.
    pub lifetime_seconds_max: Option<i64>,
    /// Whether the tokens that kubelets put into pods live for a year.
    pub extends: bool,
}

impl Settings {
    /// One issuer, which is its own audience, and one key.
    pub fn own(issuer: &str, signing_key: &str) -> Self {
        Self {
            issuers: vec![issuer.into()],
            audiences: Vec::new(),
            signing_key: signing_key.into(),
            keys: Vec::new(),
            lifetime_seconds_max: None,
            extends: true,
        }
    }
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

/// A token that was made.
pub struct Issued {
    pub token: String,
    pub audiences: Value,
    /// In seconds; less than was asked for where that was too long.
    pub lifetime_seconds: i64,
    pub expires: jiff::Timestamp,
}

/// A believed token's user and the audiences it is good for.
pub type Believed = (User, Vec<String>);

pub struct ServiceAccountTokens {
    signer: SigningKey,
    keys: Vec<VerifyingKey>,
    issuers: Vec<String>,
    audiences: Vec<String>,
    lifetime_seconds_max: Option<i64>,
    extends: bool,
}

impl ServiceAccountTokens {
    /// # Errors
    /// A key that cannot be read.
    pub fn new(settings: Settings) -> std::result::Result<Self, Error> {
        let signer = SigningKey::from_pem(&settings.signing_key).map_err(Error::Key)?;
        let mut keys = vec![signer.public()];
        for pem in &settings.keys {
            for key in public_keys(pem).map_err(Error::Key)? {
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        let audiences = match settings.audiences {
            none if none.is_empty() => settings.issuers.clone(),
            some => some,
        };
        Ok(Self {
            signer,
            keys,
            issuers: settings.issuers,
            audiences,
            lifetime_seconds_max: settings.lifetime_seconds_max,
            extends: settings.extends,
        })
    }

    pub fn issuer(&self) -> &str {
        self.issuers.first().map_or("", String::as_str)
    }

    /// The API server's own.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    pub fn jwks(&self) -> Value {
        json!({"keys": self.keys.iter().map(VerifyingKey::jwk).collect::<Vec<_>>()})
    }

    /// The names of the ways the keys sign, each once.
    pub fn algorithms(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.keys.iter().map(|key| key.algorithm().name()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Makes a token.
    ///
    /// # Errors
    /// 422 for a lifetime out of range.
    pub fn issue(&self, request: &TokenRequest<'_>) -> Result<Issued> {
        let mut asked =
            request.spec["expirationSeconds"].as_i64().unwrap_or(LIFETIME_SECONDS_DEFAULT);
        if !(LIFETIME_SECONDS_MIN..=LIFETIME_SECONDS_MAX).contains(&asked) {
            let why = if asked < LIFETIME_SECONDS_MIN {
                "may not specify a duration less than 10 minutes"
            } else {
                "may not specify a duration larger than 2^32 seconds"
            };
            let message = format!("Invalid value: {asked}: {why}");
            let field = "spec.expirationSeconds";
            let text =
                format!("TokenRequest.authentication.k8s.io \"\" is invalid: {field}: {message}");
            let cause = Cause { reason: "FieldValueInvalid".into(), message, field: field.into() };
            return Err(ApiError::new(422, "Invalid", text)
                .about("authentication.k8s.io", "TokenRequest", "")
                .with_causes(&[cause]));
        }
        if let Some(most) = self.lifetime_seconds_max {
            asked = asked.min(most);
        }
        let audiences = match request.spec["audiences"].as_array() {
            Some(list) if !list.is_empty() => Value::Array(list.clone()),
            _ => json!(self.audiences),
        };
        let now = base::time::now().as_second();
        let own_audience = audiences == json!(self.audiences);
        let extended = self.extends
            && asked == EXTENDED_FROM_SECONDS
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
            "iss": self.issuer(),
            "jti": base::rng::uuid(),
            "kubernetes.io": kubernetes,
            "nbf": now,
            "sub": format!("system:serviceaccount:{}:{}", request.namespace, request.account),
        });
        let token = self.signer.sign(&claims).map_err(|err| ApiError::internal(err.to_string()))?;
        let expires = jiff::Timestamp::from_second(now + asked)
            .map_err(|err| ApiError::internal(err.to_string()))?;
        Ok(Issued { token, audiences, lifetime_seconds: asked, expires })
    }

    /// The account behind a token, if everything it is bound to still exists; None for
    /// what is no token of these issuers.
    ///
    /// # Errors
    /// Why it is not believed, in upstream's words.
    pub fn authenticate(
        &self,
        cache: &Cache,
        text: &str,
        wanted: &[String],
    ) -> std::result::Result<Option<Believed>, String> {
        let Some(token) = Token::read(text) else { return Ok(None) };
        let issuer = token.claims["iss"].as_str().unwrap_or("");
        let legacy = issuer == LEGACY_ISSUER;
        if (!legacy && !self.issuers.iter().any(|known| known == issuer))
            || !token.is_signed_by(&self.keys)
        {
            return Ok(None);
        }
        if legacy {
            return legacy_token::judge(cache, text, &token.claims, wanted, &self.audiences);
        }
        self.judge(cache, &token.claims, wanted).map(Some)
    }

    fn judge(
        &self,
        cache: &Cache,
        claims: &Value,
        wanted: &[String],
    ) -> std::result::Result<Believed, String> {
        let now = base::time::now().as_second();
        if claims["exp"].as_i64().is_none_or(|end| end < now - LEEWAY_SECONDS) {
            return Err("service account token has expired".into());
        }
        if claims["nbf"].as_i64().unwrap_or(0) > now + SET_BACK_SECONDS {
            return Err("service account token is not valid yet".into());
        }
        let audiences: Vec<&str> = match &claims["aud"] {
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
            Value::String(one) => vec![one],
            _ => Vec::new(),
        };
        let granted: Vec<String> = audiences
            .iter()
            .filter(|audience| wanted.iter().any(|wanted| wanted == *audience))
            .map(|audience| (*audience).to_owned())
            .collect();
        if granted.is_empty() {
            return Err(format!(
                "token audiences {} is invalid for the target audiences {}",
                quoted(&audiences),
                quoted(wanted)
            ));
        }
        let bound = &claims["kubernetes.io"];
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let namespace = text(&bound["namespace"]);
        let account = text(&bound["serviceaccount"]["name"]);
        let account_uid = text(&bound["serviceaccount"]["uid"]);
        account_exists(cache, &namespace, &account, &account_uid)?;
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut tell = |key: &str, value: &str| {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_string()]);
        };
        if let Some(id) = claims["jti"].as_str() {
            tell("credential-id", &format!("JTI={id}"));
        }
        let gone = || "service account token has been invalidated".to_owned();
        for (kind, prefix) in [("pod", PODS), ("secret", SECRETS)] {
            if let (Some(name), Some(uid)) =
                (bound[kind]["name"].as_str(), bound[kind]["uid"].as_str())
            {
                exists(cache, prefix, Some(&namespace), name, uid).ok_or_else(gone)?;
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
                exists(cache, NODES, None, name, uid).ok_or_else(gone)?;
            }
            tell("node-name", name);
            tell("node-uid", uid);
        }
        let user = User { extra, ..account_user(&namespace, &account, &account_uid) };
        Ok((user, granted))
    }
}

/// As Go prints a list of strings with `%q`.
fn quoted<T: AsRef<str>>(list: &[T]) -> String {
    let words: Vec<String> = list.iter().map(|word| format!("{:?}", word.as_ref())).collect();
    format!("[{}]", words.join(" "))
}

/// The user that a service account is.
fn account_user(namespace: &str, account: &str, uid: &str) -> User {
    let mut groups = service_account_groups(namespace);
    groups.push(super::AUTHENTICATED.into());
    User {
        name: format!("system:serviceaccount:{namespace}:{account}"),
        uid: uid.to_string(),
        groups,
        extra: BTreeMap::new(),
    }
}

fn account_exists(
    cache: &Cache,
    namespace: &str,
    account: &str,
    uid: &str,
) -> std::result::Result<(), String> {
    exists(cache, "/registry/serviceaccounts/", Some(namespace), account, uid)
        .ok_or_else(|| format!("service account {namespace}/{account} has been deleted"))
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
