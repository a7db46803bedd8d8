//! Pods as they are stored, for extenders: planners hold them without the volumes that only their
//! kubelet looks at (`client::trim`).

use std::collections::HashMap;

use client::{Client, Error};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use crate::pod::PodInfo;

/// Pods that are read at a time.
const READS_MAX: usize = 16;

/// By uid.
#[derive(Debug, Default)]
pub struct Whole(HashMap<String, Value>);

impl Whole {
    /// Reads pods. Those that are gone are left as they are held: who is asked about them decides
    /// nothing any more.
    ///
    /// # Errors
    /// Why one could not be read.
    pub async fn read(client: &Client, pods: Vec<&PodInfo>) -> Result<Self, Error> {
        let names = pods.into_iter().map(|pod| {
            let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
            (client.clone(), path, pod.uid.clone())
        });
        let names: Vec<_> = names.collect();
        let reads = names.into_iter().map(|(client, path, uid)| async move {
            let stored: Value = match client.get_raw(&path).await {
                Ok(bytes) => serde_json::from_slice(&bytes).map_err(Error::Decode)?,
                Err(err) if err.is_not_found() => Value::Null,
                Err(err) => return Err(err),
            };
            let is_it = stored["metadata"]["uid"] == uid;
            Ok(is_it.then_some((uid, stored)))
        });
        let all: Vec<_> = futures::stream::iter(reads).buffered(READS_MAX).try_collect().await?;
        Ok(Self(all.into_iter().flatten().collect()))
    }

    pub fn of(&self, pod: &PodInfo) -> Value {
        self.0.get(&pod.uid).cloned().unwrap_or_else(|| json!(*pod.pod))
    }
}
