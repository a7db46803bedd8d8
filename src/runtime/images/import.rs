//! Imports archives: OCI layouts and what `docker save` writes, plain, gzip or zstd.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::bounds::{Allowance, Metered, Room};
use super::platform::for_this_platform;
use super::reference::{Reference, digest_hex};
use super::store::{Store, decompress, digest_of, failed, invalid};
use super::unpack::inside;
use crate::cri::Result;

const INDEX_DEPTH_MAX: usize = 4;
/// Of Docker's first form of manifests, plain and signed.
const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEXES: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
];
/// Manifests and configurations; longer ones are refused.
pub const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Where else the content lies.
    #[serde(default)]
    pub urls: Option<Vec<String>>,
    #[serde(default)]
    pub annotations: Option<HashMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: String,
}

/// An index or a manifest: whichever fields are there.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    pub manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Option<Vec<Descriptor>>,
}

impl Document {
    /// # Errors
    /// The first form of Docker's manifests, which nobody serves any more; and what could be
    /// read as an index and as a manifest, so that one digest would stand for two images.
    pub fn check(&self) -> Result<()> {
        let kind = self.media_type.as_deref().unwrap_or_default();
        if self.schema_version == Some(1) || SCHEMA_1.contains(&kind) {
            let [plain, signed] = SCHEMA_1;
            let found = if kind == plain { plain } else { signed };
            return Err(invalid(format!(
                "media type {found:?} is no longer supported, please rebuild the image as \
                 {DOCKER_MANIFEST:?} or {OCI_MANIFEST:?}"
            )));
        }
        let is_manifest = self.layers.is_some() || self.config.is_some();
        let is_index = self.manifests.is_some();
        let says_manifest = [DOCKER_MANIFEST, OCI_MANIFEST].contains(&kind);
        let says_index = INDEXES.contains(&kind);
        if is_index && (is_manifest || says_manifest) || is_manifest && says_index {
            return Err(invalid(format!(
                "the manifest is an index and an image at the same time (media type {kind:?})"
            )));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Gives the ids of the images in the archive.
pub fn import(store: &Store, path: &Path) -> Result<Vec<String>> {
    let scratch = store.temporary();
    let doing = format!("import {}", path.display());
    let imported = take_apart(path, &scratch)
        .map_err(|err| failed(&doing, err))
        .and_then(|links| Archive { root: scratch.clone(), links }.import(store));
    let _ = std::fs::remove_dir_all(&scratch);
    imported.map_err(|err| {
        let message = if err.message.starts_with("import ") {
            err.message.clone()
        } else {
            format!("{doing}: {}", err.message)
        };
        crate::cri::Error { message, ..err }
    })
}

/// Regular files of the archive below `scratch`; gives its links.
fn take_apart(path: &Path, scratch: &Path) -> io::Result<HashMap<PathBuf, PathBuf>> {
    std::fs::create_dir(scratch)?;
    let (allowance, mut room) = (Allowance::default(), Room::at(scratch));
    let inner = decompress(std::fs::File::open(path)?)?;
    let mut archive = tar::Archive::new(Metered { inner, allowance: &allowance });
    let mut links = HashMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = inside(&entry.path_bytes())?;
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let target = scratch.join(&name);
                if let Some(parent) = target.parent() {
                    std::fs::create_dir_all(parent)?;
                }
                let length = entry.size();
                allowance.entry(length);
                room.take(length)?;
                let copied = io::copy(&mut entry, &mut std::fs::File::create(&target)?)?;
                if copied != length {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("the archive is cut off in {}", name.display()),
                    ));
                }
            }
            tar::EntryType::Symlink | tar::EntryType::Link => {
                allowance.entry(0);
                if let Some(goal) = entry.link_name()? {
                    links.insert(name, goal.into_owned());
                }
            }
            _ => allowance.entry(0),
        }
    }
    Ok(links)
}

struct Archive {
    root: PathBuf,
    links: HashMap<PathBuf, PathBuf>,
}

impl Archive {
    fn import(&self, store: &Store) -> Result<Vec<String>> {
        if self.root.join("index.json").is_file() {
            let index: Document = self.document(&self.root.join("index.json"))?;
            let mut ids = Vec::new();
            for descriptor in index.manifests.unwrap_or_default() {
                if let Some(id) = self.manifest(store, &descriptor, 0)? {
                    ids.push(id);
                }
            }
            if ids.is_empty() {
                return Err(invalid("the archive has no image for this platform"));
            }
            return Ok(ids);
        }
        if !self.root.join("manifest.json").is_file() {
            return Err(invalid(
                "neither an OCI layout (index.json) nor a docker archive (manifest.json), or cut off",
            ));
        }
        let images: Vec<DockerImage> = self.document(&self.root.join("manifest.json"))?;
        images.iter().map(|image| self.docker(store, image)).collect()
    }

    fn document<T: serde::de::DeserializeOwned>(&self, path: &Path) -> Result<T> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = self.read(path, &name)?;
        serde_json::from_slice(&bytes).map_err(|err| invalid(format!("{name}: {err}")))
    }

    fn read(&self, path: &Path, name: &str) -> Result<Vec<u8>> {
        let length = std::fs::metadata(path)
            .map_err(|_| invalid(format!("the archive lacks {name}; it may be cut off")))?
            .len();
        if length > DOCUMENT_BYTES_MAX {
            return Err(invalid(format!("{name} has {length} bytes")));
        }
        std::fs::read(path).map_err(|err| failed(&format!("read {name}"), err))
    }

    /// A blob whose digest is what its name says.
    fn blob(&self, digest: &str) -> Result<PathBuf> {
        let digits = digest_hex(digest)
            .ok_or_else(|| invalid(format!("digest {digest:?} is malformed or not sha256")))?;
        let path = self.root.join("blobs/sha256").join(digits);
        if !path.is_file() {
            return Err(invalid(format!("the archive lacks blob {digest}; it may be cut off")));
        }
        let found = digest_of(&path).map_err(|err| failed("read blob", err))?;
        if found != digest {
            return Err(invalid(format!("blob {digest} has digest {found}")));
        }
        Ok(path)
    }

    fn manifest(
        &self,
        store: &Store,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<Option<String>> {
        if depth > INDEX_DEPTH_MAX {
            return Err(invalid("indexes are nested too deeply"));
        }
        let document: Document = self.document(&self.blob(&descriptor.digest)?)?;
        document.check()?;
        if let Some(manifests) = &document.manifests {
            let Some(chosen) = for_this_platform(manifests) else { return Ok(None) };
            let mut chosen = chosen.clone();
            chosen.annotations.clone_from(&descriptor.annotations);
            return self.manifest(store, &chosen, depth + 1);
        }
        let config = document.config.ok_or_else(|| invalid("a manifest has no configuration"))?;
        let config = self.read(&self.blob(&config.digest)?, "configuration")?;
        let layers = document
            .layers
            .unwrap_or_default()
            .iter()
            .map(|layer| self.blob(&layer.digest))
            .collect::<Result<Vec<_>>>()?;
        let annotations = descriptor.annotations.clone().unwrap_or_default();
        // A bare tag (`latest`) names nothing.
        let reference = annotations
            .get("io.containerd.image.name")
            .or_else(|| {
                annotations
                    .get("org.opencontainers.image.ref.name")
                    .filter(|name| name.contains(':') || name.contains('/'))
            })
            .map(|name| Reference::parse(name))
            .transpose()?;
        let tags: Vec<String> = reference.iter().filter_map(Reference::tagged).collect();
        let digests: Vec<String> =
            reference.iter().map(|r| format!("{}@{}", r.repository(), descriptor.digest)).collect();
        store.add(&config, &layers, &tags, &digests).map(Some)
    }

    fn docker(&self, store: &Store, image: &DockerImage) -> Result<String> {
        let config = self.read(&self.member(&image.config)?, &image.config)?;
        let layers =
            image.layers.iter().map(|layer| self.member(layer)).collect::<Result<Vec<_>>>()?;
        let tags = image
            .repo_tags
            .iter()
            .flatten()
            .map(|tag| Reference::parse(tag).map(|r| r.tagged()))
            .collect::<Result<Vec<_>>>()?;
        let tags: Vec<String> = tags.into_iter().flatten().collect();
        store.add(&config, &layers, &tags, &[])
    }

    /// A file of the archive; older docker archives link equal layers to each other.
    fn member(&self, name: &str) -> Result<PathBuf> {
        let broken = |_| invalid(format!("{name:?} climbs out of the archive"));
        let mut clean = inside(name.as_bytes()).map_err(broken)?;
        if let Some(goal) = self.links.get(&clean) {
            let mut resolved = clean.parent().unwrap_or(Path::new("")).to_path_buf();
            for part in goal.components() {
                match part {
                    std::path::Component::ParentDir => drop(resolved.pop()),
                    std::path::Component::Normal(part) => resolved.push(part),
                    _ => {}
                }
            }
            clean = resolved;
        }
        let path = self.root.join(clean);
        if !path.is_file() {
            return Err(invalid(format!("the archive lacks {name}; it may be cut off")));
        }
        Ok(path)
    }
}
