//! Removes the images that no container uses, of whatever runtime keeps them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::cri::{ErrorKind, Image, ImageService, Result, RuntimeService};

/// What was removed, and how much room that made.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    pub images: Vec<Gone>,
    /// Bytes of the disk; layers that other images share stay.
    pub bytes: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// Tags, or digests where it had none; empty is one without a name.
    pub names: Vec<String>,
    pub id: String,
    /// Its size, with the layers that it shared.
    pub bytes: u64,
}

/// `store` is asked how much lies on the disk.
///
/// # Errors
/// Of the runtime; what was removed until then stays removed.
pub async fn prune(
    runtime: &dyn RuntimeService,
    images: &dyn ImageService,
    store: &dyn ImageService,
) -> Result<Pruned> {
    let before = store.image_fs_usage().await?.0;
    let used = used(runtime, images).await?;
    let mut pruned = Pruned::default();
    for image in images.list_images().await? {
        if image.pinned || used.contains(&image.id) {
            continue;
        }
        match images.remove_image(&image.id).await {
            Ok(()) => pruned.images.push(gone(image)),
            // A container has come meanwhile, or the kubelet was first.
            Err(err) if matches!(err.kind, ErrorKind::InvalidArgument | ErrorKind::NotFound) => {}
            Err(err) => return Err(err),
        }
    }
    pruned.bytes = before.saturating_sub(store.image_fs_usage().await?.0);
    Ok(pruned)
}

/// Ids of the images that containers run or mount, ended ones included: a restart needs them.
async fn used(runtime: &dyn RuntimeService, images: &dyn ImageService) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for container in runtime.list_containers().await? {
        names.extend(container.mounts.into_iter().filter_map(|it| Some(it.image?.image)));
        names.extend([container.image, container.image_ref]);
    }
    let mut ids = BTreeSet::new();
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        // An id stands for itself, known or not.
        ids.extend(images.image_status(&name).await?.map(|it| it.id));
        ids.insert(name);
    }
    Ok(ids)
}

fn gone(image: Image) -> Gone {
    let names = if image.repo_tags.is_empty() { image.repo_digests } else { image.repo_tags };
    Gone { names, id: image.id, bytes: image.size }
}
