//! Events about objects, repeated ones counted instead of created anew, and what is very much
//! put together or left out (`similar.rs`).
//!
//! Never fails and never waits: an event that cannot be sent is dropped with a debug line.

mod similar;

use base::drain::Drain;
use base::error::chain;
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use crate::api::{Object, Patch, ResourceRef, ScopeOf};
use crate::pace::{Pace, Rate};
use crate::transport::Client;
use similar::{Identity, Remembered, Similar, Verdict};

/// Events that wait to be sent; more are dropped.
const PENDING_EVENTS_MAX: usize = 8_192;
/// Events are sent no faster in the long run, so that telling of a thing takes little of the
/// time that doing it takes.
pub const RATE: Rate = Rate { per_second: 500.0, burst: 500 };
/// Distinct events, objects and kinds of events remembered for counting; the oldest is forgotten.
const REMEMBERED_EVENTS_MAX: usize = 4_096;

struct Message {
    about: ObjectReference,
    kind: &'static str,
    reason: String,
    text: String,
    at: jiff::Timestamp,
}

/// Sends events in the name of one component. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Message>,
}

/// A reference to `object`, as events carry it.
pub fn reference<K>(object: &K) -> ObjectReference
where
    K: Object + k8s_openapi::Resource,
    K::Scope: ScopeOf,
{
    let resource = ResourceRef::of::<K>();
    let meta = object.meta();
    ObjectReference {
        api_version: Some(resource.api_version()),
        kind: Some(resource.kind),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

impl Recorder {
    /// `component` becomes `source.component`, `host` (may be empty) `source.host`.
    pub fn new(client: Client, component: &str, host: &str, drain: Drain) -> Self {
        Self::paced(client, component, host, RATE, drain)
    }

    /// Sends events at most that fast.
    pub fn paced(client: Client, component: &str, host: &str, rate: Rate, drain: Drain) -> Self {
        let (queue, messages) = mpsc::channel(PENDING_EVENTS_MAX);
        let (component, host) = (component.to_string(), host.to_string());
        base::task::spawn(async move {
            let sender = Sender {
                client,
                component,
                host,
                seen: Remembered::new(REMEMBERED_EVENTS_MAX),
                similar: Similar::new(REMEMBERED_EVENTS_MAX),
                pace: Pace::new(rate, Instant::now()),
            };
            drain.until(sender.run(messages)).await;
        });
        Self { queue }
    }

    pub fn normal(&self, about: &ObjectReference, reason: &str, text: impl Into<String>) {
        self.event(about, "Normal", reason, text);
    }

    pub fn warning(&self, about: &ObjectReference, reason: &str, text: impl Into<String>) {
        self.event(about, "Warning", reason, text);
    }

    pub fn event(
        &self,
        about: &ObjectReference,
        kind: &'static str,
        reason: &str,
        text: impl Into<String>,
    ) {
        let message = Message {
            about: about.clone(),
            kind,
            reason: reason.to_string(),
            text: text.into(),
            at: base::time::now(),
        };
        if let Err(err) = self.queue.try_send(message) {
            debug!(reason, error = %err, "event dropped");
        }
    }
}

struct Seen {
    namespace: String,
    name: String,
    count: i32,
}

struct Sender {
    client: Client,
    component: String,
    host: String,
    seen: Remembered<Identity, Seen>,
    similar: Similar,
    pace: Pace,
}

impl Sender {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        while let Some(message) = messages.recv().await {
            let now = Instant::now();
            let (about, text) = (&message.about, &message.text);
            let verdict = self.similar.judge(about, message.kind, &message.reason, text, now);
            if verdict.skipped {
                if let Some(seen) = self.seen.get(&verdict.identity) {
                    seen.count += 1;
                }
                continue;
            }
            let at = self.pace.next(now);
            if at > now {
                tokio::time::sleep_until(at).await;
            }
            if let Err(err) = self.send(&message, verdict).await {
                debug!(reason = %message.reason, error = %chain(&err), "event not recorded");
            }
        }
    }

    async fn send(&mut self, message: &Message, verdict: Verdict) -> crate::error::Result<()> {
        let about = &message.about;
        let Verdict { identity, text, .. } = verdict;
        if let Some(seen) = self.seen.get(&identity) {
            let api = self.client.api::<Event>(Some(&seen.namespace));
            let patch = json!({
                "count": seen.count + 1,
                "message": text,
                "lastTimestamp": base::time::rfc3339(message.at),
            });
            match api.patch(&seen.name, &Patch::Merge(patch)).await {
                Ok(_) => {
                    seen.count += 1;
                    return Ok(());
                }
                // It has expired on the server; tell it anew.
                Err(err) if err.is_not_found() => {}
                Err(err) => return Err(err),
            }
        }
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".into());
        let event = self.event(message, &namespace, &text);
        let name = event.metadata.name.clone().unwrap_or_default();
        self.client.api::<Event>(Some(&namespace)).create(&event).await?;
        self.seen.put(identity, Seen { namespace, name, count: 1 });
        Ok(())
    }

    fn event(&self, message: &Message, namespace: &str, text: &str) -> Event {
        use k8s_openapi::api::core::v1::EventSource;
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
        let about = &message.about;
        let nanos = message.at.as_nanosecond() as u64;
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{nanos:x}", about.name.as_deref().unwrap_or("cluster"))),
                namespace: Some(namespace.to_string()),
                ..ObjectMeta::default()
            },
            involved_object: about.clone(),
            reason: Some(message.reason.clone()),
            message: Some(text.to_owned()),
            type_: Some(message.kind.to_string()),
            count: Some(1),
            first_timestamp: Some(Time(k8s_jiff(message.at))),
            last_timestamp: Some(Time(k8s_jiff(message.at))),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: (!self.host.is_empty()).then(|| self.host.clone()),
            }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.host.clone()),
            ..Event::default()
        }
    }
}

/// Whole seconds, as meta/v1 Time has them.
fn k8s_jiff(at: jiff::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// A recorder whose events go nowhere, for tests of loops.
pub fn silent() -> Recorder {
    let (queue, _) = mpsc::channel(1);
    Recorder { queue }
}
