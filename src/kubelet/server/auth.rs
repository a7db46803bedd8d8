//! Who asks, and may they: client certificates and bearer tokens, then a
//! SubjectAccessReview on the node's subresources. Nothing is served without both.

use std::time::Duration;

use client::Client;
use client::review::{self, Reviews, Ttl};
pub use client::review::{Denied, User, of_certificate};
use http::{HeaderMap, Method};
use serde_json::json;

/// How long answers are believed (upstream's defaults).
const TTL: Ttl = Ttl {
    token: Duration::from_secs(120),
    allowed: Duration::from_secs(300),
    denied: Duration::from_secs(30),
};

pub struct Auth {
    reviews: Reviews,
    node_name: String,
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
        Self { reviews: Reviews::new(client, TTL), node_name: node_name.to_owned() }
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
            None => {
                let token = review::bearer(headers).ok_or(Denied::Unauthenticated)?;
                self.reviews.user_of(token).await?
            }
        };
        let (verb, subresources) = attributes(method, path);
        for subresource in subresources {
            let asked = json!({"resourceAttributes": {
                "verb": verb, "version": "v1", "resource": "nodes",
                "subresource": subresource, "name": self.node_name,
            }});
            if self.reviews.may(&user, &asked).await? {
                return Ok(());
            }
        }
        Err(Denied::Forbidden(format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)={subresources:?})",
            user.name
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use bytes::Bytes;
    use http::header;
    use serde_json::Value;
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
