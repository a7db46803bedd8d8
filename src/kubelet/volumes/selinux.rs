//! Which volumes are mounted with an SELinux label as a whole (SELinuxMountReadWriteOncePod);
//! the files of others are relabelled one by one, by the container runtime.
//!
//! What would go wrong if all volumes were mounted so is counted.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use sys::selinux::Policy;

use crate::container_config::selinux_options;
use crate::metrics::selinux::{self as metrics, Trouble};
use crate::pod;

/// A volume that can be mounted with a label, which did not opt out.
pub struct Volume<'a> {
    /// Upstream's name for who makes it, that of its driver behind a slash.
    pub plugin: &'a str,
    /// Of all nodes' volumes.
    pub id: &'a str,
    /// As the pod calls it.
    pub name: &'a str,
    pub access_modes: &'a [String],
}

impl Volume<'_> {
    /// Only a single pod may use it: its label is that of its mount.
    fn is_mounted_so(&self) -> bool {
        matches!(self.access_modes, [only] if only == "ReadWriteOncePod")
    }

    fn access_mode(&self) -> &'static str {
        let modes = [
            ("ReadWriteMany", "RWX"),
            ("ReadOnlyMany", "ROX"),
            ("ReadWriteOnce", "RWO"),
            ("ReadWriteOncePod", "RWOP"),
        ];
        let widest =
            modes.into_iter().find(|(mode, _)| self.access_modes.iter().any(|it| it == mode));
        widest.map_or("inline", |(_, short)| short)
    }
}

/// A volume as its first pod wants it.
struct Use {
    label: String,
    /// Uids of the pods that have been counted.
    pods: BTreeSet<String>,
}

/// The labels of the volumes of this node's pods.
#[derive(Default)]
pub struct Labels(Mutex<HashMap<String, Use>>);

impl Labels {
    /// The label of a persistent volume that can be mounted with one, where the node has
    /// SELinux: one that only a single pod may use, whose containers agree, and that did not
    /// opt out.
    ///
    /// # Errors
    /// When they do not agree, or ask for what is no label.
    pub fn of(
        &self,
        policy: Option<&Policy>,
        pod: &Pod,
        volume: &Volume<'_>,
    ) -> Result<Option<String>, String> {
        let Some(policy) = policy else { return Ok(None) };
        let (mut label, trouble) = label(policy, pod, volume.name);
        let (mode, is_mounted_so) = (volume.access_mode(), volume.is_mounted_so());
        if let Some((trouble, why)) = &trouble
            && is_mounted_so
        {
            metrics::found(*trouble, volume.plugin, mode, true);
            return Err(why.clone());
        }
        let context = pod::spec(pod).security_context.as_ref();
        if context.and_then(|it| it.se_linux_change_policy.as_deref()) == Some("Recursive") {
            label.clear();
        }
        let mut uses = self.0.lock();
        let is_first = !uses.contains_key(volume.id);
        let known = uses
            .entry(volume.id.to_owned())
            .or_insert_with(|| Use { label: label.clone(), pods: BTreeSet::new() });
        if known.pods.insert(pod::uid(pod).to_owned()) {
            if let Some((trouble, _)) = trouble {
                metrics::found(trouble, volume.plugin, mode, false);
            }
            if known.label != label {
                // Of a volume for a single pod only the next one sees the one before.
                metrics::found(Trouble::Volume, volume.plugin, mode, is_mounted_so);
            } else if is_first && !label.is_empty() {
                metrics::admitted(volume.plugin, mode);
            }
        }
        Ok(Some(label).filter(|label| is_mounted_so && !label.is_empty()))
    }

    pub fn release(&self, uid: &str) {
        self.0.lock().retain(|_, it| {
            it.pods.remove(uid);
            !it.pods.is_empty()
        });
    }
}

/// The label that the pod's containers want of a volume, empty where they name none, and what
/// is wrong with it.
fn label(policy: &Policy, pod: &Pod, volume: &str) -> (String, Option<(Trouble, String)>) {
    let context = pod::spec(pod).security_context.as_ref();
    let mut labels = BTreeSet::new();
    for (_, container) in pod::containers(pod) {
        if !container.volume_mounts.iter().flatten().any(|mount| mount.name == volume) {
            continue;
        }
        let options = selinux_options(context, container.security_context.as_ref());
        labels.insert(match options {
            // Without a level the runtime makes one up, which nobody knows before.
            Some(options) if !options.level.is_empty() => {
                match policy.labels(&options.wanted(), "") {
                    Ok(labels) => labels.file,
                    Err(why) => return (String::new(), Some((Trouble::Container, why))),
                }
            }
            _ => String::new(),
        });
    }
    let trouble = (labels.len() > 1).then(|| {
        let all = labels.iter().cloned().collect::<Vec<_>>().join(",");
        (Trouble::Pod, format!("multiple SELinux labels found: {all}"))
    });
    (labels.pop_first().unwrap_or_default(), trouble)
}

/// The option that a mount takes; in quotes, for labels have commas.
pub fn mount_option(label: &str) -> String {
    format!("{}=\"{label}\"", sys::mount::LABEL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::{Value, json};

    fn policy() -> (tempfile::TempDir, Policy) {
        let dir = tempfile::tempdir().unwrap();
        let contexts = dir.path().join("targeted/contexts");
        std::fs::create_dir_all(&contexts).unwrap();
        let text = "process = \"u:r:container_t:s0\"\nfile = \"u:object_r:container_file_t:s0\"\n";
        std::fs::write(contexts.join("lxc_contexts"), text).unwrap();
        std::fs::write(dir.path().join("enforce"), "0").unwrap();
        let host = sys::selinux::Host {
            kernel: dir.path().into(),
            policies: dir.path().into(),
            own_label: dir.path().join("none"),
        };
        let policy = host.policy().unwrap();
        (dir, policy)
    }

    #[test]
    fn a_volume_of_one_pod_is_mounted_with_its_label() {
        let (_dir, policy) = policy();
        let label = |context: Value, own: [Value; 2], modes: &[&str]| {
            let container = |name: &str, own: &Value| {
                json!({"name": name, "securityContext": own,
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}]})
            };
            let pod = pod(json!({"securityContext": context,
                "containers": [container("a", &own[0]), container("b", &own[1]), {"name": "c"}]}));
            let modes: Vec<String> = modes.iter().map(|it| (*it).to_owned()).collect();
            let volume = Volume { plugin: "p", id: "v", name: "v", access_modes: &modes };
            Labels::default().of(Some(&policy), &pod, &volume)
        };
        let level = |level: &str| json!({"seLinuxOptions": {"level": level}});
        let none = || [json!({}), json!({})];
        let once = ["ReadWriteOncePod"];
        let whole = Ok(Some("u:object_r:container_file_t:s0:c3,c4".to_owned()));
        assert_eq!(label(level("s0:c3,c4"), none(), &once), whole);
        let both = [level("s0:c3,c4"), level("s0:c3,c4")];
        assert_eq!(label(json!({}), both, &once), whole);
        for (context, own, modes) in [
            (level("s0:c3,c4"), none(), &["ReadWriteOnce"][..]),
            (level("s0:c3,c4"), none(), &["ReadWriteOncePod", "ReadOnlyMany"]),
            (json!({"seLinuxOptions": {"type": "spc_t"}}), none(), &once),
            (json!({}), none(), &once),
            (
                json!({"seLinuxOptions": {"level": "s0:c3,c4"}, "seLinuxChangePolicy": "Recursive"}),
                none(),
                &once,
            ),
        ] {
            assert_eq!(label(context.clone(), own, modes), Ok(None), "{context} {modes:?}");
        }
        let apart = label(json!({}), [level("s0:c1"), level("s0:c2")], &once).unwrap_err();
        assert_eq!(
            apart,
            "multiple SELinux labels found: u:object_r:container_file_t:s0:c1,\
             u:object_r:container_file_t:s0:c2"
        );
        let pod = pod(json!({"containers": []}));
        let modes = ["ReadWriteOncePod".to_owned()];
        let volume = Volume { plugin: "p", id: "v", name: "v", access_modes: &modes };
        assert_eq!(Labels::default().of(None, &pod, &volume), Ok(None));
    }

    #[test]
    fn what_goes_well_and_what_would_not_is_counted_once_for_each_pod() {
        let (_dir, policy) = policy();
        let labels = Labels::default();
        let see = |uid: &str, id: &str, mode: &str, levels: [&str; 2], change: &str| {
            let container = |name: &str, level: &str| {
                json!({"name": name, "securityContext": {"seLinuxOptions": {"level": level}},
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}]})
            };
            let mut pod = pod(json!({"securityContext": {"seLinuxChangePolicy": change},
                "containers": [container("a", levels[0]), container("b", levels[1])]}));
            pod.metadata.uid = Some(uid.into());
            let modes = [mode.to_owned()];
            let volume = Volume { plugin: "p", id, name: "v", access_modes: &modes };
            labels.of(Some(&policy), &pod, &volume)
        };
        let (one, both) = (["s0:c1", "s0:c1"], ["s0:c1", "s0:c2"]);
        for _ in 0..2 {
            assert!(see("u1", "once", "ReadWriteOncePod", one, "MountOption").unwrap().is_some());
            assert!(see("u2", "torn", "ReadWriteOncePod", both, "MountOption").is_err());
            for (uid, id, levels, change) in [
                ("u1", "many", one, "MountOption"),
                ("u2", "many", one, "MountOption"),
                ("u3", "many", one, "Recursive"),
                ("u4", "mixed", both, "MountOption"),
            ] {
                assert_eq!(see(uid, id, "ReadWriteMany", levels, change), Ok(None), "{uid} {id}");
            }
        }
        let text = base::metrics::render(base::metrics::Format::Prometheus);
        let count = |name: &str| {
            let start = format!("volume_manager_selinux_{name}");
            let line = text.lines().find(|line| line.starts_with(&start));
            line.and_then(|line| line.rsplit(' ').next()).unwrap_or("none").to_owned()
        };
        let rwx = |name: &str| format!("{name}_total{{access_mode=\"RWX\"");
        let once = |name: &str| format!("{name}_total{{access_mode=\"RWOP\"");
        for (name, want) in [
            (once("volumes_admitted"), "1"),
            // The one of several labels had one of them.
            (rwx("volumes_admitted"), "2"),
            (once("pod_context_mismatch_errors"), "2"),
            (rwx("pod_context_mismatch_warnings"), "1"),
            (rwx("volume_context_mismatch_warnings"), "1"),
            (rwx("volume_context_mismatch_errors"), "none"),
        ] {
            assert_eq!(count(&name), want, "{name}: {text}");
        }
        for uid in ["u1", "u2", "u3", "u4"] {
            labels.release(uid);
        }
        assert!(labels.0.lock().is_empty());
    }
}
