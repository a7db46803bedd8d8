//! Disks that this node attaches by itself, for one pod or for several: files as loop
//! devices, disks behind iSCSI.
//!
//! Every user is on disk before anything is attached, so that what a process that died has
//! begun, the next one ends. The last user's going detaches.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::iscsi::{self, Disk};
use super::{blocking, says};

/// Longest record; a longer one is none of ours.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// What is attached, without any secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A regular file.
    Loop {
        file: PathBuf,
    },
    Iscsi(Disk),
}

impl Source {
    /// What is attached and detached by one at a time.
    fn group(&self) -> String {
        match self {
            Self::Loop { file } => file.display().to_string(),
            Self::Iscsi(disk) => disk.iqn.clone(),
        }
    }

    /// The directory of its users.
    fn key(&self) -> String {
        let text = match self {
            Self::Loop { file } => format!("loop {}", file.display()),
            Self::Iscsi(disk) => format!("iscsi {} {} {}", disk.portals[0], disk.iqn, disk.lun),
        };
        let digest = <sha2::Sha256 as sha2::Digest>::digest(text.as_bytes());
        digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// What its loop devices are told by.
    fn mark(&self) -> String {
        format!("coracle {}", self.key())
    }
}

type Turn = Arc<tokio::sync::Mutex<()>>;

pub struct Attached {
    /// A directory for each disk, in it a file for each pod that uses it.
    root: PathBuf,
    turns: Mutex<HashMap<String, Turn>>,
}

impl Attached {
    pub fn new(root_dir: &Path) -> Self {
        let root = root_dir.join("plugins/kubernetes.io/attached");
        for dir in children(&root) {
            // One without users, which a process that died left.
            let _ = std::fs::remove_dir(dir);
        }
        Self { root, turns: Mutex::default() }
    }

    fn turn(&self, group: String) -> Turn {
        let mut turns = self.turns.lock();
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(group).or_default().clone()
    }

    /// The device of a file for a pod.
    ///
    /// # Errors
    /// When the host has no loop devices, or the file cannot be opened.
    pub async fn file(&self, uid: &str, file: &Path) -> Result<PathBuf, String> {
        let source = Source::Loop { file: file.to_path_buf() };
        let turn = self.turn(source.group());
        let _alone = turn.lock().await;
        self.note(uid, &source).await?;
        base::failpoint!("volume/user-noted");
        let (file, mark) = (file.to_path_buf(), source.mark());
        let device = blocking(move || {
            let found = sys::loops::devices_of(&file, &mark);
            let found = found.map_err(|error| says("find loop devices of", &file, &error))?;
            if let Some(device) = found.into_iter().next() {
                return Ok(device);
            }
            let attach = |read_only| sys::loops::attach(&file, read_only, &mark);
            attach(false)
                .or_else(|error| match error.kind() {
                    // Whoever writes to it then is told so.
                    std::io::ErrorKind::ReadOnlyFilesystem
                    | std::io::ErrorKind::PermissionDenied => attach(true),
                    _ => Err(error),
                })
                .map_err(|error| says("attach a loop device to", &file, &error))
        })
        .await?;
        base::failpoint!("volume/loop-attached");
        Ok(device)
    }

    /// The device of an iSCSI disk for a pod.
    ///
    /// # Errors
    /// What `iscsiadm` says of the portal that was tried last.
    pub async fn iscsi(
        &self,
        uid: &str,
        disk: &Disk,
        secret: &iscsi::Secrets,
    ) -> Result<PathBuf, String> {
        let source = Source::Iscsi(disk.clone());
        let turn = self.turn(source.group());
        let _alone = turn.lock().await;
        self.note(uid, &source).await?;
        disk.attach(secret).await
    }

    async fn note(&self, uid: &str, source: &Source) -> Result<(), String> {
        let path = self.root.join(source.key()).join(uid);
        let text = serde_json::to_vec(source).map_err(|error| error.to_string())?;
        blocking(move || {
            // Written once: it says all there is to say of this disk.
            if path.exists() {
                return Ok(());
            }
            sys::fs::replace_file(&path, &text).map_err(|error| says("write", &path, &error))
        })
        .await
    }

    /// All users: pods' uids, with the directories and the disks they use.
    fn users(&self) -> Vec<(String, PathBuf, Source)> {
        let mut out = Vec::new();
        for dir in children(&self.root) {
            for file in children(&dir) {
                let Some(uid) = file.file_name().and_then(|name| name.to_str()) else { continue };
                if uid.starts_with('.') {
                    // Of a write that was cut off; nothing was attached for it.
                    let _ = std::fs::remove_file(&file);
                    continue;
                }
                match read(&file) {
                    Ok(source) => out.push((uid.to_owned(), dir.clone(), source)),
                    Err(error) => warn!(file = %file.display(), error, "record not read"),
                }
            }
        }
        out
    }

    /// Pods that use anything, living or not.
    pub fn pods(&self) -> impl Iterator<Item = String> {
        self.users().into_iter().map(|(uid, ..)| uid)
    }

    /// Detaches what no other pod uses. Nothing of the pod may be mounted any more.
    ///
    /// # Errors
    /// When something could not be detached; to be tried again.
    pub async fn release(&self, uid: &str) -> Result<(), String> {
        for (of, dir, source) in self.users() {
            if of != uid {
                continue;
            }
            let turn = self.turn(source.group());
            let _alone = turn.lock().await;
            let all = self.users();
            let is_last = !all.iter().any(|(of, other, _)| *other == dir && of != uid);
            if is_last {
                match &source {
                    Source::Loop { file } => detach_file(file.clone(), source.mark()).await?,
                    Source::Iscsi(disk) => {
                        let others = all.iter().filter(|(_, other, _)| *other != dir);
                        let others = others.filter_map(|(.., source)| match source {
                            Source::Iscsi(disk) => Some(disk),
                            Source::Loop { .. } => None,
                        });
                        disk.detach(&others.collect::<Vec<_>>()).await?;
                    }
                }
                base::failpoint!("volume/detached");
            }
            let path = dir.join(uid);
            blocking(move || {
                std::fs::remove_file(&path).map_err(|error| says("remove", &path, &error))?;
                base::failpoint!("volume/user-forgotten");
                if is_last {
                    // One that came in between keeps it.
                    let _ = std::fs::remove_dir(&dir);
                }
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

async fn detach_file(file: PathBuf, mark: String) -> Result<(), String> {
    blocking(move || {
        let found = sys::loops::devices_of(&file, &mark);
        for device in found.map_err(|error| says("find loop devices of", &file, &error))? {
            sys::loops::detach(&device).map_err(|error| says("detach", &device, &error))?;
        }
        Ok(())
    })
    .await
}

fn children(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn read(file: &Path) -> Result<Source, String> {
    let meta = std::fs::symlink_metadata(file).map_err(|error| error.to_string())?;
    if !meta.is_file() || meta.len() > RECORD_BYTES_MAX {
        return Err("it is no record".to_owned());
    }
    let text = std::fs::read(file).map_err(|error| error.to_string())?;
    let source: Source = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    match &source {
        Source::Iscsi(disk) if disk.portals.is_empty() => Err("it has no portal".to_owned()),
        _ => Ok(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_a_device_until_its_last_user_goes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let attached = Attached::new(dir.path());
        let first = attached.file("u1", &file).await.unwrap();
        assert_eq!(attached.file("u1", &file).await.unwrap(), first);
        // Another process takes it up.
        let attached = Attached::new(dir.path());
        assert_eq!(attached.file("u2", &file).await.unwrap(), first);
        let mut pods: Vec<String> = attached.pods().collect();
        pods.sort();
        assert_eq!(pods, ["u1", "u2"]);
        let mark = Source::Loop { file: file.clone() }.mark();
        let devices = || sys::loops::devices_of(&file, &mark).unwrap().len();
        attached.release("u1").await.unwrap();
        attached.release("u1").await.unwrap();
        assert_eq!(devices(), 1);
        attached.release("u2").await.unwrap();
        assert_eq!((devices(), attached.pods().count(), children(&attached.root).len()), (0, 0, 0));
        let missing = attached.file("u3", Path::new("/none")).await.unwrap_err();
        assert!(missing.contains("/none"), "{missing}");
        attached.release("u3").await.unwrap();
        assert_eq!(attached.pods().count(), 0);
    }
}
