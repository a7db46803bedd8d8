//! The image service of a runtime that is not ours.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

use super::{PATIENCE, Remote};
use crate::cri::{AuthConfig, ErrorKind, Image, ImageService, Result};
use crate::translate::errors::from_status;
use crate::translate::{images, stats};
use crate::wire::images as wire;
use crate::wire::{Empty, IMAGES};

/// A large image on a slow line; upstream sets no limit.
const PULL_PATIENCE: Duration = Duration::from_secs(6 * 3_600);

fn spec(image: &str) -> Option<wire::ImageSpec> {
    Some(wire::ImageSpec { image: image.to_owned(), ..Default::default() })
}

impl Remote {
    async fn ask_images<A: prost::Message + Default>(
        &self,
        name: &str,
        request: &impl prost::Message,
        (what, patience): (ErrorKind, Duration),
    ) -> Result<A> {
        let answered = self.images.unary(&format!("{IMAGES}{name}"), request, patience).await;
        answered.map_err(|status| from_status(status, what))
    }
}

const PLAIN: (ErrorKind, Duration) = (ErrorKind::Internal, PATIENCE);

#[async_trait]
impl ImageService for Remote {
    async fn list_images(&self) -> Result<Vec<Image>> {
        let asked = wire::ListImagesRequest::default();
        let told: wire::ListImagesResponse = self.ask_images("ListImages", &asked, PLAIN).await?;
        Ok(told.images.into_iter().map(images::image_from).collect())
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        let asked = wire::ImageStatusRequest { image: spec(image), verbose: false };
        let told: wire::ImageStatusResponse = self.ask_images("ImageStatus", &asked, PLAIN).await?;
        Ok(told.image.map(images::image_from))
    }

    async fn pull_image(&self, image: &str, auth: &[AuthConfig]) -> Result<String> {
        let tries = auth.iter().map(|it| Some(images::auth_to(it))).chain([None]);
        let mut last = None;
        for auth in tries {
            let asked = wire::PullImageRequest { image: spec(image), auth, sandbox_config: None };
            let kind = (ErrorKind::ImagePull, PULL_PATIENCE);
            match self.ask_images::<wire::PullImageResponse>("PullImage", &asked, kind).await {
                Ok(told) => return Ok(told.image_ref),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("one try is made without credentials"))
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        let asked = wire::ImageRequest { image: spec(image) };
        self.ask_images::<Empty>("RemoveImage", &asked, PLAIN).await.map(drop)
    }

    fn image_dir(&self) -> PathBuf {
        self.image_dir.clone()
    }

    async fn image_fs_usage(&self) -> Result<(u64, PathBuf)> {
        let told: wire::ImageFsInfoResponse =
            self.ask_images("ImageFsInfo", &Empty {}, PLAIN).await?;
        let used = told.image_filesystems.into_iter().map(|it| stats::disk_from(it).bytes);
        Ok((used.sum(), self.image_dir.clone()))
    }
}
