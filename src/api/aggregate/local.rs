//! The API services of what this server serves itself: one for each version of each
//! built-in group, which every start makes, corrects and clears away.
//!
//! Those of definitions come and go with them (`crd::controller`).

use kinds::resources::Catalog;
use serde_json::{Value, json};

use super::{AUTOMANAGED, SERVICES};
use crate::bootstrap::options;
use crate::cache::Cache;
use crate::error::{ApiError, Result};
use crate::registry::delete::DeleteOptions;
use crate::registry::update::Change;
use crate::registry::{Registry, Target, metadata_str};

/// What the label says of services that are looked after at starts only.
pub const ON_START: &str = "onstart";
/// The group that serves API services has none itself and stands before all others.
pub const OWN_GROUP: &str = "apiregistration.k8s.io";
/// The least priority of groups that definitions define, and of their versions.
pub const CUSTOM: (i64, i64) = (1_000, 100);

/// `groupPriorityMinimum` of built-in groups, as upstream orders them.
const GROUPS: [(&str, i64); 20] = [
    ("", 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("resource.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
];

/// The priorities of a version of a built-in group; None where it has no API service.
pub fn priorities(group: &str, version: &str) -> Option<(i64, i64)> {
    let (_, of_group) = GROUPS.iter().find(|(name, _)| *name == group)?;
    let of_version = match (group, version) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        ("certificates.k8s.io", "v1beta1") => 9,
        ("flowcontrol.apiserver.k8s.io" | "resource.k8s.io", "v1") => 21,
        _ => 15,
    };
    Some((*of_group, of_version))
}

/// The API services of everything that is built in.
pub fn wanted(catalog: &Catalog) -> Vec<Value> {
    let mut out = Vec::new();
    for group in catalog.groups() {
        for version in &group.versions {
            if let Some(priorities) = priorities(&group.name, version) {
                out.push(service(&group.name, version, priorities));
            }
        }
    }
    out
}

fn service(group: &str, version: &str, (of_group, of_version): (i64, i64)) -> Value {
    let mut spec = json!({"version": version,
        "groupPriorityMinimum": of_group, "versionPriority": of_version});
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
        "metadata": {"name": format!("{version}.{group}"), "labels": {AUTOMANAGED: ON_START}},
        "spec": spec,
    })
}

/// What a start has to do with the services that are there.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Somebody changed it: its spec is put back.
    Correct(String, Value),
    /// It is of a group that is no longer built in.
    Remove(String),
}

/// What is not as it should be among `held`. What is missing is not mentioned.
pub fn plan(wanted: &[Value], held: &[Value]) -> Vec<Step> {
    let automatic = held.iter().filter(|held| held["metadata"]["labels"][AUTOMANAGED] == ON_START);
    automatic
        .filter_map(|held| {
            let name = metadata_str(held, "name");
            match wanted.iter().find(|wanted| metadata_str(wanted, "name") == name) {
                None => Some(Step::Remove(name.into())),
                Some(wanted) if is_same(&wanted["spec"], &held["spec"]) => None,
                Some(wanted) => Some(Step::Correct(name.into(), wanted["spec"].clone())),
            }
        })
        .collect()
}

fn is_same(wanted: &Value, held: &Value) -> bool {
    ["group", "version", "groupPriorityMinimum", "versionPriority", "service"]
        .iter()
        .all(|field| wanted[*field] == held[*field])
}

/// Corrects and removes what earlier starts left.
///
/// # Errors
/// When the store refuses.
pub async fn tidy(registry: &Registry) -> Result<()> {
    registry.cache.fresh().await?;
    let catalog = registry.catalog();
    let steps = plan(&wanted(&catalog), &held(&registry.cache));
    let resource =
        registry.resource(OWN_GROUP, "apiservices").ok_or_else(ApiError::no_such_resource)?;
    for step in steps {
        let target = |name: String| Target {
            resource: resource.clone(),
            version: resource.versions[0].clone(),
            namespace: String::new(),
            name,
            subresource: String::new(),
        };
        let done = match step {
            Step::Correct(name, spec) => {
                let edit = Change::Edit(Box::new(move |live| {
                    let mut new = live.clone();
                    new["spec"] = spec.clone();
                    Ok(new)
                }));
                registry.update(&target(name), edit, &options()).await.map(drop)
            }
            Step::Remove(name) => {
                let delete = DeleteOptions::default();
                registry.delete(&target(name), &delete, &options()).await.map(drop)
            }
        };
        match done {
            Err(error) if error.code != 404 => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn held(cache: &Cache) -> Vec<Value> {
    cache.list(SERVICES, SERVICES, None).0.iter().map(|object| object.value()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_version_but_our_own_has_a_service() {
        let catalog = Catalog::built_in();
        let names: Vec<String> = wanted(catalog)
            .iter()
            .map(|service| metadata_str(service, "name").to_string())
            .collect();
        let versions: usize = catalog.groups().iter().map(|group| group.versions.len()).sum();
        assert_eq!(names.len(), versions - 1);
        assert!(names.contains(&"v1.".to_string()) && names.contains(&"v2.autoscaling".into()));
        assert_eq!(priorities(OWN_GROUP, "v1"), None);
    }

    #[test]
    fn a_start_corrects_what_was_changed_and_removes_what_is_no_more() {
        let wanted = vec![service("apps", "v1", (17_800, 15))];
        let same = service("apps", "v1", (17_800, 15));
        let other = service("apps", "v1", (5, 15));
        let gone = service("old", "v1", (5, 15));
        let mut taken_over = other.clone();
        taken_over["metadata"]["labels"] = json!({});
        assert_eq!(plan(&wanted, &[same, taken_over]), []);
        let steps = plan(&wanted, &[other, gone]);
        assert!(matches!(&steps[0], Step::Correct(name, _) if name == "v1.apps"));
        assert_eq!(steps[1], Step::Remove("v1.old".into()));
    }
}
