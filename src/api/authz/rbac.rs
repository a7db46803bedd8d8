//! Role-based access control over the roles and bindings in the watch cache.
//!
//! Parsed roles are kept until their object changes.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;

use super::{Action, Decision};
use crate::authn::{User, service_account};
use crate::cache::{Cache, Object};

const CLUSTER_ROLES: &str = "/registry/clusterroles/";
const CLUSTER_BINDINGS: &str = "/registry/clusterrolebindings/";
const ROLES: &str = "/registry/roles/";
const BINDINGS: &str = "/registry/rolebindings/";
/// Parsed objects kept; beyond that all are parsed anew once.
const PARSED_MAX: usize = 20_000;

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    pub fn allows(&self, action: &Action) -> bool {
        if !has(&self.verbs, &action.verb) {
            return false;
        }
        if !action.is_resource {
            return self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => action.path.starts_with(prefix),
                None => *url == action.path,
            });
        }
        let resource = if action.subresource.is_empty() {
            action.resource.clone()
        } else {
            format!("{}/{}", action.resource, action.subresource)
        };
        let any_resource = self.resources.iter().any(|item| {
            item == "*"
                || *item == resource
                || (!action.subresource.is_empty()
                    && item.strip_prefix("*/") == Some(action.subresource.as_str()))
        });
        has(&self.api_groups, &action.group)
            && any_resource
            && (self.resource_names.is_empty() || self.resource_names.contains(&action.name))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Role {
    rules: Option<Vec<Rule>>,
}

impl Role {
    pub(super) fn rules(&self) -> &[Rule] {
        self.rules.as_deref().unwrap_or_default()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Binding {
    metadata: BindingMeta,
    subjects: Option<Vec<Subject>>,
    role_ref: RoleRef,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BindingMeta {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RoleRef {
    pub(super) kind: String,
    pub(super) name: String,
}

impl Subject {
    fn namespace<'a>(&'a self, binding_namespace: &'a str) -> &'a str {
        if self.namespace.is_empty() { binding_namespace } else { &self.namespace }
    }

    fn is(&self, user: &User, binding_namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.name,
            "Group" => user.is_in(&self.name),
            "ServiceAccount" => {
                let account = (self.namespace(binding_namespace), self.name.as_str());
                service_account(&user.name) == Some(account)
            }
            _ => false,
        }
    }

    fn describe(&self, binding_namespace: &str) -> String {
        match self.kind.as_str() {
            "ServiceAccount" => {
                format!("ServiceAccount \"{}/{}\"", self.name, self.namespace(binding_namespace))
            }
            kind => format!("{kind} {:?}", self.name),
        }
    }
}

impl Binding {
    /// The subject through which the binding applies to a user.
    fn subject_for(&self, user: &User, namespace: &str) -> Option<&Subject> {
        self.subjects.iter().flatten().find(|subject| subject.is(user, namespace))
    }
}

enum Parsed {
    Role(Arc<Role>),
    Binding(Arc<Binding>),
}

pub struct Rbac {
    cache: Cache,
    /// By storage key, with the revision that was parsed.
    parsed: Mutex<HashMap<Arc<str>, (u64, Parsed)>>,
}

impl Rbac {
    pub fn new(cache: Cache) -> Self {
        Self { cache, parsed: Mutex::default() }
    }

    fn remember(&self, object: &Object, parsed: Parsed) {
        let mut kept = self.parsed.lock();
        if kept.len() >= PARSED_MAX {
            kept.clear();
        }
        kept.insert(object.key.clone(), (object.revision, parsed));
    }

    fn role(&self, object: &Object) -> Arc<Role> {
        if let Some((revision, Parsed::Role(role))) = self.parsed.lock().get(&object.key)
            && *revision == object.revision
        {
            return role.clone();
        }
        let role: Arc<Role> = Arc::new(serde_json::from_slice(object.bytes()).unwrap_or_default());
        self.remember(object, Parsed::Role(role.clone()));
        role
    }

    fn binding(&self, object: &Object) -> Arc<Binding> {
        if let Some((revision, Parsed::Binding(binding))) = self.parsed.lock().get(&object.key)
            && *revision == object.revision
        {
            return binding.clone();
        }
        let binding: Arc<Binding> =
            Arc::new(serde_json::from_slice(object.bytes()).unwrap_or_default());
        self.remember(object, Parsed::Binding(binding.clone()));
        binding
    }

    pub(super) fn rules_of(&self, role: &RoleRef, namespace: &str) -> Option<Arc<Role>> {
        let (prefix, key) = if role.kind == "ClusterRole" {
            (CLUSTER_ROLES, format!("{CLUSTER_ROLES}{}", role.name))
        } else {
            (ROLES, format!("{ROLES}{namespace}/{}", role.name))
        };
        self.cache.get(prefix, &key).map(|object| self.role(&object))
    }

    /// Calls `visit` with every rule that applies to a user in a namespace (empty for
    /// the cluster), and why, until it returns false. Role references that lead nowhere
    /// are skipped.
    pub fn visit(
        &self,
        user: &User,
        namespace: &str,
        mut visit: impl FnMut(&Rule, &dyn Fn() -> String) -> bool,
    ) {
        let mut look = |prefix: &'static str, start: String, namespace: &str| -> bool {
            for object in self.cache.list(prefix, &start, None).0 {
                let binding = self.binding(&object);
                let Some(subject) = binding.subject_for(user, namespace) else { continue };
                let Some(role) = self.rules_of(&binding.role_ref, namespace) else { continue };
                let why = || {
                    let kind =
                        if prefix == BINDINGS { "RoleBinding" } else { "ClusterRoleBinding" };
                    let name = &binding.metadata.name;
                    let place = if prefix == BINDINGS {
                        format!("{name}/{namespace}")
                    } else {
                        name.clone()
                    };
                    format!(
                        "RBAC: allowed by {kind} {place:?} of {} {:?} to {}",
                        binding.role_ref.kind,
                        binding.role_ref.name,
                        subject.describe(namespace),
                    )
                };
                for rule in role.rules.iter().flatten() {
                    if !visit(rule, &why) {
                        return false;
                    }
                }
            }
            true
        };
        if look(CLUSTER_BINDINGS, CLUSTER_BINDINGS.to_string(), "") && !namespace.is_empty() {
            look(BINDINGS, format!("{BINDINGS}{namespace}/"), namespace);
        }
    }

    /// The role references of a user's bindings that lead nowhere, as errors say it.
    pub(super) fn dangling(&self, user: &User, namespace: &str) -> Vec<String> {
        let mut places = vec![(CLUSTER_BINDINGS, CLUSTER_BINDINGS.to_string(), "")];
        if !namespace.is_empty() {
            places.push((BINDINGS, format!("{BINDINGS}{namespace}/"), namespace));
        }
        let mut out = Vec::new();
        for (prefix, start, namespace) in places {
            for object in self.cache.list(prefix, &start, None).0 {
                let binding = self.binding(&object);
                let role = &binding.role_ref;
                if binding.subject_for(user, namespace).is_some()
                    && self.rules_of(role, namespace).is_none()
                {
                    let plural = if role.kind == "ClusterRole" { "clusterroles" } else { "roles" };
                    out.push(format!(
                        "{plural}.rbac.authorization.k8s.io {:?} not found",
                        role.name
                    ));
                }
            }
        }
        out
    }

    pub fn decide(&self, user: &User, action: &Action) -> Decision {
        let mut decision = Decision::NoOpinion(String::new());
        self.visit(user, &action.namespace, |rule, why| {
            if rule.allows(action) {
                decision = Decision::Allow(why());
                return false;
            }
            true
        });
        decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let split = |text: &str| -> Vec<String> {
            text.split(' ').filter(|t| !t.is_empty()).map(str::to_string).collect()
        };
        Rule {
            verbs: split(verbs),
            api_groups: groups
                .split(' ')
                .map(|g| if g == "core" { "" } else { g }.into())
                .collect(),
            resources: split(resources),
            resource_names: split(names),
            non_resource_urls: Vec::new(),
        }
    }

    fn action(verb: &str, resource: &str, name: &str) -> Action {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Action {
            verb: verb.into(),
            is_resource: true,
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..Action::default()
        }
    }

    #[test]
    fn rules_match_as_documented() {
        assert!(rule("get", "core", "pods", "").allows(&action("get", "pods", "a")));
        assert!(!rule("get", "core", "pods", "").allows(&action("get", "pods/log", "a")));
        assert!(rule("get", "core", "pods/log", "").allows(&action("get", "pods/log", "a")));
        assert!(rule("*", "*", "*", "").allows(&action("get", "pods/log", "a")));
        assert!(rule("update", "core", "*/scale", "").allows(&action("update", "x/scale", "a")));
        assert!(rule("get", "core", "pods", "a b").allows(&action("get", "pods", "b")));
        assert!(!rule("get", "core", "pods", "a b").allows(&action("list", "pods", "")));
        assert!(!rule("get", "apps", "pods", "").allows(&action("get", "pods", "a")));
    }

    #[test]
    fn paths_match_whole_or_by_prefix() {
        let rule = Rule {
            verbs: vec!["get".into()],
            non_resource_urls: vec!["/healthz".into(), "/api/*".into()],
            ..Rule::default()
        };
        let get =
            |path: &str| Action { verb: "get".into(), path: path.into(), ..Action::default() };
        assert!(rule.allows(&get("/healthz")));
        assert!(rule.allows(&get("/api/v1")));
        assert!(!rule.allows(&get("/healthz/x")));
    }
}
