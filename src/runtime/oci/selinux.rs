//! SELinux labels of pods and their containers, where the host's policy has such.
//!
//! A pod's containers share a level that no other pod has, so that they can use each
//! other's files and nobody else's.

use std::path::PathBuf;

use super::{ContainerRecord, Runtime, SandboxRecord, internal, sandbox::blocking};
use crate::cri::{Error, ErrorKind, PodSandboxConfig, Result};
use sys::selinux::{self, Host, Labels, Policy, Wanted};

/// By this many tries a level is found that no pod has, until half of all are taken.
const TRIES_MAX: usize = 64;

fn labels(policy: &Policy, wanted: &Wanted<'_>, level: &str) -> Result<Labels> {
    policy.labels(wanted, level).map_err(|why| Error::new(ErrorKind::InvalidArgument, why))
}

impl Runtime {
    /// The level of a new pod: the one it asks for, or one of its own.
    pub(super) fn level_for(&self, pod: &PodSandboxConfig) -> String {
        if Host::default().policy().is_none() {
            return String::new();
        }
        if let Some(options) = pod.selinux.as_ref().filter(|it| !it.level.is_empty()) {
            return options.level.clone();
        }
        let taken: std::collections::HashSet<String> =
            self.tables().sandboxes.values().map(|it| it.record.selinux_level.clone()).collect();
        let chance = || {
            let one = base::rng::below(selinux::CATEGORIES);
            let step = 1 + base::rng::below(selinux::CATEGORIES - 1);
            selinux::level(one, (one + step) % selinux::CATEGORIES)
        };
        let mut level = chance();
        for _ in 0..TRIES_MAX {
            if !taken.contains(&level) {
                break;
            }
            level = chance();
        }
        level
    }

    /// Labels of what a pod's containers share.
    pub(super) fn labels_of_pod(&self, pod: &SandboxRecord) -> Result<Option<Labels>> {
        let Some(policy) = Host::default().policy() else { return Ok(None) };
        let options = pod.config.selinux.clone().unwrap_or_default();
        labels(&policy, &options.wanted(), &pod.selinux_level).map(Some)
    }

    /// Labels of a container; what it says of itself stands in for all that its pod says but
    /// the level.
    pub(super) fn labels_of(
        &self,
        pod: &SandboxRecord,
        container: &crate::cri::ContainerConfig,
    ) -> Result<Option<Labels>> {
        let Some(own) = &container.security.selinux else { return self.labels_of_pod(pod) };
        let Some(policy) = Host::default().policy() else { return Ok(None) };
        labels(&policy, &own.wanted(), &pod.selinux_level).map(Some)
    }

    /// Labels the files of the node that a container has for itself or asks to be given.
    pub(super) async fn relabel(
        &self,
        record: &ContainerRecord,
        label: Option<String>,
    ) -> Result<()> {
        let Some(label) = label else { return Ok(()) };
        let asked = record.config.mounts.iter().filter(|mount| mount.selinux_relabel);
        let mut paths: Vec<PathBuf> = asked.map(|mount| mount.host_path.clone()).collect();
        paths.push(self.container_dir(&record.id).join(super::volumes::DIRECTORY));
        let own = self.sandbox_dir(&record.sandbox_id);
        paths.extend(["hostname", "resolv.conf"].map(|name| own.join(name)));
        blocking(move || {
            paths.iter().filter(|path| path.exists()).try_for_each(|path| {
                selinux::relabel(path, &label)
                    .map_err(|err| io_error(format!("relabel {}: {err}", path.display()), &err))
            })
        })
        .await
        .map_err(|err| internal("label the container's files", err))
    }
}

fn io_error(words: String, err: &std::io::Error) -> std::io::Error {
    std::io::Error::new(err.kind(), words)
}
