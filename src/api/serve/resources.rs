//! Requests about resources: the query and body are read, the registry is asked, the
//! answer takes the form the client wants.

use std::sync::Arc;

use client::Body;
use http::{Response, StatusCode};
use kinds::resources::Resource;
use serde_json::{Map, Value};

use super::answer::{self, Include};
use super::chain::Call;
use super::negotiate::{self, Decoded, Form};
use super::{Shared, duplicates, reviews, subresources, watching, websocket};
use crate::change::json_patch::unknown_patch_fields;
use crate::crd;
use crate::error::{ApiError, Cause, Result};
use crate::registry::delete::{DeleteOptions, answers_with_object, deleted_status};
use crate::registry::list::ListOptions;
use crate::registry::select::Selector;
use crate::registry::update::Change;
use crate::registry::watch::WatchOptions;
use crate::registry::{FieldValidation, Target, WriteOptions, metadata_mut, metadata_str};
use crate::scheme::{Schema, shape};
use codec::yaml;

/// Subresources that answer with what a kubelet or a container says.
const STREAMS: [&str; 5] = ["exec", "attach", "portforward", "log", "proxy"];
/// Field managers are cut to this many characters.
const MANAGER_CHARS_MAX: usize = 128;

pub async fn serve(server: &Shared, call: Call) -> Result<Response<Body>> {
    let info = &call.info;
    let catalog = server.registry.catalog();
    let resource = catalog.by_plural(&info.group, &info.version, &info.resource).cloned();
    let Some(resource) = resource else {
        // Of what only definitions could define not even the errors have a form.
        return match catalog.resources_of(&info.group, &info.version).any(|r| !r.custom) {
            true => Err(ApiError::no_such_resource()),
            false => Ok(super::documents::not_found()),
        };
    };
    let scoped = !info.namespace.is_empty() && info.resource != "namespaces";
    if resource.custom && scoped && !resource.namespaced {
        return Ok(super::documents::not_found());
    }
    if scoped && !resource.namespaced {
        return Err(ApiError::no_such_resource());
    }
    let target = Target {
        version: info.version.clone(),
        namespace: if resource.namespaced { info.namespace.clone() } else { String::new() },
        name: info.name.clone(),
        subresource: info.subresource.clone(),
        resource,
    };
    if resource_is_unplaced(&target, info.verb) {
        if target.resource.custom {
            return Ok(super::documents::not_found());
        }
        // Only the collection has a path without a namespace.
        return Err(if target.name.is_empty() {
            ApiError::method_not_allowed()
        } else {
            ApiError::no_such_resource()
        });
    }
    if target.name.contains('/') || matches!(target.name.as_str(), "." | "..") {
        return Err(ApiError::no_such_resource());
    }
    check_route(&call, &target)?;
    let old = kinds::warnings::of_kind(&target.resource.group, &target.resource.kind);
    let Some(old) = old.filter(|_| target.resource.has_verb(call.info.verb)) else {
        return serve_target(server, call, target).await;
    };
    // Failures come with the warning, too.
    let asked = call.asked.clone();
    let answered = serve_target(server, call, target).await;
    let mut response = answered.unwrap_or_else(|error| answer::failure(&error, &asked));
    answer::warn(&mut response, &[old.to_string()]);
    Ok(response)
}

async fn serve_target(server: &Shared, call: Call, target: Target) -> Result<Response<Body>> {
    if target.resource.prefix.is_none() {
        return reviews::serve(server, &call, &target).await;
    }
    let deprecation = crd::accept::of(&target).and_then(|version| version.deprecation.clone());
    let mut answered = dispatch(server, call, target).await?;
    answer::warn(&mut answered, deprecation.as_slice());
    Ok(answered)
}

async fn dispatch(server: &Shared, call: Call, target: Target) -> Result<Response<Body>> {
    let info = &call.info;
    if !info.subresource.is_empty() {
        let known = target.resource.subresource(&info.subresource, &info.version);
        let known = known.ok_or_else(|| no_subresource(&target))?.clone();
        if info.subresource != "status" {
            return subresources::serve(server, call, target, &known).await;
        }
    } else if !has_verb(&target.resource, info.verb) || is_misdirected(&target, info.verb) {
        return Err(ApiError::method_not_allowed());
    }
    match info.verb {
        "get" => get(server, &call, &target).await,
        "list" => list(server, &call, &target).await,
        "watch" => watch(server, &call, target).await,
        "create" => create(server, &call, &target).await,
        "update" | "patch" => update(server, &call, &target).await,
        "delete" => delete(server, &call, &target).await,
        "deletecollection" => delete_collection(server, &call, &target).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// Whether the types that the client sends and takes fit the route. Routes of custom
/// resources take anything and are picky later.
fn check_route(call: &Call, target: &Target) -> Result<()> {
    if target.resource.custom || STREAMS.contains(&target.subresource.as_str()) {
        return Ok(());
    }
    let patch = call.info.verb == "patch";
    let media = content_type(call).unwrap_or("").split(';').next().unwrap_or("").trim();
    if patch && !PATCH_TYPES.contains(&media) {
        return Err(ApiError::unsupported_route());
    }
    call.asked.check_route(matches!(call.info.verb, "list" | "watch"))
}

/// Bodies of PATCH requests.
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// Custom resources know every verb, also those that discovery no longer shows.
fn has_verb(resource: &Resource, verb: &str) -> bool {
    resource.custom || resource.has_verb(verb)
}

/// A custom resource's subresources are looked for by name, like objects.
fn no_subresource(target: &Target) -> ApiError {
    match target.resource.custom {
        true => ApiError::not_found(&target.resource, &target.name),
        false => ApiError::no_such_resource(),
    }
}

/// Collections are added to, objects are replaced and patched.
fn is_misdirected(target: &Target, verb: &str) -> bool {
    match verb {
        "create" => !target.name.is_empty(),
        "update" | "patch" => target.name.is_empty(),
        _ => false,
    }
}

/// Namespaced objects are written in a namespace, not in all of them.
fn resource_is_unplaced(target: &Target, verb: &str) -> bool {
    target.resource.namespaced
        && target.namespace.is_empty()
        && !matches!(verb, "list" | "watch")
        && (target.resource.prefix.is_some() || !target.name.is_empty())
}

/// The form of an object or list of the target's kind.
///
/// # Errors
/// 406 where the client takes none of its forms.
pub fn form(call: &Call, target: &Target) -> Result<Form> {
    call.asked.form(target.resource.custom)
}

pub fn content_type(call: &Call) -> Option<&str> {
    call.request.headers().get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok())
}

pub fn include(call: &Call) -> Result<Include> {
    Include::parse(call.query.get("includeObject"))
}

fn options_kind(call: &Call) -> &'static str {
    match call.info.verb {
        "create" => "CreateOptions",
        "patch" => "PatchOptions",
        "delete" | "deletecollection" => "DeleteOptions",
        _ => "UpdateOptions",
    }
}

/// A manager's name is short and printable.
fn check_manager(call: &Call, manager: &str) -> Result<()> {
    let refuse = |reason: &str, message: String| {
        let cause = Cause { reason: reason.into(), message, field: "fieldManager".into() };
        Err(ApiError::invalid_options(options_kind(call), &[cause]))
    };
    if manager.len() > MANAGER_CHARS_MAX {
        return refuse(
            "FieldValueTooLong",
            format!("Too long: may not be more than {MANAGER_CHARS_MAX} bytes"),
        );
    }
    let hidden = manager.char_indices().find(|(_, char)| char.is_control());
    match hidden {
        None => Ok(()),
        Some((at, char)) => refuse(
            "FieldValueInvalid",
            format!(
                "Invalid value: {manager:?}: invalid character U+{:04X} (at position {at})",
                u32::from(char)
            ),
        ),
    }
}

/// The only stage of a dry run is all of it.
fn check_dry_run(options: &str, stages: &[&str]) -> Result<()> {
    if stages.iter().all(|stage| *stage == "All") {
        return Ok(());
    }
    let quoted: Vec<String> = stages.iter().map(|stage| format!("{stage:?}")).collect();
    let cause = Cause {
        reason: "FieldValueNotSupported".into(),
        message: format!("Unsupported value: [{}]: supported values: \"All\"", quoted.join(",")),
        field: "dryRun".into(),
    };
    Err(ApiError::invalid_options(options, &[cause]))
}

/// How a write is to be done.
///
/// # Errors
/// 422 for an unknown dryRun.
pub fn write_options(call: &Call) -> Result<WriteOptions> {
    let mut dry_run = false;
    let stages: Vec<&str> = call.query.all("dryRun").filter(|stage| !stage.is_empty()).collect();
    if !stages.is_empty() {
        check_dry_run(options_kind(call), &stages)?;
        dry_run = true;
    }
    if let Some(manager) = call.query.set("fieldManager") {
        check_manager(call, manager)?;
    }
    let agent = call.request.headers().get(http::header::USER_AGENT);
    let agent = agent.and_then(|value| value.to_str().ok()).unwrap_or("");
    let manager = call
        .query
        .set("fieldManager")
        .map(str::to_string)
        .unwrap_or_else(|| agent.split('/').next().unwrap_or("").to_string());
    Ok(WriteOptions {
        notes: call.request.extensions().get().cloned().unwrap_or_default(),
        user: call.user.clone(),
        manager: manager.chars().take(MANAGER_CHARS_MAX).collect(),
        dry_run,
        force: call.query.flag("force"),
        validation: field_validation(call)?,
        strict_errors: patch_text_errors(call),
    })
}

fn field_validation(call: &Call) -> Result<FieldValidation> {
    match call.query.set("fieldValidation") {
        None | Some("Warn") => Ok(FieldValidation::Warn),
        Some("Strict") => Ok(FieldValidation::Strict),
        Some("Ignore") => Ok(FieldValidation::Ignore),
        Some(other) => Err(ApiError::invalid_options(
            options_kind(call),
            &[Cause::not_supported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"])],
        )),
    }
}

pub async fn get(server: &Shared, call: &Call, target: &Target) -> Result<Response<Body>> {
    let form = form(call, target)?;
    let object = server.registry.live(target).await?;
    answer::stored(form, target, &object, include(call)?)
}

fn selector(call: &Call, target: &Target) -> Result<Selector> {
    let (labels, fields) = (call.query.get("labelSelector"), call.query.get("fieldSelector"));
    let selector = if target.resource.custom {
        Selector::custom(target, labels, fields)?
    } else {
        Selector::parse(&target.resource, labels, fields)?
    };
    Ok(if target.name.is_empty() { selector } else { selector.named(&target.name) })
}

/// A number of the query.
///
/// # Errors
/// 400 for anything else than a number.
fn whole_number(call: &Call, name: &str) -> Result<Option<i64>> {
    let Some(text) = call.query.set(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
    })
}

fn list_options(call: &Call, target: &Target) -> Result<ListOptions> {
    let text = |name: &str| call.query.get(name).unwrap_or("").to_string();
    Ok(ListOptions {
        selector: selector(call, target)?,
        limit: usize::try_from(whole_number(call, "limit")?.unwrap_or(0)).unwrap_or(0),
        continue_token: text("continue"),
        resource_version: text("resourceVersion"),
        version_match: text("resourceVersionMatch"),
    })
}

async fn list(server: &Shared, call: &Call, target: &Target) -> Result<Response<Body>> {
    let form = form(call, target)?;
    let options = list_options(call, target)?;
    whole_number(call, "timeoutSeconds")?;
    if call.query.set("sendInitialEvents").is_some() {
        return Err(ApiError::invalid_options(
            "ListOptions",
            &[Cause::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list")],
        ));
    }
    let page = server.registry.list(target, &options).await?;
    answer::list(form, target, page, include(call)?)
}

async fn watch(server: &Shared, call: &Call, target: Target) -> Result<Response<Body>> {
    let form = call.asked.stream_form(target.resource.custom)?;
    let text = |name: &str| call.query.get(name).unwrap_or("").to_string();
    let options = WatchOptions {
        selector: selector(call, &target)?,
        resource_version: text("resourceVersion"),
        version_match: text("resourceVersionMatch"),
        bookmarks: call.query.flag("allowWatchBookmarks"),
        send_initial_events: call
            .query
            .set("sendInitialEvents")
            .map(|_| call.query.flag("sendInitialEvents")),
        timeout_seconds: match whole_number(call, "timeoutSeconds")? {
            Some(seconds) if seconds > 0 => seconds.unsigned_abs(),
            // At random, so that they do not all come back at once.
            _ => {
                let least = server.flags.min_request_timeout.as_secs();
                least + base::rng::below(least)
            }
        },
    };
    let include = include(call)?;
    let watcher = server.registry.watch(&target, options).await;
    match watcher {
        Ok(watcher) if websocket::is_wanted(call.request.headers()) => {
            watching::over_websocket(call, target, form, include, watcher)
        }
        Ok(watcher) => watching::stream(target, form, include, watcher),
        // A watch that cannot begin where it should says so as its only event, the way
        // clients expect it.
        Err(error) if error.code == 410 => Ok(watching::refused(form, &error)),
        Err(error) => Err(error),
    }
}

/// Decodes and checks an object of the target's kind; also returns warnings.
pub fn read_object(call: &Call, target: &Target) -> Result<(Value, Vec<String>)> {
    let kind = &target.resource.kind;
    let decoded = negotiate::decode(content_type(call), call.request.body(), kind)?;
    checked(call, target, decoded)
}

fn checked(call: &Call, target: &Target, decoded: Decoded) -> Result<(Value, Vec<String>)> {
    let resource = &target.resource;
    let Decoded { mut value, duplicates, yaml } = decoded;
    if value.is_null() {
        // A null is an object of which nothing is set.
        value = Value::Object(Map::new());
    }
    let expected = target.api_version();
    let typed = target.typed();
    if resource.custom {
        crd::accept::check_kind(target, &value, call.request.body())?;
        let warnings = accept_custom(call, target, &mut value, (duplicates, yaml))?;
        place_in_namespace(target, &mut value)?;
        return Ok((value, warnings));
    }
    check_kind(&mut value, &expected, resource)?;
    let refuse = |why: &str| {
        ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {why}",
            resource.kind, target.version, resource.kind
        ))
    };
    shape::check_types(&value, typed, &resource.kind)
        .map_err(|mismatch| refuse(&mismatch.to_string()))?;
    let mut warnings = Vec::new();
    let mode = field_validation(call)?;
    let mut unknown = Vec::new();
    if mode != FieldValidation::Ignore {
        unknown = shape::unknown_field_errors(&value, typed);
    }
    warnings.extend(judge_unknown(mode, (duplicates, yaml), unknown).map_err(|why| refuse(&why))?);
    shape::normalise(&mut value, typed);
    place_in_namespace(target, &mut value)?;
    Ok((value, warnings))
}

/// Keys that stand twice and fields that the kind does not have: warnings, or a refusal
/// where the client is strict.
fn judge_unknown(
    mode: FieldValidation,
    (doubled, yaml): (Vec<String>, bool),
    unknown: Vec<String>,
) -> std::result::Result<Vec<String>, String> {
    match mode {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok([doubled, unknown].concat()),
        FieldValidation::Strict if unknown.is_empty() && doubled.is_empty() => Ok(unknown),
        FieldValidation::Strict => {
            let doubled = match doubled.as_slice() {
                [] => Vec::new(),
                // Its decoder has one error for all of them.
                lines if yaml => {
                    vec![format!("yaml: unmarshal errors:\n  {}", lines.join("\n  "))]
                }
                lines => lines.to_vec(),
            };
            let all = [doubled, unknown].concat().join(", ");
            Err(format!("strict decoding error: {all}"))
        }
    }
}

fn accept_custom(
    call: &Call,
    target: &Target,
    value: &mut Value,
    doubled: (Vec<String>, bool),
) -> Result<Vec<String>> {
    let mode = field_validation(call)?;
    let unknown = crd::accept::body(target, value)?;
    judge_unknown(mode, doubled, unknown).map_err(|why| {
        let kind = &target.resource.kind;
        ApiError::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {kind}: {why}",
            target.version
        ))
    })
}

/// The namespace is that of the path.
fn place_in_namespace(target: &Target, value: &mut Value) -> Result<()> {
    if target.resource.namespaced {
        let namespace = metadata_str(value, "namespace").to_string();
        if namespace.is_empty() {
            metadata_mut(value).insert("namespace".into(), target.namespace.as_str().into());
        } else if namespace != target.namespace {
            return Err(other_namespace());
        }
    } else if !metadata_str(value, "namespace").is_empty() {
        metadata_mut(value).shift_remove("namespace");
    }
    Ok(())
}

fn other_namespace() -> ApiError {
    ApiError::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    )
}

fn check_kind(value: &mut Value, expected: &str, resource: &Arc<Resource>) -> Result<()> {
    let kind = value["kind"].as_str().unwrap_or("").to_string();
    let version = value["apiVersion"].as_str().unwrap_or("").to_string();
    if kind.is_empty() {
        value["kind"] = resource.kind.as_str().into();
    }
    if version.is_empty() {
        value["apiVersion"] = expected.into();
    }
    let kind = if kind.is_empty() { resource.kind.clone() } else { kind };
    let version = if version.is_empty() { expected.to_string() } else { version };
    if kind == resource.kind && version == expected {
        return Ok(());
    }
    let (group, short) = version.rsplit_once('/').unwrap_or(("", &version));
    let refuse = |why: String| {
        Err(ApiError::bad_request(format!(
            "{kind} in version {short:?} cannot be handled as a {}: {why}",
            resource.kind
        )))
    };
    let known = Schema::built_in().kind(group, short, &kind).is_some();
    if !known && !resource.custom {
        return refuse(format!(
            "no kind {kind:?} is registered for version {version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""
        ));
    }
    if kind != resource.kind && !resource.custom {
        return refuse(format!(
            "converting ({short}.{kind}) to ({}.{}): unknown conversion",
            resource.internal_package(),
            resource.kind
        ));
    }
    if kind != resource.kind {
        return Err(ApiError::bad_request(format!(
            "the kind in the data ({kind}) does not match the expected kind ({})",
            resource.kind
        )));
    }
    Err(ApiError::bad_request(format!(
        "the API version in the data ({version}) does not match the expected API version ({expected})"
    )))
}

async fn create(server: &Shared, call: &Call, target: &Target) -> Result<Response<Body>> {
    let form = form(call, target)?;
    let options = write_options(call)?;
    let (object, mut warnings) = read_object(call, target)?;
    let created = server.registry.create(target, object, &options).await?;
    let (group, kind) = (&target.resource.group, &target.resource.kind);
    warnings.extend(kinds::warnings::of(group, kind, &created.object, None));
    warnings.extend(crd::accept::create_warnings(target, &created.object));
    let mut response = answer::written(form, target, &created, include(call)?)?;
    answer::warn(&mut response, &warnings);
    Ok(response)
}

/// Reads a PUT's or PATCH's body as a change.
pub fn read_change(call: &Call, target: &Target) -> Result<(Change, Vec<String>)> {
    if call.info.verb == "update" {
        let (object, warnings) = read_object(call, target)?;
        return Ok((Change::Put(object), warnings));
    }
    let media = content_type(call).unwrap_or("").split(';').next().unwrap_or("").trim();
    let body = call.request.body();
    let change = match media {
        "application/json-patch+json" => Change::Json(patch_body(body)?),
        "application/merge-patch+json" => Change::Merge(patch_body(body)?),
        "application/strategic-merge-patch+json" if !target.resource.custom => {
            Change::Strategic(patch_body(body)?)
        }
        "application/apply-patch+yaml" => {
            if call.query.set("fieldManager").is_none() {
                return Err(ApiError::invalid_options(
                    "PatchOptions",
                    &[Cause {
                        reason: "FieldValueRequired".into(),
                        message: "Required value: is required for apply patch".into(),
                        field: "fieldManager".into(),
                    }],
                ));
            }
            Change::Apply(yaml::read::value(body).map_err(|why| {
                ApiError::bad_request(format!(
                    "error decoding YAML: error converting YAML to JSON: {why}"
                ))
            })?)
        }
        _ => {
            let accepted = if target.resource.custom {
                "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
            } else {
                "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml"
            };
            return Err(ApiError::unsupported_media_type(accepted));
        }
    };
    if let Change::Apply(config) = &change {
        let mut config = config.clone();
        let word = |field: &str| config[field].as_str().unwrap_or("");
        let (version, kind) = (word("apiVersion"), word("kind"));
        if version != target.api_version() || kind != target.resource.kind {
            let slash = if version.contains('/') { "" } else { "/" };
            return Err(ApiError::bad_request(format!(
                "invalid object type: {slash}{version}, Kind={kind}"
            )));
        }
        let typed = target.typed();
        let mut warnings = Vec::new();
        let unknown = shape::unknown_field_errors(&config, typed);
        // Applying a field the schema does not know fails in the merge, unless the client
        // asked to ignore it.
        if field_validation(call)? == FieldValidation::Ignore {
            shape::prune(&mut config, typed);
        } else {
            warnings = unknown;
        }
        if metadata_str(&config, "name").is_empty() {
            metadata_mut(&mut config).insert("name".into(), target.name.as_str().into());
        }
        let namespace = metadata_str(&config, "namespace");
        if target.resource.namespaced && !namespace.is_empty() && namespace != target.namespace {
            return Err(other_namespace());
        }
        return Ok((Change::Apply(config), warnings));
    }
    if call.query.flag("force") {
        return Err(ApiError::invalid_options(
            "PatchOptions",
            &[Cause::forbidden("force", "may not be specified for non-apply patch")],
        ));
    }
    Ok((change, Vec::new()))
}

/// What is wrong with the text of a patch, for who wants to know.
fn patch_text_errors(call: &Call) -> Vec<String> {
    if call.info.verb != "patch" {
        return Vec::new();
    }
    let body = call.request.body();
    let doubled = || duplicates::duplicate_field_errors(body);
    match content_type(call).unwrap_or("").split(';').next().unwrap_or("").trim() {
        "application/merge-patch+json" | "application/strategic-merge-patch+json" => doubled(),
        "application/json-patch+json" => {
            let patch: Value = serde_json::from_slice(body).unwrap_or_default();
            let unknown = unknown_patch_fields(&patch);
            let doubled = doubled().into_iter().map(|error| format!("json patch {error}"));
            doubled.chain(unknown).collect()
        }
        "application/apply-patch+yaml" => {
            // Most of them are JSON, and all right.
            let json = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
            if json && doubled().is_empty() { Vec::new() } else { yaml::read::duplicate_keys(body) }
        }
        _ => Vec::new(),
    }
}

fn patch_body(body: &[u8]) -> Result<Value> {
    negotiate::parse(body)
        .map_err(|why| ApiError::bad_request(format!("error decoding patch: {why}")))
}

pub async fn update(server: &Shared, call: &Call, target: &Target) -> Result<Response<Body>> {
    let form = form(call, target)?;
    let options = write_options(call)?;
    let (change, mut warnings) = read_change(call, target)?;
    let mut written = server.registry.update(target, change, &options).await?;
    warnings.append(&mut written.warnings);
    let mut response = answer::written(form, target, &written, include(call)?)?;
    answer::warn(&mut response, &warnings);
    Ok(response)
}

/// A body that is not an object of the resource's own kind.
///
/// # Errors
/// 400 for a body that is not an object, 415 for one that cannot be read.
pub fn body_of(call: &Call, kind: &str) -> Result<Value> {
    Ok(negotiate::decode(content_type(call), call.request.body(), kind)?.value)
}

/// Options of a deletion, from the body, or from the query where there is none.
pub fn delete_options(call: &Call) -> Result<DeleteOptions> {
    let mut options = if call.request.body().is_empty() {
        DeleteOptions::default()
    } else {
        let body = body_of(call, "DeleteOptions")?;
        let options = DeleteOptions::from_body(&body)?;
        let stages = body["dryRun"].as_array().into_iter().flatten();
        let stages: Vec<&str> = stages.map(|stage| stage.as_str().unwrap_or("")).collect();
        check_dry_run("DeleteOptions", &stages)?;
        options
    };
    if options.grace_period_seconds.is_none() {
        options.grace_period_seconds = whole_number(call, "gracePeriodSeconds")?;
    }
    if options.propagation.is_none() {
        options.propagation = call.query.set("propagationPolicy").map(str::to_string);
    }
    options.checked()
}

/// What few expect is said.
fn warn_of_orphans(target: &Target, delete: &DeleteOptions, options: &WriteOptions) {
    if delete.propagation.is_none() && target.resource.kind == "Job" && target.orphans_by_default()
    {
        options.notes.warn(
            "child pods are preserved by default when jobs are deleted; set \
             propagationPolicy=Background to remove them or set propagationPolicy=Orphan to \
             suppress this warning"
                .into(),
        );
    }
}

async fn delete(server: &Shared, call: &Call, target: &Target) -> Result<Response<Body>> {
    let form = form(call, target)?;
    let options = write_options(call)?;
    let delete = delete_options(call)?;
    warn_of_orphans(target, &delete, &options);
    let deleted = server.registry.delete(target, &delete, &options).await?;
    if answers_with_object(target, deleted.gone) {
        answer::object(StatusCode::OK, form, target, &deleted.object, include(call)?)
    } else {
        answer::plain(StatusCode::OK, form, &deleted_status(target, &deleted.object))
    }
}

async fn delete_collection(
    server: &Shared,
    call: &Call,
    target: &Target,
) -> Result<Response<Body>> {
    let form = form(call, target)?;
    let options = write_options(call)?;
    let list = list_options(call, target)?;
    let delete = delete_options(call)?;
    warn_of_orphans(target, &delete, &options);
    let page = server.registry.delete_collection(target, &list, &delete, &options).await?;
    answer::list(form, target, page, include(call)?)
}
