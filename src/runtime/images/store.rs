//! Images on disk: one file per image, one directory per layer.
//!
//! A layer exists once its note (`NAME.json`) does; an image once its file does. Both
//! come by rename, after the data is on disk. What a crash leaves in `tmp` is removed.
//! Beside a layer lies what its archive had besides files (`NAME.rest`, see `retell`) and what
//! it replaced itself (`NAME.aside`), and in `configs` the images' configurations, so that images
//! can be exported as they came.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ahead::Ahead;
use super::downloads::Downloads;
use super::reference::{Reference, digest_hex};
use super::retell::{Marks, Recorder};
use crate::cri::{DiskUsage, Error, ErrorKind, Image, Result};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub user: String,
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub stop_signal: String,
    /// Paths that are a volume of each container. None where an older version, which did not
    /// keep them, stored the image.
    #[serde(default)]
    pub volumes: Option<Vec<String>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredImage {
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub config: ImageConfig,
    /// Names in the layers directory, the lowest first.
    pub layers: Vec<String>,
    pub size: u64,
    /// Stays although nothing uses it.
    #[serde(default)]
    pub pinned: bool,
}

impl StoredImage {
    /// `NAME@sha256:...`, or the id where no registry has given a digest.
    pub fn reference(&self) -> String {
        self.repo_digests.first().unwrap_or(&self.id).clone()
    }

    pub fn describe(&self) -> Image {
        Image {
            id: self.id.clone(),
            repo_tags: self.repo_tags.clone(),
            repo_digests: self.repo_digests.clone(),
            size: self.size,
            user: self.config.user.clone(),
            pinned: self.pinned,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct LayerNote {
    chain_id: String,
    size: u64,
    /// Of the archive it came in, unpacked; None where that was not noted.
    #[serde(default)]
    archive_bytes: Option<u64>,
}

/// What of an image configuration matters here.
#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    config: Option<ConfigPart>,
    rootfs: RootfsPart,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigPart {
    user: String,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: String,
    stop_signal: String,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
}

impl From<ConfigPart> for ImageConfig {
    fn from(part: ConfigPart) -> Self {
        Self {
            user: part.user,
            env: part.env.unwrap_or_default(),
            entrypoint: part.entrypoint.unwrap_or_default(),
            cmd: part.cmd.unwrap_or_default(),
            working_dir: part.working_dir,
            stop_signal: part.stop_signal,
            volumes: Some(part.volumes.unwrap_or_default().into_keys().collect()),
        }
    }
}

#[derive(Deserialize)]
struct RootfsPart {
    #[serde(default)]
    diff_ids: Vec<String>,
}

pub struct Store {
    root: PathBuf,
    images: Mutex<HashMap<String, StoredImage>>,
    next: AtomicU64,
    /// One layer is unpacked at a time: two images often share theirs.
    unpacking: Mutex<()>,
    /// Layers that pulls under way count on, and how many do.
    leased: Mutex<HashMap<String, usize>>,
    pub downloads: Arc<Downloads>,
}

/// Layers that stay until this is dropped, whatever is removed.
pub struct Lease {
    store: Arc<Store>,
    names: Vec<String>,
    /// For each layer of the image, whether it is in the store.
    pub present: Vec<bool>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leased = self.store.leased.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &self.names {
            if let Some(count) = leased.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    leased.remove(name);
                }
            }
        }
    }
}

/// A layer as an image's configuration names it.
struct Named {
    name: String,
    chain_id: String,
    diff_id: String,
}

fn named_layers(config: &ConfigFile, count: usize) -> Result<Vec<Named>> {
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != count {
        return Err(invalid(format!(
            "the image has {count} layers and its configuration names {}",
            diff_ids.len()
        )));
    }
    let (mut out, mut chain_id) = (Vec::new(), String::new());
    for diff_id in diff_ids {
        chain_id = if chain_id.is_empty() {
            diff_id.clone()
        } else {
            format!("sha256:{}", hex(&Sha256::digest(format!("{chain_id} {diff_id}").as_bytes())))
        };
        let name = digest_hex(&chain_id)
            .and_then(|digits| digits.get(..24))
            .ok_or_else(|| invalid(format!("layer digest {diff_id:?} is malformed")))?
            .to_string();
        out.push(Named { name, chain_id: chain_id.clone(), diff_id: diff_id.clone() });
    }
    Ok(out)
}

fn parse_config(config: &[u8]) -> Result<ConfigFile> {
    serde_json::from_slice(config).map_err(|err| invalid(format!("image configuration: {err}")))
}

/// What is needed to write a layer's archive again.
pub struct LayerSource {
    pub diff_id: String,
    pub archive_bytes: u64,
    pub record: PathBuf,
    pub directory: PathBuf,
    /// What the archive itself replaces, where it does.
    pub aside: PathBuf,
}

pub fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::ImageInvalid, message)
}

pub fn failed(doing: &str, err: io::Error) -> Error {
    let kind = match err.kind() {
        io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
            ErrorKind::ImageInvalid
        }
        _ => ErrorKind::Internal,
    };
    Error::with_source(kind, format!("{doing}: {err}"), err)
}

impl Store {
    pub fn open(root: &Path) -> Result<Self> {
        for name in ["layers", "images", "configs", "tmp"] {
            std::fs::create_dir_all(root.join(name))
                .map_err(|err| failed("make image directory", err))?;
        }
        let downloads = Downloads::open(root.join("downloads"))
            .map_err(|err| failed("make download directory", err))?;
        let store = Self {
            root: root.to_path_buf(),
            images: Mutex::default(),
            next: AtomicU64::new(0),
            unpacking: Mutex::new(()),
            leased: Mutex::default(),
            downloads: Arc::new(downloads),
        };
        store.load().map_err(|err| failed("read images", err))?;
        Ok(store)
    }

    fn load(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(self.root.join("tmp"))?.flatten() {
            let path = entry.path();
            let _ = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
        }
        for entry in std::fs::read_dir(self.root.join("images"))?.flatten() {
            let image = std::fs::read(entry.path())
                .ok()
                .and_then(|bytes| serde_json::from_slice::<StoredImage>(&bytes).ok());
            match image {
                Some(mut image) if image.layers.iter().all(|l| self.note(l).is_some()) => {
                    if image.config.volumes.is_none() {
                        image.config.volumes = self.declared_volumes(&image.id);
                    }
                    self.lock().insert(image.id.clone(), image);
                }
                _ => {
                    tracing::warn!(file = %entry.path().display(), "an image is incomplete; removed");
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
        self.sweep()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, StoredImage>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A name in `tmp` that nobody else has.
    pub fn temporary(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.root.join("tmp").join(format!("{}-{number}", std::process::id()))
    }

    fn note(&self, layer: &str) -> Option<LayerNote> {
        let bytes = std::fs::read(self.layers_dir().join(format!("{layer}.json"))).ok()?;
        serde_json::from_slice(&bytes).ok().filter(|_| self.layers_dir().join(layer).is_dir())
    }

    pub fn all(&self) -> Vec<StoredImage> {
        self.lock().values().cloned().collect()
    }

    /// By id (whole, or at least 12 digits), tag or digest; short names are normalised.
    pub fn find(&self, name: &str) -> Option<StoredImage> {
        let images = self.lock();
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if let Some(image) = images.get(&format!("sha256:{hex}")) {
            return Some(image.clone());
        }
        if hex.len() >= 12 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            let prefix = format!("sha256:{hex}");
            if let Some(image) = images.values().find(|i| i.id.starts_with(&prefix)) {
                return Some(image.clone());
            }
        }
        let reference = Reference::parse(name).ok()?;
        let found = images.values().find(|image| match &reference.digest {
            Some(digest) => {
                image.repo_digests.contains(&format!("{}@{digest}", reference.repository()))
            }
            None => reference.tagged().is_some_and(|tag| image.repo_tags.contains(&tag)),
        });
        found.cloned()
    }

    /// Takes an image whose parts lie in files: configuration and layers (in order, the
    /// lowest first). Checks every digest before anything becomes visible.
    pub fn add(
        &self,
        config: &[u8],
        layers: &[PathBuf],
        tags: &[String],
        digests: &[String],
    ) -> Result<String> {
        let id = format!("sha256:{}", hex(&Sha256::digest(config)));
        let parsed = parse_config(config)?;
        let named = named_layers(&parsed, layers.len())?;
        let _one_at_a_time = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut names, mut size) = (Vec::new(), config.len() as u64);
        for (layer, named) in layers.iter().zip(named) {
            size += match self.note(&named.name) {
                Some(note) if note.chain_id == named.chain_id => note.size,
                _ => self.add_layer(&named, layer, &names)?,
            };
            names.push(named.name);
        }
        self.write_config(&id, config)?;
        base::failpoint!("image/configuration");
        let image = StoredImage {
            id: id.clone(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            config: parsed.config.unwrap_or_default().into(),
            layers: names,
            size,
            pinned: false,
        };
        self.name(image, tags, digests)?;
        Ok(id)
    }

    /// Gives an image its names, and takes the tags from the images that had them.
    fn name(&self, mut image: StoredImage, tags: &[String], digests: &[String]) -> Result<()> {
        let mut images = self.lock();
        if let Some(present) = images.get(&image.id) {
            image.repo_tags.clone_from(&present.repo_tags);
            image.repo_digests.clone_from(&present.repo_digests);
            image.pinned = present.pinned;
        }
        for (list, new) in [(&mut image.repo_tags, tags), (&mut image.repo_digests, digests)] {
            for name in new {
                if !list.contains(name) {
                    list.push(name.clone());
                }
            }
        }
        self.write_image(&image)?;
        base::failpoint!("image/written");
        let (id, mut changed) = (image.id.clone(), Vec::new());
        images.insert(id.clone(), image);
        for other in images.values_mut().filter(|other| other.id != id) {
            let before = other.repo_tags.len();
            other.repo_tags.retain(|tag| !tags.contains(tag));
            if other.repo_tags.len() != before {
                changed.push(other.clone());
            }
        }
        changed.iter().try_for_each(|other| self.write_image(other))
    }

    /// Pins the images with these ids, and no others.
    ///
    /// # Errors
    /// When the disk does not take it; those that were come to are as they should be.
    pub fn pin_only(&self, ids: &HashSet<String>) -> Result<()> {
        let mut images = self.lock();
        for image in images.values_mut() {
            let pinned = ids.contains(&image.id);
            if image.pinned != pinned {
                self.write_image(&StoredImage { pinned, ..image.clone() })?;
                image.pinned = pinned;
            }
        }
        Ok(())
    }

    fn write_image(&self, image: &StoredImage) -> Result<()> {
        let digits = digest_hex(&image.id).unwrap_or(&image.id);
        let path = self.root.join("images").join(format!("{digits}.json"));
        self.write_durably(&path, image).map_err(|err| failed("write image", err))
    }

    fn write_durably<T: Serialize>(&self, path: &Path, value: &T) -> io::Result<()> {
        let temporary = self.temporary();
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    }

    fn add_layer(&self, named: &Named, file: &Path, below: &[String]) -> Result<u64> {
        let [temporary, rest, aside] = std::array::from_fn(|_| self.temporary());
        let lower: Vec<PathBuf> =
            below.iter().rev().map(|layer| self.layers_dir().join(layer)).collect();
        let unpacked = (|| -> io::Result<u64> {
            std::fs::create_dir(&temporary)?;
            base::failpoint!("image/layer-directory");
            let (source, marks) = (std::fs::File::open(file)?, Marks::default());
            let archive = Ahead::new(decompress(source)?)?;
            let mut recorder = Recorder::new(archive, &marks, std::fs::File::create(&rest)?)?;
            let size = super::unpack::unpack(&mut recorder, &temporary, &lower, (&marks, &aside))?;
            let (found, archive_bytes) = recorder.finish()?;
            base::failpoint!("image/layer-unpacked");
            if found != named.diff_id {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "its content has digest {found}, the configuration says {}",
                        named.diff_id
                    ),
                ));
            }
            let target = self.layers_dir().join(&named.name);
            for stale in [&target, &self.aside_of(&named.name)] {
                if stale.exists() {
                    std::fs::remove_dir_all(stale)?;
                }
            }
            let directory = std::fs::File::open(&temporary)?;
            sys::fs::sync_filesystem(directory.as_fd())?;
            std::fs::rename(&temporary, &target)?;
            base::failpoint!("image/layer-in-place");
            if aside.exists() {
                std::fs::rename(&aside, self.aside_of(&named.name))?;
            }
            std::fs::rename(&rest, self.record_of(&named.name))?;
            base::failpoint!("image/layer-record");
            let chain_id = named.chain_id.clone();
            let note = LayerNote { chain_id, size, archive_bytes: Some(archive_bytes) };
            self.write_durably(&self.layers_dir().join(format!("{}.json", named.name)), &note)?;
            base::failpoint!("image/layer-noted");
            Ok(size)
        })();
        unpacked.map_err(|err| {
            let _ = std::fs::remove_dir_all(&temporary);
            let _ = std::fs::remove_dir_all(&aside);
            let _ = std::fs::remove_file(&rest);
            failed(&format!("unpack layer {}", named.diff_id), err)
        })
    }

    fn declared_volumes(&self, id: &str) -> Option<Vec<String>> {
        let config = std::fs::read(self.config_path(id)).ok()?;
        ImageConfig::from(parse_config(&config).ok()?.config.unwrap_or_default()).volumes
    }

    fn aside_of(&self, layer: &str) -> PathBuf {
        self.layers_dir().join(format!("{layer}.aside"))
    }

    fn record_of(&self, layer: &str) -> PathBuf {
        self.layers_dir().join(format!("{layer}.rest"))
    }

    fn config_path(&self, id: &str) -> PathBuf {
        self.root.join("configs").join(digest_hex(id).unwrap_or(id))
    }

    fn write_config(&self, id: &str, config: &[u8]) -> Result<()> {
        let temporary = self.temporary();
        let write = || -> io::Result<()> {
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(config)?;
            file.sync_all()?;
            std::fs::rename(&temporary, self.config_path(id))
        };
        write().map_err(|err| failed("write image configuration", err))
    }

    /// Sees to it that the image's layers which are there stay there, and says which are.
    ///
    /// # Errors
    /// A configuration that is malformed or names other than `count` layers.
    pub fn lease(self: &Arc<Self>, config: &[u8], count: usize) -> Result<Lease> {
        let named = named_layers(&parse_config(config)?, count)?;
        let names: Vec<String> = named.iter().map(|it| it.name.clone()).collect();
        {
            let mut leased = self.leased.lock().unwrap_or_else(PoisonError::into_inner);
            for name in &names {
                *leased.entry(name.clone()).or_default() += 1;
            }
        }
        let mut lease = Lease { store: self.clone(), names, present: Vec::new() };
        // After a removal that was under way: what it left stays now.
        let _one_at_a_time = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        lease.present = named
            .iter()
            .map(|it| self.note(&it.name).is_some_and(|note| note.chain_id == it.chain_id))
            .collect();
        Ok(lease)
    }

    /// The configuration of an image as it came, and where its layers' archives come from.
    ///
    /// # Errors
    /// For an image that was stored before archives were recorded.
    pub fn sources(&self, image: &StoredImage) -> Result<(Vec<u8>, Vec<LayerSource>)> {
        let unrecorded = || {
            invalid(format!(
                "image {} was stored by an older version, which did not keep what an export \
                 needs: remove it, and pull or import it again",
                image.id
            ))
        };
        let config = std::fs::read(self.config_path(&image.id)).map_err(|_| unrecorded())?;
        let mut sources = Vec::new();
        for named in named_layers(&parse_config(&config)?, image.layers.len())? {
            let record = self.record_of(&named.name);
            let archive_bytes = self
                .note(&named.name)
                .and_then(|note| note.archive_bytes)
                .ok_or_else(unrecorded)?;
            sources.push(LayerSource {
                diff_id: named.diff_id,
                archive_bytes,
                record,
                directory: self.layers_dir().join(&named.name),
                aside: self.aside_of(&named.name),
            });
        }
        Ok((config, sources))
    }

    /// Takes an image away, by any of its names: all of them go with it, as CRI has it.
    pub fn remove(&self, name: &str) -> Result<()> {
        let Some(image) = self.find(name) else { return Ok(()) };
        let digits = digest_hex(&image.id).unwrap_or(&image.id);
        match std::fs::remove_file(self.root.join("images").join(format!("{digits}.json"))) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove image", err));
            }
            _ => {}
        }
        self.lock().remove(&image.id);
        base::failpoint!("image/removed");
        let _ = std::fs::remove_file(self.config_path(&image.id));
        base::failpoint!("image/configuration-removed");
        // Who removes images wants room.
        self.downloads.prune(0);
        base::failpoint!("image/downloads-removed");
        let _one_at_a_time = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        self.sweep().map_err(|err| failed("remove layers", err))
    }

    /// Removes layers that no image uses and no pull under way counts on, and configurations
    /// of no image. Images that containers use are not removed.
    fn sweep(&self) -> io::Result<()> {
        let known: HashSet<PathBuf> = self.lock().keys().map(|id| self.config_path(id)).collect();
        for entry in std::fs::read_dir(self.root.join("configs"))?.flatten() {
            if !known.contains(&entry.path()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        let mut used: HashSet<String> =
            self.lock().values().flat_map(|i| i.layers.clone()).collect();
        used.extend(self.leased.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned());
        for entry in std::fs::read_dir(self.layers_dir())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let layer = name.split('.').next().unwrap_or(&name);
            if used.contains(layer) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
            base::failpoint!("image/layer-part-removed");
        }
        Ok(())
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// By the first bytes: gzip, zstd, or as it is.
pub fn decompress(file: std::fs::File) -> io::Result<Box<dyn Read + Send>> {
    use std::io::BufRead;
    let mut reader = io::BufReader::with_capacity(64 * 1024, file);
    let head = reader.fill_buf()?;
    if head.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)));
    }
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Ok(Box::new(zstd::stream::read::Decoder::with_buffer(reader)?));
    }
    Ok(Box::new(reader))
}

pub fn digest_of(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
    Ok(format!("sha256:{}", hex(&hash.finalize())))
}

/// What lies below `path` takes on its disk, each link of a file counted once.
pub fn disk_below(path: &Path) -> DiskUsage {
    let mut seen = std::collections::HashSet::new();
    let mut sum = DiskUsage::default();
    let mut todo = vec![path.to_path_buf()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.nlink() > 1 && !meta.is_dir() && !seen.insert((meta.dev(), meta.ino())) {
                continue;
            }
            sum += DiskUsage { bytes: meta.blocks() * 512, inodes: 1 };
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    sum
}
