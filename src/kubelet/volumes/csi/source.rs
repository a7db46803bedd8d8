//! What a pod wants of a driver, and the words in which drivers are told.
//!
//! Pure.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, SecretReference, Volume};
use k8s_openapi::api::storage::v1::CSIDriverSpec;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::csi::driver::Driver;
use crate::csi::messages::{
    Ability, AccessMode, AccessType, Mode, MountVolume, Nothing, VolumeCapability,
};
use crate::pod;
use crate::volumes::claims::Bound;
use crate::volumes::selinux;

/// A volume of a driver, as the pod's claim or the pod itself describes it.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// Name of the PersistentVolume, or of the pod's volume.
    pub name: String,
    pub driver: String,
    pub handle: String,
    pub fs_type: String,
    pub attributes: HashMap<String, String>,
    pub read_only: bool,
    pub mount_options: Vec<String>,
    pub access_modes: Vec<String>,
    pub stage_secret: Option<SecretReference>,
    pub publish_secret: Option<SecretReference>,
    pub expand_secret: Option<SecretReference>,
    pub is_block: bool,
    /// Made for this pod, and described in it.
    pub is_ephemeral: bool,
    /// SELinux label that the driver mounts the whole with.
    pub label: Option<String>,
}

impl Source {
    /// None for a volume that no driver makes.
    pub fn of(pod: &Pod, volume: &Volume, bound: Option<&Bound>) -> Option<Self> {
        if let Some(csi) = &volume.csi {
            let namespace = Some(pod::namespace(pod).to_owned());
            return Some(Self {
                name: volume.name.clone(),
                driver: csi.driver.clone(),
                handle: ephemeral_handle(pod::uid(pod), &volume.name),
                fs_type: csi.fs_type.clone().unwrap_or_default(),
                attributes: csi.volume_attributes.clone().into_iter().flatten().collect(),
                read_only: csi.read_only == Some(true),
                publish_secret: csi.node_publish_secret_ref.as_ref().map(|it| SecretReference {
                    name: Some(it.name.clone()),
                    namespace: namespace.clone(),
                }),
                is_ephemeral: true,
                ..Self::default()
            });
        }
        let bound = bound?;
        let csi = bound.spec.csi.as_ref()?;
        Some(Self {
            name: bound.name.clone(),
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            fs_type: csi.fs_type.clone().unwrap_or_default(),
            attributes: csi.volume_attributes.clone().into_iter().flatten().collect(),
            read_only: bound.read_only,
            mount_options: bound.spec.mount_options.clone().unwrap_or_default(),
            access_modes: bound.spec.access_modes.clone().unwrap_or_default(),
            stage_secret: csi.node_stage_secret_ref.clone(),
            publish_secret: csi.node_publish_secret_ref.clone(),
            expand_secret: csi.node_expand_secret_ref.clone(),
            is_block: bound.is_block(),
            is_ephemeral: false,
            label: None,
        })
    }

    pub fn record(&self, node: &str, attach_required: bool) -> Record {
        Record {
            driver_name: self.driver.clone(),
            volume_handle: self.handle.clone(),
            spec_vol_id: self.name.clone(),
            node_name: node.to_owned(),
            attachment_id: attachment(&self.handle, &self.driver, node),
            volume_lifecycle_mode: mode(self.is_ephemeral).to_owned(),
            is_block: self.is_block,
            attach_required,
            se_linux_mount_context: self.label.clone().unwrap_or_default(),
        }
    }

    /// Notes the SELinux label that the driver is asked to mount the volume with, where it says
    /// that it can.
    ///
    /// # Errors
    /// When the pod's containers want several.
    pub fn set_label(
        &mut self,
        pod: &Pod,
        name: &str,
        described: Option<&CSIDriverSpec>,
        labels: &selinux::Labels,
    ) -> Result<(), String> {
        let can = described.and_then(|it| it.se_linux_mount) == Some(true);
        if can && !self.is_block {
            let policy = sys::selinux::Host::default().policy();
            // One that is made for the pod has no name but its handle that is nobody else's.
            let plugin = format!("kubernetes.io/csi/{}", self.driver);
            let (id, access_modes) = (format!("{plugin}^{}", self.handle), &self.access_modes);
            let volume = selinux::Volume { plugin: &plugin, id: &id, name, access_modes };
            self.label = labels.of(policy.as_ref(), pod, &volume)?;
        }
        Ok(())
    }

    /// Who owns the files: the driver, when it can; otherwise the kubelet, as the policy says.
    pub fn takes_group(&self, policy: Option<&str>) -> bool {
        if self.read_only || self.is_block {
            return false;
        }
        match policy {
            Some("None") => false,
            Some("File") => true,
            _ => {
                let once = ["ReadWriteOnce", "ReadWriteOncePod"];
                !self.fs_type.is_empty()
                    && self.access_modes.iter().any(|mode| once.contains(&mode.as_str()))
            }
        }
    }

    pub fn capability(&self, driver: &Driver, group: Option<u32>) -> VolumeCapability {
        let access_type = if self.is_block {
            AccessType::Block(Nothing {})
        } else {
            let mut mount_flags = self.mount_options.clone();
            mount_flags.extend(self.label.as_deref().map(selinux::mount_option));
            AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags,
                volume_mount_group: group.map(|group| group.to_string()).unwrap_or_default(),
            })
        };
        let first = self.access_modes.first().map_or("ReadWriteOnce", String::as_str);
        let mode = access_mode(first, driver.can(Ability::SingleNodeMultiWriter));
        VolumeCapability {
            access_type: Some(access_type),
            access_mode: Some(AccessMode { mode: mode as i32 }),
        }
    }
}

/// What lies on disk of a volume before its driver is asked for anything: `vol_data.json`,
/// with upstream's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub driver_name: String,
    pub volume_handle: String,
    #[serde(rename = "specVolID")]
    pub spec_vol_id: String,
    #[serde(default)]
    pub node_name: String,
    #[serde(rename = "attachmentID", default)]
    pub attachment_id: String,
    pub volume_lifecycle_mode: String,
    #[serde(default)]
    pub is_block: bool,
    #[serde(default)]
    pub attach_required: bool,
    /// SELinux label that the whole is mounted with; empty is none.
    #[serde(default)]
    pub se_linux_mount_context: String,
}

impl Record {
    /// As the node's status and the attaching controller name the volume.
    pub fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver_name, self.volume_handle)
    }

    pub fn is_ephemeral(&self) -> bool {
        self.volume_lifecycle_mode == mode(true)
    }

    /// Where the volume's own record lies, below the root directory.
    pub fn global_dir(&self) -> PathBuf {
        let plugins = Path::new("plugins/kubernetes.io/csi");
        plugins.join(&self.driver_name).join(hex(&self.volume_handle))
    }

    /// Where the driver stages it, below the root directory.
    pub fn staging(&self) -> PathBuf {
        if self.is_block {
            return Path::new("plugins/kubernetes.io/csi/volumeDevices/staging")
                .join(&self.spec_vol_id);
        }
        self.global_dir().join("globalmount")
    }

    /// Where the driver publishes it for a pod, below the root directory.
    pub fn target(&self, uid: &str) -> PathBuf {
        if self.is_block {
            return Path::new("plugins/kubernetes.io/csi/volumeDevices/publish")
                .join(&self.spec_vol_id)
                .join(uid);
        }
        pod_dir(uid, &self.spec_vol_id).join("mount")
    }
}

/// Where the record of a pod's volume lies, below the root directory.
pub fn pod_dir(uid: &str, name: &str) -> PathBuf {
    Path::new("pods").join(uid).join("volumes/kubernetes.io~csi").join(name)
}

fn hex(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of the VolumeAttachment that the attaching controller makes.
pub fn attachment(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", hex(&format!("{handle}{driver}{node}")))
}

fn ephemeral_handle(uid: &str, volume: &str) -> String {
    format!("csi-{}", hex(&format!("{uid}{volume}")))
}

fn mode(is_ephemeral: bool) -> &'static str {
    if is_ephemeral { "Ephemeral" } else { "Persistent" }
}

fn access_mode(mode: &str, tells_writers: bool) -> Mode {
    match mode {
        "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
        "ReadWriteMany" => Mode::MultiNodeMultiWriter,
        "ReadWriteOncePod" if tells_writers => Mode::SingleNodeSingleWriter,
        "ReadWriteOnce" if tells_writers => Mode::SingleNodeMultiWriter,
        "ReadWriteOnce" | "ReadWriteOncePod" => Mode::SingleNodeWriter,
        _ => Mode::Unknown,
    }
}

/// Whether the driver's description lets it make such volumes.
///
/// # Errors
/// When it does not.
pub fn check_mode(source: &Source, described: Option<&CSIDriverSpec>) -> Result<(), String> {
    let wanted = mode(source.is_ephemeral);
    let driver = &source.driver;
    let modes = match described {
        None if source.is_ephemeral => {
            return Err(format!(
                "volume mode {wanted:?} not supported by driver {driver} (no CSIDriver object)"
            ));
        }
        None => return Ok(()),
        Some(spec) => spec.volume_lifecycle_modes.clone().unwrap_or_default(),
    };
    let modes = if modes.is_empty() { vec![mode(false).to_owned()] } else { modes };
    if modes.iter().any(|it| it == wanted) {
        return Ok(());
    }
    let only: Vec<String> = modes.iter().map(|it| format!("{it:?}")).collect();
    Err(format!(
        "volume mode {wanted:?} not supported by driver {driver} (only supports [{}])",
        only.join(" ")
    ))
}

/// What a driver is told of the pod, where it asks for that.
pub fn pod_attributes(pod: &Pod, is_ephemeral: bool) -> HashMap<String, String> {
    let account = pod::spec(pod).service_account_name.clone().unwrap_or_default();
    [
        ("pod.name", pod::name(pod).to_owned()),
        ("pod.namespace", pod::namespace(pod).to_owned()),
        ("pod.uid", pod::uid(pod).to_owned()),
        ("serviceAccount.name", account),
        ("ephemeral", is_ephemeral.to_string()),
    ]
    .map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::json;

    fn claimed(spec: serde_json::Value) -> Source {
        let pod = pod(json!({"containers": [],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}));
        let bound = Bound {
            claim: "c".into(),
            name: "pv1".into(),
            spec: serde_json::from_value(spec).unwrap(),
            read_only: false,
            group: None,
        };
        let volume = &pod::spec(&pod).volumes.as_ref().unwrap()[0];
        Source::of(&pod, volume, Some(&bound)).unwrap()
    }

    #[test]
    fn files_go_to_the_group_as_the_drivers_policy_says() {
        for (modes, fs_type, policy, takes) in [
            (json!(["ReadWriteOnce"]), "ext4", None, true),
            (json!(["ReadWriteOncePod"]), "ext4", Some("ReadWriteOnceWithFSType"), true),
            (json!(["ReadWriteMany"]), "ext4", None, false),
            (json!(["ReadWriteOnce"]), "", None, false),
            (json!(["ReadWriteMany"]), "", Some("File"), true),
            (json!(["ReadWriteOnce"]), "ext4", Some("None"), false),
        ] {
            let source = claimed(json!({"accessModes": modes,
                "csi": {"driver": "d", "volumeHandle": "h", "fsType": fs_type}}));
            assert_eq!(source.takes_group(policy), takes, "{source:?} {policy:?}");
        }
    }

    #[test]
    fn access_modes_depend_on_what_the_driver_tells_apart() {
        for (mode, plain, telling) in [
            ("ReadWriteOnce", Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter),
            ("ReadWriteOncePod", Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter),
            ("ReadOnlyMany", Mode::MultiNodeReaderOnly, Mode::MultiNodeReaderOnly),
            ("ReadWriteMany", Mode::MultiNodeMultiWriter, Mode::MultiNodeMultiWriter),
        ] {
            assert_eq!((access_mode(mode, false), access_mode(mode, true)), (plain, telling));
        }
    }

    #[test]
    fn a_driver_makes_only_the_volumes_that_it_is_described_for() {
        let spec = |modes: serde_json::Value| {
            serde_json::from_value::<CSIDriverSpec>(json!({"volumeLifecycleModes": modes})).unwrap()
        };
        let persistent = Source { driver: "d".into(), ..Source::default() };
        let ephemeral = Source { is_ephemeral: true, ..persistent.clone() };
        assert_eq!(check_mode(&persistent, None), Ok(()));
        assert_eq!(check_mode(&persistent, Some(&spec(json!(null)))), Ok(()));
        assert_eq!(check_mode(&ephemeral, Some(&spec(json!(["Persistent", "Ephemeral"])))), Ok(()));
        assert_eq!(
            check_mode(&ephemeral, None).unwrap_err(),
            "volume mode \"Ephemeral\" not supported by driver d (no CSIDriver object)"
        );
        assert_eq!(
            check_mode(&persistent, Some(&spec(json!(["Ephemeral"])))).unwrap_err(),
            "volume mode \"Persistent\" not supported by driver d (only supports [\"Ephemeral\"])"
        );
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_names_its_places() {
        let mut source = claimed(json!({"csi": {"driver": "d.example", "volumeHandle": "a/../b"}}));
        source.label = Some("u:object_r:container_file_t:s0:c1,c2".into());
        let record = source.record("n1", true);
        let text = serde_json::to_string(&record).unwrap();
        assert!(text.contains("\"specVolID\":\"pv1\"") && text.contains("\"attachmentID\":\"csi-"));
        assert!(text.contains("\"seLinuxMountContext\":\"u:object_r:container_file_t:s0:c1,c2\""));
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        assert_eq!(record.unique_name(), "kubernetes.io/csi/d.example^a/../b");
        let staging = record.staging();
        assert_eq!(staging.components().count(), 6, "a handle leads nowhere: {staging:?}");
        assert_eq!(record.target("u"), Path::new("pods/u/volumes/kubernetes.io~csi/pv1/mount"));
    }
}
