//! Images on disk: one file per image, one directory per layer.
//!
//! A layer exists once its note (`NAME.json`) does; an image once its file does. Both
//! come by rename, after the data is on disk. What a crash leaves in `tmp` is removed.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::reference::{Reference, digest_hex};
use crate::cri::{DiskUsage, Error, ErrorKind, Image, Result};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub user: String,
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub stop_signal: String,
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
            pinned: false,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct LayerNote {
    chain_id: String,
    size: u64,
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
        for name in ["layers", "images", "tmp"] {
            std::fs::create_dir_all(root.join(name))
                .map_err(|err| failed("make image directory", err))?;
        }
        let store = Self {
            root: root.to_path_buf(),
            images: Mutex::default(),
            next: AtomicU64::new(0),
            unpacking: Mutex::new(()),
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
                Some(image) if image.layers.iter().all(|l| self.note(l).is_some()) => {
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
        let parsed: ConfigFile = serde_json::from_slice(config)
            .map_err(|err| invalid(format!("image configuration: {err}")))?;
        let diff_ids = parsed.rootfs.diff_ids;
        if diff_ids.len() != layers.len() {
            return Err(invalid(format!(
                "the image has {} layers and its configuration names {}",
                layers.len(),
                diff_ids.len()
            )));
        }
        let _one_at_a_time = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut names, mut size, mut chain) = (Vec::new(), config.len() as u64, String::new());
        for (layer, diff_id) in layers.iter().zip(&diff_ids) {
            chain = if chain.is_empty() {
                diff_id.clone()
            } else {
                format!("sha256:{}", hex(&Sha256::digest(format!("{chain} {diff_id}").as_bytes())))
            };
            let name = digest_hex(&chain)
                .and_then(|digits| digits.get(..24))
                .ok_or_else(|| invalid(format!("layer digest {diff_id:?} is malformed")))?
                .to_string();
            size += match self.note(&name) {
                Some(note) if note.chain_id == chain => note.size,
                _ => self.add_layer(&name, &chain, layer, diff_id, &names)?,
            };
            names.push(name);
        }
        let part = parsed.config.unwrap_or_default();
        let image = StoredImage {
            id: id.clone(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            config: ImageConfig {
                user: part.user,
                env: part.env.unwrap_or_default(),
                entrypoint: part.entrypoint.unwrap_or_default(),
                cmd: part.cmd.unwrap_or_default(),
                working_dir: part.working_dir,
                stop_signal: part.stop_signal,
            },
            layers: names,
            size,
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
        }
        for (list, new) in [(&mut image.repo_tags, tags), (&mut image.repo_digests, digests)] {
            for name in new {
                if !list.contains(name) {
                    list.push(name.clone());
                }
            }
        }
        self.write_image(&image)?;
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

    fn add_layer(
        &self,
        name: &str,
        chain: &str,
        file: &Path,
        diff_id: &str,
        below: &[String],
    ) -> Result<u64> {
        let temporary = self.temporary();
        let lower: Vec<PathBuf> =
            below.iter().rev().map(|layer| self.layers_dir().join(layer)).collect();
        let unpacked = (|| -> io::Result<u64> {
            std::fs::create_dir(&temporary)?;
            let source = std::fs::File::open(file)?;
            let mut hashing = Hashing { inner: decompress(source)?, hash: Sha256::new() };
            let size = super::unpack::unpack(&mut hashing, &temporary, &lower)?;
            // The digest covers what follows the archive's end, too.
            io::copy(&mut hashing, &mut io::sink())?;
            let found = format!("sha256:{}", hex(&hashing.hash.finalize()));
            if found != *diff_id {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("its content has digest {found}, the configuration says {diff_id}"),
                ));
            }
            let target = self.layers_dir().join(name);
            if target.exists() {
                std::fs::remove_dir_all(&target)?;
            }
            let directory = std::fs::File::open(&temporary)?;
            sys::fs::sync_filesystem(directory.as_fd())?;
            std::fs::rename(&temporary, &target)?;
            let note = LayerNote { chain_id: chain.into(), size };
            self.write_durably(&self.layers_dir().join(format!("{name}.json")), &note)?;
            Ok(size)
        })();
        unpacked.map_err(|err| {
            let _ = std::fs::remove_dir_all(&temporary);
            failed(&format!("unpack layer {diff_id}"), err)
        })
    }

    /// Takes one name away; the image goes with its last one, or when named by its id.
    pub fn remove(&self, name: &str) -> Result<()> {
        let Some(mut image) = self.find(name) else { return Ok(()) };
        if let Some(tag) = Reference::parse(name).ok().and_then(|r| r.tagged())
            && image.repo_tags.contains(&tag)
            && image.repo_tags.len() > 1
        {
            image.repo_tags.retain(|t| *t != tag);
            self.write_image(&image)?;
            self.lock().insert(image.id.clone(), image);
            return Ok(());
        }
        let digits = digest_hex(&image.id).unwrap_or(&image.id);
        match std::fs::remove_file(self.root.join("images").join(format!("{digits}.json"))) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove image", err));
            }
            _ => {}
        }
        self.lock().remove(&image.id);
        let _one_at_a_time = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        self.sweep().map_err(|err| failed("remove layers", err))
    }

    /// Removes layers that no image uses. Images that containers use are not removed.
    fn sweep(&self) -> io::Result<()> {
        let used: HashSet<String> = self.lock().values().flat_map(|i| i.layers.clone()).collect();
        for entry in std::fs::read_dir(self.layers_dir())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let layer = name.strip_suffix(".json").unwrap_or(&name);
            if used.contains(layer) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// By the first bytes: gzip, zstd, or as it is.
pub fn decompress(file: std::fs::File) -> io::Result<Box<dyn Read>> {
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
