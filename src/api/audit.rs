//! The audit log: which requests came, from whom, and what became of them, as the policy
//! wants it (documentation, "Auditing"). It goes to a file, to a webhook, or both.
//!
//! A backend that takes events in batches never holds a request up; one that blocks does,
//! and its administrator wanted that.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use client::Body;
use futures::Stream;
use http::{Request, Response};
use serde_json::{Value, json};
use tracing::warn;

use crate::admission::Notes;
use crate::authn::impersonation::ActsAs;
use crate::authn::{Peer, User, user_info};
use crate::error::{ApiError, Result};
use crate::serve::negotiate;
use crate::serve::request::RequestInfo;

pub mod log;
mod metrics;
pub mod policy;
mod queue;
pub mod truncate;
pub mod webhook;

pub use queue::Batch;

use log::Log;
use policy::{Level, Policy, Stage, Wanted};
use queue::Queue;
use truncate::Bounds;
use webhook::Webhook;

/// Objects in events are cut off above this, in bytes of JSON: upstream's webhooks take no
/// more than ten times as much at once.
const OBJECT_BYTES_MAX: usize = 1 << 20;

/// Whether requests wait for their events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They do.
    Blocking,
    /// They do, and one whose beginning could not be written down is refused.
    BlockingStrict,
    /// Events wait in a queue instead.
    Batch,
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub policy_file: PathBuf,
    pub log: Option<log::Settings>,
    pub webhook: Option<webhook::Settings>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("loading audit policy file: failed to read file path {0:?}")]
    Read(String, #[source] std::io::Error),
    #[error("loading audit policy file: {1}: from file {0}")]
    Policy(String, String),
    #[error("open the audit log {0}")]
    Log(String, #[source] std::io::Error),
    #[error("set up the audit webhook: {0}")]
    Webhook(String),
}

/// Where events go.
struct Sink {
    plugin: &'static str,
    /// What it takes, where that is bounded.
    bounds: Option<Bounds>,
    way: Way,
}

enum Way {
    Log(Arc<Log>, Mode),
    Webhook(Arc<Webhook>, Mode),
    Queue(Queue),
}

const LOG: &str = "log";
const WEBHOOK: &str = "webhook";

pub struct Audit {
    policy: Policy,
    sinks: Vec<Sink>,
}

/// One request that is being audited.
pub struct Record {
    wanted: Wanted,
    event: Value,
    is_long: bool,
    /// What the chain and admission have to say of the request.
    notes: Arc<Notes>,
}

impl Audit {
    /// Reads the policy and opens the backends.
    ///
    /// # Errors
    /// Files that cannot be read or opened.
    pub fn open(settings: &Settings) -> std::result::Result<Self, Error> {
        let policy = load(&settings.policy_file)?;
        let mut sinks = Vec::new();
        if let Some(settings) = &settings.log {
            let shown = settings.path.display().to_string();
            let log = Arc::new(Log::open(settings).map_err(|err| Error::Log(shown, err))?);
            let way = match settings.mode {
                Mode::Batch => Way::Queue(batched_log(log, settings.batch.clone())),
                mode => Way::Log(log, mode),
            };
            sinks.push(Sink { plugin: LOG, bounds: settings.truncate, way });
        }
        if let Some(settings) = &settings.webhook {
            let webhook = Arc::new(Webhook::new(settings).map_err(Error::Webhook)?);
            let bounds = settings.truncate;
            let way = match settings.mode {
                Mode::Batch => Way::Queue(batched_webhook(webhook, settings.batch.clone(), bounds)),
                mode => Way::Webhook(webhook, mode),
            };
            sinks.push(Sink { plugin: WEBHOOK, bounds, way });
        }
        Ok(Self { policy, sinks })
    }

    /// Begins the record of a request, unless the policy does not want it.
    ///
    /// # Errors
    /// 500 where a strict backend did not take its beginning.
    pub async fn begin(
        &self,
        id: &str,
        info: &RequestInfo,
        user: &User,
        peer: &Peer,
        request: &Request<Bytes>,
    ) -> Result<Option<Record>> {
        let Some(wanted) = self.policy.wanted(info, user) else {
            metrics::level(Level::None);
            return Ok(None);
        };
        metrics::level(wanted.level);
        let mut event = event(id, info, user, peer, request);
        event["level"] = wanted.level.name().into();
        let mut record = Record {
            wanted: wanted.clone(),
            is_long: is_long(info),
            notes: request.extensions().get().cloned().unwrap_or_default(),
            event,
        };
        if !self.write(&mut record, Stage::RequestReceived).await {
            metrics::rejected();
            return Err(ApiError::internal("failed to store audit event"));
        }
        let content_type = content_type(request.headers());
        if let Some(object) = object(content_type, request.body()) {
            if matches!(info.verb, "create" | "update") {
                record.refer(&object["metadata"]);
            }
            if wanted.level >= Level::Request {
                record.keep("requestObject", object);
            }
        }
        Ok(Some(record))
    }

    /// Tells of the answer. A stream has only begun; that it ended is told when it does.
    pub async fn answered(
        self: &Arc<Self>,
        mut record: Record,
        response: Response<Body>,
    ) -> Response<Body> {
        let code = response.status().as_u16();
        record.event["responseStatus"] = json!({"metadata": {}, "code": code});
        if let Body::Full(bytes) = response.body() {
            let is_status = memchr::memmem::find(&bytes[..bytes.len().min(64)], b"\"Status\"");
            if is_status.is_some()
                && let Ok(status) = serde_json::from_slice::<Value>(bytes)
                && status["kind"] == "Status"
            {
                record.event["responseStatus"] = status;
                record.event["responseStatus"]["code"] = code.into();
            }
            if record.wanted.level == Level::RequestResponse
                && let Some(object) = object(content_type(response.headers()), bytes)
            {
                record.keep("responseObject", object);
            }
        }
        let annotations = record.notes.annotations();
        if !annotations.is_empty() {
            record.event["annotations"] = json!(annotations);
        }
        if record.is_long {
            self.write(&mut record, Stage::ResponseStarted).await;
        }
        let (parts, body) = response.into_parts();
        let body = match body {
            Body::Stream(stream) if record.is_long => {
                let end = End { audit: self.clone(), record: Some(record) };
                Body::Stream(Box::pin(Told { stream, _end: end }))
            }
            body => {
                self.write(&mut record, Stage::ResponseComplete).await;
                body
            }
        };
        Response::from_parts(parts, body)
    }

    /// Tells of a request whose sender proved nothing.
    pub async fn refused(
        &self,
        id: &str,
        info: &RequestInfo,
        peer: &Peer,
        request: &Request<Bytes>,
        methods: &str,
    ) {
        let nobody = User::default();
        let Some(wanted) = self.policy.wanted(info, &nobody) else { return };
        metrics::level(wanted.level);
        let mut event = event(id, info, &nobody, peer, request);
        event["level"] = wanted.level.name().into();
        event["responseStatus"] = json!({"metadata": {}, "status": "Failure", "reason": "Unauthorized",
            "message": format!("Authentication failed, attempted: {methods}"), "code": 401});
        let notes = Arc::default();
        let mut record = Record { wanted: wanted.clone(), is_long: false, notes, event };
        self.write(&mut record, Stage::ResponseStarted).await;
    }

    /// Returns when what waits in queues was sent, or given up.
    pub async fn flush(&self) {
        for sink in &self.sinks {
            if let Way::Queue(queue) = &sink.way {
                queue.flush().await;
            }
        }
    }

    /// False if a strict backend did not take the event.
    async fn write(&self, record: &mut Record, stage: Stage) -> bool {
        if record.wanted.omit_stages.contains(&stage) {
            return true;
        }
        record.event["stage"] = stage.name().into();
        record.event["stageTimestamp"] = base::time::rfc3339_micro(base::time::now()).into();
        metrics::event();
        let mut taken = true;
        for sink in &self.sinks {
            let event = match sink.bounds {
                Some(bounds) => bounds.fit(record.event.clone(), record.wanted.level),
                None => Some(record.event.clone()),
            };
            let too_large = || Err("it is larger than the backend takes".to_owned());
            let (mode, written) = match (&sink.way, event) {
                (Way::Queue(queue), Some(event)) => {
                    queue.add(event);
                    continue;
                }
                (Way::Queue(_), None) => (&Mode::Batch, too_large()),
                (Way::Log(log, mode), Some(event)) => {
                    (mode, log.write(&[event]).map_err(|err| err.to_string()))
                }
                (Way::Webhook(webhook, mode), Some(event)) => {
                    (mode, Box::pin(webhook.send_now(event)).await)
                }
                (Way::Log(_, mode) | Way::Webhook(_, mode), None) => (mode, too_large()),
            };
            if let Err(why) = written {
                metrics::dropped(sink.plugin, 1);
                warn!(plugin = sink.plugin, error = %why, "an audit event was lost");
                taken &= *mode != Mode::BlockingStrict;
            }
        }
        taken
    }
}

fn load(path: &Path) -> std::result::Result<Policy, Error> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|err| Error::Read(shown.clone(), err))?;
    Policy::parse(&text).map_err(|why| Error::Policy(shown, why))
}

fn batched_log(log: Arc<Log>, batch: Batch) -> Queue {
    let send = move |events: Vec<Value>| -> futures::future::BoxFuture<'static, _> {
        let log = log.clone();
        Box::pin(async move {
            let written = base::task::spawn_blocking(move || log.write(&events)).await;
            match written {
                Ok(written) => written.map_err(|err| err.to_string()),
                Err(err) => Err(err.to_string()),
            }
        })
    };
    Queue::start(LOG, batch, Arc::new(send))
}

fn batched_webhook(webhook: Arc<Webhook>, batch: Batch, bounds: Option<Bounds>) -> Queue {
    let send = move |events| -> futures::future::BoxFuture<'static, _> {
        let webhook = webhook.clone();
        Box::pin(async move {
            let Some(bounds) = bounds else { return webhook.send(events).await };
            let mut sent = Ok(());
            for events in bounds.batches(events) {
                sent = sent.and(webhook.send(events).await);
            }
            sent
        })
    };
    Queue::start(WEBHOOK, batch, Arc::new(send))
}

/// Requests whose answer goes on for as long as the client wants.
fn is_long(info: &RequestInfo) -> bool {
    info.verb == "watch"
        || (info.is_resource
            && matches!(
                info.subresource.as_str(),
                "attach" | "exec" | "proxy" | "log" | "portforward"
            ))
}

/// What is known of a request before it is answered.
fn event(
    id: &str,
    info: &RequestInfo,
    user: &User,
    peer: &Peer,
    request: &Request<Bytes>,
) -> Value {
    let text = |name: &str| {
        request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_string()
    };
    let address = peer.address.map_or_else(|| "127.0.0.1".into(), |a| a.ip().to_string());
    let mut event = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "", "auditID": id, "stage": "",
        "requestURI": request.uri().path_and_query().map_or("", |p| p.as_str()),
        "verb": info.verb, "user": user_info(user), "sourceIPs": [address],
        "userAgent": text("user-agent"),
    });
    if info.is_resource {
        let mut reference = json!({});
        for (key, value) in [
            ("resource", &info.resource),
            ("namespace", &info.namespace),
            ("name", &info.name),
            ("apiGroup", &info.group),
            ("apiVersion", &info.version),
            ("subresource", &info.subresource),
        ] {
            if !value.is_empty() {
                reference[key] = value.as_str().into();
            }
        }
        event["objectRef"] = reference;
    }
    let now = base::time::rfc3339_micro(base::time::now());
    event["requestReceivedTimestamp"] = now.as_str().into();
    event["stageTimestamp"] = now.into();
    event
}

impl Record {
    /// The request acts as somebody else.
    pub fn acts_as(&mut self, acts_as: &ActsAs) {
        self.event["impersonatedUser"] = user_info(&acts_as.user);
        if !acts_as.constraint.is_empty() {
            self.event["authenticationMetadata"] =
                json!({"impersonationConstraint": acts_as.constraint});
        }
    }

    /// Tells of which object the request is, where its path does not.
    fn refer(&mut self, metadata: &Value) {
        let Some(reference) = self.event.get_mut("objectRef").and_then(Value::as_object_mut) else {
            return;
        };
        for field in ["name", "namespace", "uid", "resourceVersion"] {
            let told = metadata[field].as_str().filter(|text| !text.is_empty());
            if let (Some(text), None) = (told, reference.get(field)) {
                reference.insert(field.into(), text.into());
            }
        }
    }

    /// Keeps an object of a body.
    fn keep(&mut self, field: &str, mut object: Value) {
        if self.wanted.omit_managed_fields {
            strip(&mut object);
            let items = object.get_mut("items").and_then(Value::as_array_mut);
            for item in items.into_iter().flatten() {
                strip(item);
            }
        }
        self.event[field] = object;
    }
}

fn content_type(headers: &http::HeaderMap) -> Option<&str> {
    headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok())
}

/// The object of a body, if it is one and not too large.
fn object(content_type: Option<&str>, bytes: &[u8]) -> Option<Value> {
    let fits = !bytes.is_empty() && bytes.len() <= OBJECT_BYTES_MAX;
    fits.then(|| negotiate::any(content_type, bytes)).flatten()
}

fn strip(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
}

/// A stream whose end is told, however it ends.
struct Told {
    stream: client::ByteStream,
    _end: End,
}

impl Stream for Told {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

struct End {
    audit: Arc<Audit>,
    record: Option<Record>,
}

impl Drop for End {
    fn drop(&mut self) {
        let (Some(mut record), Ok(runtime)) =
            (self.record.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let audit = self.audit.clone();
        runtime.spawn(async move { audit.write(&mut record, Stage::ResponseComplete).await });
    }
}
