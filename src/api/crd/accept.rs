//! Custom objects from the body of a request to what is checked and stored.

use kinds::meta::FieldError;
use serde_json::Value;

use super::version::{self, Version};
use super::{instance, shape};
use crate::error::{ApiError, Cause, Result};
use crate::registry::{FieldValidation, Target, causes};

/// What was compiled for the version of a request; None for built-in resources.
pub fn of(target: &Target) -> Option<&Version> {
    version::of(&target.resource)?.version(&target.version)
}

/// Bytes of a body that a message quotes.
const QUOTED_MAX: usize = 30;

/// Brings the object of a body into shape: unknown fields go, defaults come. Returns what
/// was unknown, in upstream's sentences.
///
/// # Errors
/// 400 for a body that is no object of this kind.
pub fn body(target: &Target, object: &mut Value) -> Result<Vec<String>> {
    let Some(version) = of(target) else { return Ok(Vec::new()) };
    shape::whole_numbers(object);
    coerce(target, version, object)
}

fn coerce(target: &Target, version: &Version, object: &mut Value) -> Result<Vec<String>> {
    let kind = &target.resource.kind;
    let unreadable = |why: String| {
        ApiError::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {kind}: {why}",
            target.version
        ))
    };
    let node = version.node();
    let mut unknown = shape::coerce_metadata(object).map_err(unreadable)?;
    unknown.extend(shape::prune(object, node));
    shape::prune_nulls(object, Some(node));
    let inside = shape::coerce_embedded(object, node, false).map_err(|bad| {
        let error = FieldError::invalid(bad.field, bad.value, &bad.said);
        unreadable(error.to_string())
    })?;
    unknown.extend(inside);
    shape::default(object, node);
    Ok(unknown.into_iter().map(|path| format!("unknown field {path:?}")).collect())
}

/// What a patch made of an object, in shape again. Returns warnings.
///
/// # Errors
/// 422 for fields that are not known, and for what is wrong with the text of the patch,
/// where the client is strict.
pub fn patched(
    target: &Target,
    object: &mut Value,
    mode: FieldValidation,
    of_text: &[String],
) -> Result<Vec<String>> {
    let Some(version) = of(target) else { return Ok(Vec::new()) };
    shape::whole_numbers(object);
    let strict = mode == FieldValidation::Strict;
    let given = strict.then(|| object.clone());
    let mut errors = of_text.to_vec();
    errors.extend(coerce(target, version, object)?);
    match mode {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(errors),
        FieldValidation::Strict if errors.is_empty() => Ok(errors),
        FieldValidation::Strict => {
            let mut given = given.unwrap_or_default();
            given.sort_all_objects();
            let cause = Cause {
                reason: "FieldValueInvalid".into(),
                message: format!(
                    "Invalid value: {:?}: strict decoding error: {}",
                    given.to_string(),
                    errors.join(", ")
                ),
                field: "patch".into(),
            };
            let text = format!(" \"\" is invalid: patch: {}", cause.message);
            Err(ApiError::new(422, "Invalid", text).with_causes(&[cause]))
        }
    }
}

/// A new object has no status where the status is written on its own.
pub fn prepare_create(target: &Target, object: &mut Value) {
    let Some(version) = of(target) else { return };
    if version.has_status
        && let Value::Object(map) = object
    {
        map.shift_remove("status");
    }
    complete(target, object);
}

/// Warnings about a new object, or a new definition.
pub fn create_warnings(target: &Target, object: &Value) -> Vec<String> {
    if target.resource.custom {
        return instance::finalizer_warnings(object, None);
    }
    if target.is_definition() {
        return super::definition::warnings(object, None);
    }
    Vec::new()
}

/// After admission, and after a change of the server's own making.
pub fn complete(target: &Target, object: &mut Value) {
    if let Some(version) = of(target) {
        // What a webhook put in and the schema does not know goes without a word.
        shape::prune(object, version.node());
        shape::prune_nulls(object, Some(version.node()));
        shape::default(object, version.node());
    }
}

/// A body must say what it is.
///
/// # Errors
/// 400 where it does not; 422 where it is of another kind.
pub fn check_kind(target: &Target, object: &Value, body: &[u8]) -> Result<()> {
    let text = |field: &str| object[field].as_str().unwrap_or("");
    let (kind, spoken) = (text("kind"), text("apiVersion"));
    let wanted = &target.resource.kind;
    let body = String::from_utf8_lossy(body);
    if kind.is_empty() {
        let start: String = body.chars().take(QUOTED_MAX).collect();
        let more = if body.len() > start.len() { " ..." } else { "" };
        return Err(ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {wanted}): Object 'Kind' is missing in '{body}' ({start}{more})"
        )));
    }
    if spoken.is_empty() {
        return Err(ApiError::bad_request(format!(
            "{kind} in version \"\" cannot be handled as a {wanted}: Object 'apiVersion' is missing in '{body}'"
        )));
    }
    let expected = target.api_version();
    if spoken != expected {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({spoken}) does not match the expected API version ({expected})"
        )));
    }
    if kind == wanted {
        return Ok(());
    }
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {kind:?}: must be {wanted}"),
        field: "kind".into(),
    };
    let name = crate::registry::metadata_str(object, "name");
    let name = if name.is_empty() { target.name.as_str() } else { name };
    let group = &target.resource.group;
    let said = format!("{kind}.{group} {name:?} is invalid: kind: {}", cause.message);
    Err(ApiError::new(422, "Invalid", said).about(group, kind, name).with_causes(&[cause]))
}

/// All checks of a new object.
pub fn check_create(target: &Target, object: &Value) -> Result<()> {
    let Some(version) = of(target) else { return Ok(()) };
    let mut errors = instance::create(version, object, target.resource.namespaced);
    super::rules::check(version, object, None, &mut errors);
    refuse(target, errors)
}

/// All checks of a changed object, or of its status. Returns warnings of what is wrong, but
/// was before.
pub fn check_update(target: &Target, new: &Value, old: &Value) -> Result<Vec<String>> {
    let Some(version) = of(target) else { return Ok(Vec::new()) };
    let mut errors = match target.subresource.as_str() {
        "status" => instance::status_update(version, new, old),
        _ => instance::update(version, new, old, target.resource.namespaced),
    };
    let let_through = super::rules::check(version, new, Some(old), &mut errors);
    refuse(target, errors)?;
    Ok(let_through)
}

fn refuse(target: &Target, errors: Vec<FieldError>) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(&target.resource, &target.name, &causes(errors)))
}

/// Nothing new while the definition is on its way out.
///
/// # Errors
/// 403 then.
pub fn check_terminating(target: &Target) -> Result<()> {
    let resource = &target.resource;
    if version::of(resource).is_some_and(|custom| custom.terminating) {
        let why = "create not allowed while custom resource definition is terminating";
        return Err(ApiError::forbidden(&resource.group, &resource.plural, &target.name, why));
    }
    Ok(())
}
