//! What a patch makes of an object, and what is wrong with that, in upstream's words.
//!
//! Pure. Server-side apply is in `change::apply`.

use serde_json::{Map, Value};

use super::update::{Change, is_deeper, patch_error};
use super::{FieldValidation, Target, WriteOptions};
use crate::change::go_format::go_value;
use crate::change::{json_patch, merge_patch, strategic};
use crate::error::{ApiError, Cause, Result};
use crate::scheme::shape::{self, TypeMismatch};
use crate::scheme::{Schema, Typed};
use crate::serve::negotiate::DEPTH_MAX;

/// The patched object, and warnings about what the kind does not have.
///
/// # Errors
/// 422 for a patch that fails or makes something else than an object of the kind.
pub fn patched(
    target: &Target,
    live: &Value,
    change: &Change,
    options: &WriteOptions,
) -> Result<(Value, Vec<String>)> {
    let mut new = live.clone();
    match change {
        Change::Json(patch) => json_patch::json_patch(&mut new, patch),
        Change::Merge(patch) => merge_patch::merge_patch(&mut new, patch),
        Change::Strategic(patch) => strategic::strategic_merge(&mut new, patch, target.typed()),
        Change::Put(_) | Change::Apply(_) | Change::Edit(_) => Ok(()),
    }
    .map_err(|error| patch_error(&error))?;
    // Patches one after the other may not build what no body may hold.
    if is_deeper(&new, DEPTH_MAX) {
        return Err(ApiError::bad_request("exceeded max depth"));
    }
    if target.resource.custom {
        // Custom objects are judged by their schema, once they are in shape.
        return Ok((new, Vec::new()));
    }
    let refuse = |why: &str| Err(refused(&shown(target, &new, change), why));
    if let Err(why) = check_kind(target, &new) {
        return refuse(&why);
    }
    if let Err(mismatch) = shape::check_types(&new, target.typed(), &target.resource.kind) {
        return match change {
            Change::Strategic(_) => refuse(&unrecognized(&mismatch)),
            _ => refuse(&mismatch.to_string()),
        };
    }
    if options.validation == FieldValidation::Ignore {
        return Ok((new, Vec::new()));
    }
    let mut unknown = shape::unknown_field_errors(&new, target.typed());
    unknown.sort();
    let errors = [options.strict_errors.clone(), unknown].concat();
    if options.validation == FieldValidation::Strict && !errors.is_empty() {
        return refuse(&format!("strict decoding error: {}", errors.join(", ")));
    }
    Ok((new, errors))
}

fn refused(shown: &str, why: &str) -> ApiError {
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {shown:?}: {why}"),
        field: "patch".into(),
    };
    let text = format!(" \"\" is invalid: patch: {}", cause.message);
    ApiError::new(422, "Invalid", text).with_causes(&[cause])
}

/// What upstream quotes: the patch if it is a strategic one, otherwise the patched
/// object. Objects that the patch went through come out with sorted keys.
fn shown(target: &Target, new: &Value, change: &Change) -> String {
    let mut shown = new.clone();
    target.arrange(&mut shown);
    match change {
        Change::Strategic(patch) => return go_value(patch),
        Change::Merge(patch) => sort_merged(&mut shown, patch),
        Change::Json(patch) => {
            sort(&mut shown);
            for operation in patch.as_array().into_iter().flatten() {
                let path = operation["path"].as_str().unwrap_or("");
                sort_along(&mut shown, path);
            }
        }
        Change::Put(_) | Change::Apply(_) | Change::Edit(_) => {}
    }
    shown.to_string()
}

fn sort(value: &mut Value) {
    if let Value::Object(map) = value {
        let mut entries: Vec<(String, Value)> = std::mem::take(map).into_iter().collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        *map = entries.into_iter().collect::<Map<String, Value>>();
    }
}

fn sort_merged(value: &mut Value, patch: &Value) {
    sort(value);
    let (Value::Object(map), Value::Object(patch)) = (value, patch) else { return };
    for (key, patch) in patch {
        if let Some(value) = map.get_mut(key).filter(|_| patch.is_object()) {
            sort_merged(value, patch);
        }
    }
}

/// Sorts the objects that a JSON pointer leads through.
fn sort_along(value: &mut Value, path: &str) {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let mut at = value;
    for part in parts.iter().take(parts.len().saturating_sub(1)) {
        let key = part.replace("~1", "/").replace("~0", "~");
        let next = match at {
            Value::Object(map) => map.get_mut(&key),
            Value::Array(list) => key.parse::<usize>().ok().and_then(|at| list.get_mut(at)),
            _ => None,
        };
        let Some(next) = next else { return };
        sort(next);
        at = next;
    }
}

/// A patch may not make another kind of the object.
fn check_kind(target: &Target, new: &Value) -> std::result::Result<(), String> {
    let word = |field: &str| new[field].as_str().unwrap_or("");
    let (expected, resource) = (target.api_version(), &target.resource);
    let kind = Some(word("kind")).filter(|kind| !kind.is_empty()).unwrap_or(&resource.kind);
    let version = word("apiVersion");
    let version = if version.is_empty() { &expected } else { version };
    if kind == resource.kind && version == expected {
        return Ok(());
    }
    let (group, short) = version.rsplit_once('/').unwrap_or(("", version));
    let Some(typed) = Schema::built_in().kind(group, short, kind) else {
        return Err(format!(
            "no kind {kind:?} is registered for version {version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""
        ));
    };
    check_other(new, typed, kind)?;
    Err(format!(
        "converting ({short}.{kind}) to ({}.{}): unknown conversion",
        resource.internal_package(),
        resource.kind
    ))
}

fn check_other(new: &Value, typed: Typed<'_>, kind: &str) -> std::result::Result<(), String> {
    shape::check_types(new, typed, kind).map_err(|mismatch| mismatch.to_string())
}

/// The words of the decoder of objects without a type for a value of a wrong type.
fn unrecognized(mismatch: &TypeMismatch) -> String {
    let TypeMismatch::Type { got, want, .. } = mismatch else { return mismatch.to_string() };
    let got = match got.split(' ').next().unwrap_or("") {
        "number" if got.contains('.') => "float64",
        "number" => "int64",
        "array" => "slice",
        "object" => "map",
        other => other,
    };
    if want.starts_with("[]") {
        format!("cannot restore slice from {got}")
    } else if want.starts_with("map[") {
        format!("cannot restore map from {got}")
    } else if want.contains('.') {
        format!("cannot restore struct from: {got}")
    } else {
        format!("unrecognized type: {want}")
    }
}
