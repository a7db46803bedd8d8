//! What an earlier process left in the directories of pods, counted: volumes, and those of them
//! that nobody can tell any more what they are.

use std::path::{Path, PathBuf};

use super::csi;

/// Makers of volumes that have a directory, as the directory has their name.
const MAKERS: [&str; 8] = [
    "kubernetes.io~configmap",
    "kubernetes.io~downward-api",
    "kubernetes.io~empty-dir",
    "kubernetes.io~iscsi",
    "kubernetes.io~local-volume",
    "kubernetes.io~nfs",
    "kubernetes.io~projected",
    "kubernetes.io~secret",
];
const DRIVERS: &str = "kubernetes.io~csi";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    pub all: u64,
    pub unreadable: u64,
}

fn children(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn is_known(maker: &str, volume: &Path, is_block: bool) -> bool {
    // Of a device the link says it all; a driver's volume has its record beside it.
    MAKERS.contains(&maker) || maker == DRIVERS && (is_block || csi::is_recorded(volume))
}

/// `pods` holds the directories of pods.
pub fn count(pods: &Path) -> Found {
    let mut out = Found::default();
    for pod in children(pods) {
        for (kind, is_block) in [("volumes", false), ("volumeDevices", true)] {
            for maker in children(&pod.join(kind)) {
                let name = maker.file_name().unwrap_or_default().to_string_lossy().into_owned();
                for volume in children(&maker) {
                    out.all += 1;
                    out.unreadable += u64::from(!is_known(&name, &volume, is_block));
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_of_an_earlier_process_are_counted_and_garbage_is_told_apart() {
        let pods = tempfile::tempdir().unwrap();
        assert_eq!(count(pods.path()), Found::default());
        assert_eq!(count(&pods.path().join("none")), Found::default());
        let volumes = pods.path().join("u1/volumes");
        for dir in ["kubernetes.io~empty-dir/a", "kubernetes.io~csi/torn", "example.org~odd/b"] {
            std::fs::create_dir_all(volumes.join(dir)).unwrap();
        }
        std::fs::write(volumes.join("kubernetes.io~csi/torn/vol_data.json"), "{").unwrap();
        std::fs::create_dir_all(pods.path().join("u2/volumeDevices/kubernetes.io~iscsi/c"))
            .unwrap();
        assert_eq!(count(pods.path()), Found { all: 4, unreadable: 2 });
    }
}
