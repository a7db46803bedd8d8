//! Devices of the Container Device Interface: files of vendors say what a container needs to
//! use a device, which is named `VENDOR/CLASS=NAME`.
//!
//! Follows <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>. The
//! files are read anew for each container that asks; they change under way. What of the
//! interface has no place here (network devices, cache classes, file systems that are no bind
//! mounts) is an error, for a container without it would not work.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tracing::warn;

use crate::cri::{
    ContainerConfig, Device, Error, ErrorKind, Hook, HookStage, Mount, MountPropagation, Result,
};

/// Where vendors put their files; of two that name the same device the later has it.
pub const DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Files of a directory that are looked at.
const FILES_MAX: usize = 1_024;
const FILE_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    kind: String,
    #[serde(default)]
    devices: Vec<Named>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    device_nodes: Vec<Node>,
    #[serde(default)]
    mounts: Vec<Bind>,
    #[serde(default, rename = "additionalGids")]
    additional_gids: Vec<u32>,
    #[serde(default)]
    hooks: Vec<Program>,
    #[serde(default)]
    net_devices: Vec<serde_json::Value>,
    #[serde(default)]
    intel_rdt: Option<Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
    #[serde(default)]
    permissions: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bind {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    options: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Program {
    hook_name: HookStage,
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    timeout: i64,
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Create, format!("CDI device injection failed: {why}"))
}

/// Adds what the container's devices stand for.
///
/// # Errors
/// A device that nobody describes, or that needs what there is not.
pub fn inject(config: &mut ContainerConfig, dirs: &[PathBuf]) -> Result<()> {
    if config.cdi_devices.is_empty() {
        return Ok(());
    }
    let specs: Vec<Vec<(PathBuf, Spec)>> = dirs.iter().map(|dir| read(dir)).collect();
    let (mut seen, mut found, mut missing) = (BTreeSet::new(), Vec::new(), Vec::new());
    for name in std::mem::take(&mut config.cdi_devices) {
        match find(&specs, &name) {
            Some((path, spec, device)) => {
                // What holds for all devices of a file is added once.
                found.extend(seen.insert(path).then_some(&spec.container_edits));
                found.push(&device.container_edits);
            }
            None => missing.push(name),
        }
    }
    if !missing.is_empty() {
        return Err(failed(format!("unresolvable CDI devices {}", missing.join(", "))));
    }
    found.into_iter().try_for_each(|edits| apply(edits, config))
}

fn apply(edits: &Edits, config: &mut ContainerConfig) -> Result<()> {
    let unfit = match edits {
        it if !it.net_devices.is_empty() => Some("netDevices".to_owned()),
        it if it.intel_rdt.is_some() => Some("intelRdt".to_owned()),
        _ => None,
    };
    if let Some(unfit) = unfit {
        return Err(failed(format!("{unfit} are not supported by this runtime")));
    }
    for env in &edits.env {
        let (name, value) = env
            .split_once('=')
            .ok_or_else(|| failed(format!("invalid environment variable {env:?}")))?;
        config.envs.retain(|(other, _)| other != name);
        config.envs.push((name.to_owned(), value.to_owned()));
    }
    for node in &edits.device_nodes {
        config.devices.retain(|it| it.container_path != node.path);
        config.devices.push(Device {
            container_path: node.path.clone(),
            host_path: node.host_path.clone().unwrap_or_else(|| node.path.clone()),
            permissions: node.permissions.clone(),
        });
    }
    for mount in &edits.mounts {
        let bind = bind(mount)?;
        config.mounts.retain(|it| it.container_path != bind.container_path);
        config.mounts.push(bind);
    }
    for hook in &edits.hooks {
        if !hook.path.is_absolute() {
            return Err(failed(format!("hook {} is no absolute path", hook.path.display())));
        }
        config.hooks.push(Hook {
            stage: hook.hook_name,
            path: hook.path.clone(),
            args: hook.args.clone(),
            env: hook.env.clone(),
            timeout_seconds: hook.timeout,
        });
    }
    config
        .security
        .supplemental_groups
        .extend(edits.additional_gids.iter().map(|gid| i64::from(*gid)));
    Ok(())
}

/// What a bind mount restricts besides writing (`nosuid`, `nodev`, `noexec`) the container's
/// own rules restrict already.
fn bind(mount: &Bind) -> Result<Mount> {
    let has = |option: &str| mount.options.iter().any(|it| it == option);
    let is_bind =
        matches!(mount.kind.as_str(), "" | "bind" | "none") || has("bind") || has("rbind");
    if !is_bind {
        return Err(failed(format!(
            "mounts of type {:?} are not supported by this runtime",
            mount.kind
        )));
    }
    let propagation = match () {
        () if has("rshared") || has("shared") => MountPropagation::Bidirectional,
        () if has("rslave") || has("slave") => MountPropagation::HostToContainer,
        () => MountPropagation::Private,
    };
    Ok(Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: has("ro") || has("rro"),
        recursive_readonly: has("rro"),
        propagation,
        ..Mount::default()
    })
}

/// The device, in the last of the directories that has it. Two files of one directory that
/// both describe it are as good as none.
fn find<'a>(
    specs: &'a [Vec<(PathBuf, Spec)>],
    name: &str,
) -> Option<(&'a Path, &'a Spec, &'a Named)> {
    let (kind, device) = name.split_once('=')?;
    for specs in specs.iter().rev() {
        let mut of_kind =
            specs.iter().filter(|(_, spec)| spec.kind == kind).filter_map(|(path, spec)| {
                let named = spec.devices.iter().find(|it| it.name == device)?;
                Some((path.as_path(), spec, named))
            });
        match (of_kind.next(), of_kind.next()) {
            (Some(found), None) => return Some(found),
            (Some(_), Some(_)) => return None,
            (None, _) => {}
        }
    }
    None
}

/// The files of a directory that make sense.
fn read(dir: &Path) -> Vec<(PathBuf, Spec)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let is_spec = |path: &PathBuf| {
        path.extension().is_some_and(|it| it == "json" || it == "yaml" || it == "yml")
    };
    let paths = entries.map(|entry| entry.path()).filter(is_spec);
    let mut out = BTreeMap::new();
    for path in paths.take(FILES_MAX) {
        match read_file(&path) {
            Ok(spec) => {
                out.insert(path, spec);
            }
            Err(error) => warn!(path = %path.display(), error, "devices are not read"),
        }
    }
    out.into_iter().collect()
}

fn read_file(path: &Path) -> std::result::Result<Spec, String> {
    let meta = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
        return Err(format!("no file of {FILE_BYTES_MAX} bytes or less"));
    }
    let mut text = std::fs::read(path).map_err(|error| error.to_string())?;
    if path.extension().is_none_or(|it| it != "json") {
        // By way of JSON: a reader of YAML for each type is larger than all the rest here.
        let read = serde_saphyr::from_slice::<Value>(&text).map_err(|error| error.to_string())?;
        text = serde_json::to_vec(&read).map_err(|error| error.to_string())?;
    }
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn injected(
        files: &[(&str, &str)],
        names: &[&str],
    ) -> std::result::Result<ContainerConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let dirs = ["etc", "run"].map(|name| dir.path().join(name));
        dirs.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let mut config = ContainerConfig {
            envs: vec![("A".into(), "own".into())],
            cdi_devices: names.iter().map(|name| (*name).to_owned()).collect(),
            ..ContainerConfig::default()
        };
        inject(&mut config, &dirs).map_err(|error| error.to_string()).map(|()| config)
    }

    const GPU: &str = r#"{"cdiVersion": "0.6.0", "kind": "v.com/gpu",
        "containerEdits": {"env": ["ALL=1"], "mounts": [{"hostPath": "/lib/x",
            "containerPath": "/x", "options": ["ro", "nosuid", "rbind", "rprivate"]}]},
        "devices": [
            {"name": "0", "containerEdits": {"env": ["A=cdi"], "additionalGids": [44],
                "deviceNodes": [{"path": "/dev/g0", "hostPath": "/dev/null", "permissions": "rw"}]}},
            {"name": "1", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}]}}]}"#;

    #[test]
    fn a_device_brings_what_its_file_says() {
        let got = injected(&[("etc/v.json", GPU)], &["v.com/gpu=0", "v.com/gpu=1"]).unwrap();
        let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(got.envs, [env("ALL", "1"), env("A", "cdi")]);
        let devices: Vec<_> = got
            .devices
            .iter()
            .map(|it| {
                (
                    it.container_path.to_str().unwrap(),
                    it.host_path.to_str().unwrap(),
                    it.permissions.as_str(),
                )
            })
            .collect();
        assert_eq!(devices, [("/dev/g0", "/dev/null", "rw"), ("/dev/null", "/dev/null", "")]);
        assert_eq!(got.mounts.len(), 1, "what holds for all comes once");
        assert!(got.mounts[0].readonly);
        assert_eq!(got.security.supplemental_groups, [44]);
        assert!(got.cdi_devices.is_empty());
    }

    #[test]
    fn the_later_directory_wins_and_a_conflict_is_nothing() {
        let yaml = "cdiVersion: 0.6.0\nkind: v.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    env: [B=2]\n";
        let got = injected(&[("etc/v.json", GPU), ("run/v.yaml", yaml)], &["v.com/gpu=0"]).unwrap();
        assert_eq!(got.envs[1], ("B".to_owned(), "2".to_owned()));
        let files = [("etc/a.json", GPU), ("etc/b.json", GPU)];
        assert_eq!(
            injected(&files, &["v.com/gpu=0", "v.com/gpu=9", "x"]).unwrap_err(),
            "CDI device injection failed: unresolvable CDI devices v.com/gpu=0, v.com/gpu=9, x"
        );
    }

    #[test]
    fn what_cannot_be_done_or_read_is_told() {
        let with = |edits: &str| {
            format!(
                r#"{{"kind": "v.com/gpu", "devices": [{{"name": "0", "containerEdits": {edits}}}]}}"#
            )
        };
        for (edits, told) in [
            (
                r#"{"hooks": [{"hookName": "createContainer", "path": "x"}]}"#,
                "hook x is no absolute path",
            ),
            (r#"{"netDevices": [{}]}"#, "netDevices are not supported"),
            (
                r#"{"mounts": [{"hostPath": "t", "containerPath": "/t", "type": "tmpfs"}]}"#,
                "mounts of type \"tmpfs\"",
            ),
            (r#"{"env": ["A"]}"#, "invalid environment variable \"A\""),
            (r#"{"env": 5}"#, "unresolvable CDI devices"),
            (r#"{"hooks": [{"hookName": "never", "path": "/x"}]}"#, "unresolvable CDI devices"),
        ] {
            let refused = injected(&[("etc/v.json", &with(edits))], &["v.com/gpu=0"]).unwrap_err();
            assert!(refused.contains(told), "{refused}");
        }
    }
}
