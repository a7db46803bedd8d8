//! Sends pod statuses to the API server, the newest of each pod only, and deletes pods
//! that have ended.
//!
//! Survives an absent server: what could not be sent is tried again with back-off. At
//! most one status per pod is held.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use base::drain::Drain;
use client::{Client, DeleteParams, Patch, Queue};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::pods::Pods;
use crate::{metrics, pod};

/// Conditions of ours that go away again.
const OWN_FOR_A_WHILE: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];
const WRITES_AT_ONCE_MAX: usize = 8;

struct Entry {
    pod: Arc<Pod>,
    status: PodStatus,
    /// What the API server is known to hold of ours.
    written: Option<PodStatus>,
    /// The pod's last containers and volumes are gone: delete the object.
    finish: bool,
    /// Since when there is something to write.
    since: Option<Instant>,
}

pub struct StatusWriter {
    client: Client,
    pods: Arc<Pods>,
    queue: Queue<String>,
    entries: Mutex<HashMap<String, Entry>>,
}

impl StatusWriter {
    pub fn new(client: Client, pods: Arc<Pods>) -> Self {
        Self { client, pods, queue: Queue::named("pod_status"), entries: Mutex::default() }
    }

    pub fn set(&self, pod: &Arc<Pod>, status: PodStatus) {
        let uid = pod::uid(pod).to_owned();
        let mut entries = self.entries.lock();
        match entries.get_mut(&uid) {
            Some(entry) => {
                entry.pod = pod.clone();
                entry.status = status;
                entry.since.get_or_insert_with(Instant::now);
            }
            None => {
                let (pod, since) = (pod.clone(), Some(Instant::now()));
                let entry = Entry { pod, status, written: None, finish: false, since };
                entries.insert(uid.clone(), entry);
            }
        }
        self.queue.add(uid);
    }

    /// Deletes the object once its last status is written.
    pub fn finish(&self, pod: &Arc<Pod>, status: PodStatus) {
        let uid = pod::uid(pod).to_owned();
        let mut entries = self.entries.lock();
        let written = entries.remove(&uid).and_then(|entry| entry.written);
        let (pod, since) = (pod.clone(), Some(Instant::now()));
        entries.insert(uid.clone(), Entry { pod, status, written, finish: true, since });
        self.queue.add(uid);
    }

    /// The newest status of a pod.
    pub fn last(&self, uid: &str) -> Option<PodStatus> {
        self.entries.lock().get(uid).map(|entry| entry.status.clone())
    }

    /// Sends it again, for a mirror pod that has just been made.
    pub fn again(&self, uid: &str) {
        if let Some(entry) = self.entries.lock().get_mut(uid) {
            entry.written = None;
            self.queue.add(uid.to_owned());
        }
    }

    pub fn forget(&self, uid: &str) {
        self.entries.lock().remove(uid);
        self.queue.forget(&uid.to_owned());
    }

    pub async fn run(self: Arc<Self>, drain: Drain) {
        let writer = self.clone();
        self.queue
            .run(WRITES_AT_ONCE_MAX, drain, move |uid: String| {
                let writer = writer.clone();
                async move { writer.write(&uid).await }
            })
            .await;
    }

    /// Tells how long the newest status waited for this.
    fn note_written(&self, uid: &str, status: &PodStatus) {
        let entries = self.entries.lock();
        let newest = entries.get(uid).filter(|entry| entry.status == *status);
        if let Some(since) = newest.and_then(|entry| entry.since) {
            metrics::pods::status_written(since.elapsed());
        }
    }

    async fn write(&self, uid: &str) -> client::error::Result<()> {
        let Some((pod, status, written, finish)) = self.entries.lock().get(uid).map(|entry| {
            (entry.pod.clone(), entry.status.clone(), entry.written.clone(), entry.finish)
        }) else {
            return Ok(());
        };
        let target = if pod::is_static(&pod) {
            match self.pods.mirror(pod::namespace(&pod), pod::name(&pod)) {
                Some(mirror) => mirror,
                None => return Ok(()),
            }
        } else {
            pod.clone()
        };
        let api = self.client.api::<Pod>(Some(pod::namespace(&target)));
        if written.as_ref() != Some(&status) {
            let held = written.as_ref().or(target.status.as_ref());
            if let Some(body) = patch(pod::uid(&target), &status, held) {
                match api.patch_status(pod::name(&target), &Patch::Strategic(body)).await {
                    Ok(_) => self.note_written(uid, &status),
                    // Another pod of that name, or none: this one's worker will hear of it.
                    Err(error) if error.is_not_found() || error.is_conflict() => {
                        debug!(pod = uid, error = %error, "status not taken");
                    }
                    Err(error) => {
                        warn!(pod = uid, error = %base::error::chain(&error), "status not written");
                        return Err(error);
                    }
                }
            }
            if let Some(entry) = self.entries.lock().get_mut(uid) {
                if entry.status == status {
                    entry.since = None;
                }
                entry.written = Some(status);
            }
        }
        if finish && !pod::is_static(&pod) {
            let params = DeleteParams::uid(uid).grace(0);
            match api.delete(pod::name(&pod), &params).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => {
                    warn!(pod = uid, error = %base::error::chain(&error), "pod not deleted");
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A strategic merge patch from what is held to `status`; None when nothing differs.
fn patch(uid: &str, status: &PodStatus, held: Option<&PodStatus>) -> Option<Value> {
    let new = client::api::value_of(status).ok()?;
    let old = held.and_then(|held| client::api::value_of(held).ok()).unwrap_or(json!({}));
    let (Value::Object(new), Value::Object(old)) = (new, old) else { return None };
    let mut out = serde_json::Map::new();
    for (key, value) in &new {
        let before = old.get(key);
        if before == Some(value) {
            continue;
        }
        let value = match (key.as_str(), value) {
            ("conditions", Value::Array(list)) => {
                // Other writers' conditions are in the old list; ours merge by type.
                let mut changed: Vec<Value> = list
                    .iter()
                    .filter(|one| {
                        !before.and_then(Value::as_array).is_some_and(|before| before.contains(one))
                    })
                    .cloned()
                    .map(clear_reason)
                    .collect();
                let is_there = |type_: &str| list.iter().any(|one| one["type"] == type_);
                let gone = before.and_then(Value::as_array).into_iter().flatten().filter(|old| {
                    OWN_FOR_A_WHILE.iter().any(|own| old["type"] == *own && !is_there(own))
                });
                changed.extend(gone.map(|old| json!({"type": old["type"], "$patch": "delete"})));
                if changed.is_empty() {
                    continue;
                }
                Value::Array(changed)
            }
            ("podIPs" | "hostIPs", Value::Array(list)) if before.is_some() => {
                let mut list = list.clone();
                list.push(json!({"$patch": "replace"}));
                Value::Array(list)
            }
            _ => value.clone(),
        };
        out.insert(key.clone(), value);
    }
    for key in ["reason", "message", "podIP", "resources"] {
        if old.contains_key(key) && !new.contains_key(key) {
            out.insert(key.to_owned(), Value::Null);
        }
    }
    (!out.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": out}))
}

/// A condition that lost its reason must not keep the old one when merged.
fn clear_reason(mut condition: Value) -> Value {
    if let Value::Object(map) = &mut condition {
        for key in ["reason", "message"] {
            map.entry(key).or_insert(Value::Null);
        }
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_what_differs_is_sent() {
        let ready = json!({"type": "Ready", "status": "True"});
        let gate = json!({"type": "example.com/gate", "status": "True"});
        let held = status(json!({"phase": "Pending", "reason": "x", "conditions": [
            {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}, gate]}));
        let new = status(json!({"phase": "Running", "conditions": [ready]}));
        let got = patch("u", &new, Some(&held)).unwrap();
        assert_eq!(
            got,
            json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running", "reason": null,
                "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}]}})
        );
        let same = status(json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "example.com/gate", "status": "True"}]}));
        assert_eq!(patch("u", &new, Some(&same)), None);
        let resizing = status(json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "PodResizePending", "status": "True"}]}));
        assert_eq!(
            patch("u", &new, Some(&resizing)).unwrap()["status"]["conditions"],
            json!([{"type": "PodResizePending", "$patch": "delete"}])
        );
    }
}
