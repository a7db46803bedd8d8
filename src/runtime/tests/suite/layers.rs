//! Layers as archivers write them, seen as a container sees them: through the overlay of all
//! layers of their image.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::images::raw_entry;
use crate::world::{archive, oci_layout, tar_of};
use runtime::images::{Images, Registries};
use tar::EntryType;

/// The files of an image of these layers.
struct Seen {
    images: Images,
    _tree: OwnedFd,
    root: PathBuf,
}

impl Seen {
    async fn of(dir: &Path, layers: &[Vec<u8>]) -> Self {
        let path = dir.join("image.tar");
        std::fs::write(&path, archive(&oci_layout(layers, "layers:1"))).unwrap();
        let images = Images::open(&dir.join("images"), Registries::default()).await.unwrap();
        images.import_file(&path).await.unwrap();
        let mut names = images.find("layers:1").unwrap().layers;
        names.reverse();
        let tree = sys::mount::read_only_layers(&images.layers_dir(), &names, None).unwrap();
        let root = sys::fs::descriptor_path(tree.as_fd());
        Self { images, _tree: tree, root }
    }

    fn names(&self, below: &str) -> Vec<String> {
        crate::images::names_in(&self.root.join(below))
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.root.join(name)).unwrap()
    }

    fn meta(&self, name: &str) -> std::fs::Metadata {
        std::fs::symlink_metadata(self.root.join(name)).unwrap()
    }
}

fn ended(mut layer: Vec<u8>) -> Vec<u8> {
    layer.extend([0; 1_024]);
    layer
}

#[tokio::test]
async fn what_a_layer_hides_and_makes_anew_shows_nothing_of_the_layers_below() {
    let dir = tempfile::tempdir().unwrap();
    let entries = |name: &str| tar_of(&[(&format!("{name}/old"), 0o644, b"old")]);
    let mut below = Vec::new();
    for name in ["before", "after", "implied", "opaque", "file", "away"] {
        // Without the end of each archive.
        below.extend(&entries(name)[..1_024]);
    }
    let upper = tar_of(&[
        (".wh.before", 0o644, b""),
        ("before/", 0o755, b""),
        ("before/new", 0o644, b"new"),
        ("after/", 0o755, b""),
        ("after/new", 0o644, b"new"),
        (".wh.after", 0o644, b""),
        (".wh.implied", 0o644, b""),
        ("implied/new", 0o644, b"new"),
        ("opaque/", 0o755, b""),
        ("opaque/new", 0o644, b"new"),
        ("opaque/.wh..wh..opq", 0o644, b""),
        ("file", 0o644, b"a file now"),
        (".wh.file", 0o644, b""),
        (".wh.away", 0o644, b""),
    ]);
    let seen = Seen::of(dir.path(), &[ended(below), upper]).await;
    assert_eq!(seen.names(""), ["after", "before", "file", "implied", "opaque"]);
    for name in ["before", "after", "implied", "opaque"] {
        assert_eq!(seen.names(name), ["new"], "{name}");
    }
    assert_eq!(seen.text("file"), "a file now");
    let exported = dir.path().join("out.tar");
    seen.images.export_file(&["layers:1".to_owned()], &exported).await.unwrap();
}

#[tokio::test]
async fn a_hard_link_may_name_a_file_of_a_layer_below() {
    let dir = tempfile::tempdir().unwrap();
    let lowest = tar_of(&[
        ("usr/bin/", 0o755, b""),
        ("usr/bin/tool", 0o4755, b"the tool"),
        ("link:bin->usr/bin", 0o777, b""),
        ("usr/gone", 0o644, b"x"),
    ]);
    let hides = tar_of(&[("usr/.wh.gone", 0o644, b"")]);
    let mut upper = raw_entry("usr/bin/same", EntryType::Link, "bin/tool", b"");
    upper.extend(raw_entry("twice", EntryType::Regular, "", b"twice"));
    // As GNU tar does when it is told of a file of several names twice.
    upper.extend(raw_entry("twice", EntryType::Link, "twice", b""));
    let layers = [lowest, hides.clone(), ended(upper)];
    let seen = Seen::of(dir.path(), &layers).await;
    assert_eq!(
        (seen.text("usr/bin/same"), seen.text("twice")),
        ("the tool".into(), "twice".into())
    );
    let (tool, same) = (seen.meta("usr/bin/tool"), seen.meta("usr/bin/same"));
    assert_eq!((same.mode() & 0o7777, same.mtime()), (0o4755, tool.mtime()));
    let exported = dir.path().join("out.tar");
    seen.images.export_file(&["layers:1".to_owned()], &exported).await.unwrap();

    let hidden = ended(raw_entry("usr/again", EntryType::Link, "usr/gone", b""));
    let path = dir.path().join("hidden.tar");
    let image = archive(&oci_layout(&[layers[0].clone(), hides, hidden], "hidden:1"));
    std::fs::write(&path, image).unwrap();
    let err = seen.images.import_file(&path).await.unwrap_err();
    assert!(err.message.contains("usr/again"), "{err}");
}

#[tokio::test]
async fn a_file_behind_a_link_that_is_replaced_later_is_exported() {
    let dir = tempfile::tempdir().unwrap();
    let lower = tar_of(&[
        ("real/", 0o755, b""),
        ("link:way->real", 0o777, b""),
        ("way/file", 0o644, b"behind the link"),
        ("way/", 0o755, b""),
        ("link:second->real", 0o777, b""),
        ("second/other", 0o644, b"also"),
        ("link:second->nowhere", 0o777, b""),
    ]);
    // So does a layer above, in its own directory.
    let upper = tar_of(&[("way/", 0o755, b""), ("way/new", 0o644, b"new")]);
    let seen = Seen::of(dir.path(), &[lower, upper]).await;
    assert_eq!(seen.text("real/file"), "behind the link");
    assert_eq!(seen.text("real/other"), "also");
    let exported = dir.path().join("out.tar");
    seen.images.export_file(&["layers:1".to_owned()], &exported).await.unwrap();
}

/// What GNU tar makes of the files in `dir`, told in `words`.
fn archived(dir: &Path, words: &[&str]) -> Vec<u8> {
    let mut tar = Command::new("tar");
    let out = tar.arg("-C").arg(dir).args(words).args(["-cf", "-", "."]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

#[tokio::test]
async fn archives_of_gnu_tar_keep_holes_and_long_names_in_every_form() {
    let files = tempfile::tempdir().unwrap();
    let long: PathBuf = (0..9).map(|n| format!("{n:0>100}")).collect();
    std::fs::create_dir_all(files.path().join(&long)).unwrap();
    std::fs::write(files.path().join(&long).join("leaf"), "leaf").unwrap();
    std::fs::hard_link(files.path().join(&long).join("leaf"), files.path().join("zz-hard"))
        .unwrap();
    std::os::unix::fs::symlink(&long, files.path().join("soft")).unwrap();
    let holes = std::fs::File::create(files.path().join("holes")).unwrap();
    holes.set_len(64 << 20).unwrap();
    for at in [0, 5_000_000, 40_000_000] {
        holes.write_all_at(&vec![b'd'; 5_000], at).unwrap();
    }
    for form in [
        &["--format=gnu", "-S"][..],
        &["--format=posix", "-S"],
        &["--format=posix", "-S", "--sparse-version=0.1"],
        &["--format=posix", "-S", "--sparse-version=0.0"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let layer = archived(files.path(), form);
        assert!(layer.len() < 1 << 20, "{form:?} has no holes");
        let seen = Seen::of(dir.path(), &[layer]).await;
        assert_eq!(seen.names("").len(), 4, "{form:?}: {:?}", seen.names(""));
        let read = |path: PathBuf| std::fs::read(path).unwrap();
        let is_same = read(files.path().join("holes")) == read(seen.root.join("holes"));
        assert!(is_same, "{form:?}");
        assert!(seen.meta("holes").blocks() < 2_048, "{form:?}: {:?}", seen.meta("holes"));
        let leaf = long.join("leaf");
        assert_eq!(seen.text(leaf.to_str().unwrap()), "leaf", "{form:?}");
        let inode = |name: &Path| seen.meta(name.to_str().unwrap()).ino();
        assert_eq!(inode(&leaf), inode(Path::new("zz-hard")), "{form:?}");
        assert_eq!(std::fs::read_link(seen.root.join("soft")).unwrap(), long, "{form:?}");
        let exported = dir.path().join("out.tar");
        seen.images.export_file(&["layers:1".to_owned()], &exported).await.unwrap();
    }
}
