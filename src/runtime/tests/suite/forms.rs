//! An image in the forms that registries have them in, and what became of a store whose
//! machine lost its power.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::hostile::attribute;
use crate::images::{names_in, raw_entry};
use crate::pulls::{ok, quick, serve};
use crate::world::{archive, busybox_archive, busybox_layer, hex, oci_layout, tar_of};
use runtime::cri::ImageService;
use runtime::images::{Images, Registries};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn device(name: &str, kind: tar::EntryType, (major, minor): (u32, u32)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_path(name).unwrap();
    header.set_mode(0o640);
    header.set_uid(0);
    header.set_gid(6);
    header.set_size(0);
    header.set_device_major(major).unwrap();
    header.set_device_minor(minor).unwrap();
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// A layer of what is no plain file.
fn odd_layer() -> Vec<u8> {
    use tar::EntryType;
    let mut layer = Vec::new();
    layer.extend(attribute("SCHILY.xattr.user.mine", "yes"));
    layer.extend(raw_entry("file", EntryType::Regular, "", b"content"));
    layer.extend(raw_entry("hard", EntryType::Link, "file", b""));
    layer.extend(raw_entry("soft", EntryType::Symlink, "/file", b""));
    layer.extend(raw_entry("pipe", EntryType::Fifo, "", b""));
    layer.extend(device("character", EntryType::Char, (1, 3)));
    layer.extend(device("block", EntryType::Block, (7, 0)));
    layer.extend([0; 1_024]);
    layer
}

/// Docker's media types: a list for several platforms, and a layer in each form.
fn docker_image() -> (BTreeMap<String, Vec<u8>>, Vec<Vec<u8>>) {
    const TYPES: &str = "application/vnd.docker";
    let gone =
        tar_of(&[("only-here", 0o644, b"x"), ("data/", 0o755, b""), ("data/old", 0o644, b"x")]);
    let above = tar_of(&[
        (".wh.only-here", 0o644, b""),
        ("data/.wh..wh..opq", 0o644, b""),
        ("data/new", 0o644, b"y"),
    ]);
    let plain = [gone, odd_layer(), above];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain[1]).unwrap();
    let packed =
        [plain[0].clone(), gzip.finish().unwrap(), zstd::encode_all(&plain[2][..], 1).unwrap()];
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": plain.each_ref().map(|it| digest(it))},
    })
    .to_string()
    .into_bytes();
    let ends = ["tar", "tar.gzip", "tar.zstd"];
    let layers: Vec<_> = packed
        .iter()
        .zip(ends)
        .map(|(layer, end)| {
            serde_json::json!({"mediaType": format!("{TYPES}.image.rootfs.diff.{end}"),
                "digest": digest(layer), "size": layer.len()})
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": format!("{TYPES}.distribution.manifest.v2+json"),
        "config": {"mediaType": format!("{TYPES}.container.image.v1+json"),
            "digest": digest(&config), "size": config.len()},
        "layers": layers,
    })
    .to_string()
    .into_bytes();
    let named = |architecture: &str, digest: String| {
        serde_json::json!({"mediaType": format!("{TYPES}.distribution.manifest.v2+json"),
            "digest": digest, "size": manifest.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let list = serde_json::json!({
        "schemaVersion": 2, "mediaType": format!("{TYPES}.distribution.manifest.list.v2+json"),
        "manifests": [named("s390x", digest(b"another")), named(architecture, digest(&manifest))],
    })
    .to_string()
    .into_bytes();
    let mut content = BTreeMap::new();
    content.insert("/v2/team/busybox/manifests/v1".to_owned(), list);
    content.insert(format!("/v2/team/busybox/manifests/{}", digest(&manifest)), manifest);
    for blob in packed.iter().chain([&config]) {
        content.insert(format!("/v2/team/busybox/blobs/{}", digest(blob)), blob.clone());
    }
    (content, plain.to_vec())
}

#[tokio::test]
async fn a_list_of_docker_with_a_layer_in_each_form_is_pulled() {
    let (content, _) = docker_image();
    let fake = serve(None, move |_, asked| ok(&content, asked)).await;
    let dir = tempfile::tempdir().unwrap();
    let images = Images::open(dir.path(), quick()).await.unwrap();
    images.pull_image(&fake.name(), &[]).await.unwrap();
    let image = images.find(&fake.name()).unwrap();
    assert_eq!(fake.count(&digest(b"another")), 0, "the one of another platform");
    let layer = |at: usize| images.layers_dir().join(&image.layers[at]);
    assert_eq!(names_in(&layer(0)), ["data", "only-here"]);
    let odd = layer(1);
    let meta = |name: &str| std::fs::symlink_metadata(odd.join(name)).unwrap();
    assert_eq!(meta("file").ino(), meta("hard").ino());
    assert_eq!(std::fs::read_link(odd.join("soft")).unwrap(), Path::new("/file"));
    assert!(meta("pipe").file_type().is_fifo());
    let (character, block) = (meta("character"), meta("block"));
    assert!(character.file_type().is_char_device() && block.file_type().is_block_device());
    assert_eq!((character.rdev(), character.gid()), (rustix::fs::makedev(1, 3), 6));
    assert_eq!((block.rdev(), block.mode() & 0o777), (rustix::fs::makedev(7, 0), 0o640));
    let mut value = [0; 8];
    let length = rustix::fs::lgetxattr(odd.join("file"), "user.mine", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"yes");
    // What hides something does so in the form of an overlay.
    let hidden = std::fs::symlink_metadata(layer(2).join("only-here")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    let mut value = [0; 8];
    let length =
        rustix::fs::lgetxattr(layer(2).join("data"), "trusted.overlay.opaque", &mut value[..]);
    assert_eq!(&value[..length.unwrap()], b"y");
}

#[tokio::test]
async fn what_a_loss_of_power_left_is_mended_and_costs_only_the_images_it_struck() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("images");
    let open = || Images::open(&root, Registries::default());
    let put = |name: &str, bytes: Vec<u8>| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let archives = [
        put("one.tar", busybox_archive()),
        put("two.tar", archive(&oci_layout(&[busybox_layer(), odd_layer()], "two:1"))),
    ];
    let ids = async |images: &Images| {
        let mut ids: Vec<String> = Vec::new();
        for archive in &archives {
            ids.extend(images.import_file(archive).await.unwrap());
        }
        ids
    };
    let images = open().await.unwrap();
    let ids_before = ids(&images).await;
    let upper = images.find("two:1").unwrap().layers[1].clone();
    let lower = images.find("two:1").unwrap().layers[0].clone();
    drop(images);
    let torn = |path: &Path| std::fs::write(path, "{\"torn").unwrap();
    let layers = root.join("layers");
    let two = ids_before[1].strip_prefix("sha256:").unwrap();
    type Damage<'a> = Box<dyn Fn() + 'a>;
    let damages: [(&str, Damage<'_>, bool); 7] = [
        (
            "a file of an image is torn",
            Box::new(|| torn(&root.join(format!("images/{two}.json")))),
            true,
        ),
        (
            "a note of a layer is torn",
            Box::new(|| torn(&layers.join(format!("{upper}.json")))),
            true,
        ),
        (
            "a note of a layer is not there",
            Box::new(|| std::fs::remove_file(layers.join(format!("{upper}.json"))).unwrap()),
            true,
        ),
        (
            "a layer is not there",
            Box::new(|| std::fs::remove_dir_all(layers.join(&upper)).unwrap()),
            true,
        ),
        (
            "half a layer lies about",
            Box::new(|| {
                let half = root.join("tmp/1-1/half");
                std::fs::create_dir_all(&half).unwrap();
                std::fs::write(half.join("file"), "x").unwrap();
                std::fs::write(root.join("tmp/1-2"), "x").unwrap();
            }),
            false,
        ),
        (
            "a layer without a note and a configuration without an image",
            Box::new(|| {
                std::fs::create_dir_all(layers.join("0123456789abcdef01234567/x")).unwrap();
                std::fs::write(layers.join("0123456789abcdef01234567.rest"), "x").unwrap();
                torn(&root.join("configs").join("0".repeat(64)));
            }),
            false,
        ),
        (
            "half a download",
            Box::new(|| std::fs::write(root.join("downloads/half"), "x").unwrap()),
            false,
        ),
    ];
    for (what, damage, costs_two) in damages {
        damage();
        let images = open().await.unwrap();
        assert!(images.find(&ids_before[0]).is_some(), "{what}: the other image stays");
        assert_eq!(images.find(&ids_before[1]).is_none(), costs_two, "{what}");
        assert_eq!(names_in(&root.join("tmp")), Vec::<String>::new(), "{what}");
        assert_eq!(names_in(&root.join("configs")).len(), if costs_two { 1 } else { 2 }, "{what}");
        let mut wanted = vec![lower.clone(), format!("{lower}.json"), format!("{lower}.rest")];
        if !costs_two {
            wanted.extend([upper.clone(), format!("{upper}.json"), format!("{upper}.rest")]);
        }
        wanted.sort();
        assert_eq!(names_in(&layers), wanted, "{what}");
        // What was lost comes again, and is whole.
        assert_eq!(ids(&images).await, ids_before, "{what}");
        let out = dir.path().join("out.tar");
        images.export_file(&["two:1".into()], &out).await.unwrap();
    }
}
