//! Devices of a pod's volumes below the pod's directory, as links, and the words for it.

use std::io;
use std::path::Path;

/// Has `link` lead to the device; says whether it had not.
pub fn link(link: &Path, device: &Path) -> io::Result<bool> {
    match std::fs::read_link(link) {
        Ok(held) if held == device => return Ok(false),
        // The device has another name since then.
        Ok(_) => std::fs::remove_file(link)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(dir) = link.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::os::unix::fs::symlink(device, link).map(|()| true)
}

/// What is said of a device that is there now; `global` is where it lies for all pods.
pub fn told(volume: &str, global: Option<&Path>, pod: &Path) -> Vec<String> {
    let places = [("globalMapPath", global), ("volumeMapPath", Some(pod))];
    let places = places.into_iter().filter_map(|(name, path)| Some((name, path?.display())));
    places
        .map(|(name, path)| {
            format!("MapVolume.MapPodDevice succeeded for volume {volume:?} {name} \"{path}\"")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_linked_once_and_anew_when_it_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("kubernetes.io~csi/pv1");
        for (device, is_new) in [("/dev/a", true), ("/dev/a", false), ("/dev/b", true)] {
            assert_eq!(link(&at, Path::new(device)).unwrap(), is_new);
            assert_eq!(std::fs::read_link(&at).unwrap(), Path::new(device));
        }
        std::fs::remove_file(&at).unwrap();
        std::fs::write(&at, "").unwrap();
        assert!(link(&at, Path::new("/dev/a")).is_err(), "somebody else's file stays");
    }
}
