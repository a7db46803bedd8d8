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
        let any_resource = self.resources.iter().any(|item| match item.split_once('/') {
            None => item == "*" || action.subresource.is_empty() && *item == action.resource,
            Some((resource, subresource)) => {
                !action.subresource.is_empty()
                    && (resource == "*" || resource == action.resource)
                    && subresource == action.subresource
            }
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

    /// Why a rule applies to a user: `namespace` is the binding's, empty for the cluster.
    fn why(&self, user: &User, namespace: &str) -> String {
        let name = &self.metadata.name;
        let (kind, place) = match namespace {
            "" => ("ClusterRoleBinding", name.clone()),
            namespace => ("RoleBinding", format!("{name}/{namespace}")),
        };
        let subject = self.subject_for(user, namespace);
        let subject = subject.map(|subject| subject.describe(namespace)).unwrap_or_default();
        format!(
            "RBAC: allowed by {kind} {place:?} of {} {:?} to {subject}",
            self.role_ref.kind, self.role_ref.name,
        )
    }
}

enum Parsed {
    Role(Arc<Role>),
    Binding(Arc<Binding>),
}

/// The bindings of the whole cluster, found by whom they name. A request looks at those of its
/// user alone, however many there are.
#[derive(Default)]
struct Cluster {
    /// How often bindings and roles had changed; None before the first look.
    seen: Option<(u64, u64)>,
    /// In the order of their names, with the roles that they lead to.
    bindings: Vec<(Arc<Binding>, Option<Arc<Role>>)>,
    /// By the names of users, which service accounts have as well.
    by_user: HashMap<String, Vec<usize>>,
    by_group: HashMap<String, Vec<usize>>,
}

impl Cluster {
    fn add(&mut self, binding: Arc<Binding>, role: Option<Arc<Role>>) {
        let at = self.bindings.len();
        for subject in binding.subjects.iter().flatten() {
            let place = match subject.kind.as_str() {
                "User" => self.by_user.entry(subject.name.clone()),
                "Group" => self.by_group.entry(subject.name.clone()),
                "ServiceAccount" => {
                    let (namespace, name) = (&subject.namespace, &subject.name);
                    self.by_user.entry(format!("system:serviceaccount:{namespace}:{name}"))
                }
                _ => continue,
            };
            place.or_default().push(at);
        }
        self.bindings.push((binding, role));
    }

    /// Those that apply to a user, in the order of their names.
    fn of(&self, user: &User) -> impl Iterator<Item = &(Arc<Binding>, Option<Arc<Role>>)> {
        let by_group = user.groups.iter().filter_map(|group| self.by_group.get(group));
        let places = self.by_user.get(&user.name).into_iter().chain(by_group);
        let mut places: Vec<usize> = places.flatten().copied().collect();
        places.sort_unstable();
        places.dedup();
        places.into_iter().filter_map(|at| self.bindings.get(at))
    }
}

pub struct Rbac {
    cache: Cache,
    /// Made anew when a binding or a role of the cluster has changed.
    cluster: Mutex<Arc<Cluster>>,
    /// By storage key, with the revision that was parsed.
    parsed: Mutex<HashMap<Arc<str>, (u64, Parsed)>>,
}

impl Rbac {
    pub fn new(cache: Cache) -> Self {
        Self { cache, cluster: Mutex::default(), parsed: Mutex::default() }
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

    fn cluster(&self) -> Arc<Cluster> {
        // Read before the objects are: what changes meanwhile is seen the next time.
        let seen = Some((self.cache.changes(CLUSTER_BINDINGS), self.cache.changes(CLUSTER_ROLES)));
        let mut kept = self.cluster.lock();
        if kept.seen != seen {
            let mut cluster = Cluster { seen, ..Cluster::default() };
            for object in self.cache.list(CLUSTER_BINDINGS, CLUSTER_BINDINGS, None).0 {
                let binding = self.binding(&object);
                let role = self.rules_of(&binding.role_ref, "");
                cluster.add(binding, role);
            }
            *kept = Arc::new(cluster);
        }
        kept.clone()
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
        // Whether it is to go on.
        let mut look = |binding: &Binding, role: &Role, namespace: &str| {
            let why = || binding.why(user, namespace);
            role.rules().iter().all(|rule| visit(rule, &why))
        };
        for (binding, role) in self.cluster().of(user) {
            if let Some(role) = role
                && !look(binding, role, "")
            {
                return;
            }
        }
        if namespace.is_empty() {
            return;
        }
        let start = format!("{BINDINGS}{namespace}/");
        for object in self.cache.list(BINDINGS, &start, None).0 {
            let binding = self.binding(&object);
            if binding.subject_for(user, namespace).is_some()
                && let Some(role) = self.rules_of(&binding.role_ref, namespace)
                && !look(&binding, &role, namespace)
            {
                return;
            }
        }
    }

    /// The role references of a user's bindings that lead nowhere, as errors say it.
    pub(super) fn dangling(&self, user: &User, namespace: &str) -> Vec<String> {
        let leads_nowhere = |role: &RoleRef| {
            let plural = if role.kind == "ClusterRole" { "clusterroles" } else { "roles" };
            format!("{plural}.rbac.authorization.k8s.io {:?} not found", role.name)
        };
        let cluster = self.cluster();
        let of_cluster = cluster.of(user).filter(|(_, role)| role.is_none());
        let mut out: Vec<String> =
            of_cluster.map(|(binding, _)| leads_nowhere(&binding.role_ref)).collect();
        if namespace.is_empty() {
            return out;
        }
        for object in self.cache.list(BINDINGS, &format!("{BINDINGS}{namespace}/"), None).0 {
            let binding = self.binding(&object);
            let role = &binding.role_ref;
            if binding.subject_for(user, namespace).is_some()
                && self.rules_of(role, namespace).is_none()
            {
                out.push(leads_nowhere(role));
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
    fn bindings_of_the_cluster_are_found_by_whom_they_name() {
        let mut cluster = Cluster::default();
        for (name, subjects) in [
            ("a", r#"[{"kind":"Group","name":"g"},{"kind":"User","name":"u"}]"#),
            ("b", r#"[{"kind":"ServiceAccount","name":"s","namespace":"n"}]"#),
            ("c", r#"[{"kind":"Group","name":"h"},{"kind":"Group","name":"u"}]"#),
            ("d", "null"),
            ("e", r#"[{"kind":"User","name":"system:serviceaccount:n:s"}]"#),
        ] {
            let text = format!(r#"{{"metadata":{{"name":"{name}"}},"subjects":{subjects}}}"#);
            cluster.add(Arc::new(serde_json::from_str(&text).unwrap()), None);
        }
        for (user, groups, expected) in [
            ("u", &["h", "g"][..], "ac"),
            ("u", &[], "a"),
            ("x", &["g"], "a"),
            ("system:serviceaccount:n:s", &["h"], "bce"),
            ("system:serviceaccount:n:t", &[], ""),
        ] {
            let user = User::new(user, groups);
            let found: String =
                cluster.of(&user).map(|(binding, _)| binding.metadata.name.as_str()).collect();
            assert_eq!(found, expected, "{user:?}");
            // As each binding says it by itself.
            let all = cluster.bindings.iter().map(|(binding, _)| binding);
            let those = all.filter(|binding| binding.subject_for(&user, "").is_some());
            let those: String = those.map(|binding| binding.metadata.name.as_str()).collect();
            assert_eq!(found, those, "{user:?}");
        }
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
