//! Nobody grants by roles and bindings what they do not hold themselves.
//!
//! A writer of roles may be exempt by the verb `escalate`, a writer of bindings by the
//! verb `bind`, both by membership in `system:masters`. Never reads anything but the
//! watch cache.

use std::collections::BTreeSet;

use serde_json::Value;

use super::rbac::{RoleRef, Rule};
use super::{Action, Authorizer, Decision};
use crate::admission::{Attributes, Operation};
use crate::authn::MASTERS;
use crate::error::{ApiError, Result};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a role or binding that is about to be written; says nothing of other kinds.
///
/// # Errors
/// 403 with the rules that the writer lacks; 404 for a binding to a role that is not there.
pub fn check(
    authorizer: &Authorizer,
    request: &Attributes<'_>,
    name: &str,
    object: &Value,
) -> Result<()> {
    let is_write = matches!(request.operation, Operation::Create | Operation::Update);
    let plural = request.resource.plural.as_str();
    let is_role = matches!(plural, "roles" | "clusterroles");
    let is_binding = matches!(plural, "rolebindings" | "clusterrolebindings");
    if !is_write
        || request.resource.group != GROUP
        || !(is_role || is_binding)
        || request.user.is_in(MASTERS)
        || request.old.is_some_and(|old| only_collector_fields_differ(object, old))
    {
        return Ok(());
    }
    let may = |verb: &str, resource: &str, name: &str| {
        let action = Action {
            verb: verb.into(),
            is_resource: true,
            group: GROUP.into(),
            version: request.version.into(),
            resource: resource.into(),
            namespace: request.namespace.into(),
            name: name.into(),
            ..Action::default()
        };
        matches!(authorizer.decide_here(request.user, &action), Decision::Allow(_))
    };
    let granted = if is_role {
        if may("escalate", plural, name) {
            return Ok(());
        }
        let aggregates = |role: &Value| {
            let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array();
            selectors.is_some_and(|list| !list.is_empty())
        };
        // What an aggregated role will come to hold is anybody's guess: only the
        // holder of everything may shape one.
        if aggregates(object) || request.old.is_some_and(aggregates) {
            confirm(authorizer, request, name, &everything())?;
        }
        serde_json::from_value(object["rules"].clone()).ok().unwrap_or_default()
    } else {
        let role: RoleRef = serde_json::from_value(object["roleRef"].clone()).unwrap_or_default();
        let of = if role.kind == "ClusterRole" { "clusterroles" } else { "roles" };
        if may("bind", of, &role.name) {
            return Ok(());
        }
        match authorizer.rbac().rules_of(&role, request.namespace) {
            Some(found) => found.rules().to_vec(),
            None => return Err(ApiError::not_found(request.resource, &role.name)),
        }
    };
    confirm(authorizer, request, name, &granted)
}

/// What the garbage collector changes: owners and finalizers, and the record of that.
pub(crate) fn only_collector_fields_differ(new: &Value, old: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
                metadata.shift_remove(field);
            }
        }
        object
    };
    strip(new) == strip(old)
}

fn all() -> Vec<String> {
    vec!["*".into()]
}

fn everything() -> Vec<Rule> {
    let resources = Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() };
    let paths = Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() };
    vec![resources, paths]
}

fn confirm(
    authorizer: &Authorizer,
    request: &Attributes<'_>,
    name: &str,
    granted: &[Rule],
) -> Result<()> {
    let mut held = Vec::new();
    authorizer.rbac().visit(request.user, request.namespace, |rule, _| {
        held.push(rule.clone());
        true
    });
    let missing: Vec<Rule> = granted
        .iter()
        .flat_map(Rule::atoms)
        .filter(|atom| !held.iter().any(|rule| rule.covers(atom)))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let lines: BTreeSet<String> = compact(missing).iter().map(Rule::describe).collect();
    let lines: Vec<String> = lines.into_iter().collect();
    let mut why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        request.user.name,
        quoted(&request.user.groups),
        lines.join("\n"),
    );
    let dangling = authorizer.rbac().dangling(request.user, request.namespace);
    if !dangling.is_empty() {
        why.push_str(&format!("; resolution errors: [{}]", dangling.join(" ")));
    }
    Err(ApiError::forbidden(GROUP, &request.resource.plural, name, &why))
}

/// As Go prints a list of strings with `%q`.
fn quoted(list: &[String]) -> String {
    let words: Vec<String> = list.iter().map(|word| format!("{word:?}")).collect();
    format!("[{}]", words.join(" "))
}

/// Joins atoms that differ in their verbs only.
fn compact(atoms: Vec<Rule>) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    for atom in atoms {
        let same = |rule: &&mut Rule| {
            atom.non_resource_urls.is_empty()
                && rule.non_resource_urls.is_empty()
                && rule.api_groups == atom.api_groups
                && rule.resources == atom.resources
                && rule.resource_names == atom.resource_names
        };
        match out.iter_mut().find(same) {
            Some(rule) => {
                for verb in atom.verbs {
                    if !rule.verbs.contains(&verb) {
                        rule.verbs.push(verb);
                    }
                }
            }
            None => out.push(atom),
        }
    }
    out
}

impl Rule {
    /// The rule as rules of one verb and one resource, name or path each.
    fn atoms(&self) -> Vec<Rule> {
        let one = |word: &String| vec![word.clone()];
        let mut out = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    let atom = Rule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..Rule::default()
                    };
                    if self.resource_names.is_empty() {
                        out.push(atom);
                        continue;
                    }
                    out.extend(
                        self.resource_names
                            .iter()
                            .map(|name| Rule { resource_names: one(name), ..atom.clone() }),
                    );
                }
            }
            out.extend(self.non_resource_urls.iter().map(|url| Rule {
                verbs: one(verb),
                non_resource_urls: one(url),
                ..Rule::default()
            }));
        }
        out
    }

    /// Whether whoever holds this rule holds the atom.
    fn covers(&self, atom: &Rule) -> bool {
        let each = |have: &[String], want: &[String]| {
            want.iter().all(|word| have.iter().any(|item| item == "*" || item == word))
        };
        let resources = atom.resources.iter().all(|resource| {
            let part = resource.split_once('/').map(|(_, part)| part);
            self.resources.iter().any(|item| {
                item == "*"
                    || item == resource
                    || (part.is_some() && item.strip_prefix("*/") == part)
            })
        });
        let names = self.resource_names.is_empty()
            || (!atom.resource_names.is_empty()
                && atom.resource_names.iter().all(|name| self.resource_names.contains(name)));
        let paths = atom.non_resource_urls.iter().all(|url| {
            self.non_resource_urls.iter().any(|item| {
                item == url || item.strip_suffix('*').is_some_and(|stem| url.starts_with(stem))
            })
        });
        each(&self.verbs, &atom.verbs)
            && each(&self.api_groups, &atom.api_groups)
            && resources
            && names
            && paths
    }

    fn describe(&self) -> String {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let shown: Vec<String> = parts
            .iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| format!("{name}:{}", quoted(list)))
            .collect();
        format!("{{{}}}", shown.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(value: Value) -> Rule {
        serde_json::from_value(value).unwrap()
    }

    fn resources(verbs: &[&str], group: &str, resource: &str, names: &[&str]) -> Rule {
        rule(serde_json::json!({
            "verbs": verbs, "apiGroups": [group], "resources": [resource],
            "resourceNames": names,
        }))
    }

    fn held(holder: &Rule, granted: &Rule) -> bool {
        granted.atoms().iter().all(|atom| holder.covers(atom))
    }

    #[test]
    fn what_is_held_may_be_granted() {
        let all_pods = resources(&["get", "list"], "", "pods", &[]);
        assert!(held(&all_pods, &resources(&["get"], "", "pods", &["a"])));
        assert!(!held(&resources(&["get"], "", "pods", &["a"]), &all_pods));
        assert!(!held(&all_pods, &resources(&["*"], "", "pods", &[])));
        assert!(!held(&all_pods, &resources(&["get"], "apps", "pods", &[])));
        assert!(!held(&all_pods, &resources(&["get"], "", "pods/log", &[])));
        assert!(held(
            &resources(&["*"], "*", "*/log", &[]),
            &resources(&["get"], "", "pods/log", &[])
        ));
        assert!(!held(
            &resources(&["*"], "*", "*/log", &[]),
            &resources(&["get"], "", "pods", &[])
        ));
        let everything = everything();
        let path = rule(serde_json::json!({"verbs": ["get"], "nonResourceURLs": ["/x/*"]}));
        assert!(everything.iter().any(|rule| held(rule, &path)));
        assert!(!held(&all_pods, &path));
        let under = rule(serde_json::json!({"verbs": ["get"], "nonResourceURLs": ["/x/y"]}));
        assert!(held(&path, &under));
        assert!(!held(&under, &path));
    }

    #[test]
    fn missing_rules_are_joined_by_verb() {
        let atoms = resources(&["get", "list"], "", "secrets", &[]).atoms();
        assert_eq!(atoms.len(), 2);
        let joined = compact(atoms);
        assert_eq!(joined.len(), 1);
        assert_eq!(
            joined[0].describe(),
            r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}"#
        );
    }
}
