//! Discovery of all groups, those of other servers among our own, in the order of their
//! priorities.
//!
//! Made from what is known; nobody is asked, so nobody can hold it up.

use std::cmp::Reverse;
use std::sync::Arc;

use kinds::resources::{Catalog, version_priority};
use serde_json::{Value, json};

use super::{Registered, Resident, Table, local};
use crate::scheme::discovery;

/// A version of a group, and who serves it if it is another server.
pub struct Version {
    pub name: String,
    priority: i64,
    pub remote: Option<Arc<Registered>>,
    /// The room of this process that serves it, if it is not the API server itself.
    resident: Option<Arc<Resident>>,
}

/// A group with its versions, the preferred one first.
pub struct Group {
    pub name: String,
    priority: i64,
    pub versions: Vec<Version>,
}

/// All groups but the core one, the most important first.
pub fn groups(catalog: &Catalog, table: &Table) -> Vec<Group> {
    let mut out: Vec<Group> = Vec::new();
    let mut add = |group: &str, of_group: i64, version: Version| match out
        .iter_mut()
        .find(|known| known.name == group)
    {
        Some(known) => {
            known.priority = known.priority.max(of_group);
            known.versions.push(version);
        }
        None => out.push(Group { name: group.into(), priority: of_group, versions: vec![version] }),
    };
    for group in catalog.groups().iter().filter(|group| !group.name.is_empty()) {
        for version in &group.versions {
            let is_it =
                |known: &&Arc<Registered>| known.group == group.name && known.version == *version;
            let (of_group, of_version, remote) = match table.all().find(is_it) {
                Some(known) => {
                    let remote = known.remote.is_some().then(|| known.clone());
                    (known.group_priority, known.version_priority, remote)
                }
                None => {
                    let (group, version) =
                        local::priorities(&group.name, version).unwrap_or(local::CUSTOM);
                    (group, version, None)
                }
            };
            add(
                &group.name,
                of_group,
                Version { name: version.clone(), priority: of_version, remote, resident: None },
            );
        }
    }
    for (known, _) in table.remotes().filter(|(known, _)| !known.group.is_empty()) {
        let served = catalog.group(&known.group);
        if served.is_none_or(|group| !group.versions.contains(&known.version)) {
            add(
                &known.group,
                known.group_priority,
                Version {
                    name: known.version.clone(),
                    priority: known.version_priority,
                    remote: Some(known.clone()),
                    resident: None,
                },
            );
        }
    }
    for (known, resident) in table.residents() {
        let (name, priority) = (known.version.clone(), known.version_priority);
        let version = Version { name, priority, remote: None, resident: Some(resident.clone()) };
        add(&known.group, known.group_priority, version);
    }
    for group in &mut out {
        group.versions.sort_by_key(|v| Reverse((v.priority, version_priority(&v.name))));
    }
    out.sort_by(|a, b| {
        let key = |group: &Group| (group.name != local::OWN_GROUP, Reverse(group.priority));
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    out
}

fn names(group: &Group) -> impl Iterator<Item = &str> {
    group.versions.iter().map(|version| version.name.as_str())
}

/// `/apis`.
pub fn group_list(groups: &[Group]) -> Value {
    let groups: Vec<Value> =
        groups.iter().map(|group| discovery::group_value(&group.name, names(group))).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`; None if there is no such group.
pub fn group(groups: &[Group], name: &str) -> Option<Value> {
    let found = groups.iter().find(|group| group.name == name)?;
    let mut out = json!({"kind": "APIGroup", "apiVersion": "v1"});
    if let (Value::Object(out), Value::Object(fields)) =
        (&mut out, discovery::group_value(name, names(found)))
    {
        out.extend(fields);
    }
    Some(out)
}

/// Aggregated discovery of `/apis`: `apidiscovery.k8s.io/v2`.
pub fn aggregated(catalog: &Catalog, groups: &[Group]) -> Value {
    let item = |group: &Group| {
        let version = |version: &Version| match (&version.remote, &version.resident) {
            (Some(registered), _) => remote_version(registered),
            (None, Some(resident)) => resident.entry(),
            (None, None) => discovery::version_value(catalog, &group.name, &version.name),
        };
        let versions: Vec<Value> = group.versions.iter().map(version).collect();
        json!({"metadata": {"name": group.name}, "versions": versions})
    };
    discovery::aggregated_list(groups.iter().map(item).collect())
}

/// What another server said last; stale if that was not just now.
fn remote_version(registered: &Registered) -> Value {
    let learnt = registered.remote.as_ref().map(|remote| remote.learnt()).unwrap_or_default();
    let mut entry = match &learnt.discovery {
        Some(entry) => (**entry).clone(),
        None => json!({"version": registered.version}),
    };
    let fresh = registered.available && learnt.fresh && learnt.discovery.is_some();
    entry["freshness"] = if fresh { "Current" } else { "Stale" }.into();
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Aggregator;

    fn service(name: &str, of_group: i64, of_version: i64) -> Value {
        let (version, group) = name.split_once('.').unwrap();
        json!({"metadata": {"name": name}, "spec": {
            "group": group, "version": version, "groupPriorityMinimum": of_group,
            "versionPriority": of_version, "service": {"namespace": "n", "name": "s"}}})
    }

    fn table(services: &[Value]) -> Arc<Table> {
        let aggregator = Aggregator::default();
        for service in services {
            aggregator.put(service["metadata"]["name"].as_str().unwrap(), Some(service), None);
        }
        aggregator.table()
    }

    #[test]
    fn our_own_groups_stand_as_upstream_orders_them() {
        let groups = groups(Catalog::built_in(), &Table::default());
        let built_in: Vec<&str> = Catalog::built_in()
            .groups()
            .iter()
            .map(|group| group.name.as_str())
            .filter(|name| !name.is_empty())
            .collect();
        let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
        assert_eq!(names, built_in);
        let autoscaling = groups.iter().find(|group| group.name == "autoscaling").unwrap();
        assert_eq!(self::names(autoscaling).collect::<Vec<_>>(), ["v2", "v1"]);
    }

    #[test]
    fn others_stand_among_them_by_priority() {
        let table = table(&[
            service("v1beta1.first.example", 17_790, 5),
            service("v1.first.example", 17_790, 15),
            service("v1.last.example", 10, 15),
            service("v2.apps", 17_800, 20),
        ]);
        let groups = groups(Catalog::built_in(), &table);
        let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
        let list = group_list(&groups);
        assert_eq!(
            names[..4],
            ["apiregistration.k8s.io", "apps", "first.example", "events.k8s.io"]
        );
        assert_eq!(names.last(), Some(&"last.example"));
        assert_eq!(list["groups"][1]["preferredVersion"]["groupVersion"], "apps/v2");
        assert_eq!(list["groups"][2]["versions"][0]["version"], "v1");
        let all = aggregated(Catalog::built_in(), &groups);
        assert_eq!(all["items"][2]["versions"][0], json!({"version": "v1", "freshness": "Stale"}));
        assert_eq!(all["items"][1]["versions"][1]["freshness"], "Current");
    }
}
