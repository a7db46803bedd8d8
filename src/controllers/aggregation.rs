//! ClusterRoles with an aggregation rule hold the rules of those they select.

use std::sync::Arc;

use client::cache::{Cache, Key};
use client::{Patch, Queue};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::json;

use crate::harness::{Context, Doing, Settled};
use crate::owner::name;

/// Whose the rules are, in `managedFields`.
const MANAGER: &str = "clusterrole-aggregation-controller";

pub async fn run(context: Context) {
    let roles: Cache<ClusterRole> = context.shared.cache();
    if context.drain.until(roles.synced()).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("ClusterRoleAggregator");
    let (again, all) = (queue.clone(), roles.clone());
    roles.on_change(move |old, new| {
        let same = old.zip(new).is_some_and(|(old, new)| {
            old.rules == new.rules
                && old.metadata.labels == new.metadata.labels
                && old.aggregation_rule == new.aggregation_rule
        });
        if same {
            return;
        }
        for role in all.list().iter().filter(|role| role.aggregation_rule.is_some()) {
            again.add((String::new(), name(&role.metadata).to_string()));
        }
    });
    let sync = |(_, role): Key| {
        let (context, roles) = (&context, &roles);
        async move {
            let Some(role) = roles.get("", &role) else { return Ok(()) };
            let Some(rules) = plan(&role, &roles.list()) else { return Ok(()) };
            // Whoever else writes rules there loses them: they are said elsewhere.
            let object = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": role.metadata.name}, "rules": rules,
            });
            let patch = Patch::Apply { object, manager: MANAGER.into(), force: true };
            let api = context.client.all::<ClusterRole>();
            let answer = api.patch(name(&role.metadata), &patch).await;
            answer.doing(|| "aggregate a cluster role".into()).or_gone()
        }
    };
    context.work(&queue, 1, sync).await;
}

/// The rules to write, None where they are written.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let rule = role.aggregation_rule.as_ref()?;
    let mut all: Vec<&ClusterRole> = all.iter().map(AsRef::as_ref).collect();
    all.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in rule.cluster_role_selectors.iter().flatten() {
        let selector = client::labels::selector(Some(selector));
        for other in &all {
            let itself = other.metadata.name == role.metadata.name;
            if itself || !selector.matches_map(other.metadata.labels.as_ref()) {
                continue;
            }
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    (role.rules.as_deref().unwrap_or_default() != rules).then_some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(value: serde_json::Value) -> Arc<ClusterRole> {
        Arc::new(serde_json::from_value(value).expect("a role"))
    }

    #[test]
    fn a_role_gathers_the_rules_of_those_it_selects() {
        let rule = |verb: &str| json!({"apiGroups": [""], "resources": ["pods"], "verbs": [verb]});
        let view = role(json!({"metadata": {"name": "view"}, "aggregationRule":
            {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]}}));
        let labels = json!({"to": "view"});
        let all = [
            view.clone(),
            role(json!({"metadata": {"name": "b", "labels": labels},
                "rules": [rule("get"), rule("list")]})),
            role(json!({"metadata": {"name": "a", "labels": labels},
                "rules": [rule("watch"), rule("get")]})),
            role(json!({"metadata": {"name": "c"}, "rules": [rule("delete")]})),
        ];
        let rules = plan(&view, &all).expect("rules");
        assert_eq!(
            rules.iter().map(|r| r.verbs[0].as_str()).collect::<Vec<_>>(),
            ["watch", "get", "list"]
        );
        let done = ClusterRole { rules: Some(rules), ..(*view).clone() };
        assert_eq!(plan(&done, &all), None);
    }
}
