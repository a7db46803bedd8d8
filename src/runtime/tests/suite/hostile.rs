//! Layers that want out of their directory, that name devices of the node, or that are a
//! thousand times larger than they look.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::images::{names_in, raw_entry};
use crate::world::{World, archive, busybox_layer, home, oci_layout};
use runtime::cri::{ErrorKind, ImageService, ImageTree, Mount, RuntimeService};
use runtime::images::{Images, Registries};
use tar::EntryType;

const END: [u8; 1024] = [0; 1024];

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    raw_entry(name, EntryType::Regular, "", content)
}

fn link(name: &str, goal: &str) -> Vec<u8> {
    raw_entry(name, EntryType::Symlink, goal, b"")
}

fn hard_link(name: &str, goal: &str) -> Vec<u8> {
    raw_entry(name, EntryType::Link, goal, b"")
}

fn device(name: &str, (major, minor): (u32, u32)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::Block);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_device_major(major).unwrap();
    header.set_device_minor(minor).unwrap();
    header.set_mode(0o666);
    for set in [tar::Header::set_uid, tar::Header::set_gid, tar::Header::set_size] {
        set(&mut header, 0);
    }
    header.set_mtime(0);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// An entry that says more of the one after it: a long name, or extended attributes.
fn about(kind: EntryType, words: &[u8]) -> Vec<u8> {
    raw_entry("about", kind, "", words)
}

pub fn attribute(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while format!("{length}{rest}").len() != length {
        length += 1;
    }
    about(EntryType::XHeader, format!("{length}{rest}").as_bytes())
}

async fn open(dir: &Path) -> Images {
    Images::open(&dir.join("images"), Registries::default()).await.unwrap()
}

#[tokio::test]
async fn links_and_devices_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path()).await;
    let secret = dir.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    let kept = secret.join("kept");
    std::fs::write(&kept, "kept").unwrap();
    std::fs::set_permissions(&kept, PermissionsExt::from_mode(0o600)).unwrap();
    let inner = |path: &Path| path.to_str().unwrap().trim_start_matches('/').to_owned();
    let (out, kept_path) = (secret.to_str().unwrap(), kept.to_str().unwrap());
    let looks = || {
        let (file, at) = (std::fs::metadata(&kept).unwrap(), std::fs::metadata(&secret).unwrap());
        let read = std::fs::read_to_string(&kept).unwrap();
        (read, file.mode(), file.nlink(), file.mtime(), file.uid(), at.mode(), names_in(&secret))
    };
    let before = looks();
    let far = "../".repeat(40);
    let deep = "n".repeat(300);
    let through = inner(&secret);
    // What is refused says so; what is taken stays inside.
    let refused: Vec<(&str, Vec<Vec<u8>>)> = vec![
        (
            "a long name that climbs",
            vec![
                about(EntryType::GNULongName, format!("{far}{through}/new\0").as_bytes()),
                file("x", b"x"),
            ],
        ),
        (
            "a name of attributes that climbs",
            vec![attribute("path", &format!("{far}{through}/new")), file("x", b"x")],
        ),
        (
            "a hard link by attributes",
            vec![attribute("linkpath", &format!("{far}{through}/kept")), hard_link("h", "x")],
        ),
        ("a hard link through a link", vec![link("way", out), hard_link("h", "way/kept")]),
        ("links in a ring", vec![link("a", "b"), link("b", "a"), file("a/f", b"x")]),
        ("a file below a device", vec![device("disk", (8, 0)), file("disk/f", b"x")]),
        ("a file below a file", vec![file("f", b"x"), file("f/f", b"x")]),
        ("a link for a root", vec![link("./", out), file("f", b"x")]),
        (
            "a name without end",
            vec![about(EntryType::GNULongName, format!("{deep}\0").as_bytes()), file("x", b"x")],
        ),
        ("a whiteout of itself", vec![file(".wh..", b"")]),
        ("a whiteout of what is above", vec![file(".wh...", b"")]),
        ("a whiteout above", vec![file("../.wh.secret", b"")]),
        ("an unknown type", vec![raw_entry("x", EntryType::new(b'Q'), "", b"")]),
    ];
    let taken: Vec<(&str, Vec<Vec<u8>>)> = vec![
        (
            "links through links",
            vec![
                link("a", "/"),
                link("b", "a/../.."),
                link("c", &format!("b/{through}")),
                file("c/new", b"x"),
                file("c/kept", b"x"),
            ],
        ),
        ("links up", vec![link("up", ".."), file(&format!("up/up/{through}/kept"), b"x")]),
        ("a file over a link", vec![link("l", kept_path), file("l", b"x")]),
        (
            "a file over a hard link of a link",
            vec![link("l", kept_path), hard_link("h", "l"), file("h", b"x")],
        ),
        (
            "a directory over a link",
            vec![
                link("l", out),
                raw_entry("l", EntryType::Directory, "", b""),
                file("l/new", b"x"),
            ],
        ),
        (
            "whiteouts through a link",
            vec![link("way", out), file("way/.wh.kept", b""), file("way/.wh..wh..opq", b"")],
        ),
        (
            "attributes for a link's goal",
            vec![attribute("SCHILY.xattr.user.mine", "yes"), link("l", kept_path)],
        ),
        (
            "a pipe that nobody reads",
            vec![raw_entry("p", EntryType::Fifo, "", b""), hard_link("q", "p"), file("p", b"x")],
        ),
    ];
    let path = dir.path().join("layer.tar");
    let import = async |entries: Vec<Vec<u8>>| {
        let mut layer = entries.concat();
        layer.extend(END);
        std::fs::write(&path, archive(&oci_layout(&[layer], "odd:1"))).unwrap();
        images.import_file(&path).await
    };
    for (what, entries) in refused {
        let err = import(entries).await.expect_err(what);
        assert_eq!(err.kind, ErrorKind::ImageInvalid, "{what}: {err}");
        for below in ["layers", "tmp", "images"] {
            let left = names_in(&dir.path().join("images").join(below));
            assert!(left.is_empty(), "{what}: {left:?} in {below}");
        }
        assert_eq!(looks(), before, "{what}");
    }
    for (what, entries) in taken {
        import(entries).await.unwrap_or_else(|err| panic!("{what}: {err}"));
        assert_eq!(looks(), before, "{what}");
        images.remove_image("odd:1").await.unwrap();
    }
    // What steers the overlay is not an image's to say, and a device is only its node.
    import(vec![
        attribute("SCHILY.xattr.trusted.overlay.redirect", kept_path),
        raw_entry("d", EntryType::Directory, "", b""),
        device("disk", (8, 0)),
        hard_link("copy", "disk"),
        file("copy", b"x"),
    ])
    .await
    .unwrap();
    let image = images.find("odd:1").unwrap();
    let layer = images.layers_dir().join(&image.layers[0]);
    assert!(std::fs::metadata(layer.join("disk")).unwrap().file_type().is_block_device());
    assert_eq!(std::fs::read(layer.join("copy")).unwrap(), b"x");
    let mut value = [0_u8; 256];
    let redirect = rustix::fs::lgetxattr(layer.join("d"), "trusted.overlay.redirect", &mut value);
    assert!(redirect.is_err(), "{value:?}");
}

/// The disk that the directory lies on.
fn disk_below(path: &Path) -> (u32, u32) {
    let device = std::fs::metadata(path).unwrap().dev();
    (rustix::fs::major(device), rustix::fs::minor(device))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_in_an_image_is_none_that_may_be_opened() {
    let world = World::new().await;
    let disk = disk_below(world.dir.path());
    let mut layer = device("disk", disk);
    layer.extend(END);
    let path = world.dir.path().join("disk.tar");
    std::fs::write(&path, archive(&oci_layout(&[busybox_layer(), layer], "disk:1"))).unwrap();
    world.runtime.images().import_file(&path).await.unwrap();
    let sandbox = world.sandbox().await;
    let (major, minor) = disk;
    let script = format!(
        "mknod /tmp/disk b {major} {minor}; for disk in /disk /tmp/disk /image/disk; do \
         test -b $disk && echo is there; head -c 1 $disk || echo not read; \
         dd if=/dev/zero of=$disk bs=1 count=0 conv=notrunc || echo not written; done"
    );
    let mut config = world.container("main", &script);
    config.image = "disk:1".into();
    let image = world.runtime.image_status("disk:1").await.unwrap().unwrap();
    config.mounts = vec![Mount {
        container_path: "/image".into(),
        readonly: true,
        image: Some(ImageTree { image: image.id, sub_path: "".into() }),
        ..Mount::default()
    }];
    let (_, text) = world.output(&sandbox, config).await;
    for word in ["is there", "not read", "not written", "head: ", "dd: "] {
        assert_eq!(text.matches(word).count(), 3, "{word} in {text}");
    }
    assert_eq!(text.matches("Operation not permitted").count(), 4, "{text}");
    assert_eq!(text.matches("Permission denied").count(), 2, "{text}");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_places_are_something_else_is_alone_with_it() {
    let world = World::new().await;
    let secret = world.dir.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("kept"), "kept").unwrap();
    let out = secret.to_str().unwrap().to_owned();
    let kept = format!("{out}/kept");
    let fifo = |name: &str| raw_entry(name, EntryType::Fifo, "", b"");
    let huge = vec![b'x'; 24 << 20];
    let images: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("etc is a link to what is mounted", vec![link("etc", "/proc")]),
        ("etc is a link to the node", vec![link("etc", &out)]),
        ("etc is a file", vec![file("etc", b"x")]),
        ("proc is a link", vec![link("proc", "/etc")]),
        ("proc is a link to the node", vec![link("proc", &out)]),
        ("sys is a pipe", vec![fifo("sys")]),
        ("dev is a link to the node", vec![link("dev", &out)]),
        ("dev is a ring", vec![link("dev", "dev2"), link("dev2", "dev")]),
        ("users are a pipe", vec![fifo("etc/passwd"), fifo("etc/group")]),
        (
            "users are without end",
            vec![link("etc/passwd", "/dev/zero"), link("etc/group", "/dev/zero")],
        ),
        ("users are many", vec![file("etc/passwd", &huge), file("etc/group", &huge)]),
        ("users are the node's", vec![link("etc/passwd", &kept), link("etc/group", &kept)]),
        (
            "names are the node's",
            vec![
                link("etc/resolv.conf", &kept),
                link("etc/hostname", &kept),
                link("etc/hosts", &format!("{}{kept}", "../".repeat(20))),
            ],
        ),
        (
            "names are directories",
            vec![
                raw_entry("etc/resolv.conf", EntryType::Directory, "", b""),
                raw_entry("etc/hostname", EntryType::Directory, "", b""),
            ],
        ),
        ("volumes are links", vec![link("volume", &out), link("work", "/volume/new")]),
    ];
    let volume = world.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let sandbox = world.sandbox().await;
    let mut began_well = 0;
    for (n, (what, entries)) in images.into_iter().enumerate() {
        let mut layer = entries.concat();
        layer.extend(END);
        let path = world.dir.path().join("odd.tar");
        std::fs::write(&path, archive(&oci_layout(&[busybox_layer(), layer], "odd:1"))).unwrap();
        world
            .runtime
            .images()
            .import_file(&path)
            .await
            .unwrap_or_else(|err| panic!("{what}: {err}"));
        let mut config = world.container(&format!("odd{n}"), "echo x > /volume/made; exit 3");
        config.image = "odd:1".into();
        config.working_dir = "/work".into();
        if what.starts_with("users") {
            config.security.run_as_username = "web".into();
        }
        config.mounts = vec![Mount {
            host_path: volume.clone(),
            container_path: "/volume/deep".into(),
            ..Mount::default()
        }];
        let began = Instant::now();
        let runtime = &world.runtime;
        match runtime.create_container(&sandbox, config, &world.sandbox_config()).await {
            Ok(id) => {
                if runtime.start_container(&id).await.is_ok() {
                    began_well += 1;
                    world.ended(&id).await;
                }
                runtime.remove_container(&id).await.unwrap();
            }
            Err(err) => println!("{what}: {err}"),
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{what}: {:?}", began.elapsed());
        assert_eq!(names_in(&secret), ["kept"], "{what}");
        assert_eq!(std::fs::read_to_string(secret.join("kept")).unwrap(), "kept", "{what}");
        let (ended, _) =
            world.output(&sandbox, world.container(&format!("well{n}"), "exit 4")).await;
        assert_eq!(ended.exit_code, 4, "{what}");
    }
    assert!(began_well > 1, "{began_well}");
    world.finish().await;
}

/// The most memory that this process has had, in bytes.
fn memory_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A header that announces `size` bytes.
fn announced(name: &str, kind: EntryType, size: u64) -> Vec<u8> {
    let mut bytes = raw_entry(name, kind, "", b"");
    let header = tar::Header::from_byte_slice(&bytes);
    let mut header = header.clone();
    header.set_size(size);
    header.set_cksum();
    bytes.copy_from_slice(header.as_bytes());
    bytes
}

/// `head`, `zeros` bytes of nothing, `tail`; compressed.
fn bomb(head: &[u8], zeros: u64, tail: &[u8]) -> Vec<u8> {
    let mut out = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    out.write_all(head).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), zeros), &mut out).unwrap();
    out.write_all(tail).unwrap();
    out.finish().unwrap()
}

#[tokio::test]
async fn a_bomb_takes_neither_memory_nor_the_disk_nor_for_ever() {
    const GIB: u64 = 1 << 30;
    let dir = home();
    let at = dir.path().join("images");
    std::fs::create_dir(&at).unwrap();
    let disk = sys::mount::filesystem("tmpfs", "disk", &[("size", "64m")], 0).unwrap();
    sys::mount::attach(disk.as_fd(), sys::fs::open_path(&at).unwrap().as_fd()).unwrap();
    let images = open(dir.path()).await;
    let sparse = {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::GNUSparse);
        header.as_old_mut().name[..1].copy_from_slice(b"s");
        for set in [tar::Header::set_uid, tar::Header::set_gid, tar::Header::set_size] {
            set(&mut header, 0);
        }
        header.set_mode(0o644);
        header.set_mtime(0);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(1 << 40);
        gnu.sparse[0].set_offset(1 << 40);
        gnu.sparse[0].set_length(0);
        header.set_cksum();
        [header.as_bytes().as_slice(), &END].concat()
    };
    let many: Vec<u8> =
        (0..48).flat_map(|n| announced(&format!("f{n}"), EntryType::Regular, 0)).collect();
    let (invalid, full) = (ErrorKind::ImageInvalid, ErrorKind::NoSpace);
    let bombs: Vec<(&str, Vec<u8>, ErrorKind)> = vec![
        ("name", bomb(&announced("l", EntryType::GNULongName, GIB), GIB, &file("x", b"")), invalid),
        ("goal", bomb(&announced("l", EntryType::GNULongLink, GIB), GIB, &file("x", b"")), invalid),
        ("words", bomb(&announced("l", EntryType::XHeader, GIB), GIB, &file("x", b"")), invalid),
        ("directory", bomb(&announced("d", EntryType::Directory, GIB), GIB, &END), invalid),
        ("file", bomb(&announced("f", EntryType::Regular, GIB), GIB, &END), full),
        ("announced", bomb(&announced("f", EntryType::Regular, 1 << 50), 0, b""), full),
        ("sparse", sparse, full),
        ("end", bomb(&[many, END.to_vec()].concat(), GIB, b""), invalid),
    ];
    let memory = memory_peak();
    for (what, layer, kind) in bombs {
        assert!(layer.len() < 1 << 20, "{what}: {}", layer.len());
        let path = dir.path().join("bomb.tar");
        std::fs::write(&path, archive(&oci_layout(&[layer], "bomb:1"))).unwrap();
        let began = Instant::now();
        let err = images.import_file(&path).await.expect_err(what);
        let took = began.elapsed();
        println!("{what}: {took:?}, {} MiB: {err}", (memory_peak() - memory) >> 20);
        assert_eq!(err.kind, kind, "{what}: {err}");
        assert!(took < Duration::from_secs(40), "{what}: {took:?}");
        for below in ["layers", "tmp", "images"] {
            let left = names_in(&at.join(below));
            assert!(left.is_empty(), "{what}: {left:?} in {below}");
        }
    }
    let grown = memory_peak() - memory;
    assert!(grown < 64 << 20, "{} MiB", grown >> 20);
    // Many files that fit one by one and not together: others keep their part of the disk.
    let mebibyte = vec![1_u8; 1 << 20];
    let mut layer: Vec<u8> = Vec::new();
    for n in 0..70 {
        layer.extend(file(&format!("f{n}"), &mebibyte));
    }
    layer.extend(END);
    let packed = zstd::encode_all(&layer[..], 1).unwrap();
    let path = dir.path().join("full.tar");
    std::fs::write(&path, archive(&oci_layout(&[packed], "full:1"))).unwrap();
    std::fs::write(at.join("others"), &mebibyte).unwrap();
    let err = images.import_file(&path).await.unwrap_err();
    assert_eq!(err.kind, full, "{err}");
    assert!(err.message.contains("no space left on device"), "{err}");
    assert!(names_in(&at.join("tmp")).is_empty());
    drop(images);
    assert!(sys::mount::unmount_detach(&at).unwrap());
}
