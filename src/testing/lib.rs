//! What suites of several rooms begin with: an API server in this process, those who ask it, and
//! patience. Nothing that is shipped knows this room.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::authn::{MASTERS, User};
use api::serve::{Shared as Server, in_process};
use client::Client;
use store::backend::sqlite::Sqlite;
use tokio_rustls::TlsAcceptor;

/// What anything may take that a suite waits for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// Groups of the controllers' accounts.
const ACCOUNTS: [&str; 2] = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];

/// The key by which the server of [`config`] signs tokens.
///
/// # Panics
/// Where the folder cannot be written to.
pub fn signing_key(dir: &Path) -> String {
    pki::files::signing_key(&dir.join("key")).expect("a key is written")
}

/// What a server of a suite's own presents over TLS, with HTTP/1.1, and the PEM of the authority
/// that vouches for it.
///
/// # Panics
/// Where there is no chance to make keys of.
pub fn tls(leaf: &pki::Leaf) -> (TlsAcceptor, String) {
    let authority = pki::Authority::create("suite").expect("an authority is made");
    let issued = authority.issue(leaf).expect("a certificate is made");
    let (cert, key) = (issued.cert_pem.as_bytes(), issued.key_pem.as_bytes());
    let mut tls = pki::tls::server_config(cert, key, None).expect("the certificate is one");
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    (TlsAcceptor::from(Arc::new(tls)), authority.cert_pem)
}

/// A server's configuration, on a datastore in `dir`.
///
/// # Panics
/// Where the folder cannot be written to.
pub fn config(dir: &Path) -> api::Config {
    let store = Sqlite::open(&dir.join("db")).expect("a datastore is opened");
    api::Config::new(Arc::new(store), &signing_key(dir)).expect("the key is one")
}

/// Starts a server with what every cluster has.
///
/// # Panics
/// For a configuration that is wrong.
pub async fn serve(config: api::Config) -> Server {
    let server = api::build(config).await.expect("the configuration is right");
    let advertised = api::bootstrap::Advertised {
        address: [192, 0, 2, 1].into(),
        port: 6443,
        service: [10, 43, 0, 1].into(),
    };
    api::bootstrap::run(&server, advertised).await.expect("a new cluster takes what all have");
    server
}

/// Starts a server in which pods need no account: no controller makes any.
///
/// # Panics
/// Where the folder cannot be written to.
pub async fn serve_alone(dir: &Path) -> Server {
    let mut config = config(dir);
    config.flags.disabled_admission = vec!["ServiceAccount".into()];
    serve(config).await
}

/// Asks under a name.
pub fn user(server: &Server, name: &str, groups: &[&str]) -> Client {
    in_process::client(server, User::new(name, groups), "suite")
}

/// Asks as somebody who may do everything.
pub fn admin(server: &Server) -> Client {
    user(server, "admin", &[MASTERS])
}

/// Asks as a controller does, with the role of that name.
pub fn account(server: &Server, name: &str) -> Client {
    user(server, &format!("system:serviceaccount:kube-system:{name}"), &ACCOUNTS)
}

/// Asks until there is an answer.
///
/// # Panics
/// Where there is none in a minute.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let wait = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let answer = tokio::time::timeout(PATIENCE, wait).await;
    answer.unwrap_or_else(|_| panic!("waited too long until {what}"))
}
