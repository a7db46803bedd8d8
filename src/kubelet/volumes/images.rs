//! Volumes that images are: which a container mounts, and how.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use runtime::cri::{self, MountPropagation};

use crate::pod;

/// The volume of an image: its name, the image as written, and when it is pulled.
pub struct ImageVolume<'a> {
    pub name: &'a str,
    pub reference: &'a str,
    pub pull_policy: Option<&'a str>,
}

/// The pod's image volumes that a container mounts.
pub fn images_of<'a>(pod: &'a Pod, container: &Container) -> Vec<ImageVolume<'a>> {
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    pod::spec(pod)
        .volumes
        .iter()
        .flatten()
        .filter(|volume| mounts.iter().any(|mount| mount.name == volume.name))
        .filter_map(|volume| {
            let source = volume.image.as_ref()?;
            Some(ImageVolume {
                name: &volume.name,
                reference: source.reference.as_deref()?,
                pull_policy: source.pull_policy.as_deref(),
            })
        })
        .collect()
}

/// An image is only ever read, and holds nothing that runs with more rights.
pub fn mount(mount: &VolumeMount, image: &str, sub_path: PathBuf) -> cri::Mount {
    cri::Mount {
        container_path: Path::new("/").join(&mount.mount_path),
        host_path: PathBuf::new(),
        readonly: true,
        recursive_readonly: true,
        propagation: MountPropagation::Private,
        selinux_relabel: false,
        image: Some(cri::ImageTree { image: image.to_owned(), sub_path }),
    }
}
