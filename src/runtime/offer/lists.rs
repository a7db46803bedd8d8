//! The calls that list, and the numbers of what is listed.

use std::collections::{BTreeSet, HashMap};

use super::{Answer, Offer, filters, now, told};
use crate::cri::{self, StatsQuery};
use crate::translate::{containers, images, sandboxes, stats};
use crate::wire::containers::{Container, ContainerFilter};
use crate::wire::images::{Image, ImageFsInfoResponse, ImageRequest};
use crate::wire::sandboxes::{PodSandbox, PodSandboxFilter};
use crate::wire::stats::{
    ContainerStats, ContainerStatsFilter, PodSandboxStats, PodSandboxStatsFilter,
};

impl Offer {
    /// Newest first, as crictl shows them.
    pub(super) async fn sandboxes(
        &self,
        filter: Option<PodSandboxFilter>,
    ) -> Answer<Vec<PodSandbox>> {
        let filter = filter.unwrap_or_default();
        let mut all = told(self.runtime.list_pod_sandboxes().await)?;
        all.sort_by_key(|it| std::cmp::Reverse(it.created_at));
        let mut all: Vec<PodSandbox> = all.iter().map(sandboxes::item_to).collect();
        all.retain(|it| filters::sandbox(&filter, it));
        Ok(all)
    }

    pub(super) async fn containers(
        &self,
        filter: Option<ContainerFilter>,
    ) -> Answer<Vec<Container>> {
        let filter = filter.unwrap_or_default();
        let mut all = told(self.runtime.list_containers().await)?;
        all.sort_by_key(|it| std::cmp::Reverse(it.created_at));
        let mut all: Vec<Container> = all.iter().map(containers::item_to).collect();
        all.retain(|it| filters::container(&filter, it));
        Ok(all)
    }

    pub(super) async fn images(&self, filter: Option<ImageRequest>) -> Answer<Vec<Image>> {
        let filter = filter.unwrap_or_default();
        let name = filter.image.as_ref().map(|spec| spec.image.as_str()).unwrap_or_default();
        let meant = match name {
            "" => None,
            name => told(self.images.image_status(name).await)?,
        };
        let id = meant.as_ref().map(|image| image.id.as_str());
        let all = told(self.images.list_images().await)?;
        let mut all: Vec<Image> = all.iter().map(images::image_to).collect();
        all.retain(|it| filters::image(&filter, id, it));
        Ok(all)
    }

    pub(super) async fn image_fs(&self) -> Answer<ImageFsInfoResponse> {
        let (bytes, path) = told(self.images.image_fs_usage().await)?;
        let place = path.clone();
        let inodes = base::task::spawn_blocking(move || crate::images::disk_below(&place).inodes);
        let used = cri::DiskUsage { bytes, inodes: inodes.await.unwrap_or(0) };
        let usage = stats::disk_to(used, &path.display().to_string(), now());
        Ok(ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        })
    }

    /// Each with its sandbox's id.
    pub(super) async fn container_stats(
        &self,
        filter: Option<ContainerStatsFilter>,
    ) -> Answer<Vec<ContainerStats>> {
        let filter = filter.unwrap_or_default();
        let all = self.all_stats(None).await?;
        let parted = all.into_iter().flat_map(|stats| {
            let id = stats.attributes.map(|it| it.id).unwrap_or_default();
            let inside = stats.linux.map(|it| it.containers).unwrap_or_default();
            inside.into_iter().map(move |it| (id.clone(), it))
        });
        Ok(parted
            .filter(|(id, it)| filters::container_stats(&filter, id, it))
            .map(|(_, it)| it)
            .collect())
    }

    pub(super) async fn sandbox_stats(
        &self,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Answer<Vec<PodSandboxStats>> {
        let filter = filter.unwrap_or_default();
        let mut all = self.all_stats(None).await?;
        all.retain(|it| filters::sandbox_stats(&filter, it));
        Ok(all)
    }

    /// Of the sandboxes that run: all of them, or those of one pod.
    pub(super) async fn all_stats(&self, pod_uid: Option<&str>) -> Answer<Vec<PodSandboxStats>> {
        let pods = pod_uid.map(|uid| BTreeSet::from([uid.to_owned()]));
        let query = StatsQuery { pods, with_disk: true };
        let read = told(self.runtime.pod_sandbox_stats(&query).await)?;
        let (at, mountpoint) = (now(), self.images.image_dir().display().to_string());
        let known = told(self.runtime.list_containers().await)?;
        let known: HashMap<&str, &cri::Container> =
            known.iter().map(|it| (it.id.as_str(), it)).collect();
        let mut all = Vec::with_capacity(read.len());
        for numbers in read {
            // One that goes meanwhile has no numbers.
            let Ok(sandbox) = self.runtime.pod_sandbox_status(&numbers.id).await else { continue };
            let inside = numbers
                .containers
                .iter()
                .filter_map(|it| {
                    let container = known.get(it.id.as_str())?;
                    Some(stats::container_to(container, it, &mountpoint, at))
                })
                .collect();
            all.push(stats::sandbox_to(&sandbox, &numbers, inside, at));
        }
        Ok(all)
    }
}
