//! Images on this node: import, pull, unpack, look up, remove.
//!
//! Containers get layers by name; nothing here mounts or runs them.

mod ahead;
mod below;
mod bounds;
mod challenge;
mod downloads;
mod export;
mod import;
pub mod inbox;
mod platform;
pub mod progress;
mod proxies;
pub mod prune;
pub mod reference;
mod registries;
mod registry;
mod retell;
mod sparse;
mod store;
mod transport;
mod unpack;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

pub use proxies::Proxies;
pub use registries::{Endpoint, HostAuth, HostConfig, HostTls, Mirror, Patience, Registries};
pub use store::{ImageConfig, StoredImage, disk_below};
pub use transport::exchange;

use crate::cri::{AuthConfig, Error, ErrorKind, Image, ImageService, Result};
use progress::{Progress, Teller, UnderWay};
use store::Store;

pub struct Images {
    store: Arc<Store>,
    registries: Registries,
    under_way: UnderWay,
}

async fn beside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    base::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "a worker thread panicked")))
}

impl Images {
    pub async fn open(directory: &Path, registries: Registries) -> Result<Self> {
        let directory = directory.to_path_buf();
        let store = beside(move || Store::open(&directory)).await?;
        Ok(Self { store: Arc::new(store), registries, under_way: UnderWay::default() })
    }

    pub fn find(&self, name: &str) -> Option<StoredImage> {
        self.store.find(name)
    }

    pub fn layers_dir(&self) -> PathBuf {
        self.store.layers_dir()
    }

    /// Gives the ids of the images in an archive. A bad one leaves nothing behind.
    pub async fn import_file(&self, path: &Path) -> Result<Vec<String>> {
        let (store, path) = (self.store.clone(), path.to_path_buf());
        beside(move || import::import(&store, &path)).await
    }

    /// Pulls an image and tells how far it has come. Returns its id.
    pub async fn pull(&self, image: &str, auth: &[AuthConfig], teller: &Teller) -> Result<String> {
        let _noted = self.under_way.note(image, teller);
        registry::pull(&self.store, &self.registries, image, auth, teller).await
    }

    /// Writes images into an archive that other tools read: an OCI layout, which is a docker
    /// archive as well; gzip or zstd where the name ends so. A failure leaves no file.
    ///
    /// # Errors
    /// An image that is not there, or that cannot be written as it came.
    pub async fn export_file(&self, images: &[String], path: &Path) -> Result<()> {
        let (store, images, path) = (self.store.clone(), images.to_vec(), path.to_path_buf());
        beside(move || export::export(&store, &images, &path)).await
    }
}

#[async_trait]
impl ImageService for Images {
    async fn list_images(&self) -> Result<Vec<Image>> {
        Ok(self.store.all().iter().map(StoredImage::describe).collect())
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        Ok(self.store.find(image).map(|image| image.describe()))
    }

    async fn pull_image(&self, image: &str, auth: &[AuthConfig]) -> Result<String> {
        self.pull(image, auth, &Teller::channel().0).await
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        let (store, image) = (self.store.clone(), image.to_string());
        beside(move || store.remove(&image)).await
    }

    fn progress_of(&self, image: &str) -> Option<Progress> {
        self.under_way.of(image)
    }

    fn image_dir(&self) -> PathBuf {
        self.store.root().to_path_buf()
    }

    async fn image_fs_usage(&self) -> Result<(u64, PathBuf)> {
        let root = self.store.root().to_path_buf();
        beside(move || Ok((disk_below(&root).bytes, root))).await
    }
}

#[async_trait]
impl ImageService for crate::oci::Runtime {
    async fn list_images(&self) -> Result<Vec<Image>> {
        self.images().list_images().await
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        self.images().image_status(image).await
    }

    async fn pull_image(&self, image: &str, auth: &[AuthConfig]) -> Result<String> {
        self.images().pull_image(image, auth).await
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        // An overlay breaks when its lower directories go.
        if let Some(found) = self.images().find(image)
            && let Some(container) = self.user_of_image(&found.id)
        {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("image \"{image}\" is in use by container \"{container}\""),
            ));
        }
        self.images().remove_image(image).await
    }

    fn progress_of(&self, image: &str) -> Option<Progress> {
        self.images().progress_of(image)
    }

    fn image_dir(&self) -> PathBuf {
        self.images().image_dir()
    }

    async fn image_fs_usage(&self) -> Result<(u64, PathBuf)> {
        let (bytes, path) = self.images().image_fs_usage().await?;
        let containers = self.writable_layers_dir();
        let written = beside(move || Ok(disk_below(&containers).bytes)).await?;
        Ok((bytes + written, path))
    }
}
