//! FlowSchemas: which requests they are about, and to which flow a request belongs.
//!
//! Pure. The order of precedence is the plan's.

use serde_json::Value;

use crate::authn::{User, service_account};
use crate::serve::request::RequestInfo;

const ANY: &str = "*";

/// How the requests of a schema are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distinguisher {
    None,
    ByUser,
    ByNamespace,
}

impl Distinguisher {
    pub fn of<'a>(self, info: &'a RequestInfo, user: &'a User) -> &'a str {
        match self {
            Self::None => "",
            Self::ByUser => &user.name,
            Self::ByNamespace => &info.namespace,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

/// A list of words, of which `*` is every word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Words {
    any: bool,
    words: Vec<String>,
}

impl Words {
    fn read(value: &Value) -> Self {
        let words = value.as_array().into_iter().flatten();
        let words: Vec<String> = words.filter_map(|w| w.as_str().map(str::to_string)).collect();
        Self { any: words.iter().any(|word| word == ANY), words }
    }

    fn has(&self, word: &str) -> bool {
        self.any || self.words.iter().any(|known| known == word)
    }

    /// Whether `resource/subresource` is among them.
    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        if subresource.is_empty() {
            return self.has(resource);
        }
        self.any
            || self.words.iter().any(|known| {
                let rest = known.strip_prefix(resource).and_then(|rest| rest.strip_prefix('/'));
                rest == Some(subresource)
            })
    }

    fn has_path(&self, path: &str) -> bool {
        self.any
            || self.words.iter().any(|known| match known.strip_suffix('*') {
                Some(start) if start.ends_with('/') => path.starts_with(start),
                _ => known == path,
            })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ResourceRule {
    verbs: Words,
    groups: Words,
    resources: Words,
    cluster_scope: bool,
    namespaces: Words,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    /// Verbs and paths.
    paths: Vec<(Words, Words)>,
}

/// What a FlowSchema says, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matcher {
    rules: Vec<Rule>,
    pub distinguisher: Distinguisher,
}

impl Matcher {
    pub fn read(spec: &Value) -> Self {
        let rules = spec["rules"].as_array().into_iter().flatten().map(Rule::read).collect();
        let distinguisher = match spec["distinguisherMethod"]["type"].as_str() {
            Some("ByUser") => Distinguisher::ByUser,
            Some("ByNamespace") => Distinguisher::ByNamespace,
            _ => Distinguisher::None,
        };
        Self { rules, distinguisher }
    }

    pub fn matches(&self, info: &RequestInfo, user: &User) -> bool {
        self.rules
            .iter()
            .any(|rule| rule.subjects.iter().any(|subject| subject.is(user)) && rule.is_about(info))
    }
}

impl Subject {
    fn read(subject: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        match subject["kind"].as_str()? {
            "User" => Some(Self::User(text(&subject["user"]["name"]))),
            "Group" => Some(Self::Group(text(&subject["group"]["name"]))),
            "ServiceAccount" => {
                let account = &subject["serviceAccount"];
                let (namespace, name) = (text(&account["namespace"]), text(&account["name"]));
                Some(Self::ServiceAccount { namespace, name })
            }
            _ => None,
        }
    }

    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => name == ANY || *name == user.name,
            Self::Group(name) => name == ANY || user.is_in(name),
            Self::ServiceAccount { namespace, name } => service_account(&user.name)
                .is_some_and(|(its, own)| its == namespace && (name == ANY || own == name)),
        }
    }
}

impl Rule {
    fn read(rule: &Value) -> Self {
        let list = |field: &str| rule[field].as_array().into_iter().flatten();
        let resource_rule = |rule: &Value| ResourceRule {
            verbs: Words::read(&rule["verbs"]),
            groups: Words::read(&rule["apiGroups"]),
            resources: Words::read(&rule["resources"]),
            cluster_scope: rule["clusterScope"] == true,
            namespaces: Words::read(&rule["namespaces"]),
        };
        Self {
            subjects: list("subjects").filter_map(Subject::read).collect(),
            resources: list("resourceRules").map(resource_rule).collect(),
            paths: list("nonResourceRules")
                .map(|rule| (Words::read(&rule["verbs"]), Words::read(&rule["nonResourceURLs"])))
                .collect(),
        }
    }

    fn is_about(&self, info: &RequestInfo) -> bool {
        if !info.is_resource {
            let is = |(verbs, paths): &(Words, Words)| {
                verbs.has(info.verb) && paths.has_path(&info.path)
            };
            return self.paths.iter().any(is);
        }
        self.resources.iter().any(|rule| {
            let place = if info.namespace.is_empty() {
                rule.cluster_scope
            } else {
                rule.namespaces.has(&info.namespace)
            };
            place
                && rule.verbs.has(info.verb)
                && rule.groups.has(&info.group)
                && rule.resources.has_resource(&info.resource, &info.subresource)
        })
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::serve::request::Query;

    fn matches(spec: &Value, user: &User, method: Method, path: &str) -> bool {
        let info = RequestInfo::parse(&method, path, &Query::default());
        Matcher::read(spec).matches(&info, user)
    }

    #[test]
    fn schemas_match_subjects_resources_and_paths() {
        let spec = json!({"rules": [{
            "subjects": [
                {"kind": "ServiceAccount", "serviceAccount": {"namespace": "a", "name": "*"}},
                {"kind": "User", "user": {"name": "ann"}},
                {"kind": "Group", "group": {"name": "ops"}},
            ],
            "resourceRules": [
                {"verbs": ["get", "update"], "apiGroups": [""], "resources": ["pods", "pods/status"],
                 "namespaces": ["x"]},
                {"verbs": ["*"], "apiGroups": ["*"], "resources": ["nodes"], "clusterScope": true},
            ],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/logs/*"]}],
        }]});
        let ann = User::new("ann", &[]);
        let cases = [
            (Method::GET, "/api/v1/namespaces/x/pods/p", true),
            (Method::DELETE, "/api/v1/namespaces/x/pods/p", false),
            (Method::GET, "/api/v1/namespaces/y/pods/p", false),
            (Method::GET, "/api/v1/pods", false),
            (Method::PUT, "/api/v1/namespaces/x/pods/p/status", true),
            (Method::PUT, "/api/v1/namespaces/x/pods/p/ephemeralcontainers", false),
            (Method::GET, "/api/v1/nodes", true),
            (Method::GET, "/healthz", true),
            (Method::POST, "/healthz", false),
            (Method::GET, "/healthz/ping", false),
            (Method::GET, "/logs/a", true),
        ];
        for (method, path, expected) in cases {
            assert_eq!(matches(&spec, &ann, method.clone(), path), expected, "{method} {path}");
        }
        let account = "system:serviceaccount:a:b";
        let users = [
            (User::new(account, &[]), true),
            (User::new("system:serviceaccount:b:b", &[]), false),
            (User::new("bob", &["ops"]), true),
            (User::new("bob", &[]), false),
        ];
        for (user, expected) in users {
            assert_eq!(matches(&spec, &user, Method::GET, "/healthz"), expected, "{}", user.name);
        }
    }
}
