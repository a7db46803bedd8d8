//! Reads the parts of a kubeconfig that reach a server: cluster, user, context.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read kubeconfig {0}")]
    Read(String, #[source] std::io::Error),
    #[error("parse kubeconfig {0}: {1}")]
    Parse(String, String),
    #[error("kubeconfig {0}: {1}")]
    Incomplete(String, String),
}

/// What it takes to talk to one server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    pub server: String,
    pub ca_pem: Option<Vec<u8>>,
    pub cert_pem: Option<Vec<u8>>,
    pub key_pem: Option<Vec<u8>>,
    pub token: Option<String>,
    pub insecure: bool,
    /// What the server's certificate is for; None: the host of `server`.
    pub server_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    #[serde(rename = "current-context")]
    current_context: String,
    clusters: Vec<Named<Cluster>>,
    users: Vec<Named<User>>,
    contexts: Vec<Named<Context>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "user", alias = "context")]
    value: T,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: Option<String>,
    certificate_authority: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
    client_certificate: Option<String>,
    client_key: Option<String>,
    token: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

/// Reads the current context of the kubeconfig at `path`.
pub fn load(path: &Path) -> Result<Endpoint, Error> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|err| Error::Read(shown.clone(), err))?;
    let file: File =
        codec::yaml::read::typed(&text).map_err(|why| Error::Parse(shown.clone(), why))?;
    let missing = |what: String| Error::Incomplete(shown.clone(), what);
    let context = find(&file.contexts, &file.current_context)
        .ok_or_else(|| missing(format!("no context {:?}", file.current_context)))?;
    let cluster = find(&file.clusters, &context.cluster)
        .ok_or_else(|| missing(format!("no cluster {:?}", context.cluster)))?;
    // Who names no user shows no credentials.
    let nobody = User::default();
    let user = match context.user.as_str() {
        "" => &nobody,
        name => find(&file.users, name).ok_or_else(|| missing(format!("no user {name:?}")))?,
    };
    // Files lie where the kubeconfig does, unless they say otherwise.
    let folder = path.parent().unwrap_or(Path::new("."));
    let pem = |data: &Option<String>, file: &Option<String>| -> Result<Option<Vec<u8>>, Error> {
        match (data, file) {
            (Some(data), _) => STANDARD
                .decode(data)
                .map(Some)
                .map_err(|err| Error::Incomplete(shown.clone(), err.to_string())),
            (None, Some(file)) => std::fs::read(folder.join(file))
                .map(Some)
                .map_err(|err| Error::Read(file.clone(), err)),
            (None, None) => Ok(None),
        }
    };
    Ok(Endpoint {
        server: cluster.server.clone(),
        ca_pem: pem(&cluster.certificate_authority_data, &cluster.certificate_authority)?,
        cert_pem: pem(&user.client_certificate_data, &user.client_certificate)?,
        key_pem: pem(&user.client_key_data, &user.client_key)?,
        token: user.token.clone(),
        insecure: cluster.insecure_skip_tls_verify,
        server_name: cluster.tls_server_name.clone().filter(|name| !name.is_empty()),
    })
}

fn find<'a, T>(items: &'a [Named<T>], name: &str) -> Option<&'a T> {
    items.iter().find(|item| item.name == name).map(|item| &item.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_context_names_server_and_credentials() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(
            &path,
            "apiVersion: v1\nkind: Config\ncurrent-context: b\ncontexts:\n- name: b\n  context: {cluster: c, user: u}\nclusters:\n- name: c\n  cluster: {server: 'https://127.0.0.1:6443', certificate-authority-data: YWJj}\nusers:\n- name: u\n  user: {token: secret}\n",
        )
        .unwrap();
        let endpoint = load(&path).unwrap();
        assert_eq!(endpoint.server, "https://127.0.0.1:6443");
        assert_eq!(endpoint.ca_pem.as_deref(), Some(b"abc".as_slice()));
        assert_eq!(endpoint.token.as_deref(), Some("secret"));
    }
}
