//! Subresources that are more than a part of their object: scale, binding, eviction,
//! token, and the streams that go on to a kubelet.

use std::sync::Arc;

use client::Body;
use http::{Response, StatusCode};
use kinds::meta::selector::LabelSelector;
use kinds::resources::{GroupVersion, Resource, Subresource};
use serde_json::{Value, json};

use super::answer::Include;
use super::chain::Call;
use super::resources::{self, form, read_change, write_options};
use super::{Shared, answer, eviction, proxy, reviews};
use crate::admission::Notes;
use crate::authn::tokens::TokenRequest;
use crate::cache::prefix::NODES;
use crate::change::apply::{Writer, apply, update_managed_fields};
use crate::change::scale::{show_owners, take_owners};
use crate::crd;
use crate::error::{ApiError, Cause, Result};
use crate::registry::patch;
use crate::registry::update::{Change, apply_error};
use crate::registry::{Target, WriteOptions, metadata_str};
use crate::scheme::Schema;

pub async fn serve(
    server: &Shared,
    call: Call,
    target: Target,
    known: &Subresource,
) -> Result<Response<Body>> {
    let streams = ["exec", "attach", "portforward", "log", "proxy"];
    if streams.contains(&target.subresource.as_str()) {
        return proxy::serve(server, call, target).await;
    }
    if !known.verbs.iter().any(|verb| verb == call.info.verb) {
        return Err(ApiError::method_not_allowed());
    }
    match (target.subresource.as_str(), call.info.verb) {
        ("scale", "get") => {
            let parent = server.registry.get(&target).await?;
            let form = form(&call, &target)?;
            let include = resources::include(&call)?;
            let scale = match custom_scale(&target) {
                Some(paths) => crd::scale::read(&parent, paths)?,
                None => scale_of(&parent, &target)?,
            };
            answer::object(StatusCode::OK, form, &scale_target(&target), &scale, include)
        }
        ("scale", _) => scale(server, &call, &target).await,
        ("binding", "create") => {
            let body = resources::body_of(&call, "Binding")?;
            if metadata_str(&body, "name") != target.name {
                let why = "name in URL does not match name in Binding object";
                return Err(ApiError::bad_request(why));
            }
            let pod = Target { subresource: String::new(), ..target.clone() };
            bind(server, &call, &target, &pod, body).await
        }
        ("eviction", "create") => eviction::evict(server, &call, &target).await,
        ("token", "create") => token(server, &call, &target).await,
        (_, "get") => resources::get(server, &call, &target).await,
        (_, "update" | "patch") => resources::update(server, &call, &target).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// Where a custom object's scale lies; None for built-in ones.
fn custom_scale(target: &Target) -> Option<&crd::version::Scale> {
    crd::accept::of(target)?.scale.as_ref()
}

/// `autoscaling/v1 Scale` of an object.
fn scale_of(parent: &Value, target: &Target) -> Result<Value> {
    if let Some(paths) = custom_scale(target) {
        return Ok(crd::scale::of(parent, paths)?.0);
    }
    let metadata = &parent["metadata"];
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"],
            "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {}, "status": {"replicas": parent["status"]["replicas"].as_i64().unwrap_or(0)},
    });
    if let Some(replicas) = parent["spec"]["replicas"].as_i64().filter(|n| *n != 0) {
        scale["spec"]["replicas"] = replicas.into();
    }
    let selector = &parent["spec"]["selector"];
    let text = if target.resource.kind == "ReplicationController" {
        selector.as_object().map(LabelSelector::from_map).unwrap_or_default().to_string()
    } else {
        LabelSelector::from_value(selector).to_string()
    };
    if !text.is_empty() {
        scale["status"]["selector"] = text.into();
    }
    Ok(scale)
}

/// A scale that is put must be one, and of this object.
fn check_scale(scale: &Value, target: &Target) -> Result<()> {
    let kind = scale["kind"].as_str().unwrap_or("");
    let group_version = scale["apiVersion"].as_str().unwrap_or("");
    let version = group_version.rsplit('/').next().unwrap_or("");
    let is_scale = matches!(kind, "" | "Scale") && matches!(group_version, "" | "autoscaling/v1");
    if !is_scale {
        return Err(ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a Scale: converting ({version}.{kind}) to (autoscaling.Scale): unknown conversion",
        )));
    }
    match metadata_str(scale, "name") {
        "" => Err(ApiError::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            target.name
        ))),
        name if name != target.name => Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        ))),
        _ => Ok(()),
    }
}

/// The scale as a target of its own, which patches and answers are of.
fn scale_target(target: &Target) -> Target {
    let resource = Resource {
        group: "autoscaling".into(),
        kind: "Scale".into(),
        versions: vec!["v1".into()],
        storage: GroupVersion { group: "autoscaling".into(), version: "v1".into() },
        custom: false,
        ..(*target.resource).clone()
    };
    Target { resource: Arc::new(resource), version: "v1".into(), ..target.clone() }
}

fn negative(target: &Target, replicas: i64) -> ApiError {
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
        field: "spec.replicas".into(),
    };
    let text = format!(
        "Scale.autoscaling {:?} is invalid: {}: {}",
        target.name, cause.field, cause.message
    );
    ApiError::new(422, "Invalid", text)
        .about("autoscaling", "Scale", &target.name)
        .with_causes(&[cause])
}

async fn scale(server: &Shared, call: &Call, target: &Target) -> Result<Response<Body>> {
    let options = write_options(call)?;
    let form = form(call, target)?;
    let as_scale = scale_target(target);
    let change = match call.info.verb {
        "update" => {
            let scale = resources::body_of(call, "Scale")?;
            check_scale(&scale, target)?;
            Change::Put(scale)
        }
        _ => read_change(call, &as_scale)?.0,
    };
    let (of, with) = (target.clone(), options.clone());
    let edit = Change::Edit(Box::new(move |live| rescaled(live, &of, &as_scale, &change, &with)));
    let written = server.registry.update(target, edit, &options).await?;
    let scale = scale_of(&written.object, target)?;
    answer::object(StatusCode::OK, form, &scale_target(target), &scale, Include::Metadata)
}

/// The live object with the number of replicas that a change of its scale asks for.
fn rescaled(
    live: &Value,
    target: &Target,
    as_scale: &Target,
    change: &Change,
    options: &WriteOptions,
) -> Result<Value> {
    let paths = custom_scale(target);
    let mut before = scale_of(live, target)?;
    show_owners(live, &mut before);
    let now = base::time::rfc3339(base::time::now());
    let writer = Writer {
        manager: &options.manager,
        api_version: "autoscaling/v1",
        subresource: "scale",
        now: &now,
        reset: &[&["status"]],
    };
    let typed = as_scale.typed();
    let after = match change {
        Change::Put(scale) => scale.clone(),
        Change::Apply(config) => {
            apply(Some(&before), config, typed, &writer, options.force).map_err(apply_error)?
        }
        _ => patch::patched(as_scale, &before, change, options)?.0,
    };
    let version = metadata_str(&after, "resourceVersion");
    if !matches!(version, "" | "0") && version != metadata_str(live, "resourceVersion") {
        return Err(ApiError::modified(&target.resource, &target.name));
    }
    if let Some(paths) = paths.filter(|_| !matches!(change, Change::Put(_))) {
        let unset = !crd::scale::of(live, paths)?.1 && after["spec"]["replicas"].is_null();
        if unset {
            return Err(ApiError::bad_request(format!(
                "the spec replicas field {:?} cannot be empty",
                paths.spec_replicas
            )));
        }
    }
    let replicas = after["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        return Err(negative(target, replicas));
    }
    let same = before["spec"]["replicas"].as_i64().unwrap_or(0) == replicas;
    let mut new = match paths {
        Some(paths) => crd::scale::with_replicas(live, paths, replicas),
        None => live.clone(),
    };
    if paths.is_none() {
        new["spec"]["replicas"] = replicas.into();
    }
    let owned = before["metadata"].get("managedFields").is_some();
    match change {
        Change::Apply(_) => take_owners(&after, &mut new, &target.api_version()),
        // Where nobody is known to own the replicas, nobody comes to.
        _ if same || !owned => {}
        _ => {
            let mut wanted = before.clone();
            wanted["spec"]["replicas"] = replicas.into();
            update_managed_fields(Some(&before), &mut wanted, typed, &writer);
            take_owners(&wanted, &mut new, &target.api_version());
        }
    }
    Ok(new)
}

/// Binds a pod to a node. `asked` is the pod's subresource, or the resource `bindings`.
pub async fn bind(
    server: &Shared,
    call: &Call,
    asked: &Target,
    pod: &Target,
    binding: Value,
) -> Result<Response<Body>> {
    let options = write_options(call)?;
    server.registry.bind(asked, pod, binding, &options).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer::json(StatusCode::CREATED, &status))
}

/// Makes a token for a service account.
async fn token(server: &Shared, call: &Call, target: &Target) -> Result<Response<Body>> {
    let mut body = resources::body_of(call, "TokenRequest")?;
    let account_target = Target { subresource: String::new(), ..target.clone() };
    let account = server.registry.get(&account_target).await?;
    let attributes = crate::admission::Attributes {
        operation: crate::admission::Operation::Create,
        resource: &target.resource,
        version: &target.version,
        namespace: &target.namespace,
        name: &target.name,
        subresource: "token",
        user: &call.user,
        dry_run: false,
        old: None,
        notes: &call.request.extensions().get::<Arc<Notes>>().cloned().unwrap_or_default(),
    };
    let admission = &server.registry.admission;
    admission.mutate(&server.registry, &attributes, &mut body)?;
    admission.mutate_by_webhooks(&server.registry, &attributes, &mut body).await?;
    admission.validate(&server.registry, &attributes, &body)?;
    admission.validate_by_webhooks(&server.registry, &attributes, &body).await?;
    let reference = body["spec"]["boundObjectRef"].clone();
    let mut bound = None;
    let mut node = None;
    if let (Some(kind), Some(name)) = (reference["kind"].as_str(), reference["name"].as_str()) {
        let version = reference["apiVersion"].as_str().unwrap_or("");
        let object = bound_object(server, target, (version, kind), name).await?;
        let uid = metadata_str(&object, "uid").to_string();
        let asked = reference["uid"].as_str().unwrap_or("");
        if !asked.is_empty() && asked != uid {
            return Err(ApiError::new(
                409,
                "Conflict",
                format!(
                    "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been deleted and then recreated"
                ),
            ));
        }
        if kind == "Pod" {
            if object["spec"]["serviceAccountName"] != target.name.as_str() {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    target.name
                )));
            }
            if let Some(name) = object["spec"]["nodeName"].as_str() {
                let found = server.registry.cache.get(NODES, &format!("/registry/minions/{name}"));
                let uid = found.map(|node| metadata_str(&node.value(), "uid").to_string());
                node = uid.map(|uid| (name.to_string(), uid));
            }
        }
        bound = Some((kind.to_string(), name.to_string(), uid));
    }
    let request = TokenRequest {
        namespace: &target.namespace,
        account: &target.name,
        account_uid: metadata_str(&account, "uid"),
        spec: &body["spec"],
        bound: bound.as_ref().map(|(k, n, u)| (k.as_str(), n.as_str(), u.as_str())),
        node: node.as_ref().map(|(n, u)| (n.as_str(), u.as_str())),
    };
    let issued = server.authenticator.tokens.issue(&request)?;
    // What the writer is recorded for is what it asked for, with the defaults.
    let mut asked = body.clone();
    if asked["spec"]["expirationSeconds"].is_null() {
        asked["spec"]["expirationSeconds"] = issued.lifetime_seconds.into();
    }
    body["kind"] = "TokenRequest".into();
    body["apiVersion"] = "authentication.k8s.io/v1".into();
    let kind = Schema::built_in().kind("authentication.k8s.io", "v1", "TokenRequest");
    let typed = kind.unwrap_or_else(Schema::untyped);
    let written = reviews::written(call, ("authentication.k8s.io/v1", typed), "token", asked)?;
    body["metadata"] = json!({
        "name": target.name, "namespace": target.namespace, "uid": metadata_str(&account, "uid"),
        "creationTimestamp": base::time::rfc3339(base::time::now()),
        "managedFields": written["metadata"]["managedFields"],
    });
    body["spec"]["audiences"] = issued.audiences;
    let lifetime = issued.lifetime_seconds;
    if let Some(asked) =
        body["spec"]["expirationSeconds"].as_i64().filter(|asked| *asked > lifetime)
    {
        attributes.notes.warn(format!(
            "requested expiration of {asked} seconds shortened to {lifetime} seconds"
        ));
    }
    body["spec"]["expirationSeconds"] = lifetime.into();
    if body["spec"].get("boundObjectRef").is_none() {
        body["spec"]["boundObjectRef"] = Value::Null;
    }
    let expires = base::time::rfc3339(issued.expires);
    body["status"] = json!({"token": issued.token, "expirationTimestamp": expires});
    answer::plain(StatusCode::CREATED, call.asked.answer_form()?, &body)
}

async fn bound_object(
    server: &Shared,
    target: &Target,
    (api_version, kind): (&str, &str),
    name: &str,
) -> Result<Value> {
    let plural = match kind {
        "Pod" => "pods",
        "Secret" => "secrets",
        "Node" => "nodes",
        other => {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={other}"
            )));
        }
    };
    let resource = server.registry.resource("", plural).ok_or_else(ApiError::no_such_resource)?;
    let object = Target {
        namespace: if resource.namespaced { target.namespace.clone() } else { String::new() },
        resource,
        version: "v1".into(),
        name: name.into(),
        subresource: String::new(),
    };
    server.registry.get(&object).await
}
