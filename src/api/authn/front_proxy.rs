//! The front proxy: whoever shows a certificate of its authority says in headers for whom
//! it asks (documentation, "Authenticating Proxy").
//!
//! The headers of anybody else are never believed.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};
use serde_json::{Value, json};

use super::{Certificate, User};

/// What a front proxy must show, and where it says for whom it asks.
#[derive(Debug, Clone)]
pub struct Settings {
    /// PEM bundle of the authorities.
    pub ca_pem: String,
    /// Common names of proxies; empty lets any.
    pub allowed_names: Vec<String>,
    pub username_headers: Vec<String>,
    pub uid_headers: Vec<String>,
    pub group_headers: Vec<String>,
    pub extra_header_prefixes: Vec<String>,
}

impl Settings {
    /// Upstream's usual headers, under authorities and names.
    pub fn new(ca_pem: &str, allowed_names: &[&str]) -> Self {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            ca_pem: ca_pem.to_owned(),
            allowed_names: list(allowed_names),
            username_headers: list(&["X-Remote-User"]),
            uid_headers: list(&["X-Remote-Uid"]),
            group_headers: list(&["X-Remote-Group"]),
            extra_header_prefixes: list(&["X-Remote-Extra-"]),
        }
    }

    /// The entries of `kube-system/extension-apiserver-authentication` with which extension
    /// servers believe the same proxies.
    pub fn published(&self) -> Vec<(&'static str, String)> {
        let list = |names: &[String]| json!(names).to_string();
        let mut entries = vec![
            ("requestheader-allowed-names", list(&self.allowed_names)),
            ("requestheader-client-ca-file", self.ca_pem.clone()),
            ("requestheader-extra-headers-prefix", list(&self.extra_header_prefixes)),
            ("requestheader-group-headers", list(&self.group_headers)),
            ("requestheader-username-headers", list(&self.username_headers)),
        ];
        if !self.uid_headers.is_empty() {
            entries.push(("requestheader-uid-headers", list(&self.uid_headers)));
        }
        entries
    }
}

/// Believes the headers of front proxies.
#[derive(Debug)]
pub struct FrontProxy {
    settings: Settings,
    pub(super) authorities: pki::tls::ClientAuthorities,
    usernames: Vec<HeaderName>,
    uids: Vec<HeaderName>,
    groups: Vec<HeaderName>,
    prefixes: Vec<String>,
}

impl FrontProxy {
    /// # Errors
    /// Authorities that cannot be read, or what is no name of a header, in words.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let authorities = pki::tls::ClientAuthorities::new(settings.ca_pem.as_bytes())
            .map_err(|err| format!("requestheader-client-ca-file: {}", base::error::chain(&err)))?;
        let names = |list: &[String]| -> Result<Vec<HeaderName>, String> {
            let parse = |name: &String| {
                name.parse().map_err(|_| format!("{name:?} is no name of a header"))
            };
            list.iter().map(parse).collect()
        };
        Ok(Self {
            authorities,
            usernames: names(&settings.username_headers)?,
            uids: names(&settings.uid_headers)?,
            groups: names(&settings.group_headers)?,
            prefixes: settings.extra_header_prefixes.iter().map(|p| p.to_lowercase()).collect(),
            settings,
        })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// For whom a proxy asks: None where the certificate is no proxy's, or nobody is named.
    pub fn user(&self, certificate: &Certificate, headers: &HeaderMap) -> Option<User> {
        let name = certificate.proxy.as_ref()?;
        let allowed = &self.settings.allowed_names;
        if !allowed.is_empty() && !allowed.contains(name) {
            return None;
        }
        let all = |names: &[HeaderName]| -> Vec<String> {
            let values = names.iter().flat_map(|name| headers.get_all(name));
            values.map(text).filter(|value| !value.is_empty()).collect()
        };
        let first = |names: &[HeaderName]| all(names).into_iter().next();
        let mut user = User {
            name: first(&self.usernames)?,
            uid: first(&self.uids).unwrap_or_default(),
            groups: all(&self.groups),
            extra: BTreeMap::new(),
        };
        for (header, value) in headers {
            let key = self.prefixes.iter().find_map(|p| header.as_str().strip_prefix(p.as_str()));
            if let Some(key) = key {
                let key = crate::serve::request::decode(key, false).to_lowercase();
                user.extra.entry(key).or_default().push(text(value));
            }
        }
        Some(user)
    }

    /// Takes the identity headers off a request, so that nobody further on believes them.
    pub fn strip(&self, headers: &mut HeaderMap) {
        let extra: Vec<HeaderName> = headers
            .keys()
            .filter(|name| self.prefixes.iter().any(|prefix| name.as_str().starts_with(prefix)))
            .cloned()
            .collect();
        for name in self.usernames.iter().chain(&self.uids).chain(&self.groups).chain(&extra) {
            headers.remove(name);
        }
    }
}

fn text(value: &http::HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// The object that tells extension servers whom to believe.
pub fn config_map(client_ca_pem: &str, proxy: Option<&Settings>) -> Value {
    let mut data = json!({});
    if !client_ca_pem.is_empty() {
        data["client-ca-file"] = client_ca_pem.into();
    }
    for (key, value) in proxy.map(Settings::published).unwrap_or_default() {
        data[key] = value.into();
    }
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": data,
    })
}
