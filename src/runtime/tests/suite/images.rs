//! Images from archives and from a real registry, the hostile and the broken included.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::registry::{Registry, free_port};
use crate::world::{World, archive, busybox_archive, busybox_layer, oci_layout, tar_of};
use runtime::cri::{AuthConfig, ErrorKind, ImageService, ImageTree, Mount, RuntimeService};
use runtime::images::inbox::Inbox;
use runtime::images::prune::prune;
use runtime::images::{Images, Registries};

async fn images(dir: &Path) -> Images {
    Images::open(&dir.join("images"), Registries::default()).await.unwrap()
}

pub fn names_in(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn archives_are_imported_found_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let plain = busybox_archive();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&plain).unwrap();
    let inbox = dir.path().join("inbox");
    std::fs::create_dir(&inbox).unwrap();
    std::fs::write(inbox.join("a.tar.gz"), gz.finish().unwrap()).unwrap();
    std::fs::write(inbox.join("b.tar.zst"), zstd::encode_all(&plain[..], 1).unwrap()).unwrap();
    std::fs::write(inbox.join("c.tar"), &plain[..plain.len() / 2]).unwrap();
    std::fs::write(inbox.join("readme.txt"), "not an archive").unwrap();
    let images = Arc::new(images(dir.path()).await);
    let mut looked = Inbox::new(images.clone(), inbox);
    let outcomes = looked.look().await.unwrap();
    assert_eq!(outcomes.len(), 3);
    assert_eq!(looked.look().await.unwrap().len(), 0, "nothing has changed");
    let id = outcomes[0].1.as_ref().unwrap()[0].clone();
    assert_eq!(outcomes[1].1.as_ref().unwrap()[0], id);
    let err = outcomes[2].1.as_ref().unwrap_err();
    assert_eq!(err.kind, ErrorKind::ImageInvalid, "{err}");
    for name in ["busybox:test", "docker.io/library/busybox:test", &id, &id[7..19]] {
        assert!(images.image_status(name).await.unwrap().is_some(), "{name}");
    }
    assert!(images.image_status("busybox").await.unwrap().is_none());
    assert_eq!(images.list_images().await.unwrap().len(), 1);
    drop((looked, images));
    let images = self::images(dir.path()).await;
    assert!(images.image_status(&id).await.unwrap().is_some(), "it is there after a restart");
    images.remove_image("busybox:test").await.unwrap();
    for below in ["layers", "images", "configs", "tmp", "downloads"] {
        let left = names_in(&dir.path().join("images").join(below));
        assert!(left.is_empty(), "{below}: {left:?}");
    }
}

#[tokio::test]
async fn docker_archives_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    let layer = busybox_layer();
    let layout = oci_layout(std::slice::from_ref(&layer), "x:1");
    let config = layout.values().find(|v| v.starts_with(b"{\"architecture")).unwrap().clone();
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    files.insert("c.json".into(), config);
    files.insert("l/layer.tar".into(), layer);
    let manifest = br#"[{"Config":"c.json","RepoTags":["bb:old","elsewhere.example/bb:too"],
                         "Layers":["l/layer.tar"]}]"#;
    files.insert("manifest.json".into(), manifest.to_vec());
    let path = dir.path().join("docker.tar");
    std::fs::write(&path, archive(&files)).unwrap();
    let images = images(dir.path()).await;
    images.import_file(&path).await.unwrap();
    let id = images.image_status("bb:old").await.unwrap().unwrap().id;
    let other = images.image_status("elsewhere.example/bb:too").await.unwrap().unwrap();
    assert_eq!((other.id.as_str(), other.repo_tags.len()), (id.as_str(), 2));
    // As CRI has it: one name is enough, and all of them are gone with the image.
    images.remove_image("bb:old").await.unwrap();
    for name in ["bb:old", "elsewhere.example/bb:too", &id] {
        assert!(images.image_status(name).await.unwrap().is_none(), "{name}");
    }
}

/// A tar entry whose name the tar library would not write.
pub fn raw_entry(name: &str, kind: tar::EntryType, goal: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..goal.len()].copy_from_slice(goal.as_bytes());
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().div_ceil(512) * 512, 0);
    bytes
}

#[tokio::test]
async fn hostile_layers_stay_inside() {
    let dir = tempfile::tempdir().unwrap();
    let images = images(dir.path()).await;
    let secret = dir.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    let outside = secret.to_str().unwrap();
    let end = [0u8; 1024];
    let file = tar::EntryType::Regular;
    let refused: [(&str, Vec<u8>); 3] = [
        ("climbs", raw_entry("../../../escape", file, "", b"x")),
        ("climbs inside", raw_entry("a/../../escape", file, "", b"x")),
        ("hard link", raw_entry("h", tar::EntryType::Link, "../../../etc/passwd", b"")),
    ];
    for (what, mut layer) in refused {
        layer.extend(end);
        let path = dir.path().join("bad.tar");
        std::fs::write(&path, archive(&oci_layout(&[layer], "bad:1"))).unwrap();
        let err = images.import_file(&path).await.unwrap_err();
        assert_eq!(err.kind, ErrorKind::ImageInvalid, "{what}: {err}");
        assert!(names_in(&dir.path().join("images/layers")).is_empty(), "{what}");
        assert!(names_in(&dir.path().join("images/tmp")).is_empty(), "{what}");
    }
    // Through links it is followed as in the container: inside.
    let mut layer = raw_entry("way", tar::EntryType::Symlink, outside, b"");
    layer.extend(raw_entry("way/file", file, "", b"x"));
    layer.extend(raw_entry("/absolute", file, "", b"x"));
    layer.extend(end);
    let path = dir.path().join("links.tar");
    std::fs::write(&path, archive(&oci_layout(&[layer], "links:1"))).unwrap();
    let _ = images.import_file(&path).await;
    assert!(names_in(&secret).is_empty(), "nothing is written outside");
    assert!(!Path::new("/absolute").exists());
}

#[tokio::test]
async fn whiteouts_hide_what_is_below() {
    let dir = tempfile::tempdir().unwrap();
    let images = images(dir.path()).await;
    let upper = tar_of(&[
        ("etc/", 0o755, b""),
        ("etc/.wh.passwd", 0o644, b""),
        ("tmp/", 0o1777, b""),
        ("tmp/.wh..wh..opq", 0o644, b""),
        ("root/deep/file", 0o644, b"x"),
    ]);
    let path = dir.path().join("w.tar");
    std::fs::write(&path, archive(&oci_layout(&[busybox_layer(), upper], "w:1"))).unwrap();
    images.import_file(&path).await.unwrap();
    let image = images.find("w:1").unwrap();
    let layer = images.layers_dir().join(&image.layers[1]);
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let hidden = std::fs::metadata(layer.join("etc/passwd")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    let kept = std::fs::metadata(layer.join("root")).unwrap();
    assert_eq!(kept.mode() & 0o7777, 0o700, "as in the layer below");
}

#[tokio::test]
async fn digests_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let images = images(dir.path()).await;
    let mut files = oci_layout(&[busybox_layer()], "x:1");
    let (_, blob) = files
        .iter_mut()
        .filter(|(name, _)| name.starts_with("blobs/"))
        .max_by_key(|(_, bytes)| bytes.len())
        .unwrap();
    let middle = blob.len() / 2;
    blob[middle] ^= 1;
    let path = dir.path().join("x.tar");
    std::fs::write(&path, archive(&files)).unwrap();
    let err = images.import_file(&path).await.unwrap_err();
    assert!(err.message.contains("has digest"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registry_is_pulled_from() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(
        dir.path(),
        free_port(),
        "team/busybox",
        oci_layout(&[busybox_layer()], "x:1"),
        None,
    );
    let images = images(dir.path()).await;
    let name = format!("127.0.0.1:{}/team/busybox:v1", registry.port);
    let id = images.pull_image(&name, &[]).await.unwrap();
    let image = images.image_status(&name).await.unwrap().unwrap();
    assert_eq!(image.id, id);
    assert_eq!(image.repo_tags, [name.as_str()]);
    assert!(image.repo_digests[0].contains("/team/busybox@sha256:"));
    let by_digest = image.repo_digests[0].clone();
    assert_eq!(images.pull_image(&by_digest, &[]).await.unwrap(), id);
    let wrong = AuthConfig { username: "u".into(), password: "p".into(), ..AuthConfig::default() };
    let missing = format!("127.0.0.1:{}/team/busybox:v2", registry.port);
    let err = images.pull_image(&missing, &[wrong]).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::ImagePull);
    assert!(err.message.contains("MANIFEST_UNKNOWN"), "{err}");
    assert!(names_in(&dir.path().join("images/tmp")).is_empty());
    let port = registry.port;
    drop(registry);
    let gone = format!("127.0.0.1:{port}/team/busybox:v3");
    let err = images.pull_image(&gone, &[]).await.unwrap_err();
    assert!(err.message.contains("onnection refused"), "{err}");
}

/// Files that containerd reads, and what a layer may hold that a directory shows otherwise.
fn two_images(dir: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    let mut odd = raw_entry("etc/", tar::EntryType::Directory, "", b"");
    odd.extend(raw_entry("etc/.wh.passwd", tar::EntryType::Regular, "", b""));
    odd.extend(raw_entry("etc/.wh.group", tar::EntryType::Regular, "", b"words"));
    odd.extend(raw_entry("etc/link", tar::EntryType::Symlink, "/etc/hosts", b""));
    odd.extend(raw_entry("etc/hosts", tar::EntryType::Regular, "", &vec![b'x'; 100_000]));
    odd.extend(raw_entry("etc/hard", tar::EntryType::Link, "etc/hosts", b""));
    // The same path again: with other content, with as much, and with what is no file.
    let file = |name: &str, bytes: &[u8]| raw_entry(name, tar::EntryType::Regular, "", bytes);
    odd.extend(file("twice", b"the first of three"));
    odd.extend(raw_entry("twice-too", tar::EntryType::Link, "twice", b""));
    odd.extend(file("twice", b"the second of them"));
    odd.extend(file("twice", &vec![b'3'; 70_000]));
    odd.extend(file("was/a/folder", b"of files"));
    odd.extend(file("was/another", b""));
    odd.extend(file("was", b"now a file"));
    odd.extend(file("goes", b"then a link"));
    odd.extend(raw_entry("goes", tar::EntryType::Symlink, "twice", b""));
    odd.extend([0u8; 10_240]);
    let (one, two) = (dir.join("one.tar"), dir.join("two.tar"));
    std::fs::write(&one, busybox_archive()).unwrap();
    std::fs::write(&two, archive(&oci_layout(&[busybox_layer(), odd], "odd:1"))).unwrap();
    (one, two)
}

#[tokio::test]
async fn an_export_is_imported_as_the_same_images() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = two_images(dir.path());
    let images = images(dir.path()).await;
    let first = images.import_file(&one).await.unwrap()[0].clone();
    let second = images.import_file(&two).await.unwrap()[0].clone();
    for name in ["out.tar", "out.tar.gz", "out.tar.zst"] {
        let out = dir.path().join(name);
        images.export_file(&["busybox:test".into(), second.clone()], &out).await.unwrap();
        let other = tempfile::tempdir().unwrap();
        let elsewhere = self::images(other.path()).await;
        let ids = elsewhere.import_file(&out).await.unwrap();
        assert_eq!(ids.len(), 2, "{name}");
        for (tag, id) in [("busybox:test", &first), ("odd:1", &second)] {
            let found = elsewhere.image_status(tag).await.unwrap().unwrap();
            assert_eq!(&found.id, id, "{name}");
        }
    }
    // The last of each path is what the layer has.
    let layer = images.layers_dir().join(&images.find(&second).unwrap().layers[1]);
    let text = |name: &str| std::fs::read_to_string(layer.join(name)).unwrap();
    assert_eq!(text("twice"), "3".repeat(70_000));
    assert_eq!(
        (text("twice-too").as_str(), text("was").as_str()),
        ("the first of three", "now a file")
    );
    assert!(layer.join("goes").is_symlink());
    let out = dir.path().join("none.tar");
    let err = images.export_file(&["nothing:1".into()], &out).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::ImageNotPresent);
    // A layer that was changed on disk is not passed off as what came.
    let layer = images.find(&second).unwrap().layers[1].clone();
    std::fs::write(images.layers_dir().join(layer).join("etc/hosts"), vec![b'y'; 100_000]).unwrap();
    let err = images.export_file(&[second], &out).await.unwrap_err();
    assert!(err.message.contains("is not on disk as it came"), "{err}");
    let left = names_in(dir.path());
    assert!(!left.iter().any(|name| name.starts_with("none.tar")), "{left:?}");
    // With the images goes all that was kept beside their layers.
    images.remove_image("busybox:test").await.unwrap();
    images.remove_image("odd:1").await.unwrap();
    assert_eq!(names_in(&images.layers_dir()), Vec::<String>::new());
}

/// Debian's containerd in a directory of its own.
struct Containerd {
    child: Child,
    socket: std::path::PathBuf,
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Containerd {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("c.sock");
        let config = dir.join("config.toml");
        let text = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n  address = \"{1}\"\n[ttrpc]\n  address = \"{1}.ttrpc\"\n",
            dir.display(),
            socket.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("/usr/bin/containerd")
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("containerd is installed");
        let containerd = Self { child, socket };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !containerd.ctr(&["version"]).0 {
            assert!(Instant::now() < deadline, "containerd does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        containerd
    }

    fn ctr(&self, words: &[&str]) -> (bool, String) {
        let out = Command::new("/usr/bin/ctr")
            .arg("--address")
            .arg(&self.socket)
            .args(words)
            .output()
            .expect("ctr is installed");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        (out.status.success(), text + &String::from_utf8_lossy(&out.stderr))
    }
}

#[tokio::test]
async fn containerd_reads_an_export() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = two_images(dir.path());
    let images = images(dir.path()).await;
    images.import_file(&one).await.unwrap();
    images.import_file(&two).await.unwrap();
    let out = dir.path().join("out.tar");
    images.export_file(&["busybox:test".into(), "odd:1".into()], &out).await.unwrap();
    let place = tempfile::Builder::new().prefix("cd").tempdir_in("/tmp").unwrap();
    let containerd = Containerd::start(place.path());
    let (is_good, said) =
        containerd.ctr(&["image", "import", "--no-unpack", out.to_str().unwrap()]);
    assert!(is_good, "{said}");
    let (_, listed) = containerd.ctr(&["image", "list", "-q"]);
    for name in ["docker.io/library/busybox:test", "docker.io/library/odd:1"] {
        assert!(listed.lines().any(|line| line == name), "{listed}");
    }
    let (_, checked) = containerd.ctr(&["image", "check"]);
    assert_eq!(checked.matches("complete").count(), 2, "{checked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_takes_what_no_container_runs_or_mounts() {
    let world = World::new().await;
    let runtime = &world.runtime;
    for (name, bytes) in [("mounted:1", 4 << 20), ("unused:1", 8 << 20)] {
        // As large on the disk as in the archive, and no layer of another image.
        let content = vec![name.as_bytes()[0]; bytes];
        let layer = tar_of(&[("data/", 0o755, b""), ("data/file", 0o644, &content)]);
        let path = world.dir.path().join("more.tar");
        std::fs::write(&path, archive(&oci_layout(&[layer], name))).unwrap();
        runtime.images().import_file(&path).await.unwrap();
    }
    let sandbox = world.sandbox().await;
    let mut config = world.container("main", "exec sleep 600");
    let mounted = runtime.image_status("mounted:1").await.unwrap().unwrap();
    config.mounts = vec![Mount {
        container_path: "/image".into(),
        readonly: true,
        image: Some(ImageTree { image: mounted.id, sub_path: "data".into() }),
        ..Mount::default()
    }];
    let id = world.start(&sandbox, config).await;
    let run = async || prune(&**runtime, &**runtime, &**runtime.images()).await.unwrap();
    let pruned = run().await;
    let names: Vec<_> = pruned.images.iter().flat_map(|it| &it.names).collect();
    assert_eq!(names, ["docker.io/library/unused:1"]);
    assert!(pruned.bytes >= 8 << 20, "{pruned:?}");
    assert_eq!(runtime.list_images().await.unwrap().len(), 2);
    // An ended container may start again.
    runtime.stop_container(&id, 0).await.unwrap();
    assert!(run().await.images.is_empty());
    runtime.remove_container(&id).await.unwrap();
    let pruned = run().await;
    assert_eq!(pruned.images.len(), 2, "{pruned:?}");
    assert!(pruned.bytes >= 4 << 20, "{pruned:?}");
    assert!(runtime.list_images().await.unwrap().is_empty());
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_come_are_imported_and_pinned_for_as_long_as_they_are_there() {
    let world = World::new().await;
    let runtime = &world.runtime;
    // The directory is not there yet.
    let inbox = world.dir.path().join("inbox");
    let (trigger, drain) = base::drain::channel();
    let follows = Inbox::new(runtime.images().clone(), inbox.clone()).follow(drain);
    let follows = tokio::spawn(follows);
    let file = |name: &str| {
        let layer = tar_of(&[("data", 0o644, name.as_bytes())]);
        let bytes = archive(&oci_layout(&[layer], name));
        // Whole at once, as `mv` brings it.
        let (beside, path) = (world.dir.path().join("beside"), inbox.join(format!("{name}.tar")));
        std::fs::write(&beside, bytes).unwrap();
        std::fs::rename(beside, &path).unwrap();
        path
    };
    let until = async |name: &str, pinned: Option<bool>| {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let is = runtime.image_status(name).await.unwrap().map(|it| it.pinned);
            if is == pinned {
                return;
            }
            assert!(Instant::now() < deadline, "{name} is {is:?}, not {pinned:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    while !inbox.is_dir() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let first = file("first:1");
    until("first:1", Some(true)).await;
    // Written piece by piece: what is torn is looked at again when it is whole.
    let second = tar_of(&[("data", 0o644, b"second".as_slice())]);
    let second = archive(&oci_layout(&[second], "second:1"));
    let mut slow = std::fs::File::create(inbox.join("second.tar")).unwrap();
    for part in second.chunks(second.len() / 2 + 1) {
        slow.write_all(part).unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    drop(slow);
    until("second:1", Some(true)).await;
    // Pinned ones are not pruned; the image of this world came otherwise.
    let pruned = prune(&**runtime, &**runtime, &**runtime.images()).await.unwrap();
    let names: Vec<_> = pruned.images.iter().flat_map(|it| it.names.clone()).collect();
    assert_eq!(names, [crate::world::IMAGE]);
    std::fs::remove_file(first).unwrap();
    until("first:1", Some(false)).await;
    // The directory goes, and comes again.
    std::fs::remove_dir_all(&inbox).unwrap();
    until("second:1", Some(false)).await;
    while !inbox.is_dir() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    file("third:1");
    until("third:1", Some(true)).await;
    trigger.drain();
    tokio::time::timeout(Duration::from_secs(5), follows).await.unwrap().unwrap();
    world.finish().await;
}
