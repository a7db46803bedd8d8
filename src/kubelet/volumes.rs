//! Makes a pod's volumes on this node, keeps their files current, and takes them away.
//!
//! Safe to repeat: what is already as it should be is left alone. Never decides when.

pub mod atomic;
pub mod mounts;
pub mod payload;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume, VolumeMount,
};
use parking_lot::Mutex;
use runtime::cri::{self, MountPropagation};

use crate::config::KubeletConfig;
use crate::env::{self, Facts, Referred};
use crate::objects::Objects;
use crate::tokens::Tokens;
use crate::{pod, quantity};
use payload::Tokens as TokenSet;

/// Size of the memory file systems that hold secrets and tokens.
const SECRET_BYTES_MAX: u64 = 64 << 20;

/// A volume that could not be made, for the FailedMount event.
#[derive(Debug)]
pub struct Failed {
    pub volume: String,
    pub message: String,
}

#[derive(Default)]
pub struct Volumes {
    /// Hash of what each volume of a pod shows, by uid and volume name.
    shown: Mutex<HashMap<(String, String), u64>>,
    tokens: Tokens,
}

fn plugin(volume: &Volume) -> Option<&'static str> {
    if volume.config_map.is_some() {
        Some("kubernetes.io~configmap")
    } else if volume.secret.is_some() {
        Some("kubernetes.io~secret")
    } else if volume.downward_api.is_some() {
        Some("kubernetes.io~downward-api")
    } else if volume.projected.is_some() {
        Some("kubernetes.io~projected")
    } else if volume.empty_dir.is_some() {
        Some("kubernetes.io~empty-dir")
    } else {
        None
    }
}

fn volume<'a>(pod: &'a Pod, name: &str) -> Option<&'a Volume> {
    pod::spec(pod).volumes.iter().flatten().find(|volume| volume.name == name)
}

/// Where a volume lies on the node.
fn host_path(config: &KubeletConfig, pod: &Pod, volume: &Volume) -> Option<PathBuf> {
    if let Some(source) = &volume.host_path {
        return Some(PathBuf::from(&source.path));
    }
    let dir = config.pod_dir(pod::uid(pod)).join("volumes");
    Some(dir.join(plugin(volume)?).join(&volume.name))
}

/// A volume whose files lie on this node.
pub struct OnDisk {
    pub name: String,
    /// Namespace and name of the claim it stands for.
    pub claim: Option<(String, String)>,
    pub path: PathBuf,
    /// Counts against the pod's share of the node's disk.
    pub is_ephemeral: bool,
}

/// The volumes whose use of disk is told: those that were made for the pod.
pub fn on_disk(config: &KubeletConfig, pod: &Pod) -> Vec<OnDisk> {
    let volumes = pod::spec(pod).volumes.iter().flatten();
    volumes
        .filter(|volume| plugin(volume).is_some())
        .filter_map(|volume| {
            let in_memory = volume.empty_dir.as_ref().is_some_and(|source| {
                source.medium.as_deref().is_some_and(|medium| !medium.is_empty())
            });
            Some(OnDisk {
                name: volume.name.clone(),
                claim: None,
                path: host_path(config, pod, volume)?,
                is_ephemeral: volume.config_map.is_some()
                    || (volume.empty_dir.is_some() && !in_memory),
            })
        })
        .collect()
}

impl Volumes {
    /// Makes all volumes current. Returns when to look again at the latest.
    pub async fn ensure(
        &self,
        config: &KubeletConfig,
        client: &client::Client,
        objects: &Objects,
        pod: &Pod,
        facts: &Facts<'_>,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Failed> {
        let mut again: Option<Timestamp> = None;
        for volume in pod::spec(pod).volumes.iter().flatten() {
            let failed = |message: String| Failed { volume: volume.name.clone(), message };
            let referred = referred_by(objects, pod, volume).await.map_err(failed)?;
            let mut tokens = TokenSet::new();
            for (audience, seconds) in payload::wants_tokens(volume) {
                let (token, renew) =
                    self.tokens.get(client, pod, &audience, seconds, now).await.map_err(failed)?;
                again = Some(again.map_or(renew, |at| at.min(renew)));
                tokens.insert((audience, seconds), token);
            }
            match payload::payload(pod, volume, &referred, &tokens, facts) {
                Some(files) => self.show(config, pod, volume, files.map_err(failed)?).await,
                None => {
                    let (config, pod, volume) = (config.clone(), pod.clone(), volume.clone());
                    blocking(move || make_plain(&config, &pod, &volume)).await
                }
            }
            .map_err(failed)?;
        }
        Ok(again)
    }

    async fn show(
        &self,
        config: &KubeletConfig,
        pod: &Pod,
        volume: &Volume,
        files: atomic::Payload,
    ) -> Result<(), String> {
        let mut hasher = DefaultHasher::new();
        for (path, file) in &files {
            (path, &file.bytes, file.mode).hash(&mut hasher);
        }
        let hash = hasher.finish();
        let key = (pod::uid(pod).to_owned(), volume.name.clone());
        if self.shown.lock().get(&key) == Some(&hash) {
            return Ok(());
        }
        let dir = host_path(config, pod, volume).ok_or("the volume has no place")?;
        let in_memory = volume.config_map.is_none();
        let group = fs_group(pod);
        blocking(move || {
            std::fs::create_dir_all(&dir).map_err(|e| says("create the volume", &dir, &e))?;
            if in_memory {
                mounts::tmpfs(&dir, SECRET_BYTES_MAX).map_err(|e| says("mount", &dir, &e))?;
            }
            let open = if group.is_some() { 0o2777 } else { 0o777 };
            own(&dir, open, group).map_err(|e| says("open the volume", &dir, &e))?;
            atomic::write(&dir, &files, group).map_err(|e| says("write the volume", &dir, &e))?;
            Ok(())
        })
        .await?;
        self.shown.lock().insert(key, hash);
        Ok(())
    }

    /// What a container mounts of its pod's volumes.
    pub fn mounts(
        &self,
        config: &KubeletConfig,
        pod: &Pod,
        container: &Container,
        variables: &[(String, String)],
    ) -> Result<Vec<cri::Mount>, String> {
        let mut out = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let volume = volume(pod, &mount.name)
                .ok_or_else(|| format!("volume {} is not in the pod", mount.name))?;
            let root = host_path(config, pod, volume)
                .ok_or_else(|| format!("volume {} has no place on this node", mount.name))?;
            let sub_path = sub_path(mount, variables)?;
            let host_path = if sub_path.as_os_str().is_empty() {
                root
            } else {
                let target = config
                    .pod_dir(pod::uid(pod))
                    .join("volume-subpaths")
                    .join(&mount.name)
                    .join(&container.name)
                    .join(index.to_string());
                mounts::bind_sub_path(&root, &sub_path, &target).map_err(|error| {
                    format!(
                        "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {error}",
                        mount.name, container.name
                    )
                })?;
                target
            };
            // What the API server projects is never written to by a container.
            let projected = volume.config_map.is_some()
                || volume.secret.is_some()
                || volume.downward_api.is_some()
                || volume.projected.is_some();
            let recursive =
                matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
            out.push(cri::Mount {
                container_path: Path::new("/").join(&mount.mount_path),
                host_path,
                readonly: mount.read_only == Some(true) || projected,
                recursive_readonly: recursive,
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => MountPropagation::HostToContainer,
                    Some("Bidirectional") => MountPropagation::Bidirectional,
                    _ => MountPropagation::Private,
                },
            });
        }
        Ok(out)
    }

    /// Unmounts and removes the pod's directory, and forgets its tokens.
    pub async fn remove(&self, config: &KubeletConfig, uid: &str) -> Result<(), String> {
        self.tokens.release(uid);
        self.shown.lock().retain(|(of, _), _| of != uid);
        let dir = config.pod_dir(uid);
        blocking(move || mounts::remove_tree(&dir).map_err(|e| says("remove", &dir, &e))).await
    }
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(out) => out,
        Err(error) => Err(format!("the work on the volume was cut off: {error}")),
    }
}

fn says(what: &str, path: &Path, error: &io::Error) -> String {
    format!("{what} {}: {error}", path.display())
}

async fn referred_by(objects: &Objects, pod: &Pod, volume: &Volume) -> Result<Referred, String> {
    let (uid, namespace) = (pod::uid(pod), pod::namespace(pod));
    let (maps, secrets) = payload::refers_to(volume);
    let mut out = Referred::default();
    for name in maps {
        let map = objects.config_map(uid, namespace, name).await.map_err(|e| e.to_string())?;
        out.config_maps.insert(name.to_owned(), map);
    }
    for name in secrets {
        let secret = objects.secret(uid, namespace, name).await.map_err(|e| e.to_string())?;
        out.secrets.insert(name.to_owned(), secret);
    }
    Ok(out)
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod::spec(pod).security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

fn own(dir: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    if group.is_some() {
        std::os::unix::fs::chown(dir, None, group)?;
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
}

fn make_plain(config: &KubeletConfig, pod: &Pod, volume: &Volume) -> Result<(), String> {
    if let Some(source) = &volume.host_path {
        return check_host_path(source);
    }
    let Some(source) = &volume.empty_dir else {
        return Err("no volume plugin matched: this kind of volume is not supported on this node"
            .to_owned());
    };
    let dir = host_path(config, pod, volume).ok_or("the volume has no place")?;
    make_empty_dir(&dir, source, fs_group(pod)).map_err(|error| says("create", &dir, &error))
}

fn make_empty_dir(dir: &Path, source: &EmptyDirVolumeSource, group: Option<u32>) -> io::Result<()> {
    let medium = source.medium.as_deref().unwrap_or_default();
    let exists = dir.exists();
    std::fs::create_dir_all(dir)?;
    let mut fresh = !exists;
    match medium {
        "" => {}
        "Memory" => {
            let size = source.size_limit.as_ref().and_then(quantity::value).unwrap_or(0);
            fresh |= !mounts::is_mount_point(dir)?;
            mounts::tmpfs(dir, u64::try_from(size).unwrap_or(0))?;
        }
        other => {
            let message = format!("medium {other:?} is not supported on this node");
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
    }
    if fresh {
        own(dir, if group.is_some() { 0o2777 } else { 0o777 }, group)?;
    }
    Ok(())
}

fn check_host_path(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let failed =
        |what: &str| Err(format!("hostPath type check failed: {} is not {what}", source.path));
    let there = std::fs::metadata(path).ok();
    let is = |test: &dyn Fn(&std::fs::FileType) -> bool| {
        there.as_ref().is_some_and(|there| test(&there.file_type()))
    };
    let made = |result: io::Result<()>| result.map_err(|error| says("create", path, &error));
    match source.type_.as_deref().unwrap_or_default() {
        "" if there.is_none() => made(std::fs::create_dir_all(path)),
        "" => Ok(()),
        "DirectoryOrCreate" if there.is_none() => {
            made(std::fs::create_dir_all(path).and_then(|()| {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
            }))
        }
        "FileOrCreate" if there.is_none() => made(
            std::fs::File::create(path)
                .and_then(|file| file.set_permissions(std::fs::Permissions::from_mode(0o644))),
        ),
        "Directory" | "DirectoryOrCreate" if is(&|t| t.is_dir()) => Ok(()),
        "Directory" | "DirectoryOrCreate" => failed("a directory"),
        "File" | "FileOrCreate" if is(&|t| t.is_file()) => Ok(()),
        "File" | "FileOrCreate" => failed("a file"),
        "Socket" if is(&|t| t.is_socket()) => Ok(()),
        "Socket" => failed("a socket file"),
        "CharDevice" if is(&|t| t.is_char_device()) => Ok(()),
        "CharDevice" => failed("a character device"),
        "BlockDevice" if is(&|t| t.is_block_device()) => Ok(()),
        "BlockDevice" => failed("a block device"),
        other => Err(format!("hostPath type {other:?} is unknown")),
    }
}

fn sub_path(mount: &VolumeMount, variables: &[(String, String)]) -> Result<PathBuf, String> {
    let text = match (&mount.sub_path_expr, &mount.sub_path) {
        (Some(expression), _) if !expression.is_empty() => {
            env::expand_strict(expression, variables).map_err(|error| {
                format!("failed to expand subPath for volumeMount \"{}\": {error}", mount.name)
            })?
        }
        (_, Some(path)) => path.clone(),
        _ => String::new(),
    };
    let path = PathBuf::from(&text);
    if path.is_absolute() {
        return Err(format!("error SubPath `{text}` must not be an absolute path"));
    }
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(format!("unable to provision SubPath `{text}`: must not contain '..'"));
    }
    Ok(path.components().filter(|part| *part != std::path::Component::CurDir).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use crate::sandbox::samples::config;
    use serde_json::json;

    #[test]
    fn host_paths_are_checked_and_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, type_: &str| HostPathVolumeSource {
            path: dir.path().join(name).display().to_string(),
            type_: Some(type_.into()),
        };
        assert!(
            check_host_path(&at("a", "Directory")).unwrap_err().ends_with("is not a directory")
        );
        check_host_path(&at("a", "DirectoryOrCreate")).unwrap();
        check_host_path(&at("a", "Directory")).unwrap();
        check_host_path(&at("f", "FileOrCreate")).unwrap();
        assert!(check_host_path(&at("f", "Socket")).is_err());
        assert!(check_host_path(&at("a", "File")).is_err());
    }

    #[test]
    fn an_empty_dir_is_open_to_the_pods_group_and_mounts_say_where() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config();
        config.root_dir = dir.path().to_path_buf();
        let pod = pod(json!({"securityContext": {"fsGroup": 4242}, "containers": [{"name": "a",
            "volumeMounts": [
                {"name": "v", "mountPath": "/v", "readOnly": true},
                {"name": "v", "mountPath": "/w", "subPathExpr": "$(A)/x"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]}));
        make_plain(&config, &pod, volume(&pod, "v").unwrap()).unwrap();
        let place = host_path(&config, &pod, volume(&pod, "v").unwrap()).unwrap();
        let meta = std::fs::metadata(&place).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o2777);
        assert_eq!(std::os::unix::fs::MetadataExt::gid(&meta), 4242);
        let volumes = Volumes::default();
        let container = &pod::spec(&pod).containers[0];
        let mounts = volumes
            .mounts(&config, &pod, container, &[("A".to_owned(), "sub".to_owned())])
            .unwrap();
        assert_eq!(mounts[0].host_path, place);
        assert!(mounts[0].readonly && !mounts[1].readonly);
        assert!(place.join("sub/x").is_dir());
        assert!(volumes.mounts(&config, &pod, container, &[]).is_err(), "unknown variable");
        mounts::remove_tree(&config.pod_dir("uid-1")).unwrap();
        assert!(!place.exists());
    }
}
