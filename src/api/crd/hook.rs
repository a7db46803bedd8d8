//! Conversion webhooks: how one is reached, and one question asked of it
//! (`ConversionReview`).
//!
//! Every call has a deadline and every answer a bound. What the answer means is for
//! `convert` to judge.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use kinds::meta::{FieldError, name};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cache::Cache;

const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 64 << 20;
const SERVICES: &str = "/registry/services/specs/";
/// Trusted where a webhook names no authority of its own.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Url(String),
    Service { namespace: String, name: String, path: String, port: u16 },
}

/// A webhook as its definition names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub place: Place,
    /// PEM; empty for the system's authorities.
    pub authorities: Vec<u8>,
    pub review_versions: Vec<String>,
}

impl Config {
    /// Reads `spec.conversion`, which has been validated.
    pub fn read(conversion: &Value) -> Self {
        let webhook = &conversion["webhook"];
        let client = &webhook["clientConfig"];
        let text = |value: &Value| value.as_str().unwrap_or("").to_string();
        let service = &client["service"];
        let place = match client["url"].as_str() {
            Some(url) => Place::Url(url.into()),
            None => Place::Service {
                namespace: text(&service["namespace"]),
                name: text(&service["name"]),
                path: text(&service["path"]),
                port: service["port"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(443),
            },
        };
        let versions = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
        Self {
            place,
            authorities: bundle(client).unwrap_or_default(),
            review_versions: versions.map(text).collect(),
        }
    }

    /// The address that messages name.
    fn shown(&self) -> String {
        match &self.place {
            Place::Url(url) => url.clone(),
            Place::Service { namespace, name, path, port } => {
                let slash = if path.starts_with('/') || path.is_empty() { "" } else { "/" };
                format!("https://{name}.{namespace}.svc:{port}{slash}{path}")
            }
        }
    }

    /// Where to connect, the name its certificate must have, and the path to ask.
    fn target(&self, cache: &Cache) -> Result<(String, u16, String, String), String> {
        match &self.place {
            Place::Url(url) => {
                let uri: Uri = url.parse().map_err(|_| format!("invalid URL {url:?}"))?;
                let host = uri.host().unwrap_or("").trim_matches(['[', ']']).to_string();
                let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_string();
                Ok((host.clone(), uri.port_u16().unwrap_or(443), host, path))
            }
            Place::Service { namespace, name, path, port } => {
                let key = format!("{SERVICES}{namespace}/{name}");
                let service = cache
                    .get(SERVICES, &key)
                    .ok_or_else(|| format!("service {name:?} not found"))?
                    .value();
                let spec = &service["spec"];
                let address = match spec["type"].as_str() {
                    Some("ExternalName") => spec["externalName"].as_str(),
                    _ => spec["clusterIP"].as_str().filter(|ip| *ip != "None"),
                };
                let address =
                    address.ok_or_else(|| format!("service {name:?} has no cluster address"))?;
                let ports = spec["ports"].as_array().into_iter().flatten();
                if !ports.clone().any(|known| known["port"] == *port) {
                    return Err(format!("no service port {port} found for service {name:?}"));
                }
                let slash = if path.starts_with('/') { "" } else { "/" };
                let host = format!("{name}.{namespace}.svc");
                Ok((address.to_string(), *port, host, format!("{slash}{path}")))
            }
        }
    }

    fn tls(&self) -> Result<Arc<rustls::ClientConfig>, String> {
        let pem = if self.authorities.is_empty() {
            SYSTEM_ROOTS
                .iter()
                .find_map(|path| std::fs::read(path).ok())
                .ok_or("no certificate authorities of the system were found")?
        } else {
            self.authorities.clone()
        };
        let config = pki::tls::client_config(Some(&pem), None, false);
        let mut config = config.map_err(|err| base::error::chain(&err).to_string())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Posts a JSON document and returns the answer's.
    ///
    /// # Errors
    /// Why there is no answer, in a sentence.
    pub async fn ask(&self, cache: &Cache, question: &Value) -> Result<Value, String> {
        let shown = format!("{}?timeout={}s", self.shown(), CALL_TIMEOUT.as_secs());
        let failed = |why: String| format!("Post {shown:?}: {why}");
        match tokio::time::timeout(CALL_TIMEOUT, self.call(cache, question)).await {
            Ok(answered) => answered.map_err(failed),
            Err(_) => Err(failed("context deadline exceeded".into())),
        }
    }

    async fn call(&self, cache: &Cache, question: &Value) -> Result<Value, String> {
        let (address, port, host, path) = self.target(cache)?;
        let tls = self.tls()?;
        let server = ServerName::try_from(host.clone()).map_err(|err| err.to_string())?;
        let tcp = TcpStream::connect((address.as_str(), port))
            .await
            .map_err(|err| format!("dial tcp {address}:{port}: {err}"))?;
        let stream = TlsConnector::from(tls)
            .connect(server, tcp)
            .await
            .map_err(|err| format!("tls: failed to verify certificate: {err}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|err| err.to_string())?;
        let running = tokio::spawn(connection);
        let separator = if path.contains('?') { '&' } else { '?' };
        let uri = format!("{path}{separator}timeout={}s", CALL_TIMEOUT.as_secs());
        let request = Request::post(uri)
            .header(http::header::HOST, host)
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "application/json, */*")
            .body(Full::new(Bytes::from(question.to_string())))
            .map_err(|err| err.to_string())?;
        let response = sender.send_request(request).await.map_err(|err| err.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        running.abort();
        let body = body.map_err(|err| err.to_string())?.to_bytes();
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body);
            let text: String = text.trim().chars().take(200).collect();
            return Err(if text.is_empty() {
                format!("the server responded with the status code {}", status.as_u16())
            } else {
                text
            });
        }
        crate::serve::negotiate::json(&body)
    }
}

fn bundle(client: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(client["caBundle"].as_str()?).ok()
}

/// Whether a configuration has no authorities of its own, or such that can be read.
pub fn bundle_is_good(client: &Value) -> bool {
    match bundle(client).filter(|pem| !pem.is_empty()) {
        None => true,
        Some(pem) => {
            let mark = b"-----BEGIN CERTIFICATE-----";
            pem.windows(mark.len()).any(|window| window == mark)
                && pki::tls::client_config(Some(&pem), None, false).is_ok()
        }
    }
}

/// Checks a `clientConfig`; the authorities only where the definition is in use.
pub fn check(client: &Value, at: &str, in_use: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let url = client["url"].as_str();
    let service = client.get("service").filter(|service| service.is_object());
    match (url, service) {
        (Some(_), Some(_)) | (None, None) => {
            errors.push(FieldError::required(at, "exactly one of url or service is required"));
        }
        (Some(url), None) => check_url(url, &format!("{at}.url"), &mut errors),
        (None, Some(service)) => check_service(service, &format!("{at}.service"), &mut errors),
    }
    if in_use && !bundle_is_good(client) {
        let said = "unable to load root certificates: unable to parse bytes as PEM block";
        let held = client["caBundle"].clone();
        errors.push(FieldError::invalid(format!("{at}.caBundle"), held, said));
    }
    errors
}

fn check_url(url: &str, at: &str, errors: &mut Vec<FieldError>) {
    let form = "; desired format: https://host[/path]";
    let mut invalid = |value: &str, said: String| {
        errors.push(FieldError::invalid(at, value, &said));
    };
    let Ok(uri) = url.parse::<Uri>() else {
        invalid(url, format!("url must be a valid URL: parse {url:?}: invalid URI{form}"));
        return;
    };
    let scheme = uri.scheme_str().unwrap_or("");
    if scheme != "https" {
        invalid(scheme, format!("'https' is the only allowed URL scheme{form}"));
    }
    if uri.host().unwrap_or("").is_empty() {
        invalid(uri.host().unwrap_or(""), format!("host must be specified{form}"));
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if let Some((user, _)) = authority.rsplit_once('@') {
        invalid(user, "user information is not permitted in the URL".into());
    }
    if url.contains('#') {
        let fragment = url.split_once('#').map_or("", |(_, fragment)| fragment);
        invalid(fragment, "fragments are not permitted in the URL".into());
    }
    if let Some(query) = uri.query() {
        invalid(query, "query parameters are not permitted in the URL".into());
    }
}

fn check_service(service: &Value, at: &str, errors: &mut Vec<FieldError>) {
    for field in ["name", "namespace"] {
        if service[field].as_str().unwrap_or("").is_empty() {
            errors.push(FieldError::required(
                format!("{at}.{field}"),
                &format!("service {field} is required"),
            ));
        }
    }
    let port = service["port"].as_i64().unwrap_or(443);
    if !name::is_port_number(port).is_empty() {
        let said = format!("port is not valid: {}", name::is_port_number(port).join(","));
        errors.push(FieldError::invalid(format!("{at}.port"), port, &said));
    }
    let Some(path) = service["path"].as_str() else { return };
    let at = format!("{at}.path");
    if path.is_empty() {
        return;
    }
    let Some(rest) = path.strip_prefix('/') else {
        errors.push(FieldError::invalid(at, path, "must start with a '/'"));
        return;
    };
    if rest.is_empty() {
        return;
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    for (index, step) in rest.split('/').enumerate() {
        let mut said = Vec::new();
        if step.is_empty() {
            said.push(format!("segment[{index}] may not be empty"));
        } else {
            for problem in name::is_dns1123_subdomain(step) {
                said.push(format!("segment[{index}]: {problem}"));
            }
        }
        for said in said {
            errors.push(FieldError::invalid(at.as_str(), path, &said));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_are_checked() {
        let said = |client: Value| -> Vec<String> {
            check(&client, "c", true).iter().map(ToString::to_string).collect()
        };
        assert!(said(json!({"url": "https://a.example/convert"})).is_empty());
        assert!(
            said(json!({"service": {"name": "n", "namespace": "s", "path": "/a/b", "port": 443}}))
                .is_empty()
        );
        assert_eq!(
            said(json!({})),
            ["c: Required value: exactly one of url or service is required"]
        );
        assert_eq!(
            said(json!({"url": "http://a.example"})),
            [
                r#"c.url: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path]"#
            ]
        );
        assert_eq!(said(json!({"service": {"name": "", "namespace": "s", "path": "x"}})).len(), 2);
        assert_eq!(said(json!({"url": "https://a", "caBundle": "bm9uZQ=="})).len(), 1);
    }
}
