//! Writes images as an archive: an OCI layout that is a docker archive as well.
//!
//! Layers are the very archives that were unpacked, so an image keeps its id and its
//! configuration; they are not compressed one by one, so its manifest is a new one.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::reference::{Reference, digest_hex};
use super::retell::retell;
use super::store::{LayerSource, Store, StoredImage, failed, hex, invalid};
use crate::cri::{Error, ErrorKind, Result};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_BLOCK_BYTES: u64 = 512;
const ZSTD_LEVEL: i32 = 3;

pub fn export(store: &Store, names: &[String], path: &Path) -> Result<()> {
    let mut chosen: BTreeMap<String, (StoredImage, Vec<String>)> = BTreeMap::new();
    for name in names {
        let image = store.find(name).ok_or_else(|| {
            Error::new(ErrorKind::ImageNotPresent, format!("image \"{name}\": not found"))
        })?;
        let tags = tags_meant(name, &image);
        let (_, all) = chosen.entry(image.id.clone()).or_insert_with(|| (image, Vec::new()));
        all.extend(tags.into_iter().filter(|tag| !all.contains(tag)).collect::<Vec<_>>());
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".partial");
    let beside = Path::new(&beside);
    let doing = format!("export to {}", path.display());
    let written = File::create(beside)
        .map_err(|err| failed(&doing, err))
        .and_then(|file| write(store, chosen.into_values(), file, path))
        .and_then(|()| std::fs::rename(beside, path).map_err(|err| failed(&doing, err)));
    written.inspect_err(|_| {
        let _ = std::fs::remove_file(beside);
    })
}

/// A tag stands for itself; an id or a digest for all tags of its image.
fn tags_meant(name: &str, image: &StoredImage) -> Vec<String> {
    let tag = Reference::parse(name).ok().and_then(|reference| reference.tagged());
    match tag.filter(|tag| image.repo_tags.contains(tag)) {
        Some(tag) => vec![tag],
        None => image.repo_tags.clone(),
    }
}

fn write(
    store: &Store,
    images: impl Iterator<Item = (StoredImage, Vec<String>)>,
    file: File,
    path: &Path,
) -> Result<()> {
    let name = path.to_string_lossy();
    let doing = format!("export to {}", path.display());
    let failing = |err: io::Error| failed(&doing, err);
    let file = BufWriter::with_capacity(256 << 10, file);
    let file = if name.ends_with(".gz") || name.ends_with(".tgz") {
        let gzip = flate2::write::GzEncoder::new(file, flate2::Compression::default());
        write_archive(store, images, gzip)?.finish().map_err(failing)?
    } else if name.ends_with(".zst") || name.ends_with(".tzst") {
        let zstd = zstd::stream::write::Encoder::new(file, ZSTD_LEVEL).map_err(failing)?;
        write_archive(store, images, zstd)?.finish().map_err(failing)?
    } else {
        write_archive(store, images, file)?
    };
    let file = file.into_inner().map_err(|err| failing(err.into_error()))?;
    file.sync_all().map_err(failing)
}

fn write_archive<W: Write>(
    store: &Store,
    images: impl Iterator<Item = (StoredImage, Vec<String>)>,
    out: W,
) -> Result<W> {
    let mut archive = Archive { tar: tar::Builder::new(out), blobs: HashSet::new() };
    let failing = |err| failed("write archive", err);
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    archive.file("oci-layout", layout.to_string().as_bytes()).map_err(failing)?;
    let (mut index, mut docker) = (Vec::new(), Vec::new());
    for (image, tags) in images {
        let (config, layers) = store.sources(&image)?;
        for layer in &layers {
            archive.layer(layer)?;
        }
        archive.blob(&image.id, &config).map_err(failing)?;
        let manifest = manifest(&image, &config, &layers).to_string();
        let digest = format!("sha256:{}", hex(&Sha256::digest(manifest.as_bytes())));
        archive.blob(&digest, manifest.as_bytes()).map_err(failing)?;
        index.extend(descriptors(&digest, manifest.len(), &config, &tags));
        docker.push(json!({
            "Config": place(&image.id),
            "RepoTags": tags,
            "Layers": layers.iter().map(|it| place(&it.diff_id)).collect::<Vec<_>>(),
        }));
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": index});
    archive.file("index.json", index.to_string().as_bytes()).map_err(failing)?;
    let docker = Value::Array(docker);
    archive.file("manifest.json", docker.to_string().as_bytes()).map_err(failing)?;
    archive.tar.into_inner().map_err(failing)
}

fn manifest(image: &StoredImage, config: &[u8], layers: &[LayerSource]) -> Value {
    let layers: Vec<Value> = layers
        .iter()
        .map(|it| json!({"mediaType": LAYER, "digest": it.diff_id, "size": it.archive_bytes}))
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": image.id, "size": config.len()},
        "layers": layers,
    })
}

/// One for every tag, as other tools expect them; one without a name where there is none.
fn descriptors(digest: &str, bytes: usize, config: &[u8], tags: &[String]) -> Vec<Value> {
    let config: Value = serde_json::from_slice(config).unwrap_or_default();
    let mut platform = json!({});
    for key in ["os", "architecture", "variant"] {
        if let Some(text) = config[key].as_str().filter(|text| !text.is_empty()) {
            platform[key] = json!(text);
        }
    }
    let plain =
        json!({"mediaType": MANIFEST, "digest": digest, "size": bytes, "platform": platform});
    if tags.is_empty() {
        return vec![plain];
    }
    let named = |tag: &String| {
        let mut descriptor = plain.clone();
        descriptor["annotations"] = json!({
            "io.containerd.image.name": tag,
            "org.opencontainers.image.ref.name": tag.rsplit(':').next(),
        });
        descriptor
    };
    tags.iter().map(named).collect()
}

fn place(digest: &str) -> String {
    format!("blobs/sha256/{}", digest_hex(digest).unwrap_or(digest))
}

fn header(bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

struct Archive<W: Write> {
    tar: tar::Builder<W>,
    /// Digests that are in it.
    blobs: HashSet<String>,
}

impl<W: Write> Archive<W> {
    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.tar.append_data(&mut header(bytes.len() as u64), name, bytes)
    }

    fn blob(&mut self, digest: &str, bytes: &[u8]) -> io::Result<()> {
        if self.blobs.insert(digest.to_owned()) {
            self.file(&place(digest), bytes)?;
        }
        Ok(())
    }

    fn layer(&mut self, layer: &LayerSource) -> Result<()> {
        if !self.blobs.insert(layer.diff_id.clone()) {
            return Ok(());
        }
        let written = (|| -> io::Result<(String, u64)> {
            let mut header = header(layer.archive_bytes);
            header.set_path(place(&layer.diff_id))?;
            header.set_cksum();
            let out = self.tar.get_mut();
            out.write_all(header.as_bytes())?;
            let told = retell(File::open(&layer.record)?, (&layer.directory, &layer.aside), out)?;
            let over = usize::try_from(told.1 % TAR_BLOCK_BYTES).map_err(io::Error::other)?;
            if over > 0 {
                out.write_all(&[0; TAR_BLOCK_BYTES as usize][over..])?;
            }
            Ok(told)
        })();
        let (digest, bytes) =
            written.map_err(|err| failed(&format!("write layer {}", layer.diff_id), err))?;
        if digest != layer.diff_id || bytes != layer.archive_bytes {
            return Err(invalid(format!(
                "layer {} is not on disk as it came: its archive would have digest {digest}",
                layer.diff_id
            )));
        }
        Ok(())
    }
}
