//! Pulls from registries (OCI distribution): manifests by platform, blobs to files,
//! tokens and passwords. What a registry says of a refusal is passed on in its words.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde::Deserialize;

use super::bounds::Room;
use super::challenge::{Challenge, challenges};
use super::downloads::Held;
use super::import::{DOCUMENT_BYTES_MAX, Descriptor, Document};
use super::platform::for_this_platform;
use super::progress::{Blob, Step, Teller};
use super::proxies::Proxies;
use super::reference::{Reference, digest_hex};
use super::registries::{Endpoint, Registries};
use super::store::{Store, digest_of, failed, hex};
use super::transport::exchange;
use crate::cri::{AuthConfig, Error, ErrorKind, Result};

/// How often a request is repeated that the registry was too busy for.
const REPEATS_MAX: u32 = 4;
/// What a registry may ask us to wait before a repetition; a longer wait is the caller's.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(20);
const REDIRECTS_MAX: usize = 5;
/// Blobs of one pull that are downloaded at the same time.
const BLOBS_AT_ONCE_MAX: usize = 3;
/// Breaks of a blob's connection in a row that bring next to nothing new.
const BREAKS_MAX: u32 = 2;
/// Further places that a descriptor names are not asked.
const URLS_MAX: usize = 8;
/// Connections of one blob, however much each brings.
const CONNECTIONS_MAX: usize = 100;
const INDEX_DEPTH_MAX: usize = 4;
/// A blob that brings fewer bytes than this while a silent registry would be given up
/// stands still.
const TRICKLE_BYTES: u64 = 4 << 10;
/// What a document may take, as a multiple of the silence that is waited through.
const DOCUMENT_SILENCES: u32 = 2;
/// Words of a refusal that are passed on.
const WORDS_BYTES_MAX: usize = 512;

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::ImagePull, message)
}

/// The credentials to try, in order: those given, those of the endpoint, none.
pub async fn pull(
    store: &Arc<Store>,
    registries: &Registries,
    image: &str,
    auth: &[AuthConfig],
    teller: &Teller,
) -> Result<String> {
    let reference = Reference::parse(image)?;
    let mut last = None;
    for endpoint in registries.endpoints(&reference.domain, &reference.path) {
        let configured = registries.configs.get(&endpoint.authority);
        let mut tries: Vec<Option<AuthConfig>> = auth.iter().cloned().map(Some).collect();
        if let Some(own) = configured.and_then(|c| c.auth.as_ref()) {
            tries.push(Some(AuthConfig {
                username: own.username.clone(),
                password: own.password.clone(),
                auth: own.auth.clone(),
                identity_token: own.identity_token.clone(),
                registry_token: String::new(),
            }));
        }
        tries.push(None);
        for credentials in tries {
            let mut session = Session {
                registries,
                endpoint: endpoint.clone(),
                reference: &reference,
                credentials,
                authorization: None,
                teller: teller.clone(),
            };
            match session.pull(store).await {
                Ok(id) => return Ok(id),
                Err(err) if err.kind == ErrorKind::ImagePull => {
                    // The first refusal of an endpoint says most.
                    last.get_or_insert(err);
                }
                Err(err) => return Err(err),
            }
        }
    }
    let err = last.unwrap_or_else(|| refused("no endpoint is configured"));
    Err(Error {
        message: format!(
            "failed to pull and unpack image \"{}\": {}",
            reference.tagged().unwrap_or_else(|| image.to_string()),
            err.message
        ),
        ..err
    })
}

#[derive(Clone)]
struct Session<'a> {
    registries: &'a Registries,
    endpoint: Endpoint,
    reference: &'a Reference,
    credentials: Option<AuthConfig>,
    authorization: Option<String>,
    teller: Teller,
}

struct Url {
    scheme: String,
    authority: String,
    path: String,
}

impl Url {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let at = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let path = if path.is_empty() { "/" } else { path };
        Some(Self { scheme: scheme.into(), authority: authority.into(), path: path.into() })
    }

    fn is_at(&self, endpoint: &Endpoint) -> bool {
        (&self.scheme, &self.authority) == (&endpoint.scheme, &endpoint.authority)
    }
}

impl Session<'_> {
    async fn pull(&mut self, store: &Arc<Store>) -> Result<String> {
        let wanted = self.reference.digest.clone().or_else(|| self.reference.tag.clone());
        let wanted = wanted.unwrap_or_else(|| "latest".into());
        let (first, top) = self.manifest(&wanted).await?;
        let mut document = first;
        for _ in 0..INDEX_DEPTH_MAX {
            let Some(manifests) = &document.manifests else { break };
            let chosen = for_this_platform(manifests)
                .ok_or_else(|| refused("no match for platform in manifest: not found"))?;
            document = self.manifest(&chosen.digest.clone()).await?.0;
        }
        let (Some(config), Some(layers)) = (document.config, document.layers) else {
            return Err(refused("the manifest has no configuration or no layers"));
        };
        self.teller.step(Step::Downloading);
        if config.size > DOCUMENT_BYTES_MAX {
            let (size, most) = (config.size, DOCUMENT_BYTES_MAX);
            let text = format!("the image's configuration has {size} bytes; at most {most} may be");
            return Err(refused(text));
        }
        let mut config_blob = self.hold(store, &config.digest)?;
        self.blob(&config_blob, &config).await?;
        base::failpoint!("image/configuration-brought");
        let config_bytes =
            std::fs::read(&config_blob.path).map_err(|err| failed("read configuration", err))?;
        // Nothing removes the layers that are there before the image counts them.
        let lease = store.lease(&config_bytes, layers.len())?;
        let mut held = Vec::new();
        for layer in &layers {
            held.push(self.hold(store, &layer.digest)?);
        }
        self.teller.blobs(
            layers
                .iter()
                .zip(&lease.present)
                .map(|(layer, is_present)| Blob {
                    digest: layer.digest.clone(),
                    bytes: layer.size,
                    bytes_done: if *is_present { layer.size } else { 0 },
                    is_present: *is_present,
                })
                .collect(),
        );
        let wanted: Vec<_> = layers
            .iter()
            .zip(&held)
            .zip(&lease.present)
            .filter(|(_, is_present)| !**is_present)
            .map(|((layer, held), _)| {
                let mut own = self.clone();
                async move { own.blob(held, layer).await }
            })
            .collect();
        futures::stream::iter(wanted)
            .buffer_unordered(BLOBS_AT_ONCE_MAX)
            .try_collect::<Vec<()>>()
            .await?;
        self.teller.step(Step::Unpacking);
        base::failpoint!("image/layers-brought");
        let tags: Vec<String> = self.reference.tagged().into_iter().collect();
        let digests = vec![format!("{}@{top}", self.reference.repository())];
        let files: Vec<PathBuf> = held.iter().map(|held| held.path.clone()).collect();
        let own = store.clone();
        let added = base::task::spawn_blocking(move || {
            let added = own.add(&config_bytes, &files, &tags, &digests);
            drop(lease);
            added
        })
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "unpacking panicked")));
        // Verified content that does not unpack never will.
        let is_done = added.as_ref().err().is_none_or(|err| err.kind == ErrorKind::ImageInvalid);
        for held in held.iter_mut().chain([&mut config_blob]) {
            held.is_done = is_done;
        }
        added
    }

    fn hold(&self, store: &Store, digest: &str) -> Result<Held> {
        store
            .downloads
            .hold(digest)
            .ok_or_else(|| refused(format!("digest {digest:?} is malformed or not sha256")))
    }

    fn path(&self, what: &str, name: &str) -> String {
        let Endpoint { base, repository, mirrors, .. } = &self.endpoint;
        // A mirror of several registries has to be told whose it is (as containerd does).
        let of = mirrors.as_ref().map_or_else(String::new, |it| format!("?ns={}", escape(it)));
        format!("{base}/{repository}/{what}/{name}{of}")
    }

    /// A manifest or index, checked against the digest that was asked for, and its digest.
    async fn manifest(&mut self, wanted: &str) -> Result<(Document, String)> {
        let path = self.path("manifests", wanted);
        let response = self.get(&path, ACCEPT).await?;
        let bytes = body(response, DOCUMENT_BYTES_MAX, self.registries.patience.idle).await?;
        let digest = format!("sha256:{}", hex(&<sha2::Sha256 as sha2::Digest>::digest(&bytes)));
        if digest_hex(wanted).is_some() && wanted != digest {
            return Err(refused(format!("manifest {wanted} has digest {digest}")));
        }
        let document: Document = serde_json::from_slice(&bytes)
            .map_err(|err| refused(format!("the registry sent a malformed manifest: {err}")))?;
        document.check()?;
        Ok((document, digest))
    }

    /// Brings the blob's file to its end, from where an earlier connection or process left
    /// it. A connection that breaks off is taken up again while it brings anything new.
    async fn blob(&mut self, held: &Held, wanted: &Descriptor) -> Result<()> {
        let _turn = held.turn.lock().await;
        // What an earlier process left may be what is wrong.
        let mut is_old = length_of(&held.path) > 0;
        loop {
            self.bring(held, wanted).await?;
            match verify(&held.path, &wanted.digest).await {
                Ok(()) => return Ok(()),
                Err(err) => {
                    remove_file(&held.path);
                    if !is_old {
                        return Err(err);
                    }
                    is_old = false;
                }
            }
        }
    }

    /// Until the file is as long as it should be.
    async fn bring(&mut self, held: &Held, wanted: &Descriptor) -> Result<()> {
        let (mut furthest, mut breaks) = (length_of(&held.path), 0);
        for _ in 0..CONNECTIONS_MAX {
            let broken = self.stretch(held, wanted).await.inspect_err(|err| {
                if err.kind == ErrorKind::NoSpace {
                    remove_file(&held.path);
                }
            })?;
            let length = length_of(&held.path);
            if length == wanted.size {
                return Ok(());
            }
            breaks = if length >= furthest + TRICKLE_BYTES { 0 } else { breaks + 1 };
            furthest = furthest.max(length);
            if breaks > BREAKS_MAX {
                return Err(broken.unwrap_or_else(|| {
                    refused(format!(
                        "blob {} ended after {length} of its {} bytes",
                        wanted.digest, wanted.size
                    ))
                }));
            }
            tokio::time::sleep(self.registries.patience.retry).await;
        }
        Err(refused(format!("blob {} came in too many pieces", wanted.digest)))
    }

    /// One request, for what the file still lacks. Gives what broke the connection off.
    async fn stretch(&mut self, held: &Held, wanted: &Descriptor) -> Result<Option<Error>> {
        let mut from = length_of(&held.path);
        if from > wanted.size {
            remove_file(&held.path);
            from = 0;
        }
        self.teller.done(&wanted.digest, from);
        if from == wanted.size && from > 0 {
            return Ok(None);
        }
        if let Some(directory) = held.path.parent() {
            // Better now than when the disk is full.
            Room::at(directory)
                .take(wanted.size - from)
                .map_err(|err| failed("download blob", err))?;
        }
        let mut response = self.open(wanted, from).await?;
        if from > 0 && continues_at(&response) != Some(from) {
            // It sends the whole, or has no such range: begin anew.
            remove_file(&held.path);
            from = 0;
            if response.status() != StatusCode::OK {
                response = self.open(wanted, 0).await?;
            }
        }
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&held.path)
            .map_err(|err| failed("open download file", err))?;
        let idle = self.registries.patience.idle;
        let mut room = Room::at(&held.path);
        let (mut looked, mut brought) = (Instant::now(), 0);
        loop {
            let chunk = match next(&mut response, idle).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(None),
                Err(broken) => return Ok(Some(broken)),
            };
            from += chunk.len() as u64;
            brought += chunk.len() as u64;
            if looked.elapsed() >= idle {
                if brought < TRICKLE_BYTES && from < wanted.size {
                    return Ok(Some(refused("the registry has all but stopped sending")));
                }
                (looked, brought) = (Instant::now(), 0);
            }
            if from > wanted.size {
                remove_file(&held.path);
                return Err(refused(format!(
                    "blob {} is longer than its {} bytes",
                    wanted.digest, wanted.size
                )));
            }
            room.take(chunk.len() as u64)
                .and_then(|()| file.write_all(&chunk))
                .map_err(|err| failed("write blob", err))?;
            self.teller.done(&wanted.digest, from);
        }
    }

    async fn get(&mut self, path: &str, accept: &str) -> Result<Response<Incoming>> {
        let url = self.url(path);
        self.get_from(url, accept, 0).await
    }

    fn url(&self, path: &str) -> Url {
        Url {
            scheme: self.endpoint.scheme.clone(),
            authority: self.endpoint.authority.clone(),
            path: path.to_string(),
        }
    }

    /// A blob from byte `from` on. Where its descriptor names other places (layers that a
    /// registry may not pass on), they are asked first, as containerd does.
    async fn open(&mut self, wanted: &Descriptor, from: u64) -> Result<Response<Incoming>> {
        for text in wanted.urls.iter().flatten().take(URLS_MAX) {
            let Some(url) = Url::parse(text).filter(|it| ["http", "https"].contains(&&*it.scheme))
            else {
                continue;
            };
            match self.get_from(url, "*/*", from).await {
                Ok(response) => return Ok(response),
                Err(err) => tracing::debug!(url = text, error = %err, "a layer is not there"),
            }
        }
        let url = self.url(&self.path("blobs", &wanted.digest));
        self.get_from(url, "*/*", from).await
    }

    /// Follows redirects and answers one demand for credentials.
    /// From byte `from` on, where the registry can.
    async fn get_from(
        &mut self,
        mut url: Url,
        accept: &str,
        from: u64,
    ) -> Result<Response<Incoming>> {
        let mut asked_for_token = false;
        for _ in 0..REDIRECTS_MAX {
            // Credentials go to the registry only, never to where it or a manifest sends us, and
            // not in the clear where it is spoken to in secret.
            let own = url.is_at(&self.endpoint);
            let authorization = self.authorization.clone().filter(|_| own);
            let ask = Ask::get(accept, authorization.as_deref(), from);
            let response = self.ask(&url, &ask).await?;
            match response.status() {
                StatusCode::OK => return Ok(response),
                StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                    return Ok(response);
                }
                StatusCode::UNAUTHORIZED if own && !asked_for_token => {
                    asked_for_token = true;
                    let demanded = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
                    let demanded: Vec<Challenge> = demanded
                        .filter_map(|value| value.to_str().ok())
                        .flat_map(challenges)
                        .collect();
                    let Some(authorization) = self.authorize(&demanded).await? else {
                        return Err(refusal(&url, response, self.registries.patience.idle).await);
                    };
                    self.authorization = Some(authorization);
                }
                status if status.is_redirection() => {
                    let location = header_text(&response, header::LOCATION);
                    url = if let Some(elsewhere) = location.strip_prefix("//") {
                        let text = format!("{}://{elsewhere}", url.scheme);
                        Url::parse(&text).ok_or_else(|| {
                            refused(format!("the registry redirects to {location:?}"))
                        })?
                    } else if location.starts_with('/') {
                        Url { path: location, ..url }
                    } else {
                        Url::parse(&location).ok_or_else(|| {
                            refused(format!("the registry redirects to {location:?}"))
                        })?
                    };
                }
                _ => return Err(refusal(&url, response, self.registries.patience.idle).await),
            }
        }
        Err(refused("the registry redirects without end"))
    }

    /// Once, and again where the registry says that it is too busy or broken for now.
    async fn ask(&self, url: &Url, ask: &Ask<'_>) -> Result<Response<Incoming>> {
        let mut wait = self.registries.patience.retry;
        for _ in 0..REPEATS_MAX {
            let response = self.once(url, ask).await?;
            if !is_passing(response.status()) {
                return Ok(response);
            }
            let asked = header_text(&response, header::RETRY_AFTER).parse().ok();
            let asked = asked.map_or(wait, Duration::from_secs);
            if asked > RETRY_AFTER_MAX {
                return Ok(response);
            }
            drop(response);
            tokio::time::sleep(asked.max(wait)).await;
            wait *= 2;
        }
        self.once(url, ask).await
    }

    async fn once(&self, url: &Url, ask: &Ask<'_>) -> Result<Response<Incoming>> {
        let method = if ask.form.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::builder()
            .method(&method)
            .uri(&url.path)
            .header(header::HOST, &url.authority)
            .header(header::ACCEPT, ask.accept)
            .header(header::USER_AGENT, concat!("coracle/", env!("CARGO_PKG_VERSION")));
        if let Some(value) = ask.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        if ask.from > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", ask.from));
        }
        if ask.form.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let request = request
            .body(Full::from(ask.form.clone().unwrap_or_default()))
            .map_err(|err| refused(format!("request to {}: {err}", url.authority)))?;
        let tls = self.registries.configs.get(&url.authority).and_then(|c| c.tls.as_ref());
        let proxies = self.registries.proxies.clone().unwrap_or_else(Proxies::of_environment);
        let way = (&proxies, self.registries.patience.idle);
        exchange(&url.scheme, &url.authority, request, tls, way).await.map_err(|err| {
            let verb = if ask.form.is_some() { "Post" } else { "Get" };
            let message = format!(
                "failed to do request: {verb} \"{}://{}{}\": {err}",
                url.scheme, url.authority, url.path
            );
            Error::with_source(ErrorKind::ImagePull, message, err)
        })
    }

    /// What to answer to challenges: a token where one is asked for, otherwise the password.
    /// None if we have nothing.
    async fn authorize(&self, demanded: &[Challenge]) -> Result<Option<String>> {
        let basic = self.credentials.as_ref().and_then(basic_credentials);
        let of_scheme = |scheme: &str| demanded.iter().find(|it| it.scheme == scheme);
        let Some(bearer) = of_scheme("bearer") else {
            return Ok(of_scheme("basic").and(basic).map(|b| format!("Basic {b}")));
        };
        if let Some(token) = self.credentials.as_ref().map(|c| &c.registry_token)
            && !token.is_empty()
        {
            return Ok(Some(format!("Bearer {token}")));
        }
        let Some(realm) = bearer.parameter("realm") else { return Ok(None) };
        let own = format!("repository:{}:pull", self.endpoint.repository);
        let asked = bearer.parameter("scope").unwrap_or_default().split(' ');
        let asked = asked.filter(|it| !it.is_empty() && *it != own);
        let scopes: Vec<&str> = std::iter::once(own.as_str()).chain(asked).collect();
        let service = bearer.parameter("service");
        let malformed = || refused(format!("the registry names a malformed realm {realm:?}"));
        let refresh = self.credentials.as_ref().map(|it| it.identity_token.as_str());
        let response = match refresh.filter(|token| !token.is_empty()) {
            Some(token) => {
                // OAuth 2 (RFC 6749, section 6), as registries offer it beside their own way.
                let scope = scopes.join(" ");
                let mut fields = vec![("grant_type", "refresh_token"), ("refresh_token", token)];
                fields.extend([("client_id", "coracle"), ("scope", scope.as_str())]);
                fields.extend(service.map(|service| ("service", service)));
                let url = Url::parse(realm).ok_or_else(malformed)?;
                self.ask(&url, &Ask::post(&fields)).await.map(|response| (url, response))?
            }
            None => {
                let fields = scopes.iter().map(|scope| ("scope", *scope));
                let query = form(fields.chain(service.map(|service| ("service", service))));
                let join = if realm.contains('?') { '&' } else { '?' };
                let url = Url::parse(&format!("{realm}{join}{query}")).ok_or_else(malformed)?;
                let authorization = basic.map(|b| format!("Basic {b}"));
                let ask = Ask::get("application/json", authorization.as_deref(), 0);
                self.ask(&url, &ask).await.map(|response| (url, response))?
            }
        };
        let (url, response) = response;
        if response.status() != StatusCode::OK {
            let err = refusal(&url, response, self.registries.patience.idle).await;
            return Err(refused(format!("failed to fetch token: {}", err.message)));
        }
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let bytes = body(response, DOCUMENT_BYTES_MAX, self.registries.patience.idle).await?;
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|err| refused(format!("the registry sent a malformed token: {err}")))?;
        let token = if token.token.is_empty() { token.access_token } else { token.token };
        Ok(Some(format!("Bearer {token}")))
    }
}

/// What a request has beside its URL.
struct Ask<'a> {
    accept: &'a str,
    authorization: Option<&'a str>,
    /// First byte of what is wanted.
    from: u64,
    /// It is sent, as a form.
    form: Option<String>,
}

impl<'a> Ask<'a> {
    fn get(accept: &'a str, authorization: Option<&'a str>, from: u64) -> Self {
        Self { accept, authorization, from, form: None }
    }

    fn post(fields: &[(&str, &str)]) -> Self {
        let form = Some(form(fields.iter().copied()));
        Self { accept: "application/json", authorization: None, from: 0, form }
    }
}

fn form<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    fields.map(|(name, value)| format!("{name}={}", escape(value))).collect::<Vec<_>>().join("&")
}

fn basic_credentials(auth: &AuthConfig) -> Option<String> {
    if !auth.auth.is_empty() {
        return Some(auth.auth.clone());
    }
    let plain = if !auth.username.is_empty() {
        format!("{}:{}", auth.username, auth.password)
    } else {
        return None;
    };
    Some(base64::engine::general_purpose::STANDARD.encode(plain))
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(b).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

fn header_text(response: &Response<Incoming>, name: header::HeaderName) -> String {
    let value = response.headers().get(name).and_then(|v| v.to_str().ok());
    value.unwrap_or_default().to_string()
}

/// What may be gone at the next try.
fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// The first byte of a partial answer.
fn continues_at(response: &Response<Incoming>) -> Option<u64> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return None;
    }
    let range = header_text(response, header::CONTENT_RANGE);
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

fn length_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

fn remove_file(path: &Path) {
    // What cannot be removed fails again where it is written or verified.
    let _ = std::fs::remove_file(path);
}

async fn verify(path: &Path, digest: &str) -> Result<()> {
    let path = path.to_path_buf();
    let found = base::task::spawn_blocking(move || digest_of(&path))
        .await
        .unwrap_or_else(|_| Err(std::io::Error::other("hashing panicked")))
        .map_err(|err| failed("read blob", err))?;
    if found != digest {
        return Err(refused(format!("blob {digest} has digest {found}")));
    }
    Ok(())
}

async fn next(response: &mut Response<Incoming>, idle: Duration) -> Result<Option<Bytes>> {
    loop {
        let frame = tokio::time::timeout(idle, response.body_mut().frame())
            .await
            .map_err(|_| refused("the registry has stopped sending"))?;
        match frame {
            None => return Ok(None),
            Some(Err(err)) => {
                return Err(refused(format!("the registry broke off: {err}")));
            }
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A document, which is short: a registry that sends it by the byte is given up.
async fn body(mut response: Response<Incoming>, bytes_max: u64, idle: Duration) -> Result<Vec<u8>> {
    let whole = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = next(&mut response, idle).await? {
            if (bytes.len() + chunk.len()) as u64 > bytes_max {
                let text = format!("the registry's answer is longer than {bytes_max} bytes");
                return Err(refused(text));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    tokio::time::timeout(idle * DOCUMENT_SILENCES, whole)
        .await
        .unwrap_or_else(|_| Err(refused("the registry takes too long to send a document")))
}

/// The registry's own words, where it has some.
async fn refusal(url: &Url, response: Response<Incoming>, idle: Duration) -> Error {
    #[derive(Deserialize)]
    struct Words {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    #[derive(Deserialize)]
    struct Refusal {
        errors: Vec<Words>,
    }
    let status = response.status();
    let bytes = body(response, DOCUMENT_BYTES_MAX, idle).await.unwrap_or_default();
    let said = match serde_json::from_slice::<Refusal>(&bytes) {
        Ok(refusal) => refusal
            .errors
            .iter()
            .map(|e| format!("{}: {}", e.code, e.message))
            .collect::<Vec<_>>()
            .join("; "),
        Err(_) => {
            String::from_utf8_lossy(&bytes[..bytes.len().min(WORDS_BYTES_MAX)]).trim().to_string()
        }
    };
    let what = if status == StatusCode::NOT_FOUND { ": not found" } else { "" };
    refused(format!(
        "unexpected status from GET request to {}://{}{}: {status}{what}: {said}",
        url.scheme, url.authority, url.path
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_to_the_registry_and_not_in_the_clear() {
        let endpoint = Endpoint {
            scheme: "https".into(),
            authority: "registry.example.com".into(),
            base: "/v2".into(),
            repository: "a".into(),
            mirrors: None,
        };
        for (url, want) in [
            ("https://registry.example.com/v2/a/blobs/x", true),
            ("https://registry.example.com", true),
            ("http://registry.example.com/v2/a/blobs/x", false),
            ("https://registry.example.com:444/", false),
            ("https://registry.example.com.evil.example/", false),
            ("https://registry.example.com@evil.example/", false),
            ("https://evil.example/registry.example.com", false),
        ] {
            assert_eq!(Url::parse(url).is_some_and(|url| url.is_at(&endpoint)), want, "{url}");
        }
    }
}
