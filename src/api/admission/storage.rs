//! Claims get the default class, and what is in use is not taken away.

use kinds::meta::quantity::Quantity;
use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::error::Result;
use crate::registry::{Registry, finalizers, metadata_mut, metadata_str};

const CLASSES: &str = "/registry/storageclasses/";
const IS_DEFAULT: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

/// DefaultStorageClass: the newest default class, by name where two are of one second.
pub fn default_class(
    registry: &Registry,
    request: &Attributes<'_>,
    claim: &mut Value,
) -> Result<()> {
    if request.operation != Operation::Create
        || !request.is("", "persistentvolumeclaims")
        || claim["spec"].get("storageClassName").is_some_and(|name| !name.is_null())
    {
        return Ok(());
    }
    let (classes, _) = registry.cache.list(CLASSES, CLASSES, None);
    let newest = classes
        .iter()
        .map(|class| class.value())
        .filter(|class| {
            IS_DEFAULT.iter().any(|key| class["metadata"]["annotations"][*key] == "true")
        })
        .max_by(|a, b| {
            let order = |class: &Value| metadata_str(class, "creationTimestamp").to_string();
            order(a)
                .cmp(&order(b))
                .then_with(|| metadata_str(b, "name").cmp(metadata_str(a, "name")))
        });
    if let Some(class) = newest {
        claim["spec"]["storageClassName"] = class["metadata"]["name"].clone();
    }
    Ok(())
}

pub fn in_use_protection(_: &Registry, request: &Attributes<'_>, object: &mut Value) -> Result<()> {
    let finalizer = if request.is("", "persistentvolumes") {
        "kubernetes.io/pv-protection"
    } else if request.is("", "persistentvolumeclaims") {
        "kubernetes.io/pvc-protection"
    } else if request.is("storage.k8s.io", "volumeattributesclasses") {
        "kubernetes.io/vac-protection"
    } else {
        return Ok(());
    };
    if request.operation == Operation::Create {
        let mut list = finalizers(object);
        if !list.iter().any(|f| f == finalizer) {
            list.push(finalizer.into());
            metadata_mut(object).insert("finalizers".into(), json!(list));
        }
    }
    Ok(())
}

/// PersistentVolumeClaimResize: only what is bound grows, and only where its class lets it.
///
/// # Errors
/// 403 for a claim that cannot grow.
pub fn resize(registry: &Registry, request: &Attributes<'_>, claim: &Value) -> Result<()> {
    if request.operation != Operation::Update || !request.is("", "persistentvolumeclaims") {
        return Ok(());
    }
    let Some(old) = request.old else { return Ok(()) };
    let size = |claim: &Value| {
        let text = claim["spec"]["resources"]["requests"]["storage"].as_str();
        text.and_then(|text| text.parse::<Quantity>().ok())
    };
    match (size(old), size(claim)) {
        (Some(before), Some(after)) if after > before => {}
        _ => return Ok(()),
    }
    if old["status"]["phase"] != "Bound" {
        return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
    }
    let name = claim["spec"]["storageClassName"].as_str().unwrap_or_default();
    let class = registry.cache.get(CLASSES, &format!("{CLASSES}{name}"));
    if !name.is_empty() && class.is_some_and(|class| class.value()["allowVolumeExpansion"] == true)
    {
        return Ok(());
    }
    Err(request.forbidden(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    ))
}
