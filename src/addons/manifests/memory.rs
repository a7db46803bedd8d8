//! What manifests led to, kept in the cluster: a ConfigMap of `kube-system` for each.

use std::collections::BTreeMap;

use client::api::ListParams;
use client::cache::list_all;
use client::error::Result;
use client::{Client, DeleteParams, Error, Patch};
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use serde_json::json;

use super::plan::Named;
use super::{MANAGER, files};

const NAMESPACE: &str = "kube-system";
/// Marks the ConfigMaps of manifests.
const LABEL: &str = "coracle.io/manifest";
/// Holds the manifest's name, which need not be one of an object.
const NAME: &str = "coracle.io/manifest-name";

#[derive(Debug, Clone, PartialEq)]
pub struct Remembered {
    /// Of the manifest's text.
    pub sum: String,
    pub objects: Vec<Named>,
    /// All of it was applied.
    pub applied: bool,
}

/// The name of a manifest's ConfigMap: readable, and unlike any other manifest's.
fn object_name(manifest: &str) -> String {
    let word: String = manifest
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(40)
        .collect();
    format!("manifest-{}-{}", word.trim_matches('-'), &files::sum(manifest)[..10])
}

/// What events about a manifest are about.
pub fn about(manifest: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("ConfigMap".into()),
        namespace: Some(NAMESPACE.into()),
        name: Some(object_name(manifest)),
        ..ObjectReference::default()
    }
}

fn read(map: &ConfigMap) -> Option<(String, Remembered)> {
    let name = map.metadata.annotations.as_ref()?.get(NAME)?.clone();
    let data = map.data.as_ref()?;
    let objects = serde_json::from_str(data.get("objects")?).ok()?;
    let applied = data.get("applied").is_some_and(|text| text == "true");
    Some((name, Remembered { sum: data.get("sum")?.clone(), objects, applied }))
}

/// What is remembered, by manifest.
pub async fn load(client: &Client) -> Result<BTreeMap<String, Remembered>> {
    let maps = client.api::<ConfigMap>(Some(NAMESPACE));
    let (maps, _) = list_all(&maps, &ListParams::labels(LABEL)).await?;
    Ok(maps.iter().filter_map(read).collect())
}

pub async fn store(client: &Client, manifest: &str, remembered: &Remembered) -> Result<()> {
    let name = object_name(manifest);
    let objects = serde_json::to_string(&remembered.objects).map_err(Error::Encode)?;
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {LABEL: "true"},
            "annotations": {NAME: manifest}},
        "data": {"sum": remembered.sum, "objects": objects,
            "applied": remembered.applied.to_string()},
    });
    let patch = Patch::Apply { object, manager: MANAGER.into(), force: true };
    client.api::<ConfigMap>(Some(NAMESPACE)).patch(&name, &patch).await.map(drop)
}

pub async fn forget(client: &Client, manifest: &str) -> Result<()> {
    let maps = client.api::<ConfigMap>(Some(NAMESPACE));
    match maps.delete(&object_name(manifest), &DeleteParams::default()).await {
        Err(err) if !err.is_not_found() => Err(err),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_have_names_of_objects() {
        assert!(object_name("Sub/My_App.yaml").starts_with("manifest-sub-my-app-yaml-"));
        assert_ne!(object_name("a/b.yaml"), object_name("a-b.yaml"));
    }
}
