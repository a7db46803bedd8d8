//! Which endpoints serve a registry, and how to speak with them: `registries.yaml`.
//!
//! Only the shape; the file is read where the configuration is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::proxies::Proxies;

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
    /// Not of the file. None are those that the environment names.
    #[serde(skip)]
    pub proxies: Option<Proxies>,
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
    /// URLs, tried in order before the registry itself. A path stands for `/v2`.
    #[serde(default, rename = "endpoint")]
    pub endpoints: Vec<String>,
    /// What repositories are called at the mirrors: regular expressions, of which the first (in
    /// the order of their letters) that matches is replaced; `$1` is its first group.
    #[serde(default, rename = "rewrite")]
    pub rewrites: Rewrites,
}

/// Regular expressions that could be read, and what takes the place of their matches.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct Rewrites(Vec<(regex::Regex, String)>);

impl TryFrom<BTreeMap<String, String>> for Rewrites {
    type Error = regex::Error;

    fn try_from(map: BTreeMap<String, String>) -> Result<Self, regex::Error> {
        let read = |(pattern, to): (String, String)| Ok((regex::Regex::new(&pattern)?, to));
        map.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }
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

/// One place to ask for a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: String,
    /// Host, and port where it is not the scheme's own.
    pub authority: String,
    /// Of its API: `/v2` but where a mirror's URL has another.
    pub base: String,
    /// The repository's name there.
    pub repository: String,
    /// The registry that it is a mirror of.
    pub mirrors: Option<String>,
}

impl Registries {
    /// Mirrors first, then the registry itself.
    pub fn endpoints(&self, domain: &str, repository: &str) -> Vec<Endpoint> {
        let own = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
        let mirror = self.mirrors.get(domain).or_else(|| self.mirrors.get("*"));
        let mut list: Vec<Endpoint> = Vec::new();
        for url in mirror.map(|m| m.endpoints.as_slice()).unwrap_or_default() {
            let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let path = path.trim_end_matches('/');
            list.push(Endpoint {
                scheme: scheme.into(),
                authority: authority.into(),
                base: if path.is_empty() { "/v2".into() } else { format!("/{path}") },
                repository: mirror
                    .map_or_else(|| repository.into(), |it| it.rewrites.of(repository)),
                mirrors: (authority != own).then(|| domain.into()),
            });
        }
        let host = own.rsplit_once(':').map_or(own, |(host, _)| host);
        // As elsewhere: the machine itself is asked without TLS.
        let plain = host == "localhost" || host.starts_with("127.") || host == "[::1]";
        let scheme = if plain { "http" } else { "https" };
        let own = Endpoint {
            scheme: scheme.into(),
            authority: own.into(),
            base: "/v2".into(),
            repository: repository.into(),
            mirrors: None,
        };
        let is_same = |it: &Endpoint| {
            (&it.authority, &it.base, &it.repository)
                == (&own.authority, &own.base, &own.repository)
        };
        if !list.iter().any(is_same) {
            list.push(own);
        }
        list
    }
}

impl Rewrites {
    fn of(&self, repository: &str) -> String {
        let found = self.0.iter().find(|(pattern, _)| pattern.is_match(repository));
        found.map_or_else(
            || repository.to_owned(),
            |(pattern, to)| pattern.replace_all(repository, to.as_str()).into_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(registries: &Registries, domain: &str, repository: &str) -> Vec<String> {
        let all = registries.endpoints(domain, repository).into_iter();
        all.map(|it| format!("{}://{}{}/{}", it.scheme, it.authority, it.base, it.repository))
            .collect()
    }

    #[test]
    fn mirrors_have_paths_and_other_names_and_come_before_the_registry() {
        let file = serde_json::json!({"mirrors": {
            "docker.io": {
                "endpoint": ["https://mirror.lan:5000", "http://cache.lan/v2/hub/", "bare.lan/"],
                "rewrite": {"^library/(.*)$": "official/$1", "^rancher/": "copies/rancher-"},
            },
            "quay.io": {"endpoint": ["https://quay.io"]},
            "*": {"endpoint": ["http://all.lan"]},
        }});
        let registries: Registries = serde_json::from_value(file).unwrap();
        assert_eq!(
            urls(&registries, "docker.io", "library/nginx"),
            [
                "https://mirror.lan:5000/v2/official/nginx",
                "http://cache.lan/v2/hub/official/nginx",
                "https://bare.lan/v2/official/nginx",
                "https://registry-1.docker.io/v2/library/nginx",
            ]
        );
        assert_eq!(
            urls(&registries, "docker.io", "rancher/k3s")[0],
            "https://mirror.lan:5000/v2/copies/rancher-k3s"
        );
        assert_eq!(urls(&registries, "quay.io", "a/b"), ["https://quay.io/v2/a/b"]);
        assert_eq!(
            urls(&registries, "127.0.0.1:5", "a"),
            ["http://all.lan/v2/a", "http://127.0.0.1:5/v2/a"]
        );
        let mirrored = |domain| registries.endpoints(domain, "a")[0].mirrors.clone();
        assert_eq!(mirrored("docker.io").as_deref(), Some("docker.io"));
        assert_eq!(mirrored("quay.io"), None);
        let bad = serde_json::json!({"mirrors": {"a": {"rewrite": {"(": ""}}}});
        let err = serde_json::from_value::<Registries>(bad).unwrap_err().to_string();
        assert!(err.contains("regex parse error"), "{err}");
    }
}
