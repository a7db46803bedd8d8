//! Which volumes are mounted with an SELinux label as a whole (SELinuxMountReadWriteOncePod);
//! the files of others are relabelled one by one, by the container runtime.
//!
//! Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use sys::selinux::Policy;

use crate::container_config::selinux_options;
use crate::pod;

/// The label of a persistent volume that can be mounted with one, where the node has SELinux:
/// one that only a single pod may use, whose containers agree, and that did not opt out.
///
/// # Errors
/// When they do not agree, or ask for what is no label.
pub fn mount_label(
    policy: Option<&Policy>,
    pod: &Pod,
    volume: &str,
    access_modes: &[String],
) -> Result<Option<String>, String> {
    let Some(policy) = policy else { return Ok(None) };
    if !matches!(access_modes, [only] if only == "ReadWriteOncePod") {
        return Ok(None);
    }
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
                policy.labels(&options.wanted(), "")?.file
            }
            _ => String::new(),
        });
    }
    if labels.len() > 1 {
        let all = labels.into_iter().collect::<Vec<_>>().join(",");
        return Err(format!("multiple SELinux labels found: {all}"));
    }
    let is_recursive = context.and_then(|it| it.se_linux_change_policy.as_deref());
    if is_recursive == Some("Recursive") {
        return Ok(None);
    }
    Ok(labels.pop_first().filter(|label| !label.is_empty()))
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
            mount_label(Some(&policy), &pod, "v", &modes)
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
        assert_eq!(mount_label(None, &pod, "v", &["ReadWriteOncePod".to_owned()]), Ok(None));
    }
}
