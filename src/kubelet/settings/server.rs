//! What a configuration says of the kubelet's servers: addresses, certificates, TLS.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use pki::tls::Offer;

use super::Configuration;
use crate::config::KubeletConfig;
use crate::serving;

const HEALTHZ: (IpAddr, u16) = (IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10_248);

/// Suites of TLS 1.2 and before that upstream knows (Go's crypto/tls). Those that are not offered
/// here may be allowed all the same: a client that has no other is refused.
const SUITES: [&str; 24] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_RSA_WITH_RC4_128_SHA",
];
/// They cannot be chosen among, but may be named.
const SUITES_OF_TLS13: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
/// Groups that upstream knows (Go's tls.CurveID).
const GROUPS: [u16; 7] = [23, 24, 25, 29, 4_587, 4_588, 4_589];
/// And those that there are here.
const GROUPS_HERE: [u16; 3] = [23, 24, 29];

impl Configuration {
    /// # Errors
    /// What makes no sense, and a certificate that cannot be read.
    pub(super) fn serve(&self, config: &mut KubeletConfig) -> Result<(), String> {
        if let Some(text) = self.address.as_ref().filter(|text| !text.is_empty()) {
            let address = text.parse().map_err(|_| {
                format!("invalid configuration: address {text:?} is not an IP address")
            })?;
            config.listen.set_ip(address);
        }
        if let Some(port) = self.port.filter(|port| *port != 0) {
            config.listen.set_port(a_port("port", "--port", port)?);
        }
        self.healthz(config)?;
        let path = |path: &Option<PathBuf>| path.clone().filter(|it| !it.as_os_str().is_empty());
        match (path(&self.tls_cert_file), path(&self.tls_private_key_file)) {
            (None, None) => {}
            (Some(cert), Some(key)) => {
                let files = (cert, key);
                serving::files::read(&files)?;
                config.serving_files = Some(files);
            }
            _ => {
                return Err("tlsCertFile and tlsPrivateKeyFile must be set together".into());
            }
        }
        let offer = self.offer()?;
        if offer == config.offer {
            return Ok(());
        }
        let authorities = Some(config.client_ca_pem.as_slice()).filter(|pem| !pem.is_empty());
        let offering = pki::tls::offering(&config.tls, authorities, &offer);
        let offering = offering.map_err(|error| base::error::chain(&error).to_string())?;
        (config.tls, config.offer) = (Arc::new(offering), offer);
        Ok(())
    }

    fn healthz(&self, config: &mut KubeletConfig) -> Result<(), String> {
        let now = config.healthz.map_or(HEALTHZ, |it| (it.ip(), it.port()));
        let address = match self.healthz_bind_address.as_ref().filter(|text| !text.is_empty()) {
            Some(text) => text.parse().map_err(|_| {
                format!("invalid configuration: healthzBindAddress {text:?} is not an IP address")
            })?,
            None => now.0,
        };
        config.healthz = match self.healthz_port {
            Some(0) => None,
            Some(port) => {
                let port = a_port("healthzPort", "--healthz-port", port)?;
                Some(SocketAddr::new(address, port))
            }
            None => config.healthz.map(|_| SocketAddr::new(address, now.1)),
        };
        Ok(())
    }

    fn offer(&self) -> Result<Offer, String> {
        let only_tls13 = match self.tls_min_version.as_deref().unwrap_or_default() {
            // Nothing before TLS 1.2 is offered, whoever would allow it.
            "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" => false,
            "VersionTLS13" => true,
            other => return Err(format!("unknown tls version {other:?}")),
        };
        let suites = self.tls_cipher_suites.clone().filter(|names| !names.is_empty());
        let known = |name: &&String| {
            SUITES.contains(&name.as_str()) || SUITES_OF_TLS13.contains(&name.as_str())
        };
        if let Some(name) = suites.iter().flatten().find(|name| !known(name)) {
            return Err(format!("Cipher suite {name} not supported or doesn't exist"));
        }
        // The names that Go had for two of them at first.
        let suites = suites.map(|names| {
            let whole = |name: String| match name.ends_with("_WITH_CHACHA20_POLY1305") {
                true => name + "_SHA256",
                false => name,
            };
            names.into_iter().map(whole).collect()
        });
        let groups = self.tls_curve_preferences.clone().filter(|groups| !groups.is_empty());
        let number = |group: i32| {
            u16::try_from(group).ok().filter(|it| GROUPS.contains(it)).ok_or_else(|| {
                format!("invalid configuration: tlsCurvePreferences: unsupported curve {group}")
            })
        };
        let groups: Option<Vec<u16>> = groups
            .map(|groups| groups.into_iter().map(number).collect::<Result<_, _>>())
            .transpose()?;
        if let Some(groups) = &groups
            && !groups.iter().any(|it| GROUPS_HERE.contains(it))
        {
            return Err(format!(
                "tlsCurvePreferences: none of {groups:?} is offered here; those are {GROUPS_HERE:?}"
            ));
        }
        Ok(Offer { only_tls13, suites, groups })
    }
}

fn a_port(field: &str, flag: &str, port: i32) -> Result<u16, String> {
    u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| {
        format!(
            "invalid configuration: {field} ({flag}) {port} must be between 1 and 65535, inclusive"
        )
    })
}

pub(super) fn show(config: &KubeletConfig, shown: &mut Configuration) {
    shown.address = Some(config.listen.ip().to_string());
    shown.port = Some(config.listen.port().into());
    shown.healthz_port = Some(config.healthz.map_or(0, |it| it.port().into()));
    shown.healthz_bind_address = Some(config.healthz.map_or(HEALTHZ.0, |it| it.ip()).to_string());
    if let Some((cert, key)) = &config.serving_files {
        shown.tls_cert_file = Some(cert.clone());
        shown.tls_private_key_file = Some(key.clone());
    }
    shown.tls_cipher_suites.clone_from(&config.offer.suites);
    let groups = config.offer.groups.as_ref();
    shown.tls_curve_preferences = groups.map(|all| all.iter().map(|it| i32::from(*it)).collect());
    let version = if config.offer.only_tls13 { "VersionTLS13" } else { "VersionTLS12" };
    shown.tls_min_version = Some(version.into());
}
