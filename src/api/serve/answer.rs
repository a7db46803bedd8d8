//! Answers: objects, lists, tables and partial metadata in the form a client asked for.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use client::Body;
use http::{Response, StatusCode};
use kinds::resources::Resource;
use serde_json::{Map, Value, json};

use super::compress::Document;
use super::negotiate::{self, Asked, Encoding, Form, View};
use crate::cache::Object;
use crate::error::{ApiError, Result};
use crate::registry::list::Page;
use crate::registry::update::Written;
use crate::registry::{Target, convert};
use crate::scheme::{Schema, Typed, shape, words};
use codec::protobuf::encode::{self as protobuf, Encoder, ListWriter};

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

/// Marks an answer as one that may be compressed.
fn document(mut response: Response<Body>) -> Response<Body> {
    response.extensions_mut().insert(Document);
    response
}

pub fn json(status: StatusCode, value: &Value) -> Response<Body> {
    let mut body = value.to_string();
    body.push('\n');
    bytes(status, "application/json", body)
}

/// A Status for a failure, in the form the client reads.
pub fn failure(error: &ApiError, asked: &Asked) -> Response<Body> {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = error.body();
    let mut response = match negotiate::encode(asked.plain_form(), &body) {
        Ok((kind, text)) => bytes(status, kind, text),
        Err(_) => json(status, &body),
    };
    if let Some(seconds) = error.retry_after
        && let Ok(value) = http::HeaderValue::from_str(&seconds.to_string())
    {
        response.headers_mut().insert(http::header::RETRY_AFTER, value);
    }
    response
}

/// `Warning: 299 - "text"` for each text.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    let mut said = std::collections::HashSet::new();
    for text in warnings.iter().filter(|text| said.insert(text.as_str())) {
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = http::HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}

/// One object, already in the version of the request.
///
/// # Errors
/// 406 for the view of a list.
pub fn object(
    status: StatusCode,
    form: Form,
    target: &Target,
    value: &Value,
    include: Include,
) -> Result<Response<Body>> {
    let shown = match form.view {
        View::Object => {
            let mut value = value.clone();
            target.arrange(&mut value);
            value
        }
        View::Table => table(form, target, std::slice::from_ref(value), value, include),
        View::Partial => partial(form, value),
        View::PartialList => {
            return Err(wrong_view("PartialObjectMetadataList", "not a list", target, ""));
        }
    };
    whole(status, form, &shown)
}

/// A value as it is, in the encoding asked for.
fn whole(status: StatusCode, form: Form, value: &Value) -> Result<Response<Body>> {
    let (kind, text) = negotiate::encode(form, value)?;
    Ok(document(bytes(status, kind, text)))
}

/// One object's view was asked for and there is a list, or the other way round.
fn wrong_view(view: &str, is: &str, target: &Target, list: &str) -> ApiError {
    let resource = &target.resource;
    let package = resource.internal_package();
    let kind = if resource.custom { "Unstructured" } else { &resource.kind };
    ApiError::new(
        406,
        "NotAcceptable",
        format!("you requested {view}, but the requested object is {is} (*{package}.{kind}{list})"),
    )
}

/// One stored object; its bytes are sent as they are where that is what was asked for.
///
/// # Errors
/// 406 for the view of a list.
pub fn stored(
    form: Form,
    target: &Target,
    object: &Object,
    include: Include,
) -> Result<Response<Body>> {
    let resource = &target.resource;
    if convert::is_identity(resource, &target.version)
        && let Some(sent) = as_stored(StatusCode::OK, form, target, &object.line)?
    {
        return Ok(sent);
    }
    let value = convert::from_storage(object.value(), resource, &target.version);
    self::object(StatusCode::OK, form, target, &value, include)
}

/// What a write made: sent as it was stored where that is what was asked for.
///
/// # Errors
/// 406 for the view of a list.
pub fn written(
    form: Form,
    target: &Target,
    written: &Written,
    include: Include,
) -> Result<Response<Body>> {
    let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    if let Some(line) = &written.line
        && let Some(sent) = as_stored(status, form, target, line)?
    {
        return Ok(sent);
    }
    object(status, form, target, &written.object, include)
}

/// From a stored object's line; None where the form needs more than its bytes.
fn as_stored(
    status: StatusCode,
    form: Form,
    target: &Target,
    line: &Bytes,
) -> Result<Option<Response<Body>>> {
    if form == Form::JSON {
        return Ok(Some(document(bytes(status, "application/json", line.clone()))));
    }
    if form.encoding == Encoding::Protobuf
        && matches!(form.view, View::Object | View::Partial)
        && let Some((encoder, api_version, kind)) = encoder(form, target)
    {
        let json = line.strip_suffix(b"\n").unwrap_or(line);
        let body = encoder.object(&api_version, kind, json).map_err(damaged)?;
        return Ok(Some(document(bytes(status, form.content_type(), body))));
    }
    Ok(None)
}

/// What writes objects, or what is asked for of them, in protobuf, and under which name.
pub fn encoder(form: Form, target: &Target) -> Option<(Encoder, String, &str)> {
    let (api_version, kind) = match form.view {
        View::Object => (target.api_version(), target.resource.kind.as_str()),
        _ => (form.meta_version().to_string(), "PartialObjectMetadata"),
    };
    Some((Encoder::of(&api_version, kind)?, api_version, kind))
}

/// A stored object that is not of its kind: our own mistake, or a damaged disk.
pub fn damaged(error: codec::protobuf::Error) -> ApiError {
    ApiError::internal(format!("a stored object cannot be shown in protobuf: {error}"))
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
pub fn partial(form: Form, value: &Value) -> Value {
    let mut metadata = json!({"metadata": value["metadata"]});
    shape::arrange(&mut metadata, partial_type());
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": form.meta_version(),
        "metadata": metadata["metadata"],
    })
}

/// The same of a stored object, out of its text; None where it would have to be changed.
pub fn stored_partial(form: Form, target: &Target, object: &Object) -> Option<Vec<u8>> {
    let resource = &target.resource;
    if form.encoding != Encoding::Json
        || form.pretty
        || resource.custom
        || !convert::is_identity(resource, &target.version)
    {
        return None;
    }
    let head = format!(
        r#"{{"kind":"PartialObjectMetadata","apiVersion":{:?},"metadata":"#,
        form.meta_version()
    );
    let metadata = object.metadata()?;
    let mut out = Vec::with_capacity(head.len() + metadata.len() + 1);
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(metadata);
    out.push(b'}');
    Some(out)
}

/// `meta/v1 PartialObjectMetadataList` of stored objects, out of their text.
fn stored_partial_list(
    form: Form,
    target: &Target,
    metadata: &Map<String, Value>,
    objects: &[Arc<Object>],
) -> Option<Vec<u8>> {
    if form.view != View::PartialList || objects.is_empty() {
        return None;
    }
    let head = json!({
        "kind": "PartialObjectMetadataList", "apiVersion": form.meta_version(),
        "metadata": metadata,
    });
    let mut out = head.to_string().into_bytes();
    out.pop();
    out.extend_from_slice(b",\"items\":");
    for (at, object) in objects.iter().enumerate() {
        out.push(if at == 0 { b'[' } else { b',' });
        out.extend_from_slice(&stored_partial(form, target, object)?);
    }
    out.extend_from_slice(b"]}\n");
    Some(out)
}

/// Any kind that has metadata and is always there.
fn partial_type() -> Typed<'static> {
    let config_map = Schema::built_in().kind("", "v1", "ConfigMap");
    config_map.unwrap_or_else(Schema::untyped)
}

/// `meta/v1 Table` of objects in the version of the request.
pub fn table(
    form: Form,
    target: &Target,
    objects: &[Value],
    list: &Value,
    include: Include,
) -> Value {
    let resource = &target.resource;
    if let Some(version) = crate::crd::accept::of(target) {
        return custom_table(form, target, &version.columns, objects, list, include);
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
            row(form, target, cells, object, include)
        })
        .collect();
    whole_table(form, columns, rows, list)
}

/// A table with the columns of a custom resource's definition.
fn custom_table(
    form: Form,
    target: &Target,
    columns: &[crate::crd::columns::Column],
    objects: &[Value],
    list: &Value,
    include: Include,
) -> Value {
    let now = base::time::now();
    let rows = objects
        .iter()
        .map(|object| {
            row(form, target, crate::crd::columns::cells(columns, object, now), object, include)
        })
        .collect();
    whole_table(form, crate::crd::columns::definitions(columns), rows, list)
}

fn row(form: Form, target: &Target, cells: Vec<Value>, object: &Value, include: Include) -> Value {
    let shown = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(form, object),
        Include::Object => {
            let mut object = object.clone();
            target.arrange(&mut object);
            object
        }
    };
    json!({"cells": cells, "object": shown})
}

fn whole_table(form: Form, columns: Vec<Value>, rows: Vec<Value>, list: &Value) -> Value {
    let mut metadata = Map::new();
    for field in ["resourceVersion", "continue", "remainingItemCount"] {
        if let Some(found) = list["metadata"].get(field) {
            metadata.insert(field.into(), found.clone());
        }
    }
    json!({
        "kind": "Table", "apiVersion": form.meta_version(), "metadata": metadata,
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
    if form.view == View::Partial {
        return Err(wrong_view("PartialObjectMetadata", "a list", target, "List"));
    }
    let identity = convert::is_identity(resource, &target.version);
    if identity && form == Form::JSON {
        return Ok(document(list_of_bytes(target, &metadata, page.items)));
    }
    if identity
        && form.encoding == Encoding::Protobuf
        && let Some((encoder, api_version, kind)) = encoder(form, target)
    {
        let list_kind = match form.view {
            View::Object => resource.list_kind.clone(),
            _ => format!("{kind}List"),
        };
        return list_of_messages(encoder, &api_version, &list_kind, metadata, &page.items);
    }
    if let Some(text) = stored_partial_list(form, target, &metadata, &page.items) {
        return Ok(document(bytes(StatusCode::OK, form.content_type(), text)));
    }
    let values: Vec<Value> = page
        .items
        .iter()
        .map(|item| convert::from_storage(item.value(), resource, &target.version))
        .collect();
    let shown = match form.view {
        View::Object | View::Partial => list_value(target, metadata, values),
        View::Table => {
            let list = json!({"metadata": metadata});
            table(form, target, &values, &list, include)
        }
        View::PartialList => partial_list(form, metadata, &values),
    };
    whole(StatusCode::OK, form, &shown)
}

/// `meta/v1 PartialObjectMetadataList`.
fn partial_list(form: Form, metadata: Map<String, Value>, objects: &[Value]) -> Value {
    let items: Vec<Value> = objects.iter().map(|object| partial(form, object)).collect();
    // Upstream's list of nothing.
    let items = if items.is_empty() { Value::Null } else { items.into() };
    json!({
        "kind": "PartialObjectMetadataList", "apiVersion": form.meta_version(),
        "metadata": metadata, "items": items,
    })
}

/// A list in protobuf. Its length stands at its beginning, so it is made whole.
fn list_of_messages(
    encoder: Encoder,
    api_version: &str,
    list_kind: &str,
    metadata: Map<String, Value>,
    items: &[Arc<Object>],
) -> Result<Response<Body>> {
    let size = items.iter().map(|item| item.bytes().len()).sum();
    let metadata = Value::Object(metadata).to_string();
    let mut list = ListWriter::new(encoder, metadata.as_bytes(), size).map_err(damaged)?;
    for item in items {
        list.item(item.bytes()).map_err(damaged)?;
    }
    let list = list.finish();
    let mut chunks = vec![Ok(Bytes::from(protobuf::envelope(api_version, list_kind, list.len())))];
    let list = Bytes::from(list);
    let cuts = (0..list.len()).step_by(CHUNK_BYTES);
    chunks.extend(cuts.map(|at| Ok(list.slice(at..list.len().min(at + CHUNK_BYTES)))));
    chunks.push(Ok(Bytes::from_static(protobuf::ENVELOPE_END)));
    let mut response = bytes(
        StatusCode::OK,
        Form { encoding: Encoding::Protobuf, ..Form::JSON }.content_type(),
        Bytes::new(),
    );
    *response.body_mut() = if list.len() < CHUNK_BYTES {
        let whole: Vec<u8> =
            chunks.into_iter().flatten().flat_map(|chunk: Bytes| chunk.to_vec()).collect();
        Body::Full(whole.into())
    } else {
        Body::Stream(Box::pin(futures::stream::iter(chunks)))
    };
    Ok(document(response))
}

/// A list object of whole objects, whose items leave out kind and apiVersion unless they
/// are custom resources.
pub fn list_value(target: &Target, metadata: Map<String, Value>, items: Vec<Value>) -> Value {
    let resource = &target.resource;
    let items: Vec<Value> = items
        .into_iter()
        .map(|mut item| {
            target.arrange(&mut item);
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
            out.extend_from_slice(item.bytes());
        } else {
            out.put_u8(b'{');
            out.extend_from_slice(item.item_tail());
        }
    };
    let size: usize = items.iter().map(|item| item.bytes().len()).sum();
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

/// A value in the encoding asked for, whatever it is (reviews, scales, discovery).
pub fn plain(status: StatusCode, form: Form, value: &Value) -> Result<Response<Body>> {
    whole(status, form.of_object(), value)
}
