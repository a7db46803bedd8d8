//! Volumes that an image declares: directories of each container, filled with what the image
//! has there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::Runtime;
use runtime::cri::*;
use runtime::images::Registries;
use serde_json::json;

use crate::world::{self, World, archive, busybox_layer, oci_layout_with};

pub const IMAGE: &str = "docker.io/library/keeping:test";

/// What a container of the image does: tells what it finds, and where it can write.
pub const LOOK: &str = "cd /data; busybox stat -c '%n %a %u:%g %h %F' . deep deep/er file hard \
     late link pipe script; cat file late deep/er/below; ls; busybox stat -c '%a %u:%g %Y' \
     /var/run/here /new; cat /covered/mine; for at in /data /new /run/here /etc; do \
     touch $at/own && echo wrote $at; done 2>&1";

/// What [`LOOK`] tells on a root file system that is only read.
pub const FOUND: &str = "\
. 750 1001:1002 3 directory
deep 711 5:6 3 directory
deep/er 755 0:0 2 directory
file 640 1001:1002 2 regular file
hard 640 1001:1002 2 regular file
late 644 0:0 1 regular file
link 777 0:0 1 symbolic link
pipe 600 0:0 1 fifo
script 6755 3:4 1 regular file
kept
late
below
deep
file
hard
late
link
pipe
script
700 7:7 1700000000
NEW
of the pod
wrote /data
wrote /new
wrote /run/here
touch: /etc/own: Read-only file system";

/// The directory that the image does not have belongs to root, and is of now.
pub fn told(log: &str) -> String {
    let lines = log.lines().map(|line| match line.strip_prefix("755 0:0 ") {
        Some(_) => "NEW",
        None => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Name, kind, mode, owner and group, content or goal.
type Entry<'a> = (&'a str, tar::EntryType, u32, (u64, u64), &'a str);

fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, mode, (uid, gid), content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_mtime(1_700_000_000);
        header.set_uid(*uid);
        header.set_gid(*gid);
        header.set_size(0);
        match kind {
            tar::EntryType::Symlink | tar::EntryType::Link => {
                builder.append_link(&mut header, name, content).unwrap();
            }
            _ => {
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, name, content.as_bytes()).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

/// An image of three layers, the last of which hides a file of the one below.
pub fn image() -> Vec<u8> {
    use tar::EntryType::{Directory, Fifo, Link, Regular, Symlink};
    let (root, web) = ((0, 0), (1001, 1002));
    let kept = layer(&[
        ("data/", Directory, 0o750, web, ""),
        ("data/file", Regular, 0o640, web, "kept\n"),
        ("data/hard", Link, 0o640, web, "data/file"),
        ("data/link", Symlink, 0o777, root, "/etc/passwd"),
        ("data/pipe", Fifo, 0o600, root, ""),
        ("data/script", Regular, 0o6755, (3, 4), "#!/bin/sh\n"),
        ("data/gone", Regular, 0o644, root, "gone\n"),
        ("data/deep/", Directory, 0o711, (5, 6), ""),
        ("data/deep/er/", Directory, 0o755, root, ""),
        ("data/deep/er/below", Regular, 0o644, root, "below\n"),
        ("run/", Directory, 0o755, root, ""),
        ("run/here/", Directory, 0o700, (7, 7), ""),
        ("var/", Directory, 0o755, root, ""),
        ("var/run", Symlink, 0o777, root, "../run"),
        ("covered/", Directory, 0o755, root, ""),
        ("covered/mine", Regular, 0o644, root, "of the image\n"),
    ]);
    let above = layer(&[
        ("data/.wh.gone", Regular, 0o644, root, ""),
        ("data/late", Regular, 0o644, root, "late\n"),
    ]);
    let volumes = json!({"/data": {}, "/new/": {}, "/var/run/here": {}, "/covered": {}});
    let config = json!({"Cmd": ["sh"], "Volumes": volumes});
    archive(&oci_layout_with(&[busybox_layer(), kept, above], IMAGE, &config))
}

/// A directory of the pod for `/covered`.
pub fn cover(at: &Path) -> Mount {
    std::fs::create_dir_all(at).unwrap();
    std::fs::write(at.join("mine"), "of the pod\n").unwrap();
    Mount { container_path: "/covered".into(), host_path: at.into(), ..Mount::default() }
}

impl World {
    async fn keeping() -> Self {
        let world = Self::new().await;
        world.import(&image()).await;
        world
    }

    async fn import(&self, archive: &[u8]) {
        let path = self.dir.path().join("image.tar");
        std::fs::write(&path, archive).unwrap();
        self.runtime.images().import_file(&path).await.unwrap();
    }

    fn keeper(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            image: IMAGE.into(),
            mounts: vec![cover(&self.dir.path().join("covered"))],
            ..self.container(name, script)
        }
    }

    fn looker(&self, name: &str) -> ContainerConfig {
        let mut config = self.keeper(name, LOOK);
        config.security.readonly_rootfs = true;
        config
    }

    fn containers_on_disk(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir(self.dir.path().join("state/containers")).unwrap();
        all.map(|entry| entry.unwrap().path()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_users_and_one_of_a_program_own_their_volumes_as_the_image_says() {
    let world = World::keeping().await;
    let users = Some(UserNamespace { host_id: 1 << 20, length: 1 << 16 });
    let apart = PodSandboxConfig { users, ..world.sandbox_config() };
    let sandbox = world.runtime.run_pod_sandbox(apart.clone()).await.unwrap();
    let made = world.runtime.create_container(&sandbox, world.looker("users"), &apart).await;
    let id = made.unwrap();
    world.runtime.start_container(&id).await.unwrap();
    world.ended(&id).await;
    let lines: Vec<String> = world.log("users").into_iter().map(|it| it.1).collect();
    assert_eq!(told(&lines.join("\n")), FOUND);

    for handler in ["runc", "crun"] {
        let config = PodSandboxConfig { runtime_handler: handler.into(), ..world.sandbox_config() };
        let sandbox = world.runtime.run_pod_sandbox(config).await.unwrap();
        let (_, log) = world.output(&sandbox, world.looker(handler)).await;
        assert_eq!(told(&log), FOUND, "{handler}");
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_a_volume_counts_survives_the_server_and_goes_with_the_container() {
    let mut world = World::keeping().await;
    let sandbox = world.sandbox().await;
    let query = StatsQuery { with_disk: true, ..StatsQuery::default() };
    let id = world.start(&sandbox, world.keeper("a", "exec sleep 600")).await;
    let used = async |world: &World| {
        let all = world.runtime.pod_sandbox_stats(&query).await.unwrap();
        all[0].containers[0].writable_layer.unwrap()
    };
    let before = used(&world).await;
    world
        .inside(&id, "dd if=/dev/zero of=/data/much bs=1048576 count=3; touch /new/a /new/b")
        .await;
    let after = used(&world).await;
    assert!(after.bytes - before.bytes >= 3 << 20, "{before:?} {after:?}");
    assert_eq!(after.inodes - before.inodes, 3);
    // None of it is in the writable layer, and the mounts are the container's alone.
    let [dir] = &world.containers_on_disk()[..] else { panic!("one container") };
    assert!(!dir.join("upper/data/much").exists() && dir.join("volumes").is_dir());
    assert!(!sys::mount::mounts_below(dir).unwrap().iter().any(|it| it.starts_with(dir)));

    // The server is another one; the container is not.
    let World { dir, runtime, cgroup } = world;
    drop(runtime);
    let config = world::config(dir.path(), Registries::default());
    let runtime: Arc<Runtime> = Runtime::open(config).await.unwrap();
    world = World { dir, runtime, cgroup };
    assert_eq!(used(&world).await.bytes, after.bytes);
    assert_eq!(world.inside(&id, "ls /new").await, "a\nb\n");
    // Another container of the image has its own.
    let (_, log) = world.output(&sandbox, world.keeper("b", "ls /new /data/much 2>&1")).await;
    assert!(log.contains("/data/much: No such file"), "{log}");
    assert!(!log.contains("\na\n"), "{log}");
    world.runtime.remove_container(&id).await.unwrap();
    assert_eq!(world.containers_on_disk(), Vec::<PathBuf>::new());
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_cannot_be_made_is_said_and_leaves_nothing() {
    let world = World::keeping().await;
    let sandbox = world.sandbox().await;
    let pod = world.sandbox_config();
    for (path, why) in [
        ("/etc/passwd", "volume \"/etc/passwd\" of the image: not a directory"),
        ("/", "the image declares a volume at \"/\""),
    ] {
        let config = json!({"Cmd": ["sh"], "Volumes": {path: {}}});
        let name = "docker.io/library/broken:test";
        world.import(&archive(&oci_layout_with(&[busybox_layer()], name, &config))).await;
        let config = ContainerConfig { image: name.into(), ..world.container("a", "true") };
        let err = world.runtime.create_container(&sandbox, config, &pod).await.unwrap_err();
        assert!(err.message.contains(why), "{err}");
        assert_eq!(world.containers_on_disk(), Vec::<PathBuf>::new());
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_an_older_version_stored_has_its_volumes() {
    let world = World::keeping().await;
    let images = world.dir.path().join("images/images");
    for entry in std::fs::read_dir(&images).unwrap() {
        let path = entry.unwrap().path();
        let mut image: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        image["config"].as_object_mut().unwrap().remove("volumes").unwrap();
        std::fs::write(&path, image.to_string()).unwrap();
    }
    let World { dir, runtime, cgroup } = world;
    drop(runtime);
    let config = world::config(dir.path(), Registries::default());
    let world = World { runtime: Runtime::open(config).await.unwrap(), dir, cgroup };
    let sandbox = world.sandbox().await;
    let (_, log) = world.output(&sandbox, world.looker("a")).await;
    assert_eq!(told(&log), FOUND);
    world.finish().await;
}
