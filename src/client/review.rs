//! For servers that believe the API server: whose a token is (TokenReview), and what somebody
//! may do (SubjectAccessReview). Answers are believed for a while.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use http::{HeaderMap, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::transport::Client;

/// Answers remembered of each kind; when full, all are forgotten.
const REMEMBERED_MAX: usize = 1024;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Denied {
    /// 401
    Unauthenticated,
    /// 403, with what is missing.
    Forbidden(String),
    /// 500: the API server could not be asked.
    Unknown(String),
}

/// How long answers are believed.
#[derive(Debug, Clone, Copy)]
pub struct Ttl {
    pub token: Duration,
    pub allowed: Duration,
    pub denied: Duration,
}

/// Answers that grow old.
struct Remembered<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn get(&self, key: &K) -> Option<V> {
        let held = self.0.lock();
        held.get(key).filter(|(_, until)| *until > Instant::now()).map(|(value, _)| value.clone())
    }

    fn put(&self, key: K, value: V, ttl: Duration) {
        let mut held = self.0.lock();
        if held.len() >= REMEMBERED_MAX {
            held.clear();
        }
        held.insert(key, (value, Instant::now() + ttl));
    }
}

pub struct Reviews {
    client: Client,
    ttl: Ttl,
    tokens: Remembered<[u8; 32], Option<User>>,
    access: Remembered<(User, String), bool>,
}

/// The bearer token of a request.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    given.strip_prefix("Bearer ").map(str::trim).filter(|token| !token.is_empty())
}

impl Reviews {
    pub fn new(client: Client, ttl: Ttl) -> Self {
        Self { client, ttl, tokens: Remembered::new(), access: Remembered::new() }
    }

    /// # Errors
    /// A token that the API server does not know, and an API server that is not there.
    pub async fn user_of(&self, token: &str) -> Result<User, Denied> {
        // Tokens themselves are not kept.
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key) {
            return known.ok_or(Denied::Unauthenticated);
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token},
        });
        let answer = self
            .client
            .post_raw("/apis/authentication.k8s.io/v1/tokenreviews", &review)
            .await
            .map_err(|error| Denied::Unknown(error.to_string()))?;
        let user = (answer.pointer("/status/authenticated") == Some(&Value::Bool(true)))
            .then(|| read_user(answer.pointer("/status/user")));
        self.tokens.put(key, user.clone(), self.ttl.token);
        user.ok_or(Denied::Unauthenticated)
    }

    /// `asked`: an object with the review's `resourceAttributes` or `nonResourceAttributes`.
    ///
    /// # Errors
    /// An API server that is not there.
    pub async fn may(&self, user: &User, asked: &Value) -> Result<bool, Denied> {
        let key = (user.clone(), asked.to_string());
        if let Some(known) = self.access.get(&key) {
            return Ok(known);
        }
        let mut spec = json!({
            "user": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra,
        });
        if let (Some(spec), Some(asked)) = (spec.as_object_mut(), asked.as_object()) {
            spec.extend(asked.clone());
        }
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec,
        });
        let answer = self
            .client
            .post_raw("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review)
            .await
            .map_err(|error| Denied::Unknown(error.to_string()))?;
        let allowed = answer.pointer("/status/allowed") == Some(&Value::Bool(true));
        self.access.put(key, allowed, if allowed { self.ttl.allowed } else { self.ttl.denied });
        Ok(allowed)
    }
}

fn read_user(value: Option<&Value>) -> User {
    let text = |name: &str| {
        value.and_then(|value| value.get(name)?.as_str()).unwrap_or_default().to_owned()
    };
    let list = |value: &Value| -> Vec<String> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|it| it.as_str().map(str::to_owned))
            .collect()
    };
    User {
        name: text("username"),
        uid: text("uid"),
        groups: value.and_then(|value| value.get("groups")).map(list).unwrap_or_default(),
        extra: value
            .and_then(|value| value.get("extra")?.as_object())
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), list(value)))
            .collect(),
    }
}

/// The user of a client certificate that was verified.
pub fn of_certificate(der: &[u8]) -> Option<User> {
    let holder = pki::authority::holder(der).ok()?;
    let mut groups = holder.organizations;
    groups.push("system:authenticated".to_owned());
    Some(User { name: holder.common_name, uid: holder.uid, groups, ..User::default() })
}
