//! Who has which devices, on disk in upstream's form: `kubelet_internal_checkpoint`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::warn;

use super::choice::Ids;
use super::messages::ContainerAllocateResponse;

pub const FILE: &str = "kubelet_internal_checkpoint";

/// Devices of one resource that a container has, by NUMA node; -1 is none.
pub type ByNode = BTreeMap<i64, Ids>;

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub uid: String,
    pub container: String,
    pub resource: String,
    pub devices: ByNode,
    pub response: ContainerAllocateResponse,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Content {
    pub entries: Vec<Entry>,
    /// Healthy devices by resource.
    pub registered: BTreeMap<String, Vec<String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    checksum: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Option<Vec<StoredEntry>>,
    registered_devices: BTreeMap<String, Vec<String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StoredEntry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    container_name: String,
    resource_name: String,
    #[serde(rename = "DeviceIDs")]
    device_ids: BTreeMap<i64, BTreeSet<String>>,
    alloc_resp: String,
}

/// FNV-1a, as upstream sums up its checkpoints.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// What was written; nothing where there is no file, or one that makes no sense.
pub fn read(dir: &Path) -> Content {
    let path = dir.join(FILE);
    let read = match std::fs::read(&path) {
        Ok(bytes) => parse(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Content::default(),
        Err(error) => Err(error.to_string()),
    };
    read.unwrap_or_else(|error| {
        warn!(path = %path.display(), error, "who has which devices is not known");
        Content::default()
    })
}

fn parse(bytes: &[u8]) -> Result<Content, String> {
    let file: File<'_> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if checksum(file.data.get().as_bytes()) != file.checksum {
        return Err("checkpoint is corrupted".to_owned());
    }
    let data: Data = serde_json::from_str(file.data.get()).map_err(|error| error.to_string())?;
    let mut entries = Vec::new();
    for entry in data.pod_device_entries.unwrap_or_default() {
        let bytes = STANDARD.decode(&entry.alloc_resp).map_err(|error| error.to_string())?;
        let response = ContainerAllocateResponse::decode(bytes.as_slice());
        entries.push(Entry {
            uid: entry.pod_uid,
            container: entry.container_name,
            resource: entry.resource_name,
            devices: entry.device_ids,
            response: response.map_err(|error| error.to_string())?,
        });
    }
    Ok(Content { entries, registered: data.registered_devices })
}

/// On disk once this is back.
pub fn write(dir: &Path, content: &Content) -> io::Result<()> {
    let entries = content.entries.iter().map(|entry| StoredEntry {
        pod_uid: entry.uid.clone(),
        container_name: entry.container.clone(),
        resource_name: entry.resource.clone(),
        device_ids: entry.devices.clone(),
        alloc_resp: STANDARD.encode(entry.response.encode_to_vec()),
    });
    let data = Data {
        pod_device_entries: Some(entries.collect()),
        registered_devices: content.registered.clone(),
    };
    let data = serde_json::value::to_raw_value(&data)?;
    let sum = checksum(data.get().as_bytes());
    let bytes = serde_json::to_vec(&File { data: &data, checksum: sum })?;
    sys::fs::replace_file(&dir.join(FILE), &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_broken_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let content = Content {
            entries: vec![Entry {
                uid: "u".into(),
                container: "c".into(),
                resource: "a.b/c".into(),
                devices: [(-1, ["d".to_owned()].into())].into(),
                response: ContainerAllocateResponse {
                    envs: [("A".to_owned(), "1".to_owned())].into(),
                    ..ContainerAllocateResponse::default()
                },
            }],
            registered: [("a.b/c".to_owned(), vec!["d".to_owned()])].into(),
        };
        assert_eq!(read(dir.path()), Content::default());
        write(dir.path(), &content).unwrap();
        assert_eq!(read(dir.path()), content);
        let path = dir.path().join(FILE);
        let good = std::fs::read_to_string(&path).unwrap();
        assert!(good.starts_with(
            r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"a.b/c","DeviceIDs":{"-1":["d"]},"AllocResp":"CgYKAUESATE="}],"RegisteredDevices":{"a.b/c":["d"]}},"Checksum":"#
        ), "{good}");
        for bad in [good.replace("\"u\"", "\"v\""), String::new(), "{}".into(), "[".repeat(9999)] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(read(dir.path()), Content::default());
        }
    }
}
