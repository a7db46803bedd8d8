//! Which volumes this process has made, or found whole, for which pods; counted as it goes.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Volume;
use parking_lot::Mutex;

use super::claims::Bound;
use crate::metrics::volumes as metrics;

struct Entry {
    /// Upstream's name for who makes such volumes.
    plugin: String,
    is_there: bool,
}

/// By uid and volume name.
#[derive(Default)]
pub struct Made(Mutex<HashMap<(String, String), Entry>>);

/// None where it is not known yet what the volume's claim stands for.
pub fn plugin(volume: &Volume, bound: Option<&Bound>) -> Option<String> {
    if let Some(bound) = bound {
        return client::volumes::plugin(&bound.spec);
    }
    if let Some(csi) = &volume.csi {
        return Some(format!("kubernetes.io/csi:{}", csi.driver));
    }
    let kinds = [
        (volume.config_map.is_some(), "configmap"),
        (volume.secret.is_some(), "secret"),
        (volume.downward_api.is_some(), "downward-api"),
        (volume.projected.is_some(), "projected"),
        (volume.empty_dir.is_some(), "empty-dir"),
        (volume.host_path.is_some(), "host-path"),
        (volume.nfs.is_some(), "nfs"),
        (volume.iscsi.is_some(), "iscsi"),
    ];
    let (_, name) = kinds.into_iter().find(|(is_so, _)| *is_so)?;
    Some(format!("kubernetes.io/{name}"))
}

impl Made {
    pub fn has(&self, uid: &str, volume: &str) -> bool {
        let held = self.0.lock();
        held.get(&(uid.to_owned(), volume.to_owned())).is_some_and(|it| it.is_there)
    }

    /// The volume is wanted and, unless making it failed, there.
    pub fn note(&self, uid: &str, volume: &str, plugin: &str, is_there: bool) {
        let mut held = self.0.lock();
        let entry = held.entry((uid.to_owned(), volume.to_owned())).or_insert_with(|| {
            metrics::wanted(plugin, 1);
            Entry { plugin: plugin.to_owned(), is_there: false }
        });
        if is_there && !entry.is_there {
            metrics::there(&entry.plugin, 1);
            entry.is_there = true;
        }
    }

    /// The pod's volumes are gone, which took so long.
    pub fn release(&self, uid: &str, took: Duration) {
        self.0.lock().retain(|(of, _), entry| {
            if of != uid {
                return true;
            }
            metrics::wanted(&entry.plugin, -1);
            if entry.is_there {
                metrics::there(&entry.plugin, -1);
                metrics::done(&entry.plugin, "volume_unmount", took, false);
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn volumes_have_the_names_of_their_makers() {
        let of = |volume: Value, spec: Option<Value>| {
            let volume = serde_json::from_value(volume).unwrap();
            let bound = spec.map(|spec| Bound {
                claim: "c".into(),
                name: "pv".into(),
                spec: serde_json::from_value(spec).unwrap(),
                read_only: false,
                group: None,
            });
            plugin(&volume, bound.as_ref()).unwrap_or_default()
        };
        let claim = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
        let csi = json!({"csi": {"driver": "d.example", "volumeHandle": "h"}});
        for (volume, spec, want) in [
            (json!({"name": "v", "emptyDir": {}}), None, "kubernetes.io/empty-dir"),
            (json!({"name": "v", "csi": {"driver": "x"}}), None, "kubernetes.io/csi:x"),
            (claim.clone(), None, ""),
            (claim.clone(), Some(csi), "kubernetes.io/csi:d.example"),
            (claim, Some(json!({"local": {"path": "/d"}})), "kubernetes.io/local-volume"),
        ] {
            assert_eq!(of(volume, spec), want);
        }
    }
}
