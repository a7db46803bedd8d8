//! Cluster roles that hold the rules of others.

use k8s_openapi::api::rbac::v1::ClusterRole;
use serde_json::{Value, json};

use crate::support::{cluster, until};

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_gathered_by_apply_and_who_else_writes_some_loses_them() {
    let cluster = cluster().await;
    let roles = cluster.client.all::<ClusterRole>();
    let create = async |role: Value| {
        roles.create(&serde_json::from_value(role).unwrap()).await.unwrap();
    };
    let rule = |verb: &str| json!({"apiGroups": [""], "resources": ["pods"], "verbs": [verb]});
    create(json!({"metadata": {"name": "all"}, "rules": [rule("delete")], "aggregationRule":
        {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}}))
    .await;
    create(json!({"metadata": {"name": "a", "labels": {"to": "all"}}, "rules": [rule("get")]}))
        .await;
    let until_it_has = async |verbs: &[&str]| {
        until(&format!("the role has {verbs:?}"), || async {
            let role = roles.get("all").await.unwrap();
            let rules = role.rules.clone().unwrap_or_default();
            let held: Vec<&str> = rules.iter().map(|rule| rule.verbs[0].as_str()).collect();
            (held == verbs).then_some(role)
        })
        .await
    };
    let role = until_it_has(&["get"]).await;
    let held = role.metadata.managed_fields.unwrap_or_default();
    let ours = held
        .iter()
        .find(|it| it.manager.as_deref() == Some("clusterrole-aggregation-controller"))
        .unwrap();
    assert_eq!(ours.operation.as_deref(), Some("Apply"));
    let fields = serde_json::to_value(&ours.fields_v1).unwrap();
    assert_eq!(fields, json!({"f:rules": {}}));
    let others = held.iter().filter(|it| it.operation.as_deref() == Some("Update"));
    for other in others {
        let fields = serde_json::to_value(&other.fields_v1).unwrap();
        assert_eq!(fields["f:rules"], Value::Null, "{other:?}");
    }
    // Somebody writes there; what others say goes before.
    let mut role = roles.get("all").await.unwrap();
    role.rules = serde_json::from_value(json!([rule("watch")])).unwrap();
    roles.replace("all", &role).await.unwrap();
    until_it_has(&["get"]).await;
    create(json!({"metadata": {"name": "b", "labels": {"to": "all"}}, "rules": [rule("list")]}))
        .await;
    until_it_has(&["get", "list"]).await;
}
