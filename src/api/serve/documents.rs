//! What the server says of itself: discovery, OpenAPI, the issuer of its tokens.

use client::Body;
use http::{Response, StatusCode};
use kinds::resources::Catalog;
use serde_json::{Value, json};

use super::chain::Call;
use super::negotiate::{self, Encoding, Form};
use super::{Shared, answer};
use crate::aggregate::{Registered, discovery as merged, openapi as parts_of_others, openapi_v3};
use crate::error::{ApiError, Result};
use crate::scheme::{discovery, openapi, openapi_proto};

pub fn serve(server: &Shared, call: &Call) -> Result<Response<Body>> {
    if call.info.path.starts_with("/api") {
        if !matches!(*call.request.method(), http::Method::GET | http::Method::HEAD) {
            return Err(ApiError::method_not_allowed());
        }
        call.asked.check_route(false)?;
    }
    let catalog = server.registry.catalog();
    let path = call.info.path.trim_matches('/').to_string();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let version = &server.version.git;
    let found: Option<Value> = match parts.as_slice() {
        [] => Some(json!({"paths": paths(server)})),
        ["api"] | ["apis"] => {
            let core = parts == ["api"];
            let groups = || merged::groups(&catalog, &server.aggregator.table());
            if let Some((kind, binary)) = aggregated_type(call) {
                let document = match core {
                    true => discovery::aggregated_core(&catalog),
                    false => merged::aggregated(&catalog, &groups()),
                };
                return aggregated(call, &document, kind, binary);
            }
            Some(match core {
                true => discovery::api_versions(&server.advertise),
                false => merged::group_list(&groups()),
            })
        }
        ["api", version] => Some(
            discovery::api_resource_list(&catalog, "", version)
                .ok_or_else(ApiError::no_such_resource)?,
        ),
        ["apis", group] => {
            merged::group(&merged::groups(&catalog, &server.aggregator.table()), group)
        }
        ["apis", group, version] => {
            let list = discovery::api_resource_list(&catalog, group, version);
            if list.is_none() && catalog.group(group).is_some() {
                return Err(ApiError::no_such_resource());
            }
            list
        }
        ["openapi", "v2"] => {
            let mut out = own_document(server, &catalog);
            for (_, remote) in server.aggregator.table().remotes() {
                let packed = remote.learnt().openapi_v2.clone();
                if let Some(part) = packed.and_then(|packed| parts_of_others::unpack(&packed)) {
                    parts_of_others::merge(&mut out, part);
                }
            }
            let accept = call.request.headers().get(http::header::ACCEPT);
            let offers = accept.and_then(|offers| offers.to_str().ok()).unwrap_or_default();
            if offers.contains(openapi_proto::MEDIA_TYPE) {
                return Ok(tagged(call, openapi_proto::encode(&out), openapi_proto::ANSWER_TYPE));
            }
            return Ok(tagged(call, out.to_string().into_bytes(), "application/json"));
        }
        ["openapi", "v3"] => {
            let mut index = openapi::v3_index(&catalog, version);
            for (_, resident) in server.aggregator.table().residents() {
                let path = format!("apis/{}/{}", resident.group, resident.version);
                let hash = resident.document_hash();
                let url = format!("/openapi/v3/{path}?hash={hash}");
                index.insert(path, json!({"serverRelativeURL": url}));
            }
            for (_, remote) in server.aggregator.table().remotes() {
                let path = remote.path().trim_start_matches('/').to_string();
                let learnt = remote.learnt();
                let converted = || {
                    let hash = parts_of_others::hash(learnt.only_v2()?);
                    Some(format!("/openapi/v3/{path}?hash={hash}"))
                };
                match learnt.openapi_v3.clone().or_else(converted) {
                    Some(url) => drop(index.insert(path, json!({"serverRelativeURL": url}))),
                    // What is served by another is not what our own document says.
                    None => drop(index.remove(&path)),
                }
            }
            let index = json!({"paths": index}).to_string().into_bytes();
            return Ok(tagged(call, index, "text/plain; charset=utf-8"));
        }
        ["openapi", "v3", "api", served] => {
            return Ok(group_document(call, &catalog, "", served, version));
        }
        ["openapi", "v3", "apis", group, served] => {
            if let Some(other) = server.aggregator.route(&format!("/apis/{group}/{served}")) {
                return Ok(converted_document(call, &other));
            }
            let path = format!("/apis/{group}/{served}");
            if let Some(resident) = server.aggregator.resident(&path) {
                let part = parts_of_others::part(&own_document(server, &catalog), &path);
                let body = openapi_v3::convert(&part).to_string().into_bytes();
                return Ok(v3_document(call, body, &resident.document_hash()));
            }
            return Ok(group_document(call, &catalog, group, served, version));
        }
        ["openapi", "v3", rest @ ..] => {
            let path = rest.join("/");
            return Ok(match openapi::v3_plain(&catalog, &path, version) {
                Some(body) => v3_document(call, body, &openapi::plain_hash(&path, version)),
                None => nothing(),
            });
        }
        [".well-known", "openid-configuration"] => Some(json!({
            "issuer": server.authenticator.tokens.issuer(),
            "jwks_uri": format!("https://{}/openid/v1/jwks", server.advertise),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": server.authenticator.tokens.algorithms(),
        })),
        ["openid", "v1", "jwks"] => {
            call.asked.check_types(&["application/jwk-set+json"])?;
            let body = server.authenticator.tokens.jwks().to_string();
            return Ok(answer::bytes(StatusCode::OK, "application/jwk-set+json", body));
        }
        _ => None,
    };
    Ok(match found {
        Some(value) => answer::plain(StatusCode::OK, call.asked.plain_form(), &value)?,
        None => not_found(),
    })
}

pub fn not_found() -> Response<Body> {
    answer::bytes(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n")
}

/// 404 without a word, as upstream's OpenAPI handler says it.
fn nothing() -> Response<Body> {
    let mut response = answer::bytes(StatusCode::NOT_FOUND, "", Vec::new());
    response.headers_mut().remove(http::header::CONTENT_TYPE);
    response
}

fn paths(server: &Shared) -> Vec<String> {
    let catalog = server.registry.catalog();
    let mut paths = vec![
        "/.well-known/openid-configuration".to_string(),
        "/api".into(),
        "/api/v1".into(),
        "/apis".into(),
    ];
    for group in merged::groups(&catalog, &server.aggregator.table()) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{}", group.name, v.name)));
    }
    let fixed = [
        "/healthz",
        "/livez",
        "/metrics",
        "/metrics/slis",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    paths.extend(fixed.map(str::to_string));
    paths.extend(super::health::paths());
    paths.sort();
    paths.dedup();
    paths
}

/// The version of aggregated discovery, if the client asks for it first, and whether it
/// wants it in protobuf.
fn aggregated_type(call: &Call) -> Option<(&'static str, bool)> {
    let accept = call.request.headers().get(http::header::ACCEPT)?.to_str().ok()?;
    accept.split(',').map(str::trim).find_map(|offer| {
        let binary = offer.starts_with("application/vnd.kubernetes.protobuf;");
        let known = binary || offer.starts_with("application/json;");
        if !offer.contains("as=APIGroupDiscoveryList") || !known {
            return None;
        }
        if offer.contains("v=v2beta1") {
            Some(("v2beta1", binary))
        } else if offer.contains("v=v2") {
            Some(("v2", binary))
        } else {
            None
        }
    })
}

fn aggregated(
    call: &Call,
    document: &Value,
    version: &str,
    binary: bool,
) -> Result<Response<Body>> {
    let mut document = document.clone();
    document["apiVersion"] = format!("apidiscovery.k8s.io/{version}").into();
    let encoding = if binary { Encoding::Protobuf } else { Encoding::Json };
    let (media, body) = negotiate::encode(Form { encoding, ..Form::JSON }, &document)?;
    let kind = format!("{media};g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    let mut response = tagged(call, body, &kind);
    let headers = response.headers_mut();
    headers.insert(http::header::VARY, http::HeaderValue::from_static("Accept"));
    headers.insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("public"));
    Ok(response)
}

/// What this process serves, in OpenAPI v2.
fn own_document(server: &Shared, catalog: &Catalog) -> Value {
    let mut out = openapi::v2(catalog, &server.version.git);
    for (_, resident) in server.aggregator.table().residents() {
        parts_of_others::merge(&mut out, resident.document.clone());
    }
    out
}

fn group_document(
    call: &Call,
    catalog: &Catalog,
    group: &str,
    served: &str,
    version: &str,
) -> Response<Body> {
    match openapi::v3(catalog, group, served, version) {
        Some(body) => {
            let hash = openapi::document_hash(catalog, group, served, version);
            v3_document(call, body, &hash)
        }
        None => nothing(),
    }
}

/// The v3 document of a server that only said one of v2.
fn converted_document(call: &Call, other: &Registered) -> Response<Body> {
    let learnt = other.remote.as_ref().map(|remote| remote.learnt()).unwrap_or_default();
    let packed = learnt.only_v2();
    match packed.and_then(|packed| Some((packed, parts_of_others::unpack(packed)?))) {
        Some((packed, part)) => {
            let body = openapi_v3::convert(&part).to_string().into_bytes();
            v3_document(call, body, &parts_of_others::hash(packed))
        }
        None => nothing(),
    }
}

/// A document of v3, in protobuf for who wants it; one that was asked for by its hash never
/// changes. Who asks by another hash is sent to the right one, as upstream does.
fn v3_document(call: &Call, body: Vec<u8>, hash: &str) -> Response<Body> {
    let asked = call.query.set("hash");
    if asked.is_some_and(|asked| asked != hash) {
        let mut moved = answer::bytes(StatusCode::MOVED_PERMANENTLY, "", Vec::new());
        moved.headers_mut().remove(http::header::CONTENT_TYPE);
        let place = format!("{}?hash={hash}", call.info.path);
        if let Ok(place) = http::HeaderValue::from_str(&place) {
            moved.headers_mut().insert(http::header::LOCATION, place);
        }
        return moved;
    }
    let offers = call.request.headers().get(http::header::ACCEPT);
    let offers = offers.and_then(|offers| offers.to_str().ok()).unwrap_or_default();
    let binary = offers.contains(openapi_proto::V3_MEDIA_TYPE);
    let mut response = match serde_json::from_slice(&body) {
        Ok(value) if binary => {
            tagged(call, openapi_proto::encode_v3(&value), openapi_proto::V3_ANSWER_TYPE)
        }
        _ => tagged(call, body, "application/json"),
    };
    let headers = response.headers_mut();
    headers.insert(http::header::VARY, http::HeaderValue::from_static("Accept"));
    if asked.is_some() {
        headers.insert(
            http::header::CACHE_CONTROL,
            http::HeaderValue::from_static("public, immutable, max-age=31536000"),
        );
    }
    response
}

/// An answer with an ETag, or 304 for a client that has it.
fn tagged(call: &Call, body: Vec<u8>, kind: &str) -> Response<Body> {
    let digest = ring::digest::digest(&ring::digest::SHA512, &body);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    let tag = format!("\"{hex}\"");
    let known = call.request.headers().get(http::header::IF_NONE_MATCH);
    let mut response = if known.is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        answer::bytes(StatusCode::NOT_MODIFIED, kind, Vec::new())
    } else {
        answer::bytes(StatusCode::OK, kind, body)
    };
    if let Ok(value) = http::HeaderValue::from_str(&tag) {
        response.headers_mut().insert(http::header::ETAG, value);
    }
    response
}
