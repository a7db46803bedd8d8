//! Tells the cluster which drivers this node has: the CSINode object, an annotation and
//! the labels of its topology on the Node.

use std::collections::BTreeMap;

use client::Patch;
use k8s_openapi::api::core::v1::Node as NodeObject;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;

use super::messages::NodeInfo;

/// The ids that drivers gave the node, as JSON.
const ID_ANNOTATION: &str = "csi.volume.kubernetes.io/nodeid";
/// Longest node id (`csi.proto`, NodeGetInfoResponse).
const ID_BYTES_MAX: usize = 256;
/// Somebody else writes the object at the same time; then it is read again.
const TRIES_MAX: usize = 5;

/// A driver as CSINode names it.
///
/// # Errors
/// When what the driver says of the node cannot be told to the cluster.
fn entry(driver: &str, info: &NodeInfo) -> Result<CSINodeDriver, String> {
    if info.node_id.is_empty() {
        return Err(format!(
            "error updating CSI node info in the cluster: error adding CSI driver node info: \
             nodeID must not be empty for driver {driver}"
        ));
    }
    if info.node_id.len() > ID_BYTES_MAX {
        return Err(format!("the node id of driver {driver} is longer than {ID_BYTES_MAX} bytes"));
    }
    let segments = info.accessible_topology.iter().flat_map(|it| it.segments.keys());
    let mut keys: Vec<String> = segments.cloned().collect();
    keys.sort();
    let count = i32::try_from(info.max_volumes_per_node).unwrap_or(i32::MAX);
    Ok(CSINodeDriver {
        name: driver.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: Some(keys),
        allocatable: (count > 0).then_some(VolumeNodeResources { count: Some(count) }),
    })
}

/// The labels that the node lacks.
///
/// # Errors
/// When the node has a label of that name with another value.
fn labels(
    held: &BTreeMap<String, String>,
    info: &NodeInfo,
) -> Result<BTreeMap<String, String>, String> {
    let mut out = BTreeMap::new();
    for (key, value) in info.accessible_topology.iter().flat_map(|it| &it.segments) {
        match held.get(key) {
            Some(there) if there != value => {
                return Err(format!(
                    "detected topology value collision: driver reported {key:?}:{value:?} but \
                     existing label is {key:?}:{there:?}"
                ));
            }
            Some(_) => {}
            None => drop(out.insert(key.clone(), value.clone())),
        }
    }
    Ok(out)
}

/// The annotation's new value; None where it stays.
fn annotation(held: Option<&str>, driver: &str, id: Option<&str>) -> Option<String> {
    // One that is no JSON is of no use to anybody, and is written anew.
    let before: BTreeMap<String, String> =
        held.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut after = before.clone();
    match id {
        Some(id) => drop(after.insert(driver.to_owned(), id.to_owned())),
        None => drop(after.remove(driver)),
    }
    (before != after).then(|| serde_json::to_string(&after).unwrap_or_default())
}

/// Writes what a driver says of the node to the cluster.
///
/// # Errors
/// When it contradicts what is there, or the server cannot be reached.
pub async fn install(
    client: &client::Client,
    node: &str,
    driver: &str,
    info: &NodeInfo,
) -> Result<(), String> {
    let entry = entry(driver, info)?;
    write_node(client, node, driver, Some(info)).await?;
    write_drivers(client, node, |drivers| {
        if drivers.contains(&entry) {
            return false;
        }
        drivers.retain(|held| held.name != driver);
        drivers.push(entry.clone());
        true
    })
    .await
}

/// Takes a driver that is gone out again; the labels stay, for volumes may depend on them.
///
/// # Errors
/// When the server cannot be reached.
pub async fn uninstall(client: &client::Client, node: &str, driver: &str) -> Result<(), String> {
    write_drivers(client, node, |drivers| {
        let before = drivers.len();
        drivers.retain(|held| held.name != driver);
        drivers.len() != before
    })
    .await?;
    write_node(client, node, driver, None).await
}

/// Makes the CSINode, without drivers, where there is none.
///
/// # Errors
/// When the server cannot be reached.
pub async fn ensure(client: &client::Client, node: &str) -> Result<(), String> {
    write_drivers(client, node, |_| false).await
}

async fn write_node(
    client: &client::Client,
    node: &str,
    driver: &str,
    info: Option<&NodeInfo>,
) -> Result<(), String> {
    let failed = |error: client::Error| format!("error updating node: {error}");
    let api = client.all::<NodeObject>();
    let held = api.get(node).await.map_err(failed)?.metadata;
    let fresh = match info {
        Some(info) => labels(&held.labels.unwrap_or_default(), info)
            .map_err(|why| format!("error updating node: {why}"))?,
        None => BTreeMap::new(),
    };
    let annotations = held.annotations.unwrap_or_default();
    let there = annotations.get(ID_ANNOTATION).map(String::as_str);
    let id = annotation(there, driver, info.map(|it| it.node_id.as_str()));
    if fresh.is_empty() && id.is_none() {
        return Ok(());
    }
    let mut metadata = json!({"labels": fresh});
    if let Some(id) = id {
        metadata["annotations"] = json!({ID_ANNOTATION: id});
    }
    api.patch(node, &Patch::Merge(json!({"metadata": metadata}))).await.map_err(failed)?;
    Ok(())
}

async fn write_drivers(
    client: &client::Client,
    node: &str,
    change: impl Fn(&mut Vec<CSINodeDriver>) -> bool,
) -> Result<(), String> {
    let api = client.all::<CSINode>();
    let mut last = String::new();
    for _ in 0..TRIES_MAX {
        let written = match api.get_opt(node).await {
            Ok(Some(mut held)) => {
                if !change(&mut held.spec.drivers) {
                    return Ok(());
                }
                api.replace(node, &held).await
            }
            Ok(None) => {
                let mut fresh = empty(client, node).await?;
                change(&mut fresh.spec.drivers);
                api.create(&fresh).await
            }
            Err(error) => Err(error),
        };
        match written {
            Ok(_) => return Ok(()),
            Err(error) => last = format!("error updating CSINode: {error}"),
        }
    }
    Err(last)
}

async fn empty(client: &client::Client, node: &str) -> Result<CSINode, String> {
    let owner = client.all::<NodeObject>().get(node).await;
    let owner = owner.map_err(|error| format!("error getting node {node}: {error}"))?;
    Ok(CSINode {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: node.to_owned(),
                uid: owner.metadata.uid.unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: CSINodeSpec { drivers: Vec::new() },
    })
}

#[cfg(test)]
mod tests {
    use super::super::messages::Topology;
    use super::*;

    fn info(id: &str, volumes: i64, segments: &[(&str, &str)]) -> NodeInfo {
        let segments = segments.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        NodeInfo {
            node_id: id.to_owned(),
            max_volumes_per_node: volumes,
            accessible_topology: Some(Topology { segments }),
        }
    }

    #[test]
    fn a_driver_is_told_with_sorted_keys_and_a_limit_only_where_it_has_one() {
        let told = entry("d", &info("id", 5, &[("z", "1"), ("a", "2")])).unwrap();
        assert_eq!(told.topology_keys.unwrap(), ["a", "z"]);
        assert_eq!(told.allocatable.unwrap().count, Some(5));
        assert_eq!(entry("d", &info("id", 0, &[])).unwrap().allocatable, None);
        let huge = entry("d", &info("id", i64::MAX, &[])).unwrap();
        assert_eq!(huge.allocatable.unwrap().count, Some(i32::MAX));
        assert!(entry("d", &info("", 0, &[])).is_err());
        assert!(entry("d", &info(&"x".repeat(257), 0, &[])).is_err());
    }

    #[test]
    fn a_label_is_added_but_never_turned() {
        let held = [("zone".to_owned(), "a".to_owned())].into();
        let added = labels(&held, &info("id", 0, &[("zone", "a"), ("rack", "7")])).unwrap();
        assert_eq!(added, [("rack".to_owned(), "7".to_owned())].into());
        assert_eq!(
            labels(&held, &info("id", 0, &[("zone", "b")])).unwrap_err(),
            "detected topology value collision: driver reported \"zone\":\"b\" but existing \
             label is \"zone\":\"a\""
        );
    }

    #[test]
    fn the_annotation_keeps_other_drivers() {
        assert_eq!(annotation(None, "d", Some("1")).unwrap(), "{\"d\":\"1\"}");
        let both = annotation(Some("{\"c\":\"0\"}"), "d", Some("1")).unwrap();
        assert_eq!(both, "{\"c\":\"0\",\"d\":\"1\"}");
        assert_eq!(annotation(Some(&both), "d", Some("1")), None);
        assert_eq!(annotation(Some(&both), "d", None).unwrap(), "{\"c\":\"0\"}");
        assert_eq!(annotation(Some("nonsense"), "d", Some("1")).unwrap(), "{\"d\":\"1\"}");
    }
}
