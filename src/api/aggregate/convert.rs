//! Discovery of before aggregated discovery, brought into its form.

use serde_json::{Map, Value, json};

/// The entry of a version in aggregated discovery, from the `APIResourceList` that a server
/// answers `/apis/GROUP/VERSION` with.
pub fn version_of(list: &Value, group: &str, version: &str) -> Value {
    let mut resources: Vec<Map<String, Value>> = Vec::new();
    let named = |resources: &[Map<String, Value>], name: &str| {
        resources.iter().position(|known| known["resource"] == name)
    };
    for resource in list["resources"].as_array().into_iter().flatten() {
        let name = resource["name"].as_str().unwrap_or("");
        let (parent, sub) = name.split_once('/').map_or((name, None), |(p, s)| (p, Some(s)));
        let kind = response_kind(resource, group, version);
        let scope = if resource["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let Some(sub) = sub else {
            let mut out = Map::new();
            out.insert("resource".into(), name.into());
            out.insert("responseKind".into(), kind);
            out.insert("scope".into(), scope.into());
            out.insert("singularResource".into(), text(resource, "singularName").into());
            for field in ["verbs", "shortNames", "categories"] {
                if let Some(value) = resource.get(field).filter(|value| value.is_array()) {
                    out.insert(field.into(), value.clone());
                }
            }
            match named(&resources, name) {
                // It was made for a subresource that came first.
                Some(at) => {
                    let subresources = resources[at].get("subresources").cloned();
                    out.extend(subresources.map(|list| ("subresources".into(), list)));
                    resources[at] = out;
                }
                None => resources.push(out),
            }
            continue;
        };
        let at = named(&resources, parent).unwrap_or_else(|| {
            // Metrics have only subresources.
            let made = json!({"resource": parent, "scope": scope, "singularResource": "",
                "responseKind": {"group": "", "version": "", "kind": ""}, "verbs": null});
            resources.push(made.as_object().cloned().unwrap_or_default());
            resources.len() - 1
        });
        let entry = json!({"subresource": sub, "responseKind": kind, "verbs": resource["verbs"]});
        match resources[at].get_mut("subresources").and_then(Value::as_array_mut) {
            Some(list) => list.push(entry),
            None => drop(resources[at].insert("subresources".into(), json!([entry]))),
        }
    }
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("")
}

fn response_kind(resource: &Value, group: &str, version: &str) -> Value {
    let or = |field: &str, own: &str| match text(resource, field) {
        "" => own.to_string(),
        said => said.to_string(),
    };
    // A version stands for both.
    let group = if text(resource, "version").is_empty() {
        or("group", group)
    } else {
        text(resource, "group").to_string()
    };
    json!({"group": group, "version": or("version", version), "kind": text(resource, "kind")})
}

/// The entry of a version in an aggregated document of the server's own.
pub fn find_version(document: &Value, group: &str, version: &str) -> Option<Value> {
    let groups = document["items"].as_array()?;
    let found = groups.iter().find(|item| text(&item["metadata"], "name") == group)?;
    let versions = found["versions"].as_array()?;
    let entry = versions.iter().find(|entry| entry["version"] == version)?;
    let mut entry = entry.clone();
    entry["freshness"] = "Current".into();
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subresources_stand_below_their_resources_even_alone() {
        let list = json!({"groupVersion": "m/v1", "resources": [
            {"name": "pods/requests", "singularName": "", "namespaced": true,
                "kind": "MetricValueList", "verbs": ["get"]},
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
                "verbs": ["create", "get"], "shortNames": ["fl"]},
            {"name": "flunders/scale", "namespaced": true, "kind": "Scale", "group": "autoscaling",
                "version": "v1", "verbs": ["get"]},
        ]});
        assert_eq!(
            version_of(&list, "m", "v1"),
            json!({"version": "v1", "freshness": "Current", "resources": [
                {"resource": "pods", "scope": "Namespaced", "singularResource": "",
                    "responseKind": {"group": "", "version": "", "kind": ""}, "verbs": null,
                    "subresources": [{"subresource": "requests", "verbs": ["get"],
                        "responseKind": {"group": "m", "version": "v1", "kind": "MetricValueList"}}]},
                {"resource": "flunders", "scope": "Namespaced", "singularResource": "flunder",
                    "responseKind": {"group": "m", "version": "v1", "kind": "Flunder"},
                    "verbs": ["create", "get"], "shortNames": ["fl"],
                    "subresources": [{"subresource": "scale", "verbs": ["get"],
                        "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}}]},
            ]})
        );
    }
}
