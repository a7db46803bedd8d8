//! Puts persistent volumes where containers can mount them: host paths, local disks and
//! directories, NFS, iSCSI.
//!
//! Safe to repeat. What a volume needs of the host and the host lacks is said, not skipped.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use client::Client;
use k8s_openapi::api::core::v1::{NFSVolumeSource, PersistentVolumeSpec, Pod, Secret, Volume};

use sys::mount::options;

use super::attached::Attached;
use super::claims::Bound;
use super::iscsi::{Disk, Secrets};
use super::{Failure, blocking, disk, hostpath, mounts, says, selinux};
use crate::pod;

/// A server that does not answer is given up after this long, and tried again later.
const NETWORK_MOUNT_PATIENCE: Duration = Duration::from_secs(120);
/// The type of secrets that iSCSI takes.
const CHAP_SECRET: &str = "kubernetes.io/iscsi-chap";
/// What is quoted of a helper's output.
const OUTPUT_BYTES_MAX: usize = 2048;

/// Where a volume is, once it is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// A directory or file, or a device.
    pub path: PathBuf,
    pub is_block: bool,
    pub read_only: bool,
    /// Whether the pod's group owns what is in it.
    pub takes_group: bool,
    /// Whether its files get the containers' SELinux label one by one.
    pub relabel: bool,
    /// This very call mounted it.
    pub is_fresh: bool,
}

/// The pod's own directory for volumes of a plugin; made once something is mounted there.
fn own_dir(pod_dir: &Path, plugin: &str, name: &str) -> PathBuf {
    pod_dir.join("volumes").join(plugin).join(name)
}

/// Why a volume is not there, and whether its disk is.
#[derive(Debug, PartialEq, Eq)]
pub struct NotPlaced {
    why: String,
    lacks_disk: bool,
}

impl From<String> for NotPlaced {
    fn from(why: String) -> Self {
        Self { why, lacks_disk: false }
    }
}

impl NotPlaced {
    fn attach(why: String) -> Self {
        Self { why, lacks_disk: true }
    }

    /// The event of a volume that stands in the pod itself, in upstream's words.
    pub fn inline(self, name: &str) -> Failure {
        let step = if self.lacks_disk { "WaitForAttach" } else { "SetUp" };
        format!("MountVolume.{step} failed for volume \"{name}\" : {}", self.why).into()
    }

    /// The event of a claimed volume, in upstream's words.
    pub fn claimed(self, bound: &Bound) -> Failure {
        let name = &bound.name;
        let lacks =
            bound.spec.local.as_ref().is_some_and(|it| exists(Path::new(&it.path)).is_err());
        let (reason, step) = match (bound.is_block(), self.lacks_disk) {
            (true, true) => ("FailedMapVolume", "MapVolume.WaitForAttach failed"),
            (true, false) => ("FailedMapVolume", "MapVolume.MapBlockVolume failed"),
            (false, true) => ("FailedMount", "MountVolume.WaitForAttach failed"),
            (false, false) if lacks => {
                ("FailedMount", "MountVolume.NewMounter initialization failed")
            }
            (false, false) => ("FailedMount", "MountVolume.SetUp failed"),
        };
        Failure::new(reason, format!("{step} for volume \"{name}\" : {}", self.why))
    }
}

fn kind(spec: &PersistentVolumeSpec) -> &'static str {
    if spec.csi.is_some() {
        "csi"
    } else if spec.fc.is_some() {
        "fc"
    } else {
        "of this kind"
    }
}

/// Makes volumes of one pod.
pub struct Maker<'a> {
    pub attached: &'a Attached,
    pub labels: &'a selinux::Labels,
    pub client: &'a Client,
    pub pod: &'a Pod,
    /// The pod's own directory.
    pub dir: &'a Path,
}

impl Maker<'_> {
    /// Makes the volume of a claim; `volume` is its name in the pod.
    ///
    /// # Errors
    /// What the host lacks, or what is wrong with the volume, as an event says it.
    pub async fn claimed(&self, volume: &str, bound: &Bound) -> Result<Place, NotPlaced> {
        let spec = &bound.spec;
        let options = spec.mount_options.clone().unwrap_or_default();
        let read_only = bound.read_only;
        if let Some(source) = spec.host_path.clone() {
            let path = PathBuf::from(&source.path);
            if bound.is_block() {
                exists(&path)?;
                blocking(move || hostpath::check(&source)).await?;
                return Ok(self.block(path, read_only).await?);
            }
            blocking(move || hostpath::check(&source)).await?;
            return Ok(Place { path, read_only, ..Place::default() });
        }
        if let Some(source) = &spec.local {
            let from = PathBuf::from(&source.path);
            if bound.is_block() {
                return Ok(self.block(from, read_only).await?);
            }
            let to = own_dir(self.dir, "kubernetes.io~local-volume", &bound.name);
            let fs_type = source.fs_type.as_deref();
            return Ok(put(from, to, read_only, fs_type, options, None).await?);
        }
        if let Some(source) = &spec.nfs {
            let mut source = source.clone();
            source.read_only = Some(read_only || source.read_only == Some(true));
            let dir = own_dir(self.dir, "kubernetes.io~nfs", &bound.name);
            return Ok(nfs(&dir, &source, &options).await?);
        }
        if let Some(source) = &spec.iscsi {
            let secret = source.secret_ref.as_ref().and_then(|it| {
                let namespace = it.namespace.clone().filter(|it| !it.is_empty());
                Some((namespace, it.name.clone()?))
            });
            let modes = spec.access_modes.as_deref().unwrap_or_default();
            let policy = sys::selinux::Host::default().policy();
            let plugin = "kubernetes.io/iscsi";
            let id = format!("{plugin}/{}", bound.name);
            let labelled = selinux::Volume { plugin, id: &id, name: volume, access_modes: modes };
            let label = self.labels.of(policy.as_ref(), self.pod, &labelled)?;
            let wanted = Wanted {
                name: &bound.name,
                disk: source.into(),
                secret,
                fs_type: source.fs_type.as_deref(),
                read_only: read_only || source.read_only == Some(true),
                is_block: bound.is_block(),
                options,
                label,
            };
            return self.iscsi(wanted).await;
        }
        Err(format!(
            "failed to get Plugin from volumeSpec for volume {:?} err=no volume plugin matched \
             (volumes {} are not supported on this node)",
            bound.name,
            kind(spec)
        )
        .into())
    }

    /// Makes a volume that stands in the pod itself.
    ///
    /// # Errors
    /// As above.
    pub async fn inline(&self, volume: &Volume) -> Result<Place, NotPlaced> {
        if let Some(source) = &volume.nfs {
            let dir = own_dir(self.dir, "kubernetes.io~nfs", &volume.name);
            return Ok(nfs(&dir, source, &[]).await?);
        }
        let Some(source) = &volume.iscsi else {
            return Err("the volume has no source".to_owned().into());
        };
        let wanted = Wanted {
            name: &volume.name,
            disk: source.into(),
            secret: source.secret_ref.as_ref().map(|it| (None, it.name.clone())),
            fs_type: source.fs_type.as_deref(),
            read_only: source.read_only == Some(true),
            is_block: false,
            options: Vec::new(),
            label: None,
        };
        self.iscsi(wanted).await
    }

    /// A device of this node, or a regular file that becomes one.
    async fn block(&self, path: PathBuf, read_only: bool) -> Result<Place, String> {
        let kind = exists(&path)?.file_type();
        let path = if kind.is_block_device() {
            path
        } else if kind.is_file() {
            self.attached.file(pod::uid(self.pod), &path).await?
        } else {
            let path = path.display();
            return Err(format!("path \"{path}\" is neither a block device nor a regular file"));
        };
        Ok(Place { path, is_block: true, read_only, ..Place::default() })
    }

    async fn iscsi(&self, wanted: Wanted<'_>) -> Result<Place, NotPlaced> {
        let Wanted { name, disk, secret, fs_type, read_only, is_block, options, label } = wanted;
        let to = own_dir(self.dir, "kubernetes.io~iscsi", name);
        let is_there =
            !is_block && mounts::is_mounted(&to).map_err(|e| says("look at", &to, &e))?;
        let device = if is_there {
            // Only its place is wanted.
            to.clone()
        } else {
            let secrets = match secret {
                Some((namespace, name)) if disk.chap_discovery || disk.chap_session => {
                    self.secrets(namespace.as_deref(), &name).await?
                }
                _ => Secrets::new(),
            };
            let own = pod::uid(self.pod);
            self.attached.iscsi(own, &disk, &secrets).await.map_err(NotPlaced::attach)?
        };
        if is_block {
            return Ok(Place { path: device, is_block, read_only, ..Place::default() });
        }
        Ok(put(device, to, read_only, fs_type, options, label).await?)
    }

    async fn secrets(&self, namespace: Option<&str>, name: &str) -> Result<Secrets, String> {
        let namespace = namespace.unwrap_or(pod::namespace(self.pod));
        let secret = self.client.api::<Secret>(Some(namespace)).get(name).await;
        let secret =
            secret.map_err(|error| format!("couldn't get secret {namespace}/{name}: {error}"))?;
        if secret.type_.as_deref() != Some(CHAP_SECRET) {
            return Err(format!("secret {namespace}/{name} is not of type {CHAP_SECRET:?}"));
        }
        let data = secret.data.into_iter().flatten();
        Ok(data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
    }
}

/// A disk behind iSCSI, and what becomes of it.
struct Wanted<'a> {
    name: &'a str,
    disk: Disk,
    /// Namespace, where it is not the pod's, and name.
    secret: Option<(Option<String>, String)>,
    fs_type: Option<&'a str>,
    read_only: bool,
    is_block: bool,
    options: Vec<String>,
    /// SELinux label of the whole.
    label: Option<String>,
}

fn exists(path: &Path) -> Result<std::fs::Metadata, String> {
    std::fs::metadata(path).map_err(|_| format!("path \"{}\" does not exist", path.display()))
}

/// Mounts a directory or a disk of this node for the pod; a blank disk is formatted first.
async fn put(
    from: PathBuf,
    to: PathBuf,
    read_only: bool,
    fs_type: Option<&str>,
    mut options: Vec<String>,
    label: Option<String>,
) -> Result<Place, String> {
    let kind = fs_type.filter(|it| !it.is_empty()).unwrap_or("ext4").to_owned();
    let mut _prepared = None;
    if is_unused_disk(&from, &to)? {
        _prepared = Some(disk::prepare(&from, &kind, read_only).await?);
    }
    let relabel = !read_only && label.is_none();
    options.extend(label.as_deref().map(selinux::mount_option));
    let place = blocking(move || mount(from, to, read_only, &kind, &options)).await?;
    Ok(Place { relabel, ..place })
}

/// A disk that is not mounted for this pod yet.
fn is_unused_disk(from: &Path, to: &Path) -> Result<bool, String> {
    let is_disk = std::fs::metadata(from).is_ok_and(|meta| meta.file_type().is_block_device());
    Ok(is_disk && !mounts::is_mounted(to).map_err(|error| says("look at", to, &error))?)
}

/// A directory or file system of this very node, or a disk of it.
fn mount(
    from: PathBuf,
    to: PathBuf,
    read_only: bool,
    fs_type: &str,
    options: &[String],
) -> Result<Place, String> {
    let meta = exists(&from)?;
    let is_device = meta.file_type().is_block_device();
    if !is_device && !meta.is_dir() {
        return Err("only support block device or directory as local volume".to_owned());
    }
    let place = |is_fresh| Place {
        path: to.clone(),
        read_only,
        takes_group: !read_only,
        is_fresh,
        ..Place::default()
    };
    if mounts::is_mounted(&to).map_err(|error| says("look at", &to, &error))? {
        return Ok(place(false));
    }
    std::fs::create_dir_all(&to).map_err(|error| says("create", &to, &error))?;
    base::failpoint!("volume/local-directory");
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
    base::failpoint!("volume/local-mounted");
    Ok(place(true))
}

/// Mounts an export by the host's own `mount`, which knows the protocol's versions.
async fn nfs(dir: &Path, source: &NFSVolumeSource, options: &[String]) -> Result<Place, String> {
    let read_only = source.read_only == Some(true);
    let place =
        |is_fresh| Place { path: dir.to_path_buf(), read_only, is_fresh, ..Place::default() };
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
        Bound { claim: "c".into(), name: "pv1".into(), spec, read_only: false, group: None }
    }

    /// For the sample pod, whose directory is `dir` and whose node's is the one above.
    async fn make(dir: &Path, bound: &Bound) -> Result<Place, String> {
        let pod = crate::pod::samples::pod(json!({"containers": []}));
        let attached = Attached::new(dir.parent().unwrap());
        let client = crate::volumes::csi::samples::client();
        let labels = selinux::Labels::default();
        let maker = Maker { attached: &attached, labels: &labels, client: &client, pod: &pod, dir };
        maker.claimed("v", bound).await.map_err(|it| it.why)
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
        let said = make(&pod, &bound(block)).await.unwrap_err();
        assert!(said.ends_with("is neither a block device nor a regular file"), "{said}");
    }

    #[test]
    fn what_fails_is_told_of_the_volume_and_not_of_its_place_in_the_pod() {
        for (spec, want) in [
            (
                json!({"local": {"path": "/none"}}),
                "FailedMount: MountVolume.NewMounter initialization failed",
            ),
            (json!({"local": {"path": "/"}}), "FailedMount: MountVolume.SetUp failed"),
            (json!({"hostPath": {"path": "/none"}}), "FailedMount: MountVolume.SetUp failed"),
            (
                json!({"local": {"path": "/none"}, "volumeMode": "Block"}),
                "FailedMapVolume: MapVolume.MapBlockVolume failed",
            ),
        ] {
            let bound = bound(spec);
            let said = NotPlaced::from("why".to_owned()).claimed(&bound);
            let text = format!("{}: {}", said.reason, said.message);
            assert_eq!(text, format!("{want} for volume \"{}\" : why", bound.name));
        }
        // A disk of the network that did not come.
        for (mode, want) in [
            ("Filesystem", "FailedMount: MountVolume.WaitForAttach failed"),
            ("Block", "FailedMapVolume: MapVolume.WaitForAttach failed"),
        ] {
            let bound = bound(json!({"iscsi": {"targetPortal": "10.0.0.1", "iqn": "i", "lun": 0},
                "volumeMode": mode}));
            let said = NotPlaced::attach("why".to_owned()).claimed(&bound);
            let text = format!("{}: {}", said.reason, said.message);
            assert_eq!(text, format!("{want} for volume \"{}\" : why", bound.name));
        }
        let said = NotPlaced::attach("why".to_owned()).inline("v").message;
        assert_eq!(said, "MountVolume.WaitForAttach failed for volume \"v\" : why");
    }

    #[tokio::test]
    async fn a_device_is_itself_and_a_file_becomes_one() {
        let dir = tempfile::tempdir().unwrap();
        let (file, pod) = (dir.path().join("file"), dir.path().join("pod"));
        let spec = |path: &str, source: &str| {
            let mut spec = json!({"volumeMode": "Block"});
            spec[source] = json!({"path": path});
            bound(spec)
        };
        let path = file.to_str().unwrap();
        for source in ["local", "hostPath"] {
            let missing = make(&pod, &spec(path, source)).await.unwrap_err();
            assert_eq!(missing, format!("path \"{path}\" does not exist"));
        }
        let disk = Disk::new(&dir.path().join("image"));
        let place = make(&pod, &spec(&disk.0, "hostPath")).await.unwrap();
        assert_eq!((place.path.to_str().unwrap(), place.is_block), (&*disk.0, true));
        std::fs::write(&file, [7; 4096]).unwrap();
        let mut typed = spec(path, "hostPath");
        typed.spec.host_path.as_mut().unwrap().type_ = Some("BlockDevice".into());
        assert!(make(&pod, &typed).await.unwrap_err().ends_with("is not a block device"));
        let place = make(&pod, &spec(path, "local")).await.unwrap();
        assert_eq!(std::fs::read(&place.path).unwrap(), [7; 4096]);
        assert_eq!(make(&pod, &spec(path, "hostPath")).await.unwrap().path, place.path);
        let attached = Attached::new(dir.path());
        attached.release("uid-1").await.unwrap();
        let backing = format!(
            "/sys/block/{}/loop/backing_file",
            place.path.file_name().unwrap().to_str().unwrap()
        );
        assert!(!std::fs::read_to_string(backing).is_ok_and(|it| it.trim() == path));
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
