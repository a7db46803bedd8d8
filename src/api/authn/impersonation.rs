//! Acting as somebody else: what a request's headers ask for, and what its user must be
//! allowed for that (documentation, "User impersonation"; KEP-5284 for the constrained
//! modes).
//!
//! Never asks an authorizer: it says what to ask, attempt by attempt.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    ANONYMOUS, AUTHENTICATED, MASTERS, UNAUTHENTICATED, User, service_account,
    service_account_groups,
};
use crate::authz::Action;
use crate::error::{ApiError, Result};

/// From this many values on, one question for all of them comes first.
const MANY_VALUES: usize = 4;
const NODES: &str = "system:nodes";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Whom a request acts as, and the verb that allowed it (empty for `impersonate`).
#[derive(Debug)]
pub struct ActsAs {
    pub user: Arc<User>,
    pub constraint: String,
}

/// One way to be allowed to act as somebody.
#[derive(Debug)]
pub struct Attempt {
    /// Whom the request then acts as.
    pub user: User,
    /// The verb that allowed it, as the audit log shows it; empty for the verb `impersonate`.
    pub constraint: String,
    /// Who asks, where authorizers should see somebody more general than the requestor.
    pub requestor: Option<User>,
    /// All of these must hold.
    pub checks: Vec<Check>,
}

#[derive(Debug)]
pub enum Check {
    Allowed(Action),
    /// The first, or else all of the others.
    AllOrEach(Action, Vec<Action>),
    /// Nobody may do this.
    Never(Action, String),
}

/// The identity that `headers` ask to act as, just as they say it; None where they ask for
/// none.
///
/// # Errors
/// 400 for groups, a uid or extra without a user.
pub fn wanted(headers: &http::HeaderMap) -> Result<Option<User>> {
    let text = |value: &http::HeaderValue| value.to_str().unwrap_or("").to_string();
    let name = headers.get("impersonate-user").map(text).unwrap_or_default();
    let groups: Vec<String> = headers.get_all("impersonate-group").iter().map(text).collect();
    let uid = headers.get("impersonate-uid").map(text).unwrap_or_default();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (header, value) in headers {
        if let Some(key) = header.as_str().strip_prefix("impersonate-extra-") {
            let key = crate::serve::request::decode(key, false).to_lowercase();
            extra.entry(key).or_default().push(text(value));
        }
    }
    if !name.is_empty() {
        return Ok(Some(User { name, uid, groups, extra }));
    }
    if groups.is_empty() && uid.is_empty() && extra.is_empty() {
        return Ok(None);
    }
    let asked = in_go_syntax(&User { name, uid, groups, extra });
    Err(ApiError::bad_request(format!("requested {asked} without impersonating a user name")))
}

/// The attempts to act as `wanted` in a request for `action`, the narrowest first. One that
/// holds is enough; where none does, the first one's refusal is the answer.
pub fn attempts(wanted: &User, requestor: &User, action: &Action) -> Vec<Attempt> {
    let only_name = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
    let node = node_name(&wanted.name);
    let account = service_account(&wanted.name);
    let mut out = Vec::new();
    if let Some(node) = node
        && only_name
    {
        let own = service_account(&requestor.name).is_some()
            && requestor.extra.get(NODE_NAME).is_some_and(|names| *names == [node]);
        if own {
            let mut attempt = constrained("associated-node", wanted, action);
            // Whatever the node, the same account gets the same answer.
            let keys = requestor.extra.keys().cloned().collect();
            let extra = [("authentication.kubernetes.io/associated-node-keys".into(), keys)];
            attempt.requestor = Some(User { extra: extra.into(), ..requestor.clone() });
            for check in &mut attempt.checks {
                if let Check::Allowed(action) = check
                    && action.resource == "nodes"
                    && action.verb == "impersonate:associated-node"
                {
                    action.name = "*".into();
                }
            }
            out.push(attempt);
        }
        out.push(constrained("arbitrary-node", wanted, action));
    }
    if account.is_some() && only_name {
        out.push(constrained("serviceaccount", wanted, action));
    }
    if node.is_none() && account.is_none() {
        out.push(constrained("user-info", wanted, action));
    }
    out.push(unconstrained(wanted));
    out
}

/// By the verb `impersonate` alone, whatever the request does.
fn unconstrained(wanted: &User) -> Attempt {
    let ask = |group: &str, resource: &str, subresource: &str, name: &str| {
        question("impersonate", group, resource, subresource, name)
    };
    let mut user = wanted.clone();
    let mut checks = Vec::new();
    match service_account(&wanted.name) {
        Some((namespace, account)) => {
            if user.groups.is_empty() {
                user.groups = service_account_groups(namespace);
            }
            let action = ask("", "serviceaccounts", "", account);
            checks.push(Check::Allowed(Action { namespace: namespace.into(), ..action }));
        }
        None => checks.push(Check::Allowed(ask("", "users", "", &wanted.name))),
    }
    if !wanted.uid.is_empty() {
        checks.push(Check::Allowed(ask(AUTHENTICATION, "uids", "", &wanted.uid)));
    }
    checks.extend(wanted.groups.iter().map(|group| Check::Allowed(ask("", "groups", "", group))));
    for (key, values) in &wanted.extra {
        for value in values {
            checks.push(Check::Allowed(ask(AUTHENTICATION, "userextras", key, value)));
        }
    }
    Attempt { user: with_group_of_all(user), constraint: String::new(), requestor: None, checks }
}

/// Both `impersonate-on:MODE:VERB` for the request and `impersonate:MODE` for the identity.
fn constrained(mode: &str, wanted: &User, action: &Action) -> Attempt {
    let verb = format!("impersonate:{mode}");
    let ask = |resource: &str, subresource: &str, name: &str| {
        question(&verb, AUTHENTICATION, resource, subresource, name)
    };
    let on = Action { verb: format!("impersonate-on:{mode}:{}", action.verb), ..action.clone() };
    let mut user = wanted.clone();
    let mut checks = vec![Check::Allowed(on)];
    if let Some(node) = node_name(&wanted.name) {
        user.groups = vec![NODES.into()];
        checks.push(Check::Allowed(ask("nodes", "", node)));
    } else if let Some((namespace, account)) = service_account(&wanted.name) {
        user.groups = service_account_groups(namespace);
        let action = ask("serviceaccounts", "", account);
        checks.push(Check::Allowed(Action { namespace: namespace.into(), ..action }));
    } else {
        checks.push(Check::Allowed(ask("users", "", &wanted.name)));
    }
    if !wanted.uid.is_empty() {
        checks.push(Check::Allowed(ask("uids", "", &wanted.uid)));
    }
    let groups = &wanted.groups;
    if groups.iter().any(String::is_empty) {
        let why = "impersonating the empty string group is not allowed";
        checks.push(Check::Never(ask("groups", "", ""), why.into()));
    } else if wanted.is_in(MASTERS) {
        let why = format!("impersonating the {MASTERS} group is not allowed");
        checks.push(Check::Never(ask("groups", "", MASTERS), why));
    } else {
        let each = groups.iter().map(|group| ask("groups", "", group)).collect();
        many(&mut checks, groups.len(), ask("groups", "", "*"), each);
    }
    if let Some(why) = wrong_extra(&wanted.extra) {
        checks.push(Check::Never(ask("userextras", "", ""), why));
    } else {
        let pairs =
            wanted.extra.iter().flat_map(|(key, values)| values.iter().map(move |v| (key, v)));
        let each: Vec<Action> = pairs.map(|(key, value)| ask("userextras", key, value)).collect();
        let count = each.len().max(wanted.extra.len());
        many(&mut checks, count, ask("userextras", "*", "*"), each);
    }
    Attempt { user: with_group_of_all(user), constraint: verb, requestor: None, checks }
}

const AUTHENTICATION: &str = "authentication.k8s.io";

fn many(checks: &mut Vec<Check>, count: usize, all: Action, each: Vec<Action>) {
    if count >= MANY_VALUES {
        checks.push(Check::AllOrEach(all, each));
    } else {
        checks.extend(each.into_iter().map(Check::Allowed));
    }
}

fn question(verb: &str, group: &str, resource: &str, subresource: &str, name: &str) -> Action {
    Action {
        verb: verb.into(),
        is_resource: true,
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        subresource: subresource.into(),
        name: name.into(),
        ..Action::default()
    }
}

/// Why nobody may have this extra, where that is so.
fn wrong_extra(extra: &BTreeMap<String, Vec<String>>) -> Option<String> {
    extra.iter().find_map(|(key, values)| {
        if key.is_empty() {
            return Some("impersonating the empty string key in extra is not allowed".into());
        }
        if let Some(problem) = kinds::meta::name::is_domain_prefixed_path(key).first() {
            return Some(format!(
                "impersonating an invalid key in extra is not allowed: extra.key: Invalid value: {key:?}: {problem}"
            ));
        }
        if values.iter().any(String::is_empty) {
            return Some("impersonating the empty string value in extra is not allowed".into());
        }
        None
    })
}

fn with_group_of_all(mut user: User) -> User {
    let group = if user.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !user.is_in(group) && !user.is_in(UNAUTHENTICATED) {
        user.groups.push(group.into());
    }
    user
}

/// The name of a node's user.
fn node_name(user: &str) -> Option<&str> {
    let name = user.strip_prefix("system:node:")?;
    kinds::meta::name::is_dns1123_subdomain(name).is_empty().then_some(name)
}

/// As Go prints a `&user.DefaultInfo`.
fn in_go_syntax(user: &User) -> String {
    let list = |words: &[String]| -> String {
        let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
        format!("[]string{{{}}}", words.join(", "))
    };
    let groups =
        if user.groups.is_empty() { "[]string(nil)".to_string() } else { list(&user.groups) };
    let extra = if user.extra.is_empty() {
        "map[string][]string(nil)".to_string()
    } else {
        let entries: Vec<String> =
            user.extra.iter().map(|(key, values)| format!("{key:?}:{}", list(values))).collect();
        format!("map[string][]string{{{}}}", entries.join(", "))
    };
    format!(
        "&user.DefaultInfo{{Name:{:?}, UID:{:?}, Groups:{groups}, Extra:{extra}}}",
        user.name, user.uid
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> http::HeaderMap {
        let mut out = http::HeaderMap::new();
        for (name, value) in pairs {
            out.append(*name, value.parse().unwrap());
        }
        out
    }

    fn list() -> Action {
        Action { verb: "list".into(), ..question("", "", "pods", "", "") }
    }

    /// The attempts' constraints, and of each check the verb, resource and name.
    fn shown(wanted: &User, requestor: &User) -> Vec<(String, Vec<String>)> {
        let text = |a: &Action| format!("{} {} {}", a.verb, a.resource, a.name);
        let check = |check: &Check| match check {
            Check::Allowed(action) => text(action),
            Check::AllOrEach(all, each) => format!("{} or {}", text(all), each.len()),
            Check::Never(action, why) => format!("{}: {why}", text(action)),
        };
        attempts(wanted, requestor, &list())
            .iter()
            .map(|attempt| (attempt.constraint.clone(), attempt.checks.iter().map(check).collect()))
            .collect()
    }

    #[test]
    fn whoever_acts_as_somebody_must_say_as_whom() {
        let error =
            wanted(&headers(&[("impersonate-group", "a"), ("impersonate-uid", "u")])).unwrap_err();
        assert_eq!(error.code, 400);
        assert_eq!(
            error.message,
            r#"requested &user.DefaultInfo{Name:"", UID:"u", Groups:[]string{"a"}, Extra:map[string][]string(nil)} without impersonating a user name"#
        );
        assert_eq!(wanted(&headers(&[])).unwrap(), None);
    }

    #[test]
    fn users_need_the_request_and_the_identity_or_the_old_verb() {
        let bob = User { name: "bob".into(), groups: vec!["g".into()], ..User::default() };
        let shown = shown(&bob, &User::default());
        assert_eq!(shown[0].0, "impersonate:user-info");
        assert_eq!(
            shown[0].1,
            [
                "impersonate-on:user-info:list pods ",
                "impersonate:user-info users bob",
                "impersonate:user-info groups g"
            ]
        );
        assert_eq!(shown[1].1, ["impersonate users bob", "impersonate groups g"]);
    }

    #[test]
    fn constrained_impersonation_never_reaches_the_masters() {
        let groups = vec![MASTERS.to_string()];
        let bob = User { name: "bob".into(), groups, ..User::default() };
        let shown = shown(&bob, &User::default());
        assert_eq!(
            shown[0].1[2],
            "impersonate:user-info groups system:masters: impersonating the system:masters group is not allowed"
        );
        assert_eq!(shown[1].1[1], "impersonate groups system:masters");
    }

    #[test]
    fn an_account_may_be_allowed_the_node_it_runs_on() {
        let node = User { name: "system:node:n1".into(), ..User::default() };
        let mut agent = User { name: "system:serviceaccount:a:b".into(), ..User::default() };
        let modes = |requestor: &User| -> Vec<String> {
            shown(&node, requestor).into_iter().map(|(constraint, _)| constraint).collect()
        };
        assert_eq!(modes(&agent), ["impersonate:arbitrary-node", ""]);
        agent.extra.insert(NODE_NAME.into(), vec!["n1".into()]);
        assert_eq!(
            modes(&agent),
            ["impersonate:associated-node", "impersonate:arbitrary-node", ""]
        );
        let first = &attempts(&node, &agent, &list())[0];
        assert_eq!(first.user.groups, [NODES, AUTHENTICATED]);
        assert_eq!(shown(&node, &agent)[0].1[1], "impersonate:associated-node nodes *");
    }

    #[test]
    fn many_groups_are_asked_for_at_once_first() {
        let groups = ["a", "b", "c", "d"].map(String::from).to_vec();
        let bob = User { name: "bob".into(), groups, ..User::default() };
        assert_eq!(shown(&bob, &User::default())[0].1[2], "impersonate:user-info groups * or 4");
    }
}
