//! Whom the kubelet's server believes. Bearer tokens are asked about at the API server, and
//! nobody is anonymous: both are said only to agree.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::KubeletConfig;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authentication {
    pub x509: Option<X509>,
    pub webhook: Option<Webhook>,
    pub anonymous: Option<Switch>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct X509 {
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Switch {
    pub enabled: Option<bool>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Webhook {
    pub enabled: Option<bool>,
    /// Zero stands for the usual length, which is not for setting.
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: Option<String>,
}

impl Authentication {
    /// # Errors
    /// What is not so here, and a file that cannot be read.
    pub fn apply(self, config: &mut KubeletConfig) -> Result<(), String> {
        let webhook = self.webhook.unwrap_or_default();
        if webhook.enabled == Some(false) {
            return Err("authentication.webhook.enabled: false is not supported".into());
        }
        if let Some(length) = webhook.cache_ttl.filter(|it| !["", "0", "0s"].contains(&&**it)) {
            return Err(format!("authentication.webhook.cacheTTL: {length} is not supported"));
        }
        if self.anonymous.and_then(|it| it.enabled) == Some(true) {
            return Err("authentication.anonymous.enabled: true is not supported".into());
        }
        let file = self.x509.and_then(|it| it.client_ca_file);
        let Some(file) = file.filter(|file| !file.as_os_str().is_empty()) else { return Ok(()) };
        let about =
            |why: String| format!("authentication.x509.clientCAFile {}: {why}", file.display());
        let pem = std::fs::read(&file).map_err(|error| about(error.to_string()))?;
        pki::request::check_certificates(&pem).map_err(about)?;
        let asking = pki::tls::offering(&config.tls, Some(&pem), &config.offer);
        let asking = asking.map_err(|error| about(base::error::chain(&error).to_string()))?;
        (config.tls, config.client_ca_pem) = (Arc::new(asking), pem);
        Ok(())
    }
}
