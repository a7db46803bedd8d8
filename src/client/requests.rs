//! Requests for one resource, whatever its objects are to this process: what is decoded of
//! them stands in [`crate::api`] and is generated for each kind, this is not.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::{Method, Request};
use serde_json::{Value, json};

use crate::api::{DeleteParams, ListParams, Patch, ResourceRef};
use crate::error::{Error, Result};
use crate::transport::{Body, Client};

/// A line of a watch that is longer than this ends the watch.
const WATCH_EVENT_BYTES_MAX: usize = 64 << 20;
/// Watches ask the server to end them after about this long, so that a connection that
/// died silently is noticed.
const WATCH_TIMEOUT_SECONDS: u64 = 1_800;

/// How often [`Requests::merge`] reads again when another writer was faster.
const MERGE_TRIES_MAX: usize = 5;

pub(crate) const ACCEPT_JSON: &str = "application/json";
pub(crate) const ACCEPT_META: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const ACCEPT_META_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// Events of a watch as they came, one in a line; an `Err` is the last.
pub(crate) type Lines = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// In one namespace or in all.
#[derive(Clone)]
pub(crate) struct Requests {
    pub client: Client,
    pub resource: ResourceRef,
    pub namespace: Option<String>,
    /// The form in which objects are wanted.
    pub accept: &'static str,
}

impl Requests {
    /// Asks something of the objects or, with a `tail`, of one and its subresource.
    pub async fn send(
        &self,
        method: Method,
        tail: &[&str],
        body: Option<Vec<u8>>,
    ) -> Result<Bytes> {
        let content_type = body.is_some().then_some(ACCEPT_JSON);
        let body = body.map(Bytes::from).unwrap_or_default();
        let path = self.path(tail, Query::default());
        self.client.request(build(method, &path, self.accept, content_type, body)?).await
    }

    pub async fn list(&self, params: &ListParams) -> Result<Bytes> {
        let accept = if self.accept == ACCEPT_META { ACCEPT_META_LIST } else { self.accept };
        let path = self.path(&[], params.query());
        self.client.request(build(Method::GET, &path, accept, None, Bytes::new())?).await
    }

    pub async fn merge(&self, name: &str, subresource: &str, patch: &Value) -> Result<Bytes> {
        let mut tail = vec![name];
        tail.extend(Some(subresource).filter(|part| !part.is_empty()));
        let mut tries = 0;
        loop {
            tries += 1;
            let from = self.path(&[name], Query::default());
            let get = build(Method::GET, &from, ACCEPT_JSON, None, Bytes::new())?;
            let live = self.client.request(get).await?;
            let mut object: Value = serde_json::from_slice(&live).map_err(Error::Decode)?;
            merge_into(&mut object, patch);
            let body = serde_json::to_vec(&object).map_err(Error::Encode)?;
            match self.send(Method::PUT, &tail, Some(body)).await {
                Err(err) if err.is_conflict() && tries < MERGE_TRIES_MAX => {}
                done => return done,
            }
        }
    }

    pub async fn patch(&self, tail: &[&str], patch: &Patch) -> Result<Bytes> {
        let mut query = Query::default();
        let (content_type, body) = match patch {
            Patch::Merge(body) => ("application/merge-patch+json", body),
            Patch::Json(body) => ("application/json-patch+json", body),
            Patch::Strategic(body) => ("application/strategic-merge-patch+json", body),
            Patch::Apply { object, manager, force } => {
                query.set("fieldManager", Some(manager));
                query.set("force", Some(if *force { "true" } else { "false" }));
                ("application/apply-patch+yaml", object)
            }
        };
        let body = serde_json::to_vec(body).map_err(Error::Encode)?;
        let path = self.path(tail, query);
        let request = build(Method::PATCH, &path, self.accept, Some(content_type), body.into())?;
        self.client.request(request).await
    }

    /// Deletes one, or all that `list` selects.
    pub async fn delete(
        &self,
        tail: &[&str],
        params: &DeleteParams,
        list: &ListParams,
    ) -> Result<()> {
        let body = serde_json::to_vec(&params.body()).map_err(Error::Encode)?;
        let path = self.path(tail, list.query());
        let request = build(Method::DELETE, &path, ACCEPT_JSON, Some(ACCEPT_JSON), body.into())?;
        self.client.request(request).await.map(drop)
    }

    /// Watches from `resource_version` on. The stream ends when the server ends it.
    pub async fn watch(&self, params: &ListParams, resource_version: &str) -> Result<Lines> {
        let mut query = params.query();
        query.set("watch", Some("true"));
        query.set("allowWatchBookmarks", Some("true"));
        query.set("resourceVersion", Some(resource_version));
        let seconds = WATCH_TIMEOUT_SECONDS + base::rng::below(WATCH_TIMEOUT_SECONDS / 2);
        query.set("timeoutSeconds", Some(&seconds.to_string()));
        let path = self.path(&[], query);
        let request = build(Method::GET, &path, self.accept, None, Bytes::new())?;
        let response = self.client.open(request).await?;
        // A server that is gone without a word sends nothing at all, not even the end.
        let patience = Duration::from_secs(seconds + 60);
        Ok(Box::pin(lines(response.into_body(), patience)))
    }

    pub fn path(&self, tail: &[&str], query: Query) -> String {
        let mut path = self.resource.path(self.namespace.as_deref());
        for part in tail {
            path.push('/');
            path.push_str(part);
        }
        query.append_to(path)
    }
}

/// Applies a JSON merge patch (RFC 7386).
fn merge_into(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            if let Value::Object(map) = object {
                map.shift_remove(key);
            }
        } else {
            merge_into(&mut object[key], value);
        }
    }
}

pub(crate) fn build(
    method: Method,
    path: &str,
    accept: &str,
    content_type: Option<&str>,
    body: Bytes,
) -> Result<Request<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("accept", accept);
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    request.body(body).map_err(Error::Request)
}

#[derive(Default)]
pub(crate) struct Query(Vec<(&'static str, String)>);

impl Query {
    pub fn set(&mut self, name: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            self.0.push((name, value.to_string()));
        }
    }

    fn append_to(self, mut path: String) -> String {
        for (n, (name, value)) in self.0.iter().enumerate() {
            path.push(if n == 0 { '?' } else { '&' });
            path.push_str(name);
            path.push('=');
            for byte in value.bytes() {
                match byte {
                    b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                        path.push(char::from(byte));
                    }
                    _ => path.push_str(&format!("%{byte:02X}")),
                }
            }
        }
        path
    }
}

/// Cuts a body into lines.
fn lines(body: Body, patience: Duration) -> impl Stream<Item = Result<Bytes>> + Send {
    let stream = match body {
        Body::Full(bytes) => futures::stream::once(async move { Ok(bytes) }).boxed(),
        Body::Stream(stream) => stream,
    };
    futures::stream::unfold(Some((stream, BytesMut::new())), move |state| async move {
        let (mut stream, mut buffer) = state?;
        loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1).freeze();
                return Some((Ok(line), Some((stream, buffer))));
            }
            if buffer.len() > WATCH_EVENT_BYTES_MAX {
                return Some((Err(Error::Transport("a watch event is too large".into())), None));
            }
            match tokio::time::timeout(patience, stream.next()).await {
                Ok(Some(Ok(chunk))) => buffer.extend_from_slice(&chunk),
                Ok(Some(Err(err))) => {
                    return Some((Err(Error::Transport(Box::new(err))), None));
                }
                Ok(None) => return None,
                Err(_) => return Some((Err(Error::Timeout(patience)), None)),
            }
        }
    })
}
