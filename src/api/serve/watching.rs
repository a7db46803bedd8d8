//! A watch as a stream: JSON lines, or protobuf frames.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use client::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::answer::{self, Include};
use super::chain::Call;
use super::negotiate::{self, Encoding, Form, View};
use super::websocket;
use crate::cache::{Change, Event, Object, frame};
use crate::error::{ApiError, Result};
use crate::metrics::WatchCounts;
use crate::metrics::route::LongRunning;
use crate::registry::watch::{Notice, Watcher};
use crate::registry::{Target, convert};
use codec::protobuf::encode::{Encoder, watch_frame};

/// Notices put into one piece of the stream.
const NOTICES_PER_CHUNK: usize = 64;

/// The media type of a stream of events.
pub fn content_type(form: Form) -> &'static str {
    match form.encoding {
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        Encoding::Json | Encoding::Yaml => "application/json",
    }
}

/// Streams a watcher's notices until its end.
pub fn stream(
    target: Target,
    form: Form,
    include: Include,
    watcher: Watcher,
) -> Result<Response<Body>> {
    let lines = Lines::new(target, form, include);
    let stream = futures::stream::unfold((lines, watcher), |(mut lines, mut watcher)| async move {
        let notices = watcher.next(NOTICES_PER_CHUNK).await?;
        let chunk = match notices.as_slice() {
            [one] => lines.line(one),
            many => {
                let mut out = BytesMut::new();
                for notice in many {
                    out.extend_from_slice(&lines.line(notice));
                }
                out.freeze()
            }
        };
        Some((Ok(chunk), (lines, watcher)))
    });
    let mut response = answer::bytes(StatusCode::OK, content_type(form), Bytes::new());
    *response.body_mut() = Body::Stream(Box::pin(stream));
    Ok(response)
}

/// The same over a WebSocket that the request opens: an event is a message.
///
/// # Errors
/// 400 for a request that cannot become one.
pub fn over_websocket(
    call: &Call,
    target: Target,
    form: Form,
    include: Include,
    watcher: Watcher,
) -> Result<Response<Body>> {
    let upgrade = call.request.extensions().get::<hyper::upgrade::OnUpgrade>().cloned();
    let (Some(upgrade), Some(response)) = (upgrade, websocket::accept(call.request.headers()))
    else {
        return Err(ApiError::bad_request("the connection cannot become a WebSocket"));
    };
    let binary = form.encoding == Encoding::Protobuf;
    let kind = if binary { websocket::Kind::Binary } else { websocket::Kind::Text };
    let state = Arc::new(tokio::sync::Mutex::new((Lines::new(target, form, include), watcher)));
    let held = call.request.extensions().get::<Arc<LongRunning>>().cloned();
    base::task::spawn(websocket::send(upgrade, kind, move || {
        // Counted as under way until it ends.
        let (state, _held) = (state.clone(), held.clone());
        async move {
            let mut state = state.lock().await;
            let (lines, watcher) = &mut *state;
            let notices = watcher.next(NOTICES_PER_CHUNK).await?;
            let message = |notice| {
                let line = lines.line(notice);
                // A message has a length of its own.
                if binary { line.slice(line.len().min(4)..) } else { line }
            };
            Some(notices.iter().map(message).collect())
        }
    }));
    Ok(response)
}

/// The only event of a watch that cannot begin where it should: why.
pub fn refused(form: Form, error: &ApiError) -> Response<Body> {
    let body = error.body();
    let line = frame_of(form, "ERROR", &body).unwrap_or_default();
    answer::bytes(StatusCode::OK, content_type(form), line)
}

/// An event with an object that is not a stored one.
fn frame_of(form: Form, change: &str, object: &Value) -> Option<Bytes> {
    if form.encoding == Encoding::Protobuf {
        let (_, bytes) = negotiate::encode(form.of_object(), object).ok()?;
        return Some(watch_frame(change, &bytes).into());
    }
    let mut line = json!({"type": change, "object": object}).to_string();
    line.push('\n');
    Some(line.into())
}

/// Makes each notice a piece of the stream.
pub struct Lines {
    target: Target,
    form: Form,
    include: Include,
    /// Stored objects are in the version that the client wants.
    identity: bool,
    /// Writes stored objects in protobuf, under these names.
    encoder: Option<(Encoder, String, String)>,
    /// A table's columns are told once.
    columns_sent: bool,
    counts: WatchCounts,
}

impl Lines {
    pub fn new(target: Target, form: Form, include: Include) -> Self {
        let identity = convert::is_identity(&target.resource, &target.version);
        let binary = form.encoding == Encoding::Protobuf;
        let encoder = answer::encoder(form, &target)
            .filter(|_| binary)
            .map(|(encoder, version, kind)| (encoder, version, kind.to_string()));
        let resource = &target.resource;
        let counts = WatchCounts::of(&resource.group, &target.version, &resource.plural);
        Self { target, form, include, identity, encoder, columns_sent: false, counts }
    }

    /// The pieces that stored bytes give without a detour, shared by all watchers.
    fn shared(&self, event: &Event) -> Option<Bytes> {
        if !self.identity || self.form.view != View::Object {
            return None;
        }
        match &self.encoder {
            Some((encoder, version, kind)) => event.message(|object| {
                encoder.object(version, kind, object.bytes()).map_err(answer::damaged)
            }),
            None if self.form.encoding == Encoding::Json => Some(event.frame()),
            None => None,
        }
    }

    pub fn line(&mut self, notice: &Notice) -> Bytes {
        let line = match notice {
            Notice::Event(event) => {
                self.shared(event).unwrap_or_else(|| self.changed(event.change, &event.object))
            }
            Notice::Object(change, object) => self.changed(*change, object),
            Notice::Bookmark { revision, initial } => self.bookmark(*revision, *initial),
        };
        self.counts.sent(line.len());
        line
    }

    fn changed(&mut self, change: Change, object: &Object) -> Bytes {
        if self.identity {
            match (&self.encoder, self.form.view) {
                (Some((encoder, version, kind)), _) => {
                    if let Ok(bytes) = encoder.object(version, kind, object.bytes()) {
                        return watch_frame(change.name(), &bytes).into();
                    }
                }
                (None, View::Object) if self.form.encoding == Encoding::Json => {
                    return frame(change, object.bytes());
                }
                (None, View::Partial) => {
                    if let Some(text) = answer::stored_partial(self.form, &self.target, object) {
                        return frame(change, &text);
                    }
                }
                (None, _) => {}
            }
        }
        let value =
            convert::from_storage(object.value(), &self.target.resource, &self.target.version);
        self.show(change.name(), &value)
    }

    fn show(&mut self, change: &str, value: &Value) -> Bytes {
        let shown = match self.form.view {
            // A list cannot be made of one object; upstream then sends the object.
            View::Object | View::PartialList => {
                let mut value = value.clone();
                self.target.arrange(&mut value);
                value
            }
            View::Partial => answer::partial(self.form, value),
            View::Table => {
                let rows = std::slice::from_ref(value);
                let mut table = answer::table(self.form, &self.target, rows, value, self.include);
                if std::mem::replace(&mut self.columns_sent, true) {
                    table["columnDefinitions"] = Value::Null;
                }
                table
            }
        };
        frame_of(self.form, change, &shown).unwrap_or_default()
    }

    fn bookmark(&mut self, revision: u64, initial: bool) -> Bytes {
        let mut object = json!({
            "kind": self.target.resource.kind, "apiVersion": self.target.api_version(),
            "metadata": {"resourceVersion": revision.to_string()},
        });
        if initial {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.target.normalise(&mut object);
        if self.form.view == View::Table && self.include == Include::None && initial {
            // The mark is in the row's object, so it is shown whatever is asked for.
            self.include = Include::Metadata;
            let line = self.show("BOOKMARK", &object);
            self.include = Include::None;
            return line;
        }
        self.show("BOOKMARK", &object)
    }
}
