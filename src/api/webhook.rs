//! Webhooks: how one is reached, and one question asked of it over HTTPS. Documents that
//! others publish are fetched here as well.
//!
//! Every call has a deadline and every answer a bound; a connection that still stands is used
//! again. What an answer means is for whoever asked to judge.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use kinds::meta::{FieldError, name};
use parking_lot::Mutex;
use serde_json::Value;

use crate::cache::Cache;
use crate::outbound::{self, Peer};

/// Larger answers are refused, in bytes: a list may be converted in one question.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Connections kept for the next question.
const IDLE_CONNECTIONS_MAX: usize = 4;
/// Of an error's text that is told to the client.
const ERROR_CHARS_MAX: usize = 1_000;
/// As upstream asks again: questions in all, the pause before the second, and how it grows.
const TRIES_MAX: u32 = 5;
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const RETRY_FACTOR: f64 = 1.5;
/// Trusted where a webhook names no authority of its own.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Where a webhook is.
#[derive(Debug)]
enum Place {
    Url { host: String, port: u16, path: String, shown: String },
    Service { namespace: String, name: String, path: String, port: u16 },
    Nowhere(String),
}

/// Why there is no answer, in a sentence.
struct Failure {
    why: String,
    /// Whether a later question may have one: the server was overloaded or broken, or the
    /// connection to it was cut.
    passes: bool,
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self { why, passes: false }
    }
}

/// A webhook that can be asked.
pub struct Endpoint {
    place: Place,
    tls: Result<Arc<rustls::ClientConfig>, String>,
    timeout: Duration,
    /// The `Authorization` header that it wants to see.
    authorization: Option<HeaderValue>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Endpoint {
    /// Reads a `clientConfig`.
    pub fn read(config: &Value, timeout: Duration) -> Self {
        Self {
            place: Place::read(config),
            tls: tls(config),
            timeout,
            authorization: None,
            idle: Mutex::default(),
        }
    }

    /// The server that the current context of a kubeconfig leads to, asked at exactly the
    /// path given there.
    ///
    /// # Errors
    /// What is wrong with the file, in a sentence.
    pub fn of_kubeconfig(path: &Path, timeout: Duration) -> Result<Self, String> {
        let said = |err: &(dyn std::error::Error + 'static)| base::error::chain(err).to_string();
        let config = client::kubeconfig::load(path).map_err(|err| said(&err))?;
        let shown = path.display();
        if !config.server.starts_with("https://") {
            return Err(format!("{shown}: the server {:?} is not reached by https", config.server));
        }
        let identity = config.cert_pem.as_deref().zip(config.key_pem.as_deref());
        let roots = match &config.ca_pem {
            Some(pem) => Some(pem.clone()),
            None if config.insecure => None,
            None => Some(system_roots()?),
        };
        let tls = pki::tls::client_config(roots.as_deref(), identity, config.insecure)
            .map_err(|err| format!("{shown}: {}", said(&err)))?;
        let authorization = config.token.map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| format!("{shown}: the token is no text"))?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        });
        Ok(Self {
            place: Place::read(&serde_json::json!({"url": config.server})),
            tls: Ok(Arc::new(http1(tls))),
            timeout,
            authorization: authorization.transpose()?,
            idle: Mutex::default(),
        })
    }

    /// Posts a question and returns the answer.
    ///
    /// # Errors
    /// Why there is none, in a sentence.
    pub async fn ask(&self, cache: &Cache, question: &Value) -> Result<Value, String> {
        self.post(Some(cache), Bytes::from(question.to_string())).await
    }

    /// As [`Self::ask`], where no service has to be looked up.
    pub async fn tell(&self, message: Bytes) -> Result<Value, String> {
        self.post(None, message).await
    }

    /// As [`Self::ask`], and again after growing pauses while the server is overloaded or
    /// broken; all within the one deadline.
    ///
    /// # Errors
    /// Why the last question had no answer, in a sentence.
    pub async fn ask_patiently(&self, cache: &Cache, question: &Value) -> Result<Value, String> {
        let body = Bytes::from(question.to_string());
        let deadline = tokio::time::Instant::now() + self.timeout;
        let mut pause = RETRY_PAUSE;
        let mut tries = 1;
        loop {
            let failure =
                match tokio::time::timeout_at(deadline, self.call(Some(cache), body.clone())).await
                {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(failure)) => failure,
                    Err(_) => return Err(self.told("context deadline exceeded")),
                };
            let next = tokio::time::Instant::now() + pause.mul_f64(1.0 + base::rng::unit() / 5.0);
            if !failure.passes || tries >= TRIES_MAX || next >= deadline {
                return Err(self.told(&failure.why));
            }
            tokio::time::sleep_until(next).await;
            pause = pause.mul_f64(RETRY_FACTOR);
            tries += 1;
        }
    }

    async fn post(&self, cache: Option<&Cache>, body: Bytes) -> Result<Value, String> {
        match tokio::time::timeout(self.timeout, self.call(cache, body)).await {
            Ok(answered) => answered.map_err(|failure| self.told(&failure.why)),
            Err(_) => Err(self.told("context deadline exceeded")),
        }
    }

    fn told(&self, why: &str) -> String {
        let shown = format!("{}?timeout={}s", self.place.shown(), self.timeout.as_secs());
        format!("Post {shown:?}: {why}")
    }

    async fn call(&self, cache: Option<&Cache>, body: Bytes) -> Result<Value, Failure> {
        let peer = self.place.peer(cache)?;
        // Of a kept connection nobody knows whether the other side still holds it.
        let kept = self.idle.lock().pop();
        if let Some(sender) = kept.filter(SendRequest::is_ready)
            && let Ok(answer) = self.exchange(sender, &peer, body.clone()).await
        {
            return answer;
        }
        let sender = connect(self.tls.clone()?, &peer).await?;
        let cut = |why| Failure { why, passes: true };
        self.exchange(sender, &peer, body).await.map_err(cut)?
    }

    /// The outer error is the connection's, before an answer began.
    async fn exchange(
        &self,
        mut sender: SendRequest<Full<Bytes>>,
        peer: &Peer,
        body: Bytes,
    ) -> Result<Result<Value, Failure>, String> {
        let path = self.place.path();
        let mut request = Request::post(format!("{path}?timeout={}s", self.timeout.as_secs()))
            .header(http::header::HOST, &peer.name)
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "application/json, */*")
            .header(http::header::USER_AGENT, "kube-apiserver")
            .body(Full::new(body))
            .map_err(|err| err.to_string())?;
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(http::header::AUTHORIZATION, value.clone());
        }
        let response = sender.send_request(request).await.map_err(|err| err.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = match body {
            Ok(body) => body.to_bytes(),
            Err(err) => return Ok(Err(err.to_string().into())),
        };
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(sender);
        }
        drop(idle);
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body);
            let text: String = text.trim().chars().take(ERROR_CHARS_MAX).collect();
            let code = status.as_u16();
            let why = match text.is_empty() {
                true => format!("the server responded with the status code {code}"),
                false => text,
            };
            return Ok(Err(Failure { why, passes: code == 429 || code >= 500 }));
        }
        if body.is_empty() {
            return Ok(Ok(Value::Null));
        }
        Ok(crate::serve::negotiate::json(&body).map_err(Failure::from))
    }
}

async fn connect(
    tls: Arc<rustls::ClientConfig>,
    peer: &Peer,
) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = outbound::dial(peer, tls).await?;
    let (sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(|err| err.to_string())?;
    // Ends with the connection, which ends when the sender is dropped.
    base::task::spawn(connection);
    Ok(sender)
}

/// Gets the document at an `https` URL.
///
/// # Errors
/// Why there is none in `timeout`, or that it is larger than `bytes_max`; in a sentence.
pub async fn fetch(
    url: &str,
    tls: &Arc<rustls::ClientConfig>,
    timeout: Duration,
    bytes_max: usize,
) -> Result<Bytes, String> {
    let get = async {
        let uri: Uri = url.parse().map_err(|_| "invalid URL".to_owned())?;
        if uri.scheme_str() != Some("https") {
            return Err("the URL scheme must be https".to_owned());
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let peer = Peer { address: host.clone(), port, name: host };
        let mut sender = connect(tls.clone(), &peer).await?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(http::header::HOST, authority)
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::USER_AGENT, "kube-apiserver")
            .body(Full::default())
            .map_err(|err| err.to_string())?;
        let response = sender.send_request(request).await.map_err(|err| err.to_string())?;
        if !response.status().is_success() {
            return Err(format!("status code {}", response.status()));
        }
        let body = Limited::new(response.into_body(), bytes_max).collect().await;
        body.map(|body| body.to_bytes()).map_err(|err| err.to_string())
    };
    let got = tokio::time::timeout(timeout, get).await;
    let got = got.unwrap_or_else(|_| Err("context deadline exceeded".to_owned()));
    got.map_err(|why| format!("Get {url:?}: {why}"))
}

impl Place {
    fn read(config: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if let Some(url) = config["url"].as_str() {
            let Ok(uri) = url.parse::<Uri>() else {
                return Place::Nowhere(format!("invalid URL {url:?}"));
            };
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            return Place::Url {
                host,
                port: uri.port_u16().unwrap_or(443),
                path: uri.path().to_owned(),
                shown: url.to_owned(),
            };
        }
        let service = &config["service"];
        let path = text(&service["path"]);
        Place::Service {
            namespace: text(&service["namespace"]),
            name: text(&service["name"]),
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            port: service["port"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(443),
        }
    }

    fn path(&self) -> &str {
        match self {
            Place::Url { path, .. } | Place::Service { path, .. } => path,
            Place::Nowhere(_) => "/",
        }
    }

    /// The address that messages name.
    fn shown(&self) -> String {
        match self {
            Place::Url { shown, .. } => shown.clone(),
            Place::Service { namespace, name, path, port } => {
                format!("https://{name}.{namespace}.svc:{port}{path}")
            }
            Place::Nowhere(_) => "https:".to_owned(),
        }
    }

    fn peer(&self, cache: Option<&Cache>) -> Result<Peer, String> {
        match self {
            Place::Url { host, port, .. } => {
                Ok(Peer { address: host.clone(), port: *port, name: host.clone() })
            }
            Place::Service { namespace, name, port, .. } => {
                let cache = cache.ok_or("services are not known here")?;
                let (address, port) = outbound::resolve(cache, namespace, name, *port)?;
                Ok(Peer { address, port, name: format!("{name}.{namespace}.svc") })
            }
            Place::Nowhere(why) => Err(why.clone()),
        }
    }
}

fn tls(config: &Value) -> Result<Arc<rustls::ClientConfig>, String> {
    roots(bundle(config).filter(|pem| !pem.is_empty()).as_deref())
}

/// How to reach servers under these authorities, or the system's where there are none.
///
/// # Errors
/// What is wrong with them, in a sentence.
pub fn roots(pem: Option<&[u8]>) -> Result<Arc<rustls::ClientConfig>, String> {
    if pem.is_some_and(|pem| !holds_certificate(pem)) {
        return Err("data does not contain any valid RSA or ECDSA certificates".into());
    }
    let of_system = if pem.is_none() { system_roots()? } else { Vec::new() };
    let config = pki::tls::client_config(Some(pem.unwrap_or(&of_system)), None, false);
    let config = config
        .map_err(|err| format!("unable to load root certificates: {}", base::error::chain(&err)))?;
    Ok(Arc::new(http1(config)))
}

fn http1(mut config: rustls::ClientConfig) -> rustls::ClientConfig {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// PEM of the authorities that this host trusts.
///
/// # Errors
/// When the host has none.
pub fn system_roots() -> Result<Vec<u8>, String> {
    SYSTEM_ROOTS
        .iter()
        .find_map(|path| std::fs::read(path).ok())
        .ok_or_else(|| "no certificate authorities of the system were found".to_owned())
}

fn bundle(client: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(client["caBundle"].as_str()?).ok()
}

/// Whether a configuration has no authorities of its own, or such that can be read.
pub fn bundle_is_good(client: &Value) -> bool {
    match bundle(client).filter(|pem| !pem.is_empty()) {
        None => true,
        Some(pem) => roots(Some(&pem)).is_ok(),
    }
}

fn holds_certificate(pem: &[u8]) -> bool {
    let mark = b"-----BEGIN CERTIFICATE-----";
    pem.windows(mark.len()).any(|window| window == mark)
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
