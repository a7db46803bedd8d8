//! A watch as a stream of JSON lines.

use bytes::{Bytes, BytesMut};
use client::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::answer::{self, Include};
use super::negotiate::{Encoding, Form, View};
use crate::cache::{Change, Object, frame};
use crate::error::Result;
use crate::registry::watch::{Notice, Watcher};
use crate::registry::{Target, convert};

/// Notices put into one piece of the stream.
const NOTICES_PER_CHUNK: usize = 64;

/// Streams a watcher's notices until its end.
pub fn stream(
    target: Target,
    form: Form,
    include: Include,
    watcher: Watcher,
) -> Result<Response<Body>> {
    // Tables and other views are JSON lines as well; YAML cannot be streamed.
    let form = Form { encoding: Encoding::Json, ..form };
    let as_is = form == Form::JSON && convert::is_identity(&target.resource, &target.version);
    let lines = Lines { target, form, include, as_is, columns_sent: false };
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
    let mut response = answer::bytes(StatusCode::OK, "application/json", Bytes::new());
    *response.body_mut() = Body::Stream(Box::pin(stream));
    Ok(response)
}

struct Lines {
    target: Target,
    form: Form,
    include: Include,
    /// Stored bytes are what the client wants.
    as_is: bool,
    /// A table's columns are told once.
    columns_sent: bool,
}

impl Lines {
    fn line(&mut self, notice: &Notice) -> Bytes {
        match notice {
            Notice::Event(event) if self.as_is => event.frame(),
            Notice::Event(event) => self.changed(event.change, &event.object),
            Notice::Object(change, object) if self.as_is => frame(*change, &object.bytes),
            Notice::Object(change, object) => self.changed(*change, object),
            Notice::Bookmark { revision, initial } => self.bookmark(*revision, *initial),
        }
    }

    fn changed(&mut self, change: Change, object: &Object) -> Bytes {
        let value =
            convert::from_storage(object.value(), &self.target.resource, &self.target.version);
        let shown = match self.form.view {
            View::Object => value,
            View::Partial => answer::partial(&value),
            View::Table => {
                let mut table =
                    answer::table(&self.target, std::slice::from_ref(&value), &value, self.include);
                if std::mem::replace(&mut self.columns_sent, true) {
                    table["columnDefinitions"] = Value::Null;
                }
                table
            }
        };
        frame(change, shown.to_string().as_bytes())
    }

    fn bookmark(&mut self, revision: u64, initial: bool) -> Bytes {
        let mut object = json!({
            "kind": self.target.resource.kind, "apiVersion": self.target.api_version(),
            "metadata": {"resourceVersion": revision.to_string()},
        });
        if initial {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form.view {
            View::Object => object,
            View::Partial => answer::partial(&object),
            View::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
                "columnDefinitions": null, "rows": [],
            }),
        };
        let mut line = json!({"type": "BOOKMARK", "object": object}).to_string();
        line.push('\n');
        line.into()
    }
}
