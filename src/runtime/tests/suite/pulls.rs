//! What registries demand and how they misbehave: tokens, passwords, private authorities,
//! being busy, wrong content, silence.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::world::{busybox_layer, oci_layout};
use runtime::cri::{AuthConfig, Error, ErrorKind, ImageService};
use runtime::images::{HostAuth, HostConfig, HostTls, Images, Patience, Registries};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

#[derive(Clone)]
pub struct Asked {
    pub path: String,
    pub authorization: String,
    pub range: String,
    pub body: String,
}

pub enum Reply {
    /// Status, further headers, body.
    Whole(u16, String, Vec<u8>),
    /// Status, further headers, the length announced, and the part of it that comes before
    /// the connection breaks off.
    Cut(u16, String, usize, Vec<u8>),
    /// The announced body never ends.
    Stalls(Vec<u8>),
    /// The body comes by the byte, and whole only after a minute.
    Trickles(Vec<u8>),
    /// This, and then the other again and again.
    Endless(Vec<u8>, Vec<u8>),
}

type Handler = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

pub struct Fake {
    pub port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub fn name(&self) -> String {
        format!("127.0.0.1:{}/team/busybox:v1", self.port)
    }

    pub fn count(&self, part: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|path| path.contains(part)).count()
    }
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    handler: Handler,
    asked: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0; 1]);
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16_384 {
        stream.read_exact(&mut byte).await?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_string();
    let value = |wanted: &str| {
        head.lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.to_string())
            .unwrap_or_default()
    };
    let (authorization, range) = (value("authorization"), value("range"));
    let mut body = vec![0; value("content-length").parse().unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    let body = String::from_utf8_lossy(&body).into_owned();
    asked.lock().unwrap().push(format!("{path} {range}"));
    match handler(&Asked { path, authorization, range, body }) {
        Reply::Whole(status, headers, body) => {
            let start = format!(
                "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
                body.len()
            );
            stream.write_all(start.as_bytes()).await?;
            stream.write_all(&body).await?;
            stream.flush().await?;
            stream.shutdown().await
        }
        Reply::Cut(status, headers, length, body) => {
            let start = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n");
            stream.write_all(start.as_bytes()).await?;
            stream.write_all(&body).await?;
            stream.flush().await?;
            stream.shutdown().await
        }
        Reply::Stalls(body) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n").await?;
            stream.write_all(&body).await?;
            stream.flush().await?;
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(())
        }
        Reply::Trickles(body) => {
            let start = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(start.as_bytes()).await?;
            for byte in body.chunks(1).take(600) {
                stream.write_all(byte).await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        }
        Reply::Endless(start, more) => {
            stream.write_all(&start).await?;
            loop {
                stream.write_all(&more).await?;
            }
        }
    }
}

/// `handler` gets the port that it is served at.
pub async fn serve(
    tls: Option<tokio_rustls::TlsAcceptor>,
    handler: impl Fn(u16, &Asked) -> Reply + Send + Sync + 'static,
) -> Fake {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (handler, noted): (Handler, _) =
        (Arc::new(move |asked| handler(port, asked)), asked.clone());
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (handler, noted, tls) = (handler.clone(), noted.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => speak(stream, handler, noted).await,
                        Err(err) => Err(err),
                    },
                    None => speak(stream, handler, noted).await,
                }
            });
        }
    });
    Fake { port, asked, task }
}

/// Manifests and blobs of one image by path.
pub fn content() -> BTreeMap<String, Vec<u8>> {
    let mut content = BTreeMap::new();
    for (name, bytes) in oci_layout(&[busybox_layer()], "x:1") {
        let Some(digits) = name.strip_prefix("blobs/sha256/") else { continue };
        if bytes.starts_with(b"{\"schemaVersion") {
            content.insert("/v2/team/busybox/manifests/v1".to_string(), bytes.clone());
            content.insert(format!("/v2/team/busybox/manifests/sha256:{digits}"), bytes.clone());
        }
        content.insert(format!("/v2/team/busybox/blobs/sha256:{digits}"), bytes);
    }
    content
}

pub fn ok(content: &BTreeMap<String, Vec<u8>>, asked: &Asked) -> Reply {
    match content.get(&asked.path) {
        Some(bytes) => Reply::Whole(200, String::new(), bytes.clone()),
        None => Reply::Whole(404, String::new(), Vec::new()),
    }
}

pub fn quick() -> Registries {
    let patience = Patience { idle: Duration::from_millis(500), retry: Duration::from_millis(5) };
    Registries { patience, ..Registries::default() }
}

pub async fn pull(registries: Registries, name: &str, auth: &[AuthConfig]) -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let images = Images::open(&dir.path().join("images"), registries).await.unwrap();
    let outcome = images.pull_image(name, auth).await;
    let present = images.image_status(name).await.unwrap().is_some();
    assert_eq!(present, outcome.is_ok());
    let left = std::fs::read_dir(dir.path().join("images/tmp")).unwrap().count();
    assert_eq!(left, 0, "nothing of a pull stays");
    outcome.map(drop)
}

pub fn user(username: &str, password: &str) -> AuthConfig {
    AuthConfig { username: username.into(), password: password.into(), ..AuthConfig::default() }
}

/// `me:secret`
pub const BASIC: &str = "Basic bWU6c2VjcmV0";

#[tokio::test]
async fn a_token_is_fetched_with_the_password_and_used() {
    let content = content();
    let fake = serve(None, move |port, asked| {
        if let Some(query) = asked.path.strip_prefix("/token?") {
            let scope = "scope=repository%3Ateam%2Fbusybox%3Apull";
            if !query.contains(scope) || !query.contains("service=fake") {
                return Reply::Whole(400, String::new(), Vec::new());
            }
            return match asked.authorization.as_str() {
                BASIC => Reply::Whole(200, String::new(), br#"{"token":"t0ken"}"#.to_vec()),
                _ => Reply::Whole(401, String::new(), br#"{"errors":[]}"#.to_vec()),
            };
        }
        if asked.authorization == "Bearer t0ken" {
            return ok(&content, asked);
        }
        let challenge = format!(
            "www-authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"fake\",\
             scope=\"repository:team/busybox:pull\"\r\n"
        );
        Reply::Whole(401, challenge, Vec::new())
    })
    .await;
    pull(quick(), &fake.name(), &[user("me", "secret")]).await.unwrap();
    assert_eq!(fake.count("/token"), 1, "the token is used again");
    // Wrong ones first: the next are tried.
    pull(quick(), &fake.name(), &[user("me", "no"), user("me", "secret")]).await.unwrap();
    let err = pull(quick(), &fake.name(), &[user("me", "no")]).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::ImagePull);
    assert!(err.message.contains("failed to fetch token") && err.message.contains("401"), "{err}");
    assert!(!err.message.contains("bWU6"), "{err}");
}

#[tokio::test]
async fn a_password_of_the_pod_or_of_the_node_is_sent_when_asked_for() {
    let content = content();
    let fake = serve(None, move |_, asked| {
        if asked.authorization == BASIC {
            return ok(&content, asked);
        }
        Reply::Whole(401, "www-authenticate: Basic realm=\"x\"\r\n".into(), Vec::new())
    })
    .await;
    pull(quick(), &fake.name(), &[user("me", "secret")]).await.unwrap();
    let mut node = quick();
    let auth = HostAuth { username: "me".into(), password: "secret".into(), ..HostAuth::default() };
    let host = HostConfig { auth: Some(auth), tls: None };
    node.configs.insert(format!("127.0.0.1:{}", fake.port), host);
    pull(node, &fake.name(), &[]).await.unwrap();
    let err = pull(quick(), &fake.name(), &[]).await.unwrap_err();
    assert!(err.message.contains("401"), "{err}");
}

pub fn authority(dir: &Path) -> tokio_rustls::TlsAcceptor {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).unwrap();
    std::fs::write(dir.join("ca.pem"), certificate.pem()).unwrap();
    let issuer = rcgen::Issuer::new(parameters, key);
    let own = rcgen::KeyPair::generate().unwrap();
    let signed = rcgen::CertificateParams::new(vec!["127.0.0.1".to_string()])
        .unwrap()
        .signed_by(&own, &issuer)
        .unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.der().clone()], key)
        .unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn a_private_authority_is_trusted_for_its_host_only() {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let fake = serve(Some(authority(dir.path())), move |_, asked| ok(&content, asked)).await;
    let host = format!("127.0.0.1:{}", fake.port);
    let with = |tls: Option<HostTls>| {
        let mut registries = quick();
        let endpoints = vec![format!("https://{host}")];
        let mirror = runtime::images::Mirror { endpoints, ..Default::default() };
        registries.mirrors.insert(host.clone(), mirror);
        registries.configs.insert(host.clone(), HostConfig { auth: None, tls });
        registries
    };
    let ca_file = Some(dir.path().join("ca.pem"));
    let trusting = HostTls { ca_file, ..HostTls::default() };
    pull(with(Some(trusting)), &fake.name(), &[]).await.unwrap();
    let skipping = HostTls { insecure_skip_verify: true, ..HostTls::default() };
    pull(with(Some(skipping)), &fake.name(), &[]).await.unwrap();
    let err = pull(with(None), &fake.name(), &[]).await.unwrap_err();
    assert!(err.message.contains("certificate"), "{err}");
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_but_not_for_ever() {
    for status in [429, 500, 502, 503, 504] {
        let (content, left) = (content(), Mutex::new(BTreeMap::<String, u32>::new()));
        let fake = serve(None, move |_, asked| {
            let mut left = left.lock().unwrap();
            let left = left.entry(asked.path.clone()).or_insert(2);
            if *left > 0 {
                *left -= 1;
                return Reply::Whole(status, String::new(), Vec::new());
            }
            ok(&content, asked)
        })
        .await;
        pull(quick(), &fake.name(), &[]).await.unwrap();
        assert_eq!(fake.count("/manifests/v1"), 3);
    }
    let fake = serve(None, |_, _| Reply::Whole(503, String::new(), b"closed".to_vec())).await;
    let err = pull(quick(), &fake.name(), &[]).await.unwrap_err();
    assert!(err.message.contains("503") && err.message.contains("closed"), "{err}");
    assert_eq!(fake.count("/manifests/v1"), 5);
    // What asks for a long wait is told to the caller, which has a back-off of its own.
    let fake =
        serve(None, |_, _| Reply::Whole(429, "retry-after: 3600\r\n".into(), Vec::new())).await;
    let err = pull(quick(), &fake.name(), &[]).await.unwrap_err();
    assert!(err.message.contains("429"), "{err}");
    assert_eq!(fake.count("/manifests/v1"), 1);
}

#[tokio::test]
async fn content_other_than_named_is_refused() {
    for part in ["/blobs/", "/manifests/sha256"] {
        let whole = content();
        let named = whole.keys().find(|path| path.contains("/manifests/sha256")).unwrap();
        let digest = named.rsplit_once('/').unwrap().1.to_string();
        let fake = serve(None, move |_, asked| match ok(&whole, asked) {
            Reply::Whole(200, headers, mut body) if asked.path.contains(part) => {
                let middle = body.len() / 2;
                body[middle] ^= 1;
                Reply::Whole(200, headers, body)
            }
            other => other,
        })
        .await;
        let name = format!("127.0.0.1:{}/team/busybox@{digest}", fake.port);
        let name = if part == "/blobs/" { fake.name() } else { name };
        let err = pull(quick(), &name, &[]).await.unwrap_err();
        assert_eq!(err.kind, ErrorKind::ImagePull);
        assert!(err.message.contains("has digest"), "{err}");
    }
}

#[tokio::test]
async fn a_silent_registry_is_given_up() {
    for part in ["/manifests/", "/blobs/"] {
        let content = content();
        let fake = serve(None, move |_, asked| match ok(&content, asked) {
            Reply::Whole(200, _, body) if asked.path.contains(part) => {
                Reply::Stalls(body[..body.len() / 2].to_vec())
            }
            other => other,
        })
        .await;
        let began = Instant::now();
        let err = pull(quick(), &fake.name(), &[]).await.unwrap_err();
        assert!(err.message.contains("stopped sending"), "{err}");
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}

/// Answers a blob from where it is asked for, and breaks off after `piece` bytes.
fn piece(body: &[u8], range: &str, piece: usize) -> Reply {
    let from = range.strip_prefix("bytes=").and_then(|it| it.strip_suffix('-')?.parse().ok());
    let from: usize = from.unwrap_or(0);
    let end = body.len().min(from + piece);
    let (status, headers) = match from {
        0 => (200, String::new()),
        _ => (206, format!("content-range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len())),
    };
    Reply::Cut(status, headers, body.len() - from, body[from..end].to_vec())
}

fn largest(content: &BTreeMap<String, Vec<u8>>) -> (String, usize) {
    let (path, body) = content.iter().max_by_key(|(_, body)| body.len()).unwrap();
    (path.clone(), body.len())
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_was() {
    let content = content();
    let (path, length) = largest(&content);
    let step = length / 4 + 1;
    let fake = serve(None, move |_, asked| match ok(&content, asked) {
        Reply::Whole(200, _, body) if body.len() == length => piece(&body, &asked.range, step),
        other => other,
    })
    .await;
    pull(quick(), &fake.name(), &[]).await.unwrap();
    let asked: Vec<String> =
        fake.asked.lock().unwrap().iter().filter(|it| it.starts_with(&path)).cloned().collect();
    let wanted: Vec<String> = (0..4)
        .map(|n| match n {
            0 => format!("{path} "),
            n => format!("{path} bytes={}-", n * step),
        })
        .collect();
    assert_eq!(asked, wanted);
}

#[tokio::test]
async fn half_a_blob_outlives_the_process_and_is_verified_with_the_rest() {
    for spoilt in [false, true] {
        let content = content();
        let (path, length) = largest(&content);
        let half = length / 2;
        let is_back = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let up = is_back.clone();
        let fake = serve(None, move |_, asked| match ok(&content, asked) {
            Reply::Whole(200, _, body) if body.len() == length => {
                if up.load(std::sync::atomic::Ordering::SeqCst) {
                    return piece(&body, &asked.range, length);
                }
                // Half of it, and nothing more however often it is asked for the rest.
                match asked.range.is_empty() {
                    true => piece(&body, "", half),
                    false => piece(&body, &asked.range, 0),
                }
            }
            other => other,
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("images");
        let images = Images::open(&at, quick()).await.unwrap();
        let err = images.pull_image(&fake.name(), &[]).await.unwrap_err();
        assert_eq!(err.kind, ErrorKind::ImagePull);
        let kept: Vec<_> =
            std::fs::read_dir(at.join("downloads")).unwrap().map(|it| it.unwrap()).collect();
        let kept = kept.iter().find(|it| path.ends_with(it.file_name().to_str().unwrap())).unwrap();
        assert_eq!(kept.metadata().unwrap().len(), half as u64);
        if spoilt {
            let mut bytes = std::fs::read(kept.path()).unwrap();
            bytes[0] ^= 1;
            std::fs::write(kept.path(), bytes).unwrap();
        }
        drop(images);
        is_back.store(true, std::sync::atomic::Ordering::SeqCst);
        fake.asked.lock().unwrap().clear();
        let images = Images::open(&at, quick()).await.unwrap();
        images.pull_image(&fake.name(), &[]).await.unwrap();
        let asked: Vec<String> =
            fake.asked.lock().unwrap().iter().filter(|it| it.starts_with(&path)).cloned().collect();
        let mut wanted = vec![format!("{path} bytes={half}-")];
        // What does not verify is fetched again from its beginning.
        wanted.extend(spoilt.then(|| format!("{path} ")));
        assert_eq!(asked, wanted);
        assert_eq!(std::fs::read_dir(at.join("downloads")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_registry_without_ranges_is_asked_from_the_beginning() {
    let content = content();
    let (_, length) = largest(&content);
    let tries = Mutex::new(0);
    let fake = serve(None, move |_, asked| match ok(&content, asked) {
        Reply::Whole(200, headers, body) if body.len() == length => {
            let mut tries = tries.lock().unwrap();
            *tries += 1;
            match *tries {
                1 => Reply::Cut(200, headers, length, body[..length / 2].to_vec()),
                2 if !asked.range.is_empty() => Reply::Whole(416, headers, Vec::new()),
                _ => Reply::Whole(200, headers, body),
            }
        }
        other => other,
    })
    .await;
    pull(quick(), &fake.name(), &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_a_pull_counts_on_outlive_the_image_they_came_with() {
    let base = busybox_layer();
    let old = oci_layout(std::slice::from_ref(&base), "old:1");
    let more = crate::world::tar_of(&[("etc/more", 0o644, b"x")]);
    let mut content = BTreeMap::new();
    let base_digits = {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(&base);
        digest.iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    for (name, bytes) in oci_layout(&[base, more], "x:1") {
        let Some(digits) = name.strip_prefix("blobs/sha256/") else { continue };
        if bytes.starts_with(b"{\"schemaVersion") {
            content.insert("/v2/team/busybox/manifests/v1".to_string(), bytes.clone());
        }
        content.insert(format!("/v2/team/busybox/blobs/sha256:{digits}"), bytes);
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("old.tar");
    std::fs::write(&archive, crate::world::archive(&old)).unwrap();
    let images = Arc::new(Images::open(&dir.path().join("images"), quick()).await.unwrap());
    images.import_file(&archive).await.unwrap();
    // The upper layer comes only after the old image was removed.
    let gate = Arc::new((Mutex::new(false), std::sync::Condvar::new()));
    let (asked_for, mut is_asked_for) = tokio::sync::mpsc::unbounded_channel();
    let opened = gate.clone();
    let fake = serve(None, move |_, asked| {
        let reply = ok(&content, asked);
        if let Reply::Whole(200, _, body) = &reply
            && asked.path.contains("/blobs/")
            && !body.starts_with(b"{")
        {
            asked_for.send(asked.path.clone()).unwrap();
            let is_open = gate.0.lock().unwrap();
            let _ = gate.1.wait_timeout_while(is_open, Duration::from_secs(10), |it| !*it).unwrap();
        }
        reply
    })
    .await;
    let (name, puller) = (fake.name(), images.clone());
    let pulling = tokio::spawn(async move { puller.pull_image(&name, &[]).await });
    is_asked_for.recv().await.unwrap();
    images.remove_image("old:1").await.unwrap();
    *opened.0.lock().unwrap() = true;
    opened.1.notify_all();
    let id = pulling.await.unwrap().unwrap();
    assert!(images.image_status(&id).await.unwrap().is_some());
    assert_eq!(fake.count(&base_digits), 0, "a layer that is there is not downloaded");
    let image = images.find(&id).unwrap();
    assert!(images.layers_dir().join(&image.layers[0]).join("bin/busybox").exists());
}

#[tokio::test]
async fn a_pull_tells_how_far_it_has_come() {
    let content = content();
    let (_, length) = largest(&content);
    let fake = serve(None, move |_, asked| ok(&content, asked)).await;
    let dir = tempfile::tempdir().unwrap();
    let images = Images::open(&dir.path().join("images"), quick()).await.unwrap();
    let (teller, mut told) = runtime::images::progress::Teller::channel();
    let listening = async {
        let mut seen = Vec::new();
        while told.changed().await.is_ok() {
            seen.push(told.borrow_and_update().clone());
        }
        seen
    };
    let pulling = async {
        let teller = teller;
        let outcome = images.pull(&fake.name(), &[], &teller).await;
        drop(teller);
        outcome
    };
    let (outcome, seen) = futures::join!(pulling, listening);
    outcome.unwrap();
    let last = seen.last().unwrap();
    assert_eq!(last.step, runtime::images::progress::Step::Unpacking);
    assert_eq!((last.blobs[0].bytes, last.blobs[0].bytes_done), (length as u64, length as u64));
}

#[tokio::test]
async fn a_registry_that_trickles_is_given_up() {
    for (part, word) in [("/manifests/", "takes too long"), ("/blobs/", "all but stopped sending")]
    {
        let content = content();
        let fake = serve(None, move |_, asked| match ok(&content, asked) {
            Reply::Whole(200, _, body) if asked.path.contains(part) => Reply::Trickles(body),
            other => other,
        })
        .await;
        let began = Instant::now();
        let err = pull(quick(), &fake.name(), &[]).await.unwrap_err();
        assert!(err.message.contains(word), "{err}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn answers_without_end_are_cut_off() {
    let padded = |bytes: usize| {
        let mut manifest = content().remove("/v2/team/busybox/manifests/v1").unwrap();
        manifest.resize(manifest.len() + bytes, b' ');
        manifest
    };
    let head = b"HTTP/1.1 200 OK\r\n".to_vec();
    let chunked = [&head[..], b"transfer-encoding: chunked\r\n\r\n"].concat();
    let chunk = [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat();
    type Answer = Box<dyn Fn() -> Reply + Send + Sync>;
    let answers: Vec<(Answer, &str)> = vec![
        (
            Box::new(move || Reply::Whole(200, String::new(), padded(10 << 20))),
            "longer than 8388608",
        ),
        (Box::new(move || Reply::Endless(chunked.clone(), chunk.clone())), "longer than 8388608"),
        (
            Box::new(move || Reply::Endless(head.clone(), b"x: y\r\n".to_vec())),
            "failed to do request",
        ),
        (Box::new(|| Reply::Endless(Vec::new(), b"words ".to_vec())), "failed to do request"),
        (Box::new(|| Reply::Whole(200, String::new(), vec![b'['; 4 << 20])), "malformed manifest"),
        (Box::new(|| Reply::Endless(b"HTTP/1.1 400 X\r\n\r\n".to_vec(), vec![b'z'; 4096])), "400"),
    ];
    for (answer, word) in answers {
        let fake = serve(None, move |_, _| answer()).await;
        let began = Instant::now();
        let err = pull(quick(), &fake.name(), &[]).await.unwrap_err();
        assert_eq!(err.kind, ErrorKind::ImagePull);
        assert!(err.message.contains(word), "{word} in {err}");
        assert!(err.message.len() < 2_000, "{}", err.message.len());
        assert!(began.elapsed() < Duration::from_secs(10), "{word}: {:?}", began.elapsed());
    }
    // A manifest that is long and not too long is as good as any.
    let mut content = content();
    for (_, manifest) in content.iter_mut().filter(|(path, _)| path.contains("/manifests/v1")) {
        *manifest = padded(7 << 20);
    }
    let fake = serve(None, move |_, asked| ok(&content, asked)).await;
    pull(quick(), &fake.name(), &[]).await.unwrap();
}

#[tokio::test]
async fn lengths_that_are_lies_are_found_out() {
    let change = |what: &str, to: fn(u64) -> u64| {
        let mut content = content();
        let path = "/v2/team/busybox/manifests/v1";
        let mut manifest: serde_json::Value = serde_json::from_slice(&content[path]).unwrap();
        let size = match what {
            "config" => &mut manifest["config"]["size"],
            _ => &mut manifest["layers"][0]["size"],
        };
        *size = to(size.as_u64().unwrap()).into();
        content.insert(path.to_string(), manifest.to_string().into_bytes());
        content
    };
    type Lie = fn(u64) -> u64;
    let cases: Vec<(&str, Lie, ErrorKind, &str)> = vec![
        ("layer", |size| size + 1, ErrorKind::ImagePull, "bytes"),
        ("layer", |size| size - 1, ErrorKind::ImagePull, "is longer than its"),
        ("layer", |_| 0, ErrorKind::ImagePull, "is longer than its 0 bytes"),
        ("layer", |_| 1 << 60, ErrorKind::NoSpace, "no space left on device"),
        ("config", |_| 1 << 30, ErrorKind::ImagePull, "configuration has 1073741824"),
        ("config", |size| size - 1, ErrorKind::ImagePull, "is longer than its"),
    ];
    for (what, to, kind, word) in cases {
        let content = change(what, to);
        let fake = serve(None, move |_, asked| ok(&content, asked)).await;
        let err = pull(quick(), &fake.name(), &[]).await.unwrap_err();
        assert_eq!(err.kind, kind, "{what}: {err}");
        assert!(err.message.contains(word), "{what}: {word} in {err}");
        let blobs = fake.count("/blobs/");
        assert!(blobs <= 8, "{what}: {blobs} requests");
    }
    // A part that is another one than was asked for is not put together with the rest.
    let content = content();
    let (path, length) = largest(&content);
    let tries = Mutex::new(0);
    let fake = serve(None, move |_, asked| match ok(&content, asked) {
        Reply::Whole(200, headers, body) if body.len() == length => {
            let mut tries = tries.lock().unwrap();
            *tries += 1;
            match *tries {
                1 => Reply::Cut(200, headers, length, body[..length / 2].to_vec()),
                2 => {
                    let range = format!("content-range: bytes 0-{}/{length}\r\n", length - 1);
                    Reply::Whole(206, range, body)
                }
                _ => Reply::Whole(200, headers, body),
            }
        }
        other => other,
    })
    .await;
    pull(quick(), &fake.name(), &[]).await.unwrap();
    assert_eq!(fake.count(&path), 3);
}

#[tokio::test]
async fn redirects_end_and_take_no_password_along() {
    let content = content();
    let elsewhere = serve(None, move |_, asked| {
        assert_eq!(asked.authorization, "", "a password for another");
        ok(&content, asked)
    })
    .await;
    let other = elsewhere.port;
    let fake = serve(None, move |_, asked| {
        if asked.authorization != BASIC {
            let challenge = "www-authenticate: Basic realm=\"x\"\r\n";
            return Reply::Whole(401, challenge.into(), Vec::new());
        }
        let to = format!("location: http://127.0.0.1:{other}{}\r\n", asked.path);
        Reply::Whole(307, to, Vec::new())
    })
    .await;
    pull(quick(), &fake.name(), &[user("me", "secret")]).await.unwrap();
    assert!(elsewhere.count("/blobs/") >= 2);

    // Nor does the other get any by asking for it.
    let asking = serve(None, |port, asked| {
        assert_eq!(asked.authorization, "", "a password for another");
        let challenge = format!("www-authenticate: Bearer realm=\"http://127.0.0.1:{port}/t\"\r\n");
        Reply::Whole(401, challenge, Vec::new())
    })
    .await;
    let other = asking.port;
    let fake = serve(None, move |_, asked| {
        let to = format!("location: http://127.0.0.1:{other}{}\r\n", asked.path);
        Reply::Whole(302, to, Vec::new())
    })
    .await;
    let err = pull(quick(), &fake.name(), &[user("me", "secret")]).await.unwrap_err();
    assert!(err.message.contains("401"), "{err}");

    for (to, word, most) in [
        ("/v2/team/busybox/manifests/v1", "redirects without end", 5),
        ("gopher:nowhere", "redirects to \"gopher:nowhere\"", 1),
        ("", "redirects to \"\"", 1),
        ("http://127.0.0.1:1/x", "onnection refused", 1),
    ] {
        let fake =
            serve(None, move |_, _| Reply::Whole(302, format!("location: {to}\r\n"), Vec::new()))
                .await;
        let err = pull(quick(), &fake.name(), &[]).await.unwrap_err();
        assert_eq!(err.kind, ErrorKind::ImagePull);
        assert!(err.message.contains(word), "{word} in {err}");
        assert_eq!(fake.count("/v2/"), most, "{to}");
    }
}

/// The content with other places for its layer, which the registry itself does not have.
fn with_urls(urls: &[String]) -> BTreeMap<String, Vec<u8>> {
    use sha2::{Digest, Sha256};
    let mut content = content();
    let (layer, _) = largest(&content);
    content.remove(&layer);
    let tag = "/v2/team/busybox/manifests/v1";
    let mut manifest: serde_json::Value = serde_json::from_slice(&content[tag]).unwrap();
    let layer = &mut manifest["layers"][0];
    layer["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar".into();
    layer["urls"] = serde_json::json!(urls);
    let bytes = manifest.to_string().into_bytes();
    let digest = crate::world::hex(&Sha256::digest(&bytes));
    content.insert(format!("/v2/team/busybox/manifests/sha256:{digest}"), bytes.clone());
    content.insert(tag.into(), bytes);
    content
}

#[tokio::test]
async fn a_layer_that_registries_may_not_pass_on_comes_from_where_its_manifest_says() {
    let (path, _) = largest(&content());
    let layer = content().remove(&path).unwrap();
    // It breaks off, and goes on where it was.
    let vendor = serve(None, move |_, asked| {
        assert_eq!(asked.authorization, "", "a password for another");
        match asked.path.as_str() {
            "/layer" if asked.range.is_empty() => {
                Reply::Cut(200, String::new(), layer.len(), layer[..layer.len() / 2].to_vec())
            }
            "/layer" => piece(&layer, &asked.range, layer.len()),
            "/other" => Reply::Whole(200, String::new(), vec![7; layer.len()]),
            _ => Reply::Whole(404, String::new(), Vec::new()),
        }
    })
    .await;
    let at = |path: &str| format!("http://127.0.0.1:{}{path}", vendor.port);
    let registry = async |urls: &[String]| {
        let content = with_urls(urls);
        serve(None, move |_, asked| match asked.authorization.as_str() {
            BASIC => ok(&content, asked),
            _ => {
                let challenge = "www-authenticate: Basic realm=\"x\"\r\n";
                Reply::Whole(401, challenge.into(), Vec::new())
            }
        })
        .await
    };
    let me = [user("me", "secret")];
    let urls = ["file:///etc/passwd".into(), at("/gone"), at("/layer")];
    let fake = registry(&urls).await;
    pull(quick(), &fake.name(), &me).await.unwrap();
    assert!(vendor.count("/gone") >= 1 && vendor.count("/layer") >= 2);
    // Whoever passes it on, it is verified.
    let fake = registry(&[at("/other")]).await;
    let err = pull(quick(), &fake.name(), &me).await.unwrap_err();
    assert!(err.message.contains("has digest"), "{err}");
    // Nobody has it.
    let fake = registry(&[at("/gone")]).await;
    let err = pull(quick(), &fake.name(), &me).await.unwrap_err();
    assert!(err.message.contains("404"), "{err}");
}
