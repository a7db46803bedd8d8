//! Puts persistent volumes where containers can mount them: host paths, local disks and
//! directories, NFS.
//!
//! Safe to repeat. What a volume needs of the host and the host lacks is said, not skipped.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NFSVolumeSource, PersistentVolumeSpec};

use sys::mount::options;

use super::claims::Bound;
use super::{blocking, disk, hostpath, mounts, says};

/// A server that does not answer is given up after this long, and tried again later.
const NETWORK_MOUNT_PATIENCE: Duration = Duration::from_secs(120);
/// What is quoted of a helper's output.
const OUTPUT_BYTES_MAX: usize = 2048;

/// Where a volume is, once it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// A directory or file, or a device.
    pub path: PathBuf,
    pub is_block: bool,
    pub read_only: bool,
    /// Whether the pod's group owns what is in it.
    pub takes_group: bool,
    /// This very call mounted it.
    pub is_fresh: bool,
}

/// The pod's own directory for volumes of a plugin; made once something is mounted there.
fn own_dir(pod_dir: &Path, plugin: &str, name: &str) -> PathBuf {
    pod_dir.join("volumes").join(plugin).join(name)
}

fn kind(spec: &PersistentVolumeSpec) -> &'static str {
    if spec.csi.is_some() {
        "csi"
    } else if spec.iscsi.is_some() {
        "iscsi"
    } else if spec.fc.is_some() {
        "fc"
    } else {
        "of this kind"
    }
}

/// Makes the volume of a claim.
pub async fn make(pod_dir: &Path, bound: &Bound) -> Result<Place, String> {
    let spec = &bound.spec;
    let options = spec.mount_options.clone().unwrap_or_default();
    if let Some(source) = spec.host_path.clone() {
        if bound.is_block() {
            return Err("hostPath volumes cannot be used as block devices".into());
        }
        let path = PathBuf::from(&source.path);
        blocking(move || hostpath::check(&source)).await?;
        let read_only = bound.read_only;
        let (is_block, takes_group, is_fresh) = (false, false, false);
        return Ok(Place { path, is_block, read_only, takes_group, is_fresh });
    }
    if let Some(source) = &spec.local {
        let from = PathBuf::from(&source.path);
        let (read_only, is_block) = (bound.read_only, bound.is_block());
        let to = own_dir(pod_dir, "kubernetes.io~local-volume", &bound.name);
        let kind = source.fs_type.clone().unwrap_or_else(|| "ext4".into());
        let mut _prepared = None;
        if !is_block && is_unused_disk(&from, &to)? {
            _prepared = Some(disk::prepare(&from, &kind, read_only).await?);
        }
        return blocking(move || local(from, to, is_block, read_only, &kind, &options)).await;
    }
    if let Some(source) = &spec.nfs {
        let mut source = source.clone();
        source.read_only = Some(bound.read_only || source.read_only == Some(true));
        let dir = own_dir(pod_dir, "kubernetes.io~nfs", &bound.name);
        return nfs(&dir, &source, &options).await;
    }
    Err(format!(
        "failed to get Plugin from volumeSpec for volume {:?} err=no volume plugin matched \
         (volumes {} are not supported on this node)",
        bound.name,
        kind(spec)
    ))
}

/// A disk that is not mounted for this pod yet.
fn is_unused_disk(from: &Path, to: &Path) -> Result<bool, String> {
    let is_disk = std::fs::metadata(from).is_ok_and(|meta| meta.file_type().is_block_device());
    Ok(is_disk && !mounts::is_mounted(to).map_err(|error| says("look at", to, &error))?)
}

/// A directory or file system of this very node, or a disk of it.
fn local(
    from: PathBuf,
    to: PathBuf,
    is_block: bool,
    read_only: bool,
    fs_type: &str,
    options: &[String],
) -> Result<Place, String> {
    let meta = std::fs::metadata(&from)
        .map_err(|_| format!("path \"{}\" does not exist", from.display()))?;
    let is_device = meta.file_type().is_block_device();
    if is_block {
        if !is_device {
            return Err(format!("path \"{}\" is not a block device", from.display()));
        }
        let (takes_group, is_fresh) = (false, false);
        return Ok(Place { path: from, is_block, read_only, takes_group, is_fresh });
    }
    if !is_device && !meta.is_dir() {
        return Err("only support block device or directory as local volume".to_owned());
    }
    let place = |is_fresh| Place {
        path: to.clone(),
        is_block: false,
        read_only,
        takes_group: !read_only,
        is_fresh,
    };
    if mounts::is_mounted(&to).map_err(|error| says("look at", &to, &error))? {
        return Ok(place(false));
    }
    std::fs::create_dir_all(&to).map_err(|error| says("create", &to, &error))?;
    let (mut flags, text) = options::split(options.iter().map(String::as_str));
    if read_only {
        flags |= options::READ_ONLY;
    }
    let source = from.display().to_string();
    let mounted = if is_device {
        sys::mount::mount(&source, &to, fs_type, flags, &text)
    } else {
        sys::mount::bind_with(&from, &to, flags)
    };
    mounted.map_err(|error| {
        // Leaves no empty directory that a later look could take for the volume.
        let _ = std::fs::remove_dir(&to);
        format!("mount {} on {}: {error}", from.display(), to.display())
    })?;
    Ok(place(true))
}

/// Mounts an export by the host's own `mount`, which knows the protocol's versions.
pub async fn nfs(
    dir: &Path,
    source: &NFSVolumeSource,
    options: &[String],
) -> Result<Place, String> {
    let read_only = source.read_only == Some(true);
    let place = |is_fresh| Place {
        path: dir.to_path_buf(),
        is_block: false,
        read_only,
        takes_group: false,
        is_fresh,
    };
    if mounts::is_mounted(dir).map_err(|error| says("look at", dir, &error))? {
        return Ok(place(false));
    }
    std::fs::create_dir_all(dir).map_err(|error| says("create", dir, &error))?;
    // An address of version 6 has colons of its own.
    let server = match source.server.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => source.server.clone(),
    };
    let mut arguments = vec!["-t".to_owned(), "nfs".to_owned()];
    let mut all = options.to_vec();
    all.extend(read_only.then(|| "ro".to_owned()));
    if !all.is_empty() {
        arguments.extend(["-o".to_owned(), all.join(",")]);
    }
    arguments.push(format!("{server}:{}", source.path));
    arguments.push(dir.display().to_string());
    let failed = run_mount(&arguments).await;
    if failed.is_err() {
        let _ = std::fs::remove_dir(dir);
    }
    failed.map(|()| place(true))
}

async fn run_mount(arguments: &[String]) -> Result<(), String> {
    let shown = arguments.join(" ");
    let says = |status: String, output: &str| {
        format!(
            "mount failed: {status}\nMounting command: mount\nMounting arguments: {shown}\n\
             Output: {output}\n"
        )
    };
    let run = tokio::process::Command::new("mount")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(NETWORK_MOUNT_PATIENCE, run).await {
        Ok(Ok(done)) if done.status.success() => Ok(()),
        Ok(Ok(done)) => {
            let mut output = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            output.truncate(output.floor_char_boundary(OUTPUT_BYTES_MAX));
            let status = done
                .status
                .code()
                .map_or_else(|| "signal: killed".to_owned(), |code| format!("exit status {code}"));
            Err(says(status, &output))
        }
        Ok(Err(error)) => Err(says(error.to_string(), "")),
        Err(_) => Err(says("the server did not answer in time".to_owned(), "")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use serde_json::{Value, json};

    fn bound(spec: Value) -> Bound {
        let spec = serde_json::from_value(spec).unwrap();
        Bound { claim: "c".into(), name: "pv1".into(), spec, read_only: false }
    }

    #[tokio::test]
    async fn a_local_directory_is_bound_once_and_goes_with_its_pod() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, pod) = (dir.path().join("disk"), dir.path().join("pod"));
        let spec = json!({"local": {"path": disk.display().to_string()}});
        let missing = make(&pod, &bound(spec.clone())).await.unwrap_err();
        assert_eq!(missing, format!("path \"{}\" does not exist", disk.display()));
        std::fs::create_dir_all(&disk).unwrap();
        std::fs::write(disk.join("f"), "x").unwrap();
        let first = make(&pod, &bound(spec.clone())).await.unwrap();
        assert!(first.is_fresh && first.takes_group);
        assert!(!make(&pod, &bound(spec)).await.unwrap().is_fresh);
        assert_eq!(std::fs::read_to_string(first.path.join("f")).unwrap(), "x");
        mounts::remove_tree(&pod).unwrap();
        assert!(!pod.exists() && disk.join("f").exists());
        let block = json!({"local": {"path": disk.display().to_string()}, "volumeMode": "Block"});
        assert!(make(&pod, &bound(block)).await.unwrap_err().ends_with("is not a block device"));
    }

    fn run(tool: &str, arguments: &[&str]) -> String {
        let output = std::process::Command::new(tool).args(arguments).output().unwrap();
        let (out, err) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{tool} {arguments:?}: {err}");
        String::from_utf8_lossy(out).trim().to_owned()
    }

    /// A disk that is a file.
    struct Disk(String);

    impl Disk {
        fn new(file: &Path) -> Self {
            std::fs::File::create(file).unwrap().set_len(32 << 20).unwrap();
            Self(run("losetup", &["--find", "--show", file.to_str().unwrap()]))
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            run("losetup", &["--detach", &self.0]);
        }
    }

    #[tokio::test]
    async fn a_blank_disk_is_formatted_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(&dir.path().join("image"));
        let spec = |kind: &str| {
            bound(json!({"local": {"path": disk.0, "fsType": kind},
                "mountOptions": ["noatime", "data=ordered"]}))
        };
        let mut reader = spec("ext4");
        reader.read_only = true;
        let said = make(&dir.path().join("reader"), &reader).await.unwrap_err();
        assert!(said.starts_with("cannot mount unformatted disk /dev/loop"), "{said}");
        let pod = dir.path().join("pod");
        let place = make(&pod, &spec("ext4")).await.unwrap();
        std::fs::write(place.path.join("f"), "kept").unwrap();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains(place.path.to_str().unwrap())).unwrap();
        assert!(line.contains("noatime") && line.contains("ext4"), "{line}");
        mounts::remove_tree(&pod).unwrap();
        let again = make(&pod, &spec("ext4")).await.unwrap();
        assert_eq!(std::fs::read_to_string(again.path.join("f")).unwrap(), "kept");
        mounts::remove_tree(&pod).unwrap();
        let said = make(&pod, &spec("xfs")).await.unwrap_err();
        assert_eq!(said, "failed to mount the volume as \"xfs\", it already contains ext4");
        // A table of partitions is not nothing.
        let mut start = vec![0; 8 << 20];
        start[446..462].copy_from_slice(&[0, 0, 2, 0, 0x83, 0, 2, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
        start[510..512].copy_from_slice(&[0x55, 0xaa]);
        let mut device = std::fs::OpenOptions::new().write(true).open(&disk.0).unwrap();
        device.write_all(&start).unwrap();
        device.sync_all().unwrap();
        drop(device);
        let said = make(&pod, &spec("ext4")).await.unwrap_err();
        assert!(said.ends_with("it already contains a dos partition table"), "{said}");
    }

    #[tokio::test]
    async fn what_the_node_cannot_do_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let csi = bound(json!({"csi": {"driver": "d", "volumeHandle": "h"}}));
        let said = make(dir.path(), &csi).await.unwrap_err();
        assert!(said.contains("no volume plugin matched"), "{said}");
        // Nobody serves NFS there, or the host has no tool for it: either way it is told.
        let nfs = bound(json!({"nfs": {"server": "127.0.0.1", "path": "/none"},
            "mountOptions": ["retry=0", "timeo=1", "retrans=0", "soft"]}));
        let said = make(dir.path(), &nfs).await.unwrap_err();
        assert!(said.starts_with("mount failed: "), "{said}");
        assert!(said.contains("-t nfs -o retry=0,timeo=1,retrans=0,soft 127.0.0.1:/none"));
        assert_eq!(sys::mount::mounts_below(dir.path()).unwrap().len(), 0);
    }
}
