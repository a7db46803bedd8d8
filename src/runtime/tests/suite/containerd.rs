//! The client of CRI against Debian's containerd and runc.

#[path = "../host/containerd.rs"]
mod host;

use std::path::PathBuf;

use crate::socket::{Target, check};
use crate::world::{IMAGE, archive, busybox_layer, home, oci_layout_of, pods_cgroup};
use host::{Containerd, PAUSE};

#[tokio::test(flavor = "multi_thread")]
async fn containerd_does_everything_that_the_built_in_runtime_does() {
    let dir = home();
    let images = [(IMAGE, &["sh"][..]), (PAUSE, &["/bin/sleep", "100000"])]
        .map(|(name, command)| archive(&oci_layout_of(&[busybox_layer()], name, command)));
    let [plain, pause] = images;
    let images = [plain, pause, crate::volumes::image()];
    let at = dir.path().to_path_buf();
    let starting = tokio::task::spawn_blocking(move || Containerd::start(&at, &images));
    let containerd = starting.await.unwrap();
    let (at, group) = (dir.path(), pods_cgroup(dir.path()));
    let target = Target::new(&containerd.socket(), at.join("logs"), group.clone(), false).await;
    check(&target).await;
    drop(target);
    containerd.wait_for_shims();
    assert_eq!(sys::mount::mounts_below(at).unwrap(), Vec::<PathBuf>::new());
    let pods = sys::cgroup::Hierarchy::detect().unwrap().group(&group);
    assert_eq!(pods.children(), Vec::<String>::new(), "a pod's cgroup is left");
}
