//! Who asks, and may they: client certificates and bearer tokens, then a
//! SubjectAccessReview on the node's subresources. Nothing is served without both.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use client::Client;
use http::{HeaderMap, Method, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// How long answers are believed (upstream's defaults).
const TOKEN_TTL: Duration = Duration::from_secs(120);
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const DENIED_TTL: Duration = Duration::from_secs(30);
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

type Question = (User, &'static str, &'static str);

pub struct Auth {
    client: Client,
    node_name: String,
    tokens: Remembered<[u8; 32], Option<User>>,
    access: Remembered<Question, bool>,
}

/// The verb of a method and the subresources of the node that grant a path, the most
/// specific first.
fn attributes(method: &Method, path: &str) -> (&'static str, &'static [&'static str]) {
    let verb = match *method {
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "create",
    };
    let is = |prefix: &str| {
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let subresources: &[&str] = if is("/stats") {
        &["stats"]
    } else if is("/metrics") {
        &["metrics"]
    } else if is("/logs") {
        &["log"]
    } else if is("/healthz") {
        &["healthz", "proxy"]
    } else if is("/configz") {
        &["configz", "proxy"]
    } else if is("/statusz") {
        &["statusz"]
    } else if is("/flagz") {
        &["configz"]
    } else if is("/checkpoint") {
        &["checkpoint"]
    } else if is("/pods") || is("/runningpods") {
        &["pods", "proxy"]
    } else {
        &["proxy"]
    };
    (verb, subresources)
}

impl Auth {
    pub fn new(client: Client, node_name: &str) -> Self {
        Self {
            client,
            node_name: node_name.to_owned(),
            tokens: Remembered::new(),
            access: Remembered::new(),
        }
    }

    /// `certificate` is the user of a verified client certificate.
    pub async fn check(
        &self,
        certificate: Option<&User>,
        headers: &HeaderMap,
        method: &Method,
        path: &str,
    ) -> Result<(), Denied> {
        let user = match certificate {
            Some(user) => user.clone(),
            None => self.by_token(headers).await?,
        };
        let (verb, subresources) = attributes(method, path);
        for subresource in subresources {
            if self.may(&user, verb, subresource).await? {
                return Ok(());
            }
        }
        Err(Denied::Forbidden(format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)={subresources:?})",
            user.name
        )))
    }

    async fn by_token(&self, headers: &HeaderMap) -> Result<User, Denied> {
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(str::trim)
            .filter(|token| !token.is_empty())
            .ok_or(Denied::Unauthenticated)?;
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
        self.tokens.put(key, user.clone(), TOKEN_TTL);
        user.ok_or(Denied::Unauthenticated)
    }

    async fn may(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, Denied> {
        let key = (user.clone(), verb, subresource);
        if let Some(known) = self.access.get(&key) {
            return Ok(known);
        }
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra,
                "resourceAttributes": {
                    "verb": verb, "version": "v1", "resource": "nodes",
                    "subresource": subresource, "name": self.node_name,
                },
            },
        });
        let answer = self
            .client
            .post_raw("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review)
            .await
            .map_err(|error| Denied::Unknown(error.to_string()))?;
        let allowed = answer.pointer("/status/allowed") == Some(&Value::Bool(true));
        self.access.put(key, allowed, if allowed { ALLOWED_TTL } else { DENIED_TTL });
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

/// The user of a client certificate that TLS has verified.
pub fn of_certificate(der: &[u8]) -> Option<User> {
    let holder = pki::authority::holder(der).ok()?;
    let mut groups = holder.organizations;
    groups.push("system:authenticated".to_owned());
    Some(User { name: holder.common_name, uid: holder.uid, groups, ..User::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use bytes::Bytes;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Knows one token and lets it read metrics only.
    struct Server(Arc<AtomicUsize>);

    #[async_trait]
    impl client::Transport for Server {
        async fn send(
            &self,
            request: http::Request<Bytes>,
        ) -> client::error::Result<http::Response<client::Body>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            let body: Value = serde_json::from_slice(request.body()).unwrap();
            let answer = if request.uri().path().ends_with("tokenreviews") {
                let good = body["spec"]["token"] == "good";
                json!({"status": {"authenticated": good, "user": {"username": "u", "groups": ["g"]}}})
            } else {
                assert_eq!(body["spec"]["resourceAttributes"]["name"], "n1");
                let metrics = body["spec"]["resourceAttributes"]["subresource"] == "metrics";
                json!({"status": {"allowed": metrics && body["spec"]["user"] == "u"}})
            };
            Ok(http::Response::new(client::Body::Full(answer.to_string().into())))
        }
    }

    #[tokio::test]
    async fn nothing_is_served_without_a_known_user_who_may() {
        let asked = Arc::new(AtomicUsize::new(0));
        let client = Client::new(Arc::new(Server(asked.clone())), "test");
        let auth = Auth::new(client, "n1");
        let bearer = |token: &str| -> HeaderMap {
            [(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())]
                .into_iter()
                .collect()
        };
        let none = HeaderMap::new();
        let get = Method::GET;
        assert_eq!(auth.check(None, &none, &get, "/metrics").await, Err(Denied::Unauthenticated));
        assert_eq!(
            auth.check(None, &bearer("bad"), &get, "/metrics").await,
            Err(Denied::Unauthenticated)
        );
        auth.check(None, &bearer("good"), &get, "/metrics/resource").await.unwrap();
        let before = asked.load(Ordering::SeqCst);
        auth.check(None, &bearer("good"), &get, "/metrics").await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), before, "answers are remembered");
        let refused = auth.check(None, &bearer("good"), &get, "/exec/a/b/c").await;
        assert!(matches!(refused, Err(Denied::Forbidden(_))));
        let certificate = User { name: "admin".into(), ..User::default() };
        let refused = auth.check(Some(&certificate), &none, &get, "/metricsx").await;
        assert!(matches!(refused, Err(Denied::Forbidden(_))));
    }

    #[test]
    fn paths_ask_for_their_own_subresource() {
        let cases = [
            ("/stats/summary", "stats"),
            ("/metrics/resource", "metrics"),
            ("/pods", "pods"),
            ("/configz", "configz"),
            ("/statusz", "statusz"),
            ("/flagz", "configz"),
            ("/healthz/ping", "healthz"),
            ("/logs/syslog", "log"),
            ("/exec/a/b/c", "proxy"),
            ("/statsx", "proxy"),
        ];
        for (path, want) in cases {
            assert_eq!(attributes(&Method::GET, path).1[0], want, "{path}");
        }
        assert_eq!(attributes(&Method::POST, "/exec").0, "create");
    }
}
