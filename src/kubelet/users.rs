//! Which ids of the node the pods with user namespaces of their own have.
//!
//! Each pod has a range that no other has, kept in its directory, so that a restart gives
//! it to nobody else. Never makes a namespace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use runtime::cri::UserNamespace;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::KubeletConfig;

/// Beside the pod's other files, in upstream's form.
const FILE: &str = "userns";
/// Ids are given in multiples of this (upstream's).
pub const IDS_UNIT: u32 = 65_536;
/// Whose entry in these files says which ids the node gives to pods.
const OWNER: &str = "kubelet";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mappings {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// The ids that pods may have: `count` ranges of `length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ranges {
    first: u32,
    length: u32,
    count: u32,
}

#[derive(Default)]
pub struct Users {
    /// By pod, where its range begins. Filled from disk before the first is given.
    taken: Mutex<Option<BTreeMap<String, u32>>>,
}

impl Users {
    /// The pod's range, the same for as long as the pod has a directory.
    ///
    /// # Errors
    /// No range is left, or it cannot be written down.
    pub fn of(&self, config: &KubeletConfig, uid: &str) -> Result<UserNamespace, String> {
        let ranges = ranges(
            config,
            &std::fs::read_to_string("/etc/subuid").unwrap_or_default(),
            &std::fs::read_to_string("/etc/subgid").unwrap_or_default(),
        )?;
        let mut taken = self.taken.lock();
        let taken = taken.get_or_insert_with(|| read_all(&config.root_dir.join("pods")));
        let file = config.pod_dir(uid).join(FILE);
        if let Some(range) = read(&file)? {
            taken.insert(uid.to_owned(), range.host_id);
            return Ok(range);
        }
        let host_id = pick(ranges, taken).ok_or(
            "create user namespace: could not find an empty slot to allocate a user namespace",
        )?;
        let range = UserNamespace { host_id, length: ranges.length };
        write(&file, range).map_err(|error| format!("create user namespace: {error}"))?;
        taken.insert(uid.to_owned(), host_id);
        Ok(range)
    }

    /// The pod's range is free again.
    pub fn release(&self, uid: &str) {
        if let Some(taken) = self.taken.lock().as_mut() {
            taken.remove(uid);
        }
    }
}

fn ranges(config: &KubeletConfig, subuid: &str, subgid: &str) -> Result<Ranges, String> {
    let length = config.ids_per_pod;
    let (uids, gids) = (entry(subuid), entry(subgid));
    if uids != gids {
        return Err(format!("the ids of {OWNER} in /etc/subuid and /etc/subgid differ"));
    }
    let Some((first, all)) = uids else {
        // The first range is the node's own.
        let count = config.max_pods.min(u32::MAX / length - 1);
        return Ok(Ranges { first: length, length, count });
    };
    if first % length != 0 || first < length || all % length != 0 {
        return Err(format!(
            "the ids {first}:{all} of {OWNER} in /etc/subuid do not begin at, and are not, \
             multiples of {length}"
        ));
    }
    let count = all / length;
    if count < config.max_pods {
        return Err(format!(
            "kubelet user assigned IDs are not enough to support {} pods",
            config.max_pods
        ));
    }
    Ok(Ranges { first, length, count })
}

/// First id and number of ids of our entry in subuid(5).
fn entry(text: &str) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        (fields.next()? == OWNER)
            .then(|| Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?)))?
    })
}

fn pick(ranges: Ranges, taken: &BTreeMap<String, u32>) -> Option<u32> {
    let used: std::collections::BTreeSet<u32> = taken.values().copied().collect();
    (0..ranges.count)
        .map(|number| ranges.first + number * ranges.length)
        .find(|first| !used.contains(first))
}

fn read(file: &Path) -> Result<Option<UserNamespace>, String> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("user namespace: read {}: {error}", file.display())),
    };
    let nonsense = || format!("user namespace: {} is not what was written", file.display());
    let read: Mappings = serde_json::from_slice(&bytes).map_err(|_| nonsense())?;
    match (read.uid_mappings.as_slice(), read.gid_mappings.as_slice()) {
        ([users], [groups]) if users == groups && users.container_id == 0 => {
            Ok(Some(UserNamespace { host_id: users.host_id, length: users.length }))
        }
        _ => Err(nonsense()),
    }
}

fn read_all(pods: &Path) -> BTreeMap<String, u32> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(pods).into_iter().flatten().flatten() {
        let file: PathBuf = entry.path().join(FILE);
        match (read(&file), entry.file_name().into_string()) {
            (Ok(Some(range)), Ok(uid)) => {
                out.insert(uid, range.host_id);
            }
            (Err(error), _) => warn!(error, "ids of a pod are not known"),
            _ => {}
        }
    }
    out
}

/// On disk before a process has the ids: another pod must not be given them after a crash.
fn write(file: &Path, range: UserNamespace) -> std::io::Result<()> {
    let mapping = Mapping { host_id: range.host_id, container_id: 0, length: range.length };
    let mappings = Mappings { uid_mappings: vec![mapping], gid_mappings: vec![mapping] };
    sys::fs::replace_file(file, &serde_json::to_vec(&mappings)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::samples::config;

    #[test]
    fn every_pod_has_a_range_of_its_own_and_keeps_it_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config();
        config.root_dir = dir.path().to_path_buf();
        config.max_pods = 3;
        let users = Users::default();
        let first = |users: &Users, uid: &str| users.of(&config, uid).map(|it| it.host_id);
        assert_eq!(first(&users, "a"), Ok(IDS_UNIT));
        assert_eq!(first(&users, "b"), Ok(2 * IDS_UNIT));
        assert_eq!(first(&users, "a"), Ok(IDS_UNIT));
        let after_restart = Users::default();
        assert_eq!(first(&after_restart, "c"), Ok(3 * IDS_UNIT));
        assert!(first(&after_restart, "d").unwrap_err().contains("could not find an empty slot"));
        std::fs::remove_dir_all(config.pod_dir("b")).unwrap();
        after_restart.release("b");
        assert_eq!(first(&after_restart, "d"), Ok(2 * IDS_UNIT));
        std::fs::write(config.pod_dir("a").join(FILE), "{}").unwrap();
        assert!(first(&after_restart, "a").unwrap_err().contains("is not what was written"));
    }

    #[test]
    fn the_nodes_files_may_say_which_ids_pods_have() {
        let mut config = config();
        config.max_pods = 2;
        let says = |text: &str| ranges(&config, text, text);
        let default = Ranges { first: IDS_UNIT, length: IDS_UNIT, count: 2 };
        assert_eq!(says("someone:100000:65536\n"), Ok(default));
        let own = Ranges { first: 1_048_576, length: IDS_UNIT, count: 4 };
        assert_eq!(says("kubelet:1048576:262144\n"), Ok(own));
        assert!(says("kubelet:100000:262144\n").unwrap_err().contains("multiples of 65536"));
        assert!(says("kubelet:65536:65536\n").unwrap_err().contains("not enough to support 2"));
        assert!(ranges(&config, "kubelet:65536:131072\n", "").unwrap_err().contains("differ"));
    }
}
