//! Images from archives and from a real registry, the hostile and the broken included.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::world::{archive, busybox_archive, busybox_layer, oci_layout, tar_of};
use runtime::cri::{AuthConfig, ErrorKind, ImageService};
use runtime::images::{Images, Registries};

async fn images(dir: &Path) -> Images {
    Images::open(&dir.join("images"), Registries::default()).await.unwrap()
}

fn names_in(path: &Path) -> Vec<String> {
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
    let images = images(dir.path()).await;
    let outcomes = images.import_dir(&inbox).await.unwrap();
    assert_eq!(outcomes.len(), 3);
    let id = outcomes[0].1.as_ref().unwrap()[0].clone();
    assert_eq!(outcomes[1].1.as_ref().unwrap()[0], id);
    let err = outcomes[2].1.as_ref().unwrap_err();
    assert_eq!(err.kind, ErrorKind::ImageInvalid, "{err}");
    for name in ["busybox:test", "docker.io/library/busybox:test", &id, &id[7..19]] {
        assert!(images.image_status(name).await.unwrap().is_some(), "{name}");
    }
    assert!(images.image_status("busybox").await.unwrap().is_none());
    assert_eq!(images.list_images().await.unwrap().len(), 1);
    drop(images);
    let images = self::images(dir.path()).await;
    assert!(images.image_status(&id).await.unwrap().is_some(), "it is there after a restart");
    images.remove_image("busybox:test").await.unwrap();
    for below in ["layers", "images", "tmp"] {
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
    let manifest = br#"[{"Config":"c.json","RepoTags":["bb:old"],"Layers":["l/layer.tar"]}]"#;
    files.insert("manifest.json".into(), manifest.to_vec());
    let path = dir.path().join("docker.tar");
    std::fs::write(&path, archive(&files)).unwrap();
    let images = images(dir.path()).await;
    images.import_file(&path).await.unwrap();
    assert!(images.image_status("bb:old").await.unwrap().is_some());
}

/// A tar entry whose name the tar library would not write.
fn raw_entry(name: &str, kind: tar::EntryType, goal: &str, content: &[u8]) -> Vec<u8> {
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

struct Registry {
    child: Child,
    port: u16,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Debian's docker-registry, filled by writing its storage.
fn registry(dir: &Path, files: &BTreeMap<String, Vec<u8>>) -> Registry {
    let root = dir.join("registry");
    let base = root.join("docker/registry/v2");
    let put = |path: std::path::PathBuf, bytes: &[u8]| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let repository = base.join("repositories/team/busybox");
    for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("blobs/")) {
        let digits = name.rsplit('/').next().unwrap();
        put(base.join(format!("blobs/sha256/{}/{digits}/data", &digits[..2])), bytes);
        let link = format!("sha256:{digits}");
        put(repository.join(format!("_layers/sha256/{digits}/link")), link.as_bytes());
        if bytes.starts_with(b"{\"schemaVersion") {
            put(
                repository.join(format!("_manifests/revisions/sha256/{digits}/link")),
                link.as_bytes(),
            );
            put(repository.join("_manifests/tags/v1/current/link"), link.as_bytes());
            put(
                repository.join(format!("_manifests/tags/v1/index/sha256/{digits}/link")),
                link.as_bytes(),
            );
        }
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = dir.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
        root.display()
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new("/usr/bin/docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry is installed");
    let registry = Registry { child, port };
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "the registry does not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    registry
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registry_is_pulled_from() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path(), &oci_layout(&[busybox_layer()], "x:1"));
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
