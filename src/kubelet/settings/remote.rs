//! What a configuration says of static pods from a URL.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Configuration;
use crate::config::KubeletConfig;
use crate::staticpods::remote::Remote;

/// Upstream's.
const PERIOD: Duration = Duration::from_secs(20);

impl Configuration {
    /// # Errors
    /// A URL, a header or a frequency that makes no sense.
    pub(super) fn static_pod_url(&self) -> Result<Option<Remote>, String> {
        let period = match &self.http_check_frequency {
            Some(text) => base::time::parse_duration(text)
                .ok_or_else(|| format!("httpCheckFrequency {text:?} is no length of time"))?,
            None => PERIOD,
        };
        let Some(url) = self.static_pod_url.as_ref().filter(|url| !url.is_empty()) else {
            return Ok(None);
        };
        let headers =
            self.static_pod_url_header.iter().flatten().flat_map(|(name, values)| {
                values.iter().map(|value| (name.clone(), value.clone()))
            });
        Remote::new(url, headers.collect(), period).map(Some)
    }
}

/// `a:1,b:2`, each as often as it is wanted.
pub(super) fn read_headers(flag: &str, text: &str) -> Result<Value, String> {
    let mut out: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair
            .split_once(':')
            .ok_or_else(|| format!("--kubelet-arg {flag}: {pair:?} is not NAME:VALUE"))?;
        out.entry(name.trim()).or_default().push(value.trim());
    }
    Ok(json!(out))
}

/// Without the values of headers: they may be secret.
pub(super) fn show(config: &KubeletConfig, shown: &mut Configuration) {
    let Some(remote) = &config.static_pod_url else { return };
    shown.static_pod_url = Some(remote.url.clone());
    shown.http_check_frequency = Some(base::time::go_duration(remote.period));
    let masked = || vec!["<masked>".to_owned()];
    let headers = remote.headers.iter().map(|(name, _)| (name.clone(), masked()));
    shown.static_pod_url_header = Some(headers.collect());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_and_its_headers_come_from_flags() {
        let flags = [
            "manifest-url=http://x:1/pods",
            "manifest-url-header=Authorization:Bearer a,X-B:c,X-B:d",
            "http-check-frequency=5s",
        ];
        let read = Configuration::read(None, &flags.map(str::to_owned)).unwrap();
        let remote = read.static_pod_url().unwrap().unwrap();
        assert_eq!(
            (remote.url.as_str(), remote.period),
            ("http://x:1/pods", Duration::from_secs(5))
        );
        let headers: Vec<String> =
            remote.headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(headers, ["Authorization=Bearer a", "X-B=c", "X-B=d"]);
        assert!(Configuration::default().static_pod_url().unwrap().is_none());
        assert!(read_headers("manifest-url-header", "a").is_err());
    }
}
