//! Which claims are prepared for which pods, on disk in upstream's form: `dra_manager_state`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::warn;

pub const FILE: &str = "dra_manager_state";

/// By namespace and name.
pub type Claims = BTreeMap<(String, String), Held>;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Held {
    #[serde(rename = "ClaimUID")]
    pub uid: String,
    #[serde(rename = "ClaimName")]
    pub name: String,
    pub namespace: String,
    #[serde(rename = "PodUIDs")]
    pub pods: BTreeMap<String, Nothing>,
    /// Every driver that is part of it, also before it has prepared anything.
    #[serde(rename = "DriverState")]
    pub drivers: BTreeMap<String, Driver>,
    /// By this process; drivers are asked again by the next one.
    #[serde(skip)]
    pub is_prepared: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Nothing {}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Driver {
    pub devices: Option<Vec<Device>>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Device {
    pub pool_name: String,
    pub device_name: String,
    #[serde(rename = "ShareID", default, skip_serializing_if = "Option::is_none")]
    pub share_id: Option<String>,
    pub request_names: Option<Vec<String>>,
    #[serde(rename = "CDIDeviceIDs")]
    pub cdi_device_ids: Option<Vec<String>>,
}

impl Device {
    /// Whether it is for a request; the empty one stands for all.
    pub fn is_for(&self, request: &str) -> bool {
        // A subrequest is told by the request that it belongs to.
        let base = request.split('/').next().unwrap_or_default();
        let names = self.request_names.iter().flatten();
        base.is_empty() || names.clone().next().is_none() || names.clone().any(|it| it == base)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: String,
    checksum: u32,
}

#[derive(Serialize, Deserialize)]
struct Data {
    kind: String,
    #[serde(rename = "apiVersion")]
    api_version: String,
    #[serde(rename = "ClaimInfoStateList")]
    claims: Option<Vec<Held>>,
}

fn checksum(text: &str) -> u32 {
    let mut sum = flate2::Crc::new();
    sum.update(text.as_bytes());
    sum.sum()
}

/// What was written; nothing where there is no file, or one that makes no sense.
pub fn read(dir: &Path) -> Claims {
    let path = dir.join(FILE);
    let read = match std::fs::read(&path) {
        Ok(bytes) => parse(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Claims::new(),
        Err(error) => Err(error.to_string()),
    };
    let list = read.unwrap_or_else(|error| {
        warn!(path = %path.display(), error, "which claims are prepared is not known");
        Vec::new()
    });
    list.into_iter().map(|it| ((it.namespace.clone(), it.name.clone()), it)).collect()
}

fn parse(bytes: &[u8]) -> Result<Vec<Held>, String> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if checksum(&file.data) != file.checksum {
        return Err("checkpoint is corrupted".to_owned());
    }
    let data: Data = serde_json::from_str(&file.data).map_err(|error| error.to_string())?;
    Ok(data.claims.unwrap_or_default())
}

/// On disk once this is back.
pub fn write(dir: &Path, claims: &Claims) -> io::Result<()> {
    let data = serde_json::to_string(&Data {
        kind: "DRACheckpoint".to_owned(),
        api_version: "checkpoint.dra.kubelet.k8s.io/v1".to_owned(),
        claims: Some(claims.values().cloned().collect()),
    })?;
    let bytes = serde_json::to_vec(&File { checksum: checksum(&data), data })?;
    sys::fs::replace_file(&dir.join(FILE), &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_broken_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let held = Held {
            uid: "u".into(),
            name: "c".into(),
            namespace: "n".into(),
            pods: [("p".to_owned(), Nothing {})].into(),
            drivers: [("d".to_owned(), Driver { devices: Some(vec![Device::default()]) })].into(),
            is_prepared: false,
        };
        let claims: Claims = [(("n".to_owned(), "c".to_owned()), held)].into();
        assert_eq!(read(dir.path()), Claims::new());
        write(dir.path(), &claims).unwrap();
        assert_eq!(read(dir.path()), claims);
        let path = dir.path().join(FILE);
        let good = std::fs::read_to_string(&path).unwrap();
        for bad in [good.replace("DRACheckpoint", "x"), String::new(), "{}".into()] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(read(dir.path()), Claims::new());
        }
    }

    #[test]
    fn a_device_is_for_its_requests_or_for_all() {
        let of = |names: &[&str]| Device {
            request_names: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            ..Device::default()
        };
        assert!(of(&[]).is_for("a") && of(&["a"]).is_for("") && of(&["b", "a"]).is_for("a/sub"));
        assert!(!of(&["b"]).is_for("a"));
    }
}
