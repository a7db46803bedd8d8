//! Which proxy leads to a host, as the environment says it to most programs: `HTTP_PROXY`,
//! `HTTPS_PROXY` and `NO_PROXY`, in capitals or not.
//!
//! Decides only; `transport` speaks with the proxy.

use std::net::IpAddr;

use base64::Engine as _;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For requests without and with TLS.
    pub http: String,
    pub https: String,
    /// Hosts that are reached directly, with commas between them.
    pub none: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Host and port.
    pub address: String,
    /// Of a user whom the proxy wants to know.
    pub authorization: Option<String>,
}

impl Proxies {
    /// Those of this process.
    pub fn of_environment() -> Self {
        Self::of(|name| std::env::var(name).ok())
    }

    /// `variable` gives the value of an environment variable.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| {
            let set = |name: &str| variable(name).filter(|value| !value.is_empty());
            set(name).or_else(|| set(&name.to_lowercase())).unwrap_or_default()
        };
        Self { http: value("HTTP_PROXY"), https: value("HTTPS_PROXY"), none: value("NO_PROXY") }
    }

    /// None where the host is reached directly; this machine always is.
    ///
    /// # Errors
    /// A proxy that is not spoken with, in words.
    pub fn to(&self, scheme: &str, host: &str, port: u16) -> Result<Option<Proxy>, String> {
        let text = if scheme == "http" { &self.http } else { &self.https };
        if text.is_empty() || self.passes_by(host.trim_matches(['[', ']']), port) {
            return Ok(None);
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        if scheme != "http" {
            return Err(format!("a proxy of scheme {scheme:?} is not supported, only http"));
        }
        let rest = rest.split('/').next().unwrap_or(rest);
        let (user, address) = match rest.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, rest),
        };
        let has_port =
            address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let address = if has_port { address.to_owned() } else { format!("{address}:80") };
        let authorization = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            let mut plain = decoded(name);
            plain.push(b':');
            plain.extend(decoded(password));
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain))
        });
        Ok(Some(Proxy { address, authorization }))
    }

    fn passes_by(&self, host: &str, port: u16) -> bool {
        let (host, address) = (host.to_lowercase(), host.parse::<IpAddr>().ok());
        if host == "localhost" || address.is_some_and(|it| it.is_loopback()) {
            return true;
        }
        self.none.split(',').map(|entry| entry.trim().to_lowercase()).any(|entry| {
            if entry == "*" {
                return true;
            }
            if let (Some((network, bits)), Some(address)) = (entry.split_once('/'), address) {
                return is_within(address, network, bits);
            }
            let (name, only) = match entry.rsplit_once(':') {
                Some((name, only)) if only.parse::<u16>().is_ok() && !name.contains(':') => {
                    (name, only.parse().ok())
                }
                _ => (entry.as_str(), None),
            };
            let name = name.trim_matches(['[', ']']);
            if name.is_empty() || only.is_some_and(|only: u16| only != port) {
                return false;
            }
            if let Some(address) = address {
                return name.parse() == Ok(address);
            }
            match name.strip_prefix("*.").or_else(|| name.strip_prefix('.')) {
                Some(domain) => host.strip_suffix(domain).is_some_and(|it| it.ends_with('.')),
                None => host == name || host.strip_suffix(name).is_some_and(|it| it.ends_with('.')),
            }
        })
    }
}

/// Whether an address lies in `network/bits`.
fn is_within(address: IpAddr, network: &str, bits: &str) -> bool {
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else {
        return false;
    };
    let (ours, theirs, length) = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    bits <= length && (ours ^ theirs).checked_shr(length - bits).unwrap_or(0) == 0
}

/// Of a part of a URL.
fn decoded(text: &str) -> Vec<u8> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let coded = bytes.get(at + 1..at + 3).and_then(|it| std::str::from_utf8(it).ok());
        match coded.and_then(|it| u8::from_str_radix(it, 16).ok()).filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_which_hosts_a_proxy_leads_to() {
        let proxies = Proxies::of(|name| {
            match name {
            "HTTPS_PROXY" => Some("http://me:p%40ss@proxy.lan:3128/".to_owned()),
            "http_proxy" => Some("plain.lan".to_owned()),
            "NO_PROXY" => Some(
                "registry.lan, .inside.org,*.wild.org,10.0.0.0/8,192.168.1.7,fd00::/8,port.org:5000"
                    .to_owned(),
            ),
            _ => None,
        }
        });
        let to = |host: &str, port| proxies.to("https", host, port).unwrap();
        let through = to("registry-1.docker.io", 443).unwrap();
        assert_eq!(through.address, "proxy.lan:3128");
        assert_eq!(through.authorization.as_deref(), Some("Basic bWU6cEBzcw=="));
        let plain = proxies.to("http", "example.org", 80).unwrap().unwrap();
        assert_eq!((plain.address.as_str(), plain.authorization), ("plain.lan:80", None));
        for (host, port) in [
            ("registry.lan", 443),
            ("a.registry.lan", 443),
            ("REGISTRY.lan", 443),
            ("a.inside.org", 443),
            ("b.wild.org", 443),
            ("10.1.2.3", 5000),
            ("192.168.1.7", 443),
            ("[fd00::1]", 443),
            ("port.org", 5000),
            ("localhost", 443),
            ("127.0.0.1", 443),
            ("[::1]", 443),
        ] {
            assert_eq!(to(host, port), None, "{host}");
        }
        for (host, port) in [
            ("notregistry.lan", 443),
            ("inside.org", 443),
            ("11.0.0.1", 443),
            ("192.168.1.70", 443),
            ("port.org", 443),
            ("[fe80::1]", 443),
        ] {
            assert!(to(host, port).is_some(), "{host}");
        }
        let all = Proxies { none: "*".to_owned(), ..proxies.clone() };
        assert_eq!(all.to("https", "docker.io", 443).unwrap(), None);
        assert_eq!(Proxies::default().to("https", "docker.io", 443).unwrap(), None);
        let odd = Proxies { https: "socks5://h:1".to_owned(), ..Proxies::default() };
        assert!(odd.to("https", "docker.io", 443).unwrap_err().contains("\"socks5\""));
    }
}
