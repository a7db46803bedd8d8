//! The room that nodes have for volumes, as the scheduler looks for it (CSIStorageCapacity):
//! one object for each class and node.
//!
//! A claim may be as large as a disk is; what is left of the disk is told beside that, for no
//! claim uses its size at once.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};
use kinds::meta::quantity::Quantity;
use serde_json::json;

use super::disk::Disk;
use super::{DISK, HOSTNAME, NODE, PROVISIONER};

pub const NAMESPACE: &str = "kube-system";

#[derive(Debug, PartialEq)]
pub enum Step {
    Create(Box<CSIStorageCapacity>),
    /// It has the name and revision of what is there.
    Replace(Box<CSIStorageCapacity>),
    Remove(String),
}

pub fn is_ours(class: &StorageClass) -> bool {
    class.provisioner == PROVISIONER
}

/// The node whose room is told; those of other drivers have none.
pub fn node_of(room: &CSIStorageCapacity) -> Option<&str> {
    room.metadata.labels.as_ref()?.get(NODE).map(String::as_str)
}

/// `held` is what is told of the node called `name`, which is gone where it is None.
pub fn plan(
    name: &str,
    node: Option<&Node>,
    classes: &[&StorageClass],
    held: &[&CSIStorageCapacity],
) -> Vec<Step> {
    let going = node.is_none_or(|node| node.metadata.deletion_timestamp.is_some());
    let disk = node.filter(|_| !going).and_then(|node| {
        let said = node.metadata.annotations.as_ref()?.get(DISK)?;
        Some((node, said.parse::<Disk>().ok()?))
    });
    let wanted: Vec<CSIStorageCapacity> = match disk {
        Some((node, disk)) => classes.iter().map(|class| room(name, node, class, disk)).collect(),
        None => Vec::new(),
    };
    let mut steps = Vec::new();
    for old in held {
        let of = old.metadata.name.as_deref().unwrap_or_default();
        if !wanted.iter().any(|it| it.metadata.name.as_deref() == Some(of)) {
            steps.push(Step::Remove(of.to_owned()));
        }
    }
    for mut new in wanted {
        let old = held.iter().find(|old| old.metadata.name == new.metadata.name);
        let Some(old) = old else {
            steps.push(Step::Create(Box::new(new)));
            continue;
        };
        let same = old.node_topology == new.node_topology
            && old.storage_class_name == new.storage_class_name
            && old.capacity == new.capacity
            && old.maximum_volume_size == new.maximum_volume_size;
        if !same {
            new.metadata.resource_version.clone_from(&old.metadata.resource_version);
            steps.push(Step::Replace(Box::new(new)));
        }
    }
    steps
}

fn room(name: &str, node: &Node, class: &StorageClass, disk: Disk) -> CSIStorageCapacity {
    let labels = node.metadata.labels.as_ref();
    let hostname = labels.and_then(|labels| labels.get(HOSTNAME)).map_or(name, String::as_str);
    let size =
        |bytes: u64| Quantity::from_bytes(i64::try_from(bytes).unwrap_or(i64::MAX)).to_string();
    let uid = |uid: &Option<String>| uid.clone().unwrap_or_default();
    // Names may be longer together than one may be.
    let of = format!("csisc-{}-{}", uid(&class.metadata.uid), uid(&node.metadata.uid));
    let told = json!({
        "metadata": {"name": of, "namespace": NAMESPACE, "labels": {NODE: name}},
        "storageClassName": class.metadata.name,
        "nodeTopology": {"matchLabels": {HOSTNAME: hostname}},
        "capacity": size(disk.free),
        "maximumVolumeSize": size(disk.total),
    });
    // Every field above is of that kind and type.
    client::api::typed(&told).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn read<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn node(disk: &str) -> Node {
        read(json!({"metadata": {"name": "m", "uid": "n", "labels": {HOSTNAME: "host"},
            "annotations": {DISK: disk}}}))
    }

    #[test]
    fn a_node_has_one_room_for_each_class() {
        let class = |name: &str| -> StorageClass {
            read(json!({"metadata": {"name": name, "uid": name}, "provisioner": PROVISIONER}))
        };
        let (a, b) = (class("a"), class("b"));
        let first = node("2147483648/1073741824");
        let Some(Step::Create(mut held)) = plan("m", Some(&first), &[&a], &[]).pop() else {
            panic!()
        };
        let told = serde_json::to_value(&held).unwrap();
        assert_eq!(told["capacity"], "1Gi");
        assert_eq!(told["maximumVolumeSize"], "2Gi");
        assert_eq!(told["nodeTopology"], json!({"matchLabels": {HOSTNAME: "host"}}));
        assert_eq!(
            (node_of(&held), told["metadata"]["name"].as_str()),
            (Some("m"), Some("csisc-a-n"))
        );
        held.metadata.resource_version = Some("7".into());
        assert_eq!(plan("m", Some(&first), &[&a], &[&held]), []);
        let steps = plan("m", Some(&node("2147483648/0")), &[&a, &b], &[&held]);
        let [Step::Replace(less), Step::Create(other)] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(less.capacity.as_ref().unwrap().0, "0");
        assert_eq!(less.metadata.resource_version, held.metadata.resource_version);
        assert_eq!(other.storage_class_name, "b");
        for (node, classes) in
            [(None, &[&a][..]), (Some(&first), &[]), (Some(&node("much")), &[&a])]
        {
            assert_eq!(plan("m", node, classes, &[&held]), [Step::Remove("csisc-a-n".into())]);
        }
    }
}
