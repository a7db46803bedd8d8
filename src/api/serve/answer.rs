//! Answers: objects, lists, tables and partial metadata in the form a client asked for.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use client::Body;
use http::{Response, StatusCode};
use kinds::resources::Resource;
use serde_json::{Map, Value, json};

use super::negotiate::{self, Encoding, Form, View};
use crate::cache::Object;
use crate::error::{ApiError, Result};
use crate::registry::list::Page;
use crate::registry::{Target, convert};
use crate::scheme::words;

/// A list is sent in pieces of about this many bytes.
const CHUNK_BYTES: usize = 64 << 10;

pub fn bytes(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Full(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Ok(value) = http::HeaderValue::from_str(content_type) {
        headers.insert(http::header::CONTENT_TYPE, value);
    }
    headers
        .insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache, private"));
    response
}

pub fn json(status: StatusCode, value: &Value) -> Response<Body> {
    let mut body = value.to_string();
    body.push('\n');
    bytes(status, "application/json", body)
}

/// A Status for a failure.
pub fn failure(error: &ApiError) -> Response<Body> {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, &error.body());
    if let Some(seconds) = error.retry_after
        && let Ok(value) = http::HeaderValue::from_str(&seconds.to_string())
    {
        response.headers_mut().insert(http::header::RETRY_AFTER, value);
    }
    response
}

/// `Warning: 299 - "text"` for each text.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for text in warnings {
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = http::HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}

/// One object, already in the version of the request.
pub fn object(
    status: StatusCode,
    form: Form,
    target: &Target,
    value: &Value,
    include: Include,
) -> Result<Response<Body>> {
    let shown = match form.view {
        View::Object => {
            return Ok(bytes(
                status,
                form.content_type(),
                negotiate::encode(form.encoding, value)?,
            ));
        }
        View::Table => table(target, std::slice::from_ref(value), value, include),
        View::Partial => partial(value),
    };
    Ok(bytes(status, form.content_type(), negotiate::encode(form.encoding, &shown)?))
}

/// One stored object; its bytes are sent as they are where that is what was asked for.
pub fn stored(
    form: Form,
    target: &Target,
    object: &Object,
    include: Include,
) -> Result<Response<Body>> {
    let as_is = form == Form::JSON && convert::is_identity(&target.resource, &target.version);
    if as_is {
        return Ok(bytes(StatusCode::OK, "application/json", object.bytes.clone()));
    }
    let value = convert::from_storage(object.value(), &target.resource, &target.version);
    self::object(StatusCode::OK, form, target, &value, include)
}

/// Which part of an object a table's rows carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Include {
    /// # Errors
    /// 400 for a word that is none of the three.
    pub fn parse(text: Option<&str>) -> Result<Self> {
        match text.unwrap_or("") {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(ApiError::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            ))),
        }
    }
}

/// `meta/v1 PartialObjectMetadata`.
pub fn partial(value: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": value["metadata"],
    })
}

/// `meta/v1 Table` of objects in the version of the request.
pub fn table(target: &Target, objects: &[Value], list: &Value, include: Include) -> Value {
    let resource = &target.resource;
    if let Some(version) = crate::crd::accept::of(target) {
        return custom_table(&version.columns, objects, list, include);
    }
    let table = kinds::table::table(&resource.group, &resource.kind);
    let now = base::time::now();
    let columns: Vec<Value> = table
        .columns
        .iter()
        .zip(words::of_columns(&resource.group, &resource.kind, table.columns))
        .map(|(column, description)| {
            json!({
                "name": column.name, "type": column.kind, "format": column.format,
                "description": description, "priority": column.priority,
            })
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells = (table.cells)(&stored_shape(object, resource), now);
            row(cells, object, include)
        })
        .collect();
    whole_table(columns, rows, list)
}

/// A table with the columns of a custom resource's definition.
fn custom_table(
    columns: &[crate::crd::columns::Column],
    objects: &[Value],
    list: &Value,
    include: Include,
) -> Value {
    let now = base::time::now();
    let rows = objects
        .iter()
        .map(|object| row(crate::crd::columns::cells(columns, object, now), object, include))
        .collect();
    whole_table(crate::crd::columns::definitions(columns), rows, list)
}

fn row(cells: Vec<Value>, object: &Value, include: Include) -> Value {
    let shown = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(object),
        Include::Object => object.clone(),
    };
    json!({"cells": cells, "object": shown})
}

fn whole_table(columns: Vec<Value>, rows: Vec<Value>, list: &Value) -> Value {
    let mut metadata = Map::new();
    for field in ["resourceVersion", "continue", "remainingItemCount"] {
        if let Some(found) = list["metadata"].get(field) {
            metadata.insert(field.into(), found.clone());
        }
    }
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}

/// Columns are drawn from the stored shape, whatever version is spoken.
fn stored_shape(object: &Value, resource: &Resource) -> Value {
    convert::to_storage(object.clone(), resource)
}

/// A page of stored objects.
pub fn list(form: Form, target: &Target, page: Page, include: Include) -> Result<Response<Body>> {
    let resource = &target.resource;
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), page.revision.to_string().into());
    if !page.continue_token.is_empty() {
        metadata.insert("continue".into(), page.continue_token.clone().into());
    } else if resource.custom && form.view == View::Object {
        // Lists that upstream keeps without a structure say that there is no more.
        metadata.insert("continue".into(), "".into());
    }
    if let Some(remaining) = page.remaining {
        metadata.insert("remainingItemCount".into(), remaining.into());
    }
    let as_is = form == Form::JSON && convert::is_identity(resource, &target.version);
    if as_is {
        return Ok(list_of_bytes(target, &metadata, page.items));
    }
    let values: Vec<Value> = page
        .items
        .iter()
        .map(|item| convert::from_storage(item.value(), resource, &target.version))
        .collect();
    let shown = match form.view {
        View::Object => list_value(target, metadata, values),
        View::Table => {
            let list = json!({"metadata": metadata});
            table(target, &values, &list, include)
        }
        View::Partial => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata, "items": values.iter().map(partial).collect::<Vec<_>>(),
        }),
    };
    let body = negotiate::encode(form.encoding, &shown)?;
    Ok(bytes(StatusCode::OK, form.content_type(), body))
}

/// A list object of whole objects, whose items leave out kind and apiVersion unless they
/// are custom resources.
pub fn list_value(target: &Target, metadata: Map<String, Value>, items: Vec<Value>) -> Value {
    let resource = &target.resource;
    let items: Vec<Value> = items
        .into_iter()
        .map(|mut item| {
            if !resource.custom
                && let Value::Object(map) = &mut item
            {
                map.shift_remove("kind");
                map.shift_remove("apiVersion");
            }
            item
        })
        .collect();
    json!({
        "kind": resource.list_kind, "apiVersion": target.api_version(),
        "metadata": metadata, "items": items,
    })
}

/// Streams the objects' own bytes, a chunk at a time.
fn list_of_bytes(
    target: &Target,
    metadata: &Map<String, Value>,
    items: Vec<Arc<Object>>,
) -> Response<Body> {
    let custom = target.resource.custom;
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{},\"items\":[",
        Value::from(target.resource.list_kind.as_str()),
        Value::from(target.api_version()),
        Value::Object(metadata.clone()),
    );
    let put = move |out: &mut BytesMut, item: &Object, first: bool| {
        if !first {
            out.put_u8(b',');
        }
        if custom {
            out.extend_from_slice(&item.bytes);
        } else {
            out.put_u8(b'{');
            out.extend_from_slice(&item.item_tail());
        }
    };
    let size: usize = items.iter().map(|item| item.bytes.len()).sum();
    if size < CHUNK_BYTES {
        let mut out = BytesMut::with_capacity(size + head.len() + 8);
        out.extend_from_slice(head.as_bytes());
        for (n, item) in items.iter().enumerate() {
            put(&mut out, item, n == 0);
        }
        out.extend_from_slice(b"]}\n");
        return bytes(StatusCode::OK, "application/json", out.freeze());
    }
    let state = (Some(head), items, 0usize, false);
    let stream = futures::stream::unfold(state, move |(head, items, mut at, done)| async move {
        if done {
            return None;
        }
        let mut out = BytesMut::with_capacity(CHUNK_BYTES + 4_096);
        if let Some(head) = head {
            out.extend_from_slice(head.as_bytes());
        }
        while at < items.len() && out.len() < CHUNK_BYTES {
            put(&mut out, &items[at], at == 0);
            at += 1;
        }
        let done = at == items.len();
        if done {
            out.extend_from_slice(b"]}\n");
        }
        Some((Ok(out.freeze()), (None, items, at, done)))
    });
    let mut response = bytes(StatusCode::OK, "application/json", Bytes::new());
    *response.body_mut() = Body::Stream(Box::pin(stream));
    response
}

/// A value in the form asked for, whatever it is (reviews, scales, discovery).
pub fn plain(status: StatusCode, form: Form, value: &Value) -> Result<Response<Body>> {
    let encoding = if form.view == View::Object { form.encoding } else { Encoding::Json };
    Ok(bytes(status, form.content_type(), negotiate::encode(encoding, value)?))
}
