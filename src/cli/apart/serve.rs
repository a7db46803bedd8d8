//! `/metrics`, `/healthz`, `/livez`, `/readyz` and `/configz` of a component in a process of its
//! own, over TLS. Who asks, and may they, is the API server's to say: it is asked whose a token
//! is and what somebody may, and tells which authorities vouch for clients.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::drain::Drain;
use base::metrics::Format;
use client::Shared;
use client::election::Watch;
use http::{Method, Request, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::info;

use super::auth::{Auth, Chain};
use super::flags::ServingFlags;
use super::listen::{self, Answer, PLAIN, text};
use super::{Reached, client_of, load};
use crate::{Error, Result};

pub type IsSynced = Box<dyn Fn() -> bool + Send + Sync>;
/// What a component has to know before it is ready, by upstream's name.
pub type Synced = Option<(&'static str, IsSynced)>;

/// What is told of the component.
pub struct Page {
    /// How it is configured, by the name of that configuration.
    pub config: (&'static str, Value),
    /// None where it acts without an election.
    pub election: Option<Watch>,
    pub synced: Synced,
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
    let allowed = flags.authorization_always_allow_paths.clone();
    let authorization = client_of(&flags.authorization_kubeconfig)?;
    let auth = Auth::new(&shared, authorization, clients, allowed);
    let server = Arc::new(Server { page, auth, drain: drain.clone() });
    info!(%address, "metrics and health are served");
    let answers: listen::Answers = Arc::new(move |chain, request| {
        let server = server.clone();
        Box::pin(async move { server.answer(chain, request).await })
    });
    let tls = certificate(flags)?;
    Ok(Some(tokio::spawn(listen::serve(listener, tls, drain.clone(), answers))))
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
                let accept = request.headers().get(header::ACCEPT);
                let format = Format::of(accept.and_then(|accept| accept.to_str().ok()));
                text(StatusCode::OK, format.content_type(), base::metrics::render(format))
            }
            ("configz", None) => {
                let (name, config) = &self.page.config;
                let shown = serde_json::json!({ *name: config }).to_string();
                text(StatusCode::OK, "application/json", shown)
            }
            ("healthz" | "livez" | "readyz", one) => {
                let checks = self.checks(root);
                health(root, one, request.uri().query().unwrap_or_default(), &checks)
            }
            _ => text(StatusCode::NOT_FOUND, PLAIN, "404 page not found\n"),
        }
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
        if out.is_empty() {
            out.push(("ping", true));
        }
        out
    }
}

/// The answer to a health check, as k8s.io/apiserver words it.
fn health(root: &str, one: Option<&str>, query: &str, checks: &[(&'static str, bool)]) -> Answer {
    let failed = StatusCode::INTERNAL_SERVER_ERROR;
    if let Some(one) = one.filter(|one| !one.is_empty()) {
        return match checks.iter().find(|(name, _)| *name == one) {
            None => text(StatusCode::NOT_FOUND, PLAIN, "404 page not found\n"),
            Some((_, true)) => text(StatusCode::OK, PLAIN, "ok"),
            Some((_, false)) => {
                text(failed, PLAIN, format!("internal server error: {one}: failed\n"))
            }
        };
    }
    let pairs = || query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let excluded = |name: &str| pairs().any(|pair| pair == ("exclude", name));
    let mut lines = String::new();
    let mut good = true;
    for (name, passes) in checks {
        if excluded(name) {
            lines.push_str(&format!("[+]{name} excluded: ok\n"));
        } else if *passes {
            lines.push_str(&format!("[+]{name} ok\n"));
        } else {
            good = false;
            lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    match (good, pairs().any(|(name, _)| name == "verbose")) {
        (true, false) => text(StatusCode::OK, PLAIN, "ok"),
        (true, true) => text(StatusCode::OK, PLAIN, format!("{lines}{root} check passed\n")),
        (false, _) => text(failed, PLAIN, format!("{lines}{root} check failed\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn health_is_told_in_upstreams_words() {
        let said = async |root: &str, one: Option<&str>, query: &str, synced: bool| {
            let answer = health(root, one, query, &[("leaderElection", true), ("synced", synced)]);
            let status = answer.status().as_u16();
            let body = http_body_util::BodyExt::collect(answer.into_body()).await;
            let bytes = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            (status, String::from_utf8(bytes.to_vec()).unwrap())
        };
        for (one, query, synced, want) in [
            (None, "", true, (200, "ok")),
            (
                None,
                "verbose",
                true,
                (200, "[+]leaderElection ok\n[+]synced ok\nreadyz check passed\n"),
            ),
            (
                None,
                "",
                false,
                (
                    500,
                    "[+]leaderElection ok\n[-]synced failed: reason withheld\nreadyz check \
                     failed\n",
                ),
            ),
            (None, "exclude=synced", false, (200, "ok")),
            (Some("synced"), "", true, (200, "ok")),
            (Some("synced"), "", false, (500, "internal server error: synced: failed\n")),
            (Some("nothing"), "", true, (404, "404 page not found\n")),
        ] {
            let (status, text) = said("readyz", one, query, synced).await;
            assert_eq!((status, text.as_str()), want, "{one:?} {query}");
        }
    }
}
