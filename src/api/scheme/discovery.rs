//! Discovery documents: which groups, versions and resources there are.
//!
//! Made from the catalog on every call; callers that want ETags hash the bytes.

use base64::Engine as _;
use kinds::resources::{Catalog, Resource, Subresource};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

/// `/api`. `server` is `host:port`.
pub fn api_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}]
    })
}

/// A group as `/apis` shows it; the preferred version comes first.
pub fn group_value<'a>(group: &str, versions: impl Iterator<Item = &'a str>) -> Value {
    let version = |v: &str| json!({"groupVersion": format!("{group}/{v}"), "version": v});
    let versions: Vec<Value> = versions.map(version).collect();
    let preferred = versions.first().cloned().unwrap_or(Value::Null);
    json!({"name": group, "versions": versions, "preferredVersion": preferred})
}

/// `/api/v1` (empty group) and `/apis/GROUP/VERSION`; `None` if it is not served.
pub fn api_resource_list(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    catalog.group(group)?.versions.iter().find(|v| *v == version)?;
    let mut resources = Vec::new();
    for resource in sorted(catalog, group, version) {
        resources.push(resource_value(resource));
        for sub in resource.subresources.iter().filter(|s| s.served_in(version)) {
            resources.push(subresource_value(resource, sub));
        }
    }
    let group_version = kinds::resources::GroupVersion::new(group, version).to_string();
    let mut out = json!({"kind": "APIResourceList"});
    if !group.is_empty() {
        // The core group is older than versions of discovery.
        out["apiVersion"] = "v1".into();
    }
    out["groupVersion"] = group_version.into();
    out["resources"] = resources.into();
    Some(out)
}

fn sorted<'a>(catalog: &'a Catalog, group: &'a str, version: &'a str) -> Vec<&'a Resource> {
    let mut out: Vec<&Resource> =
        catalog.resources_of(group, version).map(std::convert::AsRef::as_ref).collect();
    out.sort_by(|a, b| a.plural.cmp(&b.plural));
    out
}

fn resource_value(resource: &Resource) -> Value {
    let mut out = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": resource.verbs
    });
    if !resource.short_names.is_empty() {
        out["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        out["categories"] = json!(resource.categories);
    }
    if resource.prefix.is_some() {
        out["storageVersionHash"] = json!(storage_version_hash(resource));
    }
    out
}

fn subresource_value(resource: &Resource, sub: &Subresource) -> Value {
    let mut out = json!({
        "name": format!("{}/{}", resource.plural, sub.name),
        "singularName": "",
        "namespaced": resource.namespaced
    });
    if let Some(gv) = &sub.other_gv {
        out["group"] = json!(gv.group);
        out["version"] = json!(gv.version);
    }
    out["kind"] = json!(sub.kind);
    out["verbs"] = json!(sub.verbs);
    out
}

/// Clients watch it to notice that a storage version changed.
fn storage_version_hash(resource: &Resource) -> String {
    let storage = &resource.storage;
    // Upstream has kept this kind's first version for its hash.
    let version = match storage.group.as_str() {
        "apiextensions.k8s.io" => "v1beta1",
        _ => &storage.version,
    };
    let text = format!("{}/{version}/{}", storage.group, resource.kind);
    let hash = digest(&SHA256, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&hash.as_ref()[..8])
}

/// Aggregated discovery of the core group: `/api`.
pub fn aggregated_core(catalog: &Catalog) -> Value {
    let versions = catalog.group("").into_iter().flat_map(|group| &group.versions);
    let versions: Vec<Value> =
        versions.map(|version| version_value(catalog, "", version)).collect();
    aggregated_list(vec![json!({"metadata": {}, "versions": versions})])
}

/// A document of aggregated discovery: `apidiscovery.k8s.io/v2`.
pub fn aggregated_list(items: Vec<Value>) -> Value {
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items
    })
}

/// A version of a group in aggregated discovery.
pub fn version_value(catalog: &Catalog, group: &str, version: &str) -> Value {
    let resources = sorted(catalog, group, version);
    let resources: Vec<Value> =
        resources.into_iter().map(|r| aggregated_resource(r, version)).collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

/// Custom resources name their group and version; built-in ones leave the parent's out.
fn aggregated_resource(resource: &Resource, version: &str) -> Value {
    let own = match resource.custom {
        true => (resource.group.as_str(), version),
        false => ("", ""),
    };
    let mut out = json!({
        "resource": resource.plural,
        "responseKind": {"group": own.0, "version": own.1, "kind": resource.kind},
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs
    });
    if !resource.short_names.is_empty() {
        out["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        out["categories"] = json!(resource.categories);
    }
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .filter(|s| s.served_in(version))
        .map(|sub| {
            let (group, version) = match &sub.other_gv {
                Some(gv) => (gv.group.as_str(), gv.version.as_str()),
                None => own,
            };
            json!({
                "subresource": sub.name,
                "responseKind": {"group": group, "version": version, "kind": sub.kind},
                "verbs": sub.verbs
            })
        })
        .collect();
    if !subresources.is_empty() {
        out["subresources"] = json!(subresources);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_version_hashes_are_upstreams() {
        let list = api_resource_list(Catalog::built_in(), "", "v1").unwrap();
        let pods = list["resources"].as_array().unwrap().iter().find(|r| r["name"] == "pods");
        assert_eq!(pods.unwrap()["storageVersionHash"], "xPOwRZ+Yhw8=");
        let list = api_resource_list(Catalog::built_in(), "events.k8s.io", "v1").unwrap();
        assert_eq!(list["resources"][0]["storageVersionHash"], "r2yiGXH7wu8=");
        assert!(api_resource_list(Catalog::built_in(), "apps", "v7").is_none());
    }

    #[test]
    fn aggregated_discovery_shows_subresources() {
        let core = aggregated_core(Catalog::built_in());
        assert_eq!(core["items"].as_array().unwrap().len(), 1);
        let apps = version_value(Catalog::built_in(), "apps", "v1");
        let scale = &apps["resources"][2]["subresources"][0];
        assert_eq!(scale["responseKind"]["kind"], "Scale");
    }
}
