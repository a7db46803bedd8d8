//! Who may do what: the node authorizer, then RBAC. One of them must say yes.

use std::sync::Arc;

use crate::authn::{MASTERS, User};
use crate::cache::Cache;
use crate::serve::request::{Query, RequestInfo};

pub mod escalation;
pub mod node;
pub mod rbac;

/// A request as authorizers see it (`authorizer.Attributes`).
#[derive(Debug, Clone, Default)]
pub struct Action {
    pub verb: String,
    /// True for requests about resources, false for plain paths.
    pub is_resource: bool,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub path: String,
    /// The field selector of a list or watch, as sent.
    pub field_selector: String,
}

impl Action {
    pub fn of(info: &RequestInfo, query: &Query) -> Self {
        let field_selector = query.get("fieldSelector").unwrap_or("");
        let mut action = Self {
            verb: info.verb.to_string(),
            is_resource: info.is_resource,
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            path: info.path.clone(),
            field_selector: field_selector.to_string(),
        };
        if action.name.is_empty()
            && ["deletecollection", "list", "watch"].contains(&info.verb)
            && let Some(name) = field_selector.strip_prefix("metadata.name=")
            && !name.contains(',')
        {
            // A watch or list of one name may be allowed by name.
            action.name = name.trim_start_matches('=').to_string();
        }
        action
    }

    /// `User "alice" cannot list resource "pods" in API group "" in the namespace "d"`.
    pub fn refusal(&self, user: &User) -> String {
        let who = &user.name;
        if !self.is_resource {
            return format!("User {who:?} cannot {} path {:?}", self.verb, self.path);
        }
        let resource = if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        };
        let mut text = format!(
            "User {who:?} cannot {} resource {resource:?} in API group {:?}",
            self.verb, self.group
        );
        if self.namespace.is_empty() {
            text.push_str(" at the cluster scope");
        } else {
            text.push_str(&format!(" in the namespace {:?}", self.namespace));
        }
        text
    }
}

/// What an authorizer says. It never says a flat no: others may know better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    NoOpinion(String),
}

pub struct Authorizer {
    cache: Cache,
    rbac: rbac::Rbac,
}

impl Authorizer {
    pub fn new(cache: Cache) -> Self {
        Self { rbac: rbac::Rbac::new(cache.clone()), cache }
    }

    pub fn rbac(&self) -> &rbac::Rbac {
        &self.rbac
    }

    pub fn decide(&self, user: &Arc<User>, action: &Action) -> Decision {
        if user.is_in(MASTERS) {
            return Decision::Allow(String::new());
        }
        let of_node = match node::decide(&self.cache, user, action) {
            Decision::NoOpinion(why) => why,
            allowed @ Decision::Allow(_) => return allowed,
        };
        match self.rbac.decide(user, action) {
            // Whoever had a reason not to allow it is heard.
            Decision::NoOpinion(why) => {
                let reasons = [of_node, why];
                let said = reasons.iter().filter(|why| !why.is_empty()).cloned();
                Decision::NoOpinion(said.collect::<Vec<_>>().join("\n"))
            }
            allowed @ Decision::Allow(_) => allowed,
        }
    }
}
