//! Who may do what: authorizers in the order that the administrator wants them, by default
//! that of nodes and then RBAC. The first that says yes or no decides; nobody's word is no.
//!
//! Only a webhook takes time. Where there is none, or its answer is known, a decision is
//! made at once.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::authn::{MASTERS, User};
use crate::cache::Cache;
use crate::serve::request::{Query, RequestInfo};

pub mod abac;
pub mod configuration;
pub mod escalation;
pub mod node;
pub mod rbac;
pub mod selection;
pub mod webhook;

use abac::Abac;
use selection::Selection;
use webhook::Webhook;

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
    /// What of a list, watch or deletion of many it is about.
    pub selection: Selection,
}

impl Action {
    pub fn of(info: &RequestInfo, query: &Query) -> Self {
        let selects = ["deletecollection", "list", "watch"].contains(&info.verb);
        let selection = match selects {
            true => Selection::of_query(query.get("fieldSelector"), query.get("labelSelector")),
            false => Selection::default(),
        };
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
            selection,
        };
        if action.name.is_empty()
            && let Some(name) = action.selection.name()
        {
            // A watch or list of one name may be allowed by name.
            action.name = name.to_string();
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

/// What authorizers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    /// Whatever the others would say.
    Deny(String),
    NoOpinion(String),
    /// One that might have known could not be asked, and nobody else said yes.
    Failed {
        error: String,
        /// Whether that is a no, or no opinion.
        denied: bool,
    },
}

/// An authorizer.
pub enum Mode {
    Node,
    Rbac,
    Abac(Abac),
    Webhook(Box<Webhook>),
    /// Says no to everybody but the masters.
    AlwaysDeny,
}

/// Upstream's order where nothing else is wanted.
pub fn default_modes() -> Vec<Mode> {
    vec![Mode::Node, Mode::Rbac]
}

pub struct Authorizer {
    cache: Cache,
    rbac: rbac::Rbac,
    /// Others may come while the server runs.
    modes: RwLock<Arc<[Mode]>>,
}

/// What was heard so far.
#[derive(Default)]
struct Heard {
    reasons: Vec<String>,
    errors: Vec<String>,
}

impl Heard {
    /// The decision, if this one ends the matter.
    fn hear(&mut self, said: Decision) -> Option<Decision> {
        match said {
            Decision::NoOpinion(why) => {
                self.reasons.extend(Some(why).filter(|why| !why.is_empty()));
                None
            }
            Decision::Failed { error, denied: false } => {
                self.errors.push(error);
                None
            }
            said => Some(said),
        }
    }

    /// Nobody said yes or no. Whoever had a reason not to allow it is heard.
    fn nobody(self) -> Decision {
        if self.errors.is_empty() {
            Decision::NoOpinion(self.reasons.join("\n"))
        } else {
            Decision::Failed { error: crate::authn::aggregate(&self.errors), denied: false }
        }
    }
}

impl Authorizer {
    pub fn new(cache: Cache, modes: Vec<Mode>) -> Self {
        Self { rbac: rbac::Rbac::new(cache.clone()), cache, modes: RwLock::new(modes.into()) }
    }

    pub fn rbac(&self) -> &rbac::Rbac {
        &self.rbac
    }

    pub fn modes(&self) -> Arc<[Mode]> {
        self.modes.read().clone()
    }

    /// From now on these decide.
    pub fn replace_modes(&self, modes: Vec<Mode>) {
        *self.modes.write() = modes.into();
    }

    /// What everybody says together.
    pub async fn decide(&self, user: &User, action: &Action) -> Decision {
        match self.at_once(user, action) {
            Some(decision) => decision,
            // Boxed: few servers have webhooks, and all requests would carry the state.
            None => Box::pin(self.ask(user, action)).await,
        }
    }

    /// As [`Self::decide`], for places that cannot wait; the thread waits for them.
    pub fn decide_here(&self, user: &User, action: &Action) -> Decision {
        if let Some(decision) = self.at_once(user, action) {
            return decision;
        }
        let runtime = tokio::runtime::Handle::current();
        if runtime.runtime_flavor() == tokio::runtime::RuntimeFlavor::CurrentThread {
            let error = "a webhook cannot be asked on the only thread".to_owned();
            return Decision::Failed { error, denied: false };
        }
        tokio::task::block_in_place(|| runtime.block_on(self.ask(user, action)))
    }

    /// The decision, unless a webhook has to be asked for it.
    fn at_once(&self, user: &User, action: &Action) -> Option<Decision> {
        if user.is_in(MASTERS) {
            return Some(Decision::Allow(String::new()));
        }
        let mut heard = Heard::default();
        for mode in self.modes().iter() {
            let said = match mode {
                Mode::Webhook(webhook) => webhook.known(user, action)?,
                mode => self.local(mode, user, action),
            };
            if let Some(decision) = heard.hear(said) {
                return Some(decision);
            }
        }
        Some(heard.nobody())
    }

    async fn ask(&self, user: &User, action: &Action) -> Decision {
        let mut heard = Heard::default();
        for mode in self.modes().iter() {
            let said = match mode {
                Mode::Webhook(webhook) => webhook.decide(&self.cache, user, action).await,
                mode => self.local(mode, user, action),
            };
            if let Some(decision) = heard.hear(said) {
                return decision;
            }
        }
        heard.nobody()
    }

    fn local(&self, mode: &Mode, user: &User, action: &Action) -> Decision {
        match mode {
            Mode::Node => node::decide(&self.cache, user, action),
            Mode::Rbac => self.rbac.decide(user, action),
            Mode::Abac(abac) => abac.decide(user, action),
            Mode::AlwaysDeny => Decision::NoOpinion("Everything is forbidden.".into()),
            // Asked by those who may wait.
            Mode::Webhook(_) => Decision::NoOpinion(String::new()),
        }
    }
}
