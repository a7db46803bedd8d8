//! What a request asks for, read from its method, path and query.

use std::borrow::Cow;

/// The parts of a request that authorization, audit and routing look at
/// (k8s.io/apiserver, `RequestInfo`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// False for `/healthz`, `/openapi/v3` and the like.
    pub is_resource: bool,
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`,
    /// `deletecollection`; for other requests the method in lower case.
    pub verb: &'static str,
    pub group: String,
    pub version: String,
    pub namespace: String,
    /// The plural.
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// What follows the subresource, for proxies: without a leading slash.
    pub rest: String,
}

/// Query parameters, decoded, in order.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or("").split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name, true).into_owned(), decode(value, true).into_owned())
                })
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value, or None where it is missing or empty.
    pub fn set(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// As Go's `strconv.ParseBool` reads it, where upstream converts queries: anything
    /// but `false` and `0` is true once it is there.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value, "false" | "0" | "False" | "FALSE"))
    }
}

/// Decodes percent escapes; `+` is a space in queries.
pub fn decode(text: &str, plus: bool) -> Cow<'_, str> {
    if !text.bytes().any(|b| b == b'%' || (plus && b == b'+')) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |n: usize| bytes.get(n).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (b'+', _, _) if plus => {
                out.push(b' ');
                at += 1;
            }
            (byte, _, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

impl RequestInfo {
    pub fn parse(method: &http::Method, path: &str, query: &Query) -> Self {
        let mut info = Self { path: path.to_string(), ..Self::default() };
        let parts: Vec<Cow<'_, str>> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| decode(part, false))
            .collect();
        let mut rest = parts.as_slice();
        let prefix = match rest.first().map(Cow::as_ref) {
            Some("api") if rest.len() >= 3 => {
                info.version = rest[1].to_string();
                2
            }
            Some("apis") if rest.len() >= 4 => {
                info.group = rest[1].to_string();
                info.version = rest[2].to_string();
                3
            }
            _ => {
                info.verb = plain_verb(method);
                return info;
            }
        };
        rest = &rest[prefix..];
        info.is_resource = true;
        info.verb = match *method {
            http::Method::POST => "create",
            http::Method::GET | http::Method::HEAD => "get",
            http::Method::PUT => "update",
            http::Method::PATCH => "patch",
            http::Method::DELETE => "delete",
            _ => "",
        };
        if rest.first().is_some_and(|part| part == "watch") && rest.len() > 1 {
            // The deprecated form of before `?watch=true`.
            info.verb = "watch";
            rest = &rest[1..];
        }
        if rest.first().is_some_and(|part| part == "namespaces")
            && (info.group.is_empty() || rest.len() > 2)
            && let Some(namespace) = rest.get(1)
        {
            info.namespace = namespace.to_string();
            // `/namespaces/NAME/status` and `/finalize` belong to the namespace.
            let own = matches!(rest.get(2).map(Cow::as_ref), Some("status" | "finalize"));
            if rest.len() > 2 && !own {
                rest = &rest[2..];
            }
        }
        info.resource = rest.first().map(ToString::to_string).unwrap_or_default();
        info.name = rest.get(1).map(ToString::to_string).unwrap_or_default();
        info.subresource = rest.get(2).map(ToString::to_string).unwrap_or_default();
        if rest.len() > 3 {
            // Kept as it was sent: a proxied path may hold escapes and double slashes.
            info.rest = raw_tail(path, &info.subresource);
        }
        if info.name.is_empty() {
            info.verb = match info.verb {
                "get" if query.flag("watch") => "watch",
                "get" => "list",
                "delete" => "deletecollection",
                other => other,
            };
        } else if info.verb == "get" && query.flag("watch") && info.subresource.is_empty() {
            // A watch on one name is a list with a field selector.
            info.verb = "watch";
        }
        info
    }
}

fn plain_verb(method: &http::Method) -> &'static str {
    match *method {
        http::Method::GET => "get",
        http::Method::POST => "post",
        http::Method::PUT => "put",
        http::Method::PATCH => "patch",
        http::Method::DELETE => "delete",
        http::Method::HEAD => "head",
        http::Method::OPTIONS => "options",
        _ => "",
    }
}

fn raw_tail(path: &str, subresource: &str) -> String {
    let marker = format!("/{subresource}/");
    path.find(&marker).map(|at| path[at + marker.len()..].to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, uri: &str, expected: [&str; 7]) {
        let (path, query) = uri.split_once('?').map_or((uri, None), |(p, q)| (p, Some(q)));
        let method: http::Method = method.parse().unwrap();
        let info = RequestInfo::parse(&method, path, &Query::parse(query));
        let got = [
            info.verb,
            &info.group,
            &info.version,
            &info.namespace,
            &info.resource,
            &info.name,
            &info.subresource,
        ];
        assert_eq!(got, expected, "{uri}");
    }

    #[test]
    fn paths_name_verbs_and_resources() {
        check("GET", "/api/v1/pods", ["list", "", "v1", "", "pods", "", ""]);
        check("GET", "/api/v1/pods?watch=1", ["watch", "", "v1", "", "pods", "", ""]);
        check("GET", "/api/v1/namespaces/a/pods/b/log", ["get", "", "v1", "a", "pods", "b", "log"]);
        check("GET", "/api/v1/namespaces/a", ["get", "", "v1", "a", "namespaces", "a", ""]);
        check("GET", "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", ""]);
        check(
            "PUT",
            "/api/v1/namespaces/a/finalize",
            ["update", "", "v1", "a", "namespaces", "a", "finalize"],
        );
        check(
            "PATCH",
            "/apis/apps/v1/namespaces/a/deployments/b/scale",
            ["patch", "apps", "v1", "a", "deployments", "b", "scale"],
        );
        check(
            "DELETE",
            "/apis/apps/v1/namespaces/a/deployments",
            ["deletecollection", "apps", "v1", "a", "deployments", "", ""],
        );
        check("GET", "/healthz", ["get", "", "", "", "", "", ""]);
        check("GET", "/apis/apps/v1", ["get", "", "", "", "", "", ""]);
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("labelSelector=a%3Db%2Cc&x=1+2&watch"));
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert_eq!(query.get("x"), Some("1 2"));
        assert!(query.flag("watch"));
        assert!(!query.flag("follow"));
    }
}
