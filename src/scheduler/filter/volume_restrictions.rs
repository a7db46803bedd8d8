//! Volumes that only one may have: claims of mode ReadWriteOncePod anywhere in the cluster,
//! and disks of the old kinds on one node.

use k8s_openapi::api::core::v1::Volume;

use super::{Reject, Rule};
use crate::facts::{Caches, Facts};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

const IN_USE: &str =
    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
const DISK_IN_USE: &str = "node(s) had no available disk";

/// What the pod cannot share.
#[derive(Debug, Clone, Default)]
pub struct Exclusive {
    namespace: String,
    /// Its claims of mode ReadWriteOncePod.
    claims: Vec<String>,
    disks: Vec<Disk>,
}

/// A disk that is named in the pod itself.
#[derive(Debug, Clone)]
struct Disk {
    name: String,
    /// Of a Ceph image: two are the same only if they share one.
    monitors: Option<Vec<String>>,
    /// Several may read at a time; None where not even that.
    read_only: Option<bool>,
}

impl Disk {
    fn clashes(&self, other: &Self) -> bool {
        let apart = match (&self.monitors, &other.monitors) {
            (Some(mine), Some(its)) => !mine.iter().any(|monitor| its.contains(monitor)),
            (_, _) => false,
        };
        let readers = self.read_only == Some(true) && other.read_only == Some(true);
        self.name == other.name && !apart && !readers
    }
}

fn disk(volume: &Volume) -> Option<Disk> {
    if let Some(disk) = &volume.gce_persistent_disk {
        let read_only = Some(disk.read_only.unwrap_or_default());
        return Some(Disk { name: format!("gce/{}", disk.pd_name), monitors: None, read_only });
    }
    if let Some(disk) = &volume.aws_elastic_block_store {
        let name = format!("ebs/{}", disk.volume_id);
        return Some(Disk { name, monitors: None, read_only: None });
    }
    if let Some(disk) = &volume.iscsi {
        let read_only = Some(disk.read_only.unwrap_or_default());
        return Some(Disk { name: format!("iscsi/{}", disk.iqn), monitors: None, read_only });
    }
    let disk = volume.rbd.as_ref()?;
    let pool = disk.pool.as_deref().unwrap_or("rbd");
    Some(Disk {
        name: format!("rbd/{pool}/{}", disk.image),
        monitors: Some(disk.monitors.clone()),
        read_only: Some(disk.read_only.unwrap_or_default()),
    })
}

fn disks(pod: &PodInfo) -> impl Iterator<Item = Disk> {
    let volumes = pod.spec().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(disk)
}

pub fn has_disks(pod: &PodInfo) -> bool {
    disks(pod).next().is_some()
}

pub fn exclusive(pod: &PodInfo, caches: &Caches) -> Exclusive {
    let is_alone = |name: &&String| {
        let claim = caches.claims.get(&pod.namespace, name);
        let modes = claim.as_ref().and_then(|it| it.spec.as_ref()?.access_modes.as_ref());
        modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteOncePod"))
    };
    Exclusive {
        namespace: pod.namespace.clone(),
        claims: pod.claims.iter().filter(is_alone).cloned().collect(),
        disks: disks(pod).collect(),
    }
}

/// How often others use the pod's claims.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    users: i64,
}

pub fn count(facts: &Facts, snapshot: &Snapshot) -> Counted {
    let Exclusive { namespace, claims, .. } = &facts.exclusive;
    let users = claims.iter().map(|claim| snapshot.claim_users(namespace, claim) as i64);
    Counted { users: users.sum() }
}

impl Counted {
    pub fn shift(&mut self, facts: &Facts, other: &PodInfo, by: i64) {
        let Exclusive { namespace, claims, .. } = &facts.exclusive;
        if other.namespace == *namespace {
            let shared = claims.iter().filter(|claim| other.claims.contains(claim)).count();
            self.users += by * shared as i64;
        }
    }
}

pub fn check(facts: &Facts, counted: &Counted, node: &NodeInfo) -> Result<(), Reject> {
    let mine = &facts.exclusive.disks;
    let clashes = |its: Disk| mine.iter().any(|disk| disk.clashes(&its));
    if !mine.is_empty() && node.pods.values().any(|pod| disks(pod).any(clashes)) {
        return Err(Reject::for_now(Rule::VolumeRestrictions, DISK_IN_USE));
    }
    match counted.users > 0 {
        true => Err(Reject::for_now(Rule::VolumeRestrictions, IN_USE)),
        false => Ok(()),
    }
}
