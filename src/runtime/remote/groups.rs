//! The control group of a pod where the runtime is not ours: made with the pod's limits before
//! its sandbox, and removed after the last one.
//!
//! Which group it is stands in an annotation of the sandbox, so that the next process of the
//! server finds it; callers never see that annotation.

use std::time::Duration;

use super::Remote;
use crate::cri::{Error, ErrorKind, PodSandboxConfig, Result};
use crate::wire::sandboxes as wire;

const ANNOTATION: &str = "coracle.io/pod-cgroup";
/// How long a group may stay busy after its processes have ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// Notes the pod's group where [`group_of`] finds it.
pub(super) fn note(config: &mut wire::PodSandboxConfig, group: &str) {
    if !group.is_empty() {
        config.annotations.insert(ANNOTATION.to_owned(), group.to_owned());
    }
}

pub(super) fn forget(status: &mut wire::PodSandboxStatus) {
    status.annotations.remove(ANNOTATION);
}

fn group_of(sandbox: &wire::PodSandbox) -> Option<&String> {
    sandbox.annotations.get(ANNOTATION).filter(|group| !group.split('/').any(|it| it == ".."))
}

/// The group of a sandbox that goes, if no other one is in it.
fn last_in(group_of_id: &str, all: &[wire::PodSandbox]) -> Option<String> {
    let group = group_of(all.iter().find(|it| it.id == group_of_id)?)?;
    let is_shared = all.iter().any(|it| it.id != group_of_id && group_of(it) == Some(group));
    (!is_shared).then(|| group.clone())
}

impl Remote {
    pub(super) async fn make_group(&self, config: &PodSandboxConfig) -> Result<()> {
        if config.cgroup_parent.is_empty() {
            return Ok(());
        }
        let group = self.cgroups.group(&config.cgroup_parent);
        let limits = crate::oci::limits(&config.resources);
        let made = base::task::spawn_blocking(move || {
            group.create()?;
            group.apply(&limits)
        });
        let failed = |why: String| Error::new(ErrorKind::Internal, format!("set up cgroup: {why}"));
        let made = made.await.map_err(|error| failed(error.to_string()))?;
        made.map_err(|error| failed(error.to_string()))
    }

    /// The group that goes with this sandbox; None if it stays.
    pub(super) async fn leaving_group(&self, sandbox_id: &str) -> Result<Option<String>> {
        Ok(last_in(sandbox_id, &self.sandboxes().await?))
    }

    pub(super) async fn remove_group(&self, path: String) {
        let group = self.cgroups.group(&path);
        let removed = base::task::spawn_blocking(move || {
            // The kubelet may keep groups of its own below; then it stays.
            if group.processes().is_empty() { group.delete(PATIENCE) } else { Ok(()) }
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(cgroup = path, %error, "a pod's cgroup is left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_goes_with_the_last_sandbox_in_it() {
        let sandbox = |id: &str, group: Option<&str>| {
            let annotations = group.map(|it| (ANNOTATION.to_owned(), it.to_owned()));
            wire::PodSandbox {
                id: id.into(),
                annotations: annotations.into_iter().collect(),
                ..Default::default()
            }
        };
        let all = [
            sandbox("a", Some("pods/1")),
            sandbox("b", Some("pods/2")),
            sandbox("c", Some("pods/2")),
            sandbox("d", None),
            sandbox("e", Some("../etc")),
        ];
        for (id, wanted) in
            [("a", Some("pods/1")), ("b", None), ("d", None), ("e", None), ("gone", None)]
        {
            assert_eq!(last_in(id, &all).as_deref(), wanted, "{id}");
        }
    }
}
