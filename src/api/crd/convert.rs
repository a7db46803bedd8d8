//! Custom objects between the form they are stored in and the versions clients speak.
//!
//! What is read is pruned and defaulted by the schema of today, whatever was stored. A form
//! is made once for an object and a revision of its definition, and shared.

use std::sync::Arc;

use bytes::Bytes;
use kinds::meta::{object, selector};
use serde_json::{Map, Value, json};

use super::shape;
use super::version::{self, Conversion, Custom};
use crate::cache::{Cache, Event, Object};
use crate::error::{ApiError, Result};
use crate::registry::{metadata_mut, metadata_str, stored_bytes};

/// Objects sent to a webhook in one review.
const REVIEW_OBJECTS_MAX: usize = 500;

/// Objects as clients of a version see them. Built-in ones stay as they are.
///
/// # Errors
/// 500 where a webhook cannot convert them.
pub async fn show(
    cache: &Cache,
    resource: &kinds::resources::Resource,
    version: &str,
    objects: Vec<Arc<Object>>,
) -> Result<Vec<Arc<Object>>> {
    let Some(custom) = version::of(resource) else { return Ok(objects) };
    let mut out = Vec::with_capacity(objects.len());
    // Places of objects that a webhook has to convert, with what it converts.
    let mut waiting: Vec<(usize, Value)> = Vec::new();
    for (at, object) in objects.into_iter().enumerate() {
        if let Some(shown) = object.shown(custom.tag, version) {
            out.push(shown.object.clone().unwrap_or(object));
            continue;
        }
        let stored = object.value();
        let mut value = stored.clone();
        read(custom, &mut value);
        let elsewhere = value["apiVersion"] != api_version(custom, version).as_str();
        match &custom.conversion {
            Conversion::Webhook(_) if elsewhere => waiting.push((at, value)),
            Conversion::Webhook(_) | Conversion::None => {
                if elsewhere {
                    plainly(custom, &mut value, version);
                }
                out.push(keep(custom, version, object, &stored, value));
                continue;
            }
        }
        out.push(object);
    }
    while !waiting.is_empty() {
        let rest = waiting.split_off(waiting.len().min(REVIEW_OBJECTS_MAX));
        let (places, values): (Vec<usize>, Vec<Value>) =
            std::mem::replace(&mut waiting, rest).into_iter().unzip();
        for (at, value) in places.into_iter().zip(ask(cache, custom, values, version).await?) {
            let object = out[at].clone();
            let stored = object.value();
            out[at] = keep(custom, version, object, &stored, value);
        }
    }
    Ok(out)
}

/// One object, as [`show`].
pub async fn show_one(
    cache: &Cache,
    resource: &kinds::resources::Resource,
    version: &str,
    object: Arc<Object>,
) -> Result<Arc<Object>> {
    if let Some(custom) = version::of(resource)
        && object.shown(custom.tag, version).is_none_or(|shown| shown.object.is_some())
    {
        let mut shown = show(cache, resource, version, vec![object]).await?;
        return shown.pop().ok_or_else(|| ApiError::internal("an object was lost"));
    }
    Ok(object)
}

/// An event about an object as clients of a version see it.
pub async fn show_event(
    cache: &Cache,
    resource: &kinds::resources::Resource,
    version: &str,
    event: Arc<Event>,
) -> Result<Arc<Event>> {
    if version::of(resource).is_none() {
        return Ok(event);
    }
    let object = show_one(cache, resource, version, event.object.clone()).await?;
    let previous = match &event.previous {
        Some(previous) => Some(show_one(cache, resource, version, previous.clone()).await?),
        None => None,
    };
    let same = |a: &Option<Arc<Object>>, b: &Option<Arc<Object>>| match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    };
    if Arc::ptr_eq(&object, &event.object) && same(&previous, &event.previous) {
        return Ok(event);
    }
    Ok(Arc::new(event.in_form(object, previous)))
}

/// What to store of an object in a version, and the object as it reads afterwards.
pub async fn store(
    cache: &Cache,
    resource: &kinds::resources::Resource,
    version: &str,
    value: &mut Value,
) -> Result<(Bytes, Option<Value>)> {
    let Some(custom) = version::of(resource).filter(|custom| custom.storage != version) else {
        return Ok((stored_bytes(value, resource), None));
    };
    let mut stored = convert(cache, custom, value.clone(), &custom.storage).await?;
    let mut back = stored.clone();
    read(custom, &mut back);
    let back = convert(cache, custom, back, version).await?;
    Ok((stored_bytes(&mut stored, resource), Some(back)))
}

/// Whether an object is stored in another form than it would be today.
pub async fn is_stale(
    cache: &Cache,
    resource: &kinds::resources::Resource,
    object: &Arc<Object>,
) -> Result<bool> {
    let Some(custom) = version::of(resource) else { return Ok(false) };
    let shown = show_one(cache, resource, &custom.storage, object.clone()).await?;
    Ok(!Arc::ptr_eq(&shown, object))
}

async fn convert(cache: &Cache, custom: &Custom, mut value: Value, to: &str) -> Result<Value> {
    if let Conversion::Webhook(_) = &custom.conversion {
        let mut converted = ask(cache, custom, vec![value], to).await?;
        return converted.pop().ok_or_else(|| ApiError::internal("an object was lost"));
    }
    plainly(custom, &mut value, to);
    Ok(value)
}

fn api_version(custom: &Custom, version: &str) -> String {
    format!("{}/{version}", custom.group)
}

/// A stored object as its own version has it now.
fn read(custom: &Custom, value: &mut Value) {
    let spoken = value["apiVersion"].as_str().unwrap_or("");
    let spoken = spoken.rsplit('/').next().unwrap_or("");
    let Some(version) = custom.version(spoken) else { return };
    let node = version.node();
    prune(value, node, true);
    shape::default(value, node);
    let metadata = metadata_mut(value);
    if metadata.get("generation").is_none_or(|generation| *generation == 0) {
        metadata.insert("generation".into(), 1.into());
    }
}

fn prune(value: &mut Value, node: &super::schema::Node, lenient: bool) {
    shape::prune(value, node);
    shape::prune_nulls(value, Some(node));
    // Only what is lenient cannot fail; the rest was refused when it was written.
    let _ = shape::coerce_embedded(value, node, lenient);
}

/// Conversion without a webhook: the new version's schema decides what stays.
fn plainly(custom: &Custom, value: &mut Value, to: &str) {
    value["apiVersion"] = api_version(custom, to).into();
    if let Some(version) = custom.version(to) {
        prune(value, version.node(), true);
    }
}

fn keep(
    custom: &Custom,
    version: &str,
    object: Arc<Object>,
    stored: &Value,
    value: Value,
) -> Arc<Object> {
    let changed = match &value {
        Value::Object(map) if value != *stored => Some(Arc::new(object.in_form(map))),
        _ => None,
    };
    if let Some(changed) = &changed {
        // What is shown is shown as it is.
        changed.keep_shown(custom.tag, version, None);
    }
    object.keep_shown(custom.tag, version, changed.clone());
    changed.unwrap_or(object)
}

/// Has a webhook convert objects.
async fn ask(cache: &Cache, custom: &Custom, values: Vec<Value>, to: &str) -> Result<Vec<Value>> {
    let Conversion::Webhook(config) = &custom.conversion else {
        return Ok(values);
    };
    let wanted = api_version(custom, to);
    let from = values.first().map_or("", |value| value["apiVersion"].as_str().unwrap_or(""));
    let about = format!("{from}, Kind={}", custom.kind);
    let failed =
        |said: String| ApiError::new(500, "", format!("conversion webhook for {about} {said}"));
    let mut to_convert: Vec<usize> = Vec::new();
    for (at, value) in values.iter().enumerate() {
        if value["apiVersion"] != wanted.as_str() {
            to_convert.push(at);
        }
    }
    if to_convert.is_empty() {
        return Ok(values);
    }
    let supported = config.review_versions.iter().find(|v| matches!(v.as_str(), "v1" | "v1beta1"));
    let review = supported
        .ok_or_else(|| ApiError::new(500, "", "no supported conversion review versions"))?;
    let uid = base::rng::uuid();
    let objects: Vec<&Value> = to_convert.iter().map(|at| &values[*at]).collect();
    let question = json!({
        "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{review}"),
        "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects},
    });
    let answer = config.ask(cache, &question).await;
    let answer = answer.map_err(|why| failed(format!("failed: {why}")))?;
    let converted =
        answered(&answer, review, &uid).map_err(|why| failed(format!("failed: {why}")))?;
    if converted.len() != to_convert.len() {
        return Err(failed(format!(
            "returned {} objects, expected {}",
            converted.len(),
            to_convert.len()
        )));
    }
    let mut out = values;
    for (index, (at, mut new)) in to_convert.into_iter().zip(converted).enumerate() {
        let invalid =
            |why: String| failed(format!("returned invalid object at index {index}: {why}"));
        let got = new["apiVersion"].as_str().unwrap_or("");
        if got != wanted {
            return Err(invalid(format!(
                "invalid groupVersion (expected {wanted}, received {got})"
            )));
        }
        let kind = new["kind"].as_str().unwrap_or("");
        if kind != custom.kind {
            return Err(invalid(format!(
                "invalid kind (expected {}, received {kind})",
                custom.kind
            )));
        }
        for (field, said) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
            let (before, after) = (metadata_str(&out[at], field), metadata_str(&new, field));
            if before != after {
                return Err(failed(format!(
                    "returned invalid object: must have the same {said}: {before} != {after}"
                )));
            }
        }
        restore_metadata(&out[at], &mut new)
            .map_err(|why| failed(format!("returned invalid metadata: {why}")))?;
        if let Some(version) = custom.version(to) {
            prune(&mut new, version.node(), true);
        }
        out[at] = new;
    }
    Ok(out)
}

/// The converted objects of an answer.
fn answered(answer: &Value, review: &str, uid: &str) -> std::result::Result<Vec<Value>, String> {
    let wanted = format!("apiextensions.k8s.io/{review}");
    let (got, kind) = (answer["apiVersion"].as_str(), answer["kind"].as_str());
    let (got, kind) = (got.unwrap_or(""), kind.unwrap_or(""));
    if review == "v1" && (got != wanted || kind != "ConversionReview") {
        return Err(format!(
            "expected webhook response of {wanted}, Kind=ConversionReview, got {got}, Kind={kind}"
        ));
    }
    let response = answer.get("response").filter(|response| response.is_object());
    let response = response.ok_or("no response provided")?;
    let got = response["uid"].as_str().unwrap_or("");
    if review == "v1" && got != uid {
        return Err(format!("expected response.uid={uid:?}, got {got:?}"));
    }
    let status = response["result"]["status"].as_str().unwrap_or("");
    if status != "Success" {
        let message = response["result"]["message"].as_str().unwrap_or("");
        return Err(match message {
            "" => format!("response.result.status was '{status}', not 'Success'"),
            message => message.to_string(),
        });
    }
    Ok(response["convertedObjects"].as_array().cloned().unwrap_or_default())
}

/// A webhook may change labels and annotations; the rest of the metadata stays.
fn restore_metadata(original: &Value, converted: &mut Value) -> std::result::Result<(), String> {
    let answered = match converted.get("metadata") {
        None => return Err("missing metadata in converted object".into()),
        Some(Value::Object(map)) => map.clone(),
        Some(_) => return Err("invalid metadata of type string in converted object".into()),
    };
    let mut metadata = original["metadata"].as_object().cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        match answered.get(field) {
            None | Some(Value::Null) => {
                metadata.shift_remove(field);
            }
            Some(Value::Object(map)) => {
                check_texts(field, map, metadata.get(field))?;
                metadata.insert(field.into(), Value::Object(map.clone()));
            }
            Some(_) => {
                return Err(format!("invalid metadata.{field} of type string in converted object"));
            }
        }
    }
    converted["metadata"] = Value::Object(metadata);
    Ok(())
}

fn check_texts(
    field: &str,
    map: &Map<String, Value>,
    before: Option<&Value>,
) -> std::result::Result<(), String> {
    for (key, value) in map {
        if !value.is_string() {
            return Err(format!(
                "metadata.{field}[{key}] must be a string, but is something else in converted object"
            ));
        }
    }
    if before.and_then(Value::as_object) == Some(map) {
        return Ok(());
    }
    let errors = if field == "labels" {
        selector::validate_labels(map, "metadata.labels")
    } else {
        object::annotations(&json!({"annotations": map}), "metadata.annotations")
    };
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(one.to_string()),
        many => {
            let said: Vec<String> = many.iter().map(ToString::to_string).collect();
            Err(format!("[{}]", said.join(", ")))
        }
    }
}
