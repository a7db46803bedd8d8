//! The flags of upstream's API server that say who is believed and who may do what
//! (`--kube-apiserver-arg NAME=VALUE`): read one by one, then made into settings.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use api::authn::configuration::{self, OidcFlags};
use api::authn::jwt::Issuer;
use api::authn::{Anonymous, front_proxy, tokens, webhook};
use api::authz::configuration::Flags as AuthorizationFlags;

use super::credentials::{Credentials, FRONT_PROXY};

/// The flags known here.
pub const NAMES: [&str; 36] = [
    "anonymous-auth",
    "api-audiences",
    "authentication-config",
    "authentication-token-webhook-cache-ttl",
    "authentication-token-webhook-config-file",
    "authentication-token-webhook-version",
    "authorization-config",
    "authorization-mode",
    "authorization-policy-file",
    "authorization-webhook-cache-authorized-ttl",
    "authorization-webhook-cache-unauthorized-ttl",
    "authorization-webhook-config-file",
    "authorization-webhook-version",
    "client-ca-file",
    "enable-bootstrap-token-auth",
    "oidc-ca-file",
    "oidc-client-id",
    "oidc-groups-claim",
    "oidc-groups-prefix",
    "oidc-issuer-url",
    "oidc-required-claim",
    "oidc-signing-algs",
    "oidc-username-claim",
    "oidc-username-prefix",
    "requestheader-allowed-names",
    "requestheader-client-ca-file",
    "requestheader-extra-headers-prefix",
    "requestheader-group-headers",
    "requestheader-uid-headers",
    "requestheader-username-headers",
    "service-account-extend-token-expiration",
    "service-account-issuer",
    "service-account-key-file",
    "service-account-max-token-expiration",
    "service-account-signing-key-file",
    "token-auth-file",
];

/// What the flags said.
#[derive(Debug, Clone, Default)]
pub struct IdentityFlags {
    token_file: Option<PathBuf>,
    client_ca_file: Option<PathBuf>,
    anonymous: Option<bool>,
    bootstrap_tokens: bool,
    authentication_config: Option<PathBuf>,
    accounts: AccountFlags,
    oidc: Option<OidcFlags>,
    oidc_ca_file: Option<PathBuf>,
    webhook: WebhookFlags,
    front_proxy: FrontProxyFlags,
    authorization: AuthorizationFlags,
}

#[derive(Debug, Clone, Default)]
struct AccountFlags {
    issuers: Vec<String>,
    audiences: Vec<String>,
    key_files: Vec<PathBuf>,
    signing_key_file: Option<PathBuf>,
    lifetime_max: Option<Duration>,
    extends: Option<bool>,
}

#[derive(Debug, Clone, Default)]
struct WebhookFlags {
    config_file: Option<PathBuf>,
    version: Option<String>,
    cache_ttl: Option<Duration>,
}

#[derive(Debug, Clone, Default)]
struct FrontProxyFlags {
    ca_file: Option<PathBuf>,
    allowed_names: Option<Vec<String>>,
    username_headers: Option<Vec<String>>,
    uid_headers: Option<Vec<String>>,
    group_headers: Option<Vec<String>>,
    extra_header_prefixes: Option<Vec<String>>,
}

/// What a server's identities are made of.
pub struct Identity {
    pub authentication: api::authn::Settings,
    pub authorization: Vec<api::authz::Mode>,
}

fn read(flag: &str, path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|err| format!("{flag}: read {}: {err}", path.display()))
}

fn list(value: &str) -> impl Iterator<Item = String> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned)
}

fn flag(value: &str) -> Result<bool, String> {
    // A name alone switches on.
    if value.is_empty() {
        return Ok(true);
    }
    bool::from_str(&value.to_lowercase()).map_err(|_| format!("{value:?} is not true or false"))
}

fn time(value: &str) -> Result<Duration, String> {
    base::time::parse_duration(value).ok_or_else(|| format!("{value:?} is no length of time"))
}

impl IdentityFlags {
    /// Takes a flag; false if it is none of these.
    ///
    /// # Errors
    /// What is wrong with its value.
    pub fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        if let Some(name) = name.strip_prefix("oidc-") {
            return self.take_oidc(name, value);
        }
        if let Some(name) = name.strip_prefix("requestheader-") {
            return Ok(self.front_proxy.take(name, value));
        }
        if let Some(name) = name.strip_prefix("authorization-") {
            return take_authorization(&mut self.authorization, name, value);
        }
        let accounts = &mut self.accounts;
        match name {
            "token-auth-file" => self.token_file = Some(value.into()),
            "client-ca-file" => self.client_ca_file = Some(value.into()),
            "anonymous-auth" => self.anonymous = Some(flag(value)?),
            "enable-bootstrap-token-auth" => self.bootstrap_tokens = flag(value)?,
            "authentication-config" => self.authentication_config = Some(value.into()),
            "authentication-token-webhook-config-file" => {
                self.webhook.config_file = Some(value.into());
            }
            "authentication-token-webhook-version" => self.webhook.version = Some(value.into()),
            "authentication-token-webhook-cache-ttl" => {
                self.webhook.cache_ttl = Some(time(value)?);
            }
            "api-audiences" => accounts.audiences.extend(list(value)),
            "service-account-issuer" => accounts.issuers.push(value.into()),
            "service-account-key-file" => accounts.key_files.push(value.into()),
            "service-account-signing-key-file" => accounts.signing_key_file = Some(value.into()),
            "service-account-extend-token-expiration" => accounts.extends = Some(flag(value)?),
            "service-account-max-token-expiration" => accounts.lifetime_max = lifetime(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take_oidc(&mut self, name: &str, value: &str) -> Result<bool, String> {
        if !NAMES.contains(&format!("oidc-{name}").as_str()) {
            return Ok(false);
        }
        let oidc = self.oidc.get_or_insert_default();
        match name {
            "issuer-url" => oidc.issuer_url = value.into(),
            "client-id" => oidc.client_id = value.into(),
            "username-claim" => oidc.username_claim = value.into(),
            "username-prefix" => oidc.username_prefix = value.into(),
            "groups-claim" => oidc.groups_claim = value.into(),
            "groups-prefix" => oidc.groups_prefix = value.into(),
            "required-claim" => oidc.required_claims.extend(list(value)),
            "signing-algs" => oidc.signing_algorithms.extend(list(value)),
            _ => self.oidc_ca_file = Some(value.into()),
        }
        Ok(true)
    }

    pub fn authentication_config(&self) -> Option<&PathBuf> {
        self.authentication_config.as_ref()
    }

    pub fn authorization_config(&self) -> Option<&PathBuf> {
        self.authorization.config_file.as_ref()
    }

    /// Who decides, in order.
    ///
    /// # Errors
    /// What is wrong with the flags or the files they name.
    pub fn modes(&self) -> Result<Vec<api::authz::Mode>, String> {
        self.authorization.modes()
    }

    /// Others whose tokens are believed, and what the same file says of anonymous requests.
    ///
    /// # Errors
    /// What is wrong with the flags or the files they name.
    pub fn issuers(
        &self,
        own_issuers: &[String],
    ) -> Result<(Vec<Issuer>, Option<Anonymous>), String> {
        let (mut issuers, mut anonymous) = (Vec::new(), None);
        if let Some(path) = &self.authentication_config {
            if self.oidc.is_some() {
                return Err(
                    "authentication-config file and oidc-* flags are mutually exclusive".into()
                );
            }
            let text = read("authentication-config", path)?;
            (issuers, anonymous) = configuration::read(&text, own_issuers)
                .map_err(|why| format!("authentication-config {}: {why}", path.display()))?;
        }
        if let Some(mut oidc) = self.oidc.clone() {
            oidc.ca_pem =
                self.oidc_ca_file.as_ref().map(|path| read("oidc-ca-file", path)).transpose()?;
            issuers.push(oidc.issuer(own_issuers)?);
        }
        Ok((issuers, anonymous))
    }

    /// The settings of a server that has these credentials and is called `own_issuer`.
    ///
    /// # Errors
    /// What is wrong with the flags together, or with the files they name.
    pub fn settle(&self, credentials: &Credentials, own_issuer: &str) -> Result<Identity, String> {
        let this = self.clone();
        let accounts = this.accounts.clone().settle(credentials, own_issuer)?;
        let mut client_ca_pem = credentials.client_ca.cert_pem.clone();
        if let Some(path) = &this.client_ca_file {
            client_ca_pem.push('\n');
            client_ca_pem.push_str(&read("client-ca-file", path)?);
        }
        let (issuers, anonymous) = this.issuers(&accounts.issuers)?;
        let anonymous = match (anonymous, this.anonymous) {
            (Some(_), Some(_)) => {
                return Err("anonymous-auth cannot be set when the anonymous field is configured in authentication-config".into());
            }
            (Some(anonymous), None) => anonymous,
            (None, enabled) => {
                Anonymous { enabled: enabled.unwrap_or(true), ..Anonymous::default() }
            }
        };
        Ok(Identity {
            authorization: this.modes()?,
            authentication: api::authn::Settings {
                client_ca_pem,
                front_proxy: Some(this.front_proxy.settle(credentials)?),
                accounts,
                token_file: this.token_file,
                bootstrap_tokens: this.bootstrap_tokens,
                issuers,
                webhook: this.webhook.settle(),
                anonymous,
            },
        })
    }
}

fn take_authorization(
    flags: &mut AuthorizationFlags,
    name: &str,
    value: &str,
) -> Result<bool, String> {
    match name {
        "mode" => flags.modes.extend(list(value)),
        "policy-file" => flags.policy_file = Some(value.into()),
        "config" => flags.config_file = Some(value.into()),
        "webhook-config-file" => flags.webhook_config_file = Some(value.into()),
        "webhook-version" => flags.webhook_version = value.into(),
        "webhook-cache-authorized-ttl" => flags.authorized_ttl = time(value)?,
        "webhook-cache-unauthorized-ttl" => flags.unauthorized_ttl = time(value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Upstream's bounds of the longest lifetime; none is no bound.
fn lifetime(value: &str) -> Result<Option<Duration>, String> {
    const SHORTEST: Duration = Duration::from_secs(3_600);
    const LONGEST: Duration = Duration::from_secs(1 << 32);
    let asked = time(value)?;
    if !asked.is_zero() && !(SHORTEST..=LONGEST).contains(&asked) {
        return Err(
            "the service-account-max-token-expiration must be between 1 hour and 2^32 seconds"
                .into(),
        );
    }
    Ok((!asked.is_zero()).then_some(asked))
}

impl AccountFlags {
    fn settle(
        self,
        credentials: &Credentials,
        own_issuer: &str,
    ) -> Result<tokens::Settings, String> {
        let signing_key = match &self.signing_key_file {
            Some(path) => read("service-account-signing-key-file", path)?,
            None => credentials.service_account_key.clone(),
        };
        let keys = self.key_files.iter().map(|path| read("service-account-key-file", path));
        let mut keys = keys.collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            // What the server signed before it was given another key is good until it ends;
            // whoever names the keys that are believed means these alone.
            keys.push(credentials.service_account_key.clone());
        }
        let own = tokens::Settings::own(own_issuer, &signing_key);
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Ok(tokens::Settings {
            issuers: if self.issuers.is_empty() { own.issuers } else { self.issuers },
            audiences: self.audiences,
            keys,
            lifetime_seconds_max: self.lifetime_max.map(seconds),
            extends: self.extends.unwrap_or(true),
            signing_key: own.signing_key,
        })
    }
}

impl WebhookFlags {
    fn settle(self) -> Option<webhook::Settings> {
        Some(webhook::Settings {
            config_file: self.config_file?,
            // Upstream's first version, which is still its default.
            version: self.version.unwrap_or_else(|| "v1beta1".into()),
            cache_ttl: self.cache_ttl.unwrap_or(webhook::CACHE_TTL),
        })
    }
}

impl FrontProxyFlags {
    fn take(&mut self, name: &str, value: &str) -> bool {
        if name == "client-ca-file" {
            self.ca_file = Some(value.into());
            return true;
        }
        let field = match name {
            "allowed-names" => &mut self.allowed_names,
            "username-headers" => &mut self.username_headers,
            "uid-headers" => &mut self.uid_headers,
            "group-headers" => &mut self.group_headers,
            "extra-headers-prefix" => &mut self.extra_header_prefixes,
            _ => return false,
        };
        field.get_or_insert_default().extend(list(value));
        true
    }

    /// The server's own proxy is believed besides the administrator's.
    fn settle(self, credentials: &Credentials) -> Result<front_proxy::Settings, String> {
        let mut settings =
            front_proxy::Settings::new(&credentials.front_proxy_ca.cert_pem, &[FRONT_PROXY]);
        if let Some(path) = &self.ca_file {
            settings.ca_pem.push('\n');
            settings.ca_pem.push_str(&read("requestheader-client-ca-file", path)?);
            // Without names upstream lets any; so do theirs, and ours is among any.
            settings.allowed_names = match self.allowed_names {
                Some(names) => [vec![FRONT_PROXY.to_owned()], names].concat(),
                None => Vec::new(),
            };
        } else if let Some(names) = self.allowed_names {
            settings.allowed_names.extend(names);
        }
        let set = |field: &mut Vec<String>, given: Option<Vec<String>>| {
            if let Some(given) = given {
                *field = given;
            }
        };
        set(&mut settings.username_headers, self.username_headers);
        set(&mut settings.uid_headers, self.uid_headers);
        set(&mut settings.group_headers, self.group_headers);
        set(&mut settings.extra_header_prefixes, self.extra_header_prefixes);
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_taken_or_says_what_is_wrong() {
        for name in NAMES {
            let mut flags = IdentityFlags::default();
            let value = match name {
                name if name.ends_with("ttl") || name.ends_with("max-token-expiration") => "1h0m0s",
                "anonymous-auth" | "enable-bootstrap-token-auth" => "false",
                name if name.ends_with("extend-token-expiration") => "true",
                _ => "value",
            };
            assert_eq!(flags.take(name, value), Ok(true), "{name}");
        }
        let mut flags = IdentityFlags::default();
        for name in ["oidc-nosuch", "requestheader-nosuch", "authorization-nosuch", "nosuch"] {
            assert_eq!(flags.take(name, ""), Ok(false), "{name}");
        }
        for (name, value) in [
            ("anonymous-auth", "maybe"),
            ("service-account-max-token-expiration", "1m"),
            ("authentication-token-webhook-cache-ttl", "long"),
        ] {
            assert!(flags.take(name, value).is_err(), "{name}");
        }
    }

    #[test]
    fn nobody_switches_authorization_off() {
        let mut flags = IdentityFlags::default();
        flags.take("authorization-mode", "Node,AlwaysAllow").unwrap();
        let why = flags.authorization.modes().err().unwrap();
        assert!(why.contains("AlwaysAllow is not supported: authorization is always on"), "{why}");
    }
}
