//! Which endpoints serve a registry, and how to speak with them: `registries.yaml`.
//!
//! Only the shape; the file is read where the configuration is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registries {
    /// By registry; `*` is for those that have no entry.
    #[serde(default)]
    pub mirrors: BTreeMap<String, Mirror>,
    /// By host and port of an endpoint.
    #[serde(default)]
    pub configs: BTreeMap<String, HostConfig>,
    /// Not of the file.
    #[serde(skip)]
    pub patience: Patience,
}

/// How long a registry is waited for.
#[derive(Debug, Clone)]
pub struct Patience {
    /// One that sends nothing for this long is given up.
    pub idle: Duration,
    /// Before the first repetition of a request that the registry was too busy for;
    /// twice as long before each later one.
    pub retry: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { idle: Duration::from_secs(60), retry: Duration::from_millis(500) }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// URLs, tried in order before the registry itself.
    #[serde(default, rename = "endpoint")]
    pub endpoints: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    pub auth: Option<HostAuth>,
    pub tls: Option<HostTls>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostAuth {
    pub username: String,
    pub password: String,
    pub auth: String,
    pub identity_token: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostTls {
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub insecure_skip_verify: bool,
}

/// One place to ask: `http` or `https`, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub scheme: String,
    pub authority: String,
}

impl Registries {
    /// Mirrors first, then the registry itself.
    pub fn endpoints(&self, domain: &str) -> Vec<Endpoint> {
        let mirror = self.mirrors.get(domain).or_else(|| self.mirrors.get("*"));
        let mut list: Vec<Endpoint> = Vec::new();
        for url in mirror.map(|m| m.endpoints.as_slice()).unwrap_or_default() {
            let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
            let authority = rest.split('/').next().unwrap_or(rest);
            list.push(Endpoint { scheme: scheme.into(), authority: authority.into() });
        }
        let own = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
        let host = own.rsplit_once(':').map_or(own, |(host, _)| host);
        // As elsewhere: the machine itself is asked without TLS.
        let plain = host == "localhost" || host.starts_with("127.") || host == "[::1]";
        let scheme = if plain { "http" } else { "https" };
        let own = Endpoint { scheme: scheme.into(), authority: own.into() };
        if !list.iter().any(|e| e.authority == own.authority) {
            list.push(own);
        }
        list
    }
}
