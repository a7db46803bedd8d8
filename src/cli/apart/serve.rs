//! `/metrics`, health, `/configz`, `/statusz` and `/flagz` of a component in a process of its
//! own, over TLS. Who asks, and may they, is the API server's to say: it is asked whose a token
//! is and what somebody may, and tells which authorities vouch for clients.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::drain::Drain;
use base::metrics::Format;
use client::election::Watch;
use client::{Shared, zpages};
use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::info;

use super::auth::{Auth, Chain};
use super::flags::ServingFlags;
use super::health::{self, ROOTS};
use super::listen::{self, Answer, PLAIN, text};
use super::{Reached, client_of, load};
use crate::{Error, Result, version};

pub type IsSynced = Box<dyn Fn() -> bool + Send + Sync>;
/// What a component has to know before it is ready, by upstream's name.
pub type Synced = Option<(&'static str, IsSynced)>;

/// Metrics beside the usual ones.
pub type Metrics = Box<dyn Fn(Format) -> String + Send + Sync>;

/// What is told of the component.
pub struct Page {
    /// What it calls itself.
    pub name: &'static str,
    /// The flags that it was given, and those with a value of their own.
    pub flags: Vec<(String, String)>,
    /// How it is configured, by the name of that configuration.
    pub config: (&'static str, Value),
    /// None where it acts without an election.
    pub election: Option<Watch>,
    /// What runs in it while it acts: with the first that falls it ends.
    pub parts: Vec<&'static str>,
    pub synced: Synced,
    /// At `/metrics/resources`: what pods ask for, where it knows.
    pub resources: Option<Metrics>,
}

struct Server {
    page: Page,
    auth: Auth,
    drain: Drain,
}

/// Listens, and serves until the drain begins.
///
/// # Errors
/// A port that is taken, and files that cannot be read.
pub async fn start(
    flags: &ServingFlags,
    kubeconfig: &Path,
    agent: &str,
    port: u16,
    page: Page,
    drain: &Drain,
) -> Result<Option<JoinHandle<()>>> {
    let port = flags.secure_port.unwrap_or(port);
    if port == 0 {
        return Ok(None);
    }
    let address = SocketAddr::from((flags.bind_address, port));
    let listener = TcpListener::bind(address).await.map_err(|err| {
        Error::failed(format!("listen on {address}"), err)
            .with_fix("another process has the port; choose one with --secure-port, or none with 0")
    })?;
    let client_of = |given: &Option<PathBuf>| -> Result<_> {
        let endpoint = load(given.as_deref().unwrap_or(kubeconfig))?;
        // Reviews have no other form everywhere.
        client_of(&endpoint, agent, &Reached::in_json())
    };
    let authentication = client_of(&flags.authentication_kubeconfig)?;
    let shared = Shared::new(authentication, drain.clone());
    let clients = match &flags.client_ca_file {
        Some(path) => std::fs::read(path)
            .map_err(|err| Error::failed(format!("read {}", path.display()), err))?,
        None => Vec::new(),
    };
    let authorization = client_of(&flags.authorization_kubeconfig)?;
    let auth = Auth::new(&shared, authorization, clients, flags.into());
    let server = Arc::new(Server { page, auth, drain: drain.clone() });
    info!(%address, "metrics and health are served");
    let answers: listen::Answers = Arc::new(move |chain, request| {
        let server = server.clone();
        Box::pin(async move { server.answer(chain, request).await })
    });
    let tls = certificate(flags)?;
    Ok(Some(base::task::spawn(listen::serve(listener, tls, drain.clone(), answers))))
}

/// The one given, or one of this process' own making.
fn certificate(flags: &ServingFlags) -> Result<rustls::ServerConfig> {
    let failed = |err: pki::Error| Error::failed("prepare the serving certificate", err);
    let read = |path: &Path| {
        std::fs::read(path).map_err(|err| Error::failed(format!("read {}", path.display()), err))
    };
    let (cert, key) = match (&flags.tls_cert_file, &flags.tls_private_key_file) {
        (Some(cert), Some(key)) => (read(cert)?, read(key)?),
        _ => {
            let host = crate::host::name();
            let own = pki::authority::Authority::create(&format!("{host}-ca")).map_err(failed)?;
            let leaf = pki::Leaf {
                common_name: host.clone(),
                dns_names: vec![host, "localhost".into()],
                addresses: vec![std::net::Ipv4Addr::LOCALHOST.into(), flags.bind_address],
                server: true,
                ..pki::Leaf::default()
            };
            let issued = own.issue(&leaf).map_err(failed)?;
            (issued.cert_pem.into_bytes(), issued.key_pem.into_bytes())
        }
    };
    pki::tls::open_server_config(&cert, &key, b"").map_err(failed)
}

impl Server {
    async fn answer(&self, chain: Arc<Chain>, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let verb = request.method().as_str().to_lowercase();
        let asked = json!({"nonResourceAttributes": {"path": path, "verb": verb}});
        if let Err(denied) = self.auth.check(&chain, request.headers(), path, &asked).await {
            return listen::refuse(denied);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "Method Not Allowed\n");
        }
        let path = path.trim_start_matches('/');
        let (root, one) = path.split_once('/').map_or((path, None), |(r, one)| (r, Some(one)));
        match (root, one) {
            ("metrics", None) => {
                let format = format_of(&request);
                text(StatusCode::OK, format.content_type(), base::metrics::render(format))
            }
            ("metrics", Some("slis")) => {
                let format = format_of(&request);
                let all = ROOTS.into_iter().map(|root| (root, self.checks(root)));
                text(StatusCode::OK, format.content_type(), health::indicators(all, format))
            }
            ("metrics", Some("resources")) if self.page.resources.is_some() => {
                let format = format_of(&request);
                let resources = self.page.resources.as_ref().map(|it| it(format));
                text(StatusCode::OK, format.content_type(), resources.unwrap_or_default())
            }
            ("statusz", None) => zpage(&request, "Statusz", |form| {
                let (version, paths) = (version::git_version(), self.paths());
                zpages::statusz(self.page.name, &version, &paths, form, base::time::now())
            }),
            ("flagz", None) => zpage(&request, "Flagz", |form| {
                zpages::flagz(self.page.name, self.page.flags.iter().cloned(), form)
            }),
            ("configz", None) => {
                let (name, config) = &self.page.config;
                let shown = serde_json::json!({ *name: config }).to_string();
                text(StatusCode::OK, "application/json", shown)
            }
            ("healthz" | "livez" | "readyz", one) => {
                let checks = self.checks(root);
                health::answer(root, one, request.uri().query().unwrap_or_default(), &checks)
            }
            _ => text(StatusCode::NOT_FOUND, PLAIN, "404 page not found\n"),
        }
    }

    fn paths(&self) -> Vec<&'static str> {
        let mut paths = vec!["/configz", "/flagz", "/healthz", "/livez", "/metrics"];
        paths.push("/metrics/slis");
        paths.extend(self.page.resources.as_ref().map(|_| "/metrics/resources"));
        paths.extend(["/readyz", "/statusz"]);
        paths
    }

    /// By upstream's names; `livez` looks at nothing but that this answers.
    fn checks(&self, root: &str) -> Vec<(&'static str, bool)> {
        let mut out = Vec::new();
        if let Some(watch) = self.page.election.as_ref().filter(|_| root != "livez") {
            out.push(("leaderElection", watch.is_well()));
        }
        if root == "readyz" {
            out.push(("shutdown", !self.drain.has_begun()));
            out.extend(self.page.synced.as_ref().map(|(name, synced)| (*name, synced())));
        }
        if root == "healthz" && self.page.election.as_ref().is_none_or(Watch::leads) {
            out.extend(self.page.parts.iter().map(|name| (*name, true)));
        }
        if out.is_empty() {
            out.push(("ping", true));
        }
        out
    }
}

fn accept(request: &Request<Incoming>) -> Option<&str> {
    request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok())
}

fn format_of(request: &Request<Incoming>) -> Format {
    Format::of(accept(request))
}

fn zpage(
    request: &Request<Incoming>,
    kind: &str,
    page: impl FnOnce(zpages::Form) -> String,
) -> Answer {
    let Some(form) = zpages::Form::of(accept(request), kind) else {
        let why = "only text/plain and config.k8s.io are served\n";
        return text(StatusCode::NOT_ACCEPTABLE, PLAIN, why);
    };
    let mut answer = text(StatusCode::OK, PLAIN, page(form));
    if form != zpages::Form::Text {
        let kind = HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    answer
}
