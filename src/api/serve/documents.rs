//! What the server says of itself: discovery, OpenAPI, the issuer of its tokens.

use client::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::chain::Call;
use super::{Shared, answer};
use crate::error::Result;
use crate::scheme::{discovery, openapi, openapi_proto};

pub fn serve(server: &Shared, call: &Call) -> Result<Response<Body>> {
    let catalog = server.registry.catalog();
    let path = call.info.path.trim_matches('/').to_string();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let version = &server.version.git;
    let found: Option<Value> = match parts.as_slice() {
        [] => Some(json!({"paths": paths(server)})),
        ["api"] | ["apis"] => {
            let core = parts == ["api"];
            if let Some(kind) = aggregated_type(call) {
                return Ok(aggregated(call, &discovery::aggregated(&catalog, core), kind));
            }
            Some(if core {
                discovery::api_versions(&server.advertise)
            } else {
                discovery::api_group_list(&catalog)
            })
        }
        ["api", version] => discovery::api_resource_list(&catalog, "", version),
        ["apis", group] => discovery::api_group(&catalog, group),
        ["apis", group, version] => discovery::api_resource_list(&catalog, group, version),
        ["openapi", "v2"] => {
            let out = openapi::v2(&catalog, version);
            let accept = call.request.headers().get(http::header::ACCEPT);
            let offers = accept.and_then(|offers| offers.to_str().ok()).unwrap_or_default();
            if offers.contains(openapi_proto::MEDIA_TYPE) {
                return Ok(tagged(call, openapi_proto::encode(&out), openapi_proto::ANSWER_TYPE));
            }
            return Ok(document(call, out.to_string().into_bytes(), None));
        }
        ["openapi", "v3"] => {
            return Ok(document(call, openapi::v3_index(&catalog, version), None));
        }
        ["openapi", "v3", "api", served] => {
            return Ok(group_document(call, &catalog, "", served, version));
        }
        ["openapi", "v3", "apis", group, served] => {
            return Ok(group_document(call, &catalog, group, served, version));
        }
        [".well-known", "openid-configuration"] => Some(json!({
            "issuer": server.authenticator.tokens.issuer(),
            "jwks_uri": format!("https://{}/openid/v1/jwks", server.advertise),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })),
        ["openid", "v1", "jwks"] => {
            let body = server.authenticator.tokens.jwks().to_string();
            return Ok(answer::bytes(StatusCode::OK, "application/jwk-set+json", body));
        }
        _ => None,
    };
    Ok(match found {
        Some(value) => answer::json(StatusCode::OK, &value),
        None => not_found(),
    })
}

pub fn not_found() -> Response<Body> {
    answer::bytes(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n")
}

fn paths(server: &Shared) -> Vec<String> {
    let catalog = server.registry.catalog();
    let mut paths = vec![
        "/.well-known/openid-configuration".to_string(),
        "/api".into(),
        "/api/v1".into(),
        "/apis".into(),
    ];
    for group in catalog.groups().iter().filter(|group| !group.name.is_empty()) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{v}", group.name)));
    }
    let fixed = [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    paths.extend(fixed.map(str::to_string));
    paths
}

/// The media type of aggregated discovery, if the client asks for it first.
fn aggregated_type(call: &Call) -> Option<&'static str> {
    let accept = call.request.headers().get(http::header::ACCEPT)?.to_str().ok()?;
    accept.split(',').map(str::trim).find_map(|offer| {
        if !offer.contains("as=APIGroupDiscoveryList") || !offer.starts_with("application/json") {
            return None;
        }
        if offer.contains("v=v2beta1") {
            Some("v2beta1")
        } else if offer.contains("v=v2") {
            Some("v2")
        } else {
            None
        }
    })
}

fn aggregated(call: &Call, document: &Value, version: &str) -> Response<Body> {
    let mut document = document.clone();
    document["apiVersion"] = format!("apidiscovery.k8s.io/{version}").into();
    let body = format!("{document}\n").into_bytes();
    let kind =
        format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    let mut response = tagged(call, body, &kind);
    response.headers_mut().insert(http::header::VARY, http::HeaderValue::from_static("Accept"));
    response
}

fn group_document(
    call: &Call,
    catalog: &kinds::resources::Catalog,
    group: &str,
    served: &str,
    version: &str,
) -> Response<Body> {
    match openapi::v3(catalog, group, served, version) {
        Some(body) => {
            let hash = openapi::document_hash(catalog, group, served, version);
            let asked = call.query.get("hash");
            document(call, body, asked.filter(|asked| *asked == hash).map(|_| ()))
        }
        None => not_found(),
    }
}

/// A document; one that was asked for by its hash never changes.
fn document(call: &Call, body: Vec<u8>, immutable: Option<()>) -> Response<Body> {
    let mut response = tagged(call, body, "application/json");
    if immutable.is_some() {
        response.headers_mut().insert(
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
