//! Volumes that one pod at a time may use (`ReadWriteOncePod`): the scheduler sees to that, and
//! the node to pods that came past it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use parking_lot::Mutex;

use super::claims::Bound;
use super::{CLAIMS_FILE, Failure};

/// By volume, the pod that has it.
#[derive(Default)]
pub struct Exclusive(Mutex<HashMap<String, String>>);

fn is_exclusive(bound: &Bound) -> bool {
    // Of a volume with several modes it is not known which one the pod means.
    matches!(bound.spec.access_modes.as_deref(), Some([only]) if only == "ReadWriteOncePod")
}

impl Exclusive {
    /// What the pods of an earlier process have; `pods` holds their directories.
    pub fn found(pods: &Path) -> Self {
        let mut out = HashMap::new();
        for dir in std::fs::read_dir(pods).into_iter().flatten().flatten() {
            let text = std::fs::read(dir.path().join(CLAIMS_FILE)).unwrap_or_default();
            let held: BTreeMap<String, Bound> = serde_json::from_slice(&text).unwrap_or_default();
            let uid = dir.file_name().to_string_lossy().into_owned();
            for bound in held.into_values().filter(is_exclusive) {
                out.insert(bound.name, uid.clone());
            }
        }
        Self(Mutex::new(out))
    }

    /// The pod has the volume until it is gone.
    ///
    /// # Errors
    /// The event that tells that another has it.
    pub fn take(&self, bound: &Bound, uid: &str) -> Result<(), Failure> {
        if !is_exclusive(bound) {
            return Ok(());
        }
        let mut held = self.0.lock();
        let holder = held.entry(bound.name.clone()).or_insert_with(|| uid.to_owned());
        if holder == uid {
            return Ok(());
        }
        let (reason, step) = match bound.is_block() {
            true => ("FailedMapVolume", "MapVolume.SetUpDevice"),
            false => ("FailedMount", "MountVolume.SetUp"),
        };
        let message = format!(
            "{step} failed for volume \"{}\" : volume uses the ReadWriteOncePod access mode and is \
             already in use by another pod",
            bound.name
        );
        Err(Failure::new(reason, message))
    }

    pub fn release(&self, uid: &str) {
        self.0.lock().retain(|_, holder| holder != uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bound(modes: serde_json::Value) -> Bound {
        let spec = serde_json::from_value(json!({"accessModes": modes})).unwrap();
        Bound { claim: "c".into(), name: "pv1".into(), spec, read_only: false, group: None }
    }

    #[test]
    fn one_pod_has_the_volume_until_it_goes_and_over_a_restart() {
        let one = bound(json!(["ReadWriteOncePod"]));
        let pods = tempfile::tempdir().unwrap();
        let dir = pods.path().join("u1");
        std::fs::create_dir(&dir).unwrap();
        std::fs::create_dir(pods.path().join("torn")).unwrap();
        std::fs::write(pods.path().join("torn").join(CLAIMS_FILE), "{").unwrap();
        let text = serde_json::to_vec(&json!({"v": one})).unwrap();
        std::fs::write(dir.join(CLAIMS_FILE), text).unwrap();
        let held = Exclusive::found(pods.path());
        assert_eq!(held.take(&one, "u1"), Ok(()));
        let refused = held.take(&one, "u2").unwrap_err();
        assert_eq!(
            refused.message,
            "MountVolume.SetUp failed for volume \"pv1\" : volume uses the ReadWriteOncePod access \
             mode and is already in use by another pod"
        );
        for modes in [json!(["ReadWriteOnce"]), json!(["ReadWriteOnce", "ReadWriteOncePod"])] {
            assert_eq!(held.take(&bound(modes), "u2"), Ok(()));
        }
        held.release("u1");
        assert_eq!(held.take(&one, "u2"), Ok(()));
    }
}
